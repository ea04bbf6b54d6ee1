"""PyTorch's functions, same signatures and results, faster and more careful where PyTorch's CPU is not; and AdaIN."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import batch_norm as _batch_norm
from torch.nn.functional import instance_norm as _instance_norm
from torch.nn.functional import layer_norm as _layer_norm
from torch.nn.functional import rms_norm

from normwise import ops, plain
from normwise.measure import moments
from normwise.mixture import Mixture
from normwise.table import convert

__all__ = ["adain", "batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"]

_HALF = (torch.bfloat16, torch.float16)


def adain(
    content: Tensor, style: Tensor, *, eps: float = 1e-5, mask: Tensor | None = None, style_mask: Tensor | None = None
) -> Tensor:
    """Gives each channel of the content the mean and deviation that it has in the style.

    `y = std(style) * (x - mean(x)) / std(x) + mean(style)` per instance and channel (Huang and Belongie,
    2017), `std = sqrt(var + eps)`. The style may have another spatial shape; it has as many instances as the
    content, or one for all. `mask` (bool, broadcastable to (N, *spatial)) leaves values of the content out,
    `style_mask` values of the style.

    >>> content, style = torch.randn(2, 3, 8, 8), 5 + torch.randn(1, 3, 6, 6)
    >>> bool((adain(content, style).mean((2, 3)) - style.mean((2, 3))).abs().max() < 1e-4)
    True
    """
    if style.dim() < 2 or style.shape[1] != content.shape[1] or style.shape[0] not in (1, content.shape[0]):
        raise ValueError(
            f"adain: style must have shape (N or 1, C, *spatial) with the N and C of the content, got "
            f"{tuple(style.shape)} for content of shape {tuple(content.shape)}."
        )
    mean, var, _ = moments(style, style_mask)

    rule = Mixture(eps, own=True, pooled=False)
    return ops.normalize(content, rule, ((var + eps).sqrt(), None, mean), mask=mask)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm`.

    >>> y = batch_norm(torch.randn(8, 3, 4, 4), None, None, training=True)
    >>> bool(y.mean((0, 2, 3)).abs().max() < 1e-5)
    True
    """
    running = _pair(running_mean, running_var)
    if running is not None and not training and ops.transformed():  # there a half input is an error to PyTorch
        return plain.batch_norm(input, weight, bias, eps, running)[0]
    complete = running is not None or (training and running_mean is running_var)  # both are None
    if not complete or not plain.native(input, weight, bias, 0, running):
        return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    y, mean, var = plain.closed_form(input, weight, bias, 0, eps, None if training else running)
    if training and running is not None:
        _move(running, mean, var * plain.unbiasing(input.numel() // input.shape[1]), momentum)
    return y


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.group_norm`, exact for a large mean in channels_last too.

    PyTorch's CPU kernel for channels_last takes E[x^2] - E[x]^2: at mean/std 1e3 its outputs are off
    by 0.9. Here it is never called; the output keeps the layout of the input.

    >>> x = (1000 + torch.randn(2, 4, 8, 8)).to(memory_format=torch.channels_last)
    >>> bool((group_norm(x, 2) - group_norm(x.contiguous(), 2)).abs().max() < 1e-3)
    True
    """
    return plain.group_norm(input, num_groups, weight, bias, eps)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.instance_norm`, whose output keeps the layout of a channels_last input.

    >>> x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    >>> instance_norm(x).is_contiguous(memory_format=torch.channels_last)
    True
    """
    running = _pair(running_mean, running_var)
    complete = use_input_stats and (running is not None or running_mean is running_var) and input.dim() > 2
    if not complete or not plain.native(input, weight, bias, input.shape[1], running):
        y = _instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
        return plain.keep_layout(y, input)
    y, mean, var = plain.closed_form(input, weight, bias, input.shape[1], eps)
    if running is not None:
        _move(running, mean.mean(0), var.mean(0) * plain.unbiasing(input.shape[2:].numel()), momentum)
    return y


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.layer_norm`, whose gradients of weight and bias are right in half precision too.

    PyTorch's CPU backward pass sums them over the rows in the type of the input: of 50,000 rows in
    bfloat16 the bias's is off by 92 %. Here it runs in float32; without anything to learn nothing is converted.

    >>> bias = torch.zeros(3, requires_grad=True)
    >>> layer_norm(torch.randn(4096, 3).bfloat16(), (3,), bias=bias).sum().backward()
    >>> bias.grad
    tensor([4096., 4096., 4096.])
    """
    learned = torch.is_grad_enabled() and not (weight is None and bias is None)
    if learned and isinstance(input, Tensor) and input.is_cpu and input.dtype in _HALF:
        x, weight, bias = (convert(t, torch.float32) for t in (input, weight, bias))
        return convert(_layer_norm(x, normalized_shape, weight, bias, eps), input.dtype)
    return _layer_norm(input, normalized_shape, weight, bias, eps)


def _pair(mean: Tensor | None, var: Tensor | None) -> plain.Statistics | None:
    return None if mean is None or var is None else (mean, var)


def _move(running: plain.Statistics, mean: Tensor, var: Tensor, momentum: float) -> None:
    for old, new in zip(running, (mean, var), strict=True):
        if old.dtype == new.dtype:
            old.lerp_(new, momentum)
        else:
            old.copy_(torch.lerp(convert(old, new.dtype), new, momentum))
