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
    last = channels_last(input) if input.device.type == "cpu" else None
    if last is None:
        return _group_norm(input, num_groups, weight, bias, eps)
    return _group_norm(input.contiguous(), num_groups, weight, bias, eps).contiguous(memory_format=last)


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
    last = channels_last(input)
    return y if last is None else y.contiguous(memory_format=last)


def channels_last(x: Tensor) -> torch.memory_format | None:
    """The channels_last format of x, or None where x is contiguous, of another layout or rank."""
    if x.dim() not in (4, 5) or peek_interpreter_stack() is not None:
        return None  # vmap cannot be asked for a memory format
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return last if x.is_contiguous(memory_format=last) and not x.is_contiguous() else None
