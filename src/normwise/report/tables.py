"""The tables of the page: the scorecard with its footnotes, every arm's numbers, failed trials, settings."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from normwise.report.pools import words
from normwise.report.text import amount, decimal, plain
from normwise.report.view import Json, View

STATES = {
    "safe": "safe",
    "alive": "open",
    "worse": "dropped: worse",
    "unstable": "dropped: unstable",
}
MOST_FAILURES = 200


class Cell(NamedTuple):
    """A number, its interval or remark in small type, and the footnotes it refers to."""

    text: str
    small: str = ""
    notes: tuple[int, ...] = ()


class Line(NamedTuple):
    """A row of a table: its heading, its unit and a remark under it, its cells."""

    title: str
    unit: str
    remark: str
    cells: tuple[Cell, ...]


class Table(NamedTuple):
    """A table with a caption and a heading for each column."""

    caption: str
    columns: tuple[Cell, ...]
    lines: tuple[Line, ...]
    notes: tuple[tuple[str, str], ...] = ()


def scorecard(view: View) -> Table | None:
    """The comparison table: one column an arm, footnotes where something needs explaining."""
    content = view.content.get("scorecard") or {}
    if not content.get("rows"):
        return None
    notes = _Notes(content.get("notes") or [])
    columns = tuple(Cell(name, notes=notes.of_arm(name)) for name in content["arms"])
    lines = [_scorecard_line(row, notes) for row in content["rows"]]
    said = [line.remark for line in lines]
    # How it was measured is said once where rows of one measure follow each other.
    lines = [line._replace(remark="") if i and said[i] == said[i - 1] else line for i, line in enumerate(lines)]
    return Table(f"Scorecard on {view.config.get('task', 'this task')}", columns, tuple(lines), tuple(notes.listed))


class _Notes:
    """Footnotes numbered in the order in which they are met."""

    def __init__(self, notes: Sequence[Json]) -> None:
        self.listed = [(note.get("title", ""), note["text"]) for note in notes]
        self.places = {note["id"]: i + 1 for i, note in enumerate(notes)}
        self.arms = {note["id"]: note.get("arms") or [] for note in notes}

    def of_arm(self, name: str) -> tuple[int, ...]:
        return tuple(place for id, place in self.places.items() if name in self.arms[id])

    def of_cell(self, note: str | None) -> tuple[int, ...]:
        """The number of a note named by its id, or of a text that becomes a note of its own."""
        if not note:
            return ()
        if note not in self.places:
            self.listed.append(("", note))
            self.places[note] = len(self.listed)
            self.arms[note] = []
        return (self.places[note],)


def _scorecard_line(row: Json, notes: _Notes) -> Line:
    size = row.get("batch_size")
    unit = ", ".join(part for part in (row["unit"], f"batch size {size}" if size is not None else "") if part)
    said = words if row["id"] == "pools" else str
    cells = tuple(_split(cell["text"] and said(cell["text"]), notes.of_cell(cell.get("note"))) for cell in row["cells"])
    return Line(row["title"], unit, row["how"], cells)


def _split(text: str, notes: tuple[int, ...]) -> Cell:
    """The interval or remark in brackets goes into small type."""
    head, bracket, rest = text.partition(" (")
    return Cell(head, bracket.strip() + rest, notes)


NUMBERS = (
    "Learning rate",
    "Seeds",
    "Score",
    "Difference",
    "Regret bound",
    "Worst seed",
    "Failed",
    "State",
    "Loss on judge",
    "Gain half to full length",
    "At twice the length",
    "Cost",
)


def numbers(view: View) -> list[Table]:
    """All arms' numbers, one table a batch size."""
    return [_numbers(view, cell) for cell in view.cells]


def _numbers(view: View, cell: Json) -> Table:
    caption = (
        f"Batch size {cell['batch_size']}: differences are to {cell['norm']}; brackets are "
        f"{100 * cell['level']:g} % intervals"
    )
    arms = view.known(cell) + [arm for arm in cell["arms"] if arm.get("mean") is None]
    return Table(caption, tuple(map(Cell, NUMBERS)), tuple(_number_line(view, arm) for arm in arms))


def _number_line(view: View, arm: Json) -> Line:
    scale = view.scale
    score, signed = scale.score, scale.signed
    bound, worst = arm.get("bound"), arm.get("worst")
    double = arm.get("double") or {}
    cost = arm.get("cost")
    cells = (
        Cell(plain(arm.get("learning_rate"))),
        Cell(str(arm.get("n", ""))),
        _spanned(arm, score, scale.span),
        _spanned(arm.get("difference"), signed, scale.span),
        Cell("" if bound is None else scale.at_most(bound)),
        Cell("" if worst is None else score(worst)),
        Cell(str(arm.get("failures", ""))),
        Cell(STATES.get(arm.get("state") or "", arm.get("state") or "")),
        _spanned(arm.get("loss"), _loss, lambda low, high: f"{_loss(low)} to {_loss(high)}"),
        _spanned(arm.get("gain_half_to_full"), signed, scale.span),
        _spanned(double, score, scale.span),
        Cell("" if cost is None else amount(cost)),
    )
    return Line(arm["norm"], "", "", cells)


def _loss(value: float) -> str:
    return decimal(value, 3)


def _spanned(value: Json | None, show: Any, span: Any) -> Cell:
    if not value or value.get("mean") is None:
        return Cell("")
    if value.get("low") is None or value.get("high") is None:
        return Cell(show(value["mean"]))
    return Cell(show(value["mean"]), f"({span(value['low'], value['high'])})")


def failures(view: View) -> Table | None:
    """The trials that diverged or could not be run, with their reasons."""
    failed = [row for row in view.content.get("results") or [] if row["status"] != "ok"]
    if not failed:
        return None
    caption = f"{len(failed)} of {len(view.content['results'])} trials failed"
    if len(failed) > MOST_FAILURES:
        caption += f"; the first {MOST_FAILURES} are shown, results.csv has all"
    columns = ("Batch size", "Learning rate", "Seed", "Length", "Stage", "Status", "Reason")
    return Table(caption, tuple(map(Cell, columns)), tuple(map(_failure, failed[:MOST_FAILURES])))


def _failure(row: Json) -> Line:
    numbers = (plain(row[key]) for key in ("batch_size", "learning_rate", "seed", "length"))
    words = (row["stage"], row["status"], row["reason"][:1000])
    return Line(row["arm"], "", "", tuple(map(Cell, (*numbers, *words))))


def settings(title: str, values: Json) -> Table | None:
    """A table of names and values."""
    if not values:
        return None
    lines = tuple(Line(name.replace("_", " "), "", "", (Cell(_flat(value)),)) for name, value in values.items())
    return Table(title, (Cell("Value"),), lines)


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_flat(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        if value and all(isinstance(part, list | tuple) for part in value):
            return "; ".join(f"{_flat(part[:-1])}: {_flat(part[-1])}" for part in value)
        return ", ".join(map(_flat, value))
    if isinstance(value, float):
        return plain(value)
    if value is None or isinstance(value, bool):
        return {None: "not set", True: "yes", False: "no"}[value]
    return str(value)
