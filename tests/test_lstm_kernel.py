"""The LSTM with layer norm by its kernel, against the loop of operators that it stands for."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normwise as nw
from normwise import kernels
from normwise.layers import lstm_kernel

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")
OPS: Any = torch.ops.normwise
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-13}


def made(features: int, size: int, dtype: torch.dtype = torch.float32, **options: Any) -> nw.LSTM:
    torch.manual_seed(0)
    layer = nw.LSTM(features, size, norm="layer", dtype=dtype, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def everything(layer: nw.LSTM, x: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
    """Output and last states, with and without gradients recorded, and all gradients."""
    torch.manual_seed(1)
    shape = 1, x.shape[1], layer.hidden_size
    x, h, c = (t.clone().requires_grad_() for t in (x, torch.randn(shape).to(x), torch.randn(shape).to(x)))
    output, (end_h, end_c) = layer(x, (h, c), lengths)
    with torch.no_grad():
        again, (again_h, again_c) = layer(x, (h, c), lengths)
    loss = (output * torch.randn(output.shape).to(x)).sum() + end_h.sum() + (end_c**2).sum()
    grads = torch.autograd.grad(loss, [x, h, c, *layer.parameters()])
    return [t.detach() for t in (output, end_h, end_c, again, again_h, again_c, *grads)]


def agree(got: list[Tensor], want: list[Tensor], tolerance: float) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sizes", [(5, 4, 3, 6), (3, 1, 2, 1), (1, 9, 3, 33), (7, 6, 5, 64), (20, 33, 8, 100)], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_it_is_the_loop(dtype, sizes, threads, monkeypatch):
    steps, batch, features, size = sizes
    layer, x = made(features, size, dtype), torch.randn(steps, batch, features, dtype=dtype)
    lengths = torch.arange(batch) % steps + 1
    try:
        torch.set_num_threads(threads)
        native = everything(layer, x), everything(layer, x, lengths)
    finally:
        torch.set_num_threads(1)
    monkeypatch.setattr(lstm_kernel, "serves", lambda *_: False)
    agree(native[0], everything(layer, x), TOLERANCE[dtype])
    agree(native[1], everything(layer, x, lengths), TOLERANCE[dtype])


def test_inference_mode_with_gradients_switched_on() -> None:
    layer, x = made(5, 8), torch.randn(4, 3, 5)
    with torch.inference_mode(), torch.enable_grad():
        found = layer(x)[0]
    assert torch.equal(found, layer(x)[0])


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_small_outputs_keep_their_digits(scale: float) -> None:
    layer, x = made(5, 64), torch.randn(20, 4, 5)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "_c_" in name:
                parameter.mul_(scale)
        got, want = layer(x)[0], layer.double()(x.double())[0]
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("width", [16, 32])
def test_narrower_vectors_compute_the_same(width):
    # the width is chosen once a process; the environment narrows it
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "it_is_the_loop"]
    environment = os.environ | {"NORMWISE_VECTOR_BYTES": str(width)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_who_takes_it_and_who_does_not(monkeypatch):
    taken: list[bool] = []
    native = lstm_kernel.lstm
    monkeypatch.setattr(lstm_kernel, "lstm", lambda *args: taken.append(True) or native(*args))
    x = torch.randn(3, 4, 5)
    made(5, 6)(x)
    made(5, 6, num_layers=2, bidirectional=True)(x)
    assert len(taken) == 5
    for layer, given in [
        (made(5, 6, bias=False), x),
        (made(5, 6).bfloat16(), x.bfloat16()),
        (nw.LSTM(5, 6, norm="batch"), x),
        (made(5, 6), x[:, :0]),
    ]:
        assert layer(given)[0].shape == (3, given.shape[1], 6)
    assert len(taken) == 5


def test_far_values_stay_finite_and_a_bad_sequence_by_itself():
    layer, x = made(5, 6), torch.randn(4, 3, 5)
    with torch.no_grad():
        layer.get_parameter("norm_ih_l0").mul_(1e4)
    for t in everything(layer, x):
        assert t.isfinite().all()
    x[1, 1] = float("nan")
    output = layer(x)[0]
    assert output[:, [0, 2]].isfinite().all()
    assert output[0, 1].isfinite().all()
    assert output[1:, 1].isnan().all()


def test_a_checkpoint_gives_the_same_gradient():
    layer, x = made(5, 6), torch.randn(4, 3, 5)
    for reentrant in (False, True):
        found = []
        for run in (
            lambda x: layer(x)[0],
            lambda x, r=reentrant: checkpoint(lambda y: layer(y)[0], x, use_reentrant=r),
        ):
            leaf = x.clone().requires_grad_()
            layer.zero_grad()
            run(leaf).square().sum().backward()
            found.append([leaf.grad, *(p.grad for p in layer.parameters())])
        torch.testing.assert_close(*found)


def test_many_gradients_at_once():
    layer, x = made(5, 6, torch.float64), torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    wanted, y = (x, *layer.parameters()), layer(x)[0]
    many = torch.randn(3, *y.shape, dtype=y.dtype)
    found = torch.autograd.grad(y, wanted, many, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, wanted, one, retain_graph=True) for one in many]
    torch.testing.assert_close(found, tuple(torch.stack(t) for t in zip(*each, strict=True)))


def arguments(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    shapes = (5, 3, 24), (3, 6), (3, 6), (24, 6), (24,), (6,), (6,)
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def test_opcheck():
    given, lengths = arguments(), torch.tensor([5, 1, 3])
    for chosen, keep in ((None, True), (lengths, True), (None, False)):
        torch.library.opcheck(OPS.lstm.default, (*given, chosen, 1e-5, keep))
    output, *saved = OPS.lstm(*given, lengths, 1e-5, True)
    g = torch.randn_like(output), torch.randn(3, 6)
    torch.library.opcheck(OPS.lstm_backward.default, (*g, *given[1:], lengths, *saved))


def test_refusals_say_what_was_wrong():
    given = arguments()

    def refused(place: int, wrong: Tensor, words: str) -> None:
        changed = [wrong if i == place else t for i, t in enumerate(given)]
        with pytest.raises(RuntimeError, match=words):
            OPS.lstm(*changed, None, 1e-5, True)

    refused(0, torch.randn(5, 3, 23), r"the inputs must be \(T, N, 4H\)")
    refused(1, torch.randn(3, 7), "h has the wrong shape for 3 sequences of 5 steps with 24 gates")
    refused(3, torch.randn(6, 24).t(), "weight must be dense, on the CPU and of the dtype of the inputs")
    refused(4, torch.randn(24, dtype=torch.float64), "norm must be dense, on the CPU and of the dtype")
    with pytest.raises(RuntimeError, match="the dtype must be float32 or float64"):
        OPS.lstm(*arguments(torch.bfloat16), None, 1e-5, True)
    with pytest.raises(RuntimeError, match="lengths must be 3 numbers of int64 on the CPU"):
        OPS.lstm(*given, torch.ones(3), 1e-5, True)
