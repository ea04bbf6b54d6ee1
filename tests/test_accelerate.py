"""accelerate: the same function in one pass, and nothing else of the model moves."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from blocks import NORMS, Block, Pooled, image, resnet
from models import ZOO, lively, untouched
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

import normwise as nw
from normwise import kernels
from normwise.errors import UsageError
from normwise.surgery import accelerate as home
from normwise.surgery.forward import call

pytestmark = [
    pytest.mark.skipif(not kernels.available(), reason="the kernels were not built"),
    pytest.mark.usefixtures("always_native"),
]


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients of everything, and buffers after one training step."""
    x = x.clone().requires_grad_()
    y = model.train()(x)
    grads = torch.autograd.grad(y.pow(2).sum(), [x, *model.parameters()])
    return [y.detach(), *grads, *model.buffers()]


@pytest.mark.parametrize("norm", NORMS)
def test_a_resnet_keeps_its_function(norm: str, joined: list[str]) -> None:
    model, x = resnet(norm).double(), image().double()
    twin = copy.deepcopy(model)
    plan = nw.accelerate(model, x)
    assert len(joined) == 3 * 9  # twice in evaluation, once in training: the other time with PyTorch's nodes
    torch.testing.assert_close(step(model, x), step(twin, x))
    torch.testing.assert_close(model.eval()(x), twin.eval()(x))
    assert [change.path for change in plan.changes if "fused" in change.after] == [
        "", "layer1.0", "layer1.1", "layer2.0", "layer2.1",
    ]  # fmt: skip
    assert str(plan.changes[-1]) == "layer2.1: Block -> Block, fused (bn1 + relu; bn2 + add + relu)"
    assert not plan.left


def test_less_is_kept_for_the_backward_pass() -> None:
    def kept(model: nn.Module) -> int:
        sizes: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(image(32))
        return sum(sizes.values())

    model = resnet()
    before = kept(model)
    nw.accelerate(model)
    assert kept(model) <= before


def test_names_objects_hooks_and_optimizer_survive() -> None:
    model, x = resnet(), image()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    modules = {name: (id(module), type(module).__name__) for name, module in model.named_modules()}
    tensors = {name: id(t) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    seen: list[Tensor] = []
    handle = model.layer1[0].bn2.register_forward_hook(lambda module, args, y: seen.append(y.detach().clone()))
    wanted = model.eval()(x)
    nw.accelerate(model, x)
    torch.testing.assert_close(model(x), wanted)
    torch.testing.assert_close(seen[-1], seen[0], rtol=1e-4, atol=1e-4)
    assert isinstance(model.layer1[0], Block)
    assert {name: (id(module), type(module).__name__) for name, module in model.named_modules()} == modules
    assert {name: id(t) for name, t in [*model.named_parameters(), *model.named_buffers()]} == tensors
    handle.remove()
    model.train()(x).sum().backward()
    optimizer.step()


def test_undo_and_dry_run_and_errors_leave_the_model_as_it_was() -> None:
    model, x, wrong = resnet(), image(), torch.randn(4, 5, 6, 6)
    with untouched(model):
        plan = nw.accelerate(model, x)
        plan.undo()
    with untouched(model):
        assert len(nw.accelerate(model, x, dry_run=True).changes) == len(plan.changes) == 15
    with (
        untouched(model),
        pytest.raises(UsageError, match="in evaluation the model does not run on the example: Runti"),
    ):
        nw.accelerate(model, wrong)


def derived_with_keyword() -> nn.Module:
    class Base(nn.Module):
        def __init_subclass__(cls, *, kind: str) -> None:
            super().__init_subclass__()

    class Derived(Base, Pooled, kind="a"):
        pass

    return Derived()


def parametrized() -> nn.Module:
    model = Pooled()
    model.register_parameter("gain", nn.Parameter(torch.ones(3)))
    parametrize.register_parametrization(model, "gain", nn.Softplus())
    return model


@pytest.mark.parametrize(
    ("make", "why"),
    [(derived_with_keyword, "a class derived from its own cannot be made .*kind"), (parametrized, "a parametrization")],
)
def test_blocks_whose_class_is_not_to_be_changed_are_left(make: Callable[[], nn.Module], why: str) -> None:
    model = make()
    kind = type(model)
    plan = nw.accelerate(model, image())
    assert type(model) is kind
    assert [change.path for change in plan.changes] == ["norm"]
    with pytest.raises(AssertionError, match=f"its norms run by themselves: {why}"):
        raise AssertionError(plan.left[0].note)


def test_a_parametrization_may_come_and_go() -> None:
    model: Any = Pooled()
    model.register_parameter("gain", nn.Parameter(torch.ones(3)))
    x = image()
    nw.accelerate(model)
    fused = type(model)
    parametrize.register_parametrization(model, "gain", nn.Softplus())
    nw.accelerate(model, x)
    torch.testing.assert_close(model(x), Pooled.forward(model, x))
    parametrize.remove_parametrizations(model, "gain")
    assert type(model) is fused
    torch.testing.assert_close(model(x), Pooled.forward(model, x))


def test_undo_leaves_a_norm_that_was_parametrized_since() -> None:
    model, x = Pooled().eval(), image()
    plan = nw.accelerate(model, x)
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    parametrize.register_parametrization(norm, "weight", nn.Softplus())
    want = model(x)
    plan.undo()
    torch.testing.assert_close(model(x), want)


def test_a_model_with_integer_parameters_is_compared() -> None:
    model, x = Pooled(), image()
    model.register_parameter("table", nn.Parameter(torch.arange(3), requires_grad=False))
    assert nw.accelerate(model, x).changes


def test_a_model_made_in_inference_mode_is_accelerated_outside() -> None:
    with torch.inference_mode():
        model = Pooled().eval()
    assert nw.accelerate(model).changes


def test_a_model_is_accelerated_and_compared_in_inference_mode() -> None:
    model, x = Pooled(), image()
    with torch.inference_mode():
        assert nw.accelerate(model, x).changes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_undo_after_a_change_to_half_precision(dtype: torch.dtype) -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8, affine=False))
    plan, x = nw.accelerate(model), image().to(dtype)
    model.to(dtype)
    wanted = model.eval()(x)
    assert model[1].running_var.dtype == torch.float32
    plan.undo()
    torch.testing.assert_close(model(x), wanted, rtol=0.02, atol=0.02)
    assert model[1].running_var.dtype == dtype
    assert model[1].num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_keeps_its_function(name: str) -> None:
    model, example = lively(ZOO[name].make()), ZOO[name].example()
    twin = copy.deepcopy(model)
    plan = nw.accelerate(model, example)
    for mode in (True, False):
        found = []
        for each in (model, twin):
            torch.manual_seed(0)  # dropout
            found.append(call(each.train(mode), example))
        torch.testing.assert_close(*found, **({"rtol": 0, "atol": 0.06} if name == "half" else {}))
    for key, value in twin.state_dict().items():
        if not (key.endswith("tracked") and name == "instances"):  # PyTorch's instance norm does not count
            torch.testing.assert_close(model.state_dict()[key], value)
    plan.undo()
    assert [type(module) for module in model.modules()] == [type(module) for module in twin.modules()]


def test_accelerating_twice_changes_nothing_more() -> None:
    model, x = resnet(), image()
    nw.accelerate(model, x)
    classes = [type(module) for module in model.modules()]
    wanted = model.eval()(x)
    assert not nw.accelerate(model, x).changes
    assert [type(module) for module in model.modules()] == classes
    torch.testing.assert_close(model(x), wanted)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_fused_too_and_stand_on_their_own(copied: Callable[[Any], Any], joined: list[str]) -> None:
    model, x = resnet().eval(), image()
    nw.accelerate(model)
    twin = copied(model)
    torch.testing.assert_close(twin(x), model(x))
    assert len(joined) == 18
    with torch.no_grad():
        twin.fc.weight.zero_()
        twin.layer1[0].bn1.weight.zero_()
    assert not torch.allclose(twin(x), model(x))


def test_a_forward_that_calls_max_pool2d_is_pickled(joined: list[str]) -> None:
    model, x = Pooled().eval(), image()
    nw.accelerate(model)
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        torch.testing.assert_close(copied(x), model(x))
    assert joined == ["norm + ReLU"] * 4


def test_parts_that_are_replaced_later_are_called(joined: list[str]) -> None:
    model, x = resnet().eval(), image()
    nw.accelerate(model)
    block: Any = model.layer1[0]
    z = torch.randn(4, 8, 6, 6)
    for change in (
        lambda: setattr(block, "relu", nn.LeakyReLU()),
        lambda: setattr(block, "downsample", nn.Conv2d(8, 8, 1)),
    ):
        joined.clear()
        assert torch.isfinite(block(z)).all()
        assert len(joined) == 2
        change()
        joined.clear()
        torch.testing.assert_close(block(z), Block.forward(block, z))
        assert joined == []
        nw.accelerate(block)
    assert torch.isfinite(model(x)).all()


def test_sync_batch_norm_and_folding_afterwards() -> None:
    x = image()
    for surgery in ("sync", "fold", "torch"):
        model = resnet().eval()
        wanted = model(x)
        nw.accelerate(model, x)
        if surgery == "sync":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
            assert sum(isinstance(m, nn.SyncBatchNorm) for m in model.modules()) == 10
        elif surgery == "fold":
            assert len(nw.fold(model, x).changes) == 10
        else:
            for block in (model, *model.layer1, *model.layer2):
                block.conv1 = fuse_conv_bn_eval(block.conv1, block.bn1)
                block.bn1 = nn.Identity()
        torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)


def test_swapping_afterwards_finds_every_norm() -> None:
    model, x = resnet(), image()
    nw.accelerate(model, x)
    assert len(nw.swap(model, "group:4", example=x).changes) == 10
    assert model(x).shape == (4, 5)


def test_compiling_exporting_and_checkpointing() -> None:
    torch._dynamo.reset()
    model, x = resnet().eval(), image()
    wanted = model(x)
    nw.accelerate(model)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), wanted)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), wanted)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), wanted)
    x.requires_grad_()
    plainly = torch.autograd.grad(model(x).sum(), x)
    for reentrant in (True, False):
        y: Any = checkpoint(model, x, use_reentrant=reentrant)
        y.sum().backward()
        torch.testing.assert_close((x.grad,), plainly)
        x.grad = None


def test_what_is_left_and_why() -> None:
    class Own(nn.BatchNorm2d):
        pass

    patched = nn.BatchNorm2d(3)
    patched.forward = torch.tanh
    model = nn.ModuleDict(
        {
            "sync": nn.SyncBatchNorm(3),
            "lazy": nn.LazyBatchNorm2d(),
            "own": Own(3),
            "tokens": nn.LayerNorm(3),
            "meta": nn.BatchNorm2d(3, device="meta"),
            "patched": patched,
            "average": nn.InstanceNorm2d(3, track_running_stats=True, momentum=None),  # pyright: ignore
            "ours": nw.BatchNorm2d(3),
            "quantized": torch.ao.nn.quantized.BatchNorm2d(3),
        }
    )
    plan = nw.accelerate(model)
    assert not plan.changes
    reasons = {left.path: left.note for left in plan.left}
    expected = {
        "sync": "it pools over processes",
        "lazy": "does not know its channels yet; run one batch",
        "own": "it is a class of its own",
        "tokens": "it normalizes each position",
        "meta": "it is on meta, and the kernels run on the CPU",
        "patched": "a forward of its own on the instance",
        "average": "never moves its statistics with momentum=None",
        "quantized": "it is a class of its own",
    }
    assert reasons.keys() == expected.keys()
    assert [path for path, why in expected.items() if why not in reasons[path]] == []


def test_where_pytorchs_group_norm_is_silent_it_stays_so() -> None:
    model, x = nn.Sequential(nn.GroupNorm(4, 4), nn.ReLU()), torch.randn(3, 4, 1, 1)
    bare, y = nn.Sequential(nn.GroupNorm(2, 4, affine=False), nn.ReLU()), torch.randn(3, 6, 4, 4)
    for net, given in ((model, x), (bare, y)):
        wanted = net(given)
        nw.accelerate(net, given)
        torch.testing.assert_close(net(given), wanted)
        assert type(net[0]) is nw.GroupNorm


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_a_batch_without_values_passes_and_teaches_nothing(shape: tuple[int, ...]) -> None:
    model: Any = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    nw.accelerate(model)
    x = torch.empty(shape, requires_grad=True)
    y = model(x)
    y.sum().backward()
    assert y.shape == shape
    assert x.grad is not None
    assert model[0].running_var.tolist() == [1, 1, 1]


def test_without_kernels_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home.kernels, "available", lambda: False)
    model = resnet()
    with untouched(model):
        assert "kernels were not built" in nw.accelerate(model).notes[0]


def test_wrapped_models_are_refused() -> None:
    model: Any = torch.compile(resnet(), backend="eager")
    with pytest.raises(UsageError, match="accelerate must come before wrapping"):
        nw.accelerate(model)
