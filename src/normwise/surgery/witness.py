"""Watches the kernels at work in a model: each call's output and gradients against PyTorch's, and those in float64."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from normwise import plain
from normwise.kernels import NONE
from normwise.ops import learning
from normwise.table import convert, wide
from normwise.tail import NOTHING, Tail


class Witness:
    """Stands in for the kernels: asks them, notes where they are wrong, and hands on what PyTorch's operators give.

    So a network cannot carry a last digit far, and one that computes the same gives the same.

    >>> witness = Witness()
    >>> with plain.called_instead(witness):
    ...     y = plain.batch_norm(torch.randn(8, 3, 4, 4), None, None, eps=1e-5)[0]
    >>> y.shape, witness.wrong
    (torch.Size([8, 3, 4, 4]), [])
    """

    def __init__(self, *, grouped: bool = False) -> None:
        """With `grouped` it hands on what PyTorch's group norm gives, not its instance norm, for groups of one channel.

        On constant planes both give rounding alone, and not the same.
        """
        self.wrong: list[str] = []
        self._grouped = grouped

    def __call__(
        self, x: Tensor, weight: Any, bias: Any, groups: int, eps: float, statistics: Any = None, tail: Tail = NOTHING
    ) -> tuple[Tensor, Tensor, Tensor]:
        learned, fixed = (x, weight, bias, tail.residual), (groups, eps, statistics, tail.act)
        with plain.called_instead(None):
            with torch.autograd.graph.saved_tensors_hooks(_same, _same):  # a checkpoint would count what is saved here
                self._compare(learned, fixed)
            _, mean, var = plain.closed_form(x, weight, bias, groups, eps, statistics, tail)
            return _by_pytorch(*learned, *fixed, grouped=self._grouped), mean, var

    def _compare(self, learned: Any, fixed: Any) -> None:
        x, wider = learned[0], _wider(learned, *fixed)
        noise, constant = _noise(x.dtype, *wider)
        g = None
        if learning() and _many(x, *fixed):
            g = _direction(x.dtype, noise, *wider).masked_fill(constant, 0)
        ours, pytorchs = (_results(run, learned, fixed, g) for run in (_by_kernels, _by_pytorch))
        for what, found, other, truth in zip(_WHAT, ours, pytorchs, _results(_centred, *wider, g=g), strict=True):
            if truth is None:
                continue
            least = ROUNDINGS * float(noise.norm()) if what in _FROM_NORMALIZED else 0.0
            error, own, size = (_size(t, truth) for t in (found - truth, other - truth, truth))
            if not error <= ROUNDINGS * own + _ROUNDING[x.dtype] * size + least:
                off = f"{error:.3g} off that in float64 (of size {size:.3g}), PyTorch's {own:.3g}"
                self.wrong.append(f"the {what} of a norm on an input of shape {tuple(x.shape)} is {off}")


ROUNDINGS = 4  # times the error of PyTorch's
_ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}  # parts of the size
_WHAT = "output", "input's gradient", "weight's gradient", "bias's gradient", "residual's gradient"
_FROM_NORMALIZED = "output", "weight's gradient"


def _by_kernels(x: Tensor, weight: Any, bias: Any, residual: Any, *fixed: Any) -> Tensor:
    groups, eps, known, act = fixed
    return plain.closed_form(x, weight, bias, groups, eps, known, Tail(residual, act))[0]


def _by_pytorch(x: Tensor, weight: Any, bias: Any, residual: Any, *fixed: Any, grouped: bool = False) -> Tensor:
    """As PyTorch's own layers call them."""
    groups, eps, known, act = fixed
    if 0 < groups < x.shape[1] + grouped:
        y = F.group_norm(x, groups, weight, bias, eps)
    elif groups:
        y = F.instance_norm(x, None, None, weight, bias, True, 0.0, eps)
    else:
        mean, var = (t if weight is None else convert(t, weight.dtype) for t in known or (None, None))
        y = F.batch_norm(x, mean, var, weight, bias, known is None, 0.0, eps)
    return Tail(residual, act)(y)


def _centred(x: Tensor, weight: Any, bias: Any, residual: Any, *fixed: Any) -> Tensor:
    """The same, but for rounding: PyTorch's mean of many equal values is not theirs, in float64 too."""
    groups, _, known, _ = fixed
    if known is None:
        parts, axes = _pools(x, groups)
        x = (parts - parts.detach().mean(axes, keepdim=True)).flatten(1, 2)
    return _by_pytorch(x, weight, bias, residual, *fixed)


def _pools(x: Tensor, groups: int) -> tuple[Tensor, list[int]]:
    """With the channels split into groups, and the axes that one statistic is taken over."""
    parts = x.unflatten(1, (groups or x.shape[1], -1))
    return parts, [axis for axis in range(parts.dim()) if axis > 1 or (axis == 0 and not groups)]


def _results(run: Any, learned: Any, fixed: Any, g: Tensor | None) -> list[Any]:
    """The output, and the gradients of what is learned in direction g; None for what is not there."""
    leaves = [None if t is None else t.detach().requires_grad_(g is not None) for t in learned]
    y = run(*leaves, *fixed)
    if g is None:
        return [y, None, None, None, None]
    found = iter(torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], torch.empty_like(y).copy_(g)))
    return [y.detach(), *(None if leaf is None else next(found) for leaf in leaves)]


def _wider(learned: Any, groups: int, eps: float, known: Any, act: Any) -> Any:
    """Not in channels_last, where PyTorch's group norm loses digits in float64 too."""
    layout = {"memory_format": torch.contiguous_format, "copy": True}  # the copy sets the strides of axes of size 1 too
    learned, known = ([t if t is None else t.to(torch.float64, **layout) for t in ts] for ts in (learned, known or ()))
    return learned, (groups, eps, known or None, act)


@torch.no_grad()
def _noise(dtype: torch.dtype, learned: Any, fixed: Any) -> tuple[Tensor, Tensor]:
    """How far rounding moves each output where values vary less than eps, and which values are all of it.

    A plane of equal values gives in truth the bias, and computed what rounding left of the mean, over sqrt(eps).
    """
    (x, weight, *_), (groups, eps, known, _) = learned, fixed
    parts, axes = _pools(x, groups)
    mean, var = parts.mean(axes, keepdim=True), parts.var(axes, correction=0, keepdim=True)
    if known is not None:
        mean, var = (t.view(-1, *[1] * (x.dim() - 1)) for t in known)
    rounding = torch.finfo(wide(dtype)).eps * (parts.abs() + mean.abs())
    constant = var < (ROUNDINGS * rounding).square()
    noise = (rounding / (var + eps).sqrt()).where(constant | (var < eps), 0).flatten(1, 2)
    scale = 1.0 if weight is None else weight.abs().clamp(min=1).view(-1, *[1] * (x.dim() - 2))
    return noise.nan_to_num(0, 0) * scale, constant.flatten(1, 2)


def _direction(dtype: torch.dtype, noise: Tensor, learned: Any, fixed: Any) -> Tensor:
    """Random numbers, but 0 where rounding decides on which side of a bend of the activation the values are."""
    *norm, act = fixed
    with torch.no_grad():
        z = _by_pytorch(*learned, *norm, NONE)
    seed = 0x5EED  # not 0, which examples are drawn with: along the values themselves the input's gradient is 0
    g = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    for bend in (0.0, act.low, act.high):
        g[(z - bend).abs() < 1e-3 * z.abs().max() + ROUNDINGS * noise] = 0
    return g


def _same(t: Tensor) -> Tensor:
    return t


def _many(x: Tensor, groups: int, eps: float, known: Any, act: Any) -> bool:
    """Of a few values for each statistic the gradient is what rounding leaves, and of infinity nothing is."""
    return bool(x.isfinite().all()) and (known is not None or x.numel() >= 16 * (len(x) * groups or x.shape[1]))


def _size(t: Tensor, truth: Tensor) -> float:
    """Where there is a finite truth."""
    return float(t.where(truth.isfinite(), 0).double().norm())
