"""The local engine where nothing goes wrong, and its words where it cannot start."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from normwise.errors import UsageError
from normwise.experiment.engine import Engine, LocalEngine
from normwise.experiment.process import WorkerError
from normwise.experiment.trial import Result, Trial

TRIALS = [Trial("batch", 8, 0.1, seed) for seed in range(6)]


def key(trial: Trial) -> str:
    return trial.key("task")


def local(job: Callable[[Trial], Result], folder: Path, workers: int = 2, **limits: Any) -> LocalEngine:
    return LocalEngine(job, folder, workers=workers, key=key, log=folder / "log.txt", **limits)


def run(engine: Engine, trials: list[Trial]) -> list[Result]:
    for trial in trials:
        engine.submit(trial)
    return list(iter(engine.next, None))


def doubling(seconds: float = 0.0) -> Callable[[Trial], Result]:
    def job(trial: Trial) -> Result:
        time.sleep(seconds)
        return Result(trial, measures={"judge": 2.0 * trial.seed, "pid": os.getpid()}, seconds=seconds)

    return job


def test_every_trial_comes_back_once(tmp_path: Path) -> None:
    with local(doubling(0.05), tmp_path) as engine:
        results = run(engine, TRIALS)
    assert sorted(result.trial for result in results) == TRIALS
    assert all(result.measures["judge"] == 2.0 * result.trial.seed for result in results)
    assert len({result.measures["pid"] for result in results} - {os.getpid()}) == 2


def test_results_are_handed_over_as_files(tmp_path: Path) -> None:
    with local(doubling(), tmp_path) as engine:
        results = run(engine, TRIALS)
    files = {path.stem: Result.from_json(path.read_text()) for path in (tmp_path / "trials").iterdir()}
    assert files == {key(result.trial): result for result in results}


def test_one_worker_runs_in_the_order_of_submission(tmp_path: Path) -> None:
    with local(doubling(), tmp_path, workers=1) as engine:
        assert [result.trial for result in run(engine, TRIALS[::-1])] == TRIALS[::-1]


def test_next_waits_no_longer_than_told(tmp_path: Path) -> None:
    with local(doubling(1.0), tmp_path, workers=1) as engine:
        assert engine.next() is None
        engine.submit(TRIALS[0])
        assert engine.next(timeout=0.01) is None
        assert engine.next() is not None
        assert engine.next() is None


def test_trials_may_follow_from_results(tmp_path: Path) -> None:
    with local(doubling(), tmp_path) as engine:
        rounds = [[result.trial for result in run(engine, [trial])] for trial in TRIALS]
    assert rounds == [[trial] for trial in TRIALS]


def test_a_worker_gets_its_next_trial_while_the_driver_is_elsewhere(tmp_path: Path) -> None:
    with local(doubling(0.05), tmp_path) as engine:
        for trial in TRIALS:
            engine.submit(trial)
        deadline = time.monotonic() + 20
        while len(list((tmp_path / "trials").glob("*.json"))) < len(TRIALS):
            assert time.monotonic() < deadline
            time.sleep(0.01)


class Slow:
    """A big job that takes three seconds to unpickle, as one that imports a framework."""

    def __init__(self) -> None:
        self.data = bytes(20_000_000)

    def __call__(self, trial: Trial) -> Result:
        return Result(trial)

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data, "delay": Delay()}


class Delay:
    def __reduce__(self) -> tuple[Any, ...]:
        return time.sleep, (3,)


def test_starting_workers_does_not_hold_up_the_driver(tmp_path: Path) -> None:
    with local(Slow(), tmp_path) as engine:
        begin = time.monotonic()
        engine.submit(TRIALS[0])
        assert engine.next(timeout=0) is None
        assert time.monotonic() - begin < 2
        assert engine.next() is not None


def test_closing_leaves_no_process_and_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with local(doubling(60), tmp_path) as engine:
        for trial in TRIALS:
            engine.submit(trial)
        assert engine.next(timeout=1) is None
        workers = psutil.Process().children()
        assert len(workers) >= 2
    assert not any(worker.is_running() for worker in workers)
    assert threading.active_count() == before
    engine.close()


def test_a_job_that_cannot_be_pickled_is_bad_input(tmp_path: Path) -> None:
    lock = threading.Lock()

    def job(trial: Trial) -> Result:
        with lock:
            return Result(trial)

    with pytest.raises(UsageError, match=r"pickling it failed \(cannot pickle '_thread.lock' object\); make in"):
        local(job, tmp_path)


def test_an_engine_needs_a_worker(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="workers must be at least 1, got 0"):
        local(doubling(), tmp_path, workers=0)


class Unimportable:
    def __reduce__(self) -> tuple[Any, ...]:
        return __import__, ("no_such_module",)

    def __call__(self, trial: Trial) -> Result:
        return Result(trial)


def test_workers_that_cannot_start_are_not_replaced_for_ever(tmp_path: Path) -> None:
    with local(Unimportable(), tmp_path, workers=1) as engine:
        engine.submit(TRIALS[0])
        with pytest.raises(WorkerError, match=r"(?s)3 worker .* exited with code 1\. The end of .*no_such_module"):
            engine.next()


def test_a_result_that_cannot_be_handed_over_ends_the_run(tmp_path: Path) -> None:
    with local(doubling(0.3), tmp_path, workers=1) as engine:
        engine.submit(TRIALS[0])
        engine.submit(TRIALS[1])
        assert engine.next() is not None
        (tmp_path / "trials").rename(tmp_path / "elsewhere")
        with pytest.raises(WorkerError, match=r"a worker stopped: cannot write .*\.json: \[Errno 2\] No such file"):
            engine.next()
