"""What every norm promises in mathematics: each entry of NORMS against its naive reference and the common contract."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conformance import (
    SPATIAL,
    SPECS,
    C,
    entry,
    every_norm,
    every_norm_in_both_modes,
    every_plane_norm,
    every_plane_norm_in_both_modes,
    expected,
    feed,
    gradients,
    layouts,
    make,
    run,
    sample,
)
from torch import Tensor
from torch.nn import functional as F

from normwise.layers import NORMS
from normwise.layers.spec import read

REFUSES_PIXELS = [spec for spec in SPECS if "one_pixel_planes" in entry(spec).cannot]


PYTORCHS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "batch": lambda m, x: F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, m.training, 0.0, m.eps),
    "instance": lambda m, x: F.instance_norm(x, None, None, m.weight, m.bias, True, 0.0, m.eps),
    "group": lambda m, x: F.group_norm(x, m.num_groups, m.weight, m.bias, m.eps),
    "layer": lambda m, x: F.group_norm(x, 1, m.weight, m.bias, m.eps),
    "layer-token": lambda m, x: F.layer_norm(x, (C,), m.weight, m.bias, m.eps),
    "channel-layer": lambda m, x: F.layer_norm(x.movedim(1, -1), (C,), m.weight, m.bias, m.eps).movedim(-1, 1),
}


@every_norm_in_both_modes
@pytest.mark.parametrize("rank", SPATIAL)
def test_equals_reference(spec: str, training: bool, rank: int) -> None:
    if rank == 2 and spec in REFUSES_PIXELS:
        pytest.skip(entry(spec).cannot["one_pixel_planes"])
    norm, x = make(spec, training=training), sample(spec, *SPATIAL[rank]).requires_grad_()
    ours, theirs = run(norm, x), expected(norm, x)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, norm, x), gradients(theirs, norm, x))


@every_norm_in_both_modes
def test_first_and_second_derivatives(spec: str, training: bool) -> None:
    norm, x = make(spec, training=training), sample(spec, 3, n=2).requires_grad_()
    names, values = list(dict(norm.named_parameters())), list(norm.parameters())

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(norm, dict(zip(names, parameters, strict=True)), feed(norm, x))

    assert torch.autograd.gradcheck(function, (x, *values))
    assert torch.autograd.gradgradcheck(function, (x, *values), fast_mode=True)


@every_plane_norm_in_both_modes
@pytest.mark.parametrize("affine", [(True, False), (False, False)], ids=["no bias", "no affine"])
def test_without_bias_or_affine(spec: str, training: bool, affine: tuple[bool, bool]) -> None:
    norm = make(spec, training=training, affine=affine[0], bias=affine[1])
    x = sample(spec, 3, 5)
    torch.testing.assert_close(run(norm, x), expected(norm, x))


@every_plane_norm
def test_remembers_the_unbiased_batch(spec: str) -> None:
    norm, x = make(spec), sample(spec, 3, 5)
    if not read(norm).track_running_stats:  # pyright: ignore[reportOptionalMemberAccess]
        pytest.skip("remembers nothing")
    mean, var, *_ = norm.memory()
    before = mean.clone(), var.clone()
    run(norm, x)
    values = x.transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, 0.9 * before[0] + 0.1 * values.mean(1))
    torch.testing.assert_close(var, 0.9 * before[1] + 0.1 * values.var(1))


@every_plane_norm_in_both_modes
@pytest.mark.parametrize("spatial", [(3, 5), (2, 3, 4)], ids=["2d", "3d"])
def test_keeps_channels_last(spec: str, training: bool, spatial: tuple[int, ...]) -> None:
    norm = make(spec, torch.float32, training)
    last = torch.channels_last if len(spatial) == 2 else torch.channels_last_3d
    x = sample(spec, *spatial, dtype=torch.float32)
    y = run(norm, x.to(memory_format=last))
    assert y.is_contiguous(memory_format=last)
    torch.testing.assert_close(y, run(norm, x), rtol=1e-4, atol=1e-5)


@every_norm_in_both_modes
def test_one_instance(spec: str, training: bool) -> None:
    norm, x = make(spec, training=training), sample(spec, 3, 5, n=1)
    torch.testing.assert_close(run(norm, x), expected(norm, x))


@every_norm_in_both_modes
def test_inference_mode_with_gradients_switched_on(spec: str, training: bool) -> None:
    """Where no node can keep a tensor of the inference mode, whatever the gradients' switch says."""
    norm, x = make(spec, torch.float32, training), sample(spec, 32, 40, dtype=torch.float32)
    again = copy.deepcopy(norm)
    with torch.no_grad():
        want = run(again, x)
    with torch.inference_mode(), torch.enable_grad():
        torch.testing.assert_close(run(norm, x.clone()), want)


@every_norm_in_both_modes
@pytest.mark.parametrize(("n", "height"), [(0, 3), (2, 0)], ids=["no instance", "no position"])
@pytest.mark.parametrize("way", ["plainly", "differentiable again", "torch.func"])
def test_no_value(spec: str, training: bool, n: int, height: int, way: str) -> None:
    """A batch without values gives an empty output and gradients of 0, and teaches nothing."""
    norm, x = make(spec, training=training), sample(spec, height, 5, n=n)
    names, values = list(dict(norm.named_parameters())), list(norm.parameters())
    before = {name: t.clone() for name, t in norm.named_buffers()}

    def total(x: Tensor, *parameters: Tensor) -> Tensor:
        y = torch.func.functional_call(norm, dict(zip(names, parameters, strict=True)), feed(norm, x))
        assert y.shape == x.shape
        return y.sum()

    if way == "torch.func":
        grads = torch.func.grad(total, tuple(range(1 + len(values))))(x, *values)
    else:
        again, given = way == "differentiable again", [x.requires_grad_(), *values]
        grads = torch.autograd.grad(total(*given), given, allow_unused=True, create_graph=again)
    assert all(g is None or not g.any() for g in grads)
    torch.testing.assert_close(dict(norm.named_buffers()), before, rtol=0, atol=0)


@every_plane_norm_in_both_modes
def test_one_pixel_planes(spec: str, training: bool) -> None:
    norm, x = make(spec, training=training), sample(spec, 1, 1)
    torch.testing.assert_close(run(norm, x), expected(norm, x))


@pytest.mark.parametrize("spec", [spec for spec in REFUSES_PIXELS if spec in NORMS])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_refuses_one_pixel_planes(spec: str, training: bool) -> None:
    with pytest.raises(ValueError, match="every statistic needs at least 2 values"):
        run(make(spec, training=training), sample(spec, 1, 1))


@every_norm_in_both_modes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_in_half_out_float32_inside(spec: str, training: bool, dtype: torch.dtype) -> None:
    norm, x = make(spec, dtype, training), sample(spec, 8, 8, dtype=dtype).requires_grad_()
    y = run(norm, x)
    assert y.dtype == dtype
    inside = {name: t.dtype for name, t in norm.named_buffers() if t.is_floating_point()}
    assert set(inside.values()) <= {torch.float32}
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), expected(norm, x), rtol=2 * step, atol=2 * step)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


@every_plane_norm
@layouts
@pytest.mark.parametrize(
    ("dtype", "ratio"),
    [(torch.float32, ratio) for ratio in (0, 1, 1e2, 1e3, 1e4)] + [(torch.bfloat16, ratio) for ratio in (0, 1e2)],
    ids=str,
)
def test_large_mean(spec: str, layout: torch.memory_format, dtype: torch.dtype, ratio: float) -> None:
    """The mean is `ratio` standard deviations: float32 itself leaves an error of about ratio * 1e-7."""
    norm = make(spec, torch.float32)
    x = (torch.randn(4, C, 16, 16) + ratio).to(dtype).contiguous(memory_format=layout).requires_grad_()
    if hasattr(norm, "threshold"):
        norm.threshold.data.fill_(-1e5)  # rounding decides on which side of a kink a value falls
    if entry(spec).axes == ("C",):
        ratio /= float(x.detach().double().std(1).min().clamp(0.01, 1))  # of 4 values, which may lie close together
    y, naive = run(norm, x), expected(norm, x)
    step = torch.finfo(dtype).eps
    scale = max(1.0, float(naive.detach().abs().max()))
    assert float((y - naive).detach().abs().max()) < scale * (step + 4e-7 * (3 + ratio))
    ours, theirs = (gradients(z.double(), norm, x)[0].double() for z in (y, naive))
    assert float((ours - theirs).abs().max()) <= float(theirs.abs().max()) * (2 * step + 4e-7 * (10 + ratio))


@every_norm_in_both_modes
def test_float32_is_as_exact_as_it_can_be(spec: str, training: bool) -> None:
    norm, x = make(spec, torch.float32, training), sample(spec, 8, 8, dtype=torch.float32)
    y, exact = run(norm, x).detach().double(), expected(norm, x).detach()
    assert float((y - exact).abs().max()) <= 2e-6 * float(exact.abs().max())
    theirs = PYTORCHS.get(spec)
    if theirs is not None:
        error = (theirs(norm, x).double() - exact).abs().max()
        assert (y - exact).abs().max() <= 2 * error.clamp(min=1e-7)


@every_norm_in_both_modes
def test_an_instance_and_its_neighbours(spec: str, training: bool) -> None:
    """In evaluation no norm looks at the neighbours; in training those that pool over N do."""
    norm, x = make(spec, training=training), sample(spec, 3, 5)
    other = torch.cat([x[:1], sample(spec, 3, 5)[1:]])
    alone = torch.allclose(run(norm, x)[0], run(norm, other)[0], rtol=0, atol=1e-12)
    assert alone == (not training or not any("N" in axes.split(",") for axes in entry(spec).axes))


@every_norm_in_both_modes
def test_order_of_instances(spec: str, training: bool) -> None:
    norm, x = make(spec, training=training), sample(spec, 3, 5)
    order = torch.randperm(len(x))
    torch.testing.assert_close(run(norm, x[order]), run(norm, x)[order])


@every_plane_norm_in_both_modes
def test_order_of_positions(spec: str, training: bool) -> None:
    norm, x = make(spec, training=training), sample(spec, 7)
    order = torch.randperm(7)
    torch.testing.assert_close(run(norm, x[..., order]), run(norm, x)[..., order])


@every_norm
def test_a_constant_added_everywhere_changes_nothing(spec: str) -> None:
    norm, x = make(spec), sample(spec, 3, 5)
    torch.testing.assert_close(run(norm, x + 5), run(norm, x))


@every_plane_norm
def test_wrong_input(spec: str) -> None:
    norm = make(spec)
    _, *given = feed(norm, sample(spec, 3, n=2))
    with pytest.raises(ValueError, match=r"4 channels on axis 1, got shape \(2, 5, 3\).*num_features=5"):
        norm(torch.randn(2, 5, 3), *given)
    with pytest.raises(ValueError, match="floating point, got torch"):
        norm(torch.ones(2, C, 3, dtype=torch.int64), *given)
    with pytest.raises(ValueError, match=r"shape \(N, C, \*spatial\), got \(4,\)"):
        norm(torch.randn(4), *given)
