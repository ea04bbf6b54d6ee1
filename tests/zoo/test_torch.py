"""The binary that was built with PyTorch 2.13, in PyTorch 2.14: plain norms equal PyTorch's in every form."""

import pytest
import torch
from torch import Tensor, nn

import normwise as nw

pytest.importorskip("torchvision", reason="needs torchvision and timm: run `make test-zoo`")

NORMS = {
    "batch": lambda home: home.BatchNorm2d(16),
    "instance": lambda home: home.InstanceNorm2d(16, affine=True),
    "group": lambda home: home.GroupNorm(4, 16),
}


def test_this_is_another_torch_and_the_same_binary() -> None:
    assert torch.__version__.startswith("2.14.")
    assert nw.backend() == "native"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("norm", NORMS)
def test_outputs_and_gradients_equal_those_of_torch(
    norm: str, dtype: torch.dtype, layout: torch.memory_format, training: bool
) -> None:
    results = []
    for home in (nn, nw):
        torch.manual_seed(0)
        module = NORMS[norm](home).to(dtype).train(training)
        x = torch.randn(4, 16, 24, 24, dtype=dtype).to(memory_format=layout).requires_grad_()
        y, g = module(x), torch.randn(4, 16, 24, 24, dtype=dtype)
        results.append([y, *torch.autograd.grad(y, [x, *module.parameters()], g)])
    for theirs, ours in zip(*results, strict=True):
        close(ours, theirs, {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2}[dtype])


def close(found: Tensor, wanted: Tensor, share: float) -> None:
    assert found.dtype == wanted.dtype
    assert (found - wanted).detach().double().norm() <= share * wanted.detach().double().norm()
