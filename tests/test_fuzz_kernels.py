"""The native kernels on shapes, strides and dtypes nobody would think of, beside forbidden memory, and threaded."""

import ctypes
import itertools
import mmap
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from normwise import kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")

ACTS = {
    "none": (kernels.NONE, lambda p: p),
    "relu": (kernels.RELU, F.relu),
    "leaky": (kernels.leaky_relu(0.1), lambda p: F.leaky_relu(p, 0.1)),
    "silu": (kernels.SILU, F.silu),
    "gelu": (kernels.GELU, F.gelu),
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
shapes = st.tuples(st.integers(0, 5), st.integers(1, 40), st.lists(st.integers(1, 12), max_size=3))
layouts = st.permutations(range(5)).flatmap(lambda order: st.tuples(st.just(order), st.integers(0, 4), st.booleans()))


def laid_out(shape: tuple[int, ...], layout: tuple[list[int], int, bool], dtype: torch.dtype, seed: int) -> Tensor:
    """A random tensor whose axes lie in any order in memory, cut from a larger one, perhaps with an axis expanded."""
    order = [axis for axis in layout[0] if axis < len(shape)]
    margin, expanded = layout[1:]
    generator = torch.Generator().manual_seed(seed)
    stored = torch.randn([shape[axis] + margin for axis in order], generator=generator).to(dtype)
    cut = stored[tuple(slice(margin, None) for _ in order)].permute(*sorted(range(len(order)), key=order.__getitem__))
    return cut[..., :1].expand(shape) if expanded and shape[-1] else cut


def naive(x: Tensor, weight: Tensor, bias: Tensor, groups: int, about_zero: bool, *given: Tensor) -> Tensor:
    """Batch norm for 0 groups, else group norm, with eps 0.1; about zero nothing is subtracted.

    `given`: mean and variance, not to be taken from x.
    """
    n, c = x.shape[:2]
    z = x.reshape(n, c, -1).transpose(0, 1).reshape(1, c, -1) if groups == 0 else x.reshape(n, groups, -1)
    mean, var = (t.double().reshape(*z.shape[:2], 1) for t in given) if given else (z.mean(2, keepdim=True), None)
    z = z if about_zero else z - mean
    z = z / ((z**2).mean(2, keepdim=True) + 0.1 if var is None else var + 0.1).sqrt()
    z = z.reshape(c, n, -1).transpose(0, 1) if groups == 0 else z
    return (z.reshape(n, c, -1) * weight[:, None] + bias[:, None]).reshape(x.shape)


def close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
    torch.testing.assert_close(got.double(), want, rtol=0, atol=TOLERANCE[dtype] * scale)


@settings(max_examples=300)
@given(
    shape=shapes,
    layout=st.tuples(layouts, layouts, layouts),
    dtype=st.sampled_from(sorted(TOLERANCE, key=str)),
    act=st.sampled_from([*sorted(ACTS), "floor"]),
    residual=st.booleans(),
    pooling=st.sampled_from(["about the mean", "about zero", "given"]),
    affine=st.tuples(st.booleans(), st.booleans()),
    which=st.integers(0, 5),
)
def test_any_call_equals_naive_arithmetic(shape, layout, dtype, act, residual, pooling, affine, which):
    size = (shape[0], shape[1], *shape[2])
    divisors = [0] + [d for d in range(1, size[1] + 1) if size[1] % d == 0]
    groups = divisors[which % len(divisors)]
    x, g, r = (laid_out(size, one, dtype, seed) for seed, one in enumerate(layout))
    weight, bias = torch.rand(size[1]) + 0.5, torch.randn(size[1])
    w, b = weight if affine[0] else None, bias if affine[1] else None
    weight, bias = weight if affine[0] else torch.ones(size[1]), bias * affine[1]
    floor = torch.randn(size[1]) if act == "floor" else None
    code, function = ACTS.get(act, ACTS["none"])
    sizes, about_zero = (size[0], groups) if groups else size[1:2], pooling == "about zero"
    given = (torch.randn(sizes), torch.rand(sizes) + 0.3) if pooling == "given" else None
    kind = {"floor": floor, "about_zero": about_zero}
    y, *found = kernels.norm(x, w, b, groups, 0.1, given, r if residual else None, code, **kind)
    extra = None if not residual or act == "none" else y if code.output_tells else r
    mean, var = given or found
    kind["fixed"] = given is not None
    dx, dw, db, dr, dfloor = kernels.norm_backward(g, x, mean, var, w, b, groups, 0.1, extra, code, **kind)
    assert y.shape == dx.shape == x.shape
    if x.numel() == 0:
        assert not torch.cat([dw, db, dfloor]).any()
        return
    leaves = [t.double().requires_grad_() for t in (x, weight, bias, r, *([] if floor is None else [floor]))]
    lx, lw, lb, lr, *low = leaves
    before = naive(lx, lw, lb, groups, about_zero, *(given or ())) + (lr if residual else 0)
    kink = low[0].reshape(-1, *[1] * len(shape[2])).expand_as(before) if low else torch.zeros(())
    want = torch.maximum(before, kink) if low else function(before)
    # where rounding decides on which side of a kink a value lies, its gradient is anybody's
    clear = (before - kink).detach().abs() > TOLERANCE[dtype] * 10
    if clear.all() or act in ("none", "silu", "gelu"):
        found = [(dx, lx), (dw, lw), (db, lb)] + ([] if extra is None else [(dr, lr)]) + [(dfloor, t) for t in low]
        grads = torch.autograd.grad(want, [leaf for _, leaf in found], g.double())
        for (got, _), right in zip(found, grads, strict=True):
            close(got, right, dtype)
    close(y, want.detach(), dtype)


def fenced(t: Tensor) -> Tensor:
    """A copy of a dense t with forbidden memory behind its last value."""
    size, page = t.numel() * t.element_size(), mmap.PAGESIZE
    pages = -(-size // page)
    room = mmap.mmap(-1, (pages + 1) * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(room))
    forbid = ctypes.CDLL(None, use_errno=True).mprotect
    assert forbid(ctypes.c_void_p(address + pages * page), page, 0) == 0  # PROT_NONE
    copy = torch.frombuffer(room, dtype=t.dtype, count=t.numel(), offset=pages * page - size)
    return copy.as_strided(t.shape, t.stride()).copy_(t)


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect as Linux has it")
@pytest.mark.parametrize("dtype", sorted(TOLERANCE, key=str), ids=str)
def test_nothing_behind_the_input_is_read(dtype):
    # reading one byte too many kills the process: no sanitizer sees through masked loads
    for sides, last, groups in itertools.product([(), (3,), (5, 7), (16, 16)], (False, True), (0, 1, 21)):
        form = "channels last" if last and sides else "contiguous"
        x, g, r = (
            torch.randn(3, *((*sides, 21) if form != "contiguous" else (21, *sides))).to(dtype) for _ in range(3)
        )
        x, g, r = (fenced(t.movedim(-1, 1) if form != "contiguous" else t) for t in (x, g, r))
        weight, bias, low = fenced(torch.rand(21)), fenced(torch.randn(21)), fenced(torch.randn(21))
        for act, floor in ((kernels.NONE, None), (kernels.SILU, None), (kernels.NONE, low)):
            y, mean, var = kernels.norm(x, weight, bias, groups, 0.1, residual=r, act=act, floor=floor)
            extra = None if act == kernels.NONE and floor is None else r
            kernels.norm_backward(g, x, mean, var, weight, bias, groups, 0.1, extra, act, floor=floor)
            assert y.isfinite().all()


@pytest.mark.parametrize("last", [False, True])
def test_bfloat16_is_rounded_as_pytorch_rounds_it(last):
    # 0 * 1 + shift: any float32 number reaches the store; also what lies halfway, is denormal, infinite or no number
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(-(2**31), 2**31, (3000,), generator=generator).to(torch.int32)
    halfway = words & ~0xFFFF | 0x8000
    denormals = [word & ~0x7F800000 for word in (words, halfway)]
    shift = torch.cat([words, halfway, *denormals, words | 0x7F800000]).view(torch.float32)
    shift = torch.cat([shift, torch.tensor([0.0, torch.inf, -torch.inf, torch.nan, 3.4e38])])
    x = torch.zeros(1, 37, len(shift)).bfloat16().transpose(1, 2)
    got = kernels.scale_shift(x if last else x.contiguous(), torch.ones(len(shift)), shift).contiguous()
    want = shift.bfloat16()[None, :, None].expand(x.shape).contiguous()
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.view(torch.int16)[~want.isnan()], want.view(torch.int16)[~want.isnan()])


@pytest.mark.parametrize("width", [16, 32, 64])
def test_narrower_vectors_compute_the_same(width):
    # the width is chosen once a process; the environment narrows it (64: and does without AVX512-BF16)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    command += ["-k", "naive or behind or rounded"]
    environment = os.environ | {"NORMWISE_VECTOR_BYTES": str(width)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


CASES = [((3, 40, 31, 33), 0), ((1, 2, 400, 401), 2), ((4, 64, 20, 20), 8), ((2, 3, 200, 200), 3), ((2, 512, 7, 7), 0)]
CASES += [((1, 1, 300, 301), 1), ((1, 3, 300, 301), 0), ((1, 6, 203, 201), 2)]  # planes are cut


def both_ways(shape: tuple[int, ...], groups: int, last: bool) -> list[Tensor]:
    """Outputs, statistics and all gradients on fixed numbers: of a plain norm, and about zero with a floor."""
    generator = torch.Generator().manual_seed(1)
    form = torch.channels_last if last else torch.contiguous_format
    x, g = (torch.randn(shape, generator=generator).contiguous(memory_format=form) for _ in range(2))
    floor = torch.where(torch.arange(shape[1]) % 2 > 0, 9.0, -9.0)  # far from all values: see the kink above
    found = []
    for kind in ({}, {"floor": floor, "about_zero": True}):
        y, mean, var = kernels.norm(x, None, None, groups, 1e-5, **kind)
        found += [y, mean, var, *kernels.norm_backward(g, x, mean, var, None, None, groups, 1e-5, **kind)]
    return [t for t in found if t.numel()]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("shape", "groups"), CASES, ids=str)
def test_thread_counts_agree(shape, groups, last):
    alone = both_ways(shape, groups, last)
    try:
        for threads in (2, 4):
            torch.set_num_threads(threads)
            for one, other in zip(alone, both_ways(shape, groups, last), strict=True):
                torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5 * max(1.0, one.abs().max().item()))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("last", [False, True])
def test_calls_from_several_python_threads_do_not_disturb_each_other(last):
    alone = [both_ways(shape, groups, last) for shape, groups in CASES]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda case: both_ways(case[0], case[1], last), CASES * 4)
        for one, other in zip(alone * 4, found, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
