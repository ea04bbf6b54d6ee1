"""The claims' page and table: the textbook's sentences beside what was measured."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from normwise.files import write_atomic
from normwise.report.draw import DARK, MUTED, Figure, Panel, escape, layout
from normwise.report.page import asset, embedded, plotly_source
from normwise.report.text import decimal, duration, plain
from normwise.report.view import COLORS, DASHES, SYMBOLS

Json = dict[str, Any]
MARKS = {"supported": "✓", "negligible": "≈", "contradicted": "✗", "undecided": "?"}
HEIGHT = 360


def write(content: Json, path: str | Path) -> None:
    """Writes the page, in one step."""
    write_atomic(path, render(content))


def render(content: Json) -> str:
    """Makes the page from the content of the claims' results.json.

    >>> "<h1>The textbook, measured</h1>" in render({"claims": [], "config": {}})
    True
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    macros = asset("page.html").partition("<!DOCTYPE")[0]
    claims = [{**claim, "drawn": figure(claim), "said": paragraph(claim)} for claim in content["claims"]]
    return environment.from_string(macros + asset("claims.html")).render(
        claims=claims,
        config=content["config"],
        bought=bought(content),
        counts=counts(content["claims"]),
        marks=MARKS,
        measured=measured,
        number=number,
        interval=interval,
        beside=beside,
        notes=notes,
        duration=duration,
        figures=embedded({"dark": DARK, "panels": {c["id"]: [p.figure for p in c["drawn"].panels] for c in claims}}),
        plotly=Markup(plotly_source()),
        css=Markup(asset("page.css")),
        js=Markup(asset("page.js")),
    )


def console(content: Json) -> Any:
    """The article's table with what was measured and the verdict, for a terminal."""
    from rich.table import Table

    table = Table(title="The textbook, measured", caption=bought(content), show_lines=True)
    for column in ("", "The textbook says", "Measured", "Verdict"):
        table.add_column(column)
    for claim in content["claims"]:
        table.add_row(claim["id"], claim["statement"], measured(claim), verdict(claim))
    return table


def verdict(claim: Json) -> str:
    """The verdict with its mark; `qualified` where another part of the claim says otherwise.

    >>> verdict({"verdict": "supported", "qualified": True})
    '✓ supported, qualified'
    """
    return f"{MARKS[claim['verdict']]} {claim['verdict']}{', qualified' if claim['qualified'] else ''}"


def measured(claim: Json) -> str:
    """The number of each part, in few words."""
    return "; ".join(f"{part['name']}: {number(part['mean'], part)} ({part['verdict']})" for part in claim["parts"])


def paragraph(claim: Json) -> str:
    """What was found, in sentences that name the numbers."""
    said = [_sentence(part) for part in claim["parts"]]
    return " ".join([*said, claim["limits"]]).strip()


def number(value: float | None, part: Json) -> str:
    """A number of a part with its unit, with as many digits as a tenth of delta takes.

    >>> number(0.0312, {"unit": "points", "delta": 0.01}), number(None, {})
    ('3.1 points', '-')
    """
    if value is None:
        return "-"
    points = part["unit"] in ("points", "%")
    value, delta = (value * 100, part["delta"] * 100) if points else (value, part["delta"])
    digits = next((i for i in range(6) if delta * 10**i >= 1), 0)
    if delta < 1e-3:
        return f"{value:.1e}" if value else "0"
    return " ".join(filter(None, (decimal(value, digits + (delta * 10**digits < 2)), part["unit"])))


def interval(part: Json) -> str:
    """The interval behind a verdict."""
    if part["low"] is None:
        return "no interval"
    bare = {**part, "unit": part["unit"] if part["unit"] in ("points", "%") else ""}
    low = number(part["low"], bare).removesuffix(f" {bare['unit']}")
    return f"{low} to {number(part['high'], bare)}"


def beside(found: Json | None, part: Json) -> str:
    """A number that stands beside a verdict, with its ordinary 95 % interval.

    >>> beside({"mean": 0.05, "low": 0.04, "high": 0.06}, {"unit": "points", "delta": 0.01}), beside(None, {})
    ('5.0 points (4.0 to 6.0 points)', '-')
    """
    if found is None:
        return "-"
    return f"{number(found['mean'], part)} ({interval({**part, **found})})"


def notes(claim: Json) -> list[str]:
    """What else must be said of a claim's runs: rates, ends of grids, divergence, failures."""
    rates, shared = (_listed(claim[name], "{:.3g}") for name in ("rates", "shared_rates"))
    found = {
        "Learning rates, tuned per cell on other seeds": rates,
        "One rate for all, where it was measured": shared,
        "Best rate at the end of its grid, also after it was extended": "; ".join(claim["rates_at_an_edge"]),
        "Runs that diverged, which count with the score they had": _listed(claim["diverged"], "{}"),
        "Measurements that failed": "; ".join(claim["failures"]),
    }
    return [f"{title}: {text}." for title, text in found.items() if text]


def _listed(found: Json, form: str) -> str:
    return "; ".join(f"{name}: {form.format(value)}" for name, value in found.items())


def bought(content: Json) -> str:
    """What the budget bought: seeds and the effects that would have been seen."""
    config = content["config"]
    parts = [part for claim in content["claims"] for part in claim["parts"] if part.get("detectable") is not None]
    if not parts:
        return ""
    seeds = [part["seeds"] for part in parts]
    ratio = statistics.median(part["detectable"] / part["delta"] for part in parts)
    return (
        f"Budget {config.get('budget')}: {min(seeds)} to {max(seeds)} seeds a number. Half of the numbers would show "
        f"an effect of {plain(ratio)} times the smallest one of interest in 80 of 100 runs; all "
        f"{config.get('family')} verdicts on the list together are wrong anywhere in at most 5 (Holm)."
    )


def counts(claims: Sequence[Json]) -> str:
    """How many claims got which verdict.

    >>> counts([{"verdict": "supported"}, {"verdict": "supported"}, {"verdict": "undecided"}])
    '2 supported, 1 undecided'
    """
    found = [claim["verdict"] for claim in claims]
    return ", ".join(f"{found.count(word)} {word}" for word in MARKS if word in found)


def figure(claim: Json) -> Figure:
    """The claim's figure: points with the middle half of the seeds, joined where x is a number."""
    data = claim["figure"]
    numeric = all(_is_number(point["x"]) for line in data["lines"] for point in line["points"])
    joined = numeric and not data["theory"]
    traces = [_line(line, i, numeric, joined) for i, line in enumerate(data["lines"])]
    traces += _theory(data["theory"])
    label = f"{data['y_title']} by {data['x_title']}. {data['caption']}"
    drawing = {"data": traces, "layout": _layout(data, numeric)}
    return Figure(claim["id"], claim["title"], (Panel(data["y_title"], label, drawing),), data["caption"])


def _layout(data: Json, numeric: bool) -> Json:
    x: Json = {"title": data["x_title"]}
    if not numeric:
        x["type"] = "category"
    elif data["log_x"]:
        x["type"] = "log"
    y: Json = {"type": "log", "exponentformat": "power"} if data["log_y"] else {}
    made = layout(HEIGHT, x, y, margin={"l": 50, "r": 8, "t": 8, "b": 90})
    made["showlegend"] = len(data["lines"]) + bool(data["theory"]) > 1
    made["legend"] = {"orientation": "h", "y": -0.28}
    return made


def _line(line: Json, index: int, numeric: bool, joined: bool) -> Json:
    color, points = COLORS[index % len(COLORS)], line["points"]
    points = sorted(points, key=lambda point: float(point["x"])) if numeric else points
    return {
        "type": "scatter",
        "mode": "lines+markers" if joined else "markers",
        "name": escape(line["name"] or "measured"),
        "x": [float(point["x"]) if numeric else escape(point["x"]) for point in points],
        "y": [point["mean"] for point in points],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, point["high"] - point["mean"]) for point in points],
            "arrayminus": [max(0.0, point["mean"] - point["low"]) for point in points],
            "color": color,
            "thickness": 1,
        },
        "line": {"color": color, "width": 2, "dash": DASHES[index % len(DASHES)]},
        "marker": {"color": color, "size": 8, "symbol": SYMBOLS[index % len(SYMBOLS)]},
    }


def _theory(points: list[Json]) -> list[Json]:
    if not points:
        return []
    line = {"color": MUTED, "width": 1.5, "dash": "dot"}
    x, y = [point["x"] for point in points], [point["y"] for point in points]
    return [{"type": "scatter", "mode": "lines", "name": "theory", "x": x, "y": y, "line": line, "hoverinfo": "skip"}]


def _sentence(part: Json) -> str:
    head = f"{part['name'][:1].upper()}{part['name'][1:]}: {part['verdict']}"
    if part["mean"] is None:
        return f"{head}, nothing was measured."
    text = f"{head}; {part['effect']}: {number(part['mean'], part)} ({interval(part)}, {part['seeds']} seeds"
    if part["verdict"] == "undecided" and part["detectable"] is not None:
        text += f"; an effect of {number(part['detectable'], part)} would have been seen"
    if part["half_length"]:
        text += f"; at half the training length {number(part['half_length']['mean'], part)}"
    if part["one_rate"]:
        text += f"; at one rate for all {number(part['one_rate']['mean'], part)}"
    return f"{text})."


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
