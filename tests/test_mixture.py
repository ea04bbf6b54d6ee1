"""Blends in closed form against naive arithmetic in float64, and against the same rule on the table of moments."""

import itertools
from typing import Any

import pytest
import torch
from test_kernels import ACTS, LAYOUTS, TOLERANCE, close, make
from torch import Tensor

import normwise as nw
from normwise import kernels, ops
from normwise.mixture import Mixture
from normwise.tail import NOTHING, Tail

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")
EPS = 0.1
PARTS = {  # own, pooled, pool, number of pools, extra
    "own": (True, False, None, 1, ""),
    "pooled": (False, True, None, 1, ""),
    "both": (True, True, None, 1, ""),
    "by name": (True, True, [1, 0, 3, 1], 4, ""),
    "renormalized": (False, True, None, 1, "known"),
    "attentive": (True, True, [0, 1, 1, 0], 2, "attention"),
}
Weights = tuple[Tensor | None, Tensor | None, Tensor | None]
Attention = tuple[Tensor | None, Tensor | None]


def weights(name: str, shape: tuple[int, ...], each_plane: bool, dtype: torch.dtype) -> Weights:
    """Own, pooled and bias: positive, zero and negative numbers."""
    own, pooled, *_ = PARTS[name]
    size = shape[:2] if each_plane else shape[1:2]
    tables = [torch.randn(size, dtype=torch.float64).round(decimals=1).to(dtype) for _ in range(3)]
    return tables[0] if own else None, tables[1] if pooled else None, tables[2]


def pool_of(name: str, instances: int) -> tuple[Tensor | None, int]:
    _, _, pool, number, _ = PARTS[name]
    return (None, 1) if pool is None else (torch.tensor((pool * instances)[:instances]), number)


def known_of(name: str, channels: int, dtype: torch.dtype) -> kernels.Known | None:
    if PARTS[name][-1] != "known":
        return None
    mean, var = torch.linspace(-1, 3, channels, dtype=dtype), torch.linspace(0.1, 4, channels, dtype=dtype)
    return kernels.Known(mean, var, 1.5, 0.7)


def attention_of(name: str, channels: int, dtype: torch.dtype) -> Attention:
    if PARTS[name][-1] != "attention":
        return None, None
    return torch.linspace(-2, 3, channels, dtype=dtype), torch.linspace(1, -1, channels, dtype=dtype)


def naive(
    x: Tensor,
    given: Weights,
    pool: Tensor | None = None,
    known: kernels.Known | None = None,
    attention: Attention = (None, None),
) -> Tensor:
    """One plane after the other, from the formula."""
    planes = x.reshape(*x.shape[:2], -1)
    own, pooled, bias = (None if t is None else t.expand(x.shape[:2]) for t in given)
    rows = []
    for n, c in itertools.product(*map(range, x.shape[:2])):
        y, plane = torch.zeros_like(planes[n, c]), planes[n, c]
        if own is not None:
            y = y + own[n, c] * (plane - plane.mean()) / (plane.var(correction=0) + EPS).sqrt()
        if pooled is not None:
            mates = planes[:, c] if pool is None else planes[pool == pool[n], c]
            mean, std = mates.mean(), (mates.var(correction=0) + EPS).sqrt()
            z = (plane - mean) / std
            if known is not None:
                known_std = (known.var[c].double() + EPS).sqrt()
                r = (std / known_std).detach().clamp(1 / known.r_max, known.r_max)
                d = ((mean - known.mean[c].double()) / known_std).detach().clamp(-known.d_max, known.d_max)
                z = z * r + d
            gain, lift = attention
            turned = 1.0 if gain is None or lift is None else torch.sigmoid(gain[c] * plane.mean() + lift[c])
            y = y + pooled[n, c] * turned * z
        rows.append(y if bias is None else y + bias[n, c])
    return torch.stack(rows).reshape(x.shape)


def check(name: str, shape: tuple[int, ...], layout: str, dtype: torch.dtype, act: str, each: bool, rest: bool) -> None:
    """Forward, moments and backward."""
    x, g = make(shape, layout, dtype), make(shape, layout, dtype, seed=1)
    r = make(shape, layout, dtype, seed=2) if rest else None
    exact = dtype if dtype == torch.float64 else torch.float32
    given, pool = weights(name, shape, each, exact), pool_of(name, shape[0])
    (code, function), known, attention = ACTS[act], known_of(name, shape[1], exact), attention_of(name, shape[1], exact)
    parts = kernels.Blend(*given, *pool, EPS, known, *attention)
    y, mean, var, pool_mean, pool_var = kernels.blend(x, parts, r, code)
    leaves: list[Any] = [
        None if t is None else t.double().detach().clone().requires_grad_() for t in (x, *given, *attention, r)
    ]
    pre = naive(leaves[0], (leaves[1], leaves[2], leaves[3]), pool[0], known, (leaves[4], leaves[5]))
    want = function(pre if r is None else pre + leaves[6])
    close(y, want.detach(), TOLERANCE[dtype])
    planes = x.double().reshape(*shape[:2], -1)
    close(mean, planes.mean(2), TOLERANCE[exact])
    close(var, planes.var(2, correction=0), TOLERANCE[exact])
    for k in range(len(pool_mean)):
        mates = planes if pool[0] is None else planes[pool[0] == k]
        if len(mates):
            close(pool_mean[k], mates.mean((0, 2)), TOLERANCE[exact])
            close(pool_var[k], mates.var((0, 2), correction=0), TOLERANCE[exact])
    extra = None if r is None or act == "none" else y if code.output_tells else r
    if extra is None:
        leaves[6] = None  # without an activation the residual's gradient is g itself
    found = kernels.blend_backward(g, x, mean, var, parts, extra, code)
    wanted = torch.autograd.grad(want, [t for t in leaves if t is not None], g.double())
    got = [d for d, t in zip(found, leaves, strict=True) if t is not None]
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        close(a, b, 4 * TOLERANCE[dtype])


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("name", PARTS)
def test_blends_in_float32(name, act):
    for layout, each, rest in itertools.product(["contiguous", "channels last"], [False, True], [False, True]):
        check(name, (5, 6, 5, 7), layout, torch.float32, act, each, rest)


@pytest.mark.parametrize(
    "shape", [(4, 6), (3, 4, 1, 1), (1, 6, 9, 9), (7, 1, 9), (2, 12, 3, 4, 5), (2, 300, 6, 6)], ids=str
)
@pytest.mark.parametrize("name", PARTS)
def test_any_shape(name, shape):
    for layout in ("contiguous", "channels last"):
        check(name, shape, layout, torch.float32, "none", True, False)


@pytest.mark.parametrize("name", ["own", "pooled", "by name"])
def test_a_tensor_that_two_threads_share(name):
    for layout in ("contiguous", "channels last"):
        check(name, (4, 6, 120, 110), layout, torch.float32, "relu", False, False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_is_understood(layout):
    for name in PARTS:
        check(name, (4, 6, 5, 7), layout, torch.float32, "relu", False, True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PARTS)
def test_other_dtypes(name, dtype):
    for layout, each in itertools.product(["contiguous", "channels last"], [False, True]):
        check(name, (4, 34, 9, 13), layout, dtype, "silu", each, True)


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_a_large_mean_costs_no_digits(layout):
    x, one = make((8, 6, 16, 16), layout, torch.float32) + 1e4, torch.ones(6)
    y = kernels.blend(x, kernels.Blend(one, one, None, None, 1, EPS))[0]
    want = naive(x.double(), (one.double(), one.double(), None))
    assert (y - want).abs().max() < 2e-6 * want.abs().max()


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_part(layout, poison):
    x, g = make((4, 4, 6, 6), layout, torch.float32), make((4, 4, 6, 6), layout, torch.float32, seed=1)
    x[1, :, 0, 0] = poison
    own, pooled = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    parts = kernels.Blend(own, pooled, None, None, 1, EPS)
    y, mean, var, *_ = kernels.blend(x, parts)
    dx = kernels.blend_backward(g, x, mean, var, parts)[0]
    for t in (y, dx):
        bad = ~t.isfinite().all((2, 3))
        assert bad[1].all()
        assert bad[:, 2:].all()  # a channel of the batch
        assert not bad[[0, 2, 3], :2].any()
    rule = Mixture(EPS, own=True)
    again = ops.reference(x, rule, (own, pooled, None))
    torch.testing.assert_close(again, y, equal_nan=True)


def test_attention_stays_out_where_its_weight_is_zero():
    x, g = make((4, 2, 6, 6), "contiguous", torch.float32), make((4, 2, 6, 6), "contiguous", torch.float32, seed=1)
    x[1, :, 0, 0] = float("nan")
    given, one = (torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0]), None), torch.ones(2)
    parts = kernels.Blend(*given, None, 1, EPS, None, one, one)
    y, mean, var, *_ = kernels.blend(x, parts)
    dx = kernels.blend_backward(g, x, mean, var, parts)[0]
    assert all(t[[0, 2, 3], 0].isfinite().all() for t in (y, dx))


@pytest.mark.parametrize("residual", [False, True])
def test_second_derivatives(residual):
    shapes = (3, 4, 3, 2), (3, 4, 3, 2), (3, 4), (4,), (4,), (4,)
    x, r, own, pooled, gain, lift = (torch.randn(s, dtype=torch.float64) for s in shapes)
    leaves = [t.requires_grad_() for t in (x, own, pooled, gain, lift)]
    pool = torch.tensor([0, 1, 0])

    def run(x, own, pooled, gain, lift):
        rule, tail = Mixture(EPS, own=True, pool=pool, pools=2), Tail(r, kernels.SILU) if residual else NOTHING
        y = ops.normalize(x, rule, (own, pooled, None, None, None, gain, lift), tail=tail)
        assert type(y.grad_fn).__name__ == "_MixtureBackward"
        return y

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("size", [(4,), (3, 4)])
def test_the_bias_may_change_before_the_backward_pass(size, again):
    """Without an activation no gradient asks for it."""
    shapes = (3, 4, 3, 2), (4,), (4,), size
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]

    def grads(change):
        x, *tensors = leaves
        y = ops.normalize(x, Mixture(EPS, own=True), tensors)
        assert type(y.grad_fn).__name__ == "_MixtureBackward"
        with torch.no_grad():
            tensors[2].add_(change)
        found = torch.autograd.grad(y.square().sum(), leaves, create_graph=again)
        return [*found, *torch.autograd.grad(found[0].square().sum(), leaves[:3])] if again else found

    torch.testing.assert_close(grads(0.0), grads(1.0))


def test_the_rule_observes_the_pools():
    x, seen = torch.randn(5, 4, 6, 6), []
    for pool, pools in ((None, 1), (None, 2), (torch.tensor([0, 2, 2, 0, 0]), 3)):
        rule = Mixture(EPS, pool=pool, pools=pools)
        for mask in (None, torch.ones(6, 6, dtype=torch.bool)):  # in closed form, and by the table
            with torch.no_grad():
                ops.normalize(x, rule, (None, None, None), mask=mask, observe=seen.append)
        whole, table = (t.pool(0) for t in seen[-2:])
        torch.testing.assert_close(whole.mean, table.mean)
        torch.testing.assert_close(whole.unbiased, table.unbiased)
    torch.testing.assert_close(seen[-2].mean, seen[-1].mean)
    assert seen[-2].mean[1].eq(0).all()  # a pool that nobody is in


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": torch.tensor([0, 1, 2]), "pools": 2}, "must be from 0 to 1, got 2"),
        ({"pool": torch.tensor([0, -1, 0]), "pools": 2}, "must be from 0 to 1, got -1"),
        ({"pool": torch.tensor([0, 1]), "pools": 2}, "one for each instance"),
        ({"pool": None, "pools": 2}, "several pools need the pool of each instance"),
        ({"own": torch.ones(5)}, "own must have 4 values, got 5"),
        ({"own": torch.ones(3, 5)}, "own must have 4 values, got 15"),
        ({"gain": torch.ones(4)}, "gain and lift come together"),
        ({"known": kernels.Known(torch.zeros(4), torch.ones(4), 1, 0), "pooled": None}, "known statistics need"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"own": None, "pooled": torch.ones(4), "bias": None, "pool": None, "pools": 1, "eps": EPS, **change}
    with pytest.raises(RuntimeError, match=message):
        kernels.blend(torch.randn(3, 4, 5), kernels.Blend(**given))


@pytest.mark.parametrize("name", PARTS)
def test_opcheck(name):
    x, g = torch.randn(4, 6, 5), torch.randn(4, 6, 5)
    given, pool, known = weights(name, (4, 6, 5), True, x.dtype), pool_of(name, 4), known_of(name, 6, x.dtype)
    parts = kernels.Blend(*given, *pool, EPS, known, *attention_of(name, 6, x.dtype))
    torch.library.opcheck(torch.ops.normwise.blend, (x, *parts.arguments, None, *kernels.NONE))
    _, mean, var, *_ = kernels.blend(x, parts)
    backward = (g, x, mean, var, *parts.arguments, None, *kernels.RELU, True)
    torch.library.opcheck(torch.ops.normwise.blend_backward, backward)


@pytest.mark.parametrize("default", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_remembered_has_the_digits_of_the_input(dtype, default):
    x, before = torch.randn(5, 4, 6, 7, dtype=torch.float64).to(dtype), torch.get_default_dtype()
    ghost, several = nw.GhostNorm(4, chunk_size=2, momentum=1.0), nw.DomainNorm(4, domains=2, momentum=1.0)
    torch.set_default_dtype(default)
    try:
        ghost.to(dtype)(x)
        with nw.domain(several.to(dtype), [0, 1, 1, 0, 0]):
            several(x)
    finally:
        torch.set_default_dtype(before)
    for var, instances in ((ghost.get_buffer("running_var"), x), (several.get_buffer("running_var")[1], x[1:3])):
        assert var.dtype == dtype
        torch.testing.assert_close(var.double(), instances.double().var((0, 2, 3)), rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_gate_of_a_half_model_loses_no_digits(dtype):
    norm = nw.BatchInstanceNorm(6)
    norm.gate.data.uniform_()
    norm, exact = norm.to(dtype), nw.BatchInstanceNorm(6)
    exact.load_state_dict(norm.state_dict())
    x, g = (torch.randn(3, 6, 5, 5).to(dtype) for _ in range(2))
    found = torch.autograd.grad(norm(x), norm.gate, g)[0]
    wanted = torch.autograd.grad(exact.double()(x.double()), exact.gate, g.double())[0]
    torch.testing.assert_close(found, wanted.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


def test_chunks_are_on_the_device_of_the_input():
    norm, x = nw.GhostNorm(3, chunk_size=2), torch.randn(4, 3, 5)
    with torch.device("meta"):
        y = norm(x)
    assert y.device.type == "cpu"


@pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated", "ignore::torch.jit.TracerWarning")
def test_ghost_norm_in_training_is_traced():
    norm, x = nw.GhostNorm(3, chunk_size=2), torch.randn(5, 3, 6)
    traced: Any = torch.jit.trace(norm, (x,), check_trace=False)
    torch.testing.assert_close(traced(x), norm(x))


def test_a_domain_that_was_chosen_stays():
    several, x, domains = nw.DomainNorm(3), torch.randn(4, 3, 6, requires_grad=True), torch.tensor([0, 0, 1, 1])
    with nw.domain(several, domains):
        y = several(x).pow(3).sum()
    wanted = torch.autograd.grad(y, x, retain_graph=True)[0]
    domains.fill_(1)  # by a loader that has one tensor for all its batches
    torch.testing.assert_close(torch.autograd.grad(y, x)[0], wanted)


@pytest.mark.parametrize("mask", [None, torch.ones(6, dtype=torch.bool)], ids=["closed form", "table"])
def test_what_is_not_finite_stays_in_its_domain(mask):
    several, x, g = nw.DomainNorm(3), torch.randn(4, 3, 6), torch.randn(4, 3, 6)
    x[0] = float("nan")
    with nw.domain(several, [0, 0, 1, 1]), pytest.warns(UserWarning, match="a batch with inf or NaN was left out"):
        y = several(x.requires_grad_(), mask)
    for t in (y, torch.autograd.grad(y, x, g)[0]):
        assert not t[:2].isfinite().any()
        assert t[2:].isfinite().all()
    assert several.get_buffer("num_batches_tracked").tolist() == [0, 1]
