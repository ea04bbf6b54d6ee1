"""The samples of several seeds as row numbers of one data set, and the batches of all of them at once."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from normwise.data import Arrays, Data, Samples
from normwise.experiment.task import Parts, Task
from normwise.experiment.trial import UnstackableError

SAMPLES = 8  # that a rewritten network is tried on


class Rows:
    """Which rows a seed trains and is scored on: the data are in memory once, whatever the number of seeds."""

    def __init__(self, task: Task, seed: int) -> None:
        data = task.data()
        if not all(isinstance(samples, Arrays) for samples in data.sets):
            raise UnstackableError("the data are not in memory")
        self.sources = Parts(*(_arrays(samples) for samples in data.sources))
        numbered = replace(task, data=lambda: _numbered(data)).parts(seed)
        self.numbers = Parts(*map(_arrays, numbered))
        if not all(_are_rows(part, source) for part, source in zip(self.numbers, self.sources, strict=True)):
            raise UnstackableError("split(seed) gives data sets of its own")

    @property
    def train(self) -> Tensor:
        return _arrays(self.numbers.train).inputs

    def samples(self, name: str) -> Samples:
        """The samples of one part: train, validation or judge."""
        return getattr(self.sources, name).subset(getattr(self.numbers, name).inputs)

    def parts(self) -> Parts:
        """The same as `Task.parts`."""
        return Parts(*(self.samples(name) for name in Parts._fields))


class Gathered:
    """Batches of all members: inputs (N, K, ...) and targets (N, K, ...), each member in the order of its own.

    The order is that of `normwise.data.Batches` with the member's seed. It goes on without an end.
    """

    def __init__(self, rows: Sequence[Rows], seeds: Sequence[int], batch_size: int) -> None:
        sizes = {len(own.train) for own in rows}
        self.size, self.per_epoch = batch_size, min(sizes) // batch_size
        if len(sizes) > 1:
            raise UnstackableError("the seeds split off training sets of different sizes")
        if not self.per_epoch:
            raise UnstackableError("the training set is smaller than a batch")
        source = _arrays(rows[0].sources.train)
        self.inputs, self.targets = source.inputs, source.targets
        self._rows, self._seeds = [own.train for own in rows], seeds

    def sample(self) -> tuple[Tensor, Tensor]:
        """A few samples of the first member."""
        few = self._rows[0][:SAMPLES]
        return self.inputs[few], self.targets[few]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.after(0)

    def after(self, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches that follow the first so many."""
        generators = [Generator().manual_seed(seed) for seed in self._seeds]
        whole = self.per_epoch * self.size
        over, rest = divmod(steps, self.per_epoch)
        for epoch in itertools.count():
            pairs = zip(self._rows, generators, strict=True)
            orders = [rows[torch.randperm(len(rows), generator=own)[:whole]] for rows, own in pairs]
            skipped = rest if epoch == over else 0 if epoch > over else self.per_epoch
            for batch in torch.stack(orders, 1).split(self.size)[skipped:]:
                yield self.inputs[batch], self.targets[batch]


def _numbered(data: Data) -> Data:
    return data.each(lambda samples: Arrays(torch.arange(len(samples)), _arrays(samples).targets))


def _are_rows(part: Samples, source: Samples) -> bool:
    """A split of the user's own may give other data sets than those that were asked to be split."""
    rows, targets, whole = _arrays(part).inputs, _arrays(part).targets, _arrays(source).targets
    if rows.dtype != torch.long or rows.dim() != 1 or int(rows.max()) >= len(whole):
        return False
    return torch.equal(whole[rows], targets)


def _arrays(samples: Samples) -> Arrays:
    assert isinstance(samples, Arrays)
    return samples
