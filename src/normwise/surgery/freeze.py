"""freeze and unfreeze: norms whose statistics, or weight and bias, stay as they are."""

from typing import Any

from torch import nn

from normwise.errors import UsageError
from normwise.layers.batch import BatchNorm
from normwise.layers.frozen import FrozenNorm
from normwise.layers.recurrent import Recurrent
from normwise.layers.step_memory import memories
from normwise.surgery.adopt import adopt
from normwise.surgery.find import Found, norm_layers
from normwise.surgery.packed import is_known
from normwise.surgery.plan import Plan, operation


def freeze(model: nn.Module, statistics: bool = True, affine: bool = False, *, dry_run: bool = False) -> Plan:
    """Freezes the norms of a model: `train()` does not undo it, and no step moves what is frozen.

    `statistics`: in training too a norm uses what it remembers, and remembers nothing new. `affine`:
    weight and bias get no gradient. The layers stay the same objects; PyTorch's and timm's get our class in place.
    Undone by `unfreeze`, or by the plan. Not part of the state_dict: freeze again after loading.

    >>> import torch
    >>> model = nn.Sequential(nn.BatchNorm1d(3))
    >>> plan = freeze(model)
    >>> _ = model.train()(torch.randn(8, 3) + 5)
    >>> model[0].running_mean.tolist(), plan.changes[0].note
    ([0.0, 0.0, 0.0], 'statistics')
    """
    if not statistics and not affine:
        raise UsageError("freeze: nothing to freeze; set statistics=True or affine=True.")
    with operation("freeze", model, dry_run=dry_run) as plan:
        for layer in norm_layers(model):
            _freeze(plan, layer, statistics, affine)
        if not plan.changes:
            plan.say("nothing was frozen; `left` says why for each layer.")
    return plan


def unfreeze(model: nn.Module, *, dry_run: bool = False) -> Plan:
    """Lets statistics move again, and weight and bias learn again, in every norm that `freeze` froze.

    A `frozen` layer becomes batch norm. What was kept from learning otherwise stays so.

    >>> model = nn.Sequential(nn.BatchNorm1d(3))
    >>> plan = freeze(model, affine=True)
    >>> unfreeze(model).changes[0].note, model[0].weight.requires_grad
    ('statistics, weight and bias', True)
    """
    with operation("unfreeze", model, dry_run=dry_run) as plan:
        for layer in norm_layers(model):
            _unfreeze(plan, layer)
        if not plan.changes:
            plan.say("nothing was frozen.")
    return plan


def _freeze(plan: Plan, layer: Found, statistics: bool, affine: bool) -> None:
    norm: Any = layer.module
    before, done, why = layer.what, [], "it has nothing to freeze"
    if statistics:
        why = _unfit(layer)
        if not why:
            norm.frozen = True
            done.append("statistics")
    learned = [name for name, p in _affine(norm) if p.requires_grad]
    if affine and learned:
        norm.frozen_affine = (*getattr(norm, "frozen_affine", ()), *learned)
        for name in learned:
            norm.get_parameter(name).requires_grad_(False)
        done.append("weight and bias")
    if done:
        plan.change(layer.path, before, before, _note(done, why if statistics else "", layer.tied))
    else:
        plan.leave(layer.path, before, why)


def _unfit(layer: Found) -> str:
    """Why the statistics of a layer cannot be frozen, or nothing."""
    norm: Any = layer.module
    if layer.frozen or getattr(norm, "frozen", False):
        return "frozen already"
    if memories(norm):
        return ""
    if norm._buffers.get("running_mean") is None:
        return "it remembers no statistics"
    if layer.locked and (not is_known(norm) or "forward" in vars(norm)):
        return layer.locked
    return "" if adopt(norm) else "it is a class of its own, whose statistics would go on moving; swap it first"


def _unfreeze(plan: Plan, layer: Found) -> None:
    norm: Any = layer.module
    before, done = layer.what, []
    affine: Any = getattr(norm, "frozen_affine", ())
    if isinstance(norm, FrozenNorm) and not norm.learn:
        affine = [name for name, _ in _affine(norm)]
    if getattr(norm, "frozen", False):
        done.append("statistics")
        vars(norm).pop("frozen", None)
        if type(norm) is FrozenNorm:
            setattr(norm, "__class__", BatchNorm)  # noqa: B010  (a type checker cannot follow an assignment)
            vars(norm).pop("learn")
    if affine:
        done.append("weight and bias")
        vars(norm).pop("frozen_affine", None)
        for name in affine:
            norm.get_parameter(name).requires_grad_(True)
    if done:
        plan.change(layer.path, before, "batch" if before.startswith("frozen") else before, _note(done, "", layer.tied))
    elif layer.frozen:
        plan.leave(layer.path, before, "frozen by its class, without a way back; swap it")


def _affine(norm: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What a norm itself learns: of a recurrent layer not the other weights, nor what further layers inside learn."""
    own = norm.named_parameters(recurse=False)
    return [(name, p) for name, p in own if name.startswith("norm_") or not isinstance(norm, Recurrent)]


def _note(done: list[str], left: str, tied: str) -> str:
    return "; ".join(filter(None, [", ".join(done), left and f"statistics not: {left}", tied]))
