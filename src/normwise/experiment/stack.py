"""The parameters and buffers of several networks of one kind, each kept as one tensor with a member axis."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normwise.experiment.trial import UnstackableError

State = dict[str, Tensor]


class Members:
    """K networks that differ in their numbers only: every parameter and buffer as a tensor (K, *shape).

    What is trained lies side by side in `flat`, so that one step of the optimizer is a few operations.
    `leaves` are what gradients are taken of, in the order of `flat`: the parameters, or views of them in
    the shape that a stacked layer wants. Raises UnstackableError for networks that are not of one kind.

    >>> members = Members([nn.Linear(2, 1), nn.Linear(2, 1)])
    >>> members.parameters["weight"].shape, members.flat.shape
    (torch.Size([2, 1, 2]), torch.Size([6]))
    >>> members.side_by_side("weight").shape
    torch.Size([2, 2])
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        if len({repr(model) for model in models}) > 1 or len({_shapes(model) for model in models}) > 1:
            raise UnstackableError("the seeds build networks of different shape")
        self.count = len(models)
        self.template = copy.deepcopy(models[0])
        learned = dict(models[0].named_parameters())
        trained = [name for name, parameter in learned.items() if parameter.requires_grad]
        if {learned[name].dtype for name in trained} != {torch.float32}:
            raise UnstackableError("the parameters that are trained must be float32")
        self.parameters = {name: _stack([model.get_parameter(name) for model in models]) for name in learned}
        self.buffers = {name: _stack([m.get_buffer(name) for m in models]) for name, _ in models[0].named_buffers()}
        self.flat = torch.cat([self.parameters[name].flatten() for name in trained])
        self.sizes = [self.parameters[name].numel() for name in trained]
        self.leaves: dict[str, Tensor] = {}
        for name, part in zip(trained, self.flat.split(self.sizes), strict=True):
            self.parameters[name] = self.leaves[name] = _leaf(part.view_as(self.parameters[name]))

    def side_by_side(self, name: str, *, channels_last: bool = False) -> Tensor:
        """A parameter with the members' first axes as one, (K * C, ...); if it is trained, the leaf from now on.

        `channels_last`: the second of these axes comes to lie closest in memory.
        """
        if channels_last:
            values = self.parameters[name].detach()
            laid_out = values.movedim(2, -1).flatten()
            self.parameters[name] = values.view(-1).copy_(laid_out).view(values.movedim(2, -1).shape).movedim(-1, 2)
        merged = self.parameters[name].detach().flatten(0, 1)
        if name in self.leaves:
            # a leaf of its own: autograd would follow a view of one that the optimizer changes step by step
            merged = self.leaves[name] = _leaf(merged)
        return merged

    def laid_out(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The gradients of the leaves, laid out as `flat`; None: zeros."""
        pairs = zip(gradients, self.leaves.values(), strict=True)
        return torch.cat([_in_memory_order(torch.zeros_like(leaf) if g is None else g, leaf) for g, leaf in pairs])

    def per_member(self, values: Sequence[float]) -> Tensor:
        """One number per member, laid out as `flat`."""
        each = torch.tensor(values, dtype=self.flat.dtype, device=self.flat.device)
        return torch.cat([each.repeat_interleave(size // self.count) for size in self.sizes])

    def state(self, member: int) -> State:
        """A copy of all numbers of one member."""
        held = {**self.parameters, **self.buffers}
        return {name: value[member].detach().clone() for name, value in held.items()}

    def load(self, state: State) -> nn.Module:
        """The network with these numbers, ready for what one network can do; the next call overwrites it."""
        own = {**dict(self.template.named_parameters()), **dict(self.template.named_buffers())}
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(state[name])
        return self.template


def _stack(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.detach() for value in values])


def _leaf(values: Tensor) -> Tensor:
    return values.detach().requires_grad_()


def _in_memory_order(values: Tensor, like: Tensor) -> Tensor:
    if like.is_contiguous():
        return values.flatten()
    return values.permute(sorted(range(like.dim()), key=like.stride, reverse=True)).flatten()


def _shapes(model: nn.Module) -> tuple[object, ...]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return tuple((name, value.shape, value.dtype, value.requires_grad) for name, value in named)
