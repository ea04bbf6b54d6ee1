"""Running statistics, in one place: what a norm remembers for evaluation."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from normwise import kernels
from normwise.layers.written import Skipping, add_batch, compiling, move, recomputing
from normwise.ops import surely, tracing
from normwise.table import Moments


class Memory(NamedTuple):
    """The tensors that a batch is written to; `pool` only while micro-batches are accumulated."""

    mean: Tensor
    var: Tensor
    seen: Tensor
    pool: Tensor | None


class Running(Skipping, _NormBase):
    """Remembers mean and unbiased variance under PyTorch's keys.

    Repairs: the buffers stay float32 or wider in a half-precision model (in bfloat16 a small momentum
    rounds to nothing); the second forward of activation checkpointing is not counted twice, eager or
    compiled; a batch with inf or NaN is left out, counted in `skipped`, and told once;
    `momentum=None`, the plain average over all batches, works for every norm and under compile;
    `torch.func` works with a norm in training. What is `frozen` uses its memory in training too, and
    never moves it.
    """

    frozen = False
    averages_std = False  # then it is the biased deviation that is averaged and squared
    mix = 0.0  # the share of a batch's own statistics in evaluation: see nw.adapt
    pool: Tensor | None = None

    def remembered(self) -> tuple[Tensor | None, Tensor | None]:
        """Running mean and variance if they are to be used now, else (None, None)."""
        if self.training and not self.frozen:
            return None, None
        mean, var = self.running_mean, self.running_var
        if mean is None or var is None:
            return None, None
        if torch.is_grad_enabled() and not tracing():
            return mean.clone(), var.clone()  # a training step before the backward pass would change them
        return mean, var

    def observe(self, table: Moments) -> None:
        """Remembers the batch behind a table."""
        if self.remembers():
            pooled = table if not tracing() and len(table.mean) == 1 else table.pool(0)
            self.remember(pooled.mean[0], pooled.unbiased[0], pooled.count)

    def remembers(self) -> bool:
        """True in training with running statistics, but not while a checkpoint is recomputed."""
        if not self.training or self.frozen or not self.track_running_stats or self._buffers["running_mean"] is None:
            return False
        return compiling() or not recomputing()

    def remember(
        self, mean: Tensor, var: Tensor, count: Any, present: Tensor | None = None, unbiasing: float = 1.0
    ) -> None:
        """Moves on by one batch of `count` values (instance norm: instances), or pools it for later.

        `var * unbiasing` is its unbiased variance; `present` says which of several memories the batch met.
        Where nobody could look and refuse it, one of too few values teaches nothing.
        """
        memory = self.memory()
        count = count[0] if isinstance(count, Tensor) and count.dim() > mean.dim() else count
        if memory.pool is not None:
            number = torch.as_tensor(count, dtype=mean.dtype, device=mean.device).expand_as(mean)
            add_batch(memory.pool, self._counter, mean, var * unbiasing, number, *self._law)
            return
        self._move(memory, mean, var, count, present, unbiasing)

    def memory(self) -> Memory:
        """What the next batch is written to."""
        buffers = cast(dict[str, Tensor], self._buffers)
        return Memory(buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"], self.pool)

    def open_pool(self) -> None:
        """From now on batches are pooled; `close_pool` makes them one update."""
        mean = cast(Tensor, self.running_mean)
        self.pool = mean.new_zeros(3, *mean.shape)

    def close_pool(self, *, keep: bool = True) -> None:
        """Writes the pooled batches as one, or forgets them."""
        pool, self.pool = self.pool, None
        if pool is None or not keep:
            return
        mean, spread, count = pool.unbind()
        var = spread / (count - self._law[1]).clamp(min=1)
        self._move(Running.memory(self), mean, var, count, _enough(count, mean, self._least))

    def reset_running_stats(self) -> None:
        self._widen(self._buffers)
        super().reset_running_stats()
        if self.running_mean is not None:
            self.start_counting(self.running_mean.device)

    @property
    def _law(self) -> tuple[bool, int]:
        """How batches pool: with the distance between them or not, and what to take off each count."""
        if isinstance(self, _InstanceNorm):
            return False, 0  # it remembers averages over instances
        return True, 0 if self.averages_std else 1

    @property
    def _least(self) -> int:
        """How many values, of instance norm instances, make a batch."""
        return 2 if self._law[0] else 1

    def _move(
        self,
        memory: Memory,
        mean: Tensor,
        var: Tensor,
        count: Any,
        present: Tensor | None = None,
        unbiasing: float = 1.0,
    ) -> None:
        root = self.eps if self.averages_std else None
        simple = present is None and root is None and not tracing()
        if simple and kernels.remember(*memory[:3], self.skipped, mean, var, self.momentum, unbiasing):
            self._tell()
            return
        present = _enough(count, mean, self._least) if present is None else present
        var = var if unbiasing == 1 else var * unbiasing
        if self.skipped is not None and self.skipped.device != memory.mean.device:
            self.start_counting(memory.mean.device)  # the memory was assigned, as load_state_dict(assign=True) does
        skipped = self._counter
        move(memory.mean, memory.var, memory.seen, skipped, mean, var, present, self.momentum, root)
        if not tracing() and skipped is not None and skipped.is_cpu:
            self._tell()


def _enough(count: Any, mean: Tensor, least: int) -> Tensor | None:
    """Says of each memory whether its batch has at least so many values; None where it surely has."""
    if not isinstance(count, Tensor):
        if surely(count >= least):
            return None
        count = mean.new_full((), count)
    return (count >= least).expand_as(mean).any(-1)
