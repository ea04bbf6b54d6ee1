"""What changes later in the parts of a block that accelerate has joined is heeded: tensors, layers, hooks."""

from typing import Any

import pytest
import torch
from blocks import Line, parts
from torch import Tensor, nn
from torch.nn import functional as F

import normwise as nw
from normwise import kernels

pytestmark = [
    pytest.mark.skipif(not kernels.available(), reason="the kernels were not built"),
    pytest.mark.usefixtures("always_native"),
]


def through_children(m: Any, y: Tensor) -> Tensor:
    for layer in m.part.children():
        y = layer(y)
    return y


def through_gains(m: Any, y: Tensor) -> Tensor:
    for gain in m.gains:
        y = y * gain
    return y


def through_named_gains(m: Any, y: Tensor) -> Tensor:
    for _, gain in m.gains.items():
        y = y * gain
    return y


def activated(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.then(m, m.act(y))


def tensor(value: float) -> nn.Parameter:
    return nn.Parameter(torch.full((3, 1, 1), value))


def body() -> nn.Module:
    part: Any = nn.Module()
    part.a, part.b, part.c = nn.Conv2d(3, 3, 1), nn.ReLU(), None
    part.register_parameter("shift", tensor(2.0))
    part.register_module("d", None)
    return part


@pytest.mark.parametrize(
    ("after", "made", "change", "joins"),
    [
        (through_children, {"part": body}, lambda m: m.part.add_module("top", nn.Conv2d(3, 3, 1)), 0),
        (through_children, {"part": body}, lambda m: m.part._modules.pop("b"), 0),
        (lambda m, y: y * len(m.part._modules), {"part": body}, lambda m: m.part.add_module("e", nn.ReLU()), 0),
        (lambda m, y: y * len([*m.parameters()]), {"part": body}, lambda m: m.part.add_module("e", parts()[0]), 0),
        (lambda m, y: y * (1 + m.training - m.norm.training), {}, lambda m: m.norm.eval(), 0),
        (
            lambda m, y: y * 2 if m.part._forward_hooks else y,
            {"part": body},
            lambda m: m.part.register_forward_hook(lambda *_: None),
            0,
        ),
        (
            lambda m, y: y * 2 if m._forward_hooks else y,
            {},
            lambda m: m.register_forward_hook(lambda *_: None),
            0,
        ),
        (
            lambda m, y: F.conv2d(y, m.conv.weight, m.conv.bias),
            {"conv": lambda: nn.Conv2d(3, 3, 1, bias=False)},
            lambda m: setattr(m.conv, "bias", nn.Parameter(torch.ones(3))),
            1,
        ),
        (
            lambda m, y: y if m.part.shift is None else y + m.part.shift,
            {"part": body},
            lambda m: setattr(m.part, "shift", None),
            1,
        ),
        (
            lambda m, y: y if m.part.d is None else m.part.d(y),
            {"part": body},
            lambda m: setattr(m.part, "d", nn.Conv2d(3, 3, 1)),
            1,
        ),
        (
            lambda m, y: y if isinstance(m.part.b, nn.ReLU) else m.part.b(y),
            {"part": body},
            lambda m: setattr(m.part, "b", nn.Conv2d(3, 3, 1)),
            1,
        ),
        (
            lambda m, y: m.part.e(y) if hasattr(m.part, "e") else y,
            {"part": body},
            lambda m: m.part.add_module("e", nn.Conv2d(3, 3, 1)),
            1,
        ),
        (lambda m, y: y * m.e if hasattr(m, "e") else y, {}, lambda m: setattr(m, "e", tensor(3.0)), 1),
        (
            through_gains,
            {"gains": lambda: nn.ParameterList([tensor(2.0)])},
            lambda m: m.gains.append(tensor(3.0)),
            1,
        ),
        (
            lambda m, y: y * len(m.gains),
            {"gains": lambda: nn.ParameterList([tensor(2.0)])},
            lambda m: m.gains.append(tensor(3.0)),
            1,
        ),
        (
            lambda m, y: y * m.gains[0],
            {"gains": lambda: nn.ParameterList([2.0])},
            lambda m: m.gains.__setitem__(0, 3.0),
            1,
        ),
        (
            through_named_gains,
            {"gains": lambda: nn.ParameterDict({"a": tensor(2.0)})},
            lambda m: m.gains.update({"b": tensor(3.0)}),
            1,
        ),
    ],
)
def test_what_changes_in_a_part_is_heeded(
    after: Any, made: dict[str, Any], change: Any, joins: int, joined: list[str]
) -> None:
    model = Line(activated, then=after, **{name: make() for name, make in made.items()})
    x = torch.randn(4, 3, 5, 5)
    nw.accelerate(model)
    torch.testing.assert_close(model(x), Line.forward(model, x))
    assert joined == ["norm + act"] * joins
    change(model)
    torch.testing.assert_close(model(x), Line.forward(model, x))


def test_tensors_of_parts_are_joined_and_replaced_ones_are_taken(joined: list[str]) -> None:
    model: Any = Line(lambda m, y, x: F.conv2d(m.act(y), m.part.weight, m.part.bias), part=nn.Conv2d(3, 3, 1))
    x = torch.randn(4, 3, 5, 5)
    nw.accelerate(model)
    model.part.weight, model.part.bias = nn.Parameter(torch.ones(3, 3, 1, 1)), nn.Parameter(torch.ones(3))
    torch.testing.assert_close(model(x), Line.forward(model, x))
    assert joined == ["norm + act"]


def test_a_part_with_a_second_name_is_left(joined: list[str]) -> None:
    part = nn.Conv2d(3, 3, 1)
    model: Any = Line(lambda m, y, x: m.act(m.second(y)), first=part, second=part)
    x = torch.randn(4, 3, 5, 5)
    plan = nw.accelerate(model)
    assert "its part 'first' has a second name" in str(plan)
    model.first = nn.Conv2d(3, 3, 1)
    torch.testing.assert_close(model(x), Line.forward(model, x))
    assert not joined


@pytest.mark.parametrize("part", ["norm", "act"])
def test_a_hook_sees_the_order_of_the_forward(part: str) -> None:
    class Moved(Line):
        skip: nn.Module

        def forward(self, x: Tensor) -> Any:
            y = self.norm(self.conv(x))
            return self.act(y + self.skip(x))

    def order(forward: Any) -> list[str]:
        seen.clear()
        forward(x)
        return [*seen]

    model, x, seen = Moved(lambda m, y, x: y, skip=nn.Conv2d(3, 3, 1)), torch.randn(4, 3, 5, 5), list[str]()
    plan = nw.accelerate(model)
    assert "norm + add + act" in plan.changes[-1].note
    for name in (part, "skip"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    assert (
        order(model)
        == order(lambda x: Moved.forward(model, x))
        == (["norm", "skip"] if part == "norm" else ["skip", "act"])
    )
