"""Score against learning rate: what the tuning of each arm saw and what it chose."""

import math
import statistics
from collections.abc import Iterator
from typing import NamedTuple

from normwise.report.draw import INK, Figure, Json, Panel, around, escape, layout, line
from normwise.report.text import listing, plain
from normwise.report.view import Arm, View

HEIGHT = 270


class Line(NamedTuple):
    """The mean score at each learning rate of one arm, batch size and training length."""

    arm: str
    batch_size: int
    length: float
    scores: dict[float, float]


def rates(view: View) -> Figure | None:
    """One panel for each arm, since arms cross too often to share one."""
    lines = _lines(view)
    if not lines:
        return None
    names = {line.arm for line in lines}
    panels = tuple(_panel(view, arm, lines) for name, arm in view.arms.items() if name in names)
    said = "Filled points are full training, small hollow ones a short schedule, the star is the rate chosen; "
    said += "lines that leave the frame fall too low to show."
    return Figure("rates", "Score against learning rate", panels, f"{said} {_sentence(view, lines)}")


def _lines(view: View) -> list[Line]:
    seen: dict[tuple[str, int, float], dict[float, list[float]]] = {}
    for row in view.rows("rate"):
        if row["status"] == "ok" and "validation" in row["measures"]:
            scores = seen.setdefault((row["arm"], row["batch_size"], row["length"]), {})
            scores.setdefault(row["learning_rate"], []).append(row["measures"]["validation"])
    return [Line(*key, {r: statistics.mean(v) for r, v in sorted(by.items())}) for key, by in sorted(seen.items())]


def _panel(view: View, arm: Arm, every: list[Line]) -> Panel:
    scale, own = view.scale, [line for line in every if line.arm == arm.name]
    span = _span(view, every)
    grid = sorted({rate for line in every for rate in line.scores})
    stars = list(_stars(view, arm.name, own))
    data = [_drawn(view, arm, one) for one in own]
    data += [_star(view, arm, *star) for star in stars]
    ticks = grid[:: math.ceil(len(grid) / 6)]
    x: Json = {
        "title": "learning rate",
        "type": "log",
        "tickvals": ticks,
        "ticktext": [plain(r) for r in ticks],
    }
    x["range"] = list(around([math.log10(rate) for rate in grid]))
    labels = [_label(view, *star, place=i) for i, star in enumerate(stars)]
    y = {"range": list(span), "nticks": 5}
    margin = {"l": 40, "t": 12 + 17 * len(stars)}
    said = "; ".join(_said(view, one) for one in own)
    said += "".join(f"; chosen at batch size {size}: {plain(rate)}" for size, rate, _ in stars)
    figure = {"data": data, "layout": layout(HEIGHT, x, y, annotations=labels, margin=margin)}
    return Panel(arm.label, f"{arm.name}, {scale.name} on validation by learning rate: {said}.", figure)


def _span(view: View, lines: list[Line]) -> tuple[float, float]:
    """All scores at full length and three quarters of the rest: a rate that failed would hide the others."""
    every = [one.scores[rate] for one in lines for rate in one.scores]
    full = [score for one in lines if one.length >= 1 for score in one.scores.values()]
    if len(every) < 4:
        return around([score * view.scale.factor for score in every])
    low, _, high = statistics.quantiles(every, n=4)
    ends = (low, max(every)) if view.scale.higher_is_better else (min(every), high)
    return around([score * view.scale.factor for score in (*ends, *full)])


def _drawn(view: View, arm: Arm, one: Line) -> Json:
    full = one.length >= 1
    looks = {"color": arm.color, "width": 2 if full else 1, "dash": "solid" if full else "dot"}
    mark = {"color": arm.color, "size": 8 if full else 5, "symbol": arm.symbol + ("" if full else "-open")}
    start = f"{arm.name}, batch size {one.batch_size}, length {plain(one.length)}, rate"
    texts = [f"{start} {plain(rate)}: {view.scale.score(score)}" for rate, score in one.scores.items()]
    shown = [score * view.scale.factor for score in one.scores.values()]
    return line(arm, list(one.scores), shown, texts, line=looks, marker=mark)


def _stars(view: View, arm: str, lines: list[Line]) -> Iterator[tuple[int, float, float]]:
    """For each batch size: the rate chosen and its score at full length."""
    for one in lines:
        rate = view.found(arm, one.batch_size).get("learning_rate")
        if one.length >= 1 and rate in one.scores:
            yield one.batch_size, rate, one.scores[rate]


def _star(view: View, arm: Arm, size: int, rate: float, score: float) -> Json:
    mark = {"symbol": "star", "size": 15, "color": arm.color, "line": {"color": INK, "width": 1}}
    text = f"{arm.name}, batch size {size}: {plain(rate)} chosen, {view.scale.score(score)}"
    return line(arm, [rate], [score * view.scale.factor], [text], mode="markers", marker=mark)


def _label(view: View, size: int, rate: float, score: float, *, place: int) -> Json:
    # On a logarithmic axis plotly wants the place of an annotation as an exponent.
    at = {"x": math.log10(rate), "y": score * view.scale.factor}
    text = escape(f"batch size {size}")
    return at | {
        "text": text,
        "showarrow": True,
        "arrowhead": 0,
        "arrowwidth": 1,
        "ax": 0,
        "ay": -20 - 17 * place,
    }


def _said(view: View, one: Line) -> str:
    scores = ", ".join(f"{plain(rate)} gives {view.scale.score(score)}" for rate, score in one.scores.items())
    return f"batch size {one.batch_size} at length {plain(one.length)}: {scores}"


def _sentence(view: View, lines: list[Line]) -> str:
    return " ".join(_cell_sentence(view, size, lines) for size in sorted({one.batch_size for one in lines}))


def _cell_sentence(view: View, size: int, lines: list[Line]) -> str:
    names = dict.fromkeys(one.arm for one in lines if one.batch_size == size)
    chosen = {name: rate for name in names if (rate := view.found(name, size).get("learning_rate")) is not None}
    if not chosen:
        return f"Batch size {size}: no rate is chosen yet."
    low, high = min(chosen.values()), max(chosen.values())
    if low == high:
        return f"Batch size {size}: every arm chose {plain(low)}."
    least, most = ([name for name, rate in chosen.items() if rate == end] for end in (low, high))
    return (
        f"Batch size {size}: the rates chosen range from {plain(low)} ({listing(least)}) to {plain(high)} "
        f"({listing(most)}); one rate for all would have judged the rate, not the norm."
    )
