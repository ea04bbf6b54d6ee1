"""What every part of the report asks of the content: its arms and their looks, its scale, its rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from normwise.report.text import Scale, scale, shortened

Json = dict[str, Any]

# Okabe and Ito's palette without yellow, which is lost on white; the two other light ones come late.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#56B4E9")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "x", "star", "hexagon")
DASHES = ("solid", "dash", "dashdot", "longdash", "dot")


class Arm(NamedTuple):
    """An arm as it looks in every figure."""

    name: str
    label: str
    color: str
    symbol: str
    dash: str


@dataclass(frozen=True)
class View:
    """The content of results.json, read for drawing."""

    content: Json

    @property
    def config(self) -> Json:
        """How the run was set up."""
        return self.content["config"]

    @property
    def verdict(self) -> Json:
        """What the run says."""
        return self.content["verdict"]

    @property
    def cells(self) -> list[Json]:
        """The verdicts per batch size that name an arm."""
        return [cell for cell in self.verdict.get("per_batch_size") or [] if cell.get("arms")]

    @cached_property
    def scale(self) -> Scale:
        """How scores are written."""
        return scale(self.config.get("score") or {}, self.verdict.get("delta") or 0.0)

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """Every arm of the run by its name; colour, marker and dash are the same in all figures."""
        names = [arm["name"] for arm in self.config.get("arms") or []]
        names += [arm["norm"] for cell in self.cells for arm in cell["arms"]]
        names += [row["arm"] for row in self.content.get("results") or []]
        labels = shortened(list(dict.fromkeys(names)))
        return {name: _looks(name, label, i) for i, (name, label) in enumerate(labels.items())}

    @property
    def priced(self) -> bool:
        """Whether costs are amounts; where the network was not seen they only rank the arms (0 or 1)."""
        return any((arm.get("cost") or 0) > 1 for cell in self.cells for arm in cell["arms"])

    def known(self, cell: Json, key: str = "mean") -> list[Json]:
        """The arms of a cell of which something is known, best first."""
        arms = [arm for arm in cell["arms"] if arm.get(key) is not None and arm.get("mean") is not None]
        return sorted(arms, key=lambda arm: arm["mean"], reverse=self.scale.higher_is_better)

    def spanned(self, cell: Json, key: str) -> list[Json]:
        """The known arms of a cell of which a value has an interval, best first."""
        return [arm for arm in self.known(cell, key) if arm[key].get("low") is not None]

    def found(self, norm: str | None, batch_size: int | None) -> Json:
        """What is known of one arm at one batch size; empty where there was no look yet."""
        arms = (arm for cell in self.cells if cell["batch_size"] == batch_size for arm in cell["arms"])
        return next((arm for arm in arms if arm["norm"] == norm), {})

    def rows(self, stage: str) -> Iterator[Json]:
        """The results of a stage, those that failed too."""
        return (row for row in self.content.get("results") or [] if row["stage"] == stage)

    def race(self) -> Iterator[Json]:
        """The results behind the verdict; an extended run may hold others, at rates chosen earlier."""
        for row in self.rows("race"):
            chosen = self.found(row["arm"], row["batch_size"]).get("learning_rate")
            if row["length"] == 1 and chosen in (None, row["learning_rate"]):
                yield row

    @property
    def batch_sizes(self) -> list[int]:
        """The batch sizes of which there are results, ascending."""
        return sorted({row["batch_size"] for row in self.content.get("results") or []})


def _looks(name: str, label: str, index: int) -> Arm:
    # Seven colours, eight markers and five dashes: no two of the first 280 arms look alike.
    return Arm(
        name,
        label,
        COLORS[index % len(COLORS)],
        SYMBOLS[index % len(SYMBOLS)],
        DASHES[index % len(DASHES)],
    )
