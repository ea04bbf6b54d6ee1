"""The norm of a recurrent layer: exchanges it, with the weights kept."""

import warnings
from typing import Any

from torch import nn

from normwise.errors import UsageError
from normwise.layers.recurrent import GRU, LSTM, RECURRENT_NORMS, Recurrent
from normwise.surgery.carry import carry_hooks
from normwise.surgery.find import Found
from normwise.surgery.plan import Plan
from normwise.surgery.rules import Rules

MISFIT = f"it is a recurrent layer, which takes {', '.join(RECURRENT_NORMS[:-1])} or {RECURRENT_NORMS[-1]}"


def plain_layers(model: nn.Module, rules: Rules) -> list[Found]:
    """PyTorch's own LSTM and GRU layers that a pattern names in full: a wildcard does not mean them."""
    named = {*rules.where, *(pattern for pattern, _ in rules.pairs)}
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.LSTM | nn.GRU):
            paths.setdefault(module, []).append(path)
    return [Found(m, tuple(where), None, _locked(m)) for m, where in paths.items() if named & {*where}]


def stand_in(plan: Plan, layer: Found, rules: Rules) -> nn.Module | None:
    """The layer with another norm, or None; the plan records which."""
    spec, why = rules.choose(layer)
    norm = getattr(layer.module, "norm", "none")
    if spec is not None:
        why = (not isinstance(layer.module, Recurrent) and layer.locked) or _misfit(str(spec), norm)
    if spec is None or why:
        plan.leave(layer.path, f"{type(layer.module).__name__} {norm}", why)
        return None
    new = renormed(layer.module, str(spec))
    notes = (layer.tied, "weights kept; the norm's own start anew" if spec.name != "none" else "weights kept")
    hooks = carry_hooks(layer.module, new)
    plan.change(
        layer.path, f"{type(layer.module).__name__} {norm}", str(spec), "; ".join(filter(None, (*notes, hooks)))
    )
    return new


def renormed(layer: nn.Module, norm: str) -> Recurrent:
    """An LSTM or GRU with the same weights (the same Parameter objects) and another norm.

    >>> plain = nn.LSTM(3, 8)
    >>> renormed(plain, "layer").weight_hh_l0 is plain.weight_hh_l0
    True
    """
    assert isinstance(layer, nn.RNNBase)
    sizes = layer.input_size, layer.hidden_size, layer.num_layers, layer.bias
    options = {name: getattr(layer, name) for name in ("eps", "momentum", "state_noise") if hasattr(layer, name)}
    weight: Any = layer.weight_ih_l0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dropout that has no effect: the user has read it once
        new = (LSTM if layer.mode == "LSTM" else GRU)(
            *sizes, layer.batch_first, layer.dropout, layer.bidirectional,
            norm=norm, **options, device=weight.device, dtype=weight.dtype,
        )  # fmt: skip
    for name in layer._flat_weights_names:
        setattr(new, name, getattr(layer, name))
    return new.train(layer.training)


def require_fit(plan: Plan) -> None:
    """A spec that fits none of the layers it was meant for is a mistake, not a plan."""
    refused = [each for each in plan.left if each.note == MISFIT]
    if refused and not plan.changes:
        raise UsageError(f"swap: {refused[0].path!r} cannot take this norm: {MISFIT}; nothing would be altered.")


def _misfit(spec: str, norm: str) -> str:
    if spec not in RECURRENT_NORMS:
        return MISFIT
    return f"computes the same as {spec} already" if spec == norm else ""


def _locked(module: nn.Module) -> str | None:
    if hasattr(module, "parametrizations"):
        return "a parametrization computes its weight; remove it first"
    if type(module).forward not in (nn.LSTM.forward, nn.GRU.forward) or "forward" in vars(module):
        return "it has a forward of its own, and a replacement would lose what it does besides"
    return "it has proj_size, which a layer with a norm has not" if getattr(module, "proj_size", 0) else None
