"""A killed trial goes on from its checkpoint and ends with the same numbers, bit for bit."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_task
import torch
from torch import nn

from normwise.experiment.checkpoint import Checkpoint
from normwise.experiment.defaults import accuracy
from normwise.experiment.engine import LocalEngine
from normwise.experiment.job import Job
from normwise.experiment.ledger import Ledger
from normwise.experiment.resolve import resolve
from normwise.experiment.setting import Setting
from normwise.experiment.stacked_train import train_stack
from normwise.experiment.task import Task
from normwise.experiment.train import train
from normwise.experiment.trial import Result, Trial

TRIAL = Trial("batch", 16, 0.05, seed=3)
EPOCHS = 3


class Dropped(nn.Sequential):
    """Draws random numbers in each step, and counts them in a buffer that its state_dict leaves out."""

    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__(*small_task.model(), nn.Dropout(0.3))
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.count += 1
        return super().forward(input) * (1 + self.count / 100)


class Augmented(torch.utils.data.Dataset[Any]):
    """Samples that are not in memory, each read with noise of torch and NumPy."""

    def __init__(self) -> None:
        self.inputs, self.targets = small_task.data().tensors

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        noise = torch.randn(4) / 10 + float(np.random.randn()) / 10
        return self.inputs[index] + noise, self.targets[index]


class Plain:
    """One-cycle by hand, data in memory."""

    model, data = staticmethod(Dropped), staticmethod(small_task.data)
    epochs, delta = EPOCHS, 0.01


class Own(Plain):
    """A schedule, an optimizer and a data set of its own."""

    data = staticmethod(Augmented)

    def optimizer(self, params: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=lr)

    def schedule(self, optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=total_steps)

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def score(self, model: nn.Module, loader: Any) -> float:
        model.eval()
        with torch.no_grad():
            return float(np.mean([(model(x).argmax(1) == y).float().mean().item() for x, y in loader]))


class EveryStep(Checkpoint):
    def due(self) -> bool:
        return True


class Stopped(Exception):
    """What a test ends an attempt with."""


def stopping(task: Task, at: int, steps: list[int], stop: Callable[[], None]) -> Task:
    """The task, each training step of it written down; so many steps into the first attempt `stop` is called."""
    loss = task.loss

    def counted(model: nn.Module, batch: Any) -> torch.Tensor:
        if model.training:
            steps.append(1)
            if len(steps) == at + 1:
                stop()
        return loss(model, batch)

    return task.__class__(**{**task.__dict__, "loss": counted})


def halt() -> None:
    raise Stopped


def same(first: Result, second: Result) -> bool:
    return (first.status, first.measures, first.curve) == (second.status, second.measures, second.curve)


STACK = [Trial("batch", 16, rate, seed, stack=4) for rate, seed in ((0.05, 3), (0.01, 3), (0.05, 4), (1e25, 4))]


class Stacked(Plain):
    """What can be trained as one: dropout, running statistics, one member of four that diverges."""

    @staticmethod
    def model() -> nn.Module:
        return nn.Sequential(*list(small_task.model().children())[:6], nn.Dropout(0.3), nn.Linear(8, 2))


class Mapped(Stacked):
    """By vmap."""

    model = staticmethod(small_task.model)

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)


class Halting(EveryStep):
    """Stops the training after so many checkpoints."""

    left = 0

    def save(self, parts: Any) -> None:
        super().save(parts)
        self.left -= 1
        if not self.left:
            raise Stopped


@pytest.mark.parametrize("kind", [Stacked, Mapped])
@pytest.mark.parametrize("done", [1, 9, 13, 20])
def test_a_stack_goes_on_bit_for_bit(tmp_path: Path, kind: type[Plain], done: int) -> None:
    task, path = resolve(kind()), tmp_path / "a.partial"
    expected = list(train_stack(task, STACK, Setting()))
    assert [result.status for result in expected] == ["ok", "ok", "ok", "diverged"]
    first, second = (Halting(path, STACK[0], beside=tuple(STACK[1:])) for _ in range(2))
    first.left = done
    with pytest.raises(Stopped):
        list(train_stack(task, STACK, Setting(), first))
    resumed = list(train_stack(task, STACK, Setting(), second))
    assert all(same(one, other) for one, other in zip(resumed, expected, strict=True))
    assert second.left == done - expected[0].measures["steps"], "a step was trained twice"
    assert second.before > 0


def test_a_stack_begins_anew_where_the_checkpoint_is_of_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, path = resolve(Stacked()), tmp_path / "a.partial"
    first = Halting(path, STACK[0], beside=tuple(STACK[1:3]))
    first.left = 5
    with pytest.raises(Stopped):
        list(train_stack(task, STACK[:3], Setting(), first))
    results = list(train_stack(task, STACK, Setting(), Halting(path, STACK[0], beside=tuple(STACK[1:]))))
    assert "the stack begins anew" in capsys.readouterr().err
    assert all(same(one, other) for one, other in zip(results, train_stack(task, STACK, Setting()), strict=True))


class DiesOnce(Stacked):
    """Kills its worker while it scores a point of the learning curve, half way, for the first time."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def score(self, model: nn.Module, loader: Any) -> float:
        with self.mark.open("a") as file:
            file.write("scored\n")
        if len(self.mark.read_text().splitlines()) == 15:
            os.kill(os.getpid(), signal.SIGKILL)
        return accuracy(model, loader)


def test_a_killed_worker_goes_on_with_its_stack(tmp_path: Path) -> None:
    job = Job(resolve(DiesOnce(tmp_path / "scored")), Setting(), checkpoint_seconds=0.0)
    log = tmp_path / "log.txt"
    with LocalEngine(job, tmp_path, workers=1, key=lambda trial: trial.key("task"), log=log) as engine:
        engine.submit(*STACK)
        results = {result.trial: result for result in iter(engine.next, None)}
    assert "goes on from" in log.read_text()
    expected = {result.trial: result for result in train_stack(job.task, STACK, Setting())}
    assert all(same(results[trial], expected[trial]) for trial in STACK)
    assert not list((tmp_path / "trials").glob("*.partial*"))


@pytest.fixture(scope="module", params=[Plain, Own])
def undisturbed(request: pytest.FixtureRequest) -> tuple[Task, Result]:
    task = resolve(request.param())
    return task, train(task, TRIAL, Setting())


@pytest.mark.parametrize("done", [2, 9, 13, 20])
def test_it_goes_on_bit_for_bit(undisturbed: tuple[Task, Result], tmp_path: Path, done: int) -> None:
    task, expected = undisturbed
    steps: list[int] = []
    stopped = stopping(task, done, steps, halt)
    with pytest.raises(Stopped):
        train(stopped, TRIAL, Setting(), EveryStep(tmp_path / "a.partial", TRIAL))
    result = train(stopped, TRIAL, Setting(), EveryStep(tmp_path / "a.partial", TRIAL))
    assert same(result, expected)
    assert len(steps) - 1 == expected.measures["steps"], "a step was trained twice"
    assert len(expected.curve) == 8


def test_the_time_of_earlier_attempts_counts(tmp_path: Path) -> None:
    task = stopping(resolve(Plain()), 5, [], lambda: (time.sleep(0.5), halt())[1])
    with pytest.raises(Stopped):
        train(task, TRIAL, Setting(), EveryStep(tmp_path / "a.partial", TRIAL))
    kept = torch.load(tmp_path / "a.partial", weights_only=True)
    result = train(task, TRIAL, Setting(), second := EveryStep(tmp_path / "a.partial", TRIAL))
    assert second.before == kept["seconds"] > 0
    assert result.seconds > kept["seconds"]


def test_a_short_trial_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "save", lambda *arguments: pytest.fail("a checkpoint was written"))
    train(resolve(Plain()), TRIAL, Setting(), Checkpoint(tmp_path / "a.partial", TRIAL))


def test_checkpoints_take_a_twentieth_of_the_time_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 40.0, 42.0, 81.0, 82.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    checkpoint = Checkpoint(tmp_path / "a.partial", TRIAL)
    checkpoint.save({})
    assert not checkpoint.due()
    assert checkpoint.due()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda content: {**content, "trial": [{**content["trial"][0], "seed": 4}]},
            "ValueError: it is that of [{'arm': 'ba",
        ),
        (
            lambda content: {**content, "model": {"kept": {}, "buffers": {}}},
            "RuntimeError: Error(s) in loading state_d",
        ),
        (lambda content: {**content, "optimizer": Path("x")}, "UnpicklingError: Weights only load failed"),
        (lambda content: {"trial": content["trial"]}, "KeyError: 'model'"),
    ],
    ids=["another trial's", "another network's", "code", "not whole"],
)
def test_a_foreign_checkpoint_is_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Any], Any], told: str
) -> None:
    task, path = resolve(Plain()), tmp_path / "a.partial"
    with pytest.raises(Stopped):
        train(stopping(task, 5, [], halt), TRIAL, Setting(), EveryStep(path, TRIAL))
    torch.save(spoil(torch.load(path, weights_only=True)), path)
    assert same(train(task, TRIAL, Setting(), Checkpoint(path, TRIAL)), train(task, TRIAL, Setting()))
    said = capsys.readouterr().err
    assert f"normwise: {path} was ignored: {told}" in said
    assert "; the trial begins anew" in said


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_broken_checkpoint_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float) -> None:
    task, path = resolve(Plain()), tmp_path / "a.partial"
    with pytest.raises(Stopped):
        train(stopping(task, 5, [], halt), TRIAL, Setting(), EveryStep(path, TRIAL))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert same(train(task, TRIAL, Setting(), Checkpoint(path, TRIAL)), train(task, TRIAL, Setting()))
    assert "was ignored: " in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_written_costs_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = train(resolve(Plain()), TRIAL, Setting(), Checkpoint(tmp_path / "a.partial", TRIAL, every=0.0))
    assert same(result, train(resolve(Plain()), TRIAL, Setting()))
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr().err
    assert said.count("could not be written") == 1
    assert "goes on without: [Errno 28] No space left on device" in said


def key(trial: Trial) -> str:
    return trial.key("task")


def dying(log: Path, at: int) -> Task:
    """The task in workers: each step leaves a mark in a file; `at` so many, its process is killed."""
    task = resolve(Plain())
    loss = task.loss

    def mortal(model: nn.Module, batch: Any) -> torch.Tensor:
        if model.training:
            with log.open("a") as file:
                file.write("x")
            if log.stat().st_size == at + 1:
                os.kill(os.getpid(), signal.SIGKILL)
        return loss(model, batch)

    return task.__class__(**{**task.__dict__, "loss": mortal})


def test_a_trial_whose_worker_is_killed_goes_on(tmp_path: Path) -> None:
    expected = train(resolve(Plain()), TRIAL, Setting())
    job = Job(dying(tmp_path / "steps", 11), Setting(), checkpoint_seconds=0.0)
    with LocalEngine(job, tmp_path, workers=1, key=key, log=tmp_path / "log.txt") as engine:
        engine.submit(TRIAL)
        result = engine.next()
    assert result
    assert same(result, expected)
    log = (tmp_path / "log.txt").read_text()
    assert "worker killed by SIGKILL" in log
    assert f"goes on from {tmp_path / 'trials' / key(TRIAL)}.partial" in log
    assert (tmp_path / "steps").stat().st_size < 12 + expected.measures["steps"]
    assert [path.name for path in (tmp_path / "trials").iterdir()] == [f"{key(TRIAL)}.json"]


def test_a_trial_that_fails_leaves_no_checkpoint(tmp_path: Path) -> None:
    job = Job(dying(tmp_path / "steps", 11), Setting(), checkpoint_seconds=0.0)

    def fatal(trial: Trial) -> Result:
        raise AssertionError

    def resume(trial: Trial, path: Path) -> Result:
        (tmp_path / "steps").unlink(missing_ok=True)
        return job.resume(trial, path)

    fatal.resume = resume
    with LocalEngine(fatal, tmp_path, workers=1, key=key, log=tmp_path / "log.txt") as engine:
        engine.submit(TRIAL)
        result = engine.next()
    assert result
    assert result.status == "failed"
    assert [path.name for path in (tmp_path / "trials").iterdir()] == [f"{key(TRIAL)}.json"]


def test_what_a_killed_driver_left_is_removed_with_the_result(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(Result(TRIAL).to_json())
    for name in ("a.partial", "a.partial-new", "b.partial"):
        (tmp_path / name).touch()
    with Ledger.open(tmp_path, {"task": "x"}) as ledger:
        ledger.ingest(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.partial*")) == ["b.partial"]
