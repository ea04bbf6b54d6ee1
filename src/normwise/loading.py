"""The user's own code: found by name, called with care, its options read from text."""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from normwise.errors import UsageError
from normwise.generators import reproducible


def load_object(text: str) -> Callable[..., Any]:
    """Finds a function by its name, `package.module:function` or `file.py:function`.

    The current folder is importable.

    >>> load_object("torch.nn:Identity")
    <class 'torch.nn.modules.linear.Identity'>
    """
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"expected package.module:function or file.py:function, got {text!r}")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{place} has no {part!r}{hint(part, vars(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{text} must be something to call (a function or a class), got {describe(found)}")
    return found


def call(function: Callable[..., Any], what: str) -> Any:
    """Calls a user's factory: always with the same random numbers, its failure told in one sentence.

    >>> call(lambda: 1 / 0, "model()")
    Traceback (most recent call last):
    normwise.errors.UsageError: model() failed: ZeroDivisionError: division by zero
    """
    with reproducible():
        try:
            return function()
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"{what} failed: {type(error).__name__}: {error}") from error


def required_parameters(function: Callable[..., Any]) -> int:
    """How many arguments a call cannot do without.

    >>> required_parameters(lambda trial, verbose=False: None)
    1
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in callables have no signature
        return 0
    return sum(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def parse_options(text: str, known: Mapping[str, int], owner: str) -> dict[str, int]:
    """Reads `key=value,key=value` with whole numbers of at least 1; what is not said keeps its default.

    >>> parse_options("width=16", {"width": 8, "depth": 3}, "cnn")
    {'width': 16, 'depth': 3}
    """
    options = dict(known)
    for part in filter(None, text.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in known:
            names = ", ".join(f"{name}={value}" for name, value in known.items())
            raise UsageError(f"{owner} has no option {part!r}; its options and their defaults: {names}")
        if not value.isdecimal() or int(value) < 1:
            raise UsageError(f"{owner}: {key} must be a whole number of at least 1, got {value!r}")
        options[key] = int(value)
    return options


def hint(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, if any is near.

    >>> hint("digts", ["digits", "fashion-mnist"])
    "; did you mean 'digits'?"
    """
    near = difflib.get_close_matches(word, [name for name in known if not name.startswith("_")], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def describe(value: object) -> str:
    """What a thing is, in few words for an error message.

    >>> import torch
    >>> describe(torch.zeros(2, 3)), describe(None)
    ('a Tensor of shape (2, 3)', 'None')
    """
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, tuple):
        return f"a tuple of {len(value)} ({', '.join(type(part).__name__ for part in value)})"
    shape = getattr(value, "shape", None)
    name = type(value).__name__
    article = "an" if name[0] in "AEIOUaeiou" else "a"
    return f"{article} {name}" + (f" of shape {tuple(shape)}" if isinstance(shape, tuple) else "")


def _from_package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(
                f"no module named {error.name!r} in {os.getcwd()} or among the installed packages"
            ) from error
        raise UsageError(f"importing {name} failed: {error}") from error
    except Exception as error:
        raise UsageError(f"importing {name} failed: {type(error).__name__}: {error}") from error


def _from_file(path: Path) -> ModuleType:
    """Runs a file once per process, as a module that travels to worker processes by value."""
    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r} in {os.getcwd()}")
    path = path.resolve()
    name = f"_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.insert(1, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module, before = importlib.util.module_from_spec(spec), set(sys.modules)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception):
            raise UsageError(f"running {path.name} failed: {type(error).__name__}: {error}") from error
        raise
    _travel_by_value(path.parent, set(sys.modules) - before | {name})
    return module


def _travel_by_value(folder: Path, names: Iterable[str]) -> None:
    """A worker elsewhere cannot import the file, nor the files beside it."""
    import cloudpickle

    for name in names:
        module = sys.modules.get(name)
        origin = getattr(module, "__file__", None)
        if module is not None and origin and Path(origin).parent == folder:
            cloudpickle.register_pickle_by_value(module)
