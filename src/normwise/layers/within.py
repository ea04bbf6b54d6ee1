"""Norms that pool within an instance: instance, group, layer (= group:1), and the plain channel affine."""

from functools import partial
from warnings import warn

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.instancenorm import _InstanceNorm

from normwise import functional, ops
from normwise.layers.base import Plane, PlaneNorm, check_input, leaf
from normwise.layers.batch import batch_pool
from normwise.ops import Affine, standardize
from normwise.table import Moments, align, planes, wide


class ChannelAffine(PlaneNorm):
    """Does not normalize: a learned weight and bias per channel, so that arms are equal.

    `y = x * weight + bias`. `eps`, `momentum` and `track_running_stats` have no effect.

    >>> ChannelAffine(3)(torch.ones(2, 3)).sum().item()
    6.0
    """

    tracks = False

    def normalize(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = x if mask is None else x.masked_fill(~align(mask, x), 0)
        y = y if self.weight is None else y * planes(self.weight[None], x).to(x.dtype)
        y = y if self.bias is None else y + planes(self.bias[None], x).to(x.dtype)
        return y if mask is None else y.masked_fill(~align(mask, x), 0)


class _Instance(Plane):
    """PyTorch's operator in the layout of the input; the table where there is a mask."""

    def normalize(self, x: Tensor, mask: Tensor | None) -> Tensor:
        mean, var = self.remembered()
        if mean is None:
            check_planes(self, x)
        if mask is not None:
            rule = partial(_instance, eps=self.eps)
            return ops.normalize(
                x, rule, (self.weight, self.bias, mean, var), mask=mask, observe=self.observe
            )
        dtype = wide(x.dtype)
        weight, bias = (t if t is None else t.to(dtype) for t in (self.weight, self.bias))
        if mean is not None and var is not None:
            return F.batch_norm(x, mean.to(dtype), var.to(dtype), weight, bias, False, 0.0, self.eps)
        if not (self.training and self.track_running_stats):
            return functional.instance_norm(x, None, None, weight, bias, True, 1.0, self.eps)
        # the same call while a checkpoint is recomputed, else other tensors would be saved
        mean, var = torch.zeros(2, self.num_features, dtype=dtype, device=x.device)
        y = functional.instance_norm(x, mean, var, weight, bias, True, 1.0, self.eps)
        if self.remembers():
            self.remember(mean, var)
        return y

    def observe(self, table: Moments) -> None:
        if self.remembers():
            counted = torch.as_tensor(table.count, device=table.mean.device).expand_as(table.mean) > 1
            number = counted.sum(0).clamp(min=1)
            self.remember(*((value * counted).sum(0) / number for value in (table.mean, table.unbiased)))


class InstanceNorm(_Instance, PlaneNorm, _InstanceNorm):
    """Standardizes each channel of each instance by itself, so it depends on no other instance.

    `y = (x - mean_nc) / sqrt(var_nc + eps) * weight + bias`, statistics over the spatial axes
    (Ulyanov, Vedaldi and Lempitsky, 2016). Input (N, C, *spatial) of any rank. Other than PyTorch's
    it is affine by default.

    >>> y = InstanceNorm(3)(torch.randn(2, 3, 8, 8))
    >>> bool(y.mean((2, 3)).abs().max() < 1e-5)
    True
    """

    tracks = False


class _RankedInstance(_Instance, _InstanceNorm):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if not isinstance(x, fx.Proxy) and x.dim() == self._get_no_batch_dim():
            return super().forward(x.unsqueeze(0), mask).squeeze(0)
        return super().forward(x, mask)

    def check(self, x: Tensor, mask: Tensor | None) -> None:
        self._check_input_dim(x)
        if not self.affine and not self.track_running_stats and x.shape[1] != self.num_features:
            warn(
                f"num_features is {self.num_features}, but the input has {x.shape[1]} channels", stacklevel=4
            )
            return check_input(self, x, x.shape[1], mask)
        check_input(self, x, self.num_features, mask)


class InstanceNorm1d(_RankedInstance, nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d` with the repairs of `Running` and masks.

    >>> InstanceNorm1d(3)(torch.randn(4, 3, 8)).shape
    torch.Size([4, 3, 8])
    """


class InstanceNorm2d(_RankedInstance, nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` with the repairs of `Running`, masks, and channels_last kept.

    >>> x = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    >>> InstanceNorm2d(3)(x).is_contiguous(memory_format=torch.channels_last)
    True
    """


class InstanceNorm3d(_RankedInstance, nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` with the repairs of `Running`, masks, and channels_last kept.

    >>> InstanceNorm3d(3)(torch.randn(4, 3, 8, 8, 8)).shape
    torch.Size([4, 3, 8, 8, 8])
    """


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` with masks, exact for a large mean in channels_last too.

    Pools channels in `num_groups` equal groups, so it does not depend on the batch:
    `y = (x - mean_ng) / sqrt(var_ng + eps) * weight + bias` (Wu and He, 2018). One group is layer norm.

    >>> y = GroupNorm(2, 4)(torch.randn(2, 4, 8, 8))
    >>> bool(y[:, :2].mean((1, 2, 3)).abs().max() < 1e-5)
    True
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if isinstance(x, fx.Proxy):
            return leaf(self, x, mask)
        if x.dim() < 2:
            raise ValueError(
                f"GroupNorm: x must have shape (N, C, *spatial), got {tuple(x.shape)}; add the batch axis."
            )
        check_input(self, x, self.num_channels, mask)
        if mask is None:
            return functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        rule = partial(_group, groups=self.num_groups, eps=self.eps)
        return ops.normalize(x, rule, (self.weight, self.bias), mask=mask)


def check_planes(module: nn.Module, x: Tensor) -> None:
    """A plane of one value has no variance."""
    if x.shape[2:].numel() == 1:
        raise ValueError(
            f"{type(module).__name__}: every plane needs at least 2 values (H*W), got 1 (input shape "
            f"{tuple(x.shape)}); place it before the pooling, or take group, which pools channels too."
        )


def _instance(
    table: Moments, weight: Tensor, bias: Tensor, mean: Tensor | None, var: Tensor | None, *, eps: float
) -> Affine:
    pooled = table if mean is None else batch_pool(table, mean, var)
    return standardize(pooled, eps).learned(weight, bias)


def _group(table: Moments, weight: Tensor, bias: Tensor, *, groups: int, eps: float) -> Affine:
    return standardize(table.pool(1, groups), eps).learned(weight, bias)
