"""Blends of pools: batch-instance (by a gate), switchable (three pools by weights), IBN (by channel)."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from normwise import ops
from normwise.layers.base import TableNorm, check_values
from normwise.layers.batch import batch_pool
from normwise.mixture import Mixture
from normwise.ops import Affine, standardize
from normwise.table import Moments, convert, wide


class BatchInstanceNorm(TableNorm):
    """Blends batch and instance norm by a learned gate per channel: how much style to keep.

    `y = (gate * batch(x) + (1 - gate) * instance(x)) * weight + bias` (Nam and Kim, 2018). The gate
    starts at 1, batch norm, and acts as clamped to [0, 1]. Beyond the border only gradients that lead
    back count: the parameter stays free to return. Momentum may carry it past the border for some steps.

    >>> x, norm = torch.randn(4, 3, 8, 8), BatchInstanceNorm(3)
    >>> bool(torch.allclose(norm(x), torch.nn.functional.batch_norm(x, None, None, training=True), atol=1e-5))
    True
    """

    gate: nn.Parameter

    def starts(self) -> dict[str, Tensor]:
        return {"gate": torch.ones(self.num_features)}

    def rule(self, x: Tensor) -> ops.Rule:
        return Mixture(self.eps, own=True)

    def tensors(self, x: Tensor) -> tuple[Tensor | None, ...]:
        gate, weight = (convert(t, wide(x.dtype)) for t in (box(self.gate), self.weight))
        weight = 1.0 if weight is None else weight
        return (1 - gate) * weight, gate * weight, self.bias, *self.remembered()


class SwitchableNorm(TableNorm):
    """Learns how much of instance, layer and batch statistics to take, in this order.

    `mean` and `var` are blended with one softmax each of three weights, which start at equal thirds:
    `y = (x - mean) / sqrt(var + eps) * weight + bias` (Luo et al., 2019).

    >>> norm = SwitchableNorm(3)
    >>> norm(torch.randn(4, 3, 8, 8)).shape, norm.mean_weight.softmax(0).detach()
    (torch.Size([4, 3, 8, 8]), tensor([0.3333, 0.3333, 0.3333]))
    """

    mean_weight: nn.Parameter
    var_weight: nn.Parameter

    def starts(self) -> dict[str, Tensor]:
        return {"mean_weight": torch.ones(3), "var_weight": torch.ones(3)}

    def rule(self, x: Tensor) -> ops.Rule:
        return partial(_switchable, eps=self.eps)

    def tensors(self, x: Tensor) -> tuple[Tensor | None, ...]:
        return self.mean_weight, self.var_weight, self.weight, self.bias, *self.remembered()


class IBNorm(TableNorm):
    """Instance norm for the first channels, batch norm for the rest: style goes, content stays.

    `ratio` is the instance share (default 0.5): `int(ratio * num_features)` channels, as in IBN-Net (Pan
    et al., 2018). Each half equals its parent; one weight, bias and running statistics for all.

    >>> x, norm = torch.randn(4, 6, 8, 8), IBNorm(6)
    >>> bool(torch.allclose(norm(x)[:, :3], torch.nn.functional.instance_norm(x)[:, :3], atol=1e-5))
    True
    """

    def __init__(self, num_features: int, *, ratio: float = 0.5, **common: Any) -> None:
        if not 0 <= ratio <= 1:
            raise ValueError(f"IBNorm: ratio, the share of instance norm, must be between 0 and 1, got {ratio}.")
        self.ratio = ratio
        super().__init__(num_features, **common)

    @property
    def instance_features(self) -> int:
        """How many channels, from the first, are instance norm's."""
        return int(self.ratio * self.num_features)

    def rule(self, x: Tensor) -> ops.Rule:
        return Mixture(self.eps, own=True)

    def tensors(self, x: Tensor) -> tuple[Tensor | None, ...]:
        weight = 1.0 if self.weight is None else self.weight
        own = torch.arange(self.num_features, device=x.device) < self.instance_features
        return torch.where(own, weight, 0.0), torch.where(own, 0.0, weight), self.bias, *self.remembered()

    def normalize(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.instance_features:
            check_values(self, x)
        return super().normalize(x, mask)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ratio={self.ratio}"


def box(gate: Tensor) -> Tensor:
    """Clamps to [0, 1]; the gradient passes inside and, from outside, where descent leads back.

    In forward mode, `torch.jit.trace` and `torch.export` it passes everywhere.

    >>> gate = torch.tensor([0.5, 1.2, 1.2], requires_grad=True)
    >>> box(gate).backward(torch.tensor([1.0, 1.0, -1.0]))
    >>> gate.grad
    tensor([1., 1., 0.])
    """
    if forward_ad._current_level >= 0 or torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        return gate + (gate.clamp(0, 1) - gate).detach()  # no node of our own is understood: it passes everywhere
    return _Box.apply(gate)


class _Box(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(gate: Tensor) -> Tensor:
        return gate.clamp(0, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate,), (g,) = ctx.saved_tensors, grads
        return g.masked_fill(((gate < 0) & (g > 0)) | ((gate > 1) & (g < 0)), 0)


def _switchable(
    table: Moments,
    mean_weight: Tensor,
    var_weight: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    *,
    eps: float,
) -> Affine:
    pools = table, table.pool(1), batch_pool(table, mean, var)
    (i, j, k), (u, v, w) = mean_weight.softmax(0), var_weight.softmax(0)
    center = i * pools[0].mean + j * pools[1].mean + k * pools[2].mean
    spread = u * pools[0].var + v * pools[1].var + w * pools[2].var
    return standardize(Moments(center, spread, table.count), eps).learned(weight, bias)
