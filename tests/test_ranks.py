"""A trial on several processes: the numbers of one process, and no process left whichever of them fails."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import small_task
import torch
import torch.distributed as dist
from torch import Tensor, nn

import normwise as nw
from normwise.errors import UsageError
from normwise.experiment import calibrate, engines
from normwise.experiment.arms import survey
from normwise.experiment.engine import LocalEngine
from normwise.experiment.job import Job
from normwise.experiment.meeting import Meeting
from normwise.experiment.process import SOURCE
from normwise.experiment.ranks import Ranks
from normwise.experiment.request import Request
from normwise.experiment.resolve import resolve
from normwise.experiment.setting import Setting
from normwise.experiment.train import train
from normwise.experiment.trial import Result, Trial

TWO = Ranks(2)
TRIALS = [Trial("batch", 8, 0.1, seed) for seed in range(3)]


def key(trial: Trial) -> str:
    return trial.key("task")


def rank() -> int:
    return int(os.environ["RANK"])


@contextlib.contextmanager
def engine(job: Any, folder: Path, processes: int = 2, **options: Any) -> Iterator[LocalEngine]:
    """One worker of so many processes; none is left afterwards."""
    before = set(psutil.Process().children(recursive=True))
    log = folder / "log.txt"
    with LocalEngine(job, folder, workers=1, processes=processes, key=key, log=log, **options) as local:
        yield local
    assert set(psutil.Process().children(recursive=True)) <= before


def run(job: Any, folder: Path, trials: list[Trial], **options: Any) -> list[Result]:
    with engine(job, folder, **options) as local:
        for trial in trials:
            local.submit(trial)
        return list(iter(local.next, None))


class Small:
    """The small task; says how many samples each loss was taken of."""

    model, data = staticmethod(small_task.model), staticmethod(small_task.data)
    epochs, delta = 2, 0.01

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        if model.training:
            print(f"process {os.environ.get('RANK', 0)} has {len(batch[1])} samples")
        return nn.functional.cross_entropy(model(batch[0]), batch[1])


ARMS = [Trial(arm, 16, 0.05, seed=3) for arm in ("layer", "batch", "sync")]


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """A norm over samples of its own and one over all processes see no difference; batch norm pools each part."""
    task = resolve(Small())
    alone = {trial.arm: train(task, trial, Setting()) for trial in ARMS}
    together = {result.trial.arm: result for result in run(Job(task, Setting(ranks=TWO)), tmp_path, ARMS)}
    for arm in ("layer", "sync"):
        assert together[arm].measures == pytest.approx(alone[arm].measures, rel=1e-4)
        assert [p[1] for p in together[arm].curve] == pytest.approx([p[1] for p in alone[arm].curve], rel=1e-4)
    assert together["batch"].status == "ok"
    assert together["batch"].measures["first_loss"] != pytest.approx(alone["batch"].measures["first_loss"], rel=1e-4)
    said = (tmp_path / "log.txt").read_text()
    steps = len(ARMS) * int(alone["layer"].measures["steps"])
    assert [said.count(f"process {number} has 8 samples") for number in (0, 1)] == [steps, steps]


@pytest.mark.slow
def test_calibration_and_probe_are_taken_together(tmp_path: Path) -> None:
    trials = [Trial("sync", 16, 0.05, 0, kind="calibrate"), Trial("sync", 16, 0.05, 0, kind="probe")]
    job = Job(resolve(Small()), Setting(precision="bf16", ranks=TWO))
    times, found = run(job, tmp_path, trials)
    assert times.measures["full_length"] > 0
    assert found.measures["highest_rate"] >= 0.05
    assert "process 1 has 8 samples" in (tmp_path / "log.txt").read_text()


@nw.task(lr=0.1, epochs=1, delta=0.05)
def own_loop(trial: Any) -> nw.Scores:
    trial.norm(small_task.model())
    number = torch.ones(1) * rank()
    dist.all_reduce(number)
    return nw.Scores(number.item(), float(rank()))


def test_a_loop_of_the_users_own_runs_in_each_process(tmp_path: Path) -> None:
    (result,) = run(Job(resolve(own_loop), Setting(ranks=TWO)), tmp_path, ARMS[:1])
    assert result.measures == {"validation": 1.0, "judge": 0.0}


@nw.task(lr=0.1, epochs=2, delta=0.05)
def uneven_loop(trial: Any) -> nw.Scores:
    calibrate.FIRST_TIME = 1.0
    trial.norm(small_task.model())
    print(f"process {rank()} begins a loop")
    time.sleep(4.0 * rank())
    return nw.Scores(0.5, 0.5)


@pytest.mark.slow
def test_all_processes_time_a_loop_again_or_none_does(tmp_path: Path) -> None:
    job = Job(resolve(uneven_loop), Setting(ranks=TWO))
    (result,) = run(job, tmp_path, [Trial("sync", 16, 0.05, 0, kind="calibrate")], seconds_per_trial=60.0)
    assert result.measures["full_length"] >= 4.0  # two epochs, at least 2 s each in the mean
    assert [(tmp_path / "log.txt").read_text().count(f"process {number} begins") for number in (0, 1)] == [1, 1]


def test_workers_take_the_gpus_in_turn(tmp_path: Path) -> None:
    def job(trial: Trial) -> Result:
        (tmp_path / f"{trial.seed} on {os.environ['LOCAL_RANK']}").touch()
        while len(list(tmp_path.glob("* on *"))) < 4:
            time.sleep(0.01)
        return Result(trial)

    with LocalEngine(job, tmp_path, workers=2, processes=2, key=key, log=tmp_path / "log.txt") as local:
        for trial in TRIALS[:2]:
            local.submit(trial)
        assert [result.status for result in iter(local.next, None)] == ["ok", "ok"]
    seen = [path.name.partition(" on ") for path in tmp_path.glob("* on *")]
    assert sorted(sorted(number for seed, _, number in seen if seed == wanted) for wanted in "01") == [
        ["0", "1"],
        ["2", "3"],
    ]


def test_no_two_trials_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setattr(engines, "default_workers", lambda: 16)
    request = Request(device="cuda", processes=2, engine="local").over(Request())
    assert (engines.workers_for(request), engines.workers_for(request, 1)) == (2, 1)
    with pytest.raises(UsageError, match="3 trials at once need 6, this machine has 4; lower the workers or the"):
        engines.workers_for(request, 3)
    assert engines.workers_for(Request(device="cpu", processes=2, engine="local")) == 8
    assert engines.workers_for(Request(device="cuda", engine="local"), 5) == 5


def fails_while_the_other_waits(trial: Trial) -> Result:
    with TWO.together():
        if rank():
            raise RuntimeError("no luck")
        return Result(trial, measures={"judge": TWO.mean(1.0)[0]})


def test_the_first_failure_is_the_reason(tmp_path: Path) -> None:
    """Not that of the process which then waits in vain."""
    (result,) = run(fails_while_the_other_waits, tmp_path, TRIALS[:1])
    assert result.reason == "RuntimeError: no luck (2 attempts)"


def strikes(fault: Callable[[], object], folder: Path, times: int = 1_000) -> Callable[[Trial], Result]:
    """A job in whose second trial the fault meets the second process, so many times; the first waits for it."""

    def job(trial: Trial) -> Result:
        if trial.seed == 1:
            if rank():
                with (folder / "attempts").open("a") as file:
                    file.write("x")
                if (folder / "attempts").stat().st_size <= times:
                    fault()
            else:
                while not (folder / "attempts").exists() or (folder / "attempts").stat().st_size <= times:
                    time.sleep(0.01)
        return Result(trial, measures={"judge": float(trial.seed)})

    return job


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise RuntimeError("no luck")


def eat() -> None:
    eaten = []
    while len(eaten) < 200:
        eaten.append(b"x" * 20_000_000)
        time.sleep(0.05)


def test_a_process_killed_in_a_trial_is_replaced_with_the_others(tmp_path: Path) -> None:
    results = run(strikes(die, tmp_path, times=1), tmp_path, TRIALS)
    assert [(result.status, result.measures["judge"]) for result in results] == [("ok", 0.0), ("ok", 1.0), ("ok", 2.0)]
    assert (tmp_path / "attempts").read_text() == "xx"
    assert "process 1 of 2 killed by SIGKILL; it had" in (tmp_path / "log.txt").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups to end")
def test_what_a_killed_process_started_ends_with_it(tmp_path: Path) -> None:
    def start_and_die() -> None:
        child = subprocess.Popen(["sleep", "60"])
        (tmp_path / f"child {child.pid}").touch()
        die()

    results = run(strikes(start_and_die, tmp_path, times=1), tmp_path, TRIALS)
    assert [result.status for result in results] == ["ok"] * 3
    (child,) = (int(path.name.removeprefix("child ")) for path in tmp_path.glob("child *"))
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (die, "process 1 of 2 killed by SIGKILL (2 attempts)"),
        (fail, "RuntimeError: no luck (2 attempts)"),
        (lambda: os._exit(3), "process 1 of 2 exited with code 3 (2 attempts)"),
        (eat, "over the limit of 700 MiB of memory per trial (2 attempts)"),
        (lambda: time.sleep(60), "over the limit of 3 seconds per trial (2 attempts)"),
    ],
    ids=["killed", "fails", "exits", "eats", "hangs"],
)
def test_a_process_that_always_fails_fails_its_trial_alone(
    tmp_path: Path, fault: Callable[[], object], reason: str
) -> None:
    limits = {"seconds_per_trial": 3.0 if "3 seconds" in reason else 60.0, "memory_per_trial": 700 * 2**20}
    results = run(strikes(fault, tmp_path), tmp_path, TRIALS, **limits)
    assert [result.status for result in results] == ["ok", "failed", "ok"]
    assert results[1].reason == reason


class Dropping(Small):
    """Its second process is killed once, at a step; and its network draws random numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def model(self) -> nn.Module:
        return nn.Sequential(small_task.model(), nn.Dropout(0.3))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        loss = super().loss(model, batch)
        if model.training and rank() == 1 and self.folder.exists():
            with (self.folder / "steps").open("a") as file:
                file.write("x")
            time.sleep(0.1)  # a checkpoint takes at most a twentieth of the time
            if (self.folder / "steps").stat().st_size == 14:
                die()
        return loss


@pytest.mark.slow
def test_a_killed_trial_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    job = Job(resolve(Dropping(tmp_path / "faults")), Setting(ranks=TWO), checkpoint_seconds=0.0)
    (expected,) = run(job, tmp_path, ARMS[1:2])
    (tmp_path / "faults").mkdir()
    (result,) = run(job, tmp_path, ARMS[1:2])
    assert (result.measures, result.curve) == (expected.measures, expected.curve)
    assert len((tmp_path / "faults" / "steps").read_text()) < 14 + expected.measures["steps"]  # not all again
    assert "goes on from" in (tmp_path / "log.txt").read_text()
    assert [path.suffix for path in (tmp_path / "trials").iterdir()] == [".json"]


def test_a_broken_checkpoint_is_left_by_all_processes(tmp_path: Path) -> None:
    job = Job(resolve(Small()), Setting(ranks=TWO))
    (expected,) = run(job, tmp_path, ARMS[:1])
    (tmp_path / "trials" / f"{key(ARMS[0])}.partial").write_bytes(b"no checkpoint")
    (result,) = run(job, tmp_path, ARMS[:1])
    assert result.measures == expected.measures
    assert "was ignored" in (tmp_path / "log.txt").read_text()


def test_a_norm_sees_the_share_of_one_process() -> None:
    costs = set()
    for processes, values in ((1, 16), (2, 8)):
        arms, _ = survey(resolve(Small()), ["batch", "layer", "sync"], [16], Setting(ranks=Ranks(processes)))
        counts = {arm.name: arm.values for arm in arms}
        assert (counts["batch"], counts["sync"]) == ({16: values}, {16: 16})
        costs.add(next(arm.cost for arm in arms if arm.name == "layer"))  # of one sample
    assert len(costs) == 1


DRIVER = """
import os, sys, time
from pathlib import Path
from normwise.experiment.engine import LocalEngine
from normwise.experiment.trial import Trial

folder = Path(sys.argv[1])

def job(trial):
    (folder / f"pid {os.getpid()}").touch()
    import re
    re.match("(a+)+$", "a" * 60 + "b")  # lets no other thread run

log = folder / "log.txt"
with LocalEngine(job, folder, workers=1, processes=2, key=lambda trial: trial.key(""), log=log) as engine:
    engine.submit(Trial("batch", 8, 0.1, seed=0))
    engine.next()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a process with its parent")
def test_the_processes_die_with_their_driver(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    with subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], env=environment) as driver:
        end = time.monotonic() + 30
        while len(found := list(tmp_path.glob("pid *"))) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        processes = [psutil.Process(int(path.name.removeprefix("pid "))) for path in found]
        time.sleep(0.2)
        driver.kill()
    assert len(processes) == 2
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_the_meeting_place_is_open_to_this_machine_alone() -> None:
    meeting = Meeting(2)
    port = int(meeting.environment(1)["MASTER_PORT"])
    listening = [c.laddr for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN]
    assert [address.ip for address in listening if address.port == port] == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processes": 0}, "processes must be a positive whole number, got 0"),
        ({"processes": 3, "batch_sizes": [6, 8]}, "a batch size must be a multiple of the 3 processes, got 8"),
        ({"processes": 2, "device": "cpu:0"}, "a device of its own: leave the number out, got 'cpu:0'"),
        ({"processes": 2, "stack": "4"}, "a trial on 2 processes is trained alone: stack must be off, got 4"),
    ],
)
def test_what_cannot_be_shared(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Request(**options).complete()


@pytest.mark.slow
def test_a_comparison_says_how_many_processes_it_is_for(tmp_path: Path) -> None:
    options: dict[str, Any] = {"budget": "60trials", "workers": 1, "out": tmp_path}
    found = nw.compare(Small(), ["layer", "none"], [16], processes=2, **options)
    assert "failed" not in {row["status"] for row in found.results}
    assert found.content["config"]["processes"] == 2
    with pytest.raises(UsageError, match="processes was 2 and is absent"):
        nw.compare(Small(), ["layer", "none"], [16], **options)
