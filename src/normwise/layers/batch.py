"""Batch normalization: pools the table over instances."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normwise import ops, plain
from normwise.layers.base import Plane, PlaneNorm, check_batch
from normwise.layers.running import Running
from normwise.mixture import Mixture
from normwise.ops import Affine, standardize
from normwise.table import Moments
from normwise.tail import NOTHING, Tail


class AnyBatchNorm(Plane):
    """The plain operator, with running statistics kept by `Running`; the table where there is a mask."""

    def normalize(self, x: Tensor, mask: Tensor | None, tail: Tail = NOTHING) -> Tensor:
        return batch_norm(self, x, mask, tail)


class BatchNorm(AnyBatchNorm, PlaneNorm, _BatchNorm):
    """Standardizes each channel over the batch; remembers the statistics for evaluation.

    `y = (x - mean_c) / sqrt(var_c + eps) * weight + bias`, statistics over (N, *spatial)
    (Ioffe and Szegedy, 2015). Input (N, C, *spatial) of any rank.

    >>> import torch
    >>> norm = BatchNorm(3)
    >>> y = norm(torch.randn(8, 3, 4, 4))
    >>> bool(y.mean().abs() < 1e-5), norm.num_batches_tracked.item()
    (True, 1)
    """


class BatchNorm1d(AnyBatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` with the repairs of `Running` and masks.

    >>> import torch
    >>> BatchNorm1d(3)(torch.ones(4, 3)).shape
    torch.Size([4, 3])
    """


class BatchNorm2d(AnyBatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with the repairs of `Running` and masks.

    >>> import torch
    >>> BatchNorm2d(3)(torch.ones(4, 3, 2, 2)).shape
    torch.Size([4, 3, 2, 2])
    """


class BatchNorm3d(AnyBatchNorm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` with the repairs of `Running` and masks.

    >>> import torch
    >>> BatchNorm3d(3)(torch.ones(4, 3, 2, 2, 2)).shape
    torch.Size([4, 3, 2, 2, 2])
    """


def batch_norm(norm: Running, x: Tensor, mask: Tensor | None, tail: Tail = NOTHING) -> Tensor:
    """Batch norm with the weights and the memory of a norm, which moves in training."""
    mean, var = norm.remembered()
    blended = mean is not None and norm.mix > 0 and not norm.training
    plenty = mask is None and not ops.tracing() and x.numel() > 2 * x.shape[1]
    teaches = plenty or not ops.empty(x)  # PyTorch takes a batch of nothing, and counts it
    if not plenty and (mean is None or (blended and norm.mix == 1)):
        check_batch(norm, x, mask)
    if mask is not None or blended:
        rule = partial(_mixed, eps=norm.eps, mix=norm.mix) if blended else Mixture(norm.eps)
        tensors = None, norm.weight, norm.bias, mean, var
        return ops.normalize(x, rule, tensors, mask=mask, observe=norm.observe, tail=tail)
    statistics = None if mean is None or var is None else (mean, var)
    y, (mean, var, unbiasing) = plain.batch_norm(x, norm.weight, norm.bias, norm.eps, statistics, tail)
    if norm.remembers() and teaches:
        norm.remember(mean, var, x.numel() // x.shape[1], None, unbiasing)
    return y


def _mixed(
    table: Moments, _: None, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, eps: float, mix: float
) -> Affine:
    own = table.pool(0)
    pooled = Moments(torch.lerp(mean[None], own.mean, mix), torch.lerp(var[None], own.var, mix), 1)
    return standardize(pooled, eps).learned(weight, bias)


def batch_pool(table: Moments, mean: Tensor | None, var: Tensor | None) -> Moments:
    """The pool over the batch: the remembered one where it is given, else the batch's own."""
    return table.pool(0) if mean is None or var is None else Moments(mean[None], var[None], 1)
