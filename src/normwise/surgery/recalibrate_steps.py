"""recalibrate for recurrent layers with batch norm: what each time step meets in one pass over the data."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from normwise.errors import UsageError
from normwise.layers.recurrent import Recurrent
from normwise.layers.step_memory import StepMemory, lasting, memories
from normwise.surgery.plan import Plan
from normwise.table import Moments


class OneValue(Exception):
    """A batch gives a norm a single value per channel: no batch statistics."""


def listen(layer: Recurrent, paths: dict[Any, str], seen: list[tuple[Any, Any]]) -> None:
    """The layer standardizes with its batch, without dropout and noise, and tells `seen` instead of remembering."""
    layer.training, layer.dropout, layer.state_noise = True, 0.0, 0.0
    layer.register_forward_pre_hook(_require_sequences, with_kwargs=True)
    for memory in memories(layer).values():
        vars(memory)["remember"] = partial(_tell, seen, memory, paths[memory])


def level(tables: Sequence[Any]) -> list[Any]:
    """Tables of (1, steps, features) brought to one number of steps: further ones hold no value; others stay."""
    if tables[0].mean.dim() < 3:
        return list(tables)
    steps = max(table.mean.shape[1] for table in tables)
    return [Moments(*(F.pad(t, (0, 0, 0, steps - t.shape[1])) for t in table)) for table in tables]


def write_steps(plan: Plan, path: str, memory: StepMemory, pooled: Moments, uses: int) -> None:
    """What was pooled becomes what is remembered, up to the last step that two sequences reached in one batch."""
    known = pooled.count[0, :, 0] > 1  # pyright: ignore[reportIndexIssue]
    mean, var = pooled.mean[0, known], pooled.unbiased[0, known]
    if not len(mean):
        plan.leave(path, "StepMemory", "no batch gives it two sequences")
        return
    plan.change(path, "StepMemory", "StepMemory", f"{len(mean)} time steps")
    with lasting():
        for name, new in (("running_mean", mean), ("running_var", var)):
            setattr(memory, name, new.to(memory.get_buffer(name), copy=True))
        memory.num_batches_tracked = memory.num_batches_tracked.new_full((len(mean),), uses)


def require_finite(path: str, values: Tensor) -> None:
    """An error that names the layer."""
    if not values.isfinite().all():
        raise UsageError(
            f"recalibrate: layer {path!r} receives values that are not finite; remove such samples from the "
            "loader, or mend the layers before it. Nothing was changed."
        )


def _require_sequences(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if layer.statistics_shape(args[0] if args else kwargs["input"])[0] < 2:
        raise OneValue


def _tell(
    seen: list[tuple[Any, Any]], memory: StepMemory, path: str, mean: Tensor, var: Tensor, count: Tensor | int
) -> None:
    require_finite(path, mean + var)
    mean, var = (t.cpu().double().unsqueeze(0) for t in (mean, var))
    number = torch.as_tensor(count).cpu().expand(mean.shape[1], 1)
    seen.append((memory, Moments(mean, var, (number * (number > 1)).expand_as(mean))))
