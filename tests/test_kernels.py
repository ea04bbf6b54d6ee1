"""The native kernels against naive arithmetic in float64: layouts, dtypes, ranks, activations, edge cases."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from normwise import kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")

ACTS = {
    "none": (kernels.NONE, lambda p: p),
    "relu": (kernels.RELU, F.relu),
    "relu6": (kernels.hardtanh(0, 6), F.relu6),
    "leaky": (kernels.leaky_relu(0.1), lambda p: F.leaky_relu(p, 0.1)),
    "silu": (kernels.SILU, F.silu),
    "gelu": (kernels.GELU, F.gelu),
}
SHAPES = [(4, 6, 5, 7), (2, 16, 8, 8), (5, 6, 3), (2, 12, 3, 4, 5), (6, 10), (3, 4, 1, 1), (7, 1, 9, 9),
          (2, 600, 6, 6), (1, 4, 300, 300), (3, 34, 40, 41)]  # fmt: skip
LAYOUTS = ["contiguous", "channels last", "sliced", "sliced channels last", "transposed", "expanded"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def make(shape: tuple[int, ...], layout: str, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """A tensor of normal numbers around 1, in one of the layouts."""
    torch.manual_seed(seed)
    n, c, *sides = shape
    if layout == "expanded":
        return (torch.randn(n, c, *sides[:-1], 1) + 1).to(dtype).expand(shape) if sides else make(shape, "", dtype)
    if layout == "transposed":
        return (torch.randn(*reversed(shape)) + 1).to(dtype).permute(*reversed(range(len(shape))))
    if "channels last" in layout:
        wide = 2 * c if "sliced" in layout else c
        return (torch.randn(n, *sides, wide) + 1).to(dtype).movedim(-1, 1)[:, wide - c :]
    return (
        (torch.randn(n, c + 3, *sides) + 1).to(dtype)[:, 2 : c + 2]
        if layout == "sliced"
        else (torch.randn(shape) + 1).to(dtype)
    )


def naive(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Group norm, or batch norm for 0 groups, in the dtype it is given."""
    n, c = x.shape[:2]
    z = x.reshape(n, c, -1).transpose(0, 1).reshape(1, c, -1) if groups == 0 else x.reshape(n, groups, -1)
    mean = z.mean(2, keepdim=True)
    var = ((z - mean) ** 2).mean(2, keepdim=True)
    z = (z - mean) / (var + eps).sqrt()
    z = z.reshape(c, n, -1).transpose(0, 1) if groups == 0 else z
    y = z.reshape(n, c, -1) * weight[:, None] + bias[:, None]
    return y.reshape(x.shape), mean.flatten(), var.flatten()


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
    torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance * scale)


def check(shape: tuple[int, ...], layout: str, dtype: torch.dtype, groups: int, act: str, residual: bool) -> None:
    """Forward and backward of one closed form against autograd of the naive one."""
    x, g = make(shape, layout, dtype), make(shape, layout, dtype, seed=1)
    r = make(shape, layout, dtype, seed=2) if residual else None
    weight, bias = torch.rand(shape[1]) + 0.5, torch.randn(shape[1])
    code, function = ACTS[act]
    y, mean, var = kernels.norm(x, weight, bias, groups, 0.1, residual=r, act=code)
    leaves = [t.double().detach().clone().requires_grad_() for t in (x, weight, bias)]
    pre, want_mean, want_var = naive(leaves[0], leaves[1], leaves[2], groups, 0.1)
    rest = [] if r is None else [r.double().clone().requires_grad_()]
    want = function(pre + rest[0] if rest else pre)
    grads = torch.autograd.grad(want, [*leaves, *rest], g.double())
    tolerance = TOLERANCE[dtype]
    close(y, want.detach(), tolerance)
    exact = max(tolerance, TOLERANCE[torch.float32]) if dtype != torch.float64 else tolerance
    close(mean.flatten(), want_mean.detach(), exact)
    close(var.flatten(), want_var.detach(), exact)
    extra = None if r is None or act == "none" else y if code.output_tells else r
    dx, dw, db, dr, _ = kernels.norm_backward(g, x, mean, var, weight, bias, groups, 0.1, extra, code)
    for got, grad in zip((dx, dw, db), grads[:3], strict=True):
        close(got, grad, 4 * tolerance)
    if extra is not None:
        close(dr, grads[3], 4 * tolerance)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_closed_forms_in_float32(shape, act):
    for layout, residual in itertools.product(["contiguous", "channels last"], [False, True]):
        for groups in {0, 1, shape[1], 2 if shape[1] % 2 == 0 else 1}:
            check(shape, layout, torch.float32, groups, act, residual)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 6, 5, 7), (2, 12, 3, 4, 5), (5, 6, 9), (6, 10)], ids=str)
def test_any_layout_is_understood(shape, layout):
    for groups, residual in itertools.product((0, 2), (False, True)):
        check(shape, layout, torch.float32, groups, "relu", residual)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes(dtype):
    # what clips at 6 is left out: near 6 a half-precision output does not tell which side it came from
    acts = ACTS if dtype == torch.float64 else [act for act in ACTS if act != "relu6"]
    for layout, act, groups in itertools.product(["contiguous", "channels last"], acts, (0, 2)):
        check((3, 34, 9, 13), layout, dtype, groups, act, residual=False)
        check((3, 34, 9, 13), layout, dtype, groups, act, residual=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "sliced"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_four_kernels_compose(shape, layout):
    x, g, r = (make(shape, layout, torch.float32, seed) for seed in range(3))
    table = [torch.randn(shape[:2]) for _ in range(5)]
    center, scale, shift, slope, offset = table
    wide = [t.double().reshape(*shape[:2], *[1] * (x.dim() - 2)) for t in table]
    mean, var = kernels.moments(x)
    spatial = tuple(range(2, x.dim()))
    want = torch.var_mean(x.double(), spatial, correction=0) if spatial else (torch.zeros(shape), x.double())
    close(mean, want[1], 2e-6)
    close(var, want[0].double(), 2e-6)
    pre = (x.double() - wide[0]) * wide[1] + wide[2] + r.double()
    close(kernels.scale_shift(x, scale, shift, center, r, kernels.RELU), pre.clamp(min=0), 2e-6)
    gate = g.double() * (pre > 0)
    y = pre.clamp(min=0).float()
    sums, products = kernels.reduce_grad(g, x, center, scale, shift, y, kernels.RELU)
    close(sums, gate.sum(spatial) if spatial else gate, 1e-5)
    deviation = x.double() - wide[0]
    close(products, (gate * deviation).sum(spatial) if spatial else gate * deviation, 1e-5)
    dx, dr = kernels.apply_grad(g, x, scale, slope, offset, center, shift, y, kernels.RELU)
    close(dx, wide[1] * gate + wide[3] * deviation + wide[4], 4e-6)
    close(dr, gate, 2e-6)


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_a_floor_shares_the_gradient_of_equals_and_hides_no_nan(layout):
    nan = float("nan")
    x, floor = make((2, 5, 4, 4), layout, torch.float32) * 0 + 1, torch.tensor([0.0, 1.0, 2.0, nan, -float("inf")])
    x[1, 0, 2, 2] = nan
    given, g = (torch.zeros(5), torch.ones(5)), torch.randn(2, 5, 4, 4)  # statistics that change nothing
    y, *_ = kernels.norm(x, None, None, 0, 0.0, given, floor=floor)
    torch.testing.assert_close(y, torch.maximum(x, floor.reshape(-1, 1, 1)), equal_nan=True)
    _, _, sums, _, floored = kernels.norm_backward(g, x, *given, None, None, 0, 0.0, fixed=True, floor=floor)
    total = g.sum((0, 2, 3))
    torch.testing.assert_close(sums[1:3], total[1:3] * torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(floored[1:3], total[1:3] * torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(sums[4], total[4])


def about_zero(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Divides by the root mean square of each pool, eps 0.1; also the mean squares."""
    n, c, *sides = x.shape
    pools = x.reshape(1, n, c, 1, -1) if groups == 0 else x.reshape(n, 1, groups, c // groups, -1)
    square = (pools**2).mean((1, 3, 4), keepdim=True)
    y = (pools / (square + 0.1).sqrt()).reshape(x.shape)
    weight, bias = (t.reshape(-1, *[1] * len(sides)) for t in (weight, bias))
    return y * weight + bias, square.flatten()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(3, 34, 9, 13), (2, 6, 4, 3, 5), (6, 10), (5, 4, 20, 20)], ids=str)
def test_norms_about_zero_with_a_floor(shape, dtype, layout):
    x, g = make(shape, layout, dtype), make(shape, layout, dtype, seed=1)
    tolerance, tables = TOLERANCE[dtype], torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias, floor = (torch.randn(shape[1], dtype=tables) for _ in range(3))
    for groups in (0, 2, shape[1]):
        kind = {"floor": floor, "about_zero": True}
        y, mean, square = kernels.norm(x, weight, bias, groups, 0.1, **kind)
        leaves = [t.double().detach().clone().requires_grad_() for t in (x, weight, bias, floor)]
        pre, want_square = about_zero(leaves[0], leaves[1], leaves[2], groups)
        want = torch.maximum(pre, leaves[3].reshape(-1, *[1] * (x.dim() - 2)))
        close(y, want.detach(), tolerance)
        close(square.flatten(), want_square.detach(), max(tolerance, 2e-6) if tables != torch.float64 else tolerance)
        assert not mean.any()
        dx, dw, db, nothing, dfloor = kernels.norm_backward(g, x, mean, square, weight, bias, groups, 0.1, **kind)
        for got, grad in zip((dx, dw, db, dfloor), torch.autograd.grad(want, leaves, g.double()), strict=True):
            close(got, grad, 4 * tolerance)
        assert nothing.numel() == 0


def test_one_row_of_coefficients_serves_all_instances():
    x = make((3, 5, 4, 4), "contiguous", torch.float32)
    scale, shift = torch.randn(5), torch.randn(1, 5)
    want = x * scale[:, None, None] + shift[0, :, None, None]
    torch.testing.assert_close(kernels.scale_shift(x, scale, shift), want)


def test_given_statistics_are_used_and_not_returned():
    x, g = make((3, 5, 4, 4), "channels last", torch.float32), torch.randn(3, 5, 4, 4)
    mean, var, weight, bias = torch.randn(5), torch.rand(5) + 1, torch.randn(5), torch.randn(5)
    y, *found = kernels.norm(x, weight, bias, 0, 1e-5, statistics=(mean, var))
    leaf = x.clone().requires_grad_()
    want = F.batch_norm(leaf, mean, var, weight, bias)
    want.backward(g)
    torch.testing.assert_close(y, want.detach())
    assert [t.numel() for t in found] == [0, 0]
    dx, *_ = kernels.norm_backward(g, x, mean, var, weight, bias, 0, 1e-5, fixed=True)
    torch.testing.assert_close(dx, leaf.grad)


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("ratio", [0, 1, 1e2, 1e3, 1e4])
def test_a_large_mean_costs_no_more_digits_than_in_pytorch(layout, ratio):
    x = (make((4, 32, 24, 24), layout, torch.float32) - 1 + ratio).to(memory_format=torch.preserve_format)
    for groups in (0, 4, 32):
        y = kernels.norm(x, None, None, groups, 1e-5)[0]
        one, zero = torch.ones(32, dtype=torch.float64), torch.zeros(32, dtype=torch.float64)
        want = naive(x.double(), one, zero, groups, 1e-5)[0]
        dense = x.contiguous()
        theirs = F.batch_norm(dense, None, None, training=True) if groups == 0 else F.group_norm(dense, groups)
        assert (y - want).abs().max() <= 2 * (theirs - want).abs().max() + 1e-6


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("ratio", [0, 1, 1e2, 1e4])
def test_a_mean_square_has_all_digits_whatever_the_mean(layout, ratio):
    x = make((4, 32, 24, 24), layout, torch.float32) - 1 + ratio
    for groups in (0, 4, 32):
        y, _, square = kernels.norm(x, None, None, groups, 0.1, about_zero=True)
        want, squares = about_zero(x.double(), torch.ones(32), torch.zeros(32), groups)
        assert ((square.double().flatten() - squares) / squares).abs().max() < 5e-7
        assert ((y - want) / want.abs().max()).abs().max() < 4e-7


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_inf_and_nan_stay_in_their_sample(layout, bad):
    x = make((4, 6, 9, 9), layout, torch.float32)
    x[1, 2, 3, 3] = bad
    y, mean, var = kernels.norm(x, None, None, 6, 1e-5)
    dx, *_ = kernels.norm_backward(torch.ones_like(x), x, mean, var, None, None, 6, 1e-5)
    clean = torch.ones(4, 6, dtype=torch.bool)
    clean[1, 2] = False
    for t in (y, dx):
        assert torch.equal(t.isfinite().all((2, 3)), clean)
        assert not t[1, 2].isfinite().any()


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_constant_planes_give_the_bias_exactly(layout):
    x = make((4, 6, 40, 40), layout, torch.float32) * 0 + 1234.567
    for groups in (0, 2, 6):
        y, _, var = kernels.norm(x, torch.rand(6), torch.arange(6.0), groups, 1e-5)
        assert torch.equal(var, torch.zeros_like(var))
        assert torch.equal(y, torch.arange(6.0).reshape(1, 6, 1, 1).expand_as(y))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_was_clipped_has_no_gradient_though_the_bound_is_rounded(dtype):
    low, high = torch.tensor([-0.3, 0.7], dtype=dtype)  # neither is -0.3 or 0.7
    act, ones = kernels.hardtanh(-0.3, 0.7), torch.ones(4, 8, 5, 6, dtype=dtype)
    x, residual = torch.randn(2, *ones.shape).to(dtype)
    y, mean, var = kernels.norm(x, None, None, 8, 1e-5, residual=residual, act=act)
    behind = kernels.norm_backward(ones, x, mean, var, None, None, 8, 1e-5, y, act)[3]
    assert 0 < int((y == high).sum()) < y.numel()
    assert torch.equal(behind, ((y > low) & (y < high)).to(dtype))


def test_gelu_is_zero_far_to_the_left():
    x = torch.tensor([-1e4, -100.0, -10.0, -6.0]).expand(4, 20, 4).transpose(1, 2)
    y = kernels.scale_shift(x, torch.ones(4), torch.zeros(4), act=kernels.GELU)
    assert y.abs().max() < 1e-8


def test_an_outlier_at_the_start_does_not_spoil_the_variance():
    x = torch.randn(1, 2, 8192)
    x[:, :, 0] = 1e6
    for layout in (x, x.transpose(1, 2).contiguous().transpose(1, 2)):
        _, var = kernels.moments(layout)
        torch.testing.assert_close(var.double(), x.double().var(2, correction=0), rtol=2e-5, atol=0)


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3), (0, 4)], ids=str)
def test_nothing_in_nothing_out(shape):
    x = torch.empty(shape)
    y, mean, var = kernels.norm(x, None, None, 0, 1e-5)
    assert y.shape == x.shape
    assert mean.isnan().all()
    dx, dw, db, *_ = kernels.norm_backward(x, x, mean, var, None, None, 0, 1e-5)
    assert dx.shape == x.shape
    assert torch.equal(torch.stack([dw, db]), torch.zeros(2, 4))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_is_laid_out_like_the_input(layout):
    x = make((4, 6, 5, 7), layout, torch.float32)
    y = kernels.norm(x, None, None, 2, 1e-5)[0]
    last = "channels last" in layout
    assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    x, g = make((4, 6, 5, 7), layout, torch.float32), make((4, 6, 5, 7), layout, torch.float32, seed=1)
    table = torch.randn(4, 6)
    ops, none = torch.ops.normwise, tuple(kernels.NONE)
    act = tuple(kernels.RELU)
    y, mean, var = ops.norm(x, None, None, None, None, g, 2, 1e-5, *act)
    for op, args in [
        (ops.moments, (x,)),
        (ops.scale_shift, (x, table, table, None, g, *act)),
        (ops.reduce_grad, (g, x, table, None, None, None, *none)),
        (ops.apply_grad, (g, x, table, table, table, None, None, y, *act)),
        (ops.norm, (x, None, None, None, None, g, 2, 1e-5, *act)),
        (ops.norm, (x, table[0], None, table[1], table[2].abs(), None, 0, 1e-5, *none)),
        (ops.norm_backward, (g, x, mean, var, None, None, y, 2, 1e-5, *act, False, True)),
        (ops.norm_backward, (g, x, mean, var, None, None, None, 2, 1e-5, *none, False, False)),
        (ops.norm, (x, None, None, None, None, None, 2, 1e-5, 5, 0.0, 0.0, table[0], True)),
        (ops.norm_backward, (g, x, mean, var, None, None, None, 2, 1e-5, 5, 0.0, 0.0, False, True, table[0], True)),
    ]:
        torch.library.opcheck(op.default, args)


def test_refusals_say_what_was_wrong():
    x = torch.randn(2, 6, 4, 4)
    with pytest.raises(RuntimeError, match="6 channels cannot be split into 4 groups"):
        kernels.norm(x, None, None, 4, 1e-5)
    with pytest.raises(RuntimeError, match="weight must have 6 values, got 5"):
        kernels.norm(x, torch.ones(5), None, 2, 1e-5)
    with pytest.raises(RuntimeError, match="residual must have the shape of the input"):
        kernels.norm(x, None, None, 2, 1e-5, residual=x[:1])
    with pytest.raises(RuntimeError, match="must be float32, float64, bfloat16 or float16"):
        kernels.moments(x.int())
    with pytest.raises(RuntimeError, match=r"must be \(N, C, \*spatial\), got 1 dimensions"):
        kernels.moments(x[0, 0, 0])
    mean = var = torch.ones(2, 2)
    with pytest.raises(RuntimeError, match=r"extra needs an activation; without one .* so leave extra out"):
        kernels.norm_backward(x, x, mean, var, None, None, 2, 1e-5, extra=x)
    with pytest.raises(RuntimeError, match="extra must have the shape of the input"):
        kernels.norm_backward(x, x, mean, var, None, None, 2, 1e-5, extra=x[:1], act=kernels.RELU)
    with pytest.raises(RuntimeError, match="floor must have 6 values, got 5"):
        kernels.norm(x, None, None, 2, 1e-5, floor=torch.ones(5))
    with pytest.raises(RuntimeError, match="a floor comes with activation 5, got 0"):
        torch.ops.normwise.norm(x, None, None, None, None, None, 2, 1e-5, *kernels.NONE, torch.ones(6))
    with pytest.raises(ValueError, match=r"at least 0, got -0\.1; use the reference"):
        kernels.leaky_relu(-0.1)


def test_kernels_older_than_the_code_are_left_alone(monkeypatch):
    monkeypatch.setattr(kernels, "_OPS", SimpleNamespace(norm=None, moments=None))
    with pytest.warns(UserWarning, match="kernels are older than the code .no scale_shift.*build them anew"):
        assert not kernels._load()


def test_kernels_that_cannot_be_loaded_are_told(monkeypatch, tmp_path):
    (tmp_path / "_C.abi3.so").write_text("half a download")
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "kernels.py"))
    with pytest.warns(UserWarning, match=r"kernels cannot be loaded .*_C\.abi3\.so.*; build them anew: pip install"):
        assert not kernels._load()
