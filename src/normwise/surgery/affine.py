"""The fixed scale and shift that a norm applies in evaluation, and their product with the layer before."""

from typing import Any

import torch
from torch import Tensor, nn

from normwise.layers import NORMS
from normwise.ops import Affine, standardize
from normwise.surgery.find import Found
from normwise.table import Moments


def fixed_affine(layer: Found) -> Affine | str:
    """Center, scale and shift per channel, float64 where the device has it; or why there are none.

    >>> from normwise.surgery.find import norm_layers
    >>> center, scale, shift = fixed_affine(norm_layers(nn.BatchNorm2d(2, eps=0).eval())[0])
    >>> center.tolist(), scale.tolist(), shift.tolist()
    ([0.0, 0.0], [1.0, 1.0], [0.0, 0.0])
    """
    norm: Any = layer.module
    name = layer.state.spec.name if layer.state else None
    if layer.locked and not layer.frozen:
        return layer.locked
    foldable = name == "instance" or (name is not None and NORMS[name].fixed)
    if not foldable and not layer.frozen:
        return f"{layer.what} measures each input, so no fixed weights can hold it"
    mean, var = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if name != "none" and mean is None:
        return "it remembers no statistics, so it measures each input"
    if getattr(norm, "mix", 0):
        return "nw.adapt lets it measure each batch; undo that first"
    if norm.training and not layer.frozen:
        return "it is in training mode; call model.eval() first"
    weight, bias = (None if t is None else widened(t.detach()) for t in (norm.weight, norm.bias))
    if mean is None or var is None:
        return _unchanged(norm).learned(weight, bias)
    return standardize(Moments(widened(mean), widened(var), 1), norm.eps).learned(weight, bias)


def product(source: Any, affine: Affine) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and bias of the layer that does both: `W' = W * scale`, `b' = (b - center) * scale + shift`.

    A transposed convolution has its output channels, group by group, on axis 1 of the weight.
    """
    weight = widened(source.weight.detach())
    if getattr(source, "transposed", False):
        grouped = weight.unflatten(0, (source.groups, -1))  # (groups, in, out, *kernel)
        scale = affine.scale.reshape(source.groups, 1, -1, *[1] * (weight.dim() - 2))
        scaled = (grouped * scale).flatten(0, 1)
    else:
        scaled = weight * affine.scale.reshape(-1, *[1] * (weight.dim() - 1))
    bias = 0.0 if source.bias is None else widened(source.bias.detach())
    shift = (bias - affine.center) * affine.scale + affine.shift
    trains, dtype = source.weight.requires_grad, source.weight.dtype
    return nn.Parameter(scaled.to(dtype), trains), nn.Parameter(shift.to(dtype), trains)


def widened(tensor: Tensor) -> Tensor:
    """In float64, or float32 on Apple's GPU, which has no more."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def _unchanged(norm: Any) -> Affine:
    device = next((p.device for p in norm.parameters()), None)
    ones = widened(torch.ones(norm.num_features, device=device))
    return Affine(torch.zeros_like(ones), ones, torch.zeros_like(ones))
