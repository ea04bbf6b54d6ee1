"""adapt: evaluation with a mixture of remembered statistics and those of the batch at hand."""

from typing import Any

from torch import nn

from normwise.errors import UsageError
from normwise.layers import NORMS
from normwise.layers.recurrent import Recurrent
from normwise.surgery.adopt import adopt
from normwise.surgery.find import norm_layers
from normwise.surgery.plan import Plan, operation

_STEPS = "it evaluates by what it remembers of each time step; recalibrate it on such data instead"


def adapt(model: nn.Module, mix: float = 0.5, *, dry_run: bool = False) -> Plan:
    """Lets batch norms adapt to the data they are evaluated on, without labels and without learning.

    In evaluation `mean = mix * batch + (1 - mix) * running`, the variance likewise: 0 is ordinary
    evaluation, 1 uses the batch alone (Nado et al., 2020), N / (N + n) trusts a batch of N as n samples
    seen in training (Schneider et al., 2020). Outputs then depend on the other samples of the batch,
    which should be a random draw; nothing is remembered. Training is not changed.

    >>> import torch
    >>> model = nn.Sequential(nn.BatchNorm1d(3)).eval()
    >>> plan = adapt(model, mix=1)
    >>> bool(model(torch.randn(64, 3) + 5).mean().abs() < 1e-5)
    True
    >>> plan.undo()
    """
    if not 0 <= mix <= 1:
        raise UsageError(f"adapt: mix must be between 0 (remembered) and 1 (the batch's own), got {mix}.")
    with operation("adapt", model, dry_run=dry_run) as plan:
        for layer in norm_layers(model):
            norm: Any = layer.module
            if isinstance(norm, Recurrent) and norm.norm == "batch":
                plan.leave(layer.path, layer.what, _STEPS)
            elif layer.state is None or not NORMS[layer.state.spec.name].fixed:
                plan.leave(layer.path, layer.what, layer.locked or "it does not evaluate by a remembered batch alone")
            elif norm.running_mean is None or not adopt(norm):
                plan.leave(layer.path, layer.what, "it remembers no statistics to mix with")
            else:
                norm.mix = float(mix)
                plan.change(layer.path, layer.what, layer.what, f"{mix:g} of the batch in evaluation")
        if not plan.changes:
            plan.say("nothing was altered; `left` says why for each layer.")
    return plan
