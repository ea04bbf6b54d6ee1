"""The claims' page and table: the textbook's sentences beside what was measured."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from normwise.files import write_atomic
from normwise.report.claims_figure import BARS, figure
from normwise.report.claims_words import (
    MARKS,
    beside,
    bought,
    by_row,
    counts,
    interval,
    measured,
    notes,
    number,
    paragraph,
    verdict,
)
from normwise.report.page import asset, filled
from normwise.report.text import duration

Json = dict[str, Any]


def write(content: Json, path: str | Path) -> None:
    """Writes the page, in one step."""
    write_atomic(path, render(content))


def render(content: Json) -> str:
    """Makes the page from the content of the claims' results.json.

    >>> "<h1>The textbook, measured</h1>" in render({"claims": [], "config": {}})
    True
    """
    claims = [
        {
            **claim,
            "drawn": figure(claim),
            "said": paragraph(claim),
            "marked": verdict(claim),
            "found": [line.split(" ", 1)[1] for line in measured(claim)],
        }
        for claim in content["claims"]
    ]
    return filled(
        asset("claims.html"),
        {c["id"]: [p.figure for p in c["drawn"].panels] for c in claims},
        claims=claims,
        rows=list(by_row(claims).items()),
        config=content["config"],
        bought=bought(content),
        counts=counts(content["claims"]),
        bars=BARS,
        marks=MARKS,
        number=number,
        interval=interval,
        beside=beside,
        notes=notes,
        duration=duration,
    )


def console(content: Json) -> Any:
    """The textbook's table, row by row, with what was measured and the verdict, and where the page is: for a terminal.

    Text that is styled and never marked up: the command prints brackets as they are.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text("The textbook, measured"), caption=Text(bought(content)), show_lines=True)
    for column in ("", "The textbook says", "Measured", "Verdict"):
        table.add_column(column)
    for row, claims in by_row(content["claims"]).items():
        table.add_row("", Text(row, style="bold"), "", "")
        for claim in claims:
            said = claim["id"], claim["statement"], "\n".join(measured(claim)), verdict(claim)
            table.add_row(*map(Text, said))
    return Group(table, *(Text(line, overflow="fold") for line in _ends(content["config"])))


def _ends(config: Json) -> Iterator[str]:
    """Where the page is, and how an interrupted run goes on."""
    if config.get("folder"):
        yield f"report: {Path(config['folder']) / 'report.html'}"
        if config.get("finished") is False:
            yield f"interrupted; the same command continues with --out {config['folder']}"
