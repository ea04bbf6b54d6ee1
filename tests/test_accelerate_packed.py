"""accelerate and timm's norms that bring their own activation, by stand-ins for timm's classes."""

import copy
import pickle
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from models import untouched
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

import normwise as nw
from normwise import kernels
from normwise.surgery import packed
from normwise.tail import NOTHING, Tail

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")


class BatchNormAct2d(nn.BatchNorm2d):
    """Norm, drop and activation, as timm's class of this name."""

    def __init__(self, channels: int, act: nn.Module, drop: nn.Module | None = None, **options: Any) -> None:
        super().__init__(channels, **options)
        self.drop, self.act = drop or nn.Identity(), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class GroupNormAct(nn.GroupNorm):
    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(4, channels)
        self.drop, self.act, self._fast_norm = nn.Identity(), act, False

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class GroupNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class Further(BatchNormAct2d):
    """A user's own, which may do more."""


@pytest.fixture(autouse=True)
def timm(monkeypatch: pytest.MonkeyPatch, always_native: None) -> None:
    """The classes where timm has them."""
    homes = {f"timm.layers.{home}": ModuleType(home) for home in ("norm", "norm_act")}
    for name, home in {"timm": ModuleType("timm"), "timm.layers": ModuleType("layers"), **homes}.items():
        monkeypatch.setitem(sys.modules, name, home)
    for kind, name in zip((GroupNorm, GroupNormAct, BatchNormAct2d), (*homes, "timm.layers.norm_act"), strict=True):
        monkeypatch.setattr(kind, "__module__", name)
        vars(homes[name])[kind.__name__] = kind


@pytest.fixture
def tails(monkeypatch: pytest.MonkeyPatch) -> list[Tail]:
    """What each norm is told to do after it."""
    seen: list[Tail] = []
    whole = packed.AnyBatchNorm.normalize

    def normalize(self: Any, x: Tensor, mask: Tensor | None, tail: Tail = NOTHING) -> Tensor:
        seen.append(tail)
        return whole(self, x, mask, tail)

    monkeypatch.setattr(packed.AnyBatchNorm, "normalize", normalize)
    return seen


def network(norm: nn.Module) -> Any:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), norm, nn.Conv2d(8, 4, 3))
    with torch.no_grad():
        for p in model[1].parameters():
            p.add_(torch.rand_like(p))
    return model.double()


def image(seed: int = 0) -> Tensor:
    return torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients of everything, and buffers after a training step; and the output in evaluation then."""
    torch.manual_seed(0)
    x = x.clone().requires_grad_()
    y = model.train()(x)
    grads = torch.autograd.grad(y.pow(2).sum(), [x, *model.parameters()])
    return [y.detach(), *grads, *model.buffers(), model.eval()(x)]


MADE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "relu": (lambda: BatchNormAct2d(8, nn.ReLU(inplace=True)), "ReLU in the same pass"),
    "silu": (lambda: BatchNormAct2d(8, nn.SiLU(inplace=True)), "SiLU in the same pass"),
    "hardswish": (lambda: BatchNormAct2d(8, nn.Hardswish(inplace=True)), "Hardswish after it"),
    "nothing": (lambda: BatchNormAct2d(8, nn.Identity()), ""),
    "drop": (lambda: BatchNormAct2d(8, nn.ReLU(), nn.Dropout(0.5)), "Dropout and ReLU after it"),
    "no drop": (lambda: BatchNormAct2d(8, nn.ReLU6(), nn.Dropout(0.0)), "ReLU6 in the same pass"),
    "average": (lambda: BatchNormAct2d(8, nn.ReLU(), momentum=None), "ReLU in the same pass"),
    "batches": (lambda: BatchNormAct2d(8, nn.ReLU(), track_running_stats=False), "ReLU in the same pass"),
    "groups": (lambda: GroupNormAct(8, nn.LeakyReLU(0.1)), "LeakyReLU in the same pass"),
    "bare groups": (lambda: GroupNorm(4, 8), ""),
}


@pytest.mark.parametrize("name", MADE)
def test_such_a_norm_keeps_its_function(name: str) -> None:
    make, note = MADE[name]
    model = network(make())
    twin = copy.deepcopy(model)
    with untouched(model):
        plan = nw.accelerate(model, image())
        kind = type(model[1])
        plan.undo()
    assert [change.note for change in plan.changes] == [note]
    assert not plan.left
    nw.accelerate(model, image())
    assert (type(model[1]), kind.__name__) == (kind, type(twin[1]).__name__)
    assert isinstance(model[1], type(twin[1]))
    for seed in (1, 2):
        torch.testing.assert_close(step(model, image(seed)), step(twin, image(seed)))
    assert list(model.state_dict()) == list(twin.state_dict())
    assert not nw.accelerate(model).changes


def test_the_plan_says_what_it_became() -> None:
    plan = nw.accelerate(network(BatchNormAct2d(8, nn.ReLU())))
    assert str(plan.changes[0]) == ("1: timm.layers.BatchNormAct2d -> BatchNormAct2d, native (ReLU in the same pass)")


def test_one_pass_unless_somebody_watches_or_something_drops(tails: list[Tail]) -> None:
    model, x = network(BatchNormAct2d(8, nn.ReLU())), image()
    nw.accelerate(model)
    wanted = model(x)
    seen: list[Tensor] = []
    handle = model[1].act.register_forward_hook(lambda act, args, y: seen.append(y))
    torch.testing.assert_close(model(x), wanted)
    handle.remove()
    model[1].drop = nn.Dropout(0.5)
    model.eval()(x)
    model[1].drop = nn.Identity()
    model[1].act = nn.GELU()
    model(x)
    acts = [kernels.RELU, kernels.NONE, kernels.NONE, kernels.GELU]
    assert ([tail.act for tail in tails], len(seen)) == (acts, 1)


def test_timms_gelu_is_known(tails: list[Tail]) -> None:
    class Gelu(nn.Module):
        __module__, __qualname__ = "timm.layers.activations", "GELU"

        def forward(self, input: Tensor) -> Tensor:
            return F.gelu(input)

    model = network(BatchNormAct2d(8, Gelu()))
    wanted = model(image())
    nw.accelerate(model)
    torch.testing.assert_close(model(image()), wanted)
    assert [tail.act for tail in tails] == [kernels.GELU]


def test_an_activation_that_is_no_module_is_left_or_called_as_timm_calls_it() -> None:
    model, x = network(BatchNormAct2d(8, nn.ReLU())), image()
    nw.accelerate(model)
    del model[1].act
    model[1].act = torch.tanh
    wanted = model[2](torch.tanh(F.batch_norm(model[0](x), None, None, model[1].weight, model[1].bias, True)))
    torch.testing.assert_close(model(x), wanted)
    for norm, part in ((BatchNormAct2d(8, nn.ReLU()), "act"), (GroupNormAct(8, nn.ReLU()), "drop")):
        setattr(norm, part, None)
        plan = nw.accelerate(network(norm))
        assert [left.note for left in plan.left] == ["its drop or its act is no module"]


@pytest.mark.parametrize("accelerated", [False, True])
def test_frozen_statistics_stand(accelerated: bool) -> None:
    model, x = network(BatchNormAct2d(8, nn.SiLU())), image()
    step(model, x)
    wanted, keys = model.eval()(x), list(model.state_dict())
    if accelerated:
        nw.accelerate(model)
    model.train()
    with untouched(model):
        plan = nw.freeze(model)
        plan.undo()
    plan = nw.freeze(model, affine=True)
    assert [(change.path, change.note) for change in plan.changes] == [("1", "statistics, weight and bias")]
    before = copy.deepcopy(model.state_dict())
    torch.testing.assert_close(copy.deepcopy(model)(x), wanted)
    torch.testing.assert_close(model(x), wanted)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert list(model.state_dict()) == keys
    assert (len(nw.unfreeze(model).changes), model[1].weight.requires_grad) == (1, True)
    assert not torch.allclose(model(x), wanted)


def test_what_is_called_in_place_of_the_norms_own_forward_is_not_frozen() -> None:
    norm: Any = BatchNormAct2d(8, nn.SiLU())
    norm.forward = torch.tanh
    assert [left.path for left in nw.freeze(network(norm)).left] == ["1"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_stand_on_their_own(copied: Callable[[Any], Any]) -> None:
    model = network(BatchNormAct2d(8, nn.ReLU()))
    nw.accelerate(model)
    twin = copied(model)
    assert type(twin[1]) is type(model[1])
    mean = model[1].running_mean.clone()
    step(twin, image())
    assert torch.equal(model[1].running_mean, mean)
    torch.testing.assert_close(step(twin, image(1))[0], step(model, image(1))[0])


def test_compiling_exporting_tracing_and_folding_afterwards() -> None:
    torch._dynamo.reset()
    model, x = network(BatchNormAct2d(8, nn.ReLU())), image()
    step(model, x)
    wanted = model(x)
    nw.accelerate(model)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), wanted)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), wanted)
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1", "2"]
    torch.testing.assert_close(traced(x), wanted)
    folded = nn.Sequential(fuse_conv_bn_eval(model[0], model[1]), model[1].act, model[2])
    torch.testing.assert_close(folded(x), wanted)


def test_what_is_left_and_why() -> None:
    fast: Any = GroupNormAct(8, nn.ReLU())
    fast._fast_norm = True
    plan = nw.accelerate(nn.ModuleDict({"further": Further(8, nn.ReLU()), "fast": fast}))
    assert not plan.changes
    reasons = {left.path: left.note for left in plan.left}
    assert "it is a class of its own, whose forward may do more" in reasons["further"]
    assert "timm's fast norm is on" in reasons["fast"]


def test_swap_afterwards_finds_what_it_found_before() -> None:
    model = network(BatchNormAct2d(8, nn.ReLU()))
    nw.accelerate(model)
    assert "forward of its own" in nw.swap(model, "group:4").left[0].note
    bare = network(GroupNorm(4, 8))
    nw.accelerate(bare)
    assert [change.after for change in nw.swap(bare, "group:2").changes] == ["group:2"]
