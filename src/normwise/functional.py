"""PyTorch's functions, same signatures and results, more careful where PyTorch's CPU kernels are not."""

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.nn.functional import batch_norm, layer_norm, rms_norm
from torch.nn.functional import group_norm as _group_norm
from torch.nn.functional import instance_norm as _instance_norm

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"]


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.group_norm`, exact for a large mean in channels_last too.

    PyTorch's CPU kernel for channels_last takes E[x^2] - E[x]^2: at mean/std 1e3 its outputs are off
    by 0.9. Here it computes on a contiguous copy and gives channels_last back.

    >>> x = (1000 + torch.randn(2, 4, 8, 8)).to(memory_format=torch.channels_last)
    >>> bool((group_norm(x, 2) - group_norm(x.contiguous(), 2)).abs().max() < 1e-5)
    True
    """
    if input.device.type != "cpu" or _is_plain(input):
        return _group_norm(input, num_groups, weight, bias, eps)
    # of three axes PyTorch takes the contiguous kernel whatever the strides
    y = _group_norm(input.flatten(2), num_groups, weight, bias, eps).view(input.shape)
    return keep_layout(y, input)


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
    y = _instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    return keep_layout(y, input)


def keep_layout(y: Tensor, like: Tensor) -> Tensor:
    """Gives y the channels_last format where the channels of `like` lie closest in memory."""
    if like.dim() not in (4, 5) or _vmapped() or like.stride(1) >= like.stride(-1):
        return y
    return y.contiguous(memory_format=torch.channels_last if like.dim() == 4 else torch.channels_last_3d)


def _is_plain(x: Tensor) -> bool:
    """True where PyTorch takes its contiguous kernel: it goes by strides, axes of size 1 included."""
    if x.dim() not in (4, 5) or _vmapped():
        return True
    return x.is_contiguous() and x.stride(-1) == 1 and x.stride(1) == x.shape[2:].numel()


def _vmapped() -> bool:
    """Under vmap a tensor can be neither asked for nor given a memory format."""
    return peek_interpreter_stack() is not None
