"""What the catalogue says of one norm."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

Kind = Literal["plane", "position", "other"]


@dataclass(frozen=True, kw_only=True)
class NormEntry:
    """One line of `NORMS`: how to build a norm and what to say of it.

    `kind`: norms of a plane, (N, C, *spatial), stand in for each other, and so do those of a position,
    (..., F); the others, (N, C, *spatial) too, stand in for none.

    `make`, where it is not the class itself: `make(num_features, **options, eps, momentum, affine, bias,
    track_running_stats, device, dtype)`.
    `options` maps an option's name in a spec to its type; the first may stand alone after the colon;
    `option` explains them. `axes` says per pool what is averaged over: N, C, C/g (a group's channels),
    HW (positions), F (a position's features). `fixed`: in evaluation one scale and shift per channel, which
    nw.fold can take. `evidence` names the papers its numbers are from. `given`
    names what `forward(x, given, mask=None)` takes besides x. `cannot` says which promises of the
    conformance suite (tests/conformance.py) the norm cannot keep, and why in one line;
    `promise:train` and `promise:eval` are for one mode only.
    """

    name: str
    cls: type[nn.Module]
    summary: str
    formula: str
    pools: str
    when: str
    when_not: str
    paper: str = ""
    make: Callable[..., nn.Module] | None = None
    fixed: bool = False
    evidence: str = ""
    kind: Kind = "plane"
    axes: tuple[str, ...] = ()
    options: Mapping[str, type[int] | type[float]] = field(default_factory=dict)
    option: str = ""
    given: str = ""
    cannot: Mapping[str, str] = field(default_factory=dict)
