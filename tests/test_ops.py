"""The one node: its derivatives, and every way PyTorch offers to run or transform it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.autograd import forward_ad
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from normwise import kernels, ops
from normwise.ops import Affine, normalize, reference, standardize
from normwise.table import Moments

Function = Callable[..., Tensor]


def blend(table: Moments, gate: Tensor, weight: Tensor, bias: Tensor) -> Affine:
    """A rule that uses both pools and three learned tensors."""
    batch, own = standardize(table.pool(0), 1e-5), standardize(table, 1e-5)
    moved = (own.center - batch.center) * batch.scale
    return Affine(own.center, gate * batch.scale + (1 - gate) * own.scale, gate * moved).learned(weight, bias)


def inputs(*shape: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, gate, weight, bias."""
    x = torch.randn(*shape, dtype=torch.float64) * 2 + 1
    return x.requires_grad_(), *(torch.rand(shape[1], dtype=torch.float64, requires_grad=True) for _ in range(3))  # pyright: ignore


def node(x: Tensor, *tensors: Tensor, mask: Tensor | None = None) -> Tensor:
    return normalize(x, blend, tensors, mask=mask)


def plain(x: Tensor, *tensors: Tensor, mask: Tensor | None = None) -> Tensor:
    return reference(x, blend, tensors, mask=mask)


def grads(function: Function, given: tuple[Tensor, ...]) -> list[Tensor]:
    return list(torch.autograd.grad(function(*given).pow(3).sum(), given))


class Layer(nn.Module):
    """The node as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.weight, self.bias = (nn.Parameter(torch.rand(4)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return node(x, self.gate, self.weight, self.bias)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), Layer(), nn.ReLU(), nn.Conv2d(4, 4, 3), Layer(), nn.Tanh())


def leaves(model: nn.Module) -> list[Tensor | None]:
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 5), (2, 4, 3, 3), (2, 4, 2, 2, 2)], ids=len)
def test_node_equals_reference(shape: tuple[int, ...]) -> None:
    given = inputs(*shape)
    torch.testing.assert_close(node(*given), plain(*given))
    torch.testing.assert_close(grads(node, given), grads(plain, given))


def test_the_node_is_taken() -> None:
    assert "Normalize" in type(node(*inputs(2, 4, 3)).grad_fn).__name__


SOME = torch.tensor([[True, True, True], [True, False, True]])


@pytest.mark.parametrize(
    ("shape", "mask"), [((3, 2), None), ((2, 2, 3), None), ((2, 2, 3), SOME)], ids=["2", "3", "mask"]
)
def test_first_and_second_derivatives(shape: tuple[int, ...], mask: Tensor | None) -> None:
    function = partial(node, mask=mask)
    assert torch.autograd.gradcheck(function, inputs(*shape))
    assert torch.autograd.gradgradcheck(function, inputs(*shape))


def test_gradient_of_stride_zero() -> None:
    given = inputs(2, 4, 3)
    torch.testing.assert_close(
        torch.autograd.grad(node(*given).sum(), given), torch.autograd.grad(plain(*given).sum(), given)
    )


@pytest.mark.parametrize("needed", range(4))
def test_only_what_needs_a_gradient_gets_one(needed: int) -> None:
    given = [t.detach() for t in inputs(2, 4, 3)]
    given[needed].requires_grad_()
    y = node(*given)
    asked = y.grad_fn.needs_input_grad  # pyright: ignore
    assert sum(asked) == 1
    ours, theirs = (torch.autograd.grad(f(*given).pow(3).sum(), given[needed]) for f in (node, plain))
    torch.testing.assert_close(ours, theirs)


def test_backward_twice() -> None:
    given = inputs(2, 4, 3)
    y = node(*given).pow(2).sum()
    first = torch.autograd.grad(y, given, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(y, given), first)


def test_changing_the_input_in_place_is_noticed() -> None:
    x, *tensors = (t.detach().clone() for t in inputs(2, 4, 3))
    tensors[0].requires_grad_()
    y = node(x, *tensors)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def adapted_loss(norm: Function, x: Tensor, w: Tensor, *tensors: Tensor) -> Tensor:
    """The loss after one gradient step: the inner loop of MAML."""
    parameters = (w, *tensors)

    def loss(w: Tensor, *tensors: Tensor) -> Tensor:
        return norm(torch.einsum("ncl,cd->ndl", x, w), *tensors).pow(3).mean()

    steps = torch.autograd.grad(loss(*parameters), parameters, create_graph=True)
    return loss(*(p - 0.1 * step for p, step in zip(parameters, steps, strict=True)))


def test_maml_step() -> None:
    x, *tensors = inputs(3, 4, 5)
    given = (torch.randn(4, 4, dtype=torch.float64, requires_grad=True), *tensors)
    ours, theirs = (torch.autograd.grad(adapted_loss(norm, x, *given), given) for norm in (node, plain))
    torch.testing.assert_close(ours, theirs)


def test_hessian_vector_product() -> None:
    given = inputs(3, 4, 5)
    directions = tuple(torch.randn_like(t) for t in given)
    ours, theirs = (
        torch.autograd.functional.hvp(lambda *a, f=f: f(*a).pow(3).mean(), given, directions)[1] for f in (node, plain)
    )
    torch.testing.assert_close(ours, theirs)


def test_second_derivative_where_a_tensor_comes_from_x() -> None:
    """As in AdaIN: the path through the tensor must not be counted twice."""
    x, _, *tensors = inputs(3, 2, 4)
    results = []
    for norm in (node, plain):
        y = norm(x, x.mean((0, 2)).sigmoid(), *tensors)
        (g,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        results.append((g, *torch.autograd.grad(g.pow(2).sum(), (x, *tensors))))
    torch.testing.assert_close(*results)


def test_observe_is_called_once_with_a_detached_table() -> None:
    seen: list[Moments] = []
    x, *tensors = inputs(2, 4, 3)
    y = normalize(x, blend, tensors, observe=seen.append)
    (g,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    g.sum().backward()
    with torch.no_grad():
        normalize(x, blend, tensors, observe=seen.append)
    reference(x, blend, tensors, observe=seen.append)
    assert len(seen) == 3
    assert not any(table.mean.requires_grad or table.var.requires_grad for table in seen)
    torch.testing.assert_close(seen[0].mean, x.mean(2))


def run(how: str, model: nn.Sequential, x: Tensor) -> Tensor:
    if how == "nested":

        def inner(y: Tensor) -> Any:
            return checkpoint(model[3:], model[:3](y), use_reentrant=False)

        return checkpoint(inner, x, use_reentrant=False)
    if how == "selective":

        def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
            keep = op in (torch.ops.aten.convolution.default, torch.ops.aten.rsqrt.default)
            return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

        context = partial(create_selective_checkpoint_contexts, policy)
        return checkpoint(model, x, use_reentrant=False, context_fn=context)
    return checkpoint(model, x, use_reentrant=how == "reentrant")


@pytest.mark.parametrize("how", ["reentrant", "non-reentrant", "nested", "selective"])
def test_checkpointing(how: str) -> None:
    model, x = network(), torch.randn(2, 3, 8, 8, requires_grad=True)
    model(x).pow(2).sum().backward()
    wanted = [g.clone() for g in leaves(model) if g is not None]
    model.zero_grad()
    run(how, model, x).pow(2).sum().backward()
    torch.testing.assert_close(leaves(model), wanted)


def test_saving_on_the_cpu() -> None:
    given = inputs(2, 4, 3)
    with torch.autograd.graph.save_on_cpu():
        y = node(*given)
    torch.testing.assert_close(torch.autograd.grad(y.pow(3).sum(), given), tuple(grads(plain, given)))


def test_distributed_data_parallel() -> None:
    """Buffers are broadcast before each forward pass, gradients reduced in hooks; two passes, as a GAN does."""
    model, x = network(), torch.randn(2, 3, 8, 8)
    (model(x) + model(x)).pow(2).sum().backward()
    wanted = [g.clone() for g in leaves(model) if g is not None]
    model.zero_grad()
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        two_passes_in_parallel(model, x)
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(leaves(model), wanted, rtol=1e-4, atol=1e-5)


def two_passes_in_parallel(model: nn.Module, x: Tensor) -> None:
    """Lets go of the wrapper before the process group ends: the other order can wait for itself for ever."""
    parallel = nn.parallel.DistributedDataParallel(model)
    (parallel(x) + parallel(x)).pow(2).sum().backward()


def test_compile_and_export() -> None:
    torch._dynamo.reset()
    given, seen = inputs(2, 4, 3), torch.zeros(4, dtype=torch.float64)

    def remember(table: Moments) -> None:
        seen.add_(table.pool(0).mean[0])

    def observed(x: Tensor, *tensors: Tensor) -> Tensor:
        return normalize(x, blend, tensors, observe=remember)

    compiled = torch.compile(observed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(grads(compiled, given), grads(plain, given))
    torch.testing.assert_close(seen, given[0].detach().mean((0, 2)))
    model, x = network(), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated")  # tracing is deprecated, and still used
def test_jit_trace() -> None:
    model, x = network(), torch.randn(2, 3, 8, 8)
    traced: Any = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(x), model(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own, on its first jvp
def test_torch_func() -> None:
    given = inputs(3, 4, 5)

    def loss(*given: Tensor) -> Tensor:
        return node(given[0], *given[1:]).pow(3).sum()

    ours = torch.func.grad(loss, argnums=(0, 1, 2, 3))(*given)
    torch.testing.assert_close(list(ours), grads(plain, given))
    batch = torch.stack([given[0].detach(), given[0].detach() + 1])
    tensors = given[1:]
    torch.testing.assert_close(
        torch.func.vmap(lambda x: node(x, *tensors))(batch), torch.stack([plain(x, *tensors) for x in batch])
    )
    tangents = tuple(torch.randn_like(t) for t in given)
    torch.testing.assert_close(torch.func.jvp(node, given, tangents), torch.func.jvp(plain, given, tangents))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own, on its first jvp
def test_forward_mode() -> None:
    given = inputs(3, 4, 5)
    tangents = tuple(torch.randn_like(t) for t in given)
    with forward_ad.dual_level():
        y = node(*map(forward_ad.make_dual, given, tangents))
        tangent = forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(tangent, torch.func.jvp(plain, given, tangents)[1])


def test_no_digits_are_lost_where_the_mean_is_large() -> None:
    """Mean and deviation of this plane are exact in float32; `scale * x + shift` is off by 5e-5."""
    deviation = torch.arange(-8.0, 9.0)
    x = (5000 + deviation).expand(2, 4, 17).clone().requires_grad_()
    rule = partial(blend, gate=torch.tensor(0.3), weight=torch.ones(4), bias=torch.zeros(4))
    wanted = (deviation / (deviation.square().mean() + 1e-5).sqrt()).expand_as(x)
    for y in (normalize(x, rule), reference(x, rule)):
        torch.testing.assert_close(y, wanted, rtol=0, atol=1e-6)


def test_tensor_subclass_takes_the_reference() -> None:
    class Tagged(Tensor):
        pass

    x, *tensors = inputs(2, 4, 3)
    y = node(x.detach().as_subclass(Tagged), *tensors)
    assert type(y) is Tagged
    assert "Normalize" not in type(y.grad_fn).__name__
    torch.testing.assert_close(y.as_subclass(Tensor), plain(x, *tensors))


def test_inference_mode() -> None:
    given = inputs(2, 4, 3)
    with torch.inference_mode():
        torch.testing.assert_close(node(*given), plain(*given))


def test_backend() -> None:
    assert ops.backend() == ("native" if kernels.available() else "reference")


native = pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")


@native
def test_the_kernels_are_used_where_they_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """No operation of PyTorch's touches the activation; with a mask all do, and without gradients too."""
    seen: list[str] = []
    for name in ("moments", "scale_shift", "reduce_grad", "apply_grad"):
        whole = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *a, name=name, whole=whole: (seen.append(name), whole(*a))[1])
    given = inputs(2, 4, 3)
    grads(node, given)
    assert seen == ["moments", "scale_shift", "reduce_grad", "apply_grad"]
    with torch.no_grad():
        node(*given)
    assert seen[4:] == ["moments", "scale_shift"]
    mask = torch.ones(2, 3, dtype=torch.bool)
    node(*given, mask=mask).sum().backward()
    assert len(seen) == 6


@native
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_kernels_and_reference_agree(dtype: torch.dtype, last: bool) -> None:
    x, *tensors = (t.detach() for t in inputs(3, 4, 5, 6))
    x = x.to(dtype).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    given = [x.requires_grad_(), *(t.to(wide).requires_grad_() for t in tensors)]
    exact = [t.detach().double().requires_grad_() for t in given]
    y, want = node(*given), plain(*exact)
    assert y.is_contiguous(memory_format=torch.channels_last) == last
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    torch.testing.assert_close(y.double(), want, rtol=tolerance, atol=tolerance)
    g = torch.randn_like(y)
    found, wanted = torch.autograd.grad(y, given, g), torch.autograd.grad(want, exact, g.double())
    assert [t.dtype for t in found] == [t.dtype for t in given]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def test_many_gradients_at_once() -> None:
    given = inputs(3, 4, 5)
    y, many = node(*given), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    found = torch.autograd.grad(y, given, many, is_grads_batched=True, retain_graph=True)
    wanted = zip(*(torch.autograd.grad(y, given, g, retain_graph=True) for g in many), strict=True)
    torch.testing.assert_close(list(found), [torch.stack(each) for each in wanted])


@native
def test_empty_batches_and_sliced_inputs() -> None:
    nothing = torch.ones(0, 3, 4, requires_grad=True)
    normalize(nothing, lambda table: standardize(table, 1e-5)).sum().backward()
    assert nothing.grad is not None
    assert nothing.grad.shape == (0, 3, 4)
    x = torch.randn(4, 8, 10, 12)[::2, 1:5, 2:8, ::3]
    torch.testing.assert_close(
        normalize(x, lambda table: standardize(table, 1e-5)), torch.nn.functional.instance_norm(x)
    )
