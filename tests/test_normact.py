"""NormAct: one pass, and in values, gradients, names, copies and other people's surgery the same as step by step."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

import normwise as nw
from normwise import kernels
from normwise.layers.normact import NormAct, known_act
from normwise.surgery.find import norm_layers
from normwise.surgery.swap import swap

C = 6
NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nw.BatchNorm2d(C),
    "any batch": lambda: nw.BatchNorm(C),
    "instance": lambda: nw.InstanceNorm2d(C, affine=True),
    "tracked instance": lambda: nw.InstanceNorm2d(C, affine=True, track_running_stats=True),
    "group": lambda: nw.GroupNorm(2, C),
    "batch-instance": lambda: nw.BatchInstanceNorm(C),
    "switchable": lambda: nw.SwitchableNorm(C),
}
ACTS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(-0.5, 0.7),
    "leaky": lambda: nn.LeakyReLU(0.2),
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
norms = pytest.mark.parametrize("norm", NORMS)
acts = pytest.mark.parametrize("act", ACTS)
residuals = pytest.mark.parametrize("with_residual", [False, True], ids=["", "residual"])
layouts = pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
pytestmark = pytest.mark.usefixtures("always_native")
native = pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")


def lively(norm: str, dtype: torch.dtype = torch.float64) -> Any:
    made = NORMS[norm]().to(dtype)
    with torch.no_grad():
        for name, value in [*made.named_parameters(), *made.named_buffers()]:
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + (0.2 if name in ("weight", "running_var") else -0.3))
    return made


def sample(dtype: torch.dtype = torch.float64, last: bool = False) -> Tensor:
    x = (torch.randn(4, C, 5, 6) * 2 + 1).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def stepwise(norm: nn.Module, act: Any, x: Tensor, residual: Tensor | None) -> Tensor:
    y = norm(x)
    y = y if residual is None else y + residual
    return y if act is None else act(y)


def is_fused(y: Tensor) -> bool:
    return type(y.grad_fn).__name__ in ("_NormBackward", "_NormalizeBackward", "_MixtureBackward")


def given(norm: nn.Module, with_residual: bool, **how: Any) -> list[Tensor]:
    count = 2 if with_residual else 1
    return [*(sample(**how).requires_grad_() for _ in range(count)), *norm.parameters()]


def call(layer: Callable[..., Tensor], tensors: list[Tensor], with_residual: bool) -> Tensor:
    return layer(tensors[0], tensors[1] if with_residual else None)


@native
@norms
@acts
@residuals
@layouts
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_equals_step_by_step(norm: str, act: str, with_residual: bool, last: bool, training: bool) -> None:
    made = lively(norm).train(training)
    layer, other = NormAct(made, ACTS[act]()), copy.deepcopy(made)
    tensors = given(made, with_residual, last=last)
    twins = [*(t.detach().requires_grad_() for t in tensors[: 1 + with_residual]), *other.parameters()]
    y = call(layer, tensors, with_residual)
    want = stepwise(other, ACTS[act](), twins[0], twins[1] if with_residual else None)
    assert is_fused(y)
    assert y.is_contiguous(memory_format=torch.channels_last) == last
    torch.testing.assert_close(y, want)
    g = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, tensors, g), torch.autograd.grad(want, twins, g))
    torch.testing.assert_close(dict(made.named_buffers()), dict(other.named_buffers()))
    with torch.no_grad():
        torch.testing.assert_close(
            call(layer, tensors, with_residual), call(lambda *a: stepwise(other, ACTS[act](), *a), twins, with_residual)
        )


@native
@norms
@acts
@residuals
def test_a_negative_weight_is_taken_with_its_sign(norm: str, act: str, with_residual: bool) -> None:
    """In-place ABN takes its size alone, so that a checkpoint of batch norm computes something else there."""
    made = lively(norm)
    made.weight.data.neg_()
    layer, tensors = NormAct(made, ACTS[act]()), given(made, with_residual)
    y, want = (call(f, tensors, with_residual) for f in (layer, lambda x, r: stepwise(made, ACTS[act](), x, r)))
    torch.testing.assert_close(y, want)
    g = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, tensors, g), torch.autograd.grad(want, tensors, g))


@native
@pytest.mark.parametrize("norm", ["batch", "group", "batch-instance"])
@acts
@residuals
def test_second_derivatives(norm: str, act: str, with_residual: bool) -> None:
    made = lively(norm)
    results = []
    tensors = given(made, with_residual)
    for layer in (NormAct(made, ACTS[act]()), lambda x, r: stepwise(made, ACTS[act](), x, r)):
        y = call(layer, tensors, with_residual)
        grads = torch.autograd.grad(y.pow(3).sum(), tensors, create_graph=True)
        seconds = torch.autograd.grad(sum(g.pow(2).sum() for g in grads), tensors)  # pyright: ignore[reportArgumentType, reportCallIssue]
        results.append((grads, seconds))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)


@native
@pytest.mark.parametrize("norm", ["batch", "switchable"])
@pytest.mark.parametrize("act", ["none", "relu", "gelu"])
@pytest.mark.parametrize("needed", range(4))
def test_only_what_is_needed(norm: str, act: str, needed: int) -> None:
    made = lively(norm).requires_grad_(False)
    tensors = [sample(), sample(), made.weight, made.bias]
    tensors[needed].requires_grad_()
    found = [
        torch.autograd.grad(layer(*tensors[:2]).pow(3).sum(), tensors[needed])
        for layer in (NormAct(made, ACTS[act]()), lambda x, r: stepwise(made, ACTS[act](), x, r))
    ]
    torch.testing.assert_close(*found)


@native
@norms
@pytest.mark.parametrize(
    ("act", "with_residual", "kept"),
    [
        ("relu", False, 1),
        ("silu", False, 1),
        ("none", True, 1),
        ("relu", True, 2),
        ("relu6", True, 2),
        ("leaky", True, 2),
        ("silu", True, 2),
        ("gelu", True, 2),
    ],
)
def test_what_is_kept_for_the_backward_pass(norm: str, act: str, with_residual: bool, kept: int) -> None:
    """The input, and with a residual the output where it tells the slope, else the residual; no mask, no sum."""
    layer, saved = NormAct(lively(norm), ACTS[act]()), {}
    tensors = given(layer.norm, with_residual)

    def pack(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = call(layer, tensors, with_residual)
    large = {pointer for pointer, size in saved.items() if size >= y.nbytes}
    extra = {2: y if act in ("relu", "relu6", "leaky") else tensors[1]}.get(kept)
    assert large == {t.untyped_storage().data_ptr() for t in (tensors[0], extra) if t is not None}


@native
@pytest.mark.parametrize("norm", ["batch", "group", "switchable"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(norm: str, reentrant: bool) -> None:
    layer = NormAct(lively(norm), nn.SiLU())
    tensors = given(layer.norm, True)
    wanted = torch.autograd.grad(layer(*tensors[:2]).pow(2).sum(), tensors)
    before = copy.deepcopy(dict(layer.named_buffers()))
    y: Any = checkpoint(layer, *tensors[:2], use_reentrant=reentrant)
    y.pow(2).sum().backward()
    torch.testing.assert_close([t.grad for t in tensors], list(wanted))
    if before:
        assert layer.get_buffer("num_batches_tracked") == before["num_batches_tracked"] + 1


@native
@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_autocast_and_half_precision(norm: str, dtype: torch.dtype) -> None:
    made = lively(norm, torch.float32)
    layer, other = NormAct(made, nn.ReLU()), copy.deepcopy(made)
    x, residual = sample(dtype).requires_grad_(), sample(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y, want = layer(x, residual), stepwise(other, nn.ReLU(), x, residual)
    assert is_fused(y)
    assert y.dtype == want.dtype
    torch.testing.assert_close(y, want, rtol=0, atol={torch.float32: 1e-5}.get(dtype, 0.06))


@pytest.mark.parametrize(
    ("act", "residual"),
    [
        (torch.tanh, None),
        (nn.GELU("tanh"), None),
        (nn.LeakyReLU(-0.1), None),
        (nn.PReLU(dtype=torch.float64), None),
        (nn.ReLU(), torch.randn(4, C, 1, 1, dtype=torch.float64)),
        (nn.ReLU(), torch.randn(4, C, 5, 6)),
    ],
    ids=["tanh", "gelu tanh", "leaky upwards", "prelu", "broadcast", "other dtype"],
)
def test_what_the_kernels_do_not_know_is_done_step_by_step(act: Any, residual: Tensor | None) -> None:
    made, x = lively("batch"), sample().requires_grad_()
    y = NormAct(made, act)(x, residual)
    assert not is_fused(y)
    torch.testing.assert_close(y, stepwise(made, act, x, residual))


def test_norms_of_others_are_called_as_they_are() -> None:
    for norm in (nn.BatchNorm2d(C), nw.ChannelAffine(C), nn.Identity()):
        x = sample(torch.float32)
        torch.testing.assert_close(NormAct(norm, F.relu)(x, x), F.relu(norm(x) + x))


def test_hooks_on_norm_and_activation_are_called() -> None:
    layer, seen = NormAct(nw.BatchNorm2d(C), nn.ReLU()), []
    for part in (layer.norm, layer.act):
        handle = part.register_forward_hook(lambda module, args, y: seen.append(type(module).__name__))
        layer(sample(torch.float32))
        handle.remove()
    layer(sample(torch.float32))
    assert seen == ["BatchNorm2d", "ReLU"]


def test_an_unbatched_instance() -> None:
    layer, x = NormAct(nw.InstanceNorm2d(C), nn.ReLU()), torch.randn(C, 5, 6)
    torch.testing.assert_close(layer(x, x), F.relu(F.instance_norm(x[None])[0] + x))


def test_checks_of_the_norm_still_speak() -> None:
    with pytest.raises(ValueError, match="must have 6 channels on axis 1"):
        NormAct(nw.BatchNorm2d(C), nn.ReLU())(torch.randn(2, 3, 4, 4))
    with pytest.raises(TypeError, match="norm must be a module, and act a module, a function or None, got int and str"):
        NormAct(3, "relu")  # pyright: ignore[reportArgumentType]


def network() -> Any:
    return nn.Sequential(nn.Conv2d(3, C, 3), NormAct(nw.BatchNorm2d(C), nn.ReLU()), nn.Conv2d(C, 4, 1))


def test_a_checkpoint_of_the_norm_fits_and_goes_back() -> None:
    bare = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.Conv2d(C, 4, 1))
    bare(torch.randn(2, 3, 6, 6))
    model = network()
    assert list(model.state_dict()) == list(bare.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in bare.named_parameters()]
    assert [name for name, _ in model.named_buffers()] == [name for name, _ in bare.named_buffers()]
    model.load_state_dict(bare.state_dict(), strict=True)
    back = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.Conv2d(C, 4, 1))
    back.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(back.state_dict(), bare.state_dict())
    torch.testing.assert_close(model.state_dict(), bare.state_dict())
    assert bare.state_dict()._metadata["1"] == model.state_dict()._metadata["1"]  # pyright: ignore[reportAttributeAccessIssue]


def test_a_checkpoint_that_does_not_fit_is_refused() -> None:
    state = network().state_dict()
    del state["1.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: .1.norm.weight"):
        network().load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: .1.norm.gain"):
        network().load_state_dict({**network().state_dict(), "1.gain": torch.ones(1)})


def test_what_the_activation_learns_is_under_its_name() -> None:
    layer = NormAct(nn.BatchNorm2d(C), nn.PReLU())
    assert {"weight", "act.weight"} < set(layer.state_dict())
    other = NormAct(nw.BatchNorm2d(C), nn.PReLU(init=0.7))
    layer.load_state_dict(other.state_dict())
    assert layer.act.weight.item() == pytest.approx(0.7)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_stand_on_their_own(copied: Callable[[nn.Module], Any]) -> None:
    model, x = network(), torch.randn(2, 3, 6, 6)
    twin = copied(model)
    torch.testing.assert_close(twin(x), model(x))
    with torch.no_grad():
        twin[1].weight.fill_(2.0)
    assert torch.equal(twin[1].norm.weight, torch.full((C,), 2.0))
    assert torch.equal(model[1].norm.weight, torch.ones(C))
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in model.named_parameters()]


def test_a_half_precision_model_keeps_wide_statistics() -> None:
    layer = NormAct(nw.BatchNorm2d(C), nn.ReLU()).bfloat16()
    assert (layer.weight.dtype, layer.running_mean.dtype) == (torch.bfloat16, torch.float32)
    assert layer.norm.running_mean is layer.running_mean


def test_functional_call_reaches_the_norm() -> None:
    model, x = network(), torch.randn(2, 3, 6, 6)
    state = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    assert torch.equal(torch.func.functional_call(model, state, x), torch.zeros(2, 4, 4, 4))


def test_sync_batch_norm_is_put_inside() -> None:
    model: Any = nn.SyncBatchNorm.convert_sync_batchnorm(network()).eval()
    bare = network()
    assert isinstance(model[1], NormAct)
    assert isinstance(model[1].norm, nn.SyncBatchNorm)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in bare.named_parameters()]
    x = torch.randn(2, 3, 6, 6)
    bare.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), bare.eval()(x))


def test_folding_by_hand_keeps_the_activation_or_speaks() -> None:
    model, x = network(), torch.randn(2, 3, 6, 6)
    model(x)
    wanted = model.eval()(x)
    layer: Any = model[1]
    with pytest.raises(AttributeError, match="has no attribute 'eps'"):  # else the activation would go with it
        fuse_conv_bn_eval(model[0], layer)
    model[0] = fuse_conv_bn_eval(model[0], layer.norm)
    layer.norm = nn.Identity()
    torch.testing.assert_close(model(x), wanted)
    assert "1.weight" not in dict(model.named_parameters())


def test_our_own_surgery_finds_the_norm_inside() -> None:
    model, x = network(), torch.randn(2, 3, 6, 6)
    assert [layer.path for layer in norm_layers(model)] == ["1.norm"]
    model(x)
    wanted = model.eval()(x)
    plan = nw.fold(model, x)
    torch.testing.assert_close(model(x), wanted)
    assert [change.path for change in plan.changes] == ["1.norm"]
    plan.undo()
    torch.testing.assert_close(model(x), wanted)
    swap(model, "group:2", example=x)
    assert isinstance(model[1].norm, nw.GroupNorm)
    assert [name for name, _ in model.named_parameters()][2:4] == ["1.weight", "1.bias"]
    assert model(x).shape == (2, 4, 4, 4)


def test_recalibration_reaches_the_norm_inside() -> None:
    model: Any = nn.Sequential(NormAct(nw.BatchNorm(1), nn.ReLU())).eval()
    nw.recalibrate(model, [torch.tensor([[0.0], [2.0], [4.0]]), torch.tensor([[6.0], [8.0], [10.0]])])
    assert model[0].running_mean.item() == 5.0


def test_tracing_compiling_and_exporting_see_ordinary_operations() -> None:
    torch._dynamo.reset()
    model, x = network().eval(), torch.randn(2, 3, 6, 6)
    wanted = model(x)
    graph = torch.fx.symbolic_trace(model)
    assert [str(node.target) for node in graph.graph.nodes if node.op == "call_module"] == ["0", "1.norm", "1.act", "2"]
    torch.testing.assert_close(graph(x), wanted)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), wanted)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), wanted)
    batch = torch.stack([x, x + 1])
    torch.testing.assert_close(torch.func.vmap(model)(batch), torch.stack([model(each) for each in batch]))


def test_an_activation_is_known_only_as_pytorch_made_it() -> None:
    class Loud(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    assert known_act(Loud()) is None
    assert known_act(nn.ReLU(inplace=True)) == kernels.RELU
    replaced = nn.ReLU()
    replaced.forward = torch.tanh
    assert known_act(replaced) is None
    assert known_act(nn.ReLU6()) == kernels.hardtanh(0.0, 6.0)
