"""A worker process, spoken to as the engine does: its answers, its files, its end."""

import os
import pickle
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from normwise.experiment.process import MODULE, SOURCE, command, pack
from normwise.experiment.trial import Result, Trial
from normwise.experiment.worker import attempt

TRIAL = Trial("batch", 8, 0.1, seed=3)
Job = Callable[[Trial], Result]


class Conversation:
    """A worker process with its pipes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with (folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                command(MODULE),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    def say(self, message: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(message)
        self.process.stdin.flush()

    def order(self, job: Job, key: str = "key") -> None:
        self.say(pack(job, self.folder) + pickle.dumps([(key, TRIAL)]))

    def hear(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().decode().strip()

    def hang_up(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def result(self, key: str = "key") -> Result:
        return Result.from_json((self.folder / f"{key}.json").read_text())

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Conversation]:
    conversation = Conversation(tmp_path)
    with conversation.process:
        yield conversation
        conversation.process.kill()


def judged(**facts: float) -> Job:
    return lambda trial: Result(trial, measures=facts)


def test_a_result_is_a_file_before_it_is_an_answer(worker: Conversation) -> None:
    worker.order(judged(judge=0.5))
    assert [worker.hear(), worker.hear()] == ["begin", "done"]
    assert worker.result() == Result(TRIAL, measures={"judge": 0.5})


def test_one_process_runs_one_trial_after_the_other(worker: Conversation) -> None:
    worker.order(lambda trial: Result(trial, measures={"pid": os.getpid()}), "first")
    worker.say(pickle.dumps([("second", TRIAL)]))
    assert [worker.hear() for _ in range(4)] == ["begin", "done"] * 2
    assert worker.result("first").measures == worker.result("second").measures == {"pid": worker.process.pid}


def test_what_the_job_prints_goes_to_the_log_and_it_reads_nothing(worker: Conversation) -> None:
    def job(trial: Trial) -> Result:
        import sys

        print("done")
        os.write(1, b"raw\n")
        subprocess.run(["echo", "child"], check=True)
        print("warned", file=sys.stderr)
        return Result(trial, measures={"read": len(sys.stdin.read())})

    worker.order(job)
    assert [worker.hear(), worker.hear()] == ["begin", "done"]
    assert worker.result().measures == {"read": 0}
    assert {"done", "raw", "child", "warned"} <= set(worker.log().splitlines())


def test_the_environment_is_that_of_the_driver(
    worker: Conversation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "of_the_user.py").write_text("score = 0.25\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def job(trial: Trial) -> Result:
        import torch
        from of_the_user import score  # type: ignore[import-not-found]  # made above

        set_ = "PYTHONPATH" in os.environ
        return Result(trial, measures={"judge": score, "threads": torch.get_num_threads(), "path": set_})

    worker.order(job)
    assert [worker.hear(), worker.hear()] == ["begin", "done"]
    assert worker.result().measures == {"judge": 0.25, "threads": 1, "path": False}


def test_a_module_of_the_user_cannot_take_more_threads(
    worker: Conversation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "greedy.py").write_text("import torch\ntorch.set_num_threads(2)\ntorch = torch\n")
    monkeypatch.syspath_prepend(tmp_path)
    greedy = __import__("greedy")
    greedy.torch.set_num_threads(1)

    def job(trial: Trial) -> Result:
        return Result(trial, measures={"threads": greedy.torch.get_num_threads()})

    worker.order(job)
    assert [worker.hear(), worker.hear()] == ["begin", "done"]
    assert worker.result().measures == {"threads": 1}


def test_a_result_that_cannot_be_written_stops_the_worker_with_a_reason(worker: Conversation) -> None:
    worker.order(judged(judge=0.5), "no/such/folder")
    assert worker.hear() == "begin"
    assert worker.hear().startswith(f"stop cannot write {worker.folder}/no/such/folder.json: [Errno 2] No such")


def test_a_job_that_cannot_be_unpickled_ends_the_worker_and_its_threads(worker: Conversation) -> None:
    class Broken:
        def __reduce__(self) -> tuple[Any, ...]:
            thread = "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()"
            return exec, (f"{thread}; import no_such_module",)

        def __call__(self, trial: Trial) -> Result:
            return Result(trial)

    worker.order(Broken())
    assert worker.hear() == ""
    assert worker.process.wait(10) == 1
    assert "ModuleNotFoundError: No module named 'no_such_module'" in worker.log()


def test_the_end_of_standard_input_ends_it_in_the_middle_of_a_trial(worker: Conversation) -> None:
    def job(trial: Trial) -> Result:
        child = os.fork()
        if not child:
            time.sleep(60)
        (worker_folder / "child").write_text(str(child))
        time.sleep(60)
        return Result(trial)

    worker_folder = worker.folder
    worker.order(job)
    assert worker.hear() == "begin"
    wait_for((worker.folder / "child").exists)
    time.sleep(0.1)
    child = psutil.Process(int((worker.folder / "child").read_text()))
    worker.hang_up()
    worker.process.wait(2)
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.01)


def broken(trial: Trial) -> Result:
    raise RuntimeError("no luck")


def quitting(trial: Trial) -> Result:
    raise SystemExit(3)


def stranger(trial: Trial) -> Result:
    return Result(Trial("instance", 8, 0.1, seed=3))


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        (broken, "RuntimeError: no luck"),
        (quitting, "SystemExit: 3"),
        (lambda trial: 0.5, "TypeError: the job must return a Result, got float"),
        (
            stranger,
            r"ValueError: the job must return the result of Trial\(arm='batch'.* that of .*'instance'",
        ),
        (judged(judge=float("nan")), "ValueError: Out of range float values are not JSON compliant"),
    ],
)
def test_an_exception_is_a_failed_result(job: Job, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = attempt(job, TRIAL)
    assert (result.trial, result.status) == (TRIAL, "failed")
    assert re.match(reason, result.reason)
    assert "Traceback" in capsys.readouterr().err
