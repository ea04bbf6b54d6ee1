"""swap: replaces the norm layers of any model, keeping what can be kept."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from normwise.errors import UsageError
from normwise.layers import NORMS
from normwise.layers.spec import NormSpec, NormState, build, read, signature
from normwise.surgery.carry import carry_hooks, carry_state
from normwise.surgery.check import require_runs, require_swapped
from normwise.surgery.find import Found, norm_layers, replace
from normwise.surgery.parameters import follow, require_held, require_optimizer
from normwise.surgery.plan import Plan, operation
from normwise.surgery.recurrent import plain_layers, require_fit
from normwise.surgery.recurrent import stand_in as recurrent_stand_in
from normwise.surgery.rules import Rules, Spec


def swap(
    model: nn.Module,
    to: Spec | Mapping[str, Spec],
    where: str | Iterable[str] = "*",
    optimizer: torch.optim.Optimizer | None = None,
    example: Any = None,
    *,
    dry_run: bool = False,
) -> Plan:
    """Replaces the norm layers of a model by another kind, in place, and says what it did and what it left.

    `to` is a spec ("group:8"), or a mapping from glob patterns on module paths to specs: the first
    match wins, what no pattern matches is kept, and so is what a pattern maps to "keep". `where`
    limits the swap to paths that match one of its patterns. Of either one must match. A recurrent layer
    of ours takes batch, layer or none; PyTorch's `nn.LSTM` and `nn.GRU` do where a pattern is their full
    path. Kept: channels, eps, momentum, affine, weight and bias (the same Parameter objects), running
    statistics where both have them, device, dtype, train or eval mode, ties, forward and backward hooks.
    With `optimizer` its groups follow. With `example` (a tensor, a tuple of arguments or a dict of them)
    one forward shows that the new model runs. An exception leaves everything as it was; `dry_run=True` changes nothing.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> plan = swap(model, {"1": "instance"}, example=torch.randn(2, 3, 8, 8))
    >>> type(model[1]).__name__, plan.changes[0].before
    ('InstanceNorm', 'batch')
    >>> plan.undo()
    >>> type(model[1]).__name__
    'BatchNorm2d'
    """
    rules = Rules.read(to, where)
    require_optimizer(optimizer)
    with operation("swap", model, optimizer, dry_run=dry_run) as plan:
        require_held(optimizer, model)
        layers = norm_layers(model) + plain_layers(model, rules)
        if not layers:
            raise UsageError(
                f"swap: {type(model).__name__} has no normalization layer, so there is nothing to replace."
            )
        rules.require_match([path for layer in layers for path in layer.paths])
        made = exchange(plan, layers, lambda layer: _stand_in(plan, layer, rules), optimizer, example)
        require_fit(plan)
        _announce(plan, rules, layers, made, optimizer)
    return plan


def exchange(
    plan: Plan, layers: Iterable[Found], make: Callable[[Found], nn.Module | None], optimizer: Any, example: Any
) -> dict[nn.Module, nn.Module]:
    """Puts what `make` gives in the place of layers: the optimizer follows, the example shows that the model runs."""
    model, layers = plan.model, list(layers)
    if example is not None:
        require_runs(plan, example)
    stand_ins = {layer: new for layer in layers if (new := make(layer)) is not None}
    made = {layer.module: new for layer, new in stand_ins.items()}
    _leave_fast_path(model, made)
    plan.model = replace(model, made)
    if optimizer is not None:
        follow(optimizer, plan.model, made, {layer.module: layer.path for layer in layers})
    if example is not None:
        require_swapped(plan, stand_ins, example)
    return made


def _leave_fast_path(model: nn.Module, exchange: Mapping[nn.Module, nn.Module]) -> None:
    """In evaluation PyTorch's encoder layer reads the weights of its norms and computes LayerNorm by itself."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and {module.norm1, module.norm2} & exchange.keys():
            module.activation_relu_or_gelu = 0  # what PyTorch checks before it takes that path


def _stand_in(plan: Plan, layer: Found, rules: Rules) -> nn.Module | None:
    """The new layer, or None; the plan records which."""
    if isinstance(layer.module, nn.RNNBase):
        return recurrent_stand_in(plan, layer, rules)
    return stand_in(plan, layer, *rules.choose(layer))


def stand_in(plan: Plan, layer: Found, spec: NormSpec | None, why: str = "") -> nn.Module | None:
    """A new layer of this spec with all that the old one can hand over, or None; the plan records which, and why."""
    if spec is not None:
        why = layer.locked or _misfit(layer, spec)
    new = _built(plan.model, layer, spec) if spec is not None and not why else None
    if new is not None and signature(new) == signature(layer.module):
        new, why = None, f"computes the same as {spec} already"
    if new is None:
        plan.leave(layer.path, layer.what, why)
        return None
    notes = (layer.tied, carry_state(layer.module, new), carry_hooks(layer.module, new))
    plan.change(layer.path, layer.what, str(_state(new).spec), "; ".join(filter(None, notes)))
    return new


def _misfit(layer: Found, spec: NormSpec) -> str:
    """Why the spec cannot stand in for the layer: another layout, a position's norm, a second input."""
    had = _state(layer.module).spec
    old, new = NORMS[had.name], NORMS[spec.name]
    axis, wanted = _axis(had), dict(spec.options).get("axis")
    if "other" in (old.kind, new.kind):
        of, which = (spec, new.given) if new.kind == "other" else (had, old.given)
        why = f"takes a second input, the {which}" if which else "does not normalize"
        return f"{of} {why}, so it stands in for no norm and none for it; put it in by hand"
    if wanted is not None and wanted != axis:
        return f"its features are on axis {axis}, and {spec} takes them on axis {wanted}"
    if "axis" in new.options:
        return ""
    per_position = old.kind == "position" or old.axes == ("C",)
    if per_position and new.kind != "position" and new.axes != ("C",):
        return "it normalizes each position over its features, so only a per-position norm can replace it"
    if axis == 1 and new.kind == "position":
        return f"its channels are on axis 1, and {spec} works on the last axis; take layer, group or channel-layer"
    if axis == -1 and new.kind != "position":
        return f"its features are on the last axis, and {spec} works on axis 1; take layer-token or rms-token"
    return ""


def _axis(spec: NormSpec) -> int | float:
    return dict(spec.options).get("axis", -1 if NORMS[spec.name].kind == "position" else 1)


def _built(model: nn.Module, layer: Found, spec: NormSpec) -> nn.Module:
    state = _state(layer.module)
    if "axis" in NORMS[spec.name].options:  # the layer's, whatever the spec leaves open
        spec = NormSpec(spec.name, tuple({**dict(spec.options), "axis": _axis(state.spec)}.items()))
    device, dtype = (state.device, state.dtype) if state.device else _nearby(model, layer.path)
    keeps_eps = state.eps is not None or spec.name == state.spec.name  # None: what RMSNorm calls automatic
    options: dict[str, Any] = {"eps": state.eps} if keeps_eps else {}
    habit = getattr(NORMS[state.spec.name].cls, "tracks", None)
    if habit is not None and state.track_running_stats != habit:
        options["track_running_stats"] = state.track_running_stats  # the user's choice, not the norm's habit
    options |= {"momentum": state.momentum, "affine": state.affine, "bias": state.bias}
    try:
        new = build(spec, state.num_features, **options, device=device, dtype=dtype)
    except ValueError as error:
        raise UsageError(
            f"swap: layer {layer.path!r} ({state.num_features} channels) cannot become {spec}: {error}"
        ) from error
    return new.train(state.training)


def _nearby(model: nn.Module, path: str) -> tuple[torch.device | None, torch.dtype | None]:
    """Device and type of the tensors around a layer that has none itself."""
    parents = path.split(".")[:-1]
    for depth in range(len(parents), -1, -1):
        parent = model.get_submodule(".".join(parents[:depth]))
        for tensor in (*parent.parameters(), *parent.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
    return None, None


def _state(norm: nn.Module) -> NormState:
    state = read(norm)
    assert state is not None, "only norms come here"
    return state


def _announce(
    plan: Plan, rules: Rules, layers: list[Found], exchange: Mapping[nn.Module, nn.Module], optimizer: Any
) -> None:
    """The notes about the whole: idle patterns, nothing altered, what is left to do."""
    paths = [path for layer in layers for path in layer.paths]
    for pattern in rules.idle(paths):
        plan.say(f"pattern {pattern!r} matches no normalization layer; the first is at {paths[0]!r}.")
    if not exchange:
        plan.say("nothing was altered; `left` says why for each layer.")
    if plan.model in exchange.values():
        plan.say("the model itself is the norm: go on with plan.model.")
    known = {id(p) for layer in layers for p in layer.module.parameters()}
    if optimizer is None and any(id(p) not in known for new in exchange.values() for p in new.parameters()):
        plan.say("there are new parameters: build the optimizer after the swap, or give it as optimizer=.")
