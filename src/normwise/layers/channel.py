"""Norms of one position over its channels, for (N, C, *spatial): no axis is permuted, nothing copied."""

from torch import Tensor

from normwise.functional import layer_norm
from normwise.layers.base import PlaneNorm
from normwise.table import align, convert, planes, wide


class ChannelNorm(PlaneNorm):
    """Common to both: float32 inside, the learned affine, and the mask, which touches no other position."""

    tracks = None

    def normalize(self, x: Tensor, mask: Tensor | None) -> Tensor:
        filled = x if mask is None else x.masked_fill(~align(mask, x), 0)
        y = self.standardized(convert(filled, wide(x.dtype)))
        y = y if self.weight is None else y * planes(self.weight[None], x)
        y = convert(y if self.bias is None else y + planes(self.bias[None], x), x.dtype)
        return y if mask is None else y.masked_fill(~align(mask, x), 0)

    def standardized(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class ChannelLayerNorm(ChannelNorm):
    """Standardizes the channels of each position by themselves, with channels on axis 1 (ConvNeXt's norm).

    `y = (x - mean_np) / sqrt(var_np + eps) * weight + bias` (Ba, Kiros and Hinton, 2016): what
    LayerNorm over the last axis gives after a permutation.

    >>> import torch
    >>> y = ChannelLayerNorm(6)(torch.randn(2, 6, 4, 4))
    >>> bool(y.mean(1).abs().max() < 1e-5)
    True
    """

    def normalize(self, x: Tensor, mask: Tensor | None) -> Tensor:
        last = x.movedim(1, -1)
        if mask is None and x.dim() > 2 and last.is_contiguous():  # channels_last: PyTorch's kernel, four times as fast
            y = layer_norm(last, (self.num_features,), self.weight, self.bias, self.eps)
            return convert(y.movedim(-1, 1), x.dtype)
        return super().normalize(x, mask)

    def standardized(self, x: Tensor) -> Tensor:
        centered = x - x.mean(1, keepdim=True)
        return centered * (centered.square().mean(1, keepdim=True) + self.eps).rsqrt()


class ChannelRMSNorm(ChannelNorm):
    """Divides the channels of each position by their root mean square, with channels on axis 1.

    `y = x / sqrt(mean(x^2) + eps) * weight`, and a bias as all norms of planes have one (Zhang and
    Sennrich, 2019).

    >>> import torch
    >>> y = ChannelRMSNorm(6)(torch.randn(2, 6, 4, 4))
    >>> bool((y.square().mean(1) - 1).abs().max() < 1e-3)
    True
    """

    def standardized(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(1, keepdim=True) + self.eps).rsqrt()
