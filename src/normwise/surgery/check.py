"""One forward that shows whether a swapped model runs, and where a norm has nothing to measure."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from normwise.errors import UsageError
from normwise.layers.spec import read
from normwise.surgery.find import Found
from normwise.surgery.forward import call, quiet
from normwise.surgery.plan import Plan


def require_runs(plan: Plan, example: Any) -> None:
    """The model runs on the example; nothing in it changes."""
    with quiet(plan.model):
        _run(plan, example, f"before the {plan.verb}")


def require_swapped(plan: Plan, stand_ins: Mapping[Found, nn.Module], example: Any) -> None:
    """The model runs, calls only the new layers, and none of them measures a single value."""
    paths = {new: layer.path for layer, new in stand_ins.items()}
    replaced = {layer.module: layer.path for layer in stand_ins}

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module in replaced:
            raise UsageError(
                f"{plan.verb}: the forward still calls the old layer {replaced[module]!r}, by a reference that cannot "
                "be seen; call the layer by its attribute."
            )
        _require_values(plan, paths[module], module, next(iter([*args, *kwargs.values()])))

    with quiet(plan.model):
        for new in stand_ins.values():  # old and new share their hooks, so this sees both
            new.register_forward_pre_hook(watch, with_kwargs=True)
        _run(plan, example, f"after the {plan.verb}")


def _run(plan: Plan, example: Any, when: str) -> None:
    try:
        call(plan.model, example)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{plan.verb}: {when} the model does not run on the example: {type(error).__name__}: {error}"
        ) from error


def _require_values(plan: Plan, path: str, norm: nn.Module, x: torch.Tensor) -> None:
    """Within an instance a statistic needs two values, or the output is the bias whatever the input."""
    state = None if isinstance(norm, nn.RNNBase) else read(norm)
    if state is None or (state.spec.name == "instance" and state.track_running_stats):
        return
    groups = {"layer": 1, "instance": x.shape[1], "ibn": x.shape[1]}.get(
        state.spec.name, getattr(norm, "num_groups", None)
    )
    if groups and x.shape[1:].numel() // groups == 1:
        raise UsageError(
            f"{plan.verb}: as {state.spec} the layer {path!r} would take each statistic from a single value "
            f"(input shape {tuple(x.shape)}) and so lose its input; take fewer groups there, or keep it, "
            f"by a mapping such as {{{path!r}: 'keep', '*': '{state.spec}'}}."
        )
