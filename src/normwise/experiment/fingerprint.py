"""What a task is, as short hashes: another hash, another experiment."""

import functools
import hashlib
import inspect
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normwise.data import Arrays, Data, Samples, Source
from normwise.generators import reproducible


def digest(*parts: Any) -> str:
    """A short sha256 of texts, numbers, arrays and what is made of them; the same on every machine.

    >>> digest("a", torch.ones(2)) == digest("a", torch.ones(2)), digest("a") == digest("b")
    (True, False)
    """
    state = hashlib.sha256()
    for part in parts:
        for piece in _pieces(part):
            state.update(len(piece).to_bytes(8, "big"))
            state.update(piece)
    return state.hexdigest()[:16]


def source_digest(function: Any) -> str:
    """A hash of a function's or class's source, of the user's code that it uses, and of what it holds.

    >>> source_digest(functools.partial(round, 2.5)) == source_digest(functools.partial(round, 3.5))
    False
    """
    return digest(_source(function, {}))


def model_digest(model: Callable[[], nn.Module]) -> str:
    """A hash of a factory, of the model's repr, shapes and classes, and of weights that no seed changes.

    >>> model_digest(lambda: nn.Linear(2, 2)) == model_digest(lambda: nn.Linear(2, 3))
    False
    """
    with reproducible(0):
        first = model()
    with reproducible(1):
        second = model().state_dict()
    state = {name: value for name, value in first.state_dict().items() if isinstance(value, Tensor)}
    shapes = [(name, str(value.dtype), tuple(value.shape)) for name, value in state.items()]
    fixed = [value for name, value in state.items() if torch.equal(value, second[name])]
    own = {type(module) for module in first.modules() if _is_users(inspect.getmodule(type(module)))}
    seen: dict[int, Any] = {}
    kinds = [_source(kind, seen) for kind in sorted(own, key=lambda kind: kind.__qualname__)]
    return digest(source_digest(model), repr(first), shapes, fixed, kinds)


def data_digest(data: Data) -> str:
    """A hash of all numbers of data in memory; of other data their lengths, first and last samples.

    >>> x, y = torch.zeros(2, 1), torch.zeros(2)
    >>> data_digest(Data(Arrays(x, y))) == data_digest(Data(Arrays(x, y + 1)))
    False
    """
    return digest(*(_set(samples) for samples in data.sets))


def same_start(model: Callable[[], nn.Module]) -> bool:
    """Whether every seed starts from the same weights.

    >>> same_start(lambda: nn.Linear(2, 2))
    False
    """
    with reproducible(0):
        first = list(model().parameters())
    with reproducible(1):
        second = list(model().parameters())
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


PLAIN = (bool, int, float, complex, str, bytes)
INSTALLED = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}


def _set(samples: Samples) -> list[Any]:
    if isinstance(samples, Arrays):
        return [samples.inputs, samples.targets]
    with reproducible():  # a data set that augments gives the same two samples
        return [len(samples), samples[0], samples[len(samples) - 1]]


def _pieces(value: Any) -> Iterator[Any]:
    """A value as byte strings; what is neither number, text, array nor made of them counts by its type."""
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    elif isinstance(value, np.ndarray | np.generic):
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, dict):
        yield from _pieces(list(value.items()))
    elif isinstance(value, tuple | list):
        yield f"{len(value)} parts".encode()
        for part in value:
            yield from _pieces(part)
    elif value is None or isinstance(value, PLAIN):
        yield f"{type(value).__name__} {value!r}".encode()
    elif hasattr(value, "tobytes"):  # a Pillow image
        yield value.tobytes()
    else:
        yield type(value).__qualname__.encode()


def _source(thing: Any, seen: dict[int, Any]) -> list[Any]:
    """Sources and plain values that decide what a callable does, also those of the user's code it names."""
    if id(thing) in seen:
        return []
    seen[id(thing)] = thing  # kept, so that no other gets its id
    if isinstance(thing, functools.partial):
        return [_source(thing.func, seen), _held([*thing.args, thing.keywords], seen)]
    if inspect.ismethod(thing):
        return [_source(thing.__func__, seen), _source(thing.__self__, seen)]
    if not inspect.isroutine(thing) and not isinstance(thing, type):
        return [_source(type(thing), seen), _held([_state(thing)], seen)]
    return [_text(thing), *(_held(_named(function), seen) for function in _functions(thing))]


def _text(thing: Any) -> Any:
    """The source text, else the compiled code."""
    name = getattr(thing, "__qualname__", "")
    try:
        source = inspect.getsource(thing)
        if not name.endswith("<lambda>"):  # of which two may stand in one line
            return source
    except (OSError, TypeError):
        pass
    code = [function.__code__ for function in _functions(thing)]
    return [
        name,
        [[c.co_code.hex(), c.co_names, [k for k in c.co_consts if isinstance(k, PLAIN)]] for c in code],
    ]


def _functions(thing: Any) -> list[FunctionType]:
    """The function itself, or all that a class defines."""
    found = (
        [getattr(f, "fget", None) or getattr(f, "__func__", f) for f in vars(thing).values()]
        if isinstance(thing, type)
        else [thing]
    )
    return [f for f in (inspect.unwrap(f) for f in found if callable(f)) if isinstance(f, FunctionType)]


def _named(function: FunctionType) -> list[Any]:
    """What a function uses by name: defaults, closure, globals, and what it takes from its modules."""
    names = sorted(set(_names(function.__code__)))
    used = [function.__globals__[name] for name in names if name in function.__globals__]
    inside = [
        getattr(module, name)
        for module in used
        if isinstance(module, ModuleType) and _is_users(module)
        for name in names
        if hasattr(module, name)
    ]
    closure = inspect.getclosurevars(function).nonlocals
    return [function.__defaults__, function.__kwdefaults__, *used, *inside, dict(sorted(closure.items()))]


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _state(thing: Any) -> dict[str, Any]:
    """The attributes of an object, but for what it reads from elsewhere."""
    return {} if isinstance(thing, Source) else dict(getattr(thing, "__dict__", {}))


def _held(values: Iterable[Any], seen: dict[int, Any]) -> list[Any]:
    """Plain values as they are; the user's code by its source; other things not at all."""
    found: list[Any] = []
    for value in values:
        if value is None or isinstance(value, (*PLAIN, Tensor, np.ndarray)):
            found.append(value)
        elif isinstance(value, tuple | list):
            found.append(_held(value, seen))
        elif isinstance(value, dict):
            found.append(_held([part for item in value.items() for part in item], seen))
        elif _is_followed(value):
            found.append(_source(value, seen))
        elif hasattr(value, "__qualname__"):
            found.append(f"{value.__module__}.{value.__qualname__}")
    return found


def _is_followed(value: Any) -> bool:
    """Code and objects of the user's; a network's weights are another matter, and so are data."""
    if isinstance(value, functools.partial) or inspect.ismethod(value):
        return True
    if inspect.isfunction(value) or isinstance(value, type):
        return _is_users(inspect.getmodule(value))
    return _is_users(inspect.getmodule(type(value))) and not isinstance(value, nn.Module)


def _is_users(module: ModuleType | None) -> bool:
    """Whether a module is the user's own: neither installed nor part of Python or of this library."""
    if module is None:
        return True
    if module.__name__.partition(".")[0] == "normwise":
        return False
    origin = getattr(module, "__file__", None)
    if origin is None:
        return module.__name__ == "__main__"
    return not any(Path(origin).is_relative_to(place) for place in INSTALLED)
