"""The witness finds nothing wrong with right kernels, however hard the input is for rounding."""

import pytest
import torch
from torch import Tensor

from normwise import kernels, plain
from normwise.kernels import GELU, NONE, RELU, Act, hardtanh
from normwise.surgery.witness import Witness
from normwise.tail import Tail

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")


def wrong(x: Tensor, groups: int, act: Act, *, residual: bool = False, known: bool = False) -> list[str]:
    witness, channels = Witness(), x.shape[1]
    weight, bias = torch.rand(channels).to(x.dtype) + 0.5, torch.randn(channels).to(x.dtype)
    wide = x.float() if x.itemsize < 4 else x
    statistics = (wide.mean((0, 2, 3)), wide.var((0, 2, 3)) + 1e-3) if known else None
    with plain.called_instead(witness):
        tail = Tail(torch.randn_like(x) if residual else None, act)
        y = plain.closed_form(x, weight, bias, groups, 1e-5, statistics, tail)[0]
    assert y.shape == x.shape
    return witness.wrong


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_right_kernels(dtype: torch.dtype, layout: torch.memory_format) -> None:
    for mean in (0, 1, 100, 1e4):
        for shape in ((3, 8, 7, 5), (2, 4, 1, 1), (1, 8, 16, 16)):
            x = (torch.randn(shape, dtype=torch.float64) + mean).to(dtype).to(memory_format=layout)
            for act, residual in ((NONE, False), (RELU, True), (GELU, True), (hardtanh(0, 6), False)):
                asked = [0] if shape[0] > 1 else []
                asked += [2] if shape[2] == 1 else [2, 8]
                assert [wrong(x, groups, act, residual=residual) for groups in asked] == [[]] * len(asked)
                assert wrong(x, 0, act, residual=residual, known=True) == []


def test_values_at_the_bend_of_the_activation() -> None:
    """Far from 0 rounding decides for a few of them on which side they are, and so their gradient."""
    for seed in range(100):
        torch.manual_seed(seed)
        x = torch.randn(4, 8, 8, 8) + 1e4
        assert wrong(x, (0, 2, 8)[seed % 3], (RELU, hardtanh())[seed % 2]) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_that_hardly_vary(dtype: torch.dtype) -> None:
    for groups in (0, 2, 8):
        for spread in (0, 1e-13, 1e-7, 1e-5):
            x = (0.3 + spread * torch.randn(2, 8, 16, 16, dtype=torch.float64)).to(dtype)
            assert [wrong(x, groups, act) for act in (NONE, RELU, GELU)] == [[], [], []]


@pytest.mark.parametrize("groups", [0, 8])
def test_planes_of_equal_values_hide_no_wrong_kernel(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right, backward = kernels.norm, kernels.norm_backward
    flat, x = torch.full((4, 8, 9, 9), 0.3), torch.randn(4, 8, 9, 9)
    x[:, 1:] = 0.3
    monkeypatch.setattr(kernels, "norm", lambda *args: (right(*args)[0] + 1e-3, *right(*args)[1:]))
    assert "the output of a norm" in wrong(flat, groups, NONE)[0]
    monkeypatch.setattr(kernels, "norm", right)
    monkeypatch.setattr(kernels, "norm_backward", lambda *args: (backward(*args)[0] * 1.01, *backward(*args)[1:]))
    assert "the input's gradient" in wrong(x, groups, NONE)[0]


def test_what_infinity_reaches_is_not_compared() -> None:
    x = torch.randn(4, 4, 6, 6)
    x[0, 0, 0, 0] = torch.inf
    assert wrong(x, 4, RELU) == wrong(x, 2, NONE) == []
