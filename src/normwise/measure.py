"""The table of moments of an activation, by the kernels where they can read it."""

from typing import Any

import torch
from torch import Tensor

from normwise import kernels, ops, table
from normwise.table import Moments


def moments(x: Tensor, mask: Tensor | None = None) -> Moments:
    """Measures mean and variance of every plane of x, of shape (N, C, *spatial) or (N, C); differentiable.

    `mask` (bool, broadcastable to (N, *spatial), True = valid) leaves values out. A plane without
    spatial axes holds one value: its variance is 0.

    >>> mean, var, count = moments(torch.tensor([[[1.0, 3.0]]]))
    >>> mean.item(), var.item(), count
    (2.0, 1.0, 2)
    """
    if mask is not None or ops.tracing() or x.dim() < 3 or not x.numel() or not ops.understood(x):
        return table.moments(x, mask)
    followed = x.requires_grad and ops.learning()
    mean, var = _Moments.apply(x) if followed else kernels.moments(x)
    return Moments(mean, var, x.shape[2:].numel())


class _Moments(torch.autograd.Function):
    """Keeps x and the means: the gradient is one pass, `dmean / n + 2 * dvar / n * (x - mean)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = kernels.moments(x)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        dmean, dvar = grads
        if torch.is_grad_enabled() or ops.tracing():  # second derivatives are wanted, or many gradients at once
            with torch.enable_grad():
                again = x.view_as(x)
                return torch.autograd.grad(table.moments(again)[:2], again, grads, create_graph=True)[0]
        count = x.shape[2:].numel()
        return kernels.scale_shift(x, dvar * (2 / count), dmean / count, mean)
