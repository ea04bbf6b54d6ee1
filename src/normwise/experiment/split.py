"""Which samples train, score the learning rates and judge: drawn for each seed, the same for every arm."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from normwise.errors import UsageError

RATES = 1 / 6  # set aside for scoring learning rates, the same samples for all seeds
JUDGE = 1 / 3  # of the rest, where there is one data set
DRAWN = 0.8  # of each set, where training and judge sets are given apart
RATES_SEED = 2_718_281


class Split(NamedTuple):
    """Indices of the samples, ascending; each refers to its own set where sets are given apart."""

    train: Tensor
    validation: Tensor
    judge: Tensor


def split(sets: Sequence[Tensor | int], *, seed: int, groups: Sequence[Tensor | None] | None = None) -> Split:
    """Draws the samples of a seed. `sets`: for each set that is given its targets, or its size alone.

    One set: a sixth is fixed for learning rates, of the rest two thirds train and one third judges.
    (train, judge): of both 80 % are drawn, after a sixth of the training set was fixed for learning rates.
    (train, validation, judge): of train and judge 80 % are drawn. Integer targets are classes whose shares
    are kept. `groups` gives, for each set, a label for every sample; equal labels are never split apart.

    >>> split([60], seed=0).train.shape, split([60], seed=0).train.equal(split([60], seed=1).train)
    (torch.Size([33]), False)
    """
    pools = [
        _Pool.of(targets, None if groups is None else labels)
        for targets, labels in zip(sets, groups or [None] * len(sets), strict=True)
    ]
    first, last = pools[0], pools[-1]
    # One generator per use: what one part draws does not move the others.
    if len(pools) == 3:
        validation, rest = torch.arange(len(pools[1].classes)), first
    else:
        validation, rest = first.draw(RATES, RATES_SEED)
    if len(pools) == 1:
        judge, rest = rest.draw(JUDGE, seed)
        train = rest.index
    else:
        train, _ = rest.draw(DRAWN, seed)
        judge, _ = last.draw(DRAWN, seed)
    return _checked(Split(train, validation, judge))


class _Pool(NamedTuple):
    """Samples to draw from: their indices, and for the samples of the whole set a class and a group."""

    index: Tensor
    classes: Tensor
    groups: Tensor

    @classmethod
    def of(cls, targets: Tensor | int, groups: Tensor | None) -> "_Pool":
        size = targets if isinstance(targets, int) else len(targets)
        everyone = torch.arange(size)
        classes = torch.zeros(size, dtype=torch.long)
        if isinstance(targets, Tensor) and targets.ndim == 1 and not targets.is_floating_point():
            classes = targets
        if groups is not None and len(groups) != size:
            raise UsageError(f"groups must have one label for each of the {size} samples, got {len(groups)}")
        labels = everyone if groups is None else groups.unique(return_inverse=True)[1]
        return cls(everyone, classes, labels)

    def draw(self, share: float, seed: int) -> tuple[Tensor, "_Pool"]:
        """The indices drawn, about `share` of the pool, and the pool of the others."""
        names, unit, sizes = self.groups[self.index].unique(return_inverse=True, return_counts=True)
        order = _stratified_order(self._classes_of(unit, len(names)), seed)
        filled = sizes[order].cumsum(0)
        # A group is taken when at least half of it still fits.
        taken = torch.zeros(len(names), dtype=torch.bool)
        taken[order] = filled - sizes[order] / 2 <= round(share * len(self.index))
        chosen = taken[unit]
        return self.index[chosen], self._replace(index=self.index[~chosen])

    def _classes_of(self, unit: Tensor, count: int) -> Tensor:
        """The most frequent class of each group."""
        classes = self.classes[self.index]
        if len(unit) == count:
            return torch.empty_like(classes).scatter_(0, unit, classes)
        kinds, kind = classes.unique(return_inverse=True)
        table = torch.zeros(count, len(kinds), dtype=torch.long)
        return table.index_put_((unit, kind), torch.tensor(1), accumulate=True).argmax(1)


def _stratified_order(classes: Tensor, seed: int) -> Tensor:
    """A random order of which every beginning holds each class in its share, to within one sample.

    The k-th of the c members of a class stands at (k + u) / c, u uniform and its own for each class
    (systematic sampling), so a class of one is drawn as often as any other sample.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(classes), generator=generator)
    kinds, kind, counts = classes[shuffled].unique(return_inverse=True, return_counts=True)
    by_class = kind.argsort(stable=True)
    start = counts.cumsum(0) - counts
    rank = torch.arange(len(classes)) - start[kind[by_class]]
    offset = torch.rand(len(kinds), generator=generator, dtype=torch.float64)
    place = (rank + offset[kind[by_class]]) / counts[kind[by_class]]
    return shuffled[by_class[place.argsort(stable=True)]]


def _checked(drawn: Split) -> Split:
    for name, index in drawn._asdict().items():
        if len(index) == 0:
            raise UsageError(
                f"the data are too few to split: no sample is left for {name} "
                f"(train {len(drawn.train)}, validation {len(drawn.validation)}, judge {len(drawn.judge)}); "
                "bring more samples or more groups"
            )
    return drawn
