"""Norms for either layout, channels on axis 1 or features on the last axis: dynamic tanh, global response norm."""

from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor, fx, nn

from normwise import ops
from normwise.layers.base import PlaneNorm, TableNorm
from normwise.layers.channel import ChannelNorm
from normwise.ops import Affine
from normwise.table import Moments


class AnyAxis(PlaneNorm):
    """The last axis is moved to 1 and back, as views: nothing is copied."""

    tracks = None

    def __init__(self, num_features: int, *, axis: int = 1, **common: Any) -> None:
        if axis not in (1, -1):
            raise ValueError(f"{type(self).__name__}: axis must be 1 (N, C, *spatial) or -1 (..., F), got {axis}.")
        self.axis = axis
        super().__init__(num_features, **common)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.axis == 1 or isinstance(x, fx.Proxy):
            return super().forward(x, mask)
        return super().forward(x.movedim(-1, 1), mask).movedim(1, -1)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.axis == 1 else f", axis={self.axis}")


class DynamicTanh(AnyAxis, ChannelNorm):
    """Squashes every value by itself and measures nothing: a stand-in for layer norm in transformers.

    `y = tanh(alpha * x) * weight + bias`; `alpha` is one learned number, at first `start` (Zhu et al.,
    2025). Without `axis=-1` the features are on axis 1. `eps` has no effect.

    >>> y = DynamicTanh(8, axis=-1)(torch.full((2, 5, 8), 100.0))
    >>> y.shape, y.max().item()
    (torch.Size([2, 5, 8]), 1.0)
    """

    alpha: nn.Parameter

    def __init__(self, num_features: int, *, start: float = 0.5, axis: int = 1, **common: Any) -> None:
        if not isfinite(start):
            raise ValueError(f"DynamicTanh: start must be a finite number, got {start}; 0.5 is the paper's.")
        self.start = start
        super().__init__(num_features, axis=axis, **common)

    def starts(self) -> dict[str, Tensor]:
        return {"alpha": torch.tensor([self.start])}

    def standardized(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self.alpha)


class GlobalResponseNorm(AnyAxis, TableNorm):
    """Strengthens the channels of an instance that respond more than its others do.

    `y = x + x * n * weight + bias` with `n_c = G_c / (mean over channels of G + eps)` and `G_c` the root
    of the sum of squares of plane c (Woo et al., 2023). `weight` starts at 0: the identity. ConvNeXt V2
    keeps features on the last axis: `axis=-1`.

    >>> x, norm = torch.randn(2, 4, 4, 6), GlobalResponseNorm(6, axis=-1)
    >>> bool((norm(x) == x).all())
    True
    """

    own_affine = True

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.weight is not None:
            nn.init.zeros_(self.weight)

    def rule(self, x: Tensor) -> ops.Rule:
        return partial(_response, eps=self.eps)


def _response(table: Moments, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Affine:
    energy = table.count * (table.var + table.mean**2)
    alive = energy > 0  # the root has no derivative at 0
    response = torch.where(alive, torch.where(alive, energy, 1.0).sqrt(), 0.0)
    share = response / (response.mean(1, keepdim=True) + eps)
    scale = 1 + (share if weight is None else share * weight)
    nothing = torch.zeros_like(table.mean)
    return Affine(nothing, scale, nothing if bias is None else nothing + bias)
