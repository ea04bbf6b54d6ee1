"""PyTorch's norms become ours where they stand: same object, tensors, hooks and results."""

from torch import nn

from normwise.layers import batch, within
from normwise.layers.running import Running
from normwise.layers.sync import SyncNorm


def adopt(module: nn.Module) -> bool:
    """Gives a tracking norm of PyTorch's our class; True if it is ours now. Its subclasses are left alone.

    >>> norm = nn.BatchNorm2d(3)
    >>> adopt(norm), type(norm).__module__
    (True, 'normwise.layers.batch')
    """
    if type(module) in OURS:
        module.__class__ = OURS[type(module)]
        if isinstance(module, Running) and module.running_mean is not None:
            module.start_counting(module.running_mean.device)
    return isinstance(module, Running)


OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: batch.BatchNorm1d,
    nn.BatchNorm2d: batch.BatchNorm2d,
    nn.BatchNorm3d: batch.BatchNorm3d,
    nn.InstanceNorm1d: within.InstanceNorm1d,
    nn.InstanceNorm2d: within.InstanceNorm2d,
    nn.InstanceNorm3d: within.InstanceNorm3d,
    nn.GroupNorm: within.GroupNorm,
    nn.SyncBatchNorm: SyncNorm,
}
