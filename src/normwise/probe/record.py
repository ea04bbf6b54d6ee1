"""Records what passes through the norms of a model: one context manager, hooks that are always taken off."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from normwise.layers import spec
from normwise.layers.recurrent import Recurrent


@dataclass
class Record:
    """One call of one norm: its place, what it is, the shape of its input, and the squared gradient there."""

    path: str
    state: spec.NormState
    shape: tuple[int, ...]
    after: str = ""
    squared_gradient: float | None = None


@contextlib.contextmanager
def record(model: nn.Module) -> Iterator[list[Record]]:
    """Collects a Record for each call of a norm, in order of the forward pass.

    The squared gradient (a sum over the input of the norm) is there after a backward pass.
    """
    records: list[Record] = []
    handles = []
    for path, module in model.named_modules():
        state = spec.read(module)
        if state is not None:
            handles.append(module.register_forward_pre_hook(_keep(records, path, state)))
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def _keep(records: list[Record], path: str, state: spec.NormState):
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        shape = module.statistics_shape(x) if isinstance(module, Recurrent) else tuple(x.shape)
        entry = Record(path, state, shape)
        records.append(entry)
        if isinstance(x, Tensor) and x.requires_grad:
            x.register_hook(lambda g: setattr(entry, "squared_gradient", float(g.detach().double().square().sum())))

    return hook
