"""Filter response norm: divides by the root mean square of a plane, then a learned threshold instead of ReLU."""

from functools import partial

import torch
from torch import Tensor, nn

from normwise import ops
from normwise.layers.base import TableNorm
from normwise.ops import Affine
from normwise.table import Moments


class FilterResponseNorm(TableNorm):
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

    def rule(self) -> ops.Rule:
        return partial(_rule, eps=self.eps)

    def normalize(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return ops.normalize(x, self.rule(), self.tensors(), mask=mask, floor=self.threshold)


def _rule(table: Moments, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Affine:
    nothing = torch.zeros_like(table.mean)
    return Affine(nothing, (table.var + table.mean**2 + eps).rsqrt(), nothing).learned(weight, bias)
