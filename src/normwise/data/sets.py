"""What a data set is: tensors in memory (the fast path), or anything with a length and an index."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from normwise.errors import UsageError
from normwise.loading import describe

ACCEPTED = "a data set, a pair of arrays (x, y), or a tuple of those: (train, judge) or (train, validation, judge)"


@runtime_checkable
class Samples(Protocol):
    """What every data set becomes: it has a length, an index, and subsets of its own kind."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...
    def subset(self, index: Sequence[int] | Tensor) -> "Samples": ...


@dataclass(frozen=True, eq=False, repr=False)
class Arrays:
    """A data set in memory: inputs (N, ...) and targets (N, ...), indexed together.

    >>> Arrays(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])).subset([1, 3])
    Arrays(2 samples of shape (1, 8, 8), targets int64)
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]

    def __repr__(self) -> str:
        dtype = str(self.targets.dtype).removeprefix("torch.")
        return f"Arrays({len(self)} samples of shape {tuple(self.inputs.shape[1:])}, targets {dtype})"

    def subset(self, index: Sequence[int] | Tensor) -> "Arrays":
        """The samples at `index`, copied."""
        index = torch.as_tensor(index, dtype=torch.long)
        return Arrays(self.inputs[index], self.targets[index])


@dataclass(frozen=True, eq=False, repr=False)
class Indexed:
    """A data set that is not in memory: some samples of a map-style data set, fetched one by one.

    >>> Indexed(["a", "b", "c"], range(3)).subset([2, 0])[0]
    'c'
    """

    dataset: Any
    index: Sequence[int]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.index[index]]

    def __repr__(self) -> str:
        return f"Indexed({len(self)} samples of {type(self.dataset).__name__})"

    def subset(self, index: Sequence[int] | Tensor) -> "Indexed":
        """The samples at `index`; nothing is copied."""
        return Indexed(self.dataset, [self.index[int(i)] for i in index])


@dataclass(frozen=True, eq=False)
class Data:
    """What a data source gives: one data set to split, or separate sets that are never mixed.

    `notes` are sentences about what was assumed when the data were read.
    """

    train: Samples
    judge: Samples | None = None
    validation: Samples | None = None
    notes: tuple[str, ...] = ()

    @property
    def sets(self) -> tuple[Samples, ...]:
        """The sets that were given: one, (train, judge) or (train, validation, judge)."""
        return tuple(part for part in (self.train, self.validation, self.judge) if part is not None)

    @property
    def sources(self) -> tuple[Samples, Samples, Samples]:
        """The sets that the training, validation and judge samples are drawn from."""
        validation, judge = (self.train if part is None else part for part in (self.validation, self.judge))
        return self.train, validation, judge

    def each(self, change: Callable[[Samples], Samples]) -> "Data":
        """The same with every set changed."""
        given = {name: getattr(self, name) for name in ("train", "validation", "judge")}
        return replace(self, **{name: change(part) for name, part in given.items() if part is not None})


def as_data(value: Any, what: str = "data()") -> Data:
    """Understands what a user's data function returned.

    >>> as_data((torch.zeros(4, 3), torch.tensor([0, 1, 0, 1]))).train
    Arrays(4 samples of shape (3,), targets int64)
    """
    if isinstance(value, Data):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | Subset) and not _is_pair(value):
        if len(value) not in (2, 3) or any(_is_array(part) for part in value):
            raise UsageError(f"{what} must give {ACCEPTED}; got {describe(value)}")
        names = ("train", "judge") if len(value) == 2 else ("train", "validation", "judge")
        parts: dict[str, Any] = {
            name: as_samples(part, f"{what}: {name}") for name, part in zip(names, value, strict=True)
        }
        return Data(**parts)
    return Data(as_samples(value, what))


def as_samples(value: Any, what: str = "data()") -> Samples:
    """One data set: arrays and tensors in memory, any other map-style data set as it is.

    >>> as_samples(TensorDataset(torch.zeros(4, 3), torch.rand(4)))
    Arrays(4 samples of shape (3,), targets float32)
    """
    if isinstance(value, Arrays | Indexed):
        return value
    if type(value) is TensorDataset and len(value.tensors) == 2:
        return as_arrays(value.tensors[0], value.tensors[1], what)
    if _is_pair(value):
        return as_arrays(value[0], value[1], what)
    if isinstance(value, Subset):
        return as_samples(value.dataset, what).subset(value.indices)
    if isinstance(value, IterableDataset):
        raise UsageError(
            f"{what}: an iterable data set cannot be split anew for each seed; "
            "give one with __len__ and __getitem__ (map-style)"
        )
    if isinstance(value, DataLoader):
        raise UsageError(f"{what} gave a DataLoader; batches are made here: give its data set (loader.dataset)")
    if hasattr(value, "__getitem__") and not (_is_array(value) or isinstance(value, str | dict | tuple)):
        size = getattr(value, "__len__", None)
        if size is None:
            raise UsageError(f"{what}: {describe(value)} has no length; give it a method __len__")
        return Indexed(value, range(size()))
    raise UsageError(f"{what} must give {ACCEPTED}; got {describe(value)}")


def as_arrays(inputs: Any, targets: Any, what: str = "data()") -> Arrays:
    """Inputs and targets as tensors: floats as float32, integer targets as int64 classes (a column as a row).

    >>> as_arrays(np.zeros((2, 3)), np.array([0, 1])).inputs.dtype
    torch.float32
    """
    x, y = _tensor(inputs, f"{what}: x"), _tensor(targets, f"{what}: y")
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        raise UsageError(
            f"{what}: inputs and targets must be equally long, got shapes {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if not y.is_floating_point():
        y = y.long().squeeze(1) if y.ndim == 2 and y.shape[1] == 1 else y.long()
    return Arrays(x, y)


def targets_of(samples: Samples) -> Tensor | None:
    """The targets of a data set where they can be had without reading every sample, else None.

    A data set that is not in memory may have them as its attribute `targets` or `labels`.
    """
    if isinstance(samples, Arrays):
        return samples.targets
    if isinstance(samples, Indexed):
        for name in ("targets", "labels"):
            found = getattr(samples.dataset, name, None)
            if found is not None and not callable(found) and len(found) == len(samples.dataset):
                return _targets(found)[torch.as_tensor(samples.index)]
    return None


def _targets(values: Iterable[Any]) -> Tensor:
    y = _tensor(values if isinstance(values, Tensor) else np.asarray(values), "targets")
    return y if y.is_floating_point() else y.long()


def _tensor(value: Any, what: str) -> Tensor:
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise UsageError(f"{what} must hold numbers, got an array of {array.dtype}")
        if array.dtype.kind == "u" and array.dtype.itemsize > 1:
            array = array.astype(np.int64)
        value = torch.from_numpy(np.array(array, order="C"))
    if value.is_complex() or value.is_sparse:
        raise UsageError(f"{what} must be a dense tensor of real numbers, got {value.dtype}, {value.layout}")
    value = value.detach().cpu()
    return value.float() if value.is_floating_point() else value


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) or (hasattr(value, "__array__") and not isinstance(value, Dataset))


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(_is_array(part) for part in value)
