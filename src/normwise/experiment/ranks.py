"""A trial on several processes: each trains on its share of every batch, and the gradients are their mean.

The processes are started as torchrun would (`worker_group`), and PyTorch's DistributedDataParallel does the
rest. With one process all of this does nothing.
"""

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]
from torch.nn.parallel import DistributedDataParallel

from normwise.data import Batches
from normwise.experiment.checkpoint import Checkpoint, RandomNumbers, Stateful, UnusableError
from normwise.experiment.meeting import reach

PATIENCE = timedelta(days=1)  # the limit of time per trial is shorter
_NUMBERS = itertools.count()


@dataclass(eq=False)
class Share(Batches):
    """Of every batch the part of one of several processes; `batch_size` and the length are those of whole batches.

    >>> from normwise.data import Arrays
    >>> samples = Arrays(torch.arange(9.0), torch.arange(9))
    >>> parts = [Share(samples, 4, shuffle=0, rank=rank, processes=2) for rank in (0, 1)]
    >>> whole = Batches(samples, 4, shuffle=0)
    >>> [torch.equal(x, torch.cat((a, b))) for (x, _), (a, _), (b, _) in zip(whole, *parts)]
    [True, True]
    """

    rank: int = field(kw_only=True)
    processes: int = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole = self.batch_size
        self.batch_size //= self.processes

    def __len__(self) -> int:
        return len(self.dataset) // self._whole

    def order(self) -> Tensor:
        """The samples of this process in the order of one pass."""
        whole = super().order()[: len(self) * self._whole]
        return whole.view(len(self), self.processes, self.batch_size)[:, self.rank].flatten()


class RandomNumbersOfAll(RandomNumbers):
    """The random numbers of every process."""

    def state_dict(self) -> dict[str, Any]:
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, super().state_dict())
        return {"every": every}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state["every"][dist.get_rank()])


class Follower(Checkpoint):
    """The checkpoint of a process that is not the first: it goes on from the first one's, and writes none."""

    def due(self) -> bool:
        return False

    def save(self, parts: Mapping[str, Stateful]) -> None:
        parts["random"].state_dict()


@dataclass(frozen=True)
class Ranks:
    """How many processes train a trial together, and which of them this one is.

    >>> Ranks(1).mean(0.5, 2.0)
    (0.5, 2.0)
    """

    processes: int = 1

    @property
    def rank(self) -> int:
        return int(os.environ["RANK"]) if self.processes > 1 else 0

    @contextmanager
    def together(self, device: str = "cpu") -> Iterator[None]:
        """Within, the processes are a process group of torch.distributed."""
        if self.processes == 1:
            yield
            return
        kind = torch.device(device).type
        if kind != "cpu":
            torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
        # one store for all trials of these processes: each group has its own part of it
        part = PrefixStore(f"group {next(_NUMBERS)}", reach())
        part.set_timeout(PATIENCE)  # the first process may still judge the trial before
        backend = dist.get_default_backend_for_device(kind)
        dist.init_process_group(backend, store=part, rank=self.rank, world_size=self.processes, timeout=PATIENCE)
        try:
            yield
        except UnusableError:
            dist.destroy_process_group()
            raise
        # not after another error: the others would lose this process before it has told why
        dist.destroy_process_group()

    def parallel(self, model: nn.Module) -> nn.Module:
        """The network as it is to be called in training."""
        return model if self.processes == 1 else DistributedDataParallel(model)

    def mean(self, *values: float) -> tuple[float, ...]:
        """The means over the processes, the same in each of them."""
        if self.processes == 1:
            return values
        device = "cpu" if dist.get_backend() == "gloo" else torch.accelerator.current_accelerator()
        sums = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        return tuple((sums / self.processes).tolist())

    def random_numbers(self) -> RandomNumbers:
        return RandomNumbers() if self.processes == 1 else RandomNumbersOfAll()

    def resume(self, checkpoint: Checkpoint, parts: Mapping[str, Stateful]) -> None:
        """Goes on from a checkpoint, all processes or none: one may have found it broken and removed it."""
        unusable = None
        try:
            checkpoint.resume(parts)
        except UnusableError as error:
            unusable = error
        if any(self.mean(float(unusable is not None))):
            raise unusable or UnusableError(f"{checkpoint.path} was ignored by another process")
