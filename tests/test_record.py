"""What accelerate joins in a recorded forward, what it leaves, and what it heeds later."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from blocks import Gain, Line, parts
from torch import Tensor, nn
from torch.nn import functional as F

import normwise as nw
from normwise import kernels

pytestmark = [
    pytest.mark.skipif(not kernels.available(), reason="the kernels were not built"),
    pytest.mark.usefixtures("always_native"),
]


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
        return y + residual.mul_(3) if m.later == "residual" else y

    def gradients(model: nn.Module) -> list[Tensor]:
        y = model(x)
        y = y.mul_(2) if later == "output" else y
        try:
            return list(torch.autograd.grad(y.square().sum(), [*model.parameters()]))
        except RuntimeError:  # what was written to is needed
            return []

    model, x = Line(after, act=act, later=later).double(), torch.randn(4, 3, 5, 5).double()
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


def argument(m: Any, y: Tensor, x: Tensor) -> Tensor:
    x += m.act(y)
    return x


def alias(m: Any, y: Tensor, x: Tensor) -> Tensor:
    y = m.act(y)
    skip = y
    y += 1.0
    return y * 2 + skip


def view(m: Any, y: Tensor, x: Tensor) -> Tensor:
    y = m.act(y)
    z, first = y.view(4, -1), y[:, :2]
    z *= 3.0
    first -= 3.0
    z /= 2
    return y


def data(m: Any, y: Tensor, x: Tensor) -> Tensor:
    y = m.act(y)
    inner = y.data
    inner += 3.0
    return y


def shape_before(m: Any, y: Tensor, x: Tensor) -> Tensor:
    y = m.act(y)
    shape = y.shape
    y.unsqueeze_(0)
    return y.view(shape)


def buffer(m: Any, y: Tensor, x: Tensor) -> Tensor:
    y = m.act(y)
    seen = m.seen
    seen += y.detach().mean()
    return y


def residual(m: Any, y: Tensor, x: Tensor) -> Tensor:
    y += x
    return m.act(y)


def statistics(m: Any, y: Tensor, x: Tensor) -> Tensor:
    mean = m.norm.running_mean
    mean *= 0.5
    return m.act(y)


@pytest.mark.parametrize(
    ("after", "joins"),
    [
        (argument, ["norm + act"]),
        (alias, ["norm + act"]),
        (view, ["norm + act"]),
        (data, ["norm + act"]),
        (shape_before, ["norm + act"]),
        (buffer, ["norm + act"]),
        (residual, ["norm + add + act"]),
        (statistics, []),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_what_is_written_in_place_is_seen_by_all_who_hold_it(after: Any, joins: list[str], joined: list[str]) -> None:
    model, x = Line(after), torch.randn(4, 3, 5, 5)
    model.register_buffer("seen", torch.zeros(1))
    twin, theirs = copy.deepcopy(model), x.clone()
    nw.accelerate(model)
    with torch.no_grad():
        torch.testing.assert_close(model(x), twin(theirs))
    torch.testing.assert_close(x, theirs)
    torch.testing.assert_close(dict(model.named_buffers()), dict(twin.named_buffers()))
    assert joined == joins


def test_other_threads_read_what_they_like_meanwhile() -> None:
    def elsewhere() -> None:
        while not done.is_set():
            found.append(other.gain)

    other, found, done = Gain(), list[float](), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(elsewhere)
        for _ in range(10):
            nw.accelerate(Line(lambda m, y, x: m.act(y)))
        done.set()
        reading.result()
    assert found
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
