"""A block's forward as recorded steps, in which each norm is joined with the residual and activation after it."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from normwise.kernels import Act
from normwise.layers.normact import fused, watched

Path = tuple[str, ...]
Slots = list[Any]


@dataclass(frozen=True)
class Slot:
    """Where a value stands while the tape runs."""

    index: int


@dataclass(frozen=True)
class Step:
    """One call of the forward: of a module, a function or a method, or a look at a parameter."""

    kind: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: int

    def run(self, block: nn.Module, slots: Slots) -> None:
        if self.kind == "get_attr":
            slots[self.out] = at(block, self.target)
            return
        args, kwargs = _filled(self.args, slots), _filled(self.kwargs, slots)
        if self.kind == "call_module":
            slots[self.out] = at(block, self.target)(*args, **kwargs)
        elif self.kind == "call_function":
            slots[self.out] = self.target(*args, **kwargs)
        else:
            slots[self.out] = getattr(args[0], self.target)(*args[1:], **kwargs)

    def __reduce__(self) -> Any:
        """Functions by module and name, where that finds them: pickle does not find F.max_pool2d."""
        home, name = (getattr(self.target, each, None) for each in ("__module__", "__name__"))
        named = self.kind == "call_function" and getattr(sys.modules.get(str(home)), str(name), None) is self.target
        return _step, (self.kind, (home, name) if named else self.target, self.args, self.kwargs, self.out)


def _step(kind: str, target: Any, *rest: Any) -> Step:
    named = kind == "call_function" and isinstance(target, tuple)
    return Step(kind, getattr(import_module(target[0]), target[1]) if named else target, *rest)


@dataclass(frozen=True)
class Join:
    """A norm with what follows it, in one pass; step by step where the kernels cannot."""

    norm: Path
    x: int
    residual: int | None
    act: Path | Act | None
    label: str
    steps: tuple[Step, ...]

    def run(self, block: nn.Module, slots: Slots) -> None:
        act = self.act if self.act is None or isinstance(self.act, Act) else at(block, self.act)
        residual = None if self.residual is None else slots[self.residual]
        y = fused(at(block, self.norm), slots[self.x], residual, act)
        slots[self.steps[-1].out] = y
        if y is None:
            for step in self.steps:
                step.run(block, slots)

    def watched(self, block: nn.Module) -> bool:
        """Whether a hook would see that the norm or the activation is called later than the forward does."""
        act = None if self.act is None or isinstance(self.act, Act) else at(block, self.act)
        return watched(at(block, self.norm)) or (act is not None and watched(act))

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True)
class Tape:
    """The steps of a forward. It holds as long as the block looks as it did when it was recorded."""

    inputs: int
    size: int
    steps: tuple[Step | Join, ...]
    output: Any
    asked: tuple[Path, ...]
    looks: Any
    dead: tuple[tuple[int, ...], ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dead", tuple(_last_used(self)))

    @property
    def joins(self) -> list[Join]:
        return [step for step in self.steps if isinstance(step, Join)]

    def fits(self, block: nn.Module, args: tuple[Any, ...]) -> bool:
        """Whether the steps are what the forward would do with these arguments."""
        known = len(args) == self.inputs and all(isinstance(arg, Tensor | int | float) for arg in args)
        if not known or not same_looks(self.looks, looks(block, self.asked)):
            return False
        return not any(join.watched(block) for join in self.joins)

    def run(self, block: nn.Module, args: tuple[Any, ...]) -> Any:
        slots: Slots = [*args, *[None] * (self.size - len(args))]
        for step, dead in zip(self.steps, self.dead, strict=True):
            step.run(block, slots)
            for index in dead:
                slots[index] = None
        return _filled(self.output, slots)


def looks(block: nn.Module, asked: tuple[Path, ...] = ()) -> tuple[list[tuple[Any, str]], dict[str, Any]]:
    """What the course of a forward may depend on: names and kinds of parts and tensors, and plain attributes."""
    seen: list[tuple[Any, str]] = [(path, _kind(block, path)) for path in asked]
    plain: dict[str, Any] = {}
    for number, each in enumerate(containers(block)):
        for registry in (each._modules, each._parameters, each._buffers):
            seen += [(name, type(part).__qualname__) for name, part in registry.items()]
        if each is block or isinstance(each, _TENSORS):
            start, known = (f"{number}.", REGISTRIES | {"_keys"}) if number else ("", REGISTRIES)
            plain |= {start + name: value for name, value in vars(each).items() if name not in known}
    return seen, plain


def _kind(block: nn.Module, path: Path) -> str:
    """What stands at a path; looked up without running a property, which may do more than read."""
    owner: Any = block
    for name in path[:-1]:
        owner = owner._modules.get(name)
        if owner is None:
            return "no owner"
    tables = (owner._parameters, owner._buffers, owner._modules, vars(owner))
    return next((type(table[path[-1]]).__qualname__ for table in tables if path[-1] in table), "")


def same_looks(a: Any, b: Any) -> bool:
    """Attributes are compared by identity, numbers and texts by value too."""
    if a[0] != b[0] or a[1].keys() != b[1].keys():
        return False
    return all(b[1][name] is v or (type(v) in _SIMPLE and b[1][name] == v) for name, v in a[1].items())


def containers(block: nn.Module) -> Iterator[nn.Module]:
    """The block itself, and the lists, dicts and rows of modules or tensors its forward may go through by itself."""
    yield block
    for part in block._modules.values():
        if isinstance(part, _ROWS):
            yield from containers(part)


def at(block: nn.Module, path: Path) -> Any:
    """The module or tensor at a path, as it is now."""
    for name in path:
        block = getattr(block, name)
    return block


_TENSORS = (nn.ParameterList, nn.ParameterDict)
_ROWS = (nn.ModuleList, nn.ModuleDict, nn.Sequential, *_TENSORS)
REGISTRIES = frozenset({*vars(nn.Module()), "_tape"})
_SIMPLE = (int, float, bool, str)


def _last_used(tape: Tape) -> Iterator[tuple[int, ...]]:
    """After each step, the slots that no later one reads: so that memory is given back as early as ever."""
    living, found = set(_slots(tape.output)), []
    for step in reversed(tape.steps):
        parts = step.steps if isinstance(step, Join) else (step,)
        touched = {i for part in parts for i in (*_slots((part.args, part.kwargs)), part.out)}
        found.append(tuple(touched - living))
        living |= touched
    yield from reversed(found)


def _slots(value: Any) -> Iterator[int]:
    if isinstance(value, Slot):
        yield value.index
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _slots(each)
    elif isinstance(value, dict):
        yield from _slots(list(value.values()))
    elif isinstance(value, slice):
        yield from _slots((value.start, value.stop, value.step))


def _filled(value: Any, slots: Slots) -> Any:
    """The arguments, with values in place of slots."""
    if isinstance(value, Slot):
        return slots[value.index]
    if isinstance(value, tuple | list):
        return type(value)([_filled(each, slots) for each in value])
    if isinstance(value, dict):
        return {key: _filled(each, slots) for key, each in value.items()}
    if isinstance(value, slice):
        return slice(*(_filled(each, slots) for each in (value.start, value.stop, value.step)))
    return value
