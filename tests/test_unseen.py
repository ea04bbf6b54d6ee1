"""The blocks that accelerate leaves as they are, since a recording of their forward would be wrong; and why."""

import copy
import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from blocks import Gain, Line, parts
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normwise as nw
from normwise import kernels

pytestmark = [
    pytest.mark.skipif(not kernels.available(), reason="the kernels were not built"),
    pytest.mark.usefixtures("always_native"),
]


def branch(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) if m.training else y


def draws(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) if torch.rand(1).item() < 2 else y


def stores(m: Any, y: Tensor, x: Tensor) -> Tensor:
    m.feature = y
    return m.act(y)


def evaluates(m: Any, y: Tensor, x: Tensor) -> Tensor:
    m.eval()
    return m.act(y)


@torch.no_grad()
def without_gradients(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y)


@torch.autocast("cpu", enabled=False)
def without_autocast(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y)


def in_a_with(m: Any, y: Tensor, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return m.act(y)


def in_a_try(m: Any, y: Tensor, x: Tensor) -> Tensor:
    try:
        return m.act(y) * float(y.detach().mean())
    except TypeError:
        return y


def by_autocast(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) * 2 if torch.is_autocast_enabled("cpu") else m.act(y)


def by_autocast_dtype(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y).to(torch.get_autocast_dtype("cpu")).float()


def by_inference(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) * 2 if torch.is_inference_mode_enabled() else m.act(y)


def by_exact_type(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) if type(y) is Tensor else y


def by_identity(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) if m.part(x) is x else y


def by_match(m: Any, y: Tensor, x: Any) -> Tensor:
    match x:
        case [first, *_]:
            return m.act(first)
        case _:
            return m.act(y) * 2


def by_attribute(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) if hasattr(x, "tensors") else y


def with_default(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) * getattr(x, "scale", 1.0)


def by_text(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) * len(f"{x}")


def by_hash(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) * len({x, m.part(x)})


def by_class(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) * m.gain


def by_classes_name(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) * m.__class__.gain


def by_global(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) if FLAGS[0] else y


def by_helper(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) if flag() else y


def flag() -> bool:
    return FLAGS[0]


def logs(m: Any, y: Tensor, x: Tensor) -> Tensor:
    FLAGS.append(True)
    return m.act(y)


def counts(m: Any, y: Tensor, x: Tensor) -> Tensor:
    global calls
    calls = 1
    return m.act(y)


def writes_data(m: Any, y: Tensor, x: Tensor) -> Tensor:
    y = m.act(y)
    y.data = y.data * 2
    return y


def imports(m: Any, y: Tensor, x: Tensor) -> Tensor:
    import random

    return m.act(y) * (random.random() < 2)


def closed(gain: float) -> Any:
    return lambda m, y, x: m.act(y) * gain


def checkpointed(m: Any, y: Tensor, x: Tensor) -> Any:
    return checkpoint(m.act, y, use_reentrant=False)


def by_value(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) if y.sum() > -1e9 else y


def with_constant(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) * torch.ones(1)


def by_type(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) if isinstance(x, Tensor) else y


def by_kind(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) if torch.is_tensor(x) else y


def by_part(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(y) * m.part.gain


def through_part(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.part.after(m.act(y))


def layer_by_layer(m: Any, y: Tensor, x: Tensor) -> Tensor:
    for layer in m.part.layers:
        y = layer(y)
    return m.act(m.norm2(y))


def by_private_method(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(m.conv._conv_forward(y, m.conv.weight, m.conv.bias))


def by_forward(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return m.act(m.norm2(m.conv.forward(y)))


def by_operator(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.neg(m.act(y))


FLAGS, calls = [True], 0


class Loud(Line):
    gain = 2.0


class Rows(nn.Identity):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*parts())


class Optional(Line):
    def forward(self, x: Tensor, gain: Tensor | None = None) -> Any:
        return super().forward(x if gain is None else x * gain)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Line(branch), "takes another course in training than in evaluation"),
        (lambda: Line(draws), "draws random numbers"),
        (lambda: Line(stores), "stores sets an attribute"),
        (lambda: Line(evaluates), "changes the module"),
        (lambda: Line(without_gradients), "switches gradients, autocast or checkpointing"),
        (lambda: Line(without_autocast), "switches gradients, autocast or checkpointing"),
        (lambda: Line(in_a_with), "in_a_with has a `with` or a `try`"),
        (lambda: Line(in_a_try), "in_a_try has a `with` or a `try`"),
        (lambda: Line(by_autocast), "or in autocast"),
        (lambda: Line(by_autocast_dtype), "or in autocast"),
        (lambda: Line(by_inference), "takes another course"),
        (lambda: Line(by_exact_type), "asks with `is`"),
        (lambda: Line(by_identity, part=nn.Identity()), "asks with `is`"),
        (lambda: Line(by_match), "asks with `match`"),
        (lambda: Line(by_attribute), "asks a value for 'tensors'"),
        (lambda: Line(with_default), "asks a value for 'scale'"),
        (lambda: Line(by_text), "writes a value as text"),
        (lambda: Line(by_hash, part=nn.Identity()), "looks for a value in a set or dict"),
        (lambda: Loud(by_class), "reads 'gain' of its class"),
        (lambda: Loud(by_classes_name), "reads '__class__'"),
        (lambda: Line(by_global), "by_global uses 'FLAGS'"),
        (lambda: Line(by_helper), "flag uses 'FLAGS'"),
        (lambda: Line(logs), "logs uses 'FLAGS'"),
        (lambda: Line(counts), "counts sets a global name"),
        (lambda: Line(writes_data), "writes_data sets an attribute"),
        (lambda: Line(imports), "imports a module"),
        (lambda: Line(closed(2.0)), "<lambda> uses 'gain'"),
        (lambda: Line(checkpointed), "switches gradients, autocast or checkpointing"),
        (lambda: Line(by_value), "cannot be traced"),
        (lambda: Line(by_type), "asks of what type a value is"),
        (lambda: Line(by_kind), "asks of what type a value is"),
        (lambda: Line(with_constant), "a tensor that is neither a parameter nor a buffer"),
        (lambda: Line(branch, settings={"act": True}), r"its attribute 'settings' \(dict\) may change"),
        (lambda: Line(by_part, part=Gain()), r"reads 'gain' of its part \(Gain\), which may change"),
        (lambda: Line(through_part, part=Gain()), r"reads 'gain' of its part \(Gain\), which may change"),
        (lambda: Line(layer_by_layer, part=Rows(), norm2=nn.BatchNorm2d(3)), "through the layers of one of its parts"),
        (lambda: Line(by_private_method), r"reads '_conv_forward' of its part \(Conv2d\), which may change"),
        (lambda: Line(by_forward, norm2=nn.BatchNorm2d(3)), r"reads 'forward' of its part \(Conv2d\), which may"),
        (lambda: Line(by_operator), "cannot be pickled"),
        (lambda: Optional(lambda m, y, x: m.act(y)), "has optional or keyword-only arguments"),
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


def test_a_list_in_place_of_a_tensor_takes_the_course_of_its_own() -> None:
    class First(Line):
        def forward(self, x: Any) -> Tensor:
            x = x[0] if not hasattr(x, "shape") else x
            return self.act(self.norm(self.conv(x)))

    model, x = First(lambda m, y, x: y), torch.randn(4, 3, 5, 5)
    nw.accelerate(model)
    for each in (x, [x]):
        torch.testing.assert_close(model(each), First.forward(model, each))


def test_under_a_profiler_nothing_is_joined() -> None:
    sys.setprofile(lambda *_: None)
    try:
        plan = nw.accelerate(Line(lambda m, y, x: m.act(y)))
    finally:
        sys.setprofile(None)
    assert "a profiler is at work" in plan.left[0].note


def test_what_a_garbage_collection_calls_is_not_the_forwards() -> None:
    def seen(phase: str, info: dict[str, int]) -> None:
        seen.last = phase

    threshold = gc.get_threshold()
    gc.callbacks.append(seen)
    gc.set_threshold(1)
    try:
        plan = nw.accelerate(Line(lambda m, y, x: m.act(y)))
        assert gc.isenabled()
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(seen)
    assert not plan.left
