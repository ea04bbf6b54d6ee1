"""Batch, instance and group norm: the native kernels behind one node in closed form, else PyTorch's operators."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from normwise import kernels
from normwise.ops import empty, learning, tracing, transformed, understood
from normwise.table import convert, wide
from normwise.tail import NOTHING, Tail, again

Statistics = tuple[Tensor, Tensor]
Observed = tuple[Tensor, Tensor, float]  # mean, variance, and what it is multiplied by to become the unbiased one
_TYPES = (Tensor, torch.nn.Parameter)
SMALL = 1 << 15  # values: up to here a call costs more than the arithmetic, and PyTorch's calls cost less


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    statistics: Statistics | None = None,
    tail: Tail = NOTHING,
) -> tuple[Tensor, Observed]:
    """Batch norm and its tail; also what was observed in the batch, or the given `statistics`.

    >>> y, (mean, var, factor) = batch_norm(torch.randn(4, 3, 8, 8), None, None, eps=1e-5)
    >>> y.shape, mean.shape, var.shape
    (torch.Size([4, 3, 8, 8]), torch.Size([3]), torch.Size([3]))
    """
    if native(x, weight, bias, 0, statistics, tail):
        y, mean, var = closed_form(x, weight, bias, 0, eps, statistics, tail)
        return y, (mean, var, unbiasing(x.numel() // x.shape[1])) if statistics is None else (*statistics, 1.0)
    weight, bias = (convert(t, wide(x.dtype)) for t in (weight, bias))
    if statistics is not None:
        return tail(_batch_norm(x, weight, bias, eps, statistics)), (*statistics, 1.0)
    # temporaries: with momentum 1 they become the batch's own mean and unbiased variance
    mean, var = x.new_zeros(2, x.shape[1], dtype=wide(x.dtype))
    return tail(_operator(F.batch_norm, x, mean, var, weight, bias, True, 1.0, eps)), (mean, var, 1.0)


def instance_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, tail: Tail = NOTHING) -> Tensor:
    """Instance norm and its tail in the layout of x.

    >>> instance_norm(torch.randn(4, 3, 8, 8), None, None, eps=1e-5).shape
    torch.Size([4, 3, 8, 8])
    """
    if native(x, weight, bias, x.shape[1]):
        return closed_form(x, weight, bias, x.shape[1], eps, None, tail)[0]
    weight, bias = (convert(t, wide(x.dtype)) for t in (weight, bias))
    return tail(_instance_norm(x, None, None, weight, bias, eps))


def observed_instance_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, tail: Tail = NOTHING
) -> tuple[Tensor, Observed]:
    """Instance norm; also gives mean and variance of an instance, averaged over the batch.

    >>> y, (mean, var, factor) = observed_instance_norm(torch.randn(4, 3, 8, 8), None, None, eps=1e-5)
    >>> mean.shape, var.shape
    (torch.Size([3]), torch.Size([3]))
    """
    if native(x, weight, bias, x.shape[1]):
        y, mean, var = closed_form(x, weight, bias, x.shape[1], eps, None, tail)
        return y, (mean.mean(0), var.mean(0), unbiasing(x.shape[2:].numel()))
    weight, bias = (convert(t, wide(x.dtype)) for t in (weight, bias))
    mean, var = x.new_zeros(2, x.shape[1], dtype=wide(x.dtype))
    return tail(_instance_norm(x, mean, var, weight, bias, eps)), (mean, var, 1.0)


def group_norm(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, tail: Tail = NOTHING
) -> Tensor:
    """Group norm and its tail, exact for a large mean whatever the layout.

    >>> group_norm(torch.randn(4, 6, 8, 8), 2, None, None, eps=1e-5).shape
    torch.Size([4, 6, 8, 8])
    """
    known = groups > 0 and not tracing() and understood(x)
    if known and x.numel() > groups and _suits_pytorch(x, groups, False, tail):
        y = torch.group_norm(x, groups, weight, bias, eps)  # F.group_norm would ask again what is known here
    elif known and _readable(x, weight, bias, groups, None):
        return closed_form(x, weight, bias, groups, eps, None, tail)[0]
    else:
        y = _group_norm(x, groups, weight, bias, eps)
    return y if tail is NOTHING else tail(y)


def native(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    statistics: Statistics | None = None,
    tail: Tail = NOTHING,
) -> bool:
    """Says whether the kernels take this call (0 groups: batch norm); what PyTorch would refuse they leave to it."""
    if tracing() or not understood(x) or _suits_pytorch(x, groups, statistics is not None and not groups, tail):
        return False
    return _readable(x, weight, bias, groups, statistics)


def closed_form(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    eps: float,
    statistics: Statistics | None = None,
    tail: Tail = NOTHING,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `native` said the kernels take: the output, and mean and biased variance as `kernels.norm` gives them."""
    instead = _instead.get()
    if instead is not None:
        return instead(x, weight, bias, groups, eps, statistics, tail)
    if not learning():
        return kernels.norm(x, weight, bias, groups, eps, statistics, *tail)
    observed: list[Tensor] = []  # beside the node, where outputs without a gradient would cost time
    y = _Norm.apply(x, weight, bias, tail.residual, statistics, tail, groups, eps, observed)
    mean, var = observed
    return y, mean, var


@contextmanager
def called_instead(stand_in: Any) -> Iterator[None]:
    """In this thread `stand_in` is called in place of `closed_form`, for small inputs too; None: no longer.

    >>> with called_instead(lambda x, *_: (x, x, x)):
    ...     group_norm(torch.tensor([[1.0, 2.0]]), 1, None, None, eps=1e-5)
    tensor([[1., 2.]])
    """
    token = _instead.set(stand_in)
    try:
        yield
    finally:
        _instead.reset(token)


_instead: ContextVar[Any] = ContextVar("instead", default=None)


def unbiasing(number: int) -> float:
    """What the biased variance of `number` values is multiplied by to become the unbiased one."""
    return number / (number - 1)


def keep_layout(y: Tensor, like: Tensor) -> Tensor:
    """Gives y the channels_last format where the channels of `like` lie closest in memory."""
    if like.dim() not in (4, 5) or transformed() or like.stride(1) >= like.stride(-1):
        return y
    return y.contiguous(memory_format=torch.channels_last if like.dim() == 4 else torch.channels_last_3d)


class _Norm(torch.autograd.Function):
    """The closed form of all three. It keeps x, the learned affine, the statistics and what the tail needs."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Any,
        bias: Any,
        residual: Any,
        statistics: Statistics | None,
        tail: Tail,
        groups: int,
        eps: float,
        observed: list[Tensor],
    ) -> Tensor:
        y, mean, var = kernels.norm(x, weight, bias, groups, eps, statistics, *tail)
        ctx.save_for_backward(x, weight, *tail.kept(y, bias), *(statistics or (mean, var)))
        ctx.fixed, ctx.act, ctx.groups, ctx.eps = statistics is not None, tail.act, groups, eps
        ctx.bias = bias  # its values are read only where it is saved
        observed += mean, var
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        g, needs = grads[0], ctx.needs_input_grad[:4]
        if torch.is_grad_enabled() or tracing():  # second derivatives are wanted, or many gradients at once
            return *_reference_grads(g, ctx, needs), *_FIXED
        x, weight, bias, extra, mean, var = ctx.saved_tensors
        through = needs[3] and ctx.act == kernels.NONE  # the gradient of the residual is g itself
        need_input = needs[0] or (needs[3] and not through)
        dx, dweight, dbias, behind, _ = kernels.norm_backward(
            g, x, mean, var, weight, bias, ctx.groups, ctx.eps, extra, ctx.act, ctx.fixed, need_input
        )
        return (
            dx if needs[0] else None,
            convert(dweight, weight.dtype) if needs[1] else None,
            convert(dbias, ctx.bias.dtype) if needs[2] else None,
            (g if through else behind) if needs[3] else None,
            *_FIXED,
        )


_FIXED = (None,) * 5  # arguments of the node behind its tensors


@torch.enable_grad()
def _reference_grads(g: Tensor, ctx: Any, needs: tuple[bool, ...]) -> list[Tensor | None]:
    """Differentiates PyTorch's operator, whose derivative has a derivative."""
    x, weight, _, extra, mean, var = ctx.saved_tensors
    # views, so that a weight computed from x is not followed back into x
    inputs: list[Any] = [None if t is None else t.view_as(t) for t in (x, weight, ctx.bias)]
    x, weight, bias = inputs
    if ctx.groups:
        y = _group_norm(x, ctx.groups, weight, bias, ctx.eps)
    else:
        weight, bias = (convert(t, wide(x.dtype)) for t in (weight, bias))
        y = _batch_norm(x, weight, bias, ctx.eps, (mean, var) if ctx.fixed else None)
    y, residual = again(y, extra, ctx.act, needs[3])
    wanted: list[Any] = [t for t, need in zip([*inputs, residual], needs, strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, g, create_graph=True))
    return [next(found) if need else None for need in needs]


def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, statistics: Statistics | None
) -> Tensor:
    if statistics is None:
        return _operator(F.batch_norm, x, None, None, weight, bias, True, 0.0, eps)
    mean, var = (convert(t, wide(x.dtype)) for t in statistics)
    return _operator(F.batch_norm, x, mean, var, weight, bias, False, 0.0, eps)


def _instance_norm(
    x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    if empty(x):  # which PyTorch's instance norm refuses
        return _batch_norm(x, weight, bias, eps, None)
    return keep_layout(_operator(F.instance_norm, x, mean, var, weight, bias, True, 1.0, eps), x)


def _group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """PyTorch's operator; its CPU kernel for channels_last takes E[x^2] - E[x]^2 and is never called."""
    if empty(x) and x.dim() > 1 and groups > 0 and not x.shape[1] % groups:  # PyTorch's refuses it, or gives NaN
        return _batch_norm(x, weight, bias, eps, None)
    if x.device.type != "cpu" or _is_plain(x):
        return _operator(F.group_norm, x, groups, weight, bias, eps)
    # of three axes PyTorch takes the contiguous kernel whatever the strides
    return keep_layout(F.group_norm(x.flatten(2), groups, weight, bias, eps).view(x.shape), x)


def _operator(operator: Any, x: Tensor, *rest: Any) -> Tensor:
    """Calls PyTorch's operator; its rules for vmap do not take a half x with wider statistics: there it is widened."""
    if not transformed():
        return operator(x, *rest)
    given = (convert(t, wide(x.dtype)) if isinstance(t, Tensor) else t for t in (x, *rest))
    return convert(operator(*given), x.dtype)


def _suits_pytorch(x: Tensor, groups: int, fixed: bool, tail: Tail) -> bool:
    """True where PyTorch's operator was measured to be as fast (`benchmarks/kernels.md`), in the layout it is best in.

    Its node costs less than ours, in C++ where ours is in Python; with a tail ours stands for two.
    """
    if _instead.get() is not None:
        return False
    values, node = x.numel(), learning() and tail is NOTHING
    if values <= SMALL and (fixed or (node and not groups and _is_plain(x))):
        return True
    plane = x.shape[2:].numel()
    in_groups = 0 < groups < x.shape[1]
    few = plane < 64 or values <= (8 if node else 4) * SMALL if in_groups or fixed else plane < 16
    exact = x.itemsize > 2 or not groups  # of a large mean PyTorch's loses digits there
    return few and exact and _is_plain(x)


def _readable(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, statistics: Statistics | None
) -> bool:
    """True where there is something to normalize, and all tensors are such as the kernels read."""
    channels = x.shape[1]
    if x.numel() <= (x.shape[0] * groups if groups else channels) or (groups and channels % groups):
        return False
    for t in (weight, bias, *(statistics or ())):
        if t is not None and not _fits(t, x, channels):
            return False
    if statistics is not None and (statistics[0].requires_grad or statistics[1].requires_grad):
        return False
    return weight is None or bias is None or weight.dtype == bias.dtype


def _fits(t: Tensor, x: Tensor, channels: int) -> bool:
    known = type(t) in _TYPES and t.is_cpu and (t.dtype == x.dtype or t.dtype == wide(x.dtype))
    return known and t.shape == (channels,)


def _is_plain(x: Tensor) -> bool:
    """True where PyTorch takes its contiguous kernel: it goes by strides, axes of size 1 included."""
    if x.dim() not in (4, 5) or transformed():  # vmap knows no memory formats
        return True
    strides = x.stride()
    return x.is_contiguous() and strides[-1] == 1 and strides[1] == strides[2] * x.shape[2]
