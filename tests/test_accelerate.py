"""accelerate: the same function in one pass, and nothing else of the model moves."""

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import ZOO, lively, untouched
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

import normwise as nw
from normwise import kernels, plain
from normwise.errors import UsageError
from normwise.surgery import accelerate as home
from normwise.surgery.forward import call
from normwise.surgery.tape import Join

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")


class Block(nn.Module):
    """torchvision's BasicBlock: one ReLU used twice, the residual added in place."""

    def __init__(self, channels: int, out: int, stride: int = 1, norm: Callable[[int], nn.Module] = nn.BatchNorm2d):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = norm(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = norm(out)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), norm(out))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(Block(8, 8, norm=norm), Block(8, 8, norm=norm))
        self.layer2 = nn.Sequential(Block(8, 16, 2, norm), Block(16, 16, norm=norm))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "instance": lambda c: nn.InstanceNorm2d(c, affine=True),
    "group": lambda c: nn.GroupNorm(4, c),
}


@pytest.fixture(autouse=True)
def always_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors too, so that the tests are quick."""
    monkeypatch.setattr(plain, "_suits_pytorch", lambda x, groups: False)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was done in one pass, as it is done."""
    seen: list[str] = []
    whole = Join.run

    def run(self: Join, block: nn.Module, slots: list[Any]) -> None:
        whole(self, block, slots)
        y = slots[self.steps[-1].out]
        if not torch.is_grad_enabled() or type(y.grad_fn).__name__ in ("_NormBackward", "_NormalizeBackward"):
            seen.append(str(self))

    monkeypatch.setattr(Join, "run", run)
    return seen


def resnet(norm: str = "batch") -> Any:
    return lively(ResNet(NORMS[norm]))


def image(size: int = 12) -> Tensor:
    return torch.randn(4, 3, size, size)


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
    assert len(joined) == 2 * 9  # compared in evaluation and in training
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


def test_a_difference_is_noticed_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = resnet(), image()
    whole = Join.run

    def wrong(self: Join, block: nn.Module, slots: list[Any]) -> None:
        whole(self, block, slots)
        slots[self.steps[-1].out] = slots[self.steps[-1].out] * 1.01

    monkeypatch.setattr(Join, "run", wrong)
    with untouched(model), pytest.raises(UsageError, match=r"in evaluation the outputs .* more than rounding explains"):
        nw.accelerate(model, x)


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
    nw.accelerate(model, x)
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


class Line(nn.Module):
    """A convolution, a norm, and what a test adds."""

    def __init__(self, after: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()
        self.after = after
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.after(self, self.norm(self.conv(x)), x)


@pytest.mark.parametrize(
    ("after", "joins"),
    [
        (lambda m, y, x: m.act(y), ["norm + act"]),
        (lambda m, y, x: F.leaky_relu(y, 0.2, inplace=True), ["norm + LeakyReLU"]),
        (lambda m, y, x: F.gelu(y), ["norm + GELU"]),
        (lambda m, y, x: y.relu(), ["norm + ReLU"]),
        (lambda m, y, x: x + y, ["norm + add"]),
        (lambda m, y, x: F.silu(torch.add(y, x)).mean((2, 3)), ["norm + add + SiLU"]),
        (lambda m, y, x: (m.act(y), x), ["norm + act"]),
        (lambda m, y, x: m.act(y + y), []),
        (lambda m, y, x: (m.act(y), y), []),
        (lambda m, y, x: m.act(y + x) + y, []),
        (lambda m, y, x: torch.tanh(y), []),
        (lambda m, y, x: F.gelu(y, approximate="tanh"), []),
        (lambda m, y, x: y + 1, []),
        (lambda m, y, x: torch.add(y, x, alpha=2), []),
        (lambda m, y, x: F.relu(m.norm(y)), []),
    ],
)
def test_what_is_joined(after: Any, joins: list[str], joined: list[str]) -> None:
    model, x = Line(after), torch.randn(4, 3, 5, 5)
    twin = copy.deepcopy(model)
    nw.accelerate(model)
    torch.testing.assert_close(model(x), twin(x))
    assert joined == joins


def branch(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) if m.training else y


def draws(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) if random.random() < 2 else y


def stores(m: Any, y: Tensor, x: Tensor) -> Tensor:
    m.feature = y
    return m.act(y)


def without_gradients(m: Any, y: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        return m.act(y)


def checkpointed(m: Any, y: Tensor, x: Tensor) -> Any:
    return checkpoint(m.act, y, use_reentrant=False)


def by_value(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) if y.sum() > -1e9 else y


def with_constant(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) * torch.ones(1)


class Optional(Line):
    def forward(self, x: Tensor, gain: Tensor | None = None) -> Any:
        return super().forward(x if gain is None else x * gain)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Line(branch), "takes another course in training than in evaluation"),
        (lambda: Line(draws), "draws random numbers"),
        (lambda: Line(stores), "changes the module"),
        (lambda: Line(without_gradients), "switches gradients, autocast or checkpointing"),
        (lambda: Line(checkpointed), "switches gradients, autocast or checkpointing"),
        (lambda: Line(by_value), "cannot be traced"),
        (lambda: Line(with_constant), "a tensor that is neither a parameter nor a buffer"),
        (lambda: Line(branch, settings={"act": True}), r"its attribute 'settings' \(dict\) may change"),
        (lambda: Optional(lambda m, y, x: m.act(y)), "has optional arguments"),
    ],
)
def test_blocks_that_are_left_as_they_are(make: Callable[[], Line], why: str) -> None:
    model, x = make(), torch.randn(4, 3, 5, 5)
    twin = copy.deepcopy(model)
    plan = nw.accelerate(model)
    assert [left.path for left in plan.left] == [""]
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(plan.left[0].note)
    assert type(model) is type(twin)
    torch.testing.assert_close(model(x), twin(x))


def test_an_attribute_that_changes_later_is_heeded() -> None:
    def after(m: Any, y: Tensor, x: Tensor) -> Tensor:
        return m.act(y) * m.gain if m.loud else m.act(y)

    model: Any = Line(after, gain=2.0, loud=False)
    x = torch.randn(4, 3, 5, 5)
    nw.accelerate(model)
    quiet = model(x)
    model.loud = True
    torch.testing.assert_close(model(x), 2 * quiet)
    model.gain = 3.0
    torch.testing.assert_close(model(x), 3 * quiet)


def test_layer_lists_are_followed_and_heeded(joined: list[str]) -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for norm in self.norms:
                x = F.relu(norm(x))
            return x

    model, x = Stack(), torch.randn(4, 3, 5, 5)
    nw.accelerate(model)
    model(x)
    assert joined == ["norms.0 + ReLU", "norms.1 + ReLU"]
    model.norms.append(nn.BatchNorm2d(3))
    torch.testing.assert_close(model(x), Stack.forward(model, x))
    assert len(joined) == 2


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


def test_an_example_of_one_value_is_compared_in_evaluation_only() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
    plan = nw.accelerate(model, torch.randn(1, 3))
    assert [note.split(":")[0] for note in plan.notes][-1] == "not compared in training"
    assert plan.applied


def test_without_kernels_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home.kernels, "available", lambda: False)
    model = resnet()
    with untouched(model):
        assert "kernels were not built" in nw.accelerate(model).notes[0]


def test_wrapped_models_are_refused() -> None:
    model: Any = torch.compile(resnet(), backend="eager")
    with pytest.raises(UsageError, match="accelerate must come before wrapping"):
        nw.accelerate(model)
