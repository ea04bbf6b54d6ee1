"""Digits: batch, instance and group norm, forward and backward, against naive float64 and PyTorch's best layout."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from normwise import functional, kernels

GROUPS = {"batch": 0, "instance": 32, "group": 4}
NAMES = ["y", "dx", "dweight", "dbias"]
Norm = Callable[[Tensor, Tensor, Tensor], Tensor]


def naive(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """With eps 1e-5; batch norm for 0 groups."""
    n, c = x.shape[:2]
    z = x.transpose(0, 1).reshape(1, c, -1) if groups == 0 else x.reshape(n, groups, -1)
    z = z - z.mean(2, keepdim=True)
    z = z / (z.square().mean(2, keepdim=True) + 1e-5).sqrt()
    z = z.reshape(c, n, -1).transpose(0, 1) if groups == 0 else z
    return (z.reshape(n, c, -1) * weight[:, None] + bias[:, None]).reshape(x.shape)


def call(library: object, groups: int) -> Norm:
    """The norm by its function in torch.nn.functional or normwise.functional."""
    if groups == GROUPS["batch"]:
        return lambda x, weight, bias: library.batch_norm(x, None, None, weight, bias, True)  # pyright: ignore
    if groups == GROUPS["instance"]:
        return lambda x, weight, bias: library.instance_norm(x, None, None, weight, bias)  # pyright: ignore
    return lambda x, weight, bias: library.group_norm(x, groups, weight, bias)  # pyright: ignore


def results(norm: Norm, g: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The output and the gradients of x, weight and bias, in float64."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = norm(leaves[0], leaves[1], leaves[2])
    return [t.detach().double() for t in (y, *torch.autograd.grad(y, leaves, g))]


def errors(found: list[Tensor], right: list[Tensor]) -> list[float]:
    return [(ours - t).abs().max().item() for ours, t in zip(found, right, strict=True)]


@pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("ratio", [0, 1, 1e2, 1e3, 1e4])
@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("side", [24, 64])  # of the smaller the rule in normwise.plain leaves some to PyTorch
def test_at_most_twice_the_error_of_pytorchs_best_layout(
    side: int, name: str, ratio: float, dtype: torch.dtype, last: bool
) -> None:
    shape = (4, 32, side, side)
    x, g = (torch.randn(shape) + ratio).to(dtype), torch.randn(shape).to(dtype)
    weight, bias, groups = torch.rand(32) + 0.5, torch.randn(32), GROUPS[name]
    right = results(
        lambda x, weight, bias: naive(x, weight, bias, groups), g.double(), x.double(), weight.double(), bias.double()
    )
    forms = [torch.contiguous_format, torch.channels_last]
    layouts = [[t.contiguous(memory_format=form) for t in (g, x)] for form in forms]
    theirs = [errors(results(call(F, groups), *layout, weight, bias), right) for layout in layouts]
    ours = errors(results(call(functional, groups), *layouts[last], weight, bias), right)
    for what, error, *best, want in zip(NAMES, ours, *theirs, right, strict=True):
        rounding = torch.finfo(dtype if what in ("y", "dx") else torch.float32).eps * want.abs().max().item()
        assert error <= 2 * min(best) + rounding, f"{what}: {error:.1e}, PyTorch's {min(best):.1e}"


@pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("side", [4, 7, 14])
def test_short_planes_too(side: int, last: bool) -> None:
    x, ones, zeros = torch.randn(32, 128, side, side), torch.ones(128), torch.zeros(128)
    right = naive(x.double(), ones.double(), zeros.double(), 128)
    forms = [torch.contiguous_format, torch.channels_last]
    layouts = [x.contiguous(memory_format=form) for form in forms]
    theirs = [(F.instance_norm(layout).double() - right).abs().max() for layout in layouts]
    ours = (functional.instance_norm(layouts[last]).double() - right).abs().max()
    assert ours <= 2 * min(theirs), f"{ours:.1e}, PyTorch's {min(theirs):.1e}"
