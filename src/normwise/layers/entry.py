"""What the catalogue says of one norm."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

Kind = Literal["plane", "position", "other"]


@dataclass(frozen=True, kw_only=True)
class NormEntry:
    """One line of `NORMS`: how to build a norm and what to say of it.

    `make(num_features, **options, eps, momentum, affine, bias, track_running_stats, device, dtype)`.
    `options` maps an option's name in a spec to its type; the first may stand alone after the colon;
    `option` explains them. `axes` says per pool what is averaged over: N, C, C/g (a group's channels),
    HW (positions), F (a position's features).
    """

    name: str
    cls: type[nn.Module]
    make: Callable[..., nn.Module]
    summary: str
    formula: str
    pools: str
    when: str
    when_not: str
    paper: str = ""
    kind: Kind = "plane"
    axes: tuple[str, ...] = ()
    options: Mapping[str, type[int] | type[float]] = field(default_factory=dict)
    option: str = ""
