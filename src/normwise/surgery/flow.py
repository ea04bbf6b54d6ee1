"""Follows the data: which convolution or linear layer, and it alone, feeds a norm."""

import inspect
import warnings
from collections import Counter
from collections.abc import Collection
from contextlib import nullcontext, suppress
from typing import Any, NamedTuple

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from normwise.surgery.forward import call, quiet, tensors

Sources = dict[nn.Module, nn.Module | str]  # of a norm: the layer that alone feeds it, or why there is none

_LINEAR: tuple[Any, ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


class Traced(NamedTuple):
    """What symbolic tracing found; `fixed` names the optional arguments that had to stay at their defaults."""

    sources: Sources
    fixed: tuple[str, ...] = ()


class Look(NamedTuple):
    """What one forward of the example showed: outputs, the rank of each norm's input, and the sources."""

    outputs: list[Tensor]
    ranks: dict[nn.Module, int]
    sources: Sources


def is_linear(module: nn.Module) -> bool:
    """A convolution (transposed too) or linear layer of PyTorch, without a forward of its own."""
    own = "forward" in vars(module)
    return not own and any(isinstance(module, kind) and _same_forward(type(module), kind) for kind in _LINEAR)


def traced_sources(model: nn.Module, norms: Collection[nn.Module]) -> Traced:
    """By symbolic tracing, so for all inputs; raises what the tracing raises.

    Optional arguments of the forward are traced both as given and at their defaults: a norm must have
    the same source both ways.
    """
    if model in norms:
        return Traced({model: "its input is the model's own input"})
    parameters = inspect.signature(model.forward).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    found: list[Sources] = []
    fixed: tuple[str, ...] = ()
    try:
        found.append(_judge_graph(_trace(model, norms, None), model, norms))
    except Exception:
        if not defaults:
            raise
        fixed = tuple(defaults)
    if defaults:
        with suppress(Exception) if found else nullcontext():
            found.append(_judge_graph(_trace(model, norms, defaults), model, norms))
    return Traced({norm: _agreed([each[norm] for each in found]) for norm in norms}, fixed)


def look(model: nn.Module, norms: Collection[nn.Module], example: Any) -> Look:
    """By one forward: every operation that touches the output of a linear layer is seen."""
    with quiet(model), _Watch(model, norms) as watch:
        output = call(model, example)
    kept = {id(leaf) for leaf in pytree.tree_leaves(output)}
    outputs = [each.clone() for each in tensors(output)]
    return Look(outputs, watch.ranks, {norm: watch.judge(norm, kept) for norm in norms})


class _Tracer(fx.Tracer):
    def __init__(self, norms: Collection[nn.Module]) -> None:
        super().__init__()
        self._norms = norms

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self._norms or is_linear(m) or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module, norms: Collection[nn.Module], concrete: dict[str, Any] | None) -> fx.Graph:
    with quiet(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Tracer(norms).trace(model, concrete)


def _agreed(found: list[nn.Module | str]) -> nn.Module | str:
    return next((each for each in found if isinstance(each, str)), found[0])


def _judge_graph(graph: fx.Graph, model: nn.Module, norms: Collection[nn.Module]) -> Sources:
    calls: dict[nn.Module, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(model.get_submodule(node.target), []).append(node)
    own = {id(p): module for module in model.modules() for p in module._parameters.values() if p is not None}
    read = [_attribute(model, str(node.target)) for node in graph.nodes if node.op == "get_attr"]
    handled = {own[id(each)] for each in read if id(each) in own}
    return {norm: _judge_node(norm, calls, model, handled) for norm in norms}


def _judge_node(
    norm: nn.Module, calls: dict[nn.Module, list[fx.Node]], model: nn.Module, handled: Collection[nn.Module]
) -> nn.Module | str:
    nodes = calls.get(norm, [])
    if len(nodes) != 1:
        return _times(len(nodes))
    if len(nodes[0].all_input_nodes) != 1:
        return "it gets more than its one input"
    feed = _through_identities(nodes[0].all_input_nodes[0], model)
    source = model.get_submodule(str(feed.target)) if feed.op == "call_module" else None
    if source is None or not is_linear(source):
        return _not_linear(feed, nodes[0], model)
    if len(feed.users) > 1:
        return f"the output of {feed.target} is used elsewhere too"
    if len(calls[source]) > 1:
        return f"{feed.target} is called {len(calls[source])} times in one forward"
    if source in handled or norm in handled:
        return "the forward also uses its parameters, or those of the layer before it, directly"
    return source


def _through_identities(node: fx.Node, model: nn.Module) -> fx.Node:
    while node.op == "call_module" and len(node.users) == 1:
        if type(model.get_submodule(str(node.target))) is not nn.Identity:
            break
        node = node.all_input_nodes[0]
    return node


def _not_linear(feed: fx.Node, norm: fx.Node, model: nn.Module) -> str:
    what = "the model's own input" if feed.op == "placeholder" else str(feed.name)
    after = [model.get_submodule(str(user.target)) for user in norm.users if user.op == "call_module"]
    forward = any(is_linear(module) for module in after)
    more = "; folding it forward would be wrong at padded borders" if forward else ""
    return f"its input is {what}, not the output of a convolution or linear layer{more}"


class _Watch(TorchDispatchMode):
    """Sees every operation of one forward, and which module is at work."""

    def __init__(self, model: nn.Module, norms: Collection[nn.Module]) -> None:
        super().__init__()
        self.ranks: dict[nn.Module, int] = {}
        self._names = {module: name for name, module in model.named_modules()}
        self._made: dict[int, tuple[nn.Module, Tensor]] = {}  # the tensor is held, so that its id stays its own
        self._feeds: dict[nn.Module, int] = {}
        self._calls: Counter[nn.Module] = Counter()
        self._touched: Counter[int] = Counter()
        self._at_work: nn.Module | None = None
        watched = [*norms, *(module for module in model.modules() if is_linear(module))]
        self._owner = {id(p): module for module in watched for p in module.parameters()}
        for module in watched:
            module.register_forward_pre_hook(self._enter, with_kwargs=True)
            module.register_forward_hook(self._leave)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # PyTorch's default imports its compiler here, for seconds, to guard against compiled code

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in pytree.tree_leaves((args, kwargs)):
            norm_reads_input = self._feeds.get(self._at_work) == id(leaf) if self._at_work else False
            foreign = id(leaf) in self._owner and self._owner[id(leaf)] is not self._at_work
            if foreign or (id(leaf) in self._made and not norm_reads_input):
                self._touched[id(leaf)] += 1
        return func(*args, **(kwargs or {}))

    def judge(self, norm: nn.Module, kept: Collection[int]) -> nn.Module | str:
        if self._calls[norm] != 1:
            return _times(self._calls[norm])
        feed = self._feeds[norm]
        if feed not in self._made:
            return "its input is not the output of a convolution or linear layer"
        source = self._made[feed][0]
        name = self._names[source]
        if self._touched[feed] or feed in kept or list(self._feeds.values()).count(feed) > 1:
            return f"the output of {name} is used elsewhere too"
        if self._calls[source] > 1:
            return f"{name} is called {self._calls[source]} times in one forward"
        if any(self._touched[id(p)] for p in (*source.parameters(), *norm.parameters())):
            return "the forward also uses its parameters, or those of the layer before it, directly"
        return source

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._at_work = module
        self._calls[module] += 1
        x = next(iter([*args, *kwargs.values()]))
        if not is_linear(module):
            self._feeds[module], self.ranks[module] = id(x), x.dim()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._at_work = None
        if is_linear(module) and isinstance(output, Tensor):
            self._made[id(output)] = module, output


def _times(count: int) -> str:
    return f"it is called {count} times in one forward" if count else "the forward does not reach it"


def _same_forward(kind: type, base: Any) -> bool:
    names = ("forward", "_conv_forward")
    return all(getattr(kind, name, None) is getattr(base, name, None) for name in names)


def _attribute(model: nn.Module, path: str) -> Any:
    value: Any = model
    for name in path.split("."):
        value = getattr(value, name)
    return value
