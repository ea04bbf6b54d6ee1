"""What a task does where it is silent: loss, score, optimizer, schedule."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normwise.errors import UsageError
from normwise.loading import describe

WARM_UP, FIRST, LAST = 0.3, 1 / 25, 1 / 25e4
ONE_CYCLE = "Schedule: one-cycle by step (30 % warm-up, then a cosine to zero)."
Batched = Iterable[tuple[Tensor, Tensor]]
SGD = "Optimizer: SGD with momentum 0.9, no weight decay."


def rate_factor(step: int, total_steps: int) -> float:
    """What the learning rate is multiplied by at a step (0, 1, ...): one-cycle, 30 % warm-up, cosine to zero.

    The same as `torch.optim.lr_scheduler.OneCycleLR(cycle_momentum=False)` (Smith and Topin, 2017).

    >>> [round(rate_factor(step, 10), 3) for step in (0, 2, 9)]
    [0.04, 1.0, 0.0]
    """
    top = max(WARM_UP * total_steps - 1, 0.0)
    if step < top:
        return _cosine(FIRST, 1.0, step / top)
    return _cosine(1.0, LAST, (step - top) / max(total_steps - 1 - top, 1.0))


def sgd(params: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """The optimizer of a task that names none: SGD with momentum 0.9, no weight decay.

    >>> sgd(nn.Linear(2, 2).parameters(), lr=0.1).defaults["momentum"]
    0.9
    """
    return torch.optim.SGD(params, lr=lr, momentum=0.9)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss of integer targets: mean cross-entropy of the outputs (N, classes, ...).

    >>> cross_entropy(nn.Identity(), (torch.zeros(1, 2), torch.tensor([1])))
    tensor(0.6931)
    """
    x, y = batch
    return F.cross_entropy(model(x), y)


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss of float targets: mean squared error; outputs (N, 1) fit targets (N,).

    >>> squared_error(nn.Identity(), (torch.zeros(2, 1), torch.tensor([1.0, 2.0])))
    tensor(2.5000)
    """
    x, y = batch
    return F.mse_loss(model(x).view_as(y), y)


def accuracy(model: nn.Module, loader: Batched) -> float:
    """The score of integer targets: the share of right answers; NaN where the model gives NaN.

    >>> accuracy(nn.Identity(), [(torch.eye(2), torch.tensor([0, 0]))])
    0.5
    """
    right, count = 0, 0
    with evaluating(model):
        for x, y in loader:
            best, guess = model(x).max(1)
            if best.isnan().any():  # else NaN would count as the answer "class 0"
                return math.nan
            right += int((guess == y).sum())
            count += y.numel()
    return right / count if count else math.nan


def log_loss(model: nn.Module, loader: Batched) -> float:
    """Mean cross-entropy in evaluation mode, in nats: sharper than accuracy, lower is better.

    >>> round(log_loss(nn.Identity(), [(torch.zeros(1, 2), torch.tensor([1]))]), 4)
    0.6931
    """
    total, count = 0.0, 0
    with evaluating(model):
        for x, y in loader:
            total += float(F.cross_entropy(model(x).double(), y, reduction="sum"))
            count += y.numel()
    return total / count if count else math.nan


def r_squared(model: nn.Module, loader: Batched) -> float:
    """The score of float targets: explained share of the variance, 1 - SSE / SST, mean over outputs.

    An output that does not vary counts as 1 if it is met exactly, else as 0.

    >>> r_squared(nn.Identity(), [(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]))])
    0.5
    """
    with evaluating(model):
        pairs = [(model(x).view_as(y).double(), y.double()) for x, y in loader]
    if not pairs:
        return math.nan
    guess, y = (
        torch.cat(parts).flatten(1) if parts[0].ndim > 1 else torch.cat(parts) for parts in zip(*pairs, strict=True)
    )
    error, spread = ((guess - y) ** 2).sum(0), ((y - y.mean(0)) ** 2).sum(0)
    return float(torch.where(spread > 0, 1 - error / spread, (error == 0).double()).mean())


@dataclass(frozen=True)
class Kind:
    """The defaults that hang on the targets."""

    loss: Callable[[nn.Module, Any], Tensor]
    score: Callable[[nn.Module, Any], float]
    score_name: str
    log_loss: Callable[[nn.Module, Any], float] | None = None


CLASSES = Kind(cross_entropy, accuracy, "accuracy", log_loss)
VALUES = Kind(squared_error, r_squared, "R^2")
# Differences that matter, where the task names none.
DELTAS = {"accuracy": 0.01, "R^2": 0.01}


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, the model is in evaluation mode and no gradients are kept; then each module has its mode back.

    >>> model = nn.Sequential(nn.Dropout().train(), nn.Dropout().eval())
    >>> with evaluating(model): model[0].training
    False
    >>> model[0].training, model[1].training
    (True, False)
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_output(model: nn.Module, batch: Any, classes: int | None) -> None:
    """Raises a UsageError where the default loss cannot understand the batch or the model's output.

    >>> check_output(nn.Identity(), (torch.zeros(2, 3), torch.tensor([0, 1])), classes=3)
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise UsageError(
            f"a batch that is {describe(batch)} needs the task's own loss(model, batch) and "
            "score(model, loader); the default ones know pairs (inputs, targets)"
        )
    x, y = batch
    output = model(x)
    if not isinstance(output, Tensor):
        raise UsageError(f"the model must return a tensor for the default loss, got {describe(output)}")
    if classes is None and output.numel() != y.numel():
        raise UsageError(
            f"the model must give as many values as there are targets: outputs {tuple(output.shape)}, "
            f"targets {tuple(y.shape)}"
        )
    if classes is not None and not _fits_classes(output, y, classes):
        raise UsageError(
            f"the model must give one value for each of the {classes} classes, an output of shape "
            f"{(len(y), classes, *y.shape[1:])}, got {tuple(output.shape)}"
        )


def _fits_classes(output: Tensor, y: Tensor, classes: int) -> bool:
    fits = output.ndim >= 2 and output.shape[0] == len(y) and output.shape[2:] == y.shape[1:]
    return fits and output.shape[1] >= classes


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
