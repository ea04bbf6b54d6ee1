"""What accelerate joins in a recorded forward, what it leaves, and what it heeds later."""

import copy
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from blocks import use_kernels, watch_joins
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import normwise as nw
from normwise import kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")


@pytest.fixture(autouse=True)
def always_native(monkeypatch: pytest.MonkeyPatch) -> None:
    use_kernels(monkeypatch)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return watch_joins(monkeypatch)


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


@pytest.mark.parametrize(
    ("act", "label"),
    [
        (nn.ReLU(), "norm + add + act"),
        (nn.LeakyReLU(), "norm + add"),
        (nn.LeakyReLU(inplace=True), "norm + add + act"),
        (nn.ReLU6(), "norm + add"),
        (nn.ReLU6(inplace=True), "norm + add"),
        (nn.Hardtanh(), "norm + add"),
        (nn.SiLU(), "norm + add + act"),
        (nn.GELU(), "norm + add + act"),
    ],
)
@pytest.mark.parametrize("later", ["output", "residual"])
def test_what_pytorch_lets_one_write_to_stays_so(act: nn.Module, label: str, later: str, joined: list[str]) -> None:
    def after(m: Any, y: Tensor, x: Tensor) -> Tensor:
        residual = x * 2
        y = m.act(y + residual)
        return y + residual.mul_(3) if later == "residual" else y

    def gradients(model: nn.Module) -> list[Tensor]:
        y = model(x)
        y = y.mul_(2) if later == "output" else y
        try:
            return list(torch.autograd.grad(y.square().sum(), [*model.parameters()]))
        except RuntimeError:  # what was written to is needed
            return []

    model, x = Line(after, act=act).double(), torch.randn(4, 3, 5, 5).double()
    twin = copy.deepcopy(model)
    nw.accelerate(model)
    torch.testing.assert_close(gradients(model), gradients(twin))
    late = later == "residual" and isinstance(act, nn.SiLU | nn.GELU)
    assert joined == ["norm + add" if late else label]


@pytest.mark.parametrize(
    "part", [nn.Dropout(), nn.Sequential(), nn.Conv2d(3, 3, 1)], ids=lambda part: type(part).__name__
)
def test_a_norm_is_not_moved_behind_a_write_to_its_input(part: nn.Module, joined: list[str]) -> None:
    def after(m: Any, y: Tensor, x: Tensor) -> Tensor:
        return m.norm2(m.part(y)) + m.act(y)

    model, x = Line(after, part=part, norm2=nn.GroupNorm(1, 3)).eval(), torch.randn(4, 3, 5, 5)
    model.act.inplace = True
    nw.accelerate(model)
    with torch.no_grad():
        torch.testing.assert_close(model(x), Line.forward(model, x))
    assert joined == (["norm2 + add"] if isinstance(part, nn.Conv2d) else [])


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


class Gain(nn.Identity):
    gain = 2.0

    def after(self, x: Tensor) -> Tensor:
        return x * self.gain


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
        (lambda: Line(stores), "changes the module"),
        (lambda: Line(without_gradients), "switches gradients, autocast or checkpointing"),
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


def parts() -> list[nn.Module]:
    return [nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)]


def test_other_threads_read_what_they_like_meanwhile() -> None:
    def elsewhere(m: Any, y: Tensor, x: Tensor) -> Tensor:
        thread = threading.Thread(target=lambda: found.append(other.gain))
        thread.start()
        thread.join()
        return m.act(y)

    other, found = Gain(), list[float]()
    plan = nw.accelerate(Line(elsewhere))
    assert found == [2.0] * 4
    assert not plan.left
    assert "__getattribute__" not in vars(nn.Module)


def test_what_reads_attributes_before_does_so_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(module: nn.Module, name: str) -> Any:
        return object.__getattribute__(module, name)

    monkeypatch.setattr(nn.Module, "__getattribute__", read)
    nw.accelerate(Line(lambda m, y, x: m.act(y)))
    assert nn.Module.__getattribute__ is read


def test_several_threads_accelerate_at_once() -> None:
    models = [Line(lambda m, y, x: m.act(y)) for _ in range(12)]
    with ThreadPoolExecutor(3) as pool:
        plans = list(pool.map(nw.accelerate, models))
    assert [len(plan.changes) for plan in plans] == [2] * 12
    assert "__getattribute__" not in vars(nn.Module)


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


@pytest.mark.parametrize("kind", [nn.ModuleList, nn.Sequential])
def test_layers_gone_through_one_by_one_are_heeded(kind: Any, joined: list[str]) -> None:
    def after(m: Any, y: Tensor, x: Tensor) -> Tensor:
        y = m.act(y)
        for layer in m.layers:
            y = layer(y)
        return y

    model: Any = Line(after, layers=kind(*([parts()] if kind is nn.ModuleList else parts())))
    x = torch.randn(4, 3, 5, 5)
    nw.accelerate(model)
    model(x)
    assert joined == ["norm + act"]
    model.layers.append(nn.Conv2d(3, 3, 1))
    torch.testing.assert_close(model(x), Line.forward(model, x))
    model.layers = model.layers[:1]
    torch.testing.assert_close(model(x), Line.forward(model, x))
    assert joined == ["norm + act"]


def test_an_argument_that_is_none_takes_the_course_of_its_own() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
            y = self.norm(x)
            return F.relu(y if residual is None else y + residual)

    model, x = Residual(), torch.randn(4, 3, 5, 5)
    nw.accelerate(model)
    for residual in (x, None):
        torch.testing.assert_close(model(x, residual), Residual.forward(model, x, residual))
