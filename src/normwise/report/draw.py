"""The building blocks of every figure: colours, layout, lines with direct labels."""

import html
import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from normwise.report.text import plain
from normwise.report.view import Arm

Json = dict[str, Any]

INK, MUTED, GRID, BAND, SURFACE = "#1b1f24", "#59636e", "#e4e7eb", "rgba(0,114,178,0.10)", "#ffffff"
ZERO = "#b9c6d2"  # lighter than text, which it may cross
TOP, BOTTOM = 26, 52


def veil(color: str) -> str:
    """A colour that what lies behind it shines through."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.14)"


# What each colour of a figure becomes on a dark page; all others are bright enough for both.
DARK = {
    INK: "#e6e9ed",
    MUTED: "#a4adb8",
    GRID: "#333b45",
    SURFACE: "#14181d",
    ZERO: "#3f5468",
    BAND: "rgba(86,180,233,0.16)",
    "#000000": "#ffffff",
    veil("#000000"): veil("#ffffff"),
    "#0072B2": "#3393cf",
    veil("#0072B2"): veil("#3393cf"),
}


class Panel(NamedTuple):
    """One drawing: a title, what a screen reader says, and plotly's figure."""

    title: str
    label: str
    figure: Json


class Figure(NamedTuple):
    """One figure of the page: panels side by side and the sentence under them."""

    id: str
    title: str
    panels: tuple[Panel, ...]
    sentence: str


def escape(text: str) -> str:
    """User text inside plotly, which reads a small HTML."""
    return html.escape(text, quote=False)


def layout(height: int, x: Json, y: Json, **more: Any) -> Json:
    """The layout every panel has: no frame, quiet grid, nothing to drag (a phone scrolls over it)."""
    axis = {
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": GRID,
        "fixedrange": True,
        "tickfont": {"color": MUTED},
    }
    margin = {"l": 8, "r": 8, "t": TOP, "b": BOTTOM} | more.pop("margin", {})
    return {
        "height": height,
        "margin": margin,
        "xaxis": axis | _titled(x),
        "yaxis": axis | _titled(y),
        "showlegend": False,
        "dragmode": False,
        "hovermode": "closest",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "hoverlabel": {"bgcolor": SURFACE, "font": {"color": INK}},
        **more,
    }


def _titled(axis: Json) -> Json:
    if "title" not in axis:
        return axis
    return axis | {"title": {"text": escape(axis["title"]), "font": {"size": 13, "color": MUTED}, "standoff": 8}}


def around(values: Sequence[float]) -> tuple[float, float]:
    """The range an axis shows: all values and a little air."""
    pad = 0.07 * (max(values) - min(values)) or abs(values[0]) * 0.1 or 1.0
    return min(values) - pad, max(values) + pad


def spread(places: Sequence[float], gap: float, room: float) -> list[float]:
    """Moves labels apart until none are nearer than `gap`, as little as possible, in order, within the room.

    >>> spread([10.0, 11.0, 50.0], gap=10, room=60)
    [5.5, 15.5, 50.0]
    >>> spread([1.0, 2.0], gap=10, room=60)
    [0.0, 10.0]
    """

    def start(block: list[int]) -> float:
        length = gap * (len(block) - 1)
        return max(0.0, min(statistics.mean(places[i] for i in block) - length / 2, room - length))

    order = sorted(range(len(places)), key=lambda i: places[i])
    blocks: list[list[int]] = []
    for index in order:
        blocks.append([index])
        while len(blocks) > 1 and start(blocks[-1]) < start(blocks[-2]) + gap * len(blocks[-2]):
            last = blocks.pop()
            blocks[-1] += last
    moved = list(places)
    for block in blocks:
        for rank, index in enumerate(block):
            moved[index] = start(block) + rank * gap
    return moved


def end_labels(ends: Sequence[tuple[Arm, float, float]], span: tuple[float, float], pixels: int) -> list[Json]:
    """The names of lines at their right ends (in axis coordinates), moved apart, with a thin leader each."""
    scale = pixels / (span[1] - span[0])
    places = [(span[1] - y) * scale for _, _, y in ends]
    moved = spread(places, gap=16, room=pixels)
    return [
        {
            "x": x,
            "y": y,
            "text": escape(arm.label),
            "ax": 20,
            "ay": new - old,
            "xanchor": "left",
            "showarrow": True,
            "arrowhead": 0,
            "arrowwidth": 1,
            "arrowcolor": arm.color,
            "standoff": 5,
        }
        for (arm, x, y), old, new in zip(ends, places, moved, strict=True)
    ]


def log_ticks(span: tuple[float, float]) -> Json:
    """A logarithmic axis with ticks a person would choose; its ends are given as exponents.

    >>> log_ticks((-2.0, 0.0))["ticktext"]
    ['0.01', '0.1', '1']
    """
    steps = (1, 2, 5) if span[1] - span[0] < 1.7 else (1,)
    ticks = [step * 10.0**power for power in range(math.floor(span[0]), math.ceil(span[1]) + 1) for step in steps]
    shown = [tick for tick in ticks if span[0] <= math.log10(tick) <= span[1]]
    return {"type": "log", "tickvals": shown, "ticktext": [plain(tick) for tick in shown]}


def label_room(arms: Sequence[Arm]) -> int:
    """The right margin in pixels that direct labels need."""
    return 30 + 7 * max((len(arm.label) for arm in arms), default=0)


def line(arm: Arm, x: Sequence[float], y: Sequence[float], said: Sequence[str], **more: Any) -> Json:
    """A line with markers in the looks of its arm."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": escape(arm.name),
        "x": list(x),
        "y": list(y),
        "line": {"color": arm.color, "width": 2, "dash": arm.dash},
        "marker": {"color": arm.color, "size": 7, "symbol": arm.symbol},
        "hoverinfo": "text",
        "hovertext": [escape(text) for text in said],
    } | more
