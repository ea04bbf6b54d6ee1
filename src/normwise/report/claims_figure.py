"""A claim's figure: lines over numbers, or names with their values beside them."""

import math
from typing import Any

from normwise.report.draw import MUTED, Figure, Panel, around, escape, layout
from normwise.report.text import plain
from normwise.report.view import COLORS, DASHES, SYMBOLS

Json = dict[str, Any]
HEIGHT = 330
LINE = 20  # pixels of a line of the legend; a phone has two names in one
BARS = "points are means over seeds, bars the middle half of them."


def figure(claim: Json) -> Figure:
    """The claim's figure: points with the middle half of the seeds, joined where x is a number."""
    data = claim["figure"]
    drawing = _numbers(data) if numeric(data) else _names(data)
    label = f"{data['y_title']} by {data['x_title']}. {data['caption']}"
    return Figure(claim["id"], claim["title"], (Panel(data["y_title"], label, drawing),), data["caption"])


def numeric(data: Json) -> bool:
    """Whether all x of the figure are numbers.

    >>> numeric({"lines": [{"points": [{"x": "8"}, {"x": "0.1"}]}]}), numeric({"lines": [{"points": [{"x": "batch"}]}]})
    (True, False)
    """
    return all(is_number(point["x"]) for line in data["lines"] for point in line["points"])


def places(data: Json) -> list[str]:
    """Every x of the figure, numbers in order.

    >>> places({"lines": [{"points": [{"x": "64"}, {"x": "8"}]}]})
    ['8', '64']
    """
    found = list(dict.fromkeys(point["x"] for line in data["lines"] for point in line["points"]))
    return sorted(found, key=float) if numeric(data) else found


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(data: Json) -> Json:
    """Lines over numbers; ticks where something was measured."""
    measured = [float(x) for x in places(data)]
    x: Json = {"title": data["x_title"], "tickvals": measured, "ticktext": list(map(plain, measured)), "tickangle": 0}
    y: Json = {"type": "log", "exponentformat": "power"} if data["log_y"] else {}
    if data["log_x"]:
        x["type"] = "log"
    traces = [_line(line, i, joined=not data["theory"]) for i, line in enumerate(data["lines"])]
    traces += _theory(data["theory"])
    return {"data": traces, "layout": _layout(HEIGHT, x, y, len(traces), left=50)}


def _line(line: Json, index: int, *, joined: bool) -> Json:
    points = sorted(line["points"], key=lambda point: float(point["x"]))
    looks = _looks(line, index)
    return looks | {
        "mode": "lines+markers" if joined else "markers",
        "x": [float(point["x"]) for point in points],
        "y": [point["mean"] for point in points],
        "error_y": _bars(points, looks),
        "line": {"color": looks["marker"]["color"], "width": 2, "dash": DASHES[index % len(DASHES)]},
    }


def _names(data: Json) -> Json:
    """A row for each name: a name of any length has room at the left, also on a phone."""
    names = places(data)
    traces = [_row(line, i, names) for i, line in enumerate(data["lines"])]
    y = {"type": "category", "categoryorder": "array", "categoryarray": [*map(escape, names)], "autorange": "reversed"}
    rows = len(names) * (22 + 8 * len(traces))
    drawn = _layout(50 + rows + _below(len(traces)), _values(data), y | {"automargin": True}, len(traces), left=8)
    return {"data": traces, "layout": drawn | {"scattermode": "group", "scattergap": 0.5}}


def _values(data: Json) -> Json:
    """The axis of values that stand beside names: as far as the points and their bars reach."""
    ends = [point[end] for line in data["lines"] for point in line["points"] for end in ("low", "mean", "high")]
    if data["log_y"]:
        return {"type": "log", "exponentformat": "power"}
    return {"nticks": 7, "range": around(ends)} if ends else {}


def _row(line: Json, index: int, names: list[str]) -> Json:
    points = sorted(line["points"], key=lambda point: names.index(point["x"]))
    looks = _looks(line, index)
    return looks | {
        "mode": "markers",
        "orientation": "h",
        "x": [point["mean"] for point in points],
        "y": [escape(point["x"]) for point in points],
        "error_x": _bars(points, looks),
    }


def _looks(line: Json, index: int) -> Json:
    color = COLORS[index % len(COLORS)]
    marker = {"color": color, "size": 8, "symbol": SYMBOLS[index % len(SYMBOLS)]}
    return {"type": "scatter", "name": escape(line["name"] or "measured"), "marker": marker}


def _bars(points: list[Json], looks: Json) -> Json:
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, point["high"] - point["mean"]) for point in points],
        "arrayminus": [max(0.0, point["mean"] - point["low"]) for point in points],
        "color": looks["marker"]["color"],
        "thickness": 1,
    }


def _layout(height: int, x: Json, y: Json, traces: int, *, left: int) -> Json:
    below = (52 if "title" in x else 30) + _below(traces)
    made = layout(height, x, y, margin={"l": left, "r": 14, "t": 8, "b": below})
    made["showlegend"] = traces > 1
    made["legend"] = {"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom"}
    return made


def _below(traces: int) -> int:
    """Room for the legend."""
    return LINE * (1 + math.ceil(traces / 2)) if traces > 1 else 0


def _theory(points: list[Json]) -> list[Json]:
    if not points:
        return []
    line = {"color": MUTED, "width": 1.5, "dash": "dot"}
    x, y = [point["x"] for point in points], [point["y"] for point in points]
    return [{"type": "scatter", "mode": "lines", "name": "theory", "x": x, "y": y, "line": line, "hoverinfo": "skip"}]
