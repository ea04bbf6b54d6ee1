"""Keeps an optimizer in step with a model whose norm layers were replaced."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from normwise.errors import UsageError


def follow(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    stand_ins: Mapping[nn.Module, nn.Module],
    paths: Mapping[nn.Module, str],
) -> None:
    """New parameters take the group and place of those they follow; those out of use go, with their state.

    A parameter that old and new layer share keeps place and state. A new layer without a
    predecessor joins the group of the other norms, else the first; what was kept out of the optimizer
    stays out.
    """
    groups = optimizer.param_groups
    alive = {id(p) for p in model.parameters()}
    home = _home(groups, stand_ins)
    for old, new in stand_ins.items():
        _join(groups, old, new, paths[old], home)
    gone = {id(p) for old in stand_ins for p in old.parameters()} - alive
    for group in groups:
        keep = [i for i, p in enumerate(group["params"]) if id(p) not in gone]
        for key in ("params", "param_names"):
            if key in group:
                group[key][:] = [group[key][i] for i in keep]
    for parameter in [p for p in optimizer.state if id(p) in gone]:
        del optimizer.state[parameter]


def require_optimizer(optimizer: Any) -> None:
    """An optimizer is what has groups and state."""
    if optimizer is not None and not (hasattr(optimizer, "param_groups") and hasattr(optimizer, "state")):
        raise UsageError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}.")


def require_held(optimizer: torch.optim.Optimizer | None, model: nn.Module) -> None:
    """The optimizer must hold parameters of this model."""
    known = {id(p) for p in model.parameters()}
    groups = optimizer.param_groups if optimizer is not None else []
    if groups and known and not any(id(p) in known for group in groups for p in group["params"]):
        raise UsageError("optimizer holds no parameter of this model; give the one that was built from it.")


def _join(groups: list[dict[str, Any]], old: nn.Module, new: nn.Module, path: str, home: dict[str, Any]) -> None:
    """Each new parameter goes behind the one of the same name, else behind the layer's last, else home."""
    mine, held = {id(p) for p in old.parameters()}, {id(p) for group in groups for p in group["params"]}
    for name, parameter in new.named_parameters():
        predecessor = old._parameters.get(name)
        if id(parameter) in held | mine or (predecessor is not None and id(predecessor) not in held):
            continue
        wanted = mine if predecessor is None else {id(predecessor)}
        group, place = _place(groups, wanted) or (home, len(home["params"]))
        group["params"].insert(place, parameter)
        if "param_names" in group:
            group["param_names"].insert(place, f"{path}.{name}" if path else name)


def _place(groups: list[dict[str, Any]], wanted: set[int]) -> tuple[dict[str, Any], int] | None:
    places = [(group, i + 1) for group in groups for i, p in enumerate(group["params"]) if id(p) in wanted]
    return places[-1] if places else None


def _home(groups: list[dict[str, Any]], stand_ins: Mapping[nn.Module, nn.Module]) -> dict[str, Any]:
    found = _place(groups, {id(p) for old in stand_ins for p in old.parameters()})
    return found[0] if found else groups[0]
