"""Runs a model on a batch without leaving a trace: for checks, and for measuring."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normwise.generators import rng_kept
from normwise.surgery.snapshot import Snapshot


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards modes, buffers, hooks and generators are as before."""
    before = Snapshot(model)
    try:
        with rng_kept(), torch.no_grad():
            model.eval()
            yield
    finally:
        before.restore()


def call(model: nn.Module, batch: Any) -> Any:
    """One forward: a tuple or list gives positional arguments, a mapping named ones.

    A mapping none of whose keys `forward` knows is handed over whole.

    >>> call(nn.Identity(), torch.zeros(2)), call(nn.Identity(), {"input": torch.ones(1), "label": 3})
    (tensor([0., 0.]), tensor([1.]))
    """
    if isinstance(batch, Mapping):
        named = _accepted(model, batch)
        return model(batch) if named is None else model(**named)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def call_labelled(model: nn.Module, batch: Any) -> Any:
    """One forward on a batch as loaders give it: of (x, y, ...) the first, of a mapping what `forward` knows.

    Tensors are moved to the device of the model.
    """
    first = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
    device = next((p.device for p in model.parameters()), None)
    moved = first if device is None else pytree.tree_map_only(Tensor, lambda x: x.to(device), first)
    return call(model, moved if isinstance(moved, Mapping) else (moved,))


def tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors in what a model returned.

    >>> len(tensors({"logits": torch.zeros(2), "labels": torch.zeros(2, dtype=torch.long)}))
    1
    """
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _accepted(model: nn.Module, batch: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The entries that `forward` has a parameter for, or None where these are not enough to call it."""
    if not all(isinstance(name, str) for name in batch):
        return None
    signature = inspect.signature(model.forward)
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return batch
    named = {name: value for name, value in batch.items() if name in signature.parameters}
    try:
        signature.bind(**named)
    except TypeError:
        return None
    return named if named else None
