"""Synchronized batch norm: pools the table over all processes."""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normwise import ops
from normwise.layers.base import TableNorm
from normwise.layers.batch import batch_norm
from normwise.ops import Affine, standardize
from normwise.table import Moments


class SyncNorm(TableNorm):
    """Batch norm over the batches of all processes together, on any backend of torch.distributed.

    Equal to batch norm on the joined batch, forward, backward and remembered, however unequal the parts;
    a process without samples takes part too, if it calls forward and backward. One exchange of three
    values per channel and process each way, in training only. Without a process group, or with one process, it is batch
    norm. `process_group` (an attribute, None: all processes) limits it.

    >>> y = SyncNorm(3)(torch.randn(8, 3, 4, 4))
    >>> bool(y.mean((0, 2, 3)).abs().max() < 1e-5)
    True
    """

    process_group: Any = None

    def rule(self, x: Tensor) -> ops.Rule:
        return partial(_sync, norm=self)

    def normalize(self, x: Tensor, mask: Tensor | None) -> Tensor:
        alone = not self.training or self.remembered()[0] is not None  # as in nn.SyncBatchNorm: others may not evaluate
        if alone or ranks(self.process_group) == 1:
            return batch_norm(self, x, mask)
        return ops.normalize(x, self.rule(x), self.tensors(x), mask=mask)  # the rule observes the joint pool


def ranks(group: Any = None) -> int:
    """The number of processes that pool together; 1 without torch.distributed.

    >>> ranks()
    1
    """
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    number = dist.get_world_size(group)
    if number < 1:
        raise ValueError(
            f"SyncNorm: process_group must hold this process, got a group without rank {dist.get_rank()}; "
            "give each process one it is in."
        )
    return number


def joined(table: Moments, group: Any = None) -> Moments:
    """The pool over instances and processes, weighted by count; (1, C), the same in every process."""
    number = torch.as_tensor(table.count, dtype=table.mean.dtype, device=table.mean.device)
    mean, var, count = Moments(table.mean, table.var, number.expand_as(table.mean)).pool(0)
    rows = torch.stack([mean, var, torch.as_tensor(count)])  # (3, 1, C)
    place = torch.arange(ranks(group), device=rows.device) == dist.get_rank(group)
    mean, var, count = _SumOverRanks.apply(rows * place[:, None].to(rows.dtype), group)
    return Moments(mean, var, count.detach()).pool(0)


def _sync(table: Moments, weight: Tensor, bias: Tensor, *, norm: SyncNorm) -> Affine:
    pooled = joined(table, norm.process_group)
    _require_values(pooled)
    if norm.remembers():
        norm.remember(pooled.mean[0], pooled.unbiased[0], pooled.count)
    return standardize(pooled, norm.eps).learned(weight, bias)


class _SumOverRanks(torch.autograd.Function):
    """An all-reduce; each process' gradient is again the sum over all, so it is its own derivative."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = values.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _SumOverRanks.apply(grads[0], ctx.group), None


def _require_values(pooled: Moments) -> None:
    """All processes know the same count, so all stop."""
    count = pooled.count
    if isinstance(count, Tensor) and count.is_cpu and ops.valued(count) and float(count.max()) < 2:
        raise ValueError(
            f"SyncNorm: batch statistics need at least 2 values per channel over all processes, got "
            f"{int(count.max())}; use a larger batch, or call eval()."
        )
