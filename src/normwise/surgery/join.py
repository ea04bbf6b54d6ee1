"""Finds in a traced forward what can be joined: a norm, the sum that alone uses it, and the activation after that."""

import operator
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from normwise.kernels import Act
from normwise.layers.normact import ACTIVATIONS, known_act, takes_tail
from normwise.surgery.flow import is_linear
from normwise.surgery.tape import Path, at


class Group(NamedTuple):
    """The nodes to be joined, from the norm on; the residual and the activation among them; and a name."""

    nodes: list[fx.Node]
    residual: fx.Node | None
    act: Path | Act | None
    label: str


def group(block: nn.Module, norm: fx.Node, nodes: list[fx.Node]) -> Group | None:
    """What can be joined with a norm; None if there is nothing, or if it would not be the same."""
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    if any(node.op == "get_attr" and _path(node)[:-1] == _path(norm) for node in nodes):
        return None  # who reads the norm's tensors, or writes to them, would see them before the norm
    if norm.op != "call_module" or calls[norm.target] > 1 or len(norm.args) != 1 or norm.kwargs:
        return None
    if not takes_tail(type(at(block, _path(norm)))) or not norm.all_input_nodes:
        return None
    members, residual = [norm], None
    user = _only_user(norm)
    if user is not None and (residual := _added(user, norm)) is not None:
        members.append(user)
        user = _only_user(user)
        user = user if user is not None and nodes.index(user) == nodes.index(members[-1]) + 1 else None
    act, name = (None, "") if user is None else _activation(block, user, residual)
    if user is not None and act is not None:
        members.append(user)
    last = members[-1] if residual is None else members[1]
    if len(members) == 1 or not _unmoved(block, norm, nodes[nodes.index(norm) + 1 : nodes.index(last)]):
        return None
    label = " + ".join(filter(None, (str(norm.target), "" if residual is None else "add", name)))
    return Group(members, residual, act, label)


def _unmoved(block: nn.Module, norm: fx.Node, between: list[fx.Node]) -> bool:
    """The norm is computed later than it was: nothing in between may write to its input, not by another name either."""
    source = norm.all_input_nodes[0]
    fresh = source.op == "call_module" and is_linear(at(block, _path(source)))
    return not between or (fresh and set(source.users) == {norm})


def _kept_alike(act: Any, residual: fx.Node, node: fx.Node) -> bool:
    """Whether the backward pass keeps nothing that PyTorch's does not, for that may be written to after."""
    if isinstance(act, nn.SiLU | nn.GELU):  # it keeps the residual where PyTorch's keeps the sum
        return not any(user > node for user in residual.users)
    return isinstance(act, nn.ReLU) or (isinstance(act, nn.LeakyReLU) and act.inplace)  # it keeps the output


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _added(node: fx.Node, norm: fx.Node) -> fx.Node | None:
    """What a sum adds to the norm's output; in place only where it is the output that is written to."""
    kind = _SUMS.get(node.target)
    operands = [arg for arg in node.args if isinstance(arg, fx.Node)]
    if kind is None or kind[0] != node.op or len(node.args) != 2 or len(operands) != 2 or node.kwargs:
        return None
    first, second = operands
    if second is norm and first is not norm and not kind[1]:
        return first
    return second if first is norm and second is not norm else None


def _activation(block: nn.Module, node: fx.Node, residual: fx.Node | None) -> tuple[Path | Act | None, str]:
    """The path of a module that is an activation the kernels know, or that activation of a function; and a name."""
    module = _module(block, node)
    act = None if module is None else known_act(module)
    if act is None or (residual is not None and not _kept_alike(module, residual, node)):
        return None, ""
    return (_path(node), str(node.target)) if node.op == "call_module" else (act, type(module).__name__)


def _module(block: nn.Module, node: fx.Node) -> nn.Module | None:
    """What a node calls with one value, or the module that does what its function does."""
    if node.op == "call_module":
        module = at(block, _path(node))
        return module if len(node.args) == 1 and not node.kwargs and type(module) is not nn.Identity else None
    kind = _ACTS.get(node.target) if node.op != "get_attr" else None
    if kind is None or not node.args or len(node.all_input_nodes) != 1:
        return None
    try:
        return kind(*node.args[1:], **{name: v for name, v in node.kwargs.items() if name != "input"})
    except (TypeError, ValueError):
        return None


def _path(node: fx.Node) -> Path:
    return tuple(str(node.target).split("."))


_SUMS: dict[Any, tuple[str, bool]] = {  # how it is called, and whether it writes to its first operand
    operator.add: ("call_function", False),
    torch.add: ("call_function", False),
    operator.iadd: ("call_function", True),
    "add": ("call_method", False),
    "add_": ("call_method", True),
}
_ACTS: dict[Any, type[nn.Module]] = {**ACTIVATIONS, "relu": nn.ReLU, "relu_": nn.ReLU}
