"""What a data set holds, and whether a network can learn from it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normwise.data.sets import Arrays, Data, Samples, targets_of
from normwise.errors import UsageError

LOOKED_AT = 1000


@dataclass(frozen=True)
class Facts:
    """What the samples are: the shape of an input, and what is to be predicted.

    `classes` is None for float targets, `outputs` the number of values a network must give for a sample,
    `majority` the share of the most frequent class. `dense`: a sample has many integer targets (one for
    each pixel). `pairs` is False where a sample is no pair (input, target), so that only the user's own
    loss understands it.
    """

    pairs: bool = True
    sample_shape: tuple[int, ...] | None = None
    classes: int | None = None
    outputs: int = 1
    majority: float = 0.0
    dense: bool = False


def examine(data: Data) -> Facts:
    """Looks at the data and says what they are; the same data give the same facts.

    >>> examine(Data(Arrays(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 2]))))
    Facts(pairs=True, sample_shape=(1, 8, 8), classes=3, outputs=3, majority=0.5, dense=False)
    """
    sample = data.train[0]
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        return Facts(pairs=False)
    shape = tuple(sample[0].shape) if isinstance(sample[0], Tensor) else None
    targets = [y for y in map(_known_targets, data.sets) if y is not None]
    if len(targets) < len(data.sets):
        return Facts(pairs=False)
    train = targets[0]
    if train.is_floating_point():
        return Facts(sample_shape=shape, outputs=train[0].numel())
    named = getattr(getattr(data.train, "dataset", None), "classes", ())
    classes = max(len(named), *(int(y.max()) + 1 for y in targets))
    majority = float(train.flatten().bincount().max()) / train.numel()
    return Facts(True, shape, classes, outputs=classes, majority=majority, dense=train.ndim > 1)


def check_data(data: Data, what: str = "data()") -> None:
    """Raises a UsageError, in one sentence, where no network could learn from the data or be judged on it."""
    names = {1: ("",), 2: (": train", ": judge"), 3: (": train", ": validation", ": judge")}[len(data.sets)]
    for samples, name in zip(data.sets, names, strict=True):
        _check_set(samples, what + name)
    shapes = {tuple(samples.inputs.shape[1:]) for samples in data.sets if isinstance(samples, Arrays)}
    if len(shapes) > 1:
        raise UsageError(f"{what}: all sets must have samples of one shape, got {' and '.join(map(str, shapes))}")
    targets = targets_of(data.train)
    if targets is not None and len(targets.unique()) < 2:
        kind = "value" if targets.is_floating_point() else "class"
        raise UsageError(
            f"{what}: the training targets must hold at least two {kind}{'s' if kind == 'value' else 'es'}, "
            f"got only {kind} {targets.flatten()[0].item():g}"
        )


def _check_set(samples: Samples, what: str) -> None:
    if len(samples) == 0:
        raise UsageError(f"{what}: the data set is empty")
    if isinstance(samples, Arrays):
        _check_finite(samples.inputs, f"{what}: x")
    else:
        _check_sample(samples, what)
    targets = targets_of(samples)
    if targets is None:
        return
    _check_finite(targets, f"{what}: y")
    if not targets.is_floating_point() and targets.min() < 0:
        raise UsageError(
            f"{what}: integer targets are classes 0, 1, 2, ...; got {targets.min().item()} (for regression give floats)"
        )


def _check_sample(samples: Samples, what: str) -> None:
    for index in (0, len(samples) - 1):
        try:
            sample = samples[index]
        except Exception as error:
            raise UsageError(f"{what}: reading sample {index} failed: {type(error).__name__}: {error}") from error
    parts = sample if isinstance(sample, tuple | list) else sample.values() if isinstance(sample, dict) else [sample]
    for part in parts:
        if isinstance(part, Tensor):
            _check_finite(part, f"{what}: sample {len(samples) - 1}")


def _check_finite(x: Tensor, what: str) -> None:
    if not x.is_floating_point():
        return
    bad = ~torch.isfinite(x)
    if bad.any():
        where = int(bad.flatten(1).any(1).nonzero()[0]) if x.ndim > 1 else int(bad.flatten().nonzero()[0])
        raise UsageError(
            f"{what} must be finite, got {int(bad.sum())} NaN or infinite values, "
            f"the first at index {where}; remove or replace them"
        )


def _known_targets(samples: Samples) -> Tensor | None:
    """All targets, or those of about a thousand samples across the set; None where they are no numbers."""
    found = targets_of(samples)
    if found is not None:
        return found
    step = max(1, len(samples) // LOOKED_AT)
    try:
        values: list[Any] = [torch.as_tensor(samples[i][1]) for i in range(0, len(samples), step)]
        stacked = torch.stack(values)
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError):
        return None
    return stacked.float() if stacked.is_floating_point() else stacked.long()
