"""The conformance suite's tools: the norms to test, what feeds them, and how a promise is written down.

A promise is a test under one of the decorators below. It runs for every entry of NORMS except those that
state in `NormEntry.cannot` why they cannot keep it: there it is skipped, with that reason.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from references import REFERENCES
from torch import Tensor, nn

from normwise.layers import NORMS, NormEntry
from normwise.layers.spec import build, parse, read

C = 4
FURTHER = (
    "ghost:4", "group:2", "ibn:0.75", "grn:axis=-1", "mixstyle:1", "conditional-instance:3",
    "conditional-batch:embedding=2",
)  # fmt: skip
SPECS = [*NORMS, *FURTHER]
PROMISES: set[str] = set()  # the names of all tests under these decorators
SPATIAL = {2: (), 3: (7,), 4: (3, 5), 5: (2, 3, 4)}

layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)


def entry(spec: str) -> NormEntry:
    return NORMS[spec.partition(":")[0]]


def on_last(spec: str) -> bool:
    """The features are on the last axis."""
    return entry(spec).kind == "position" or ("axis", -1) in parse(spec).options


PLANE = [spec for spec in SPECS if not on_last(spec)]


def over(specs: Sequence[str], modes: bool = False) -> Callable[[Any], Any]:
    """A decorator: the test is a promise, to be kept for each of the specs (in train and in eval)."""

    def promise(test: Any) -> Any:
        name = test.__name__.removeprefix("test_")
        PROMISES.add(name)
        cases = [(spec, *mode) for spec in specs for mode in ([("train",), ("eval",)] if modes else [()])]
        params = [_param(name, *case) for case in cases]
        return pytest.mark.parametrize(["spec", "training"] if modes else ["spec"], params)(test)

    return promise


def _param(name: str, spec: str, mode: str = "") -> Any:
    cannot = entry(spec).cannot
    reason = cannot.get(name) or cannot.get(f"{name}:{mode}")
    marks = [pytest.mark.skip(reason=f"{spec} cannot: {reason}")] if reason else []
    return pytest.param(spec, *([mode == "train"] if mode else []), id=f"{spec}-{mode}".strip("-"), marks=marks)


every_norm = over(SPECS)
every_norm_in_both_modes = over(SPECS, modes=True)
every_plane_norm = over(PLANE)
every_plane_norm_in_both_modes = over(PLANE, modes=True)


def make(spec: str, dtype: torch.dtype = torch.float64, training: bool = True, **options: Any) -> Any:
    """A norm with random weights, gates and running statistics, all between 0.2 and 0.8."""
    if spec.startswith("renorm"):  # its training forward reads what it moves: here it stays, and can be compared
        options = {"momentum": 0.0, **options}
    norm = build(spec, C, dtype=dtype, **options).train(training)
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.2, 0.8)
    return norm


def sample(spec: str, *spatial: int, n: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    """Values of several scales and means; channels where the norm expects them."""
    x = torch.randn(n, C, *spatial, dtype=torch.float64) * torch.rand(n, C, *(1 for _ in spatial)) * 3 + 1
    return (x.movedim(1, -1) if on_last(spec) else x).to(dtype)


def feed(norm: nn.Module, x: Tensor, mask: Tensor | None = None) -> tuple[Any, ...]:
    """What to call the norm with: x, what else it must be given, the mask; and the same draws each time."""
    torch.manual_seed(1)
    given = entry(name_of(norm)).given
    return (x, *([GIVEN[given](norm, x, mask)] if given else []), *([] if mask is None else [mask]))


def run(norm: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    return norm(*feed(norm, x, mask))


def expected(norm: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The reference's result for the state of this norm, in float64."""
    state = read(norm)
    assert state is not None
    tensors = {name: t.double() for name, t in {**dict(norm.named_parameters()), **dict(norm.named_buffers())}.items()}
    options: dict[str, Any] = dict(state.spec.options)
    given = entry(state.spec.name).given
    if given:
        value = feed(norm, x, mask)[1]
        options[given] = value.double() if value.is_floating_point() else value
    if mask is not None:
        options["mask"] = mask
    torch.manual_seed(1)
    return REFERENCES[state.spec.name](x.double(), tensors, norm.training, **options)


def name_of(norm: nn.Module) -> str:
    state = read(norm)
    assert state is not None
    return state.spec.name


def gradients(y: Tensor, norm: nn.Module, x: Tensor) -> list[Tensor]:
    seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    return list(torch.autograd.grad((y * seed).sum(), [x, *norm.parameters()]))


def lengths(x: Tensor, *counts: int) -> Tensor:
    """A mask over (N, L): the first `counts[n]` positions are valid."""
    return torch.arange(x.shape[2]) < torch.tensor(counts)[:, None]


def _key(x: Tensor, mask: Tensor | None) -> Tensor:
    """(N, C): differs from instance to instance; no order, padding or added constant changes it."""
    axes = tuple(range(2, x.dim()))
    valid = torch.ones_like(x) if mask is None else mask.unsqueeze(1).expand_as(x).to(x.dtype)
    total = x.masked_fill(valid == 0, 0).sum(axes) if axes else x
    mean = total / (valid.sum(axes).clamp(min=1) if axes else 1)
    return mean - mean[:, :1]


def _style(norm: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """(N, C, 5): with another spatial shape than x."""
    return (_key(x, mask)[..., None] + torch.arange(5, dtype=x.dtype)).cos()


def _condition(norm: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    key = _key(x, mask)
    return (
        key[:, 1 : 1 + norm.embedding].cos() if norm.embedding else (key[:, 1] > 0).long().clamp(max=norm.classes - 1)
    )


GIVEN: dict[str, Callable[[Any, Tensor, Tensor | None], Tensor]] = {"style": _style, "condition": _condition}
