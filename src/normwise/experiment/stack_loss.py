"""The training losses of several networks at once: (K,) numbers whose sum gives each its own gradient."""

import copy
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.func import functional_call, vmap

from normwise.experiment import defaults
from normwise.experiment.stack import Members
from normwise.experiment.stack_graph import grouped
from normwise.experiment.trial import UnstackableError
from normwise.layers.running import Running

# From inputs (N, K, ...) and targets (N, K, ...) to the K losses.
Losses = Callable[[Tensor, Tensor], Tensor]
Loss = Callable[[nn.Module, Any], Tensor]


def make_losses(
    members: Members,
    loss: Loss,
    sample: tuple[Tensor, Tensor],
    generators: list[Generator],
    *,
    channels_last: bool = False,
) -> Losses:
    """Exact surgery where loss and layers are known, else vmap over the task's own loss.

    `sample` is a small batch of one member; `channels_last` is a layout that surgery alone knows. Raises
    UnstackableError where neither works.
    """
    try:
        return _by_surgery(members, loss, sample, generators, channels_last)
    except UnstackableError as surgery:
        if channels_last:
            raise
        try:
            return by_vmap(members, loss, sample)
        except UnstackableError as error:
            raise UnstackableError(f"{surgery}; {error}") from error


def _by_surgery(
    members: Members, loss: Loss, sample: tuple[Tensor, Tensor], generators: list[Generator], channels_last: bool
) -> Losses:
    per_member = KNOWN.get(loss)
    if per_member is None:
        raise UnstackableError("the loss is the task's own")
    network = grouped(members, sample[0], generators, channels_last=channels_last)

    def losses(x: Tensor, y: Tensor) -> Tensor:
        output = network(x.flatten(1, 2) if x.dim() > 2 else x)
        return per_member(output.unflatten(1, (members.count, -1)), y)

    return losses


def by_vmap(members: Members, loss: Loss, sample: tuple[Tensor, Tensor]) -> Losses:
    """The task's own loss, mapped over parameters, buffers and batches.

    A network that draws random numbers is refused: they would not be those that a member's own training draws.
    """
    members.leaves = {name: members.parameters[name] for name in members.leaves}  # whatever surgery began
    model = copy.deepcopy(members.template).train()
    for norm in model.modules():
        if isinstance(norm, Running):
            norm.skipped = None  # a count for all, which no single member may write
    asked = _Asked(model, loss)

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        numbers = {f"model.{name}": value for name, value in (parameters | buffers).items()}
        return functional_call(asked, numbers, ((x, y),))

    mapped = vmap(one, in_dims=(0, 0, 1, 1), randomness="error")

    def losses(x: Tensor, y: Tensor) -> Tensor:
        return mapped(members.parameters, members.buffers, x, y)

    _try_out(losses, members, sample)
    return losses


class _Asked(nn.Module):
    """A model with the loss that is asked of it, so that `functional_call` can exchange its numbers."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.loss(self.model, batch)


def _try_out(losses: Losses, members: Members, sample: tuple[Tensor, Tensor]) -> None:
    """One forward, after which the buffers are as before."""
    kept = members.buffers
    members.buffers = {name: value.clone() for name, value in kept.items()}
    try:
        found = losses(*(part.unsqueeze(1).expand(-1, members.count, *part.shape[1:]) for part in sample))
    except Exception as error:
        if "random" in str(error):
            raise UnstackableError("under vmap its random numbers would not be those of a trial alone") from error
        raise UnstackableError(f"vmap cannot follow the loss: {str(error).partition(chr(10))[0]}") from error
    finally:
        members.buffers = kept
    if found.shape != (members.count,):
        raise UnstackableError(f"the loss must be one number, got shape {tuple(found.shape[1:])}")


def _cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    """Output (N, K, classes, ...), targets (N, K, ...)."""
    members = output.shape[1]
    apart = output.transpose(0, 1).flatten(0, 1), y.transpose(0, 1).flatten(0, 1)
    return F.cross_entropy(*apart, reduction="none").view(members, -1).mean(1)


def _squared_error(output: Tensor, y: Tensor) -> Tensor:
    """Output (N, K, ...) with as many values as targets (N, K, ...)."""
    return (output.reshape(y.shape) - y).square().transpose(0, 1).flatten(1).mean(1)


KNOWN: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    defaults.cross_entropy: _cross_entropy,
    defaults.squared_error: _squared_error,
}
