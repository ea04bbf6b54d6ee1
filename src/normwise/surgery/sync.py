"""sync and unsync: batch norms that pool over all processes, and back."""

from torch import nn

from normwise.errors import UsageError
from normwise.layers.recurrent import Recurrent
from normwise.surgery.find import norm_layers
from normwise.surgery.plan import Plan, require_plain
from normwise.surgery.swap import swap


def sync(model: nn.Module, *, dry_run: bool = False) -> Plan:
    """Replaces batch norms by synchronized ones, which pool over all processes on any backend, CPUs too.

    Weights, running statistics and hooks are kept. Call it before DistributedDataParallel wraps the model.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> sync(model).changes[0]
    Change(path='1', before='batch', after='sync', note='')
    """
    return _exchange("sync", model, "batch", "sync", dry_run)


def unsync(model: nn.Module, *, dry_run: bool = False) -> Plan:
    """Replaces synchronized batch norms, ours or PyTorch's, by batch norm in one process.

    >>> model = nn.Sequential(nn.SyncBatchNorm(8))
    >>> unsync(model).changes[0].after
    'batch'
    """
    return _exchange("unsync", model, "sync", "batch", dry_run)


def _exchange(verb: str, model: nn.Module, old: str, new: str, dry_run: bool) -> Plan:
    require_plain(model, verb)
    layers = norm_layers(model)
    found = [layer for layer in layers if layer.what == old]
    steps = [layer.path for layer in layers if isinstance(layer.module, Recurrent) and layer.module.norm == "batch"]
    alone = f"{', '.join(map(repr, steps))} pools each time step in its own process; norm='layer' needs no others."
    if not found:
        why = f": {alone}" if steps else "."
        raise UsageError(f"{verb}: {type(model).__name__} has no {old} normalization layer{why}")
    escaped = (path.replace("[", "[[]") for layer in found for path in layer.paths)
    plan = swap(model, {**dict.fromkeys(escaped, new), "*": "keep"}, dry_run=dry_run)
    plan.verb = verb
    if steps:
        plan.say(alone)
    return plan
