"""Filter response norm: divides by the root mean square of a plane, then a learned threshold instead of ReLU."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normwise import kernels, ops
from normwise.layers.base import PlaneNorm
from normwise.ops import Affine
from normwise.table import Moments, align, convert, planes

_TYPES = (Tensor, nn.Parameter)


class FilterResponseNorm(PlaneNorm):
    """Divides each channel of each instance by its root mean square; a learned threshold replaces the ReLU.

    `y = max(x / sqrt(mean(x^2) + eps) * weight + bias, threshold)`, means over the spatial axes (Singh and
    Krishnan, 2020). `threshold` starts at 0, where it is a ReLU. On planes of one value only the
    sign is left.

    >>> y = FilterResponseNorm(3)(torch.randn(2, 3, 8, 8))
    >>> y.shape, y.min().item()
    (torch.Size([2, 3, 8, 8]), 0.0)
    """

    tracks = None
    threshold: nn.Parameter

    def starts(self) -> dict[str, Tensor]:
        return {"threshold": torch.zeros(self.num_features)}

    def normalize(self, x: Tensor, mask: Tensor | None) -> Tensor:
        learned = self.weight, self.bias, self.threshold
        if mask is None and _serves(x, *learned):
            return _closed_form(x, *learned, self.eps)
        return _by_the_table(x, *learned, self.eps, mask)


def _rule(table: Moments, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Affine:
    nothing = torch.zeros_like(table.mean)
    return Affine(nothing, (table.var + table.mean**2 + eps).rsqrt(), nothing).learned(weight, bias)


def _by_the_table(
    x: Tensor, weight: Any, bias: Any, threshold: Tensor, eps: float, mask: Tensor | None = None
) -> Tensor:
    """Whatever x is, and differentiable as often as one likes."""
    y = ops.normalize(x, partial(_rule, eps=eps), (weight, bias), mask=mask)
    y = torch.maximum(y, convert(planes(threshold[None], y), y.dtype))
    return y if mask is None else y.masked_fill(~align(mask, y), 0)


def _serves(x: Tensor, *learned: Tensor | None) -> bool:
    """Says whether the kernels take these."""
    plain = all(t is None or (type(t) in _TYPES and t.is_cpu) for t in learned)
    return plain and not ops.tracing() and ops.understood(x)


def _closed_form(x: Tensor, weight: Any, bias: Any, threshold: Tensor, eps: float) -> Tensor:
    if ops.learning():
        return _Response.apply(x, weight, bias, threshold, eps)
    return _forward(x, weight, bias, threshold, eps)[0]


def _forward(x: Tensor, weight: Any, bias: Any, threshold: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return kernels.norm(x, weight, bias, x.shape[1], eps, floor=threshold, about_zero=True)


class _Response(torch.autograd.Function):
    """The closed form in one node. It keeps x, what is learned, and the mean square of every plane."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Any, threshold: Tensor, eps: float) -> Tensor:
        y, mean, square = _forward(x, weight, bias, threshold, eps)
        ctx.save_for_backward(x, weight, bias, threshold, mean, square)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        *given, mean, square = ctx.saved_tensors
        needs = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled() or ops.tracing():  # second derivatives are wanted, or many gradients at once
            return *_further_grads(grads[0], given, ctx.eps, needs), None
        x, weight, bias, threshold = given
        dx, dweight, dbias, _, dthreshold = kernels.norm_backward(
            grads[0], x, mean, square, weight, bias, x.shape[1], ctx.eps,
            need_input=needs[0], floor=threshold, about_zero=True,
        )  # fmt: skip
        found = zip((dx, dweight, dbias, dthreshold), given, needs, strict=True)
        return *(convert(d, t.dtype) if need else None for d, t, need in found), None


@torch.enable_grad()
def _further_grads(g: Tensor, given: list[Any], eps: float, needs: tuple[bool, ...]) -> list[Tensor | None]:
    given = [None if t is None else t.view_as(t) for t in given]  # views: nothing is followed back into x
    x, weight, bias, threshold = given
    wanted = [t for t, need in zip(given, needs, strict=True) if need]
    y = _by_the_table(x, weight, bias, threshold, eps)
    found = iter(torch.autograd.grad(y, wanted, g, create_graph=True))
    return [next(found) if need else None for need in needs]
