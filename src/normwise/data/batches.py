"""Batches of a data set: views of shuffled tensors where it is in memory, PyTorch's DataLoader elsewhere."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from normwise.data.sets import Arrays, Samples

# Small batches are gathered many at once, as far as the cache goes: cheaper than an index per step.
GATHERED_BYTES = 1 << 18


@dataclass(eq=False)
class Batches:
    """Goes through a data set batch by batch, again each time it is iterated; `dataset` is the set itself.

    With `shuffle` (a seed) the order is drawn anew for each pass and the last, incomplete batch is left
    out, so that no norm sees a batch of one; without, the order is that of the data set and all samples
    come, unless `drop_last` says otherwise. `collate` turns a list of samples into a batch.

    >>> batches = Batches(Arrays(torch.arange(5.0), torch.arange(5)), 2, shuffle=0)
    >>> len(batches), [tuple(y.shape) for x, y in batches]
    (2, [(2,), (2,)])
    """

    dataset: Samples
    batch_size: int = 500
    shuffle: int | None = field(default=None, kw_only=True)
    drop_last: bool | None = field(default=None, kw_only=True)
    collate: Callable[[list[Any]], Any] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.generator = torch.Generator()
        if self.shuffle is not None:
            self.generator.manual_seed(self.shuffle)

    def __len__(self) -> int:
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + bool(rest and not self._drops)

    def order(self) -> Tensor:
        """The samples in the order of one pass, drawn anew by each call."""
        size = len(self.dataset)
        return torch.arange(size) if self.shuffle is None else torch.randperm(size, generator=self.generator)

    def __iter__(self) -> Iterator[Any]:
        order = self.order()
        if isinstance(self.dataset, Arrays) and self.collate is None:
            return self._slices(self.dataset, order)
        return iter(self._loader(order))

    @property
    def _drops(self) -> bool:
        return self.shuffle is not None if self.drop_last is None else self.drop_last

    def _slices(self, arrays: Arrays, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.batch_size
        rows = size * max(1, GATHERED_BYTES // max(1, size * arrays.inputs[:1].nbytes))
        order = order[: len(self) * size]
        for start in range(0, len(order), rows):
            index = order[start : start + rows]
            yield from zip(arrays.inputs[index].split(size), arrays.targets[index].split(size), strict=True)

    def _loader(self, order: Tensor) -> DataLoader[Any]:
        dataset: Any = self.dataset  # has all that a map-style data set needs
        return DataLoader(
            Subset(dataset, order.tolist()),
            self.batch_size,
            collate_fn=self.collate,
            drop_last=self._drops,
            generator=self.generator,  # else it draws from the global one
        )
