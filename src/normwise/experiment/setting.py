"""Where and how precisely trials run: device, precision, processes, batches that arrive in place."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from normwise.data import Batches
from normwise.experiment.ranks import Ranks, Share


@dataclass(frozen=True)
class Setting:
    """Where and how precisely trials run; the same for all trials of a comparison."""

    device: str = "cpu"
    precision: str = "fp32"
    ranks: Ranks = field(default_factory=Ranks)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        return torch.autocast(torch.device(self.device).type, dtype=dtype)

    def batches(self, *args: Any, **options: Any) -> Batches:
        """Batches that arrive on the device."""
        return self._placed(Batches(*args, **options))

    def share(self, *args: Any, **options: Any) -> Batches:
        """Batches to train on; where several processes do so, this one's part of each."""
        if self.ranks.processes == 1:
            return self.batches(*args, **options)
        return self._placed(Share(*args, rank=self.ranks.rank, processes=self.ranks.processes, **options))

    def _placed(self, batches: Batches) -> Batches:
        return batches if self.device == "cpu" else cast(Batches, _Placed(batches, self.device))


@dataclass
class _Placed:
    """Batches moved to a device as they come."""

    inner: Batches
    device: str

    def __iter__(self) -> Iterator[Any]:
        inner = iter(self.inner)  # now: it draws the order of the pass
        return (_move(batch, self.device) for batch in inner)

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _move(batch: Any, device: str) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: _move(value, device) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(_move(value, device) for value in batch)
    return batch
