"""The claims as Markdown: the documentation's page, from the content of a recorded run."""

from typing import Any

from normwise.report.claims_figure import BARS, places
from normwise.report.claims_words import (
    MARKS,
    beside,
    bought,
    by_row,
    cell,
    counts,
    interval,
    measured,
    notes,
    number,
    paragraph,
    verdict,
)
from normwise.report.text import count, duration, plain

Json = dict[str, Any]


def markdown(content: Json, short: Json | None = None, figures: str = "") -> str:
    """The page. A `short` run's intervals stand beside the recorded one's; `figures` is the page that draws them.

    >>> markdown({"claims": [], "config": {"date": "2026-01-01"}}).splitlines()[0]
    '# The textbook, measured'
    """
    drawn = [f"The same run with its figures drawn: [the report]({figures})."] if figures and content["claims"] else []
    parts = [_head(content), *drawn, *([_short(short)] if short else []), _verdicts(), *_tables(content)]
    beside = {claim["id"]: claim for claim in (short or {"claims": []})["claims"]}
    parts += [_claim(claim, beside.get(claim["id"])) for claim in content["claims"]]
    return "\n\n".join(parts) + "\n"


def _head(content: Json) -> str:
    return "\n\n".join(
        [
            "# The textbook, measured",
            "What a textbook says of batch and instance normalization, each sentence made into an experiment whose "
            "sign and smallest effect stand in the code before it runs; what was set after a pilot is named. Run "
            "it yourself: `normwise claims`, or one of them: "
            "`normwise claims B4`.",
            f"{counts(content['claims'])}. {bought(content)}",
            f"Recorded {_run(content['config'])}. Everything holds on these data and for these small networks.",
        ]
    )


def _short(short: Json) -> str:
    """What the column `Quick run` is: another run, with its own date, machine and what it could see."""
    config = short.get("config", {})
    told = f": {_run(config)}. {bought(short)}" if config else "."
    return f"Beside it, in the column *Quick run*, the wider intervals of a short one{told}"


def _run(config: Json) -> str:
    """When, where and how long a run ran."""
    machine = config.get("machine") or {}
    seed = f", seed {config['seed']}" if config.get("seed") is not None else ""
    where = [
        *([count(machine["workers"], "worker")] if machine.get("workers") else []),
        *([count(machine["cores"], "core")] if machine.get("cores") else []),
        *([machine["system"]] if machine.get("system") else []),
    ]
    on = f" on {', '.join(where)}" if where else ""
    images = f"; images: {config['images']}" if config.get("images") else ""
    return f"{config.get('date')}{seed}, {duration(config.get('seconds') or 0)}{on}{images}"


def _verdicts() -> str:
    marks = ", ".join(f"{mark} {word}" for word, mark in MARKS.items())
    return (
        "The verdict is that of a claim's first part; *qualified* says that another part is decided otherwise. "
        "*Supported*: beyond the smallest effect of interest with the claimed sign; *negligible*: within it; "
        "*contradicted*: beyond zero with the other sign; else *undecided*. Of an equality: *supported* within it, "
        f"*contradicted* wholly outside. Marks: {marks}. In the figures {BARS}"
    )


def _tables(content: Json) -> list[str]:
    """The textbook's table, a grid for each of its rows."""
    head = ("", "The textbook says", "Measured", "Verdict")
    found: list[str] = ["## The textbook's table"]
    for row, claims in by_row(content["claims"]).items():
        rows = [(claim["id"], claim["statement"], "\n".join(measured(claim)), verdict(claim)) for claim in claims]
        found += [f"**{_text(row)}**", _grid(head, rows)]
    return found


def _claim(claim: Json, short: Json | None) -> str:
    published = "; ".join(
        f"{_text(one['text'])} ({_text(one['source'])}; how sure: {one['sure']})" for one in claim["published"]
    )
    note = claim["figure"].get("pictures_note")
    return "\n\n".join(
        [
            f"## {claim['id']} {_text(claim['title'])}: {verdict(claim)}",
            f"**{_text(claim['statement'])}**",
            _text(paragraph(claim)),
            _points(claim["figure"]),
            *([_text(note)] if note else []),
            _parts(claim, short),
            *(_numbers(table) for table in claim["tables"]),
            f"Design: {_text(claim['design'])}",
            *([f"Set after a pilot, not blind: {_text(claim['pilot'])}."] if claim["pilot"] else []),
            *map(_text, notes(claim)),
            f"In print: {published}.",
            f"```bash\n{claim['command']}\n```",
        ]
    )


def _parts(claim: Json, short: Json | None) -> str:
    """The numbers of each part; a short run's stand beside them, and columns that would be empty are left out."""
    quick = {part["name"]: part for part in (short or {"parts": []})["parts"]}
    columns = {
        "Part": lambda part: part["name"],
        "Mean": lambda part: number(part["mean"], part),
        "Interval": interval,
        "Quick run": lambda part: _quick(quick.get(part["name"])),
        "Seeds": lambda part: str(part["seeds"]),
        "Verdict": lambda part: part["verdict"],
        "Half the length": lambda part: beside(part["half_length"], part),
        "One rate for all": lambda part: beside(part["one_rate"], part),
    }
    shown = {title: [of(part) for part in claim["parts"]] for title, of in columns.items()}
    shown = {title: cells for title, cells in shown.items() if any(one != "-" for one in cells)}
    return _grid(tuple(shown), list(zip(*shown.values(), strict=True)))


def _quick(part: Json | None) -> str:
    """A short run's interval, its seeds and its verdict."""
    return f"{interval(part)} ({count(part['seeds'], 'seed')}, {part['verdict']})" if part else "-"


def _numbers(table: Json) -> str:
    """A table without verdicts."""
    rows = [
        (cell(name), *(plain(row[column]) if column in row else "" for column in table["columns"]))
        for name, row in table["rows"].items()
    ]
    return f"*{_text(table['title'])}*\n\n{_grid(('', *table['columns']), rows)}"


def _points(figure: Json) -> str:
    """The figure as a table: a row for each line of it."""
    shown = places(figure)
    rows = []
    for line in figure["lines"]:
        found = {point["x"]: plain(point["mean"]) for point in line["points"]}
        rows.append((line["name"] or figure["y_title"], *(found.get(place, "") for place in shown)))
    table = _grid((figure["x_title"], *shown), rows)
    return f"{table}\n\n*Shown: {_text(figure['y_title'])}. {_text(figure['caption'])}*"


def _grid(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(_lines(one) for one in line)} |" for line in lines)


def _lines(cell: str) -> str:
    """A table's cell, which may have several lines."""
    return "<br>".join(map(_text, cell.split("\n")))


def _text(text: str) -> str:
    """Text that Markdown shows as it is, also in a table."""
    escaped = "".join(f"\\{sign}" if sign in "\\`*_[]<>|" else sign for sign in text)
    return escaped.replace("\n", " ")
