"""What each kind of layer becomes when several networks are one: channels of all members side by side."""

import copy
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from normwise.experiment.stack import Members
from normwise.experiment.trial import UnstackableError
from normwise.kernels import NONE
from normwise.layers.batch import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from normwise.layers.blend import BatchInstanceNorm
from normwise.layers.normact import fused, known_act
from normwise.layers.running import Memory, Running
from normwise.layers.within import (
    ChannelAffine,
    GroupNorm,
    InstanceNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
)
from normwise.tail import Tail

# Layers whose parameters follow the channels: so many times the members of these attributes.
CONVOLUTION, CHANNELS, GROUPS = (
    ("in_channels", "out_channels", "groups"),
    ("num_features",),
    ("num_groups", "num_channels"),
)
MULTIPLIED: dict[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), CONVOLUTION),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), CONVOLUTION),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), CHANNELS),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), CHANNELS),
    **dict.fromkeys((BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d), CHANNELS),
    **dict.fromkeys((InstanceNorm, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d), CHANNELS),
    **dict.fromkeys((ChannelAffine, BatchInstanceNorm), CHANNELS),
    **dict.fromkeys((nn.GroupNorm, GroupNorm), GROUPS),
}
# Convolutions over pixels, and PyTorch's norms that normwise has a faster kernel for.
LAID_OUT = nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d
FASTER: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.InstanceNorm2d: InstanceNorm2d,
    nn.InstanceNorm3d: InstanceNorm3d,
    nn.GroupNorm: GroupNorm,
}
# Every value by itself.
POINTWISE: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid,
    nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid,
)  # fmt: skip
# Every plane by itself.
PLANEWISE: tuple[type[nn.Module], ...] = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.Upsample, nn.ZeroPad2d, nn.ReflectionPad2d,
)  # fmt: skip
RESHAPING: tuple[type[nn.Module], ...] = (nn.Flatten, nn.Unflatten)
DROPOUT: tuple[type[nn.Module], ...] = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
KNOWN = {*MULTIPLIED, *POINTWISE, *PLANEWISE, *DROPOUT, nn.Linear}


class StackedLinear(nn.Module):
    """One linear layer per member: (N, K * in) to (N, K * out) by a batched product."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        members, outputs = self.weight.shape[:2]
        apart = x.view(len(x), members, -1).transpose(0, 1)
        weight = self.weight.transpose(1, 2)
        y = apart @ weight if self.bias is None else torch.baddbmm(self.bias[:, None], apart, weight)
        return y.transpose(0, 1).reshape(len(x), members * outputs)


class ManyMemories(Running):
    """Running statistics of K members, (K, C): a batch that is not finite is left out of its member's alone."""

    members = 1

    def remember(self, mean: Tensor, var: Tensor, *rest: Any) -> None:
        super().remember(self._apart(mean), self._apart(var), *rest)

    def memory(self) -> Memory:
        mean, var, seen, pool = super().memory()
        return Memory(self._apart(mean), self._apart(var), seen, pool)

    def _apart(self, values: Tensor) -> Tensor:
        return values.unflatten(0, (self.members, -1))


class PlainMemories(Running):
    """Running statistics as PyTorch's own norm keeps them: a batch that is not finite counts too."""

    def remember(self, mean: Tensor, var: Tensor, count: Any, present: Any = None, unbiasing: float = 1.0) -> None:
        memory, momentum = self.memory(), cast(float, self.momentum)
        memory.mean.lerp_(mean, momentum)
        memory.var.lerp_(var * unbiasing, momentum)
        memory.seen.add_(1)


class Fused(nn.Module):
    """A norm with the residual and the activation after it, in one pass."""

    def __init__(self, norm: nn.Module, act: Any) -> None:
        super().__init__()
        self.norm, self.act = norm, known_act(act)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = fused(self.norm, x, residual, self.act)
        return Tail(residual, self.act or NONE)(self.norm(x)) if y is None else y


class StackedDropout(nn.Module):
    """Dropout with a generator per member, which draws what the member's own training would draw."""

    def __init__(self, p: float, whole_channels: bool, generators: list[Generator]) -> None:
        super().__init__()
        self.keep, self.whole_channels, self.generators = 1 - p, whole_channels, generators

    def forward(self, x: Tensor) -> Tensor:
        if self.keep == 1:
            return x
        if self.keep == 0:
            return x * torch.zeros_like(x)
        apart = x.unflatten(1, (len(self.generators), -1))
        shape = (len(x), *apart.shape[2:])
        if self.whole_channels:
            shape = (*shape[:2], *[1] * (len(shape) - 2))
        noise = [torch.empty(shape).bernoulli_(self.keep, generator=g) for g in self.generators]
        return x * torch.stack(noise, 1).flatten(1, 2).div_(self.keep).to(x.device)


def stacked_layer(
    layer: nn.Module, path: str, members: Members, generators: list[Generator], *, channels_last: bool = False
) -> nn.Module:
    """The layer that does for all members what `layer` at `path` does for one; it shares their numbers.

    >>> members = Members([nn.Sequential(nn.Conv2d(1, 4, 3)) for _ in range(5)])
    >>> stacked_layer(members.template[0], "0", members, [])
    Conv2d(5, 20, kernel_size=(3, 3), stride=(1, 1), groups=5)
    """
    if type(layer) in DROPOUT:
        return StackedDropout(getattr(layer, "p"), type(layer) is not nn.Dropout, generators)  # noqa: B009
    names = {name: _known(members, path, name) for name, own in layer._parameters.items() if own is not None}
    if type(layer) is nn.Linear:
        return StackedLinear(*(members.parameters[name] for name in names.values()))
    made = copy.deepcopy(layer)
    for name, full in names.items():
        delattr(made, name)  # a view of all members' numbers is no Parameter
        pixels = channels_last and type(layer) in LAID_OUT and name == "weight"
        setattr(made, name, members.side_by_side(full, channels_last=pixels))
    for name, own in layer._buffers.items():
        if own is not None:
            buffer = members.buffers[_known(members, path, name)]
            made._buffers[name] = buffer.flatten(0, 1) if buffer.dim() > 1 else buffer
    for name in MULTIPLIED.get(type(layer), ()):
        setattr(made, name, getattr(made, name) * members.count)
    if isinstance(made, Running | _NormBase | nn.GroupNorm):
        _become_joint(made, path, members.count)
    return made


def _become_joint(norm: Any, path: str, members: int) -> None:
    """Gives a norm the memories of all members, and one of PyTorch's the faster kernels where those do the same."""
    made, kind = norm, type(norm)
    faster = FASTER.get(kind)
    if isinstance(norm, Running):
        made.__class__ = type(kind.__name__, (ManyMemories, kind), {"members": members})
        norm.skipped = None  # not counted: a member that diverges is told in its result
    elif isinstance(norm, _NormBase) and norm.momentum is None:
        raise UnstackableError(f"{path} has the momentum None, which PyTorch's own norm knows for one network only")
    elif faster and not (isinstance(norm, _InstanceNorm) and norm.track_running_stats):
        made.__class__ = type(faster.__name__, (PlainMemories, faster), {}) if issubclass(faster, Running) else faster
        norm.__dict__["strict"] = False


def _known(members: Members, path: str, name: str) -> str:
    full = f"{path}.{name}" if path else name
    if full not in {**members.parameters, **members.buffers}:
        raise UnstackableError(f"{full} is shared between layers")
    return full
