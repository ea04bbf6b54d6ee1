"""Norms that pool within an instance: instance, group, layer (= group:1), and the plain channel affine."""

from functools import partial
from warnings import warn

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from normwise import ops, plain
from normwise.layers.base import Plane, PlaneNorm, check_input, check_values, leaf
from normwise.mixture import Mixture
from normwise.ops import Affine, standardize
from normwise.table import Moments, align, convert, planes
from normwise.tail import NOTHING, Tail


class ChannelAffine(PlaneNorm):
    """Does not normalize: a learned weight and bias per channel, so that arms are equal.

    `y = x * weight + bias`. `eps`, `momentum` and `track_running_stats` have no effect.

    >>> ChannelAffine(3)(torch.ones(2, 3)).sum().item()
    6.0
    """

    tracks = None

    def normalize(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = x if mask is None else x.masked_fill(~align(mask, x), 0)
        y = y if self.weight is None else y * convert(planes(self.weight[None], x), x.dtype)
        y = y if self.bias is None else y + convert(planes(self.bias[None], x), x.dtype)
        return y if mask is None else y.masked_fill(~align(mask, x), 0)


class AnyInstanceNorm(Plane):
    """The plain operator in the layout of the input; the table where there is a mask."""

    def normalize(self, x: Tensor, mask: Tensor | None, tail: Tail = NOTHING) -> Tensor:
        mean, var = self.remembered() if self.track_running_stats else (None, None)
        if mean is None:
            check_values(self, x)
        if mask is not None:
            rule = Mixture(self.eps, own=mean is None, pooled=mean is not None)
            tensors = self.weight if rule.own else None, self.weight, self.bias, mean, var
            return ops.normalize(x, rule, tensors, mask=mask, observe=self.observe, tail=tail)
        if mean is not None and var is not None:
            return plain.batch_norm(x, self.weight, self.bias, self.eps, (mean, var), tail)[0]
        if not (self.training and self.track_running_stats):
            return plain.instance_norm(x, self.weight, self.bias, self.eps, tail)
        # the same call while a checkpoint is recomputed, else other tensors would be saved
        y, (mean, var, unbiasing) = plain.observed_instance_norm(x, self.weight, self.bias, self.eps, tail)
        if self.remembers() and not ops.empty(x):
            self.remember(mean, var, len(x), None, unbiasing)
        return y

    def observe(self, table: Moments) -> None:
        if self.remembers():
            counted = torch.as_tensor(table.count, device=table.mean.device).expand_as(table.mean) > 1
            number = counted.sum(0)
            mean, var = (
                torch.where(number > 0, (value * counted).sum(0) / number.clamp(min=1), self.get_buffer(name))
                for value, name in ((table.mean, "running_mean"), (table.unbiased, "running_var"))
            )
            self.remember(mean, var, number, number.any())  # without valid values it is no batch


class InstanceNorm(AnyInstanceNorm, PlaneNorm, _InstanceNorm):
    """Standardizes each channel of each instance by itself, so it depends on no other instance.

    `y = (x - mean_nc) / sqrt(var_nc + eps) * weight + bias`, statistics over the spatial axes
    (Ulyanov, Vedaldi and Lempitsky, 2016). Input (N, C, *spatial) of any rank. Other than PyTorch's
    it is affine by default.

    >>> y = InstanceNorm(3)(torch.randn(2, 3, 8, 8))
    >>> bool(y.mean((2, 3)).abs().max() < 1e-5)
    True
    """

    tracks = False


class RankedInstanceNorm(AnyInstanceNorm, _InstanceNorm):
    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        if not isinstance(input, fx.Proxy) and input.dim() == self._get_no_batch_dim():
            return super().forward(input.unsqueeze(0), mask).squeeze(0)
        return super().forward(input, mask)

    def check(self, x: Tensor, mask: Tensor | None) -> None:
        self._check_input_dim(x)
        if not self.affine and not self.track_running_stats and x.shape[1] != self.num_features:
            warn(f"num_features is {self.num_features}, but the input has {x.shape[1]} channels", stacklevel=4)
            return check_input(self, x, x.shape[1], mask)
        check_input(self, x, self.num_features, mask)


class InstanceNorm1d(RankedInstanceNorm, nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d` with the repairs of `Running` and masks.

    An input of two axes is one sequence (C, L), as PyTorch has it; `InstanceNorm` refuses (N, C).

    >>> InstanceNorm1d(3)(torch.randn(4, 3, 8)).shape
    torch.Size([4, 3, 8])
    """


class InstanceNorm2d(RankedInstanceNorm, nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` with the repairs of `Running`, masks, and channels_last kept.

    >>> x = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    >>> InstanceNorm2d(3)(x).is_contiguous(memory_format=torch.channels_last)
    True
    """


class InstanceNorm3d(RankedInstanceNorm, nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` with the repairs of `Running`, masks, and channels_last kept.

    >>> InstanceNorm3d(3)(torch.randn(4, 3, 8, 8, 8)).shape
    torch.Size([4, 3, 8, 8, 8])
    """


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` with masks, exact for a large mean in channels_last too, never silently 0.

    Pools channels in `num_groups` equal groups, so it does not depend on the batch:
    `y = (x - mean_ng) / sqrt(var_ng + eps) * weight + bias` (Wu and He, 2018). One group is layer norm.

    >>> y = GroupNorm(2, 4)(torch.randn(2, 4, 8, 8))
    >>> bool(y[:, :2].mean((1, 2, 3)).abs().max() < 1e-5)
    True
    """

    strict = True  # False after `nw.accelerate`: where PyTorch is silent, it is too

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        if isinstance(input, fx.Proxy):
            return leaf(self, input, mask)
        self.check(input, mask)
        return self.normalize(input, mask)

    def check(self, x: Tensor, mask: Tensor | None) -> None:
        if not self.strict and mask is None:
            return
        if x.dim() < 2:
            raise ValueError(
                f"GroupNorm: x must have shape (N, C, *spatial), got {tuple(x.shape)}; add the batch axis."
            )
        check_input(self, x, self.num_channels, mask)
        check_values(self, x, self.num_channels // self.num_groups)

    def normalize(self, x: Tensor, mask: Tensor | None, tail: Tail = NOTHING) -> Tensor:
        if mask is None:
            return plain.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, tail)
        rule = partial(_group, groups=self.num_groups, eps=self.eps)
        return ops.normalize(x, rule, (self.weight, self.bias), mask=mask, tail=tail)


def _group(table: Moments, weight: Tensor, bias: Tensor, *, groups: int, eps: float) -> Affine:
    return standardize(table.pool(1, groups), eps).learned(weight, bias)
