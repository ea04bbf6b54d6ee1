"""The plain norms on the native kernels: right in every layout and dtype, differentiable twice, no larger than x."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from normwise import functional, kernels, plain
from normwise.kernels import NONE, RELU
from normwise.layers import batch, within
from normwise.table import wide
from normwise.tail import NOTHING, Tail

pytestmark = [
    pytest.mark.skipif(not kernels.available(), reason="the kernels were not built"),
    pytest.mark.usefixtures("always_native"),
]

SHAPE = (4, 6, 8, 9)
GROUPS = {"batch": 0, "group": 2, "instance": SHAPE[1]}
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}

every_norm = pytest.mark.parametrize("norm", GROUPS)
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
layouts = pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])


def sample(shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32, last: bool = False) -> Tensor:
    x = (torch.randn(shape, dtype=torch.float64) * 2 + 1).to(dtype)
    return x.contiguous(memory_format=LAST[len(shape)]) if last else x


def affine(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return tuple(torch.rand(SHAPE[1], dtype=dtype).add(0.5).requires_grad_() for _ in range(2))  # pyright: ignore


def ours(norm: str, x: Tensor, weight: Any = None, bias: Any = None, *, tail: Tail = NOTHING) -> Tensor:
    if norm == "batch":
        return plain.batch_norm(x, weight, bias, 1e-5, None, tail)[0]
    if norm == "instance":
        return plain.instance_norm(x, weight, bias, 1e-5, tail)
    return plain.group_norm(x, GROUPS[norm], weight, bias, 1e-5, tail)


def theirs(norm: str, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    if norm == "batch":
        return F.batch_norm(x, None, None, weight, bias, True)
    return F.group_norm(x.contiguous(), GROUPS[norm], weight, bias)


def is_native(y: Tensor) -> bool:
    return type(y.grad_fn).__name__ == "_NormBackward"


def close(got: Any, want: Any, tolerance: float) -> None:
    for a, b in zip(got, want, strict=True):
        assert float((a.double() - b.double()).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


@every_norm
@dtypes
@layouts
@pytest.mark.parametrize("half_affine", [False, True], ids=["float32 affine", "affine as x"])
def test_values_and_gradients(norm: str, dtype: torch.dtype, last: bool, half_affine: bool) -> None:
    x = sample(dtype=dtype, last=last).requires_grad_()
    inputs = [x, *affine(dtype if half_affine or dtype == torch.float64 else torch.float32)]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    y, want = ours(norm, *inputs), theirs(norm, *wide)
    g = sample(dtype=dtype)
    grads = torch.autograd.grad(y, inputs, g)
    assert is_native(y)
    assert [t.dtype for t in (y, *grads)] == [dtype, *(t.dtype for t in inputs)]
    assert y.is_contiguous(memory_format=torch.channels_last) == last
    close([y.detach()], [want.detach()], TOLERANCE[dtype])
    close(grads, torch.autograd.grad(want, wide, g.double()), 4 * TOLERANCE[dtype])


@every_norm
@layouts
def test_first_and_second_derivatives(norm: str, last: bool) -> None:
    x = sample((2, 6, 3, 2), torch.float64, last).requires_grad_()
    inputs = (x, *affine(torch.float64))
    assert is_native(ours(norm, *inputs))
    assert torch.autograd.gradcheck(lambda *t: ours(norm, *t), inputs)
    assert torch.autograd.gradgradcheck(lambda *t: ours(norm, *t), inputs, fast_mode=True)


@every_norm
@pytest.mark.parametrize("again", [False, True], ids=["once", "differentiable again"])
@pytest.mark.parametrize("follows", ["nothing", "residual", "residual and ReLU"])
def test_the_bias_may_change_before_the_backward_pass(norm: str, again: bool, follows: str) -> None:
    """Nor do PyTorch's operators ask for it there."""
    residual = None if follows == "nothing" else sample()
    tail = Tail(residual, RELU if "ReLU" in follows else NONE)
    g, inputs = sample(), [sample().requires_grad_(), *affine()]

    def grads(change: float) -> list[Tensor]:
        y = ours(norm, *inputs, tail=tail)
        assert is_native(y)
        with torch.no_grad():
            inputs[2].add_(change)
        found = torch.autograd.grad(y, inputs, g, create_graph=again)
        return [*found, *torch.autograd.grad(found[0].square().sum(), inputs[:2])] if again else list(found)

    want = grads(0.0)
    torch.testing.assert_close(grads(1.0), want)


@every_norm
def test_a_bias_that_tells_where_relu_cuts_may_not_change(norm: str) -> None:
    inputs = [sample().requires_grad_(), *affine()]
    y = ours(norm, *inputs, tail=Tail(act=RELU))
    with torch.no_grad():
        inputs[2].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_fixed_statistics_have_first_and_second_derivatives() -> None:
    inputs = (sample((2, 6, 3, 2), torch.float64).requires_grad_(), *affine(torch.float64))
    given = torch.rand(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64) + 0.5

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y, (*statistics, _) = plain.batch_norm(x, weight, bias, 1e-5, given)
        assert is_native(y)
        assert all(a is b for a, b in zip(statistics, given, strict=True))
        return y

    torch.testing.assert_close(function(*inputs), F.batch_norm(inputs[0], *given, *inputs[1:]))
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@every_norm
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(norm: str, reentrant: bool) -> None:
    inputs = [sample().requires_grad_(), *affine()]
    loss = lambda *t: ours(norm, *t).square().mul(t[0]).sum()  # noqa: E731
    plainly = torch.autograd.grad(loss(*inputs), inputs)
    checkpoint(loss, *inputs, use_reentrant=reentrant).backward()
    assert all(torch.equal(t.grad, g) for t, g in zip(inputs, plainly, strict=True) if t.grad is not None)
    assert all(t.grad is not None for t in inputs)


@every_norm
def test_keeps_little_more_than_the_input(norm: str) -> None:
    x, saved = sample((4, 6, 40, 40)).requires_grad_(), {}
    weight, bias = affine()

    def pack(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        ours(norm, x, weight, bias)
    assert x.nbytes < sum(saved.values()) <= x.nbytes + 8 * 4 * 6 * 2 + 2 * weight.nbytes


@pytest.mark.parametrize("name", ["BatchNorm2d", "InstanceNorm2d"])
@pytest.mark.parametrize("momentum", [0.3, None])
@dtypes
def test_running_statistics_are_pytorchs(name: str, momentum: float | None, dtype: torch.dtype) -> None:
    if name == "InstanceNorm2d" and momentum is None:
        pytest.skip("PyTorch has no average over all batches there")
    options = {"momentum": momentum, "track_running_stats": True, "dtype": wide(dtype)}
    home = batch if name == "BatchNorm2d" else within
    mine, other = getattr(home, name)(6, **options), getattr(nn, name)(6, **options)
    for _ in range(3):
        x = sample(dtype=dtype)
        assert is_native(mine(x.requires_grad_()))
        other(x.to(wide(dtype)))
    for key in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(mine, key), getattr(other, key), rtol=1e-6, atol=1e-6)
    x = sample(dtype=dtype)
    close([mine.eval()(x).detach()], [other.eval()(x.to(wide(dtype))).detach()], TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_functions_move_the_running_statistics_they_are_given(name: str) -> None:
    x, sets = sample(), []
    for module in (functional, F):
        running = torch.zeros(6), torch.ones(6)
        mode = {"training": True} if name == "batch_norm" else {}
        getattr(module, name)(x, *running, momentum=0.3, **mode)
        sets.append(running)
    torch.testing.assert_close(*sets, rtol=1e-6, atol=1e-6)


@every_norm
@layouts
def test_the_number_of_threads_changes_rounding_only(norm: str, last: bool) -> None:
    before, x = torch.get_num_threads(), sample((16, 6, 40, 40), last=last).requires_grad_()
    g, found = sample(x.shape, last=last), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y = ours(norm, x)
            found.append((y.detach(), *torch.autograd.grad(y, x, g)))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@every_norm
@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16], ids=str)
@dtypes
def test_autocast_gives_pytorchs_dtype(norm: str, cast: torch.dtype, dtype: torch.dtype) -> None:
    x = sample(dtype=dtype).requires_grad_()
    with torch.autocast("cpu", cast):
        y, want = ours(norm, x), theirs(norm, x)
    assert is_native(y)
    assert y.dtype == want.dtype


@every_norm
@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)], ids=str)
def test_only_what_is_needed(norm: str, needed: tuple[bool, ...]) -> None:
    inputs = [t.detach().requires_grad_(need) for t, need in zip((sample(), *affine()), needed, strict=True)]
    one = [t for t in inputs if t.requires_grad]
    g = sample()
    found, want = (torch.autograd.grad(f(norm, *inputs), one, g) for f in (ours, theirs))
    close(found, want, 1e-5)


@every_norm
@layouts
def test_gradients_of_stride_zero_and_many_at_once(norm: str, last: bool) -> None:
    x, weight = sample(last=last).requires_grad_(), torch.rand(SHAPE[1])
    g = torch.randn(1, 6, 1, 1).expand(SHAPE)
    found, want = (torch.autograd.grad(f(norm, x, weight), x, g) for f in (ours, theirs))
    close(found, want, 1e-5)
    many = torch.randn(3, *SHAPE)
    y = ours(norm, x, weight)
    (found,) = torch.autograd.grad(y, x, many, is_grads_batched=True, retain_graph=True)
    close(found, [torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in many], 1e-5)


@every_norm
def test_several_threads_of_python_at_once(norm: str) -> None:
    inputs = [sample((8, 6, 20, 20)).requires_grad_() for _ in range(16)]
    step: Callable[[Tensor], Tensor] = lambda x: torch.autograd.grad(ours(norm, x).square().mul(x).sum(), x)[0]  # noqa: E731
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(step, inputs))
    torch.testing.assert_close(found, [step(x) for x in inputs], rtol=1e-5, atol=1e-5)


@every_norm
def test_what_pytorch_refuses_is_refused(norm: str) -> None:
    with pytest.raises(ValueError, match="Expected more than 1"):
        ours(norm, torch.ones(1, 6, 1, 1) if norm != "group" else torch.ones(1, 2, 1, 1))


def test_no_groups_are_refused_and_not_taken_for_batch_norm() -> None:
    with pytest.raises((RuntimeError, ZeroDivisionError)):
        functional.group_norm(sample(), 0)


def test_one_value_of_one_instance_is_refused_where_pytorch_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "_suits_pytorch", lambda *_: True)
    x = sample()
    torch.testing.assert_close(ours("group", x), theirs("group", x))
    with pytest.raises(ValueError, match="Expected more than 1"):
        ours("group", torch.ones(1, 2, 1, 1))


@every_norm
def test_nan_stays_where_mathematics_leaves_it(norm: str) -> None:
    x = sample()
    x[1, 3] = float("nan")
    torch.testing.assert_close(ours(norm, x), theirs(norm, x), equal_nan=True)


def test_a_negated_view_is_understood() -> None:
    x = torch.randn(4, 6, 8, 8, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    torch.testing.assert_close(ours("batch", x), theirs("batch", x))


@every_norm
def test_make_fx_sees_pytorchs_operators(norm: str) -> None:
    graph = make_fx(lambda x: ours(norm, x))(sample()).graph
    calls = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert any("norm" in name for name in calls)
    assert not any(name.startswith("normwise") for name in calls)


@every_norm
def test_without_gradients_no_node_is_made(norm: str) -> None:
    x = sample().requires_grad_()
    with torch.no_grad():
        torch.testing.assert_close(ours(norm, x), theirs(norm, x))
        assert ours(norm, x).grad_fn is None
    with torch.inference_mode():
        torch.testing.assert_close(ours(norm, x), theirs(norm, x))


def test_where_pytorch_is_as_fast_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    x = torch.randn(2, 32, 16, 16)
    large = torch.randn(16, 32, 24, 24)
    ask = lambda x, groups: plain.native(x, None, None, groups)  # noqa: E731
    assert [ask(x, 0), ask(x, 4), ask(x, 32)] == [False, False, True]
    assert plain.native(x, None, None, 0, tail=Tail(act=RELU))  # one node for two
    assert ask(x.contiguous(memory_format=torch.channels_last), 0)  # PyTorch's loses digits there
    assert [ask(torch.randn(4, 64, 3, 3, dtype=dtype), 64) for dtype in (torch.float32, torch.float16)] == [False, True]
    with torch.no_grad():
        assert [ask(x, 0), ask(x, 4), ask(x, 32)] == [True, False, True]
    running = torch.zeros(32), torch.ones(32)
    assert [plain.native(x, None, None, groups, running) for groups in (0, 32)] == [False, True]
    assert [ask(large, 0), ask(large, 4), ask(large, 32)] == [True, True, True]
    assert ask(x.contiguous(memory_format=torch.channels_last), 4)  # PyTorch's errs there
    assert not ask(torch.randn(64, 512), 0)


LAYERS = {
    "batch": lambda: batch.BatchNorm2d(6),
    "instance": lambda: within.InstanceNorm2d(6, affine=True),
    "group": lambda: within.GroupNorm(2, 6),
}
every_layer = pytest.mark.parametrize("norm", LAYERS)


@every_layer
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_layers_under_torch_func(norm: str, training: bool) -> None:
    """Gradients by parameter, and of each sample at once."""
    layer, x = LAYERS[norm]().double().train(training and norm != "batch"), sample(dtype=torch.float64)
    parameters = {name: torch.rand_like(p) for name, p in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x,)).pow(3).mean()

    def plainly(x: Tensor) -> tuple[Tensor, ...]:
        leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
        return torch.autograd.grad(loss(leaves, x), list(leaves.values()))

    torch.testing.assert_close(tuple(torch.func.grad(loss)(parameters, x).values()), plainly(x))
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x[:, None])
    wanted = [torch.stack(grads) for grads in zip(*(plainly(one[None]) for one in x), strict=True)]
    torch.testing.assert_close(list(each.values()), wanted)


@pytest.mark.parametrize("half_model", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("norm", [*LAYERS, "instance that remembers"])
def test_half_layers_under_vmap(norm: str, dtype: torch.dtype, half_model: bool) -> None:
    """PyTorch's rules for vmap refuse a half input with float32 statistics, or give a float32 output."""
    remembers = norm not in LAYERS
    make = (lambda: within.InstanceNorm2d(6, track_running_stats=True)) if remembers else LAYERS[norm]
    layer, x = make().to(dtype if half_model else torch.float32).eval(), sample(dtype=dtype)
    each = torch.func.vmap(layer)(x[:, None])[:, 0]
    assert each.dtype == dtype
    torch.testing.assert_close(each, layer(x), rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
    torch.func.jacrev(lambda x: layer(x).sum())(x)


@every_layer
def test_layers_differentiate_twice(norm: str) -> None:
    layer, x = LAYERS[norm]().double(), sample((2, 6, 3, 2), torch.float64).requires_grad_()
    assert is_native(layer(x))
    assert torch.autograd.gradgradcheck(layer, (x,), fast_mode=True)


@every_layer
@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_under_checkpointing(norm: str, reentrant: bool) -> None:
    layer, x = LAYERS[norm](), sample().requires_grad_()
    wanted = torch.autograd.grad(layer(x).pow(3).sum(), [x, *layer.parameters()])
    before = [t.clone() for t in layer.buffers()]
    checkpoint(lambda x: layer(x).pow(3), x, use_reentrant=reentrant).sum().backward()
    torch.testing.assert_close([x.grad, *(p.grad for p in layer.parameters())], list(wanted))
    if before:
        assert layer.num_batches_tracked == before[-1] + 1


def test_two_passes_before_one_backward_in_evaluation_and_training() -> None:
    """The buffers move between forward and backward; PyTorch's own operator would refuse."""
    layer, x = batch.BatchNorm2d(6), sample().requires_grad_()
    y = layer.eval()(x)
    z = layer.train()(x)
    assert is_native(y)
    (y + z).sum().backward()
