"""What every norm promises to PyTorch's tools: saving, compiling, exporting, tracing, transforming, autocast."""

import copy
import io
import pickle

import pytest
import torch
from conformance import (
    C,
    every_norm,
    every_norm_in_both_modes,
    every_plane_norm,
    every_plane_norm_in_both_modes,
    expected,
    feed,
    gradients,
    layouts,
    make,
    on_last,
    run,
    sample,
)
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import normwise as nw
from normwise.layers.spec import build


@every_plane_norm
def test_autocast(spec: str) -> None:
    convolution, norm = nn.Conv2d(3, C, 3), make(spec, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = run(norm, convolution(torch.randn(4, 3, 8, 8)))
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    parameters = [*convolution.parameters(), *norm.parameters()]
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in parameters)


@every_norm
def test_state_dict_deepcopy_and_pickle(spec: str) -> None:
    norm, x = make(spec), sample(spec, 3, 5)
    run(norm, x)
    norm.eval()
    file = io.BytesIO()
    torch.save(norm.state_dict(), file)
    file.seek(0)
    loaded = build(spec, C, dtype=torch.float64, momentum=getattr(norm, "momentum", 0.1)).eval()
    loaded.load_state_dict(torch.load(file), strict=True)
    for other in (loaded, copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert torch.equal(run(other, x), run(norm, x))
        assert repr(other) == repr(norm)


@every_norm_in_both_modes
def test_compile_as_one_graph(spec: str, training: bool) -> None:
    torch._dynamo.reset()
    norm, x = make(spec, training=training), sample(spec, 3, 5).requires_grad_()
    twin = copy.deepcopy(norm)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    inputs = [x, *(given.detach() for given in feed(norm, x)[1:])]
    theirs = compiled(*inputs)
    torch.manual_seed(1)
    ours = norm(*inputs)
    torch.testing.assert_close(theirs, ours)
    torch.testing.assert_close(gradients(theirs, twin, x), gradients(ours, norm, x))
    torch.testing.assert_close(twin.state_dict(), norm.state_dict())


@layouts
@pytest.mark.parametrize(("backend", "training"), [("eager", False), ("aot_eager", True)])
@pytest.mark.parametrize("spec", ["batch", "instance", "group:2", "layer", "batch-instance", "switchable"])
def test_compiled_with_a_large_mean(spec: str, backend: str, training: bool, layout: torch.memory_format) -> None:
    """PyTorch's own group norm errs here by 0.5 in channels_last."""
    torch._dynamo.reset()
    norm = make(spec, torch.float32, training)
    x = (torch.randn(4, C, 6, 5) + 1000).contiguous(memory_format=layout).requires_grad_()
    want = expected(norm, x)
    y = torch.compile(norm, fullgraph=True, backend=backend)(x)
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y.double(), want, rtol=0, atol=2e-4 * want.abs().max().item())
    for ours, right in zip(gradients(y, norm, x), gradients(want.float(), norm, x), strict=True):
        torch.testing.assert_close(ours, right, rtol=0, atol=5e-3 * right.abs().max().item())


def test_compiled_under_vmap() -> None:
    torch._dynamo.reset()
    norm, x = make("instance"), torch.randn(3, 2, 6, 5, C, dtype=torch.float64).movedim(-1, 2)
    y = torch.compile(torch.vmap(norm), backend="aot_eager")(x)
    torch.testing.assert_close(y, torch.stack([norm(one) for one in x]))


@pytest.mark.parametrize("spec", ["batch", "instance", "group", "layer"])
def test_a_plain_norm_is_one_operator(spec: str) -> None:
    """So that exporters and folding passes know it."""
    program = torch.export.export(make(spec, training=False), (sample(spec, 3, 5),))
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert len([name for name in calls if "norm" in name]) == len(calls) == 1


@every_norm_in_both_modes
@pytest.mark.parametrize("strict", [False, True])
def test_export(spec: str, training: bool, strict: bool) -> None:
    """The batch and, in rank 4, height and width stay open."""
    norm, x = make(spec, training=training), sample(spec, 3, 5)
    inputs, (batch, height, width) = feed(norm, x), (torch.export.Dim(name, min=2) for name in ("n", "h", "w"))
    first = 1 if on_last(spec) else 2
    dynamic = {0: batch, first: height, first + 1: width}, *({0: batch} for _ in inputs[1:])
    program = torch.export.export(copy.deepcopy(norm), inputs, dynamic_shapes=dynamic, strict=strict)
    other = sample(spec, 6, 4, n=9)
    exported = program.module()
    torch.testing.assert_close(exported(*feed(norm, other)), run(norm, other))
    for name, tensor in exported.state_dict().items():
        torch.testing.assert_close(tensor, norm.state_dict()[name])


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(C), nn.InstanceNorm2d(C, affine=True), nn.GroupNorm(2, C)], ids=repr)
@layouts
def test_export_of_accelerated_norms_keeps_what_it_may_open(norm: nn.Module, layout: torch.memory_format) -> None:
    model, x = nn.Sequential(copy.deepcopy(norm), nn.ReLU()).eval(), torch.randn(3, C, 6, 5).to(memory_format=layout)
    nw.accelerate(model)
    open_ = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    program, other = torch.export.export(model, (x,), dynamic_shapes=(open_,)), torch.randn(2, C, 9, 11)
    other = other.to(memory_format=layout)
    torch.testing.assert_close(program.module()(other), model(other))


def test_export_of_ghost_norm_in_training_leaves_the_plane_open() -> None:
    norm, x = make("ghost:4"), sample("ghost:4", 3, 5)
    dynamic = {2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    program, other = torch.export.export(copy.deepcopy(norm), (x,), dynamic_shapes=(dynamic,)), sample("ghost:4", 6, 4)
    torch.testing.assert_close(program.module()(other), run(norm, other))


@every_norm_in_both_modes
def test_compiled_once_for_all_sizes(spec: str, training: bool) -> None:
    torch._dynamo.reset()
    norm, counter = make(spec, training=training), CompileCounter()
    compiled = torch.compile(copy.deepcopy(norm), dynamic=True, fullgraph=True, backend=counter)
    for n, height, width in ((11, 6, 7), (14, 9, 13), (15, 17, 12)):  # of no other size: equal ones are one to Dynamo
        x = sample(spec, height, width, n=n)
        y = compiled(*feed(norm, x))
        torch.testing.assert_close(y, run(norm, x))
    assert counter.frame_count == 1


@every_plane_norm_in_both_modes
def test_fx_sees_one_node(spec: str, training: bool) -> None:
    norm, x = make(spec, training=training), sample(spec, 3, 5)
    inputs = feed(norm, x)
    model = nn.Sequential(norm) if len(inputs) == 1 else Pair(norm)
    graph = torch.fx.symbolic_trace(model)
    assert [node.op for node in graph.graph.nodes] == ["placeholder"] * len(inputs) + ["call_module", "output"]
    ours = graph(*inputs)
    torch.testing.assert_close(ours, copy.deepcopy(graph)(*feed(norm, x)))


class Pair(nn.Module):
    """A model of one norm that takes a second input."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        return self.norm(x, given)


@every_plane_norm_in_both_modes
def test_keeps_one_activation_for_the_backward_pass(spec: str, training: bool) -> None:
    norm, x = make(spec, torch.float32, training), sample(spec, 32, 32, dtype=torch.float32).requires_grad_()
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    inputs = feed(norm, x)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        norm(*inputs)
    assert sum(saved.values()) <= 1.05 * x.nbytes


@every_norm
def test_per_sample_gradients(spec: str) -> None:
    norm = make(spec)
    norm.train(not list(norm.buffers()))  # running statistics are written in place: not under vmap, as in PyTorch
    x = sample(spec, 3, 5)
    parameters = dict(norm.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(norm, parameters, feed(norm, x[None])).square().sum()

    gradient = torch.func.grad(loss, argnums=(0, 1))
    ours, to_x = torch.func.vmap(gradient, in_dims=(None, 0))(parameters, x)
    for n in range(len(x)):
        own = x[n].clone().requires_grad_()
        single = torch.autograd.grad(loss(parameters, own), [*parameters.values(), own])
        torch.testing.assert_close([*(ours[name][n] for name in parameters), to_x[n]], list(single))


@every_norm_in_both_modes
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own, on its first jvp
def test_forward_mode(spec: str, training: bool) -> None:
    norm = make(spec, training=training, track_running_stats=False if training else None)
    x, direction = sample(spec, 3, 5), sample(spec, 3, 5)
    ours = torch.func.jvp(lambda x: run(norm, x), (x,), (direction,))[1]
    step = 1e-6
    ahead, behind = run(norm, x + step * direction), run(norm, x - step * direction)
    torch.testing.assert_close(ours, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6)
