"""The table of moments: mean and variance of every plane, and the one verb `pool`."""

from math import prod
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Mean and biased variance of every plane (instance, channel), and how many values are behind each.

    A table of shape (N, C) or, pooled, one that broadcasts to it; float32 or wider whatever the input.
    `count` is a number, or a tensor where planes differ (a mask, chunks of unequal size).

    >>> Moments(torch.zeros(1, 1), torch.ones(1, 1), 5).unbiased.item()
    1.25
    """

    mean: Tensor
    var: Tensor
    count: Tensor | int

    @property
    def unbiased(self) -> Tensor:
        """The variance divided by count - 1 instead of count (what running statistics remember)."""
        if isinstance(self.count, Tensor):
            return self.var * (self.count / (self.count - 1).clamp(min=1))
        return self.var * (self.count / max(self.count - 1, 1))

    def pool(self, axis: int, parts: int = 1) -> "Moments":
        """Pools planes over instances (axis 0) or channels (axis 1), in `parts` consecutive chunks.

        By the law of total variance, `var = mean(var + (mean - center)**2)`: exact, and it keeps its
        digits where the mean is large. Instances may be cut unequally (as `torch.tensor_split`
        does), channels may not. The result broadcasts to (N, C).

        >>> table = moments(torch.tensor([[[1.0, 3.0], [5.0, 7.0]]]))     # one instance, two channels
        >>> pooled = table.pool(axis=1)
        >>> pooled.mean.item(), pooled.var.item(), pooled.count
        (4.0, 5.0, 4)
        """
        size = self.mean.shape[axis]
        if parts == 1:
            return _total(self, axis)
        if size % parts == 0:
            return _fold(_total(_unfold(self, axis, parts), axis + 1), axis, size)
        if axis == 1 or not 1 < parts < size:
            raise ValueError(_refusal(axis, size, parts))
        return _pool_unequal(self, parts)


def moments(x: Tensor, mask: Tensor | None = None) -> Moments:
    """The reference of `measure.moments`, which says what it gives: ordinary operations for whatever x is."""
    if x.dim() < 2:
        raise ValueError(f"moments: x must have shape (N, C, *spatial), got {tuple(x.shape)}; add the axes N and C.")
    x = convert(x, wide(x.dtype))
    if mask is not None:
        return _masked_moments(x, align(mask, x))
    if x.dim() == 2:
        return Moments(x, torch.zeros_like(x), 1)
    axes = tuple(range(2, x.dim()))
    followed = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    if not followed and not x.numel():  # of which var_mean says that it has too few values
        return Moments(x.mean(axes), x.square().mean(axes), plane_size(x))
    var, mean = torch.var_mean(x, dim=axes, correction=0)
    return Moments(mean, var, plane_size(x))


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type statistics are computed in: float32 or wider."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def convert(t: Any, dtype: torch.dtype) -> Any:
    """Brings a tensor (or None) to a type; one that has it already leaves no trace in an exported graph."""
    return t if t is None or t.dtype == dtype else t.to(dtype)


def align(mask: Tensor, x: Tensor) -> Tensor:
    """Brings a mask over (N, *spatial) to shape (N, 1, *spatial)."""
    shape = (x.shape[0], *x.shape[2:])
    try:
        whole = mask.expand(shape) if mask.dtype == torch.bool else None
    except RuntimeError:
        whole = None
    if whole is None:
        raise ValueError(
            f"mask must be bool and broadcast to (N, *spatial) = {tuple(shape)}, "
            f"got {mask.dtype} of shape {tuple(mask.shape)}; True marks valid values."
        )
    return whole.unsqueeze(1)


def planes(values: Tensor, like: Tensor) -> Tensor:
    """Views a table (N, C) so that it broadcasts against `like` of shape (N, C, *spatial)."""
    return values.reshape(values.shape + (1,) * (like.dim() - 2))


def plane_size(x: Tensor) -> int:
    """Counts the values of a plane; symbolic where an export follows sizes: `torch.Size.numel` makes them constants."""
    sizes = x.shape[2:]
    return sizes.numel() if torch._C._get_tracing_state() is not None else prod(sizes)


def plane_sum(x: Tensor) -> Tensor:
    """Sums every plane: (N, C, *spatial) -> (N, C)."""
    return x.sum(tuple(range(2, x.dim()))) if x.dim() > 2 else x


def _masked_moments(x: Tensor, mask: Tensor) -> Moments:
    count = plane_sum(mask.to(x.dtype))
    n = count.clamp(min=1)
    x = x.masked_fill(~mask, 0)  # before any arithmetic: NaN in the padding must not reach a gradient
    mean = plane_sum(x) / n
    deviation = (x - planes(mean, x)).masked_fill(~mask, 0)
    return Moments(mean, plane_sum(deviation**2) / n, count)


def _total(table: Moments, axis: int) -> Moments:
    mean, var, count = table
    if not isinstance(count, Tensor):
        center = mean.mean(axis, keepdim=True)
        return Moments(center, (var + (mean - center) ** 2).mean(axis, keepdim=True), count * mean.shape[axis])
    count = count.expand_as(mean)
    total = count.sum(axis, keepdim=True)
    weight = count / total.clamp(min=1)
    center = (weight * mean).sum(axis, keepdim=True)
    return Moments(center, (weight * (var + (mean - center) ** 2)).sum(axis, keepdim=True), total)


def _unfold(table: Moments, axis: int, parts: int) -> Moments:
    mean, var, count = table
    if isinstance(count, Tensor):
        count = count.expand_as(mean).unflatten(axis, (parts, -1))
    return Moments(mean.unflatten(axis, (parts, -1)), var.unflatten(axis, (parts, -1)), count)


def _fold(table: Moments, axis: int, size: int) -> Moments:
    shape = list(table.mean.shape)
    shape[axis + 1] = size // shape[axis]
    mean, var, count = (
        value.expand(shape).flatten(axis, axis + 1) if isinstance(value, Tensor) else value for value in table
    )
    return Moments(cast(Tensor, mean), cast(Tensor, var), count)


def _pool_unequal(table: Moments, parts: int) -> Moments:
    mean, var, count = table
    count = torch.as_tensor(count, dtype=mean.dtype, device=mean.device).expand_as(mean)
    chunks = (Moments(*chunk) for chunk in zip(*(t.tensor_split(parts) for t in (mean, var, count)), strict=True))
    pooled = [[cast(Tensor, t).expand_as(chunk.mean) for t in _total(chunk, axis=0)] for chunk in chunks]
    return Moments(*(torch.cat(values) for values in zip(*pooled, strict=True)))


def _refusal(axis: int, size: int, parts: int) -> str:
    if axis == 0:
        return f"pool: parts must be between 1 and the number of instances, got {parts} parts of {size}."
    return f"pool: channels must be divisible by parts, got {size} and {parts}; {divisors(size)} would do."


def divisors(size: int) -> str:
    """The divisors of a number of channels as a text for messages.

    >>> divisors(6)
    '1, 2, 3 or 6'
    """
    *head, last = [str(n) for n in range(1, size + 1) if size % n == 0]
    return f"{', '.join(head)} or {last}" if head else last
