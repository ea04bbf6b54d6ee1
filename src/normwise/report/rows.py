"""A panel of rows: for each arm a line of text and an interval below it."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from normwise.report.draw import BOTTOM, GRID, MUTED, SURFACE, TOP, Json, escape, layout
from normwise.report.view import Arm

HEIGHT = 48


class Row(NamedTuple):
    """One arm's line in a panel of rows: a value, perhaps its interval, perhaps single dots."""

    arm: Arm
    text: str
    value: float
    low: float | None = None
    high: float | None = None
    dots: tuple[float, ...] = ()
    hollow: bool = False


def rows_panel(rows: Sequence[Row], span: tuple[float, float], title: str, **more: Any) -> Json:
    """For each arm a line of text and an interval below it: with no margin for labels it fits a phone."""
    traces = [trace for i, row in enumerate(rows) for trace in _row(row, -i, span)]
    y = {"range": [-len(rows) + 0.45, 0.85], "visible": False}
    x = {"range": list(span), "title": title, "nticks": 7, "showgrid": False, "ticks": "outside"}
    x["tickcolor"] = GRID
    top = TOP if "annotations" in more else 4
    notes = [note for i, row in enumerate(rows) for note in _row_texts(row, -i)]
    notes += more.pop("annotations", [])
    height = HEIGHT * len(rows) + top + BOTTOM
    margin = {"l": 1, "r": 1, "t": top}
    return {"data": traces, "layout": layout(height, x, y, annotations=notes, margin=margin, **more)}


def _row(row: Row, y: float, span: tuple[float, float]) -> list[Json]:
    color, hover = row.arm.color, {"hoverinfo": "text", "hovertext": escape(f"{row.arm.name}: {row.text}")}
    inside = min(max(row.value, span[0]), span[1])
    symbol = row.arm.symbol
    if inside != row.value:
        symbol = "arrow-bar-left" if row.value < inside else "arrow-bar-right"
    traces: list[Json] = []
    if row.dots:
        jitter = [y + 0.14 * ((7 * i) % 5 - 3) / 2 for i in range(len(row.dots))]
        mark = {"color": color, "size": 7, "opacity": 0.45, "symbol": row.arm.symbol}
        traces.append({"type": "scatter", "mode": "markers", "x": list(row.dots), "y": jitter, "marker": mark} | hover)
    if row.low is not None and row.high is not None:
        ends = [max(row.low, span[0]), min(row.high, span[1])]
        line = {"color": color, "width": 3}
        traces.append({"type": "scatter", "mode": "lines", "x": ends, "y": [y, y], "line": line, "hoverinfo": "skip"})
    mark = {"size": 12, "symbol": symbol, "color": SURFACE if row.hollow else color}
    mark["line"] = {"color": color, "width": 2}
    point = {"type": "scatter", "mode": "markers", "name": escape(row.arm.name), "x": [inside], "y": [y]}
    return [*traces, point | {"marker": mark, "cliponaxis": False} | hover]


def _row_texts(row: Row, y: float) -> list[Json]:
    base = {"xref": "paper", "y": y, "yshift": 19, "showarrow": False, "yanchor": "middle"}
    name = base | {"x": 0, "xanchor": "left", "text": f"<b>{escape(row.arm.label)}</b>"}
    said = base | {"x": 1, "xanchor": "right", "text": escape(row.text), "font": {"color": MUTED, "size": 12}}
    return [name, said]


def reach(values: Sequence[float], least: float = 0.0) -> tuple[float, float]:
    """The range an axis shows: all values, unless one is so far out that it would hide the others."""
    far = max(8 * statistics.median(abs(v) for v in values), 1.5 * least)
    low = max(min(*values, -least), -far)
    high = min(max(*values, least), far)
    pad = 0.06 * (high - low) or 1.0
    return low - pad, high + pad
