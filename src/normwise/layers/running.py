"""Running statistics, in one place: what a norm remembers for evaluation."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from normwise.ops import tracing
from normwise.table import Moments, convert, wide

_NAMES = ("running_mean", "running_var")


class Running(_NormBase):
    """Remembers mean and unbiased variance under PyTorch's keys.

    Repairs: the buffers stay float32 or wider in a half-precision model (in bfloat16 a small momentum
    rounds to nothing); the second forward of activation checkpointing is not counted twice;
    `momentum=None`, the plain average over all batches, works for every norm and under compile.
    """

    def remembered(self) -> tuple[Tensor | None, Tensor | None]:
        """Running mean and variance if they are to be used now, else (None, None)."""
        mean, var = self.running_mean, self.running_var
        if self.training or mean is None or var is None:
            return None, None
        if torch.is_grad_enabled() and not tracing():
            return mean.clone(), var.clone()  # a training step before the backward pass would change them
        return mean, var

    def observe(self, table: Moments) -> None:
        """Remembers the batch behind a table."""
        if self.remembers():
            pooled = table.pool(0)
            self.remember(pooled.mean[0], pooled.unbiased[0])

    def remembers(self) -> bool:
        """True in training with running statistics, but not while a checkpoint is recomputed."""
        if not self.training or not self.track_running_stats or self.running_mean is None:
            return False
        return torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1

    def remember(self, mean: Tensor, unbiased_var: Tensor) -> None:
        """Moves on by one batch: `running += momentum * (batch - running)`."""
        seen, *running = (cast(Tensor, self._buffers[name]) for name in ("num_batches_tracked", *_NAMES))
        seen.add_(1)
        for remembered, batch in zip(running, (mean, unbiased_var), strict=True):
            step = convert(batch.detach(), remembered.dtype) - remembered
            remembered.add_(step / seen if self.momentum is None else step * self.momentum)

    def reset_running_stats(self) -> None:
        self._widen({name: self._buffers[name] for name in _NAMES})
        super().reset_running_stats()

    def _apply(self, fn: Any, recurse: bool = True) -> "Running":
        before = {name: self._buffers[name] for name in _NAMES}
        super()._apply(fn, recurse)
        self._widen(before)
        return self

    def _widen(self, before: dict[str, Tensor | None]) -> None:
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != wide(new.dtype):
                self._buffers[name] = old.to(new.device, wide(new.dtype))
