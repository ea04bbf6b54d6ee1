"""The catalogue for people: what `normwise list` shows, drawn from NORMS."""

from typing import TYPE_CHECKING, Any

from normwise.layers import NORMS

if TYPE_CHECKING:
    from rich.table import Table


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


def table() -> "Table":
    """The catalogue as a table for the terminal."""
    from rich.table import Table

    shown = Table("name", "what it does", "averages over", "take it when", box=None, pad_edge=False)
    for entry in NORMS.values():
        option = f" (:{entry.option})" if entry.option else ""
        shown.add_row(entry.name, entry.summary + option, entry.pools, entry.when)
    return shown
