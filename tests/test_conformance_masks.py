"""What every norm promises under a mask: padding has no influence on an output, a gradient or what is remembered."""

import copy

import pytest
import torch
from conformance import (
    every_plane_norm,
    every_plane_norm_in_both_modes,
    expected,
    feed,
    gradients,
    lengths,
    make,
    run,
    sample,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from normwise.layers.spec import build


@every_plane_norm_in_both_modes
def test_mask_equals_the_unpadded_result(spec: str, training: bool) -> None:
    norm, x = make(spec, training=training), sample(spec, 7, n=4)
    mask = lengths(x, 7, 4, 2, 0)
    padded = x.masked_fill(~mask[:, None], float("nan")).requires_grad_()
    ours, theirs = run(norm, padded, mask), expected(norm, x, mask)
    torch.testing.assert_close(ours, theirs)
    x.requires_grad_()
    theirs = expected(norm, x, mask)
    torch.testing.assert_close(gradients(ours, norm, padded), gradients(theirs, norm, x))


@every_plane_norm
def test_mask_has_first_and_second_derivatives(spec: str) -> None:
    norm, x = make(spec), sample(spec, 4, n=2).requires_grad_()
    mask = lengths(x, 4, 2)
    assert torch.autograd.gradcheck(lambda x: run(norm, x, mask), (x,))
    assert torch.autograd.gradgradcheck(lambda x: run(norm, x, mask), (x,), fast_mode=True)


@every_plane_norm_in_both_modes
def test_mask_of_valid_values_only(spec: str, training: bool) -> None:
    norm, x = make(spec, training=training), sample(spec, 3, 5)
    before = copy.deepcopy(norm)
    torch.testing.assert_close(run(norm, x, torch.ones(6, 3, 5, dtype=torch.bool)), run(before, x))
    torch.testing.assert_close(norm.state_dict(), before.state_dict())


@every_plane_norm_in_both_modes
def test_mask_over_no_position(spec: str, training: bool) -> None:
    norm, x = make(spec, training=training), sample(spec, 0, 5, n=2).requires_grad_()
    before = {name: t.clone() for name, t in norm.named_buffers()}
    y = run(norm, x, torch.ones(2, 0, 5, dtype=torch.bool))
    assert y.shape == x.shape
    grads = torch.autograd.grad(y.sum(), [x, *norm.parameters()], allow_unused=True)
    assert all(g is None or not g.any() for g in grads)
    torch.testing.assert_close(dict(norm.named_buffers()), before, rtol=0, atol=0)


@every_plane_norm
@pytest.mark.parametrize(
    "mask", [torch.ones(6, 3, 5), torch.ones(6, 4, 5, dtype=torch.bool)], ids=["not bool", "wrong shape"]
)
def test_mask_that_does_not_fit(spec: str, mask: Tensor) -> None:
    norm = make(spec)
    with pytest.raises(ValueError, match=r"mask must be bool and broadcast to .* = \(6, 3, 5\)"):
        norm(*feed(norm, sample(spec, 3, 5)), mask)


@every_plane_norm
def test_mask_is_exported_with_open_sizes(spec: str) -> None:
    norm, x, mask = make(spec, training=False), sample(spec, 7, n=3), torch.rand(3, 7) < 0.8
    inputs, batch, length = feed(norm, x, mask), torch.export.Dim("n", min=2), torch.export.Dim("length", min=2)
    dynamic = {0: batch, 2: length}, *({0: batch} for _ in inputs[1:-1]), {0: batch, 1: length}
    program = torch.export.export(norm, inputs, dynamic_shapes=dynamic)
    other, mask = sample(spec, 9, n=5), torch.rand(5, 9) < 0.8
    torch.testing.assert_close(program.module()(*feed(norm, other, mask)), run(norm, other, mask))


@every_plane_norm
def test_mask_compiles_as_one_graph(spec: str) -> None:
    torch._dynamo.reset()
    norm, x = make(spec), sample(spec, 7, n=3)
    twin, mask = copy.deepcopy(norm), lengths(x, 7, 4, 2)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*feed(norm, x, mask)), run(norm, x, mask))
    torch.testing.assert_close(twin.state_dict(), norm.state_dict())


@every_plane_norm_in_both_modes
@pytest.mark.parametrize("device", ["meta", "fake"])
def test_mask_of_which_only_the_shape_is_known(spec: str, training: bool, device: str) -> None:
    with FakeTensorMode() if device == "fake" else torch.device("meta"):
        norm, x = build(spec, 4).train(training), torch.randn(6, 4, 3, 5)
        given = feed(norm, x, torch.ones(6, 3, 5, dtype=torch.bool))
        for args in (given, given[:-1]):
            assert norm(*args).shape == x.shape
