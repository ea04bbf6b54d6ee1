"""Norms of a position's features (a transformer's): PyTorch's own layers, built from the common arguments."""

from typing import Any

from torch import nn


def layer_token(
    num_features: int, *, eps: float | None = 1e-5, affine: bool = True, bias: bool = True, **rest: Any
) -> nn.LayerNorm:
    """Builds PyTorch's LayerNorm over the last axis."""
    eps = 1e-5 if eps is None else eps
    return nn.LayerNorm(num_features, eps, affine, bias, device=rest.get("device"), dtype=rest.get("dtype"))


def rms_token(num_features: int, *, eps: float | None = None, affine: bool = True, **rest: Any) -> nn.RMSNorm:
    """Builds PyTorch's RMSNorm over the last axis."""
    return nn.RMSNorm(num_features, eps, affine, device=rest.get("device"), dtype=rest.get("dtype"))
