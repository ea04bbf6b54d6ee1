"""The drawing of a bench: a panel for each norm, a dot for each cell and peer, a line where both are as fast."""

from collections.abc import Sequence
from itertools import groupby
from math import log10
from typing import Any

from normwise.bench.peers import PEERS
from normwise.bench.summary import label
from normwise.report.draw import MUTED, Figure, Panel, around, escape, layout, log_ticks
from normwise.report.view import COLORS, SYMBOLS

Json = dict[str, Any]
LOSS = COLORS[1]
LOOKS = dict(zip(PEERS, zip((COLORS[0], *COLORS[2:]), SYMBOLS, strict=False), strict=False))
ROW, HEAD = 20, 110  # pixels


def figure(rows: Sequence[Json]) -> Figure | None:
    """Speed-ups on a logarithmic axis, losses in another colour; None where nothing was compared.

    >>> peer = {"state": "ok", "speedup": 0.5, "low": 0.4, "high": 0.6}
    >>> cell = {"norm": "batch", "dtype": "float32", "layout": "contiguous", "passes": "forward", "shape": [2, 4, 8]}
    >>> drawn = figure([cell | {"peers": {"eager": peer}}])
    >>> drawn.panels[0].label
    'batch, float32: 2x4x8 f: PyTorch eager 0.50x.'
    """
    known = [row for row in rows if any("speedup" in peer for peer in row["peers"].values())]
    panels = [_panel(title, list(part)) for title, part in groupby(known, lambda row: f"{row['norm']}, {row['dtype']}")]
    if not panels:
        return None
    return Figure(
        "speedups",
        "How much faster normwise is",
        tuple(panels),
        "A dot is the lower quartile of the peer's time divided by that of normwise's, its bar the rounds' range. "
        "Right of the line normwise is faster; where it is slower the dot is orange. "
        "f: forward, f+b: forward and backward, last: channels-last.",
    )


def _panel(title: str, rows: Sequence[Json]) -> Panel:
    labels = [label(row) for row in rows]
    values = [
        v for row in rows for peer in row["peers"].values() if "speedup" in peer for v in (peer["low"], peer["high"])
    ]
    span = around([0.0, *map(log10, values)])
    shown = [peer for peer in PEERS if any("speedup" in row["peers"].get(peer, {}) for row in rows)]
    said = "; ".join(f"{label(row)}: {', '.join(_said(row, shown))}" for row in rows)
    drawn = layout(
        HEAD + ROW * len(rows),
        {"title": "speed-up", "range": list(span), **log_ticks(span)},
        {"categoryorder": "array", "categoryarray": labels[::-1], "automargin": True},
        margin={"t": 40},
        showlegend=True,
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        shapes=[{"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1, "line": {"color": MUTED}}],
    )
    data = [trace for peer in shown for trace in _traces(peer, rows)]
    return Panel(title, f"{title}: {said}.", {"data": data, "layout": drawn})


def _said(row: Json, shown: Sequence[str]) -> list[str]:
    found = {peer: row["peers"].get(peer, {}) for peer in shown}
    return [f"{PEERS[peer].title} {known['speedup']:.2f}x" for peer, known in found.items() if "speedup" in known]


def _traces(peer: str, rows: Sequence[Json]) -> list[Json]:
    """The wins and the losses against a peer; a legend shows the wins' colour, also where there are none."""
    measured = [row for row in rows if "speedup" in row["peers"].get(peer, {})]
    color, symbol = LOOKS[peer]
    wins = [row for row in measured if row["peers"][peer]["speedup"] >= 1]
    losses = [row for row in measured if row["peers"][peer]["speedup"] < 1]
    made = [_trace(peer, wins or losses, color if wins else LOSS, symbol, True)]
    return made + ([_trace(peer, losses, LOSS, symbol, False)] if wins and losses else [])


def _trace(peer: str, rows: Sequence[Json], color: str, symbol: str, in_legend: bool) -> Json:
    found = [row["peers"][peer] for row in rows]
    said = [f"{PEERS[peer].title}, {label(row)}: {one['speedup']:.2f}x" for row, one in zip(rows, found, strict=True)]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": PEERS[peer].title,
        "legendgroup": peer,
        "showlegend": in_legend,
        "x": [one["speedup"] for one in found],
        "y": [label(row) for row in rows],
        "marker": {"color": color, "size": 9, "symbol": symbol},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [one["high"] - one["speedup"] for one in found],
            "arrayminus": [one["speedup"] - one["low"] for one in found],
            "color": color,
            "thickness": 1,
            "width": 0,
        },
        "hoverinfo": "text",
        "hovertext": [escape(text) for text in said],
    }
