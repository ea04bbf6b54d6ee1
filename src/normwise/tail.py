"""What follows a norm in the same pass: a residual and an activation."""

from math import isnan
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from normwise.kernels import GELU, NONE, RELU, SILU, Act


class Tail(NamedTuple):
    """`act(y + residual)`; calling it does so in ordinary operations.

    >>> Tail(torch.tensor([1.0, -3.0]), RELU)(torch.tensor([1.0, 1.0]))
    tensor([2., 0.])
    """

    residual: Tensor | None = None
    act: Act = NONE

    def __call__(self, y: Tensor) -> Tensor:
        return _activate(y if self.residual is None else y + self.residual, self.act)

    def kept(self, y: Tensor, bias: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """What the backward pass needs behind an activation: the bias, and the output or the residual (each or None).

        With a residual the output may tell the slope; else what came before the activation is computed again.
        """
        if self.act.code == NONE.code:
            return None, None
        if self.residual is None:
            return bias, None
        return (None, y) if self.act.output_tells else (bias, self.residual)


NOTHING = Tail()


def again(y: Tensor, extra: Tensor | None, act: Act, need_residual: bool) -> tuple[Tensor, Tensor | None]:
    """What followed y, once more for derivatives of any order, and the residual they are taken by.

    `extra` is what `Tail.kept` kept; where that is the output, the activation is linear piece by piece.
    """
    by_output = extra is not None and act.output_tells
    residual = None if extra is None or by_output else extra.view_as(extra)
    if residual is None and need_residual:
        residual = torch.zeros_like(y, requires_grad=True)
    y = y if residual is None else y + residual
    return (y * _slope(extra, act) if by_output and extra is not None else _activate(y, act)), residual


def _activate(y: Tensor, act: Act) -> Tensor:
    """The activation in PyTorch's operations."""
    if act.code == RELU.code:
        return F.relu(y) if isnan(act.high) else F.hardtanh(y, act.low, act.high)
    return _BY_CODE[act.code](y, act.low)


def _slope(y: Tensor, act: Act) -> Tensor:
    """The derivative of a piecewise linear activation, told from its output."""
    if act.code == RELU.code:
        return ((y > act.low) & ~(y >= act.high)).to(y.dtype)
    return torch.ones_like(y).where(y > 0, act.low)


_BY_CODE = {
    NONE.code: lambda y, _: y,
    2: F.leaky_relu,
    SILU.code: lambda y, _: F.silu(y),
    GELU.code: lambda y, _: F.gelu(y),
}
