"""The catalogue for people: what `normwise list` shows, drawn from NORMS."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from normwise.layers import NORMS
from normwise.layers.spec import KEEP

if TYPE_CHECKING:
    from rich.table import Table

WIDE = 120  # columns of a terminal that also hold when to take a norm


def catalogue() -> dict[str, Any]:
    """Every norm as plain data.

    >>> catalogue()["norms"][1]["name"]
    'batch'
    """
    fields = ("name", "kind", "summary", "formula", "pools", "option", "when", "when_not", "paper")
    return {
        "schema": 1,
        "norms": [{field: getattr(entry, field) for field in fields} for entry in NORMS.values()],
    }


def lines() -> str:
    """The catalogue with a line for each name, for a pipe.

    >>> lines().splitlines()[1]
    'none                 no normalization: a learned weight and bias per channel'
    """
    return "\n".join(f"{name:<{_width()}} {summary}" for name, summary, *_ in _rows())


def table(width: int) -> "Table":
    """The catalogue as a table for a terminal of so many columns; words are never cut."""
    from rich.table import Table

    titles = ("name", "what it does", "averages over", "take it when")
    shown = Table(box=None, pad_edge=False)
    for title in titles[: 4 if width >= WIDE else 2]:
        shown.add_column(title, no_wrap=title == "name", min_width=_width() if title == "name" else None)
    for row in _rows():
        shown.add_row(*row[: len(shown.columns)])
    return shown


def _rows() -> Iterator[tuple[str, str, str, str]]:
    yield "keep", KEEP, "", "the layers you have are the measure"
    for entry in NORMS.values():
        option = f" (:{entry.option})" if entry.option else ""
        yield entry.name, entry.summary + option, entry.pools, entry.when


def _width() -> int:
    return max(map(len, NORMS))
