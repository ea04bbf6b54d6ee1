"""accumulate: several micro-batches make one update of the running statistics, as if they were one batch."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from normwise.errors import UsageError
from normwise.layers.recurrent import Recurrent
from normwise.layers.running import Running
from normwise.layers.step_memory import StepMemory, memories


@contextmanager
def accumulate(model: nn.Module) -> Iterator[None]:
    """Around the micro-batches of one optimizer step: running statistics as of one joint batch.

    By the law of total variance, exactly: `running += momentum * (joint - running)`, once, at the end.
    Each micro-batch still standardizes with its own statistics; what is exact is what evaluation uses.
    Under DistributedDataParallel each process pools its own. An exception leaves the statistics as
    they were. Inside another `accumulate` the outer one counts. Recurrent layers with batch norm pool each
    time step. Raises UsageError where a norm of PyTorch's own would be updated at every micro-batch.

    >>> import torch
    >>> from normwise.layers.batch import BatchNorm
    >>> norm, x = BatchNorm(3, momentum=1.0), torch.randn(8, 3)
    >>> with accumulate(norm):
    ...     for part in x.split([5, 3]):
    ...         _ = norm(part)
    >>> bool(torch.allclose(norm.running_var, x.var(0))), norm.num_batches_tracked.item()
    (True, 1)
    """
    norms = [norm for norm in _tracked(model) if norm.pool is None]
    for norm in norms:
        norm.open_pool()
    complete = False
    try:
        yield
        complete = True
    finally:
        for norm in norms:
            norm.close_pool(keep=complete)


def _tracked(model: nn.Module) -> Iterator[Running | StepMemory]:
    for path, norm in model.named_modules():
        if isinstance(norm, Recurrent) and norm.training and not norm.frozen:
            yield from memories(norm).values()
        if not isinstance(norm, _NormBase) or norm.running_mean is None or not norm.training:
            continue
        if not isinstance(norm, Running):
            raise UsageError(
                f"accumulate: {path!r} is {type(norm).__name__} of {type(norm).__module__.split('.')[0]}, which "
                f"updates its statistics at every micro-batch; build it as normwise's, or put it in eval mode."
            )
        if not norm.frozen:
            yield norm
