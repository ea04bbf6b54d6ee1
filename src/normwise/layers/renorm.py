"""Batch renormalization: corrects the batch's pool by the remembered one."""

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from normwise import ops
from normwise.kernels import Known
from normwise.layers.base import TableNorm, check_batch
from normwise.layers.batch import batch_norm
from normwise.layers.written import compiling, recomputing, written
from normwise.measure import moments
from normwise.mixture import Mixture
from normwise.ops import Affine
from normwise.table import Moments

CALLS = 8  # of one layer, between a checkpointed forward and its recomputation


class RenormNorm(TableNorm):
    """Batch norm whose training output is tied to the remembered statistics, for small or uneven batches.

    `y = ((x - mean_c) / std_c * r + d) * weight + bias` with `r = std_c / running_std` within
    [1 / r_max, r_max] and `d = (mean_c - running_mean) / running_std` within [-d_max, d_max], both
    constants to the gradient (Ioffe, 2017). `std = sqrt(var + eps)`; its average is what is remembered, as
    `running_var = running_std^2 - eps`, under batch norm's keys. The paper starts with r_max=1, d_max=0,
    which is batch norm, and raises them to 3 and 5; both are attributes that may be set between steps.

    A checkpoint's recomputation finds what was remembered before its batch among the last 8 calls, by the batch's
    mean: of two calls with the same input before one backward pass it takes the later one's. Where a
    compiler itself sees the checkpoint, only one call per backward pass works; a second one is an error.

    >>> norm, x = RenormNorm(3), torch.randn(8, 3, 4, 4) * 2 + 1
    >>> y = norm(x)          # within the bounds it computes as in evaluation
    >>> bool(torch.allclose(y, x / (1 + norm.eps) ** 0.5, atol=1e-5))
    True
    """

    averages_std = True
    recent: Tensor | None = None  # of the last calls: the batch's mean, and what was remembered before it

    def __init__(self, num_features: int, *, r_max: float = 3.0, d_max: float = 5.0, **common: Any) -> None:
        if not (r_max >= 1 and d_max >= 0):
            raise ValueError(f"RenormNorm: r_max must be at least 1 and d_max at least 0, got {r_max} and {d_max}.")
        super().__init__(num_features, **common)
        self.r_max, self.d_max = float(r_max), float(d_max)

    def corrected(self, mean: Tensor, var: Tensor) -> Mixture:
        """The rule, tied to these remembered statistics."""
        return Mixture(self.eps, known=Known(mean, var, self.r_max, self.d_max))

    def tensors(self, x: Tensor) -> tuple[Tensor | None, ...]:
        return None, self.weight, self.bias

    def normalize(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.remembered()[0] is not None or self.running_mean is None or ops.empty(x):
            return batch_norm(self, x, mask)
        check_batch(self, x, mask)
        if self.recent is not None and self.recent.device != self.running_mean.device:
            self._forget()  # the memory was assigned, as load_state_dict(assign=True) does
        if ops.tracing():  # the rule observes, having read what was remembered before
            return ops.normalize(x, partial(_renorm, norm=self, before=[]), self.tensors(x), mask=mask)
        batch = moments(x.detach(), mask).pool(0).mean[0] if recomputing() else self.running_mean
        rule = self.corrected(*_before(self, batch))
        return ops.normalize(x, rule, self.tensors(x), mask=mask, observe=self.observe)

    def observe(self, table: Moments) -> None:
        self.learn(table.pool(0), [cast(Tensor, t) for t in (self.running_mean, self.running_var)])

    def learn(self, pooled: Moments, before: list[Tensor]) -> None:
        """Moves on by one batch, and notes what was remembered before it."""
        if self.remembers():
            mean, var = pooled.mean[0].detach(), pooled.var[0].detach()
            note(cast(Tensor, self.recent), torch.stack([mean, *before]))
            self.remember(mean, var, pooled.count)

    def reset_running_stats(self) -> None:
        super().reset_running_stats()
        self._forget()

    def _apply(self, fn: Any, recurse: bool = True) -> "RenormNorm":
        super()._apply(fn, recurse)
        self._forget()
        return self

    def _forget(self) -> None:
        if self.running_mean is not None:
            self.recent = self.running_mean.new_full((CALLS, 3, self.num_features), float("inf"))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}"


def _renorm(table: Moments, *tensors: Tensor | None, norm: RenormNorm, before: list[Tensor]) -> Affine:
    if not before:  # else the rule runs again for second derivatives
        pooled = table.pool(0)
        before += _before(norm, pooled.mean[0].detach())
        norm.learn(pooled, before)
    return norm.corrected(before[0], before[1])(table, *tensors)


def _before(norm: RenormNorm, mark: Tensor) -> tuple[Tensor, Tensor]:
    """What was remembered before this batch; `mark`, its mean, tells the call that is recomputed."""
    mean, var, recent = (cast(Tensor, t) for t in (norm.running_mean, norm.running_var, norm.recent))
    return (torch.ops.normwise.recall if compiling() else _recall)(mark, mean, var, recent, norm.eps)


def _recall(mark: Tensor, mean: Tensor, var: Tensor, recent: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if not recomputing():
        return mean.clone(), var.clone()
    distance = ((recent[:, 0] - mark).abs() / (var + eps).sqrt()).amax(-1).nan_to_num(nan=torch.inf)
    nearest = distance.argmin(0, keepdim=True)
    found = distance[nearest] < 1e-3  # the recomputation may differ in its last digits
    _, old_mean, old_var = recent[nearest][0]
    return torch.where(found, old_mean, mean), torch.where(found, old_var, var)


@written("recent")
def note(recent: Tensor, row: Tensor) -> None:
    """Puts a call before the others, of which the last is forgotten."""
    recent.copy_(torch.cat([row[None].to(recent.dtype), recent[:-1]]))


@torch.library.custom_op("normwise::recall", mutates_args=())
def _recall_op(mark: Tensor, mean: Tensor, var: Tensor, recent: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _recall(mark, mean, var, recent, eps)


@_recall_op.register_fake
def _(mark: Tensor, mean: Tensor, var: Tensor, recent: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mean), torch.empty_like(var)
