"""Faults, injected: whatever is killed, no finished trial is lost or counted twice, and the run completes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from normwise.experiment.engine import LocalEngine
from normwise.experiment.ledger import Ledger, Lock
from normwise.experiment.process import SOURCE
from normwise.experiment.trial import Result, Trial

TRIALS = [Trial("batch", 8, 0.1, seed) for seed in range(6)]
FAULTY, OTHERS = TRIALS[1], [trial for trial in TRIALS if trial.seed != 1]
Job = Callable[[Trial], Result]


def key(trial: Trial) -> str:
    return trial.key("task")


def run(job: Job, folder: Path, **limits: Any) -> dict[Trial, Result]:
    """Runs the trials on two workers; nothing comes back twice, no process is left."""
    before = set(psutil.Process().children(recursive=True))
    with LocalEngine(job, folder, workers=2, key=key, log=folder / "log.txt", **limits) as engine:
        for trial in TRIALS:
            engine.submit(trial)
        results = list(iter(engine.next, None))
    assert sorted(result.trial for result in results) == TRIALS
    assert set(psutil.Process().children(recursive=True)) <= before
    return {result.trial: result for result in results}


def faulty(fault: Callable[[], object], folder: Path, times: int = 1_000) -> Job:
    """A job that multiplies; on one trial the fault happens first, so many times."""

    def job(trial: Trial) -> Result:
        if trial.seed == 1:
            with (folder / "attempts").open("a") as file:
                file.write("x")
            if (folder / "attempts").stat().st_size <= times:
                fault()
        return Result(trial, measures={"judge": 2.0 * trial.seed})

    return job


def attempts(folder: Path) -> int:
    return len((folder / "attempts").read_text())


def reason_after_two_attempts(results: dict[Trial, Result], folder: Path) -> str:
    """The one trial failed at its second attempt, all others are right."""
    assert attempts(folder) == 2
    assert {trial: results[trial].measures for trial in OTHERS} == {
        trial: {"judge": 2.0 * trial.seed} for trial in OTHERS
    }
    assert (results[FAULTY].status, results[FAULTY].measures) == ("failed", {})
    handed_over = Result.from_json((folder / "trials" / f"{key(FAULTY)}.json").read_text())
    assert handed_over == results[FAULTY]
    return results[FAULTY].reason


def alive(folder: Path) -> list[int]:
    """Which of the processes that left their number in a folder still run."""
    found = []
    for path in (folder / "pids").iterdir():
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(int(path.name)).status() != psutil.STATUS_ZOMBIE:
                found.append(int(path.name))
    return found


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.02)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_killed_in_a_trial_is_replaced_and_the_trial_run_again(tmp_path: Path) -> None:
    results = run(faulty(die, tmp_path, times=1), tmp_path)
    assert {trial: result.measures["judge"] for trial, result in results.items()} == {
        trial: 2.0 * trial.seed for trial in TRIALS
    }
    assert all(result.status == "ok" for result in results.values())
    assert attempts(tmp_path) == 2
    assert "worker killed by SIGKILL; it had Trial(arm='batch', " in (tmp_path / "log.txt").read_text()


def test_a_worker_killed_while_idle_costs_its_next_trial_no_attempt(tmp_path: Path) -> None:
    job = faulty(die, tmp_path, times=1)
    with LocalEngine(job, tmp_path, workers=1, key=key, log=tmp_path / "log.txt") as engine:
        engine.submit(TRIALS[0])
        assert engine.next() == Result(TRIALS[0], measures={"judge": 0.0})
        for child in psutil.Process().children():
            if "normwise.experiment.worker" in child.cmdline():
                child.kill()
                wait_for(lambda child=child: child.status() == psutil.STATUS_ZOMBIE, seconds=5)
        engine.submit(FAULTY)
        assert engine.next() == Result(FAULTY, measures={"judge": 2.0})
    assert attempts(tmp_path) == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (die, "worker killed by SIGKILL (2 attempts)"),
        (lambda: os._exit(3), "worker exited with code 3 (2 attempts)"),
        (lambda: os.abort(), "worker killed by SIGABRT (2 attempts)"),
    ],
    ids=["killed", "exits", "aborts"],
)
def test_a_trial_that_kills_every_worker_fails_with_the_reason(
    tmp_path: Path, fault: Callable[[], object], reason: str
) -> None:
    results = run(faulty(fault, tmp_path), tmp_path)
    assert reason_after_two_attempts(results, tmp_path) == reason


def test_every_trial_killing_its_worker_is_no_reason_to_give_up(tmp_path: Path) -> None:
    results = run(lambda trial: os._exit(3), tmp_path)
    assert {result.status for result in results.values()} == {"failed"}


def test_a_worker_killed_after_the_hand_over_has_finished_its_trial(tmp_path: Path) -> None:
    def hand_over_and_die(trial: Trial) -> Result:
        worker: Any = sys.modules["__main__"]
        write = worker.write_atomic

        def write_and_die(*arguments: Any) -> None:
            write(*arguments)
            os._exit(9)

        worker.write_atomic = write_and_die
        return Result(trial, measures={"pid": os.getpid()})

    results = run(hand_over_and_die, tmp_path)
    assert {result.status for result in results.values()} == {"ok"}
    assert len({result.measures["pid"] for result in results.values()}) == len(TRIALS)


def test_a_file_of_an_earlier_run_is_no_result_of_this_one(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / f"{key(FAULTY)}.json").write_text(Result(FAULTY).to_json())
    results = run(faulty(die, tmp_path), tmp_path)
    assert reason_after_two_attempts(results, tmp_path) == "worker killed by SIGKILL (2 attempts)"


def test_what_a_dead_worker_had_started_is_ended(tmp_path: Path) -> None:
    def start_and_exit() -> None:
        child = subprocess.Popen(["sleep", "60"])
        (tmp_path / "pids" / str(child.pid)).touch()
        os._exit(4)

    (tmp_path / "pids").mkdir()
    results = run(faulty(start_and_exit, tmp_path), tmp_path)
    assert reason_after_two_attempts(results, tmp_path) == "worker exited with code 4 (2 attempts)"
    wait_for(lambda: not alive(tmp_path), seconds=2)


def test_a_worker_that_leaves_a_child_behind_is_noticed(tmp_path: Path) -> None:
    def fork_and_exit() -> None:
        if os.fork():
            os._exit(4)
        time.sleep(60)

    results = run(faulty(fork_and_exit, tmp_path), tmp_path)
    assert reason_after_two_attempts(results, tmp_path) == "worker exited with code 4 (2 attempts)"


def test_a_trial_that_hangs_is_ended(tmp_path: Path) -> None:
    results = run(faulty(lambda: time.sleep(60), tmp_path), tmp_path, seconds_per_trial=1.0)
    reason = reason_after_two_attempts(results, tmp_path)
    assert reason == "over the limit of 1 seconds per trial (2 attempts)"


def test_a_trial_that_exhausts_memory_is_ended(tmp_path: Path) -> None:
    def eat() -> None:
        eaten = []
        while len(eaten) < 100:
            eaten.append(b"x" * 20_000_000)
            time.sleep(0.05)

    results = run(faulty(eat, tmp_path), tmp_path, memory_per_trial=200 * 2**20)
    reason = reason_after_two_attempts(results, tmp_path)
    assert reason == "over the limit of 200 MiB of memory per trial (2 attempts)"


def test_an_exception_fails_its_trial_at_once_and_is_in_the_log(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("no luck")

    results = run(faulty(fail, tmp_path), tmp_path)
    assert (results[FAULTY].status, results[FAULTY].reason) == ("failed", "RuntimeError: no luck")
    assert attempts(tmp_path) == 1
    assert "Traceback (most recent call last)" in (tmp_path / "log.txt").read_text()


def test_a_talkative_job_holds_nothing_up(tmp_path: Path) -> None:
    def talk() -> None:
        for _ in range(20_000):
            print("done " * 10)
            print("begin " * 10, file=sys.stderr)

    results = run(faulty(talk, tmp_path, times=1), tmp_path)
    assert {result.status for result in results.values()} == {"ok"}
    assert (tmp_path / "log.txt").stat().st_size > 2_000_000


DRIVER = """
import os, signal, sys, time
from pathlib import Path
from normwise.experiment.engine import LocalEngine
from normwise.experiment.ledger import Ledger, Lock
from normwise.experiment.trial import Result, Trial

folder, killed_after, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
trials = [Trial("batch", 8, 0.1, seed) for seed in range(6)]

def key(trial):
    return trial.key("task")

def job(trial):
    (folder / "pids" / str(os.getpid())).touch()
    with (folder / "begun").open("a") as file:
        file.write(f"{trial.seed}\\n")
    time.sleep(seconds)
    return Result(trial, measures={"judge": 2.0 * trial.seed})

def hang(trial):
    (folder / "pids" / str(os.getpid())).touch()
    import re
    re.match("(a+)+$", "a" * 60 + "b")  # lets no other thread run

(folder / "pids").mkdir(exist_ok=True)
with (
    Lock(folder),
    Ledger.open(folder, {"task": "add"}) as ledger,
    LocalEngine(job if seconds else hang, folder, workers=2, key=key, log=folder / "log.txt") as engine,
):
    ledger.ingest(folder / "trials", key)
    for trial in trials:
        if key(trial) not in ledger.results:
            engine.submit(trial)
    for count, result in enumerate(iter(engine.next, None)):
        print(count, flush=True)
        if count == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)
        ledger.add(key(result.trial), result)
"""


@contextlib.contextmanager
def driver(folder: Path, killed_after: int = -1, seconds: float = 0.3) -> Iterator[subprocess.Popen[str]]:
    """A driver of its own process group, as one started from a terminal."""
    (folder / "driver.py").write_text(DRIVER)
    with subprocess.Popen(
        [sys.executable, str(folder / "driver.py"), str(folder), str(killed_after), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": SOURCE},
        start_new_session=True,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def completes(folder: Path) -> None:
    """The same driver again finishes the run: every trial is there, and recorded once."""
    handed_over = {path.stem for path in (folder / "trials").glob("*.json")}
    begun = Counter((folder / "begun").read_text().split())
    with Ledger.open(folder, {"task": "add"}) as ledger:
        known = handed_over | ledger.results.keys()
    with driver(folder) as second:
        assert second.wait(30) == 0, second.communicate()[1]
    with Ledger.open(folder, {"task": "add"}) as ledger:
        assert {result.trial: result.measures["judge"] for result in ledger.results.values()} == {
            trial: 2.0 * trial.seed for trial in TRIALS
        }
    again = Counter((folder / "begun").read_text().split()) - begun
    assert again == Counter(str(trial.seed) for trial in TRIALS if key(trial) not in known)
    journal = (folder / "journal.log").read_text()
    assert [journal.count(key(trial)) for trial in TRIALS] == [1] * len(TRIALS)


def test_a_driver_killed_between_hand_over_and_record_loses_nothing(tmp_path: Path) -> None:
    with driver(tmp_path, killed_after=2) as first:
        assert first.wait(30) == -signal.SIGKILL
    wait_for(lambda: not alive(tmp_path), seconds=2)
    with Lock(tmp_path), Ledger.open(tmp_path, {"task": "add"}) as ledger:
        assert len(ledger.results) == 2
        assert len(list((tmp_path / "trials").glob("*.json"))) >= 3
    completes(tmp_path)


def test_a_driver_killed_while_writing_its_journal_loses_nothing(tmp_path: Path) -> None:
    with driver(tmp_path, killed_after=3) as first:
        assert first.wait(30) == -signal.SIGKILL
    journal = tmp_path / "journal.log"
    journal.write_bytes(journal.read_bytes()[:-20])
    (tmp_path / "journal.log.lock").touch()
    completes(tmp_path)


def test_workers_in_code_that_lets_no_thread_run_die_with_their_driver(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux kills a process with its parent")
    with driver(tmp_path, seconds=0) as first:
        wait_for(lambda: (tmp_path / "pids").exists() and len(alive(tmp_path)) == 2, seconds=30)
        time.sleep(0.2)
        assert len(alive(tmp_path)) == 2
        first.kill()
        first.wait()
        wait_for(lambda: not alive(tmp_path), seconds=2)


def test_control_c_ends_the_workers_and_leaves_a_run_that_continues(tmp_path: Path) -> None:
    with driver(tmp_path, seconds=0.5) as first:
        assert first.stdout
        assert first.stdout.readline() == "0\n"
        os.killpg(first.pid, signal.SIGINT)
        _, errors = first.communicate(timeout=10)
        assert errors.endswith("KeyboardInterrupt\n")
        assert "Exception ignored" not in errors
    assert alive(tmp_path) == []
    for path in (tmp_path / "trials").glob("*.json"):
        assert Result.from_json(path.read_text()).status == "ok"
    completes(tmp_path)


def test_a_second_driver_on_the_same_folder_ends_with_a_sentence(tmp_path: Path) -> None:
    with driver(tmp_path, seconds=60) as first:
        wait_for(lambda: (tmp_path / "pids").exists() and len(alive(tmp_path)) == 2, seconds=30)
        with driver(tmp_path) as second:
            _, errors = second.communicate(timeout=30)
        assert f"UsageError: {tmp_path} is in use by the normwise process {first.pid}; let it end" in errors
        assert first.poll() is None
