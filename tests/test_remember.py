"""Running statistics moved by the kernel, against the arithmetic in plain PyTorch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from normwise import kernels
from normwise.layers.written import move

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")
OPS: Any = torch.ops.normwise
MOVE: Any = move
BAD = (float("inf"), float("-inf"), float("nan"))


def memory(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, variance, count and the number of batches left out."""
    seen = torch.randint(1, 9, shape[:-1])
    return torch.randn(shape, dtype=dtype), torch.rand(shape, dtype=dtype), seen, torch.zeros((), dtype=torch.int64)


def both(monkeypatch: pytest.MonkeyPatch, given: tuple[Tensor, ...], *batch: Any) -> tuple[list[Tensor], list[Tensor]]:
    """What the memory becomes by the kernel and without it."""
    native, plain = [t.clone() for t in given], [t.clone() for t in given]
    assert kernels.remember(*(t.clone() for t in given), *batch)  # pyright: ignore
    MOVE(*native, *batch[:2], None, batch[2], None)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "remember", lambda *args: False)
        MOVE(*plain, *batch[:2], None, batch[2], None)
    return native, plain


@pytest.mark.parametrize("momentum", [0.1, 0.9, 1.0, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (1, 1), (0, 5)], ids=str)
def test_a_batch_moves_it_as_plain_pytorch_does(monkeypatch, shape, dtype, momentum):
    torch.manual_seed(0)
    batch = torch.randn(shape, dtype=dtype), torch.rand(shape, dtype=dtype), momentum
    native, plain = both(monkeypatch, memory(*shape, dtype=dtype), *batch)
    for found, wanted in zip(native, plain, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_variance_is_made_unbiased_on_the_way(dtype):
    given = memory(3, 5, dtype=dtype)
    new = torch.randn(3, 5, dtype=dtype), torch.rand(3, 5, dtype=dtype)
    found, wanted = [t.clone() for t in given], [t.clone() for t in given]
    assert kernels.remember(*found, *new, 0.1, 8 / 7)  # pyright: ignore
    assert kernels.remember(*wanted, new[0], new[1] * (8 / 7), 0.1)  # pyright: ignore
    torch.testing.assert_close(found, wanted, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0)


@pytest.mark.parametrize("bad", BAD)
def test_only_the_memory_that_met_it_leaves_a_batch_out(monkeypatch, bad):
    torch.manual_seed(0)
    given = memory(3, 5)
    mean, var = torch.randn(3, 5), torch.rand(3, 5)
    mean[1, 2] = bad
    native, plain = both(monkeypatch, given, mean, var, 0.1)
    assert torch.equal(native[0][1], given[0][1])
    assert torch.equal(native[1][1], given[1][1])
    assert (native[2] - given[2]).tolist() == [1, 0, 1]
    assert native[3] == 1
    assert torch.equal(native[2], plain[2])
    assert torch.equal(native[3], plain[3])
    torch.testing.assert_close(native[0], plain[0])


def test_what_the_kernel_cannot_read_is_left_to_pytorch():
    mean, var, seen, skipped = memory(4)
    new = torch.randn(4), torch.rand(4)
    assert not kernels.remember(mean, var, seen, skipped, new[0].double(), new[1].double(), 0.1)
    assert not kernels.remember(mean, var, seen, skipped, torch.randn(8)[::2], new[1], 0.1)
    assert not kernels.remember(mean.to("meta"), var, seen, skipped, *new, 0.1)
    move(mean, var, seen, skipped, new[0].double(), new[1].double(), None, 1.0, None)
    torch.testing.assert_close(mean, new[0])


def test_a_graph_that_kept_the_memory_notices_the_change():
    mean, var, seen, skipped = memory(4)
    x = torch.randn(4, requires_grad=True)
    y = (x * mean).sum()
    move(mean, var, seen, skipped, torch.randn(4), torch.rand(4), None, 0.1, None)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_opcheck():
    for given in (memory(4), memory(2, 3)):
        new = torch.randn_like(given[0]), torch.rand_like(given[0])
        torch.library.opcheck(OPS.remember.default, (*given, *new, 0.1))
        torch.library.opcheck(OPS.remember.default, (*given[:3], None, *new, None, 1.25))


def test_refusals_say_what_was_wrong():
    mean, var, seen, skipped = memory(4)
    with pytest.raises(
        RuntimeError, match="new_var must be dense, on the CPU, with 4 values of the right dtype, got 3"
    ):
        OPS.remember(mean, var, seen, skipped, torch.randn(4), torch.rand(3), 0.1)
    with pytest.raises(RuntimeError, match="4 statistics cannot belong to 3 memories"):
        OPS.remember(mean, var, torch.zeros(3, dtype=torch.int64), skipped, mean, var, 0.1)
