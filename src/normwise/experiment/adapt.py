"""What the user brought, in the form that the experiment uses: scores, targets, groups."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normwise.data import Arrays, Data, Samples, Source, targets_of
from normwise.errors import UsageError
from normwise.loading import call, describe


@dataclass(frozen=True)
class AsNumber:
    """A user's score as a Python float."""

    score: Callable[[nn.Module, Any], Any]

    def __call__(self, model: nn.Module, loader: Any) -> float:
        value = self.score(model, loader)
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            raise UsageError(f"score(model, loader) must return a number, got {describe(value)}") from None


def standardized(source: Source) -> Data:
    """The data with float targets of mean 0 and deviation 1 over the training set; R^2 stays what it is."""
    data = source()
    y = targets_of(data.train)
    if y is None:
        return data
    axes = (0,) if y.ndim <= 2 else tuple(range(y.ndim))
    mean, std = y.mean(axes), y.std(axes, correction=0)
    std = torch.where(std > 0, std, torch.ones_like(std))

    def change(samples: Samples) -> Samples:
        return Arrays(samples.inputs, (samples.targets - mean) / std) if isinstance(samples, Arrays) else samples

    return data.each(change)


def group_labels(given: Any, data: Data) -> tuple[Tensor | None, ...]:
    """For each set the group of every sample as a number; one list speaks of the first set alone.

    >>> group_labels(["a", "b", "a"], Data(Arrays(torch.zeros(3, 1), torch.zeros(3))))
    (tensor([0, 1, 0]),)
    """
    given = call(given, "groups()") if callable(given) else given
    several = isinstance(given, tuple) and len(given) == len(data.sets) > 1
    found: list[Any] = list(given) if several else [given, *[None] * (len(data.sets) - 1)]
    labels = [None if part is None else np.unique(np.asarray(part), return_inverse=True)[1] for part in found]
    for part, samples in zip(labels, data.sets, strict=True):
        if part is not None and part.shape != (len(samples),):
            raise UsageError(f"groups must have one label for each of the {len(samples)} samples, got {len(part)}")
    return tuple(None if part is None else torch.from_numpy(part) for part in labels)
