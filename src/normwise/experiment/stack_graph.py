"""Rewrites a network so that it computes several at once, their channels side by side: (N, K * C, *spatial).

The network is traced in training mode; every operation must be one that is known to treat the members
apart, else UnstackableError says which is not. Nothing is guessed.
"""

import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from normwise.experiment import stack_layers as layers
from normwise.experiment.stack import Members
from normwise.experiment.trial import UnstackableError
from normwise.kernels import Act
from normwise.layers.normact import watched
from normwise.surgery.forward import quiet
from normwise.surgery.join import group
from normwise.surgery.tape import at

POINTWISE = {
    torch.relu, torch.sigmoid, torch.tanh, F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.softplus,
    F.hardswish, F.hardsigmoid, F.sigmoid, F.tanh, "relu", "relu_", "sigmoid", "tanh", "contiguous", "clone",
}  # fmt: skip
COMBINING = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.imul, torch.add, torch.sub,
    torch.mul, "add", "add_", "sub", "mul", "mul_",
}  # fmt: skip
PLANEWISE = {
    F.max_pool1d: 1, F.max_pool2d: 2, F.max_pool3d: 3, F.avg_pool1d: 1, F.avg_pool2d: 2, F.avg_pool3d: 3,
    F.adaptive_avg_pool1d: 1, F.adaptive_avg_pool2d: 2, F.adaptive_avg_pool3d: 3, F.adaptive_max_pool2d: 2,
}  # fmt: skip
# Keep the order of a sample's values.
RESHAPING = {
    torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.unflatten,
    "flatten", "reshape", "view", "squeeze", "unsqueeze", "unflatten",
}  # fmt: skip
DROPOUT = {F.dropout: None, F.dropout1d: 3, F.dropout2d: 4, F.dropout3d: 5}  # axes, where whole channels are dropped
ASKING = {"size", "dim", getattr, operator.getitem}  # for shapes; must be unused once the shapes are known
SAMPLES = 3  # of the example: few, and no likely number of channels


def grouped(
    members: Members, example: Tensor, generators: list[Generator], *, channels_last: bool = False
) -> Callable[[Tensor], Tensor]:
    """The network of all members: from (N, K * C, ...) to (N, K * outputs, ...), in training mode.

    `example` holds a few samples (N, C, ...) of one member; `generators` are the members' own, for dropout.
    With `channels_last` the values of a pixel lie side by side in memory.

    >>> members = Members([nn.Sequential(nn.Linear(2, 1)), nn.Sequential(nn.Linear(2, 1))])
    >>> grouped(members, torch.randn(3, 2), [])(torch.randn(8, 4)).shape
    torch.Size([8, 2])
    """
    model = members.template.train()
    if channels_last and not any(type(layer) in layers.LAID_OUT for layer in model.modules()):
        raise UnstackableError("no convolution has a layout to choose")
    graph = _trace(model)
    _shapes(model, graph, example[:SAMPLES])
    made = _Rewriter(model, members, generators, channels_last).rewrite(graph)
    fuse(made)
    made.train()
    return made


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in layers.MULTIPLIED or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.Graph:
    if any("forward" in vars(module) or watched(module) for module in model.modules()):
        raise UnstackableError("a layer has hooks")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _Tracer().trace(model)
    except Exception as error:
        raise UnstackableError(f"the network cannot be traced: {error}") from error


def _shapes(model: nn.Module, graph: fx.Graph, example: Tensor) -> None:
    """Notes at every node the shape of its value for an example."""
    try:
        with quiet(model):
            ShapeProp(fx.GraphModule(model, graph)).propagate(example)
    except Exception as error:
        raise UnstackableError(f"the network fails on a few samples: {error}") from error


class _Rewriter:
    """Goes through the nodes in order; each becomes what does the same for all members."""

    def __init__(self, model: nn.Module, members: Members, generators: list[Generator], channels_last: bool) -> None:
        self.model, self.members, self.generators, self.channels_last = model, members, generators, channels_last
        self.modules: dict[str, nn.Module] = {}
        self.names: dict[str, str] = {}
        self.graph = fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}

    def rewrite(self, graph: fx.Graph) -> fx.GraphModule:
        if sum(node.op == "placeholder" and bool(node.users) for node in graph.nodes) != 1:
            raise UnstackableError("the network must take one input")
        for node in graph.nodes:
            self.new[node] = getattr(self, f"_{node.op}")(node)
        made = fx.GraphModule(dict(self.modules), self.graph)
        made.graph.eliminate_dead_code()
        for node in made.graph.nodes:
            if node.target in ASKING:
                raise UnstackableError(f"the network computes with shapes ({node.name})")
        made.recompile()
        return made

    def _placeholder(self, node: fx.Node) -> fx.Node:
        made = self._same(node)
        return self.graph.call_function(pixel_by_pixel, (made,)) if self.channels_last else made

    def _output(self, node: fx.Node) -> fx.Node:
        if not isinstance(node.args[0], fx.Node):
            raise UnstackableError("the network must return one tensor")
        _shape(node.args[0])
        return self._same(node)

    def _get_attr(self, node: fx.Node) -> fx.Node:
        raise UnstackableError(f"the forward uses {node.target} directly")

    def _call_module(self, node: fx.Node) -> fx.Node:
        path = str(node.target)
        layer = self.model.get_submodule(path)
        kind = type(layer)
        if len(node.args) != 1 or node.kwargs:
            raise UnstackableError(f"{path} gets more than its one input")
        if kind in layers.RESHAPING:
            return self._reshape(node)
        _require_rank(node, _rank(kind))
        if kind not in layers.KNOWN:
            raise UnstackableError(f"{path} is a {kind.__name__}, whose values may cross the members")
        name = self.names.setdefault(path, f"layer{len(self.names)}")
        if name not in self.modules:
            self.modules[name] = layers.stacked_layer(
                layer, path, self.members, self.generators, channels_last=self.channels_last
            )
        return self.graph.call_module(name, (self.new[node.all_input_nodes[0]],))

    def _call_method(self, node: fx.Node) -> fx.Node:
        return self._call_function(node)

    def _call_function(self, node: fx.Node) -> fx.Node:
        what: Any = node.target
        if what in RESHAPING:
            return self._reshape(node)
        if what is torch.cat or what is torch.concat:
            return self._concatenate(node)
        if what in DROPOUT:
            return self._dropout(node)
        if what in ASKING or self._is_known(node):
            return self._same(node)
        raise UnstackableError(f"{node.name} is an operation whose values may cross the members")

    def _is_known(self, node: fx.Node) -> bool:
        what: Any = node.target
        inputs = node.all_input_nodes
        if what in COMBINING:
            shapes = {_shape(each) for each in inputs}
            return len(shapes) == 1 and len(next(iter(shapes))) > 1
        if len(inputs) != 1:
            return False
        shape = _shape(inputs[0])
        if what in PLANEWISE:
            return len(shape) == 2 + PLANEWISE[what]
        if what in (torch.mean, "mean"):
            return len(shape) > 2 and _axes(node, len(shape)) <= set(range(2, len(shape)))
        return what in POINTWISE and len(shape) > 1

    def _reshape(self, node: fx.Node) -> fx.Node:
        """The samples stay apart and keep the order of their values, so the members do too."""
        source, shape = node.all_input_nodes[0], _shape(node)
        if not shape or shape[0] != SAMPLES or _shape(source)[0] != SAMPLES:
            raise UnstackableError(f"{node.name} mixes samples")
        first, rest = (shape[1], shape[2:]) if len(shape) > 1 else (1, ())
        target = (self.members.count * first, *rest)
        return self.graph.call_function(reshape, (self.new[source], target))

    def _concatenate(self, node: fx.Node) -> fx.Node:
        given, axis = node.args[0], node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        ranks = {len(_shape(each)) for each in node.all_input_nodes}
        if len(ranks) != 1 or axis not in (1, 1 - max(ranks)):
            raise UnstackableError(f"{node.name} concatenates along another axis than the channels")
        parts = [self.new[each] for each in given]  # pyright: ignore
        return self.graph.call_function(concatenate, (parts, self.members.count))

    def _dropout(self, node: fx.Node) -> fx.Node:
        source = node.all_input_nodes[0]
        what: Any = node.target
        said: Any = {
            "p": 0.5,
            "training": True,
            **dict(zip(("p", "training"), node.args[1:], strict=False)),
            **node.kwargs,
        }
        _require_rank(node, DROPOUT[what])
        p = said["p"] if said["training"] else 0.0
        self.modules[node.name] = layers.StackedDropout(p, DROPOUT[what] is not None, self.generators)
        return self.graph.call_module(node.name, (self.new[source],))

    def _same(self, node: fx.Node) -> fx.Node:
        return self.graph.node_copy(node, lambda old: self.new[old])


def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The samples in another shape."""
    return x.reshape(len(x), *shape)


def pixel_by_pixel(x: Tensor) -> Tensor:
    """The same values, those of a pixel side by side in memory, if there are pixels."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.dim()]) if x.dim() in formats else x


def fuse(made: fx.GraphModule) -> None:
    """Joins every norm with the residual and the activation after it."""
    nodes = list(made.graph.nodes)
    taken: set[fx.Node] = set()
    for norm in nodes:
        found = group(made, norm, nodes)
        if found is None or not taken.isdisjoint(found.nodes):
            continue
        taken.update(found.nodes)
        name, last = f"{norm.target}_fused", found.nodes[-1]
        act = found.act if found.act is None or isinstance(found.act, Act) else at(made, found.act)
        made.add_submodule(name, layers.Fused(at(made, (str(norm.target),)), act))
        inputs = (norm.args[0], *([] if found.residual is None else [found.residual]))
        with made.graph.inserting_before(last):
            last.replace_all_uses_with(made.graph.call_module(name, inputs))
    made.graph.eliminate_dead_code()
    made.delete_all_unused_submodules()
    made.recompile()


def concatenate(parts: list[Tensor], members: int) -> Tensor:
    """Channels of several tensors, member by member."""
    return torch.cat([part.unflatten(1, (members, -1)) for part in parts], 2).flatten(1, 2)


def _shape(node: fx.Node) -> tuple[int, ...]:
    found = node.meta.get("tensor_meta")
    if found is None or not hasattr(found, "shape"):
        raise UnstackableError(f"{node.name} is no tensor")
    return tuple(found.shape)


def _rank(kind: type[nn.Module]) -> int | None:
    """The axes that an input must have, so that the first is that of the samples: 4 for a BatchNorm2d."""
    if kind is nn.Linear:
        return 2
    digit = kind.__name__.removesuffix("d")[-1]
    if kind is nn.BatchNorm1d or not (kind.__name__.endswith("d") and digit.isdigit()):
        return None
    return 2 + int(digit)


def _require_rank(node: fx.Node, rank: int | None) -> None:
    shape = _shape(node.all_input_nodes[0])
    if len(shape) != rank if rank else len(shape) < 2:
        raise UnstackableError(f"{node.target} gets an input of shape {shape}")


def _axes(node: fx.Node, rank: int) -> set[int]:
    """The axes that a mean is taken over; all where none are named."""
    given: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else range(rank))
    return {axis % rank for axis in ([given] if isinstance(given, int) else given)}
