"""weight_standardization: standardizes the filters of convolutions as they are used, and bakes the result in."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from normwise.layers.weights import WeightStandardization
from normwise.surgery.plan import Plan, operation

_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def weight_standardization(
    model: nn.Module, where: str | Iterable[str] = "*", *, eps: float = 1e-5, dry_run: bool = False
) -> Plan:
    """Standardizes the filters of every convolution before use, which helps group norm at small batches.

    `W' = (W - mean_o) / sqrt(var_o + eps)` over each output channel's filter (Qiao et al., 2019), as a
    parametrization: what is trained is W, now at `parametrizations.weight.original`, the same Parameter.
    `where` limits it to module paths that match one of its patterns. `plan.undo()` takes it off;
    `remove_weight_standardization` leaves W' behind as an ordinary weight.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8))
    >>> weight_standardization(model)
    weight_standardization: 1 layer changed
      0: Conv2d -> standardized Conv2d
    """
    patterns = (where,) if isinstance(where, str) else tuple(where)
    with operation("weight_standardization", model, dry_run=dry_run) as plan:
        for path, module in list(model.named_modules()):
            if not isinstance(module, (*_PLAIN, *_TRANSPOSED)) or not any(fnmatchcase(path, p) for p in patterns):
                continue
            what, why = type(module).__name__, _obstacle(module)
            if why:
                plan.leave(path, what, why)
                continue
            parametrize.register_parametrization(module, "weight", WeightStandardization(eps))
            plan.change(path, what, f"standardized {what}")
    return plan


def remove_weight_standardization(model: nn.Module, *, dry_run: bool = False) -> Plan:
    """Turns standardized filters into ordinary weights of the same values, for inference or to fold.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> plan = weight_standardization(model)
    >>> remove_weight_standardization(model)
    remove_weight_standardization: 1 layer changed
      0: standardized Conv2d -> Conv2d
    """
    with operation("remove_weight_standardization", model, dry_run=dry_run) as plan:
        for path, module in list(model.named_modules()):
            chain = _chain(module)
            if not any(isinstance(step, WeightStandardization) for step in chain):
                continue
            what = type(module).__name__.removeprefix("Parametrized")
            if len(chain) > 1:
                plan.leave(path, f"standardized {what}", "its weight has further parametrizations; remove them first")
                continue
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            plan.change(path, f"standardized {what}", what)
    return plan


def _obstacle(module: Any) -> str:
    if any(isinstance(step, WeightStandardization) for step in _chain(module)):
        return "its weight is standardized already"
    if isinstance(module, _TRANSPOSED):
        return "a transposed convolution has its output channels on another axis"
    if "weight" not in module._parameters and not _chain(module):
        return "a hook computes its weight before each call, as torch.nn.utils.weight_norm does; remove that first"
    if module.weight[0].numel() < 2:
        return "its filters have one value each, which would all become 0"
    return ""


def _chain(module: Any) -> list[nn.Module]:
    """The parametrizations of the weight."""
    return list(module.parametrizations["weight"]) if parametrize.is_parametrized(module, "weight") else []
