"""The claims as Markdown: the documentation's page, from the content of a recorded run."""

from typing import Any

from normwise.report.claims import beside, bought, counts, interval, measured, notes, number, paragraph, verdict
from normwise.report.text import duration, plain

Json = dict[str, Any]


def markdown(content: Json, short: Json | None = None) -> str:
    """The page. A `short` run's intervals stand beside the recorded one's.

    >>> markdown({"claims": [], "config": {"date": "2026-01-01"}}).splitlines()[0]
    '# The textbook, measured'
    """
    parts = [_head(content), _table(content)]
    beside = {claim["id"]: claim for claim in (short or {"claims": []})["claims"]}
    parts += [_claim(claim, beside.get(claim["id"])) for claim in content["claims"]]
    return "\n\n".join(parts) + "\n"


def _head(content: Json) -> str:
    config = content["config"]
    machine = config.get("machine") or {}
    where = f"{machine.get('workers')} workers, {machine.get('cores')} cores, {machine.get('system')}"
    return "\n\n".join(
        [
            "# The textbook, measured",
            "What a textbook says of batch and instance normalization, each sentence made into an experiment whose "
            "sign and smallest effect stand in the code before it runs; what was set after a pilot is named. Run "
            "it yourself: `normwise claims`, or one of them: "
            "`normwise claims B4`.",
            f"{counts(content['claims'])}. {bought(content)}",
            f"Recorded {config.get('date')}, {duration(config.get('seconds') or 0)} on {where}; images: "
            f"{config.get('images')}. Everything holds on these data and for these small networks.",
            "The verdict is that of a claim's first part; *qualified* says that another part is decided otherwise. "
            "*Supported*: beyond the smallest effect of interest with the claimed sign; *negligible*: within it; "
            "*contradicted*: beyond zero with the other sign; else *undecided*.",
        ]
    )


def _table(content: Json) -> str:
    rows = [(claim["id"], claim["statement"], measured(claim), verdict(claim)) for claim in content["claims"]]
    return _grid(("", "The textbook says", "Measured", "Verdict"), rows)


def _claim(claim: Json, short: Json | None) -> str:
    intervals = {part["name"]: interval(part) for part in (short or {"parts": []})["parts"]}
    head = (
        "Part",
        "Mean",
        "Interval",
        "Seeds",
        "Verdict",
        "Half the length",
        "One rate for all",
        *(["Quick run"] if short else []),
    )
    rows = [
        (
            part["name"],
            number(part["mean"], part),
            interval(part),
            str(part["seeds"]),
            part["verdict"],
            beside(part["half_length"], part),
            beside(part["one_rate"], part),
            *([intervals.get(part["name"], "-")] if short else []),
        )
        for part in claim["parts"]
    ]
    published = "; ".join(f"{_text(one['text'])} ({_text(one['source'])}; {one['sure']})" for one in claim["published"])
    return "\n\n".join(
        [
            f"## {claim['id']} {_text(claim['title'])}: {verdict(claim)}",
            f"**{_text(claim['statement'])}**",
            _text(paragraph(claim)),
            _grid(head, rows),
            _points(claim["figure"]),
            *(_numbers(table) for table in claim["tables"]),
            f"Design: {_text(claim['design'])}",
            *([f"Set after a pilot, not blind: {_text(claim['pilot'])}."] if claim["pilot"] else []),
            *map(_text, notes(claim)),
            f"In print: {published}.",
            f"```bash\n{claim['command']}\n```",
        ]
    )


def _numbers(table: Json) -> str:
    """A table without verdicts."""
    rows = [
        (name, *(plain(row[column]) if column in row else "" for column in table["columns"]))
        for name, row in table["rows"].items()
    ]
    return f"*{_text(table['title'])}*\n\n{_grid(('', *table['columns']), rows)}"


def _points(figure: Json) -> str:
    """The figure as a table: a row for each line of it."""
    places = list(dict.fromkeys(point["x"] for line in figure["lines"] for point in line["points"]))
    rows = []
    for line in figure["lines"]:
        found = {point["x"]: plain(point["mean"]) for point in line["points"]}
        rows.append((line["name"] or figure["y_title"], *(found.get(place, "") for place in places)))
    table = _grid((figure["x_title"], *places), rows)
    return f"{table}\n\n*{_text(figure['y_title'])}. {_text(figure['caption'])}*"


def _grid(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(_text(cell) for cell in line)} |" for line in lines)


def _text(text: str) -> str:
    """Text that Markdown shows as it is, also in a table."""
    escaped = "".join(f"\\{sign}" if sign in "\\`*_[]<>|" else sign for sign in text)
    return escaped.replace("\n", " ")
