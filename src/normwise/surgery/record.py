"""Records the forward of a block by tracing it, and joins its norms with what follows; or says why not."""

import inspect
import pickle
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FrameType, FunctionType
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg

from normwise.surgery.forward import quiet
from normwise.surgery.join import group
from normwise.surgery.tape import REGISTRIES, Join, Path, Slot, Step, Tape, at, containers, looks
from normwise.surgery.unseen import Unsafe, inside, supervised
from normwise.surgery.values import Tracer


def record(block: nn.Module, forward: Any) -> Tape:
    """The steps of `forward`, the block's method; raises Unsafe with the reason.

    Traced in training and in evaluation, with and without gradients, under autocast and in inference mode;
    the steps must be the same each time. What the course of the forward may depend on is noted, and looked
    at again before each run; what a recording cannot see is looked for in its code.

    >>> from normwise.layers.batch import BatchNorm2d
    >>> block = nn.Sequential(nn.Conv2d(3, 8, 3), BatchNorm2d(8), nn.ReLU())
    >>> [str(join) for join in record(block, nn.Sequential.forward).joins]
    ['1 + 2']
    """
    _require_plain(block, forward)
    found: list[Tape] = []
    for training, grad, autocast, inference in _MODES:
        with quiet(block), torch.set_grad_enabled(grad), _autocast(autocast), torch.inference_mode(inference):
            block.train(training)
            found.append(_trace(block))
    if any(each != found[0] for each in found):
        raise Unsafe(
            "its forward takes another course in training than in evaluation, without gradients or in autocast"
        )
    return found[0]


def _trace(block: nn.Module) -> Tape:
    before = [(module, dict(vars(module))) for module in block.modules()]
    drawn = torch.get_rng_state()
    try:
        with _ALONE, warnings.catch_warnings(), _own_attributes(block) as asked:
            warnings.simplefilter("ignore")
            graph = supervised(Tracer().trace, block)
    except Unsafe as why:
        _require_unchanged(before, why)
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:120]
        raise Unsafe(f"its forward cannot be traced ({type(error).__name__}: {text})") from error
    _require_unchanged(before)
    if not torch.equal(torch.get_rng_state(), drawn):
        raise Unsafe("its forward draws random numbers")
    return _tape(block, graph, tuple(sorted({*asked})))


def _autocast(enabled: bool) -> Any:
    """Not to its default type, so that who asks for that is noticed."""
    return torch.autocast("cpu", torch.float16 if enabled else torch.bfloat16, enabled=enabled)


@contextmanager
def _own_attributes(block: nn.Module) -> Iterator[list[Path]]:
    """What the forward reads of its parts: tensors and modules by name are noted, what else may change is refused."""
    before, thread, asked = nn.Module.__getattribute__, threading.get_ident(), list[Path]()
    rows = {id(each) for each in containers(block)}
    paths = [(id(module), path) for path, module in block.named_modules(remove_duplicate=False)]

    def read(module: nn.Module, name: str) -> Any:
        frame = sys._getframe(1)
        if threading.get_ident() != thread or name.startswith("__") or not _forward_asks(frame):
            return before(module, name)
        if module is block or (id(module) in rows and inside(frame)):
            found = before(module, name)
            if not inside(frame) and (name in _UNNOTED or _is_of_class(module, name)):
                whose = "" if name in _UNNOTED else " of its class"
                raise Unsafe(f"its forward reads {name!r}{whose}, which may change")
            return found
        try:
            found = before(module, name)
        except AttributeError:  # a tensor or module, or none yet
            asked.extend((*path.split("."), name) for each, path in paths if each == id(module))
            raise
        if name == "_modules":
            raise Unsafe("its forward goes through the layers of one of its parts")
        if callable(found) and name not in vars(module) and name != "forward" and not name.startswith("_"):
            return found
        raise Unsafe(f"its forward reads {name!r} of its part ({type(module).__name__}), which may change")

    nn.Module.__getattribute__ = read
    try:
        yield asked
    finally:
        nn.Module.__getattribute__ = before
        if before is object.__getattribute__:
            del nn.Module.__getattribute__


def _forward_asks(frame: FrameType | None) -> bool:
    """By itself or by a function of PyTorch's; not FX, which looks where a part stands."""
    while frame is not None and inside(frame):
        if str(frame.f_globals.get("__name__")).startswith("torch.fx."):
            return False
        frame = frame.f_back
    return frame is not None


def _is_of_class(block: nn.Module, name: str) -> bool:
    """Whether it is neither the block's own nor a method or property, whose code is looked through."""
    known = name in vars(block) or isinstance(inspect.getattr_static(type(block), name, None), _METHODS)
    return not known


def _tape(block: nn.Module, graph: fx.Graph, asked: tuple[Path, ...]) -> Tape:
    nodes = list(graph.nodes)
    slots: dict[fx.Node, Any] = {node: Slot(index) for index, node in enumerate(nodes)}
    inputs = [node for node in nodes if node.op == "placeholder"]
    _require_one_name(block, nodes)
    steps = {node: _step(block, node, slots) for node in nodes if node.op not in ("placeholder", "output")}
    joined: dict[fx.Node, Join | None] = {}
    for norm in steps:
        found = group(block, norm, nodes)
        if found is not None and not joined.keys() & {*found.nodes}:
            x = slots[norm.all_input_nodes[0]].index
            residual = None if found.residual is None else slots[found.residual].index
            parts = tuple(steps[node] for node in found.nodes)
            join = Join(steps[norm].target, x, residual, found.act, found.label, parts)
            joined |= {**dict.fromkeys(found.nodes), found.nodes[-1]: join}
    order = [each for node, step in steps.items() if (each := joined.get(node, step)) is not None]
    output = map_arg(nodes[-1].args[0], slots.__getitem__)
    _require_values(output)
    return Tape(len(inputs), len(nodes), tuple(order), _loose(output), asked, looks(block, asked))


def _step(block: nn.Module, node: fx.Node, slots: dict[fx.Node, Any]) -> Step:
    args, kwargs = (_loose(map_arg(each, slots.__getitem__)) for each in (node.args, node.kwargs))
    _require_values((args, kwargs))
    target: Any = node.target
    if node.op in ("call_module", "get_attr"):
        target = tuple(str(target).split("."))
    if node.op == "get_attr" and not _is_registered(block, target):
        raise Unsafe("its forward uses a tensor that is neither a parameter nor a buffer")
    step = Step(node.op, target, args, kwargs, slots[node].index)
    try:
        pickle.dumps(step)
    except Exception as error:
        raise Unsafe("its forward calls a function that cannot be pickled") from error
    return step


def _require_one_name(block: nn.Module, nodes: list[fx.Node]) -> None:
    """FX writes down the first of several, and the forward may mean another, which may be replaced later."""
    names = Counter(id(module) for _, module in block.named_modules(remove_duplicate=False))
    called = [str(node.target) for node in nodes if node.op == "call_module"]
    if twice := [path for path in called if names[id(block.get_submodule(path))] > 1]:
        raise Unsafe(f"its part {twice[0]!r} has a second name")


def _require_plain(block: nn.Module, forward: Any) -> None:
    if "forward" in vars(block):
        raise Unsafe("it has a forward of its own on the instance")
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    if any(p.kind not in _POSITIONAL or p.default is not p.empty for p in parameters):
        raise Unsafe("its forward has optional or keyword-only arguments")
    for name, value in looks(block)[1].items():
        if not _is_fixed(value):
            raise Unsafe(f"its attribute {name!r} ({type(value).__name__}) may change what its forward does")


def _is_fixed(value: Any) -> bool:
    """Whether a look at the object itself shows that nothing has changed."""
    if isinstance(value, tuple):
        return all(_is_fixed(each) for each in value)
    return value is None or isinstance(value, _FIXED)


def _require_values(value: Any) -> None:
    """Only slots and constants: anything else would be frozen as it was while tracing."""
    parts: list[Any] = []
    if isinstance(value, tuple | list):
        parts = [*value]
    elif isinstance(value, dict):
        parts = [*value.values()]
    elif isinstance(value, slice):
        parts = [value.start, value.stop, value.step]
    elif value is not None and not isinstance(value, (Slot, *_CONSTANTS)):
        raise Unsafe(f"its forward hands on a {type(value).__name__}, which a recording would freeze")
    for part in parts:
        _require_values(part)


def _loose(value: Any) -> Any:
    """Plain tuples, lists and dicts instead of FX's unchangeable ones."""
    if isinstance(value, list):
        return [_loose(each) for each in value]
    if isinstance(value, dict):
        return {key: _loose(each) for key, each in value.items()}
    return tuple(_loose(each) for each in value) if isinstance(value, tuple) else value


def _is_registered(block: nn.Module, path: tuple[str, ...]) -> bool:
    owner = at(block, path[:-1])
    return isinstance(owner, nn.Module) and (path[-1] in owner._parameters or path[-1] in owner._buffers)


def _require_unchanged(before: list[tuple[nn.Module, dict[str, Any]]], why: Unsafe | None = None) -> None:
    if any(_changed(vars(module), old) for module, old in before):
        raise Unsafe("its forward changes the module") from why


def _changed(now: dict[str, Any], old: dict[str, Any]) -> bool:
    names = [name for name in now if not name.startswith("_tensor_constant")]  # which FX itself puts there
    return names != list(old) or any(now[name] is not value for name, value in old.items())


_MODES = (  # training, gradients, autocast, inference mode
    (True, True, False, False),
    (True, False, False, False),
    (False, True, False, False),
    (False, False, False, False),
    (True, True, True, False),
    (False, False, False, True),
)
_UNNOTED = REGISTRIES - {"training", "_modules", "_parameters", "_buffers"}  # of the block itself
_METHODS = (FunctionType, staticmethod, classmethod, property)
_ALONE = threading.RLock()  # tracing changes nn.Module for all threads
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_CONSTANTS = (bool, int, float, str, torch.dtype, torch.device, torch.memory_format, type(Ellipsis))
_FIXED = (*_CONSTANTS, FunctionType, BuiltinFunctionType, type)
