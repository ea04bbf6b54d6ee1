"""What a claim is: a sentence of the textbook, said as numbers before anything is measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

Measures = dict[str, float]
Seed = Mapping[str, Measures]  # what one seed gave: the measures of each cell, by the cell's text
HALF = ",length=half"  # ends the text of a cell that trains half as long
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
    none takes more than `most`, nor more tuning seeds than `tuning`.
    """

    name: str
    measure: Callable[[Run], Measures]
    cells: tuple[str, ...]
    seconds: float
    seeds: int
    rates: tuple[float, ...] = ()
    rate_of: Callable[[str], str] = lambda cell: cell
    rivals: tuple[tuple[str, ...], ...] = ()
    score: str = "validation"
    tuning: int = 2
    exact: bool = False
    most: int = 64


@dataclass(frozen=True)
class Part:
    """One assertion of a claim, fixed before any run: which number, which sign, what size would matter.

    `sign` +1 or -1: the claim says that `contrast` is beyond `delta` on that side. 0: it says that the
    number lies within +-delta of zero (an equality). `unit` stands behind the numbers; `refuted_by` says
    what would make the claim wrong.
    """

    name: str
    effect: str
    contrast: Callable[[Seed], float]
    experiment: str
    sign: Literal[-1, 0, 1]
    delta: float
    refuted_by: str
    unit: str = ""


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


class Table(NamedTuple):
    """Numbers without a verdict: for each row and column a cell's text and one of its measures."""

    title: str
    experiment: str
    rows: Mapping[str, Mapping[str, tuple[str, str]]]


@dataclass(frozen=True)
class Claim:
    """A sentence of the textbook, made into parts that can fail. The first part is the sentence as it stands.

    `pilot` names what was set after looking at pilot runs.

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
    pilot: str = ""
    tables: tuple[Table, ...] = ()

    @property
    def experiments(self) -> list[str]:
        """What the claim looks at.

        >>> from normwise.claims import find
        >>> find("I7").experiments
        ['regularize', 'mates']
        """
        names = [part.experiment for part in self.parts]
        return list(dict.fromkeys([*names, self.chart.experiment, *(one.experiment for one in self.tables)]))


def settings(cell: str) -> dict[str, str]:
    """Reads a cell's text.

    >>> settings("norm=group:8,batch_size=2")
    {'norm': 'group:8', 'batch_size': '2'}
    """
    return {name: value for name, _, value in (pair.partition("=") for pair in cell.split(","))}


def bare(experiment: Experiment) -> Experiment:
    """The experiment without what stands beside its verdicts: half the training length, one rate for rivals.

    >>> bare(Experiment("a", print, ("x=1", "x=1,length=half"), 1.0, 5, rivals=(("x=1",),))).cells
    ('x=1',)
    """
    return replace(experiment, cells=tuple(one for one in experiment.cells if not one.endswith(HALF)), rivals=())


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


def at_half(seed: Seed) -> Seed:
    """The same seed at half the training length, as far as it was measured: cells that have a twin with
    `length=half`, or measures with `half_` before their name.

    >>> at_half({"a=1": {"x": 1.0}, "a=1,length=half": {"x": 0.5}, "a=2": {"x": 2.0, "half_x": 1.5}})
    {'a=1': {'x': 0.5}, 'a=2': {'x': 1.5}}
    """
    twins = {text: seed[twin] for text in seed if (twin := f"{text}{HALF}") in seed}
    halves = {text: _halves(measures) for text, measures in seed.items() if _halves(measures)}
    return twins | halves


def _halves(measures: Measures) -> Measures:
    return {name.removeprefix("half_"): value for name, value in measures.items() if name.startswith("half_")}
