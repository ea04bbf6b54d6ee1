"""Frozen batch norm: the remembered statistics in training too, which never move."""

from typing import Any

from torch import Tensor

from normwise.layers.base import PlaneNorm
from normwise.layers.batch import batch_norm


class FrozenNorm(PlaneNorm):
    """Batch norm with fixed statistics: it computes the same in training and evaluation, whatever is called.

    `y = (x - running_mean_c) / sqrt(running_var_c + eps) * weight + bias`. Neither `train()` nor a step
    moves the statistics, which come from a trained batch norm (same state_dict keys). `learn=0` fixes
    weight and bias too, as torchvision's FrozenBatchNorm2d does. `momentum` and `track_running_stats`
    have no effect.

    >>> import torch
    >>> norm = FrozenNorm(3).train()
    >>> _ = norm(torch.randn(8, 3) + 5)
    >>> norm.running_mean, norm.num_batches_tracked.item()
    (tensor([0., 0., 0.]), 0)
    """

    frozen = True

    def __init__(self, num_features: int, *, learn: int = 1, **common: Any) -> None:
        if learn not in (0, 1):
            raise ValueError(f"FrozenNorm: learn must be 1 (weight and bias learn) or 0 (they do not), got {learn}.")
        super().__init__(num_features, **{**common, "track_running_stats": True})
        self.learn = learn
        for parameter in self.parameters():
            parameter.requires_grad_(bool(learn))

    def normalize(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return batch_norm(self, x, mask)
