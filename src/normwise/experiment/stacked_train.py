"""Several trials of one arm, batch size and length trained as one network; each gets the result of its own."""

import ctypes
import math
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Generator, Tensor

from normwise.experiment import defaults
from normwise.experiment.checkpoint import Checkpoint, RandomNumbers, Stateful, UnusableError
from normwise.experiment.evaluate import evaluate
from normwise.experiment.setting import Setting
from normwise.experiment.stack import Members, State
from normwise.experiment.stack_loss import Losses, make_losses
from normwise.experiment.stack_progress import Progress
from normwise.experiment.stack_rows import Gathered, Rows
from normwise.experiment.task import Task
from normwise.experiment.train import Fit, build, environment, finished, marks, measures_of
from normwise.experiment.trial import Result, Trial, UnstackableError
from normwise.generators import seed_everything

MOMENTUM = 0.9  # of `defaults.sgd`
KEPT = {-3: 1 << 25, -1: 1 << 30}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of <malloc.h>, in bytes


def train_stack(
    task: Task, trials: Sequence[Trial], setting: Setting, checkpoint: Checkpoint | None = None
) -> Iterator[Result]:
    """Trains all, on from the checkpoint, and gives the results one by one, as each is evaluated.

    The numbers are those of `train` but for rounding: the same initial weights, batches, dropout and
    schedule. A member that diverges is told so at the step where `train` would stop, and changes no other.
    Raises UnstackableError, before any result, where the task or its network does not allow it.
    """
    start = time.perf_counter()
    with environment(trials[0]):
        stack = _trained(task, trials, setting, checkpoint)
        seconds = time.perf_counter() - start + (checkpoint.before if checkpoint else 0.0)
        shared = seconds / len(trials)
        for member, trial in enumerate(trials):
            start = time.perf_counter()
            seed_everything(trial.seed + 1)
            measures = stack.measures(member)
            seconds = shared + time.perf_counter() - start
            yield finished(task, trial, stack.fits[member], measures, seconds)


def _trained(task: Task, trials: Sequence[Trial], setting: Setting, checkpoint: Checkpoint | None) -> "Stack":
    try:
        (stack := Stack(task, trials, setting)).fit(checkpoint)
    except UnusableError as error:
        print(f"normwise: {error}; the stack begins anew", file=sys.stderr)
        return _trained(task, trials, setting, checkpoint)
    return stack


class Stack:
    """The trials of one stack while they are trained."""

    def __init__(self, task: Task, trials: Sequence[Trial], setting: Setting) -> None:
        require_stackable(task, setting)
        keep_memory()
        self.task, self.trials, self.setting = task, trials, setting
        self.rows = {seed: Rows(task, seed) for seed in dict.fromkeys(trial.seed for trial in trials)}
        models = {seed: build(task, trials[0].arm, seed, setting.device) for seed in self.rows}
        self.members = Members([models[trial.seed] for trial in trials])
        self.generators = [Generator().manual_seed(trial.seed + 1) for trial in trials]
        self.batches = Gathered(
            [self.rows[trial.seed] for trial in trials], [t.seed for t in trials], trials[0].batch_size
        )
        self.losses = make_losses(
            self.members, task.loss, self.batches.sample(), self.generators, channels_last=trials[0].channels_last
        )
        self.fits = [Fit() for _ in trials]
        self.ended: dict[int, State] = {}

    @property
    def steps(self) -> int:
        return max(1, round(self.task.epochs * self.trials[0].length * self.batches.per_epoch))

    def fit(self, checkpoint: Checkpoint | None = None) -> None:
        """Trains to the end, or until every member has diverged; on from the checkpoint."""
        descend = Descent(self.members, [trial.learning_rate for trial in self.trials])
        steps, full = self.steps, self.trials[0].length >= 1
        scored = marks(steps) if full else set()
        progress = Progress(self.members, descend.velocity, self.fits, self.generators, self.ended)
        parts: dict[str, Stateful] = {"progress": progress, "random": RandomNumbers()}
        if checkpoint:
            checkpoint.resume(parts)
        for step, (x, y) in zip(range(progress.done + 1, steps + 1), self.batches.after(progress.done), strict=False):
            values = descend(self.losses, x, y, defaults.rate_factor(step - 1, steps))
            self._note(values, step, steps)
            if len(self.ended) == len(self.trials):
                break
            if step in scored or step == steps:
                for member in self._going():
                    self._mark(member, step, full)
            progress.done = step
            if checkpoint and checkpoint.due():
                checkpoint.save(parts)

    def measures(self, member: int) -> dict[str, float]:
        """What one member measured in the end, its scores included."""
        trial, fit = self.trials[member], self.fits[member]
        parts = self.rows[trial.seed].parts()
        return measures_of(fit, self.batches.per_epoch) | evaluate(
            self.task, self.model(member), parts, trial, self.setting
        )

    def _note(self, values: list[float], step: int, steps: int) -> None:
        for member in self._going():
            self.fits[member].losses.append(value := values[member])
            if not math.isfinite(value):
                self.fits[member].reason = f"training loss {value} at step {step} of {steps}"
                self.ended[member] = self.members.state(member)

    def _mark(self, member: int, step: int, full: bool) -> None:
        """A point of the learning curve."""
        fit, per_epoch, score = self.fits[member], self.batches.per_epoch, None
        if full:
            validation = self.rows[self.trials[member].seed].samples("validation")
            value = self.task.score(self.model(member), self.setting.batches(validation))
            score = value if math.isfinite(value) else None
        recent = fit.losses[-per_epoch:]
        fit.curve.append((step / per_epoch, sum(recent) / len(recent), score))

    def model(self, member: int) -> torch.nn.Module:
        """The network of one member as it stands; the next call overwrites it."""
        return self.members.load(self.ended.get(member) or self.members.state(member)).train()

    def _going(self) -> list[int]:
        return [member for member in range(len(self.trials)) if member not in self.ended]


class Descent:
    """SGD with momentum for all members in a few operations, each with a learning rate of its own."""

    def __init__(self, members: Members, rates: Sequence[float]) -> None:
        self.members, self.rates = members, members.per_member(rates)
        self.leaves = list(members.leaves.values())
        self.velocity = torch.zeros_like(members.flat)

    def __call__(self, losses: Losses, x: Tensor, y: Tensor, factor: float) -> list[float]:
        """One step; returns the losses before it."""
        found = losses(x, y)
        grads = torch.autograd.grad(found.sum(), self.leaves, allow_unused=True)
        self.velocity.mul_(MOMENTUM).add_(self.members.laid_out(grads))
        self.members.flat.addcmul_(self.velocity, self.rates, value=-factor)
        return found.tolist()


@cache
def keep_memory() -> None:
    """Has the C library keep what tensors give back, for the next step, instead of asking the system again each time.

    Of this process from now on; new pages were a tenth of a step. Where there is no glibc: nothing.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for option, size in KEPT.items():
            library.mallopt(option, size)


def require_stackable(task: Task, setting: Setting) -> None:
    """Raises UnstackableError where another optimizer, schedule, device or kind of data leaves nothing to stack."""
    reasons = {
        "the training loop is the user's own": task.own_loop is not None,
        "the optimizer is the task's own": task.optimizer is not defaults.sgd,
        "the schedule is the task's own": task.schedule is not None,
        "the batches are put together by the task's own collate": task.collate is not None,
        "only float32 on the CPU is stacked": (setting.device, setting.precision) != ("cpu", "fp32"),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UnstackableError(reason)
