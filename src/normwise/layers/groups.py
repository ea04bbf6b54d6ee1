"""How many groups: the group norm that a spec asks for."""

from typing import Any

from torch import nn

from normwise.layers.within import GroupNorm
from normwise.table import divisors


def group(num_features: int, groups: int | None = None, size: int | None = None, **common: Any) -> nn.Module:
    """Builds a GroupNorm of `groups` groups, or of `size` channels each; else the largest divisor up to 8.

    >>> group(12).num_groups, group(12, size=4).num_groups
    (6, 3)
    """
    if groups is not None and size is not None:
        raise ValueError(f"group: takes groups or size, got groups={groups} and size={size}; leave one out.")
    if size is not None:
        _must_divide("size", num_features, size)
        groups = num_features // size
    if groups is None:
        groups = max(n for n in range(1, 9) if num_features % n == 0)
    _must_divide("groups", num_features, groups)
    taken = "eps", "affine", "bias", "device", "dtype"
    return GroupNorm(groups, num_features, **{name: common[name] for name in taken if name in common})


def layer(num_features: int, **common: Any) -> nn.Module:
    """Builds the group norm of one group."""
    return group(num_features, 1, **common)


def _must_divide(option: str, num_features: int, value: int) -> None:
    if value < 1 or num_features % value:
        raise ValueError(
            f"group: num_features must be divisible by {option}, got {num_features} and {value}; "
            f"{divisors(num_features)} would do."
        )
