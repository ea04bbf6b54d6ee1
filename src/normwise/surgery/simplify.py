"""simplify: a blend that has settled on one parent becomes that parent, which is cheaper."""

from typing import Any

import torch
from torch import Tensor, nn

from normwise.layers.blend import BatchInstanceNorm, IBNorm, SwitchableNorm
from normwise.layers.spec import NormSpec
from normwise.surgery.find import Found, norm_layers
from normwise.surgery.parameters import require_held, require_optimizer
from normwise.surgery.plan import Plan, operation
from normwise.surgery.swap import exchange, stand_in


def simplify(
    model: nn.Module,
    tolerance: float = 0.0,
    optimizer: torch.optim.Optimizer | None = None,
    example: Any = None,
    *,
    dry_run: bool = False,
) -> Plan:
    """Replaces blends of batch and instance norm by the plain norm they have settled on.

    A batch-instance norm whose gates are all within `tolerance` of 1 becomes batch norm, of 0 instance
    norm; a switchable norm with one weight within `tolerance` of 1 for mean and variance, and IBN with
    ratio 0 or 1, likewise. With tolerance 0 the model computes the same; the rest is left, with the reason.

    >>> from normwise.layers.blend import BatchInstanceNorm
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), BatchInstanceNorm(8))
    >>> simplify(model)
    simplify: 1 layer changed
      1: batch-instance -> batch
    """
    require_optimizer(optimizer)
    with operation("simplify", model, optimizer, dry_run=dry_run) as plan:
        require_held(optimizer, model)
        exchange(plan, norm_layers(model), lambda layer: _parent(plan, layer, tolerance), optimizer, example)
    return plan


def _parent(plan: Plan, layer: Found, tolerance: float) -> nn.Module | None:
    """The norm that a blend has settled on; None where it has not, or is no blend."""
    shares = _shares(layer.module)
    return None if shares is None else stand_in(plan, layer, _settled(shares, tolerance), _spread(shares))


def _shares(norm: nn.Module) -> dict[str, Tensor] | None:
    """How much of each parent a blend takes, per channel or per statistic; None for what is no blend."""
    with torch.no_grad():
        if isinstance(norm, BatchInstanceNorm):
            gate = norm.gate.clamp(0, 1)
            return {"batch": gate, "instance": 1 - gate}
        if isinstance(norm, SwitchableNorm):
            weights = torch.stack([norm.mean_weight.softmax(0), norm.var_weight.softmax(0)], 1)
            return dict(zip(("instance", "layer", "batch"), weights, strict=True))
        if isinstance(norm, IBNorm):
            own = (torch.arange(norm.num_features) < norm.instance_features).float()
            return {"instance": own, "batch": 1 - own}
    return None


def _settled(shares: dict[str, Tensor], tolerance: float) -> NormSpec | None:
    found = [name for name, share in shares.items() if float(share.min()) >= 1 - tolerance]
    return NormSpec(found[0]) if found else None


def _spread(shares: dict[str, Tensor]) -> str:
    return "it takes " + ", ".join(
        f"{float(share.min()):.2f} to {float(share.max()):.2f} of {name}" for name, share in shares.items()
    )
