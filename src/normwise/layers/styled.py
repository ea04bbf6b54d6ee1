"""Norms whose scale and shift come from elsewhere: another image, a class or an embedding, another row of the batch."""

from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from normwise import functional, ops
from normwise.layers.base import PlaneNorm, TableNorm, check_batch, check_values, leaf
from normwise.mixture import Mixture
from normwise.ops import Affine
from normwise.table import Moments, align, wide


class AdaptiveInstanceNorm(PlaneNorm):
    """Gives each channel of the content the mean and deviation of the style's (AdaIN), with nothing learned.

    `forward(x, style, mask=None, style_mask=None)`,
    `y = std(style) * (x - mean(x)) / std(x) + mean(style)`, per instance and channel (Huang and Belongie,
    2017). The style has its own spatial shape, and as many instances as x or one.

    >>> content, style = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 6, 6) + 5
    >>> y = AdaptiveInstanceNorm(3)(content, style)
    >>> bool(torch.allclose(y.mean((2, 3)), style.mean((2, 3)), atol=1e-4))
    True
    """

    tracks = None

    def __init__(self, num_features: int, *, affine: bool = False, **common: Any) -> None:
        super().__init__(num_features, affine=False, **common)

    def forward(self, x: Tensor, style: Tensor, mask: Tensor | None = None, style_mask: Tensor | None = None) -> Tensor:
        if isinstance(x, fx.Proxy):
            return leaf(self, x, style, mask, style_mask)
        self.check(x, mask)
        check_values(self, x)
        return functional.adain(x, style, eps=self.eps, mask=mask, style_mask=style_mask)


class Conditional(TableNorm):
    """Weight and bias are looked up by the class of each instance, or computed from its embedding.

    `forward(x, condition, mask=None)`. With `classes=K` (default 1) the condition is a class index of
    shape (N,), and row k of `weight` and `bias`, of shape (K, C), is class k's. With `embedding=E` it is
    a vector of shape (N, E), and weight and bias are row 0 plus the embedding times the other E rows.
    """

    own = False  # by an instance's own statistics, as instance norm; else by the batch's

    def __init__(
        self, num_features: int, *, classes: int | None = None, embedding: int | None = None, **common: Any
    ) -> None:
        name = type(self).__name__
        if classes is not None and embedding is not None:
            raise ValueError(f"{name}: takes classes or embedding, got {classes} and {embedding}; leave one out.")
        if min(classes or 1, embedding or 1) < 1 or 0 in (classes, embedding):
            raise ValueError(f"{name}: classes and embedding must be at least 1, got {classes or embedding or 0}.")
        self.classes = 1 if embedding is None and classes is None else classes
        self.embedding = embedding
        super().__init__(num_features, **common)

    def starts(self) -> dict[str, Tensor]:
        weight = torch.ones(self.classes or 1 + (self.embedding or 0), self.num_features)
        if self.embedding:
            weight[1:] = 0
        wanted = {"weight": weight, "bias": torch.zeros_like(weight)}
        return {name: start for name, start in wanted.items() if self._parameters[name] is not None}

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        for name, start in self.starts().items():
            if self.get_parameter(name).shape == start.shape:  # not yet while PyTorch's constructor runs
                self.get_parameter(name).data.copy_(start)

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        if isinstance(x, fx.Proxy):
            return leaf(self, x, condition, mask)
        self.check(x, mask)
        self.check_condition(x, condition)
        weight, bias = (self.rows(parameter, condition) for parameter in (self.weight, self.bias))
        weights = (weight, None) if self.own else (None, weight)
        tensors = *weights, bias, *self.remembered()
        return ops.normalize(x, self.rule(x), tensors, mask=mask, observe=self.observe)

    def rule(self, x: Tensor) -> ops.Rule:
        return Mixture(self.eps, own=self.own, pooled=not self.own)

    def rows(self, table: Tensor | None, condition: Tensor) -> Tensor | None:
        """The part of a parameter that each instance takes, (N, C)."""
        if table is None:
            return None
        return F.embedding(condition, table) if self.classes else table[0] + condition.to(table.dtype) @ table[1:]

    def check_condition(self, x: Tensor, condition: Tensor) -> None:
        """One class or one embedding for each instance."""
        shape = x.shape[:1] if self.embedding is None else (x.shape[0], self.embedding)
        fits = condition.is_floating_point() if self.embedding else condition.dtype in (torch.int64, torch.int32)
        if condition.shape != shape or not fits:
            kind = "an embedding, floating point" if self.embedding else "a class index, int64 or int32"
            advice = "" if fits else f"; call condition.{'float' if self.embedding else 'long'}()"
            raise ValueError(
                f"{type(self).__name__}: condition must be {kind}, for each instance, shape {tuple(shape)}, "
                f"got {condition.dtype} of shape {tuple(condition.shape)}{advice}."
            )
        if self.classes and x.shape[0] and ops.valued(condition):
            low, high = (int(bound) for bound in condition.aminmax())
            if low < 0 or high >= self.classes:
                raise ValueError(
                    f"{type(self).__name__}: classes go from 0 to {self.classes - 1}, got {low if low < 0 else high}; "
                    "build it with more classes."
                )

    def extra_repr(self) -> str:
        kind = f"classes={self.classes}" if self.classes else f"embedding={self.embedding}"
        return f"{super().extra_repr()}, {kind}"


class ConditionalInstanceNorm(Conditional):
    """Instance norm whose weight and bias depend on a class or an embedding: one network, many styles.

    `y = (x - mean_nc) / sqrt(var_nc + eps) * weight[condition] + bias[condition]` (Dumoulin, Shlens and
    Kudlur, 2017). `forward(x, condition, mask=None)`, see `Conditional`.

    >>> norm = ConditionalInstanceNorm(3, classes=10)
    >>> norm(torch.randn(2, 3, 8, 8), torch.tensor([0, 7])).shape
    torch.Size([2, 3, 8, 8])
    """

    tracks = None
    own = True

    def check(self, x: Tensor, mask: Tensor | None) -> None:
        super().check(x, mask)
        check_values(self, x)


class ConditionalBatchNorm(Conditional):
    """Batch norm whose weight and bias depend on a class or an embedding (a GAN's generator).

    `y = (x - mean_c) / sqrt(var_c + eps) * weight[condition] + bias[condition]` (de Vries et al., 2017).
    `forward(x, condition, mask=None)`, see `Conditional`.

    >>> norm = ConditionalBatchNorm(3, embedding=5)
    >>> norm(torch.randn(2, 3, 8, 8), torch.randn(2, 5)).shape
    torch.Size([2, 3, 8, 8])
    """

    def check(self, x: Tensor, mask: Tensor | None) -> None:
        super().check(x, mask)
        if self.remembered()[0] is None:
            check_batch(self, x, mask)


class MixStyle(PlaneNorm):
    """In training gives instances a mean and deviation mixed with another's of the batch; learns nothing.

    `y = (x - mean_n) / std_n * std + mean`, where `std` and `mean` are `share` parts instance n's and the
    rest another's, `share` drawn for each instance from Beta(alpha, alpha) (Zhou et al., 2021). A batch
    is mixed with probability `p`; in evaluation nothing happens, nor with a wholly padded partner.
    Draws come from PyTorch's global generator; statistics are constants to the gradient, as in the paper.

    >>> x = torch.randn(4, 3, 8, 8)
    >>> mixed, unmixed = MixStyle(3, p=1.0)(x), MixStyle(3).eval()(x)
    >>> bool((mixed == x).all()), bool((unmixed == x).all())
    (False, True)
    """

    tracks = None

    def __init__(
        self, num_features: int, *, p: float = 0.5, alpha: float = 0.1, affine: bool = False, **common: Any
    ) -> None:
        if not (0 <= p <= 1 and 0 < alpha < inf):
            raise ValueError(f"MixStyle: p must be between 0 and 1 and alpha above 0 and finite, got {p} and {alpha}.")
        self.p, self.alpha = p, alpha
        super().__init__(num_features, affine=False, **common)

    def normalize(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if not self.training:
            return x if mask is None else x.masked_fill(~align(mask, x), 0)
        coin, order = torch.rand((), device="cpu"), torch.randperm(x.shape[0], device="cpu")
        share = torch.ops.aten._sample_dirichlet(torch.full((x.shape[0], 2), self.alpha, device="cpu"))[:, :1]
        if ops.valued(coin) and coin >= self.p:
            return x if mask is None else x.masked_fill(~align(mask, x), 0)
        share = torch.where(coin < self.p, share, 1.0).to(x.device, wide(x.dtype))
        return ops.normalize(x, partial(_mixed, eps=self.eps), (share, order.to(x.device)), mask=mask)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, p={self.p}, alpha={self.alpha}"


def _mixed(table: Moments, share: Tensor, order: Tensor, *, eps: float) -> Affine:
    mean, std = table.mean.detach(), (table.var.detach() + eps).sqrt()
    if isinstance(table.count, Tensor):  # a partner without valid values has no moments to mix with
        share = torch.where(table.count[order] > 0, share, 1.0)
    taken = share < 1  # else a partner's NaN has no influence
    shift, scale = (share * own + (1 - share) * torch.where(taken, own[order], own) for own in (mean, std))
    return Affine(mean, scale / std, shift)
