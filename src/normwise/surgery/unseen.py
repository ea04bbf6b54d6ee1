"""What recording a forward cannot see: looked for in the code of each function that the forward runs."""

import builtins
import dis
import gc
import os
import sys
from functools import lru_cache
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any, NamedTuple


class Unsafe(Exception):
    """Why a forward cannot be replaced by recorded steps."""


def supervised(function: Any, *args: Any) -> Any:
    """Calls a function; raises Unsafe as soon as that comes to another which a recording may mistake.

    PyTorch's, normwise's and Python's own functions are trusted. Of all others, and of lambdas, the code
    must neither set attributes nor ask for the identity of a value, and have no `with` and no `try`; from
    outside it may read functions, PyTorch's classes and modules, but nothing that may change.

    >>> supervised(max, 2, 3)
    3
    """
    if sys.getprofile() is not None:
        raise Unsafe("a profiler is at work, so that the calls of its forward cannot be watched")
    collects = gc.isenabled()
    gc.disable()  # what others have called at a collection is not the forward's
    sys.setprofile(_Watch())
    try:
        return function(*args)
    finally:
        sys.setprofile(None)
        if collects:
            gc.enable()


def inside(frame: FrameType) -> bool:
    """Whether it is not the forward that asks."""
    return _root(frame.f_globals.get("__name__")) in ("torch", "normwise")


class _Watch:
    """Python calls it before it runs a function."""

    def __init__(self) -> None:
        self._forwards: set[CodeType] = set()
        self._nested: set[CodeType] = set()
        self._trusted: dict[int, CodeType] = {}  # by id, because to hash them is slow; held, so that it stays theirs

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if event != "call" or self._is_trusted(frame) or not self._is_forwards(frame.f_back):
            return
        code = frame.f_code
        self._forwards.add(code)
        self._nested |= {each for each in code.co_consts if isinstance(each, CodeType)}
        construct, names = _looked_through(code)
        why = construct or self._unsteady(frame, names)
        if why:
            raise Unsafe(f"{code.co_qualname} {why}")

    def _is_trusted(self, frame: FrameType) -> bool:
        code = frame.f_code
        if id(code) in self._trusted:
            return True
        made = str(frame.f_globals.get("__name__")).startswith("namedtuple_")  # what collections.namedtuple writes
        if made or inside(frame) or _is_pythons(code) or code.co_name == "<module>":
            self._trusted[id(code)] = code
        return id(code) in self._trusted

    def _is_forwards(self, caller: FrameType | None) -> bool:
        """Run by it, or by what it calls; not what is run while PyTorch imports something."""
        while caller is not None and self._is_trusted(caller):
            code = caller.f_code
            if code is supervised.__code__:
                return True
            if code.co_name == "<module>" or code.co_filename.startswith("<frozen importlib"):
                return False
            caller = caller.f_back
        return caller is None or caller.f_code in self._forwards

    def _unsteady(self, frame: FrameType, names: tuple[str, ...]) -> str:
        """The first name from outside whose value may change."""
        outside = () if frame.f_code in self._nested else frame.f_code.co_freevars
        closed = [(name, frame.f_locals[name]) for name in outside if name != "__class__" and name in frame.f_locals]
        read = [(name, frame.f_globals[name]) for name in names if name in frame.f_globals]
        unsteady = [name for name in names if name not in frame.f_globals and not _is_harmless(name)]
        unsteady += [name for name, value in (*closed, *read) if not _is_steady(value)]
        return f"uses {unsteady[0]!r}, which may change or have effects that a recording loses" if unsteady else ""


class _Looks(NamedTuple):
    construct: str
    names: tuple[str, ...]


@lru_cache(1000)
def _looked_through(code: CodeType) -> _Looks:
    """What a recording would lose, and the names that are read from outside."""
    steps = list(dis.get_instructions(code))
    names = dict.fromkeys(str(step.argval) for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    found = [why for last, step in zip([None, *steps], steps, strict=False) if (why := _lost(last, step))]
    return _Looks(found[0] if found else "", tuple(names))


def _lost(last: dis.Instruction | None, step: dis.Instruction) -> str:
    if step.opname == "IS_OP":  # `is None` asks nothing of a value that was recorded
        return (
            "" if last is not None and last.opname == "LOAD_CONST" else "asks with `is` whether two values are the same"
        )
    if step.opname in _ATTRIBUTES and str(step.argval).startswith("__"):
        return f"reads {step.argval!r}"
    return next((why for start, why in _LOST.items() if step.opname.startswith(start)), "")


def _is_harmless(name: str) -> bool:
    value = getattr(builtins, name, None)
    return value in _KINDS | _HARMLESS or (isinstance(value, type) and issubclass(value, BaseException))


def _is_steady(value: Any) -> bool:
    if isinstance(value, ModuleType):
        return _root(value.__name__) in _ROOTS
    if isinstance(value, FunctionType) and not _is_pythons(value.__code__):
        return True  # it is looked at when it runs
    home = value if isinstance(value, type | FunctionType | BuiltinFunctionType) else type(value)
    return _root(home.__module__) in (_ROOTS if home is value else ("typing",))


def _is_pythons(code: CodeType) -> bool:
    file = code.co_filename
    return file.startswith("<frozen ") or (file.startswith(_LIBRARY) and "site-packages" not in file)


def _root(name: Any) -> str:
    return str(name).partition(".")[0]


_LIBRARY = os.path.dirname(os.__file__) + os.sep
_ROOTS = {"torch", "normwise", "math", "operator", "_operator", "functools", "itertools", "collections", "typing"}
_KINDS = {bool, dict, enumerate, float, int, list, map, range, reversed, set, slice, str, super, tuple, zip}
_HARMLESS = {abs, all, any, divmod, getattr, hasattr, isinstance, issubclass, len, max, min, pow, round, sorted, sum}
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")
_LOST = {
    "PUSH_EXC_INFO": "has a `with` or a `try`, which a recording does not see",
    "STORE_ATTR": "sets an attribute",
    "DELETE_ATTR": "deletes an attribute",
    "STORE_GLOBAL": "sets a global name",
    "DELETE_GLOBAL": "deletes a global name",
    "IMPORT_NAME": "imports a module",
    "MATCH_": "asks with `match` what a value is",
}
