"""What a claim is: a sentence of the textbook, said as numbers before anything is measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

Measures = dict[str, float]
Seed = Mapping[str, Measures]  # what one seed gave: the measures of each cell, by the cell's text
Sure = Literal["read", "repository", "abstract", "secondary", "none"]


class Run(NamedTuple):
    """One measurement: a cell's settings, the seed that draws everything, a learning rate where one was tuned.

    `folder` is where pictures may be left for the page.
    """

    settings: dict[str, str]
    seed: int
    rate: float
    folder: Path


@dataclass(frozen=True)
class Experiment:
    """Cells that are measured on the same seeds; several claims may look at one experiment.

    A cell is a text of settings, `norm=batch,batch_size=2`. `seconds` is what one measurement takes on
    one core of the machine of the recorded run, `seeds` how many an hour for the whole list buys.
    `rates` are tried for each cell that is its own `rate_of`, on tuning seeds, by `score`; an experiment
    without rates trains nothing or tunes inside. An exact one takes its seeds whatever the budget;
    none takes more than `most`.
    """

    name: str
    measure: Callable[[Run], Measures]
    cells: tuple[str, ...]
    seconds: float
    seeds: int
    rates: tuple[float, ...] = ()
    rate_of: Callable[[str], str] = lambda cell: cell
    score: str = "validation"
    exact: bool = False
    most: int = 64


@dataclass(frozen=True)
class Part:
    """One assertion of a claim, fixed before any run: which number, which sign, what size would matter.

    `sign` +1 or -1: the claim says that `contrast` is beyond `delta` on that side. 0: it says that the
    number lies within +-delta of zero (an equality). `unit` stands behind the numbers; `refuted_by` says
    what would make the claim wrong. `half` is the same number at half the training length.
    """

    name: str
    effect: str
    contrast: Callable[[Seed], float]
    experiment: str
    sign: Literal[-1, 0, 1]
    delta: float
    refuted_by: str
    unit: str = ""
    half: Callable[[Seed], float] | None = None


class Published(NamedTuple):
    """A number in print, where it stands, and how sure we are of it."""

    text: str
    source: str
    sure: Sure


@dataclass(frozen=True)
class Chart:
    """The claim's figure: the mean of `y` over the setting `x`, a line for each value of the setting `by`.

    `by` may name several settings. `columns` takes x from measures instead: a value of x for each.
    `only` keeps cells that have these settings (None: that lack them). `theory` gives the curve to compare with.
    """

    experiment: str
    x: str
    y: str
    by: str
    x_title: str
    y_title: str
    caption: str
    only: Mapping[str, str | None] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    log_x: bool = False
    log_y: bool = False
    theory: Callable[[float], float] | None = None


@dataclass(frozen=True)
class Claim:
    """A sentence of the textbook, made into parts that can fail. The first part is the sentence as it stands.

    >>> from normwise.claims import find
    >>> find("B6").title
    'Better gradient flow'
    """

    id: str
    title: str
    statement: str
    row: str
    parts: tuple[Part, ...]
    design: str
    chart: Chart
    published: tuple[Published, ...]
    limits: str = ""


def settings(cell: str) -> dict[str, str]:
    """Reads a cell's text.

    >>> settings("norm=group:8,batch_size=2")
    {'norm': 'group:8', 'batch_size': '2'}
    """
    return {name: value for name, _, value in (pair.partition("=") for pair in cell.split(","))}


def cell(**given: object) -> str:
    """A cell's text.

    >>> cell(norm="group:8", batch_size=2)
    'norm=group:8,batch_size=2'
    """
    return ",".join(f"{name}={value}" for name, value in given.items())


def gap(first: str, second: str, measure: str, of: Callable[[float], float] = float) -> Callable[[Seed], float]:
    """The contrast of two cells: `of(first) - of(second)` in one measure.

    >>> gap("norm=a", "norm=b", "judge")({"norm=a": {"judge": 0.75}, "norm=b": {"judge": 0.5}})
    0.25
    """
    return lambda seed: of(seed[first][measure]) - of(seed[second][measure])
