"""Batch normalization: pools the table over instances."""

from functools import partial

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normwise import ops, plain
from normwise.layers.base import Plane, PlaneNorm, check_batch
from normwise.ops import Affine, standardize
from normwise.table import Moments


class AnyBatchNorm(Plane):
    """The plain operator, with running statistics kept by `Running`; the table where there is a mask."""

    def normalize(self, x: Tensor, mask: Tensor | None) -> Tensor:
        mean, var = self.remembered()
        if mean is None:
            check_batch(self, x, mask)
        if mask is not None:
            rule = partial(_rule, eps=self.eps)
            return ops.normalize(x, rule, (self.weight, self.bias, mean, var), mask=mask, observe=self.observe)
        statistics = None if mean is None or var is None else (mean, var)
        y, mean, var = plain.batch_norm(x, self.weight, self.bias, self.eps, statistics)
        if self.remembers():
            self.remember(mean, var)
        return y


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


def _rule(
    table: Moments, weight: Tensor, bias: Tensor, mean: Tensor | None, var: Tensor | None, *, eps: float
) -> Affine:
    return standardize(batch_pool(table, mean, var), eps).learned(weight, bias)


def batch_pool(table: Moments, mean: Tensor | None, var: Tensor | None) -> Moments:
    """The pool over the batch: the remembered one where it is given, else the batch's own."""
    return table.pool(0) if mean is None or var is None else Moments(mean[None], var[None], 1)
