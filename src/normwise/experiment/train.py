"""One trial: build the arm's network, train it by the task's recipe, score it."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from normwise.data import Batches
from normwise.errors import UsageError
from normwise.experiment.checkpoint import Checkpoint, Network, Stateful, Stream, UnusableError
from normwise.experiment.defaults import rate_factor
from normwise.experiment.evaluate import evaluate
from normwise.experiment.setting import Setting
from normwise.experiment.task import Task
from normwise.experiment.trial import Result, Scores, Trial, finite
from normwise.generators import reproducible, seed_everything
from normwise.loading import describe
from normwise.surgery.command import read_spec
from normwise.surgery.swap import swap

CURVE_POINTS = 8
SEEDS_APART = 1_000_003  # of the processes of one trial


def build(task: Task, arm: str, seed: int, device: str = "cpu") -> nn.Module:
    """The arm's network, its initial weights drawn from the seed: the same for all arms but for the norms."""
    seed_everything(seed)
    model = task.model()
    if arm != "keep":
        model = swap(model, read_spec(arm)).model
    return model.to(device)


@contextlib.contextmanager
def environment(trial: Trial) -> Iterator[None]:
    """The trial's random numbers and convolution kernels; the caller's come back afterwards."""
    # torch.backends.mkldnn.flags also touches a TF32 setting that this build warns about
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(trial.onednn)
    try:
        with reproducible(trial.seed):
            yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@dataclass
class Fit:
    """The course of one training run."""

    losses: list[float] = field(default_factory=list)
    curve: list[tuple[float, float | None, float | None]] = field(default_factory=list)
    reason: str = ""

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "curve": self.curve}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses, self.curve = state["losses"], state["curve"]


@dataclass(frozen=True)
class Loop:
    """The training loop: as lean as a bare PyTorch loop, with the epoch's mean loss and a few scores kept."""

    task: Task
    setting: Setting
    batches: Batches
    epochs: float

    @property
    def steps(self) -> int:
        return max(1, round(self.epochs * len(self.batches)))

    def fit(
        self,
        model: nn.Module,
        rate: float,
        validation: Batches | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Fit:
        """Trains in place, on from the checkpoint. Stops at the first loss that is not finite: see `reason`."""
        fit, steps, per_epoch = Fit(), self.steps, len(self.batches)
        scored = marks(steps) if validation else set()
        if not per_epoch:
            raise UsageError(f"a split left {len(self.batches.dataset)} training samples, fewer than one batch")
        optimizer = self.task.optimizer(model.parameters(), rate)
        advance, schedule = self._schedule(optimizer, steps)
        model.train()
        stream, ranks = Stream(self.batches), self.setting.ranks
        parts: dict[str, Stateful] = {"model": Network(model), "optimizer": optimizer, **schedule, "fit": fit}
        parts |= {"stream": stream, "random": ranks.random_numbers()}
        if checkpoint:
            ranks.resume(checkpoint, parts)
        trained = ranks.parallel(model)
        # zip with the range first: a generator of batches must not draw one too many.
        for step, batch in zip(range(len(fit.losses) + 1, steps + 1), stream, strict=False):
            advance(step - 1)
            optimizer.zero_grad(set_to_none=True)
            with self.setting.autocast():
                loss = self.task.loss(trained, batch)
            loss.backward()
            optimizer.step()
            value, due = ranks.mean(loss.item(), bool(checkpoint and checkpoint.due()))
            fit.losses.append(value)
            if not math.isfinite(value):
                fit.reason = f"training loss {value} at step {step} of {steps}"
                break
            if step in scored or step == steps:
                recent = fit.losses[-per_epoch:]
                score = None if validation is None else self._score(model, validation)
                fit.curve.append((step / per_epoch, sum(recent) / len(recent), score))
            if checkpoint and due:
                checkpoint.save(parts)
        return fit

    def _score(self, model: nn.Module, batches: Batches) -> float | None:
        with self.setting.autocast():
            score = self.task.score(model, batches)
        model.train()
        return score if math.isfinite(score) else None

    def _schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> tuple[Any, Mapping[str, Stateful]]:
        """Sets the rate before each step: the task's scheduler, or one-cycle by hand (it costs a microsecond).

        Also what of it has a state.
        """
        if self.task.schedule is not None:
            scheduler = self.task.schedule(optimizer, steps)
            return lambda step: scheduler.step() if step else None, {"schedule": scheduler}

        bases = [group["lr"] for group in optimizer.param_groups]

        def advance(step: int) -> None:
            factor = rate_factor(step, steps)
            for group, base in zip(optimizer.param_groups, bases, strict=True):
                group["lr"] = base * factor

        return advance, {}


def marks(steps: int) -> set[int]:
    """The steps after which a point of the learning curve is taken.

    >>> sorted(marks(20))
    [3, 5, 8, 10, 13, 15, 18, 20]
    """
    return {math.ceil(steps * (i + 1) / CURVE_POINTS) for i in range(CURVE_POINTS)}


def train(task: Task, trial: Trial, setting: Setting, checkpoint: Checkpoint | None = None) -> Result:
    """Runs one trial from its seed to its scores, or on from its checkpoint (not with a loop of the user's own).

    Diverged: the training loss or a score is not finite, or the final training loss is above the
    initial one. A diverged trial keeps its score if finite, else takes the task's `failed_score`.
    """
    start = time.perf_counter()
    try:
        with environment(trial):
            if task.own_loop is not None:
                fit, measures = own_loop(task, trial, setting)
            else:
                fit, measures = standard(task, trial, setting, checkpoint)
    except UnusableError as error:
        print(f"normwise: {error}; the trial begins anew", file=sys.stderr)
        return train(task, trial, setting, checkpoint)
    seconds = time.perf_counter() - start + (checkpoint.before if checkpoint else 0.0)
    return finished(task, trial, fit, measures, seconds)


def finished(task: Task, trial: Trial, fit: Fit, measures: dict[str, float], seconds: float) -> Result:
    """The result of a training run: whether it diverged, and what it then counts as."""
    reason = fit.reason or _divergence(fit, measures)
    if reason:
        measures = {"judge": task.failed_score, "validation": task.failed_score, **measures}
    return Result(
        trial,
        status="diverged" if reason else "ok",
        reason=reason,
        measures=measures,
        curve=tuple(fit.curve),
        seconds=seconds,
    )


def _divergence(fit: Fit, measures: dict[str, float]) -> str:
    if "judge" not in measures or "validation" not in measures:
        return "a score is not finite"
    first, last = measures.get("first_loss"), measures.get("last_loss")
    if first is not None and last is not None and last > first:
        return f"the final training loss {last:.3g} is above the initial one {first:.3g}"
    return ""


def standard(
    task: Task, trial: Trial, setting: Setting, checkpoint: Checkpoint | None = None
) -> tuple[Fit, dict[str, float]]:
    """The library's own loop on the task's data, loss, optimizer and schedule; of several processes one judges."""
    ranks = setting.ranks
    with ranks.together(setting.device):
        model = build(task, trial.arm, trial.seed, setting.device)
        parts = task.parts(trial.seed)
        batches = setting.share(parts.train, trial.batch_size, shuffle=trial.seed, collate=task.collate)
        loop = Loop(task, setting, batches, task.epochs * trial.length)
        validation = setting.batches(parts.validation, collate=task.collate)
        # dropout: the arms drew different numbers when they were built
        seed_everything(trial.seed + 1 + ranks.rank * SEEDS_APART)
        fit = loop.fit(model, trial.learning_rate, validation if trial.length >= 1 else None, checkpoint)
    if ranks.rank:
        return fit, {}
    return fit, measures_of(fit, len(batches)) | evaluate(task, model, parts, trial, setting)


def measures_of(fit: Fit, per_epoch: int) -> dict[str, float]:
    """The first loss, the mean of the last epoch, the steps."""
    last = fit.losses[-per_epoch:]
    return finite(first_loss=fit.losses[0], last_loss=sum(last) / len(last), steps=len(fit.losses))


class Handle:
    """What a user's own training function is given: `train(trial) -> Scores`."""

    def __init__(self, task: Task, trial: Trial, setting: Setting) -> None:
        self.lr, self.batch_size, self.seed = trial.learning_rate, trial.batch_size, trial.seed
        self.device, self.precision = setting.device, setting.precision
        self.epochs = max(1, round(task.epochs * trial.length))
        self.curve: list[tuple[float, float | None, float | None]] = []
        self.used = False
        self._arm = trial.arm

    def norm(self, model: nn.Module) -> nn.Module:
        """Gives the model this trial's normalization and returns it (in place)."""
        self.used = True
        if self._arm != "keep":
            model = swap(model, read_spec(self._arm)).model
        return model.to(self.device)

    def report(self, epoch: float, validation: float, judge: float | None = None) -> None:
        """Keeps one point of the learning curve."""
        self.curve.append((float(epoch), None, float(validation)))


def own_loop(task: Task, trial: Trial, setting: Setting) -> tuple[Fit, dict[str, float]]:
    """The user's own loop."""
    handle = Handle(task, trial, setting)
    assert task.own_loop is not None
    with setting.ranks.together(setting.device):
        scores = task.own_loop(handle)
    if not handle.used:
        raise UsageError("train(trial) must call trial.norm(model), or every arm trains the same network")
    if not (isinstance(scores, tuple) and len(scores) == 2):
        raise UsageError(f"train(trial) must return nw.Scores(validation, judge), got {describe(scores)}")
    scores = Scores(*scores)
    return Fit(curve=handle.curve), finite(validation=scores.validation, judge=scores.judge)
