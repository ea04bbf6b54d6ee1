"""What all plane norms share: constructor, input checks, and one node for FX."""

from functools import cache
from typing import Any
from warnings import warn

import torch
from torch import Tensor, fx, nn

from normwise import ops
from normwise.layers.running import Running
from normwise.layers.written import compiling
from normwise.table import align, plane_size
from normwise.tail import NOTHING, Tail

LARGER = "use a larger batch, or a norm that does not pool over the batch, such as group."
FEWER = "place it before the pooling, or pool channels too: group norm, with fewer groups."


class Plane(Running):
    """The forward of a norm with PyTorch's attributes: checks, then `normalize(x, mask)` of the subclass."""

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:  # named as PyTorch's
        if isinstance(input, fx.Proxy):
            return leaf(self, input, mask)
        self.check(input, mask)
        return self.normalize(input, mask)

    def check(self, x: Tensor, mask: Tensor | None) -> None:
        self._check_input_dim(x)
        check_input(self, x, self.num_features, mask)

    def normalize(self, x: Tensor, mask: Tensor | None) -> Tensor:
        raise NotImplementedError


class PlaneNorm(Plane):
    """Base of the norms for (N, C, *spatial) of any rank; `forward(x, mask=None)`.

    `weight` and `bias` have length C. Where `mask` (bool, broadcastable to (N, *spatial)) is False
    the output is 0 and the input has no influence. `track_running_stats=None` is the norm's own habit.
    """

    tracks: bool | None = True  # None: never

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        bias: bool = True,
        track_running_stats: bool | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if num_features < 1:
            raise ValueError(f"{type(self).__name__}: num_features must be at least 1, got {num_features}.")
        if track_running_stats is None or self.tracks is None:
            track_running_stats = bool(self.tracks)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        for name, start in self.starts().items():
            self.register_parameter(name, nn.Parameter(start.to(device, dtype)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask)

    def starts(self) -> dict[str, Tensor]:
        """The values that parameters beyond weight and bias start from."""
        return {}

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for name, start in self.starts().items():
            if name in self._parameters:
                self.get_parameter(name).data.copy_(start)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(
                f"{type(self).__name__}: x must have shape (N, C, *spatial), got {tuple(input.shape)}; "
                "add the batch axis N."
            )


class TableNorm(PlaneNorm):
    """Base of the norms that are a rule on the table of moments: a subclass gives `rule` and `tensors`."""

    def rule(self, x: Tensor) -> ops.Rule:
        raise NotImplementedError

    def tensors(self, x: Tensor) -> tuple[Tensor | None, ...]:
        return self.weight, self.bias

    def normalize(self, x: Tensor, mask: Tensor | None, tail: Tail = NOTHING) -> Tensor:
        if self.tracks is not None and self.remembered()[0] is None:
            check_batch(self, x, mask)
        return ops.normalize(x, self.rule(x), self.tensors(x), mask=mask, observe=self.observe, tail=tail)


def leaf(module: nn.Module, x: Any, *rest: Any) -> Any:
    """Records the module as one node: FX sees a norm, not its arithmetic."""
    given = [i for i, value in enumerate(rest, 1) if value is not None]
    args = (x, *rest)[: max(given, default=0) + 1]
    return x.tracer.create_proxy("call_module", x.tracer.path_of_module(module), args, {})


def check_input(module: nn.Module, x: Tensor, num_features: int, mask: Tensor | None) -> None:
    """Channels on axis 1, floating point, a mask that fits."""
    if x.shape[1] != num_features:
        raise ValueError(
            f"{type(module).__name__}: x must have {num_features} channels on axis 1, got shape {tuple(x.shape)}; "
            f"build it with num_features={x.shape[1]} or move the channel axis to 1."
        )
    if not x.is_floating_point():
        raise ValueError(f"{type(module).__name__}: x must be floating point, got {x.dtype}; call x.float() first.")
    if mask is not None:
        align(mask, x)


def check_batch(module: nn.Module, x: Tensor, mask: Tensor | None) -> None:
    """Batch statistics need more than one value per channel, and say nothing from two; no value needs none."""
    values = _values(x, mask)
    if values is None:
        return
    if values < 2:
        raise ValueError(
            f"{type(module).__name__}: batch statistics need at least 2 values per channel (N*H*W), got "
            f"{values} (input shape {tuple(x.shape)}); use a larger batch, drop the last one, call eval(), "
            "or take a norm that does not pool over the batch, such as group."
        )
    if values == 2:
        _warn_two(type(module).__name__)


def _values(x: Tensor, mask: Tensor | None) -> int | None:
    """How many values a channel has; None where there are none, and where only the running program will know."""
    if ops.tracing():
        one = compiling() and mask is None and ops.surely(x.shape[0] * plane_size(x) == 1)
        return 1 if one else None
    if not x.numel():
        return None
    if mask is None:
        return x.numel() // x.shape[1]
    return int(align(mask, x).sum()) if ops.valued(x, mask) else None


def check_values(module: nn.Module, x: Tensor, channels: int = 1) -> None:
    """One value has no variance: every output would be the bias; and from two they say nothing."""
    if ops.tracing():  # no branch on a size that is kept open
        values = int(ops.surely(channels * plane_size(x) == 1))
    else:
        values = channels * x.shape[2:].numel()
    if values == 1:
        raise ValueError(
            f"{type(module).__name__}: every statistic needs at least 2 values (H*W times channels of a "
            f"group), got 1 (input shape {tuple(x.shape)}); {FEWER}"
        )
    if values == 2 and len(x):
        _warn_two(type(module).__name__, "statistic", FEWER)


@cache
def _warn_two(name: str, pool: str = "channel", advice: str = LARGER) -> None:
    warn(f"{name}: with 2 values per {pool} every output is +-1 whatever the data; {advice}", stacklevel=2)
