"""The table of moments by the kernels: equal to the reference in value and in derivatives, in every layout."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from normwise import functional, kernels, measure, moments, table

SHAPES = [(2, 3, 7), (3, 5, 4, 6), (2, 4, 3, 4, 5)]
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def sample(shape: tuple[int, ...], last: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    x = (torch.randn(shape) * 2 + 5).to(dtype)
    return x.contiguous(memory_format=LAST[len(shape)]) if last and len(shape) in LAST else x


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_and_gradient_are_those_of_the_reference(shape: tuple[int, ...], last: bool, dtype: torch.dtype) -> None:
    x = sample(shape, last, dtype)
    found = []
    for function in (moments, table.moments):
        leaf = x.clone().requires_grad_()
        mean, var, count = function(leaf)
        weight = torch.arange(1, mean.numel() + 1, dtype=mean.dtype).view_as(mean)
        (mean * weight + var.sqrt()).sum().backward()
        found.append((mean.detach(), var.detach(), leaf.grad))
        assert count == x[0, 0].numel()
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if x.itemsize == 2 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(*found, **tolerance)
    assert found[0][2].stride() == found[1][2].stride()


def test_derivatives_of_any_order() -> None:
    x = sample((2, 3, 4), False, torch.float64).requires_grad_()
    assert gradcheck(lambda x: moments(x)[:2], x)
    assert gradgradcheck(lambda x: moments(x)[:2], x)
    sums = torch.func.vmap(torch.func.grad(lambda x: moments(x[None]).var.sum()))(x.detach())
    torch.testing.assert_close(sums, torch.autograd.grad(moments(x).var.sum(), x)[0])


@pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")
def test_only_what_the_kernels_read_goes_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.table, "moments", lambda x, mask: "reference")
    x = torch.randn(2, 3, 4)
    assert moments(x) != "reference"
    for other in (torch.randn(2, 3), torch.randn(2, 3, 0), x.to("meta")):
        assert moments(other) == "reference"
    assert moments(x, torch.ones(2, 4, dtype=torch.bool)) == "reference"


def test_a_style_is_measured_and_followed() -> None:
    content, style = torch.randn(2, 3, 5, 5), (3 + torch.randn(2, 3, 4, 4)).requires_grad_()
    functional.adain(content, style).mean().backward()
    assert style.grad is not None
    torch.testing.assert_close(style.grad, torch.full_like(style, 1 / style.numel()), atol=1e-6, rtol=0)
