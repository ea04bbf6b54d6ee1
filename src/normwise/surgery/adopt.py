"""PyTorch's norms, and timm's, become ours where they stand: same object, tensors, hooks and results."""

from torch import nn

from normwise.layers import batch, within
from normwise.layers.running import Running
from normwise.layers.sync import SyncNorm
from normwise.surgery.packed import derived


def adopt(module: nn.Module) -> bool:
    """Gives a norm our class; True if it tracks and is ours now. Subclasses of other people's are left alone.

    >>> norm = nn.BatchNorm2d(3)
    >>> adopt(norm), type(norm).__module__
    (True, 'normwise.layers.batch')
    """
    kind = ours(module)
    if kind is not None:
        module.__class__ = kind
        if isinstance(module, Running) and module.running_mean is not None:
            module.start_counting(module.running_mean.device)
    return isinstance(module, Running)


def ours(module: nn.Module) -> type[nn.Module] | None:
    """Our class for a norm of PyTorch's or timm's; None for any other module."""
    return _OURS.get(type(module)) or derived(module)


_OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: batch.BatchNorm1d,
    nn.BatchNorm2d: batch.BatchNorm2d,
    nn.BatchNorm3d: batch.BatchNorm3d,
    nn.InstanceNorm1d: within.InstanceNorm1d,
    nn.InstanceNorm2d: within.InstanceNorm2d,
    nn.InstanceNorm3d: within.InstanceNorm3d,
    nn.GroupNorm: within.GroupNorm,
    nn.SyncBatchNorm: SyncNorm,
}
