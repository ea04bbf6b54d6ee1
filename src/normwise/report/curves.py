"""Learning curves of the race: medians and quartiles over seeds."""

import math
import statistics
from typing import NamedTuple

from normwise.report.draw import (
    BOTTOM,
    TOP,
    Figure,
    Json,
    Panel,
    around,
    end_labels,
    label_room,
    layout,
    line,
    log_ticks,
    veil,
)
from normwise.report.text import called, plain
from normwise.report.view import Arm, View

HEIGHT = 340


class Point(NamedTuple):
    """An epoch, and the quartiles of what the seeds had there."""

    epoch: float
    low: float
    median: float
    high: float


Curves = dict[str, list[Point]]


def curves(view: View) -> Figure | None:
    """Score on validation and training loss by epoch, as far as the run recorded them."""
    scores = {size: found for size in view.batch_sizes if (found := _curves(view, size, 2))}
    losses = {size: found for size in view.batch_sizes if (found := _curves(view, size, 1))}
    panels = [_score_panel(view, size, scores) for size in scores]
    panels += [_loss_panel(view, size, losses) for size in losses]
    if not panels:
        return None
    said = ["Lines are medians over seeds, bands quartiles; failed runs are left out."]
    said += [_sentence(view, size, found) for size, found in scores.items() if len(found) > 1]
    return Figure("curves", "Learning curves", tuple(panels), " ".join(said))


def _curves(view: View, size: int, column: int) -> Curves:
    """Per arm the quartiles of one column of the curves: 1 is the training loss, 2 the validation score."""
    seen: dict[str, dict[float, list[float]]] = {}
    runs = [row for row in view.race() if row["batch_size"] == size and row["status"] == "ok"]
    for row in runs:
        for point in row["curve"]:
            if point[column] is not None:
                seen.setdefault(row["arm"], {}).setdefault(point[0], []).append(point[column])
    found = {arm: [_point(epoch, seen[arm][epoch]) for epoch in sorted(seen[arm])] for arm in seen}
    return {arm: points for arm, points in found.items() if len(points) > 1}


def _point(epoch: float, values: list[float]) -> Point:
    if len(values) == 1:
        return Point(epoch, *values * 3)
    return Point(epoch, *statistics.quantiles(values, n=4, method="inclusive"))


def _values(every: dict[int, Curves]) -> list[float]:
    return [v for found in every.values() for points in found.values() for p in points for v in p[1:]]


def _score_panel(view: View, size: int, every: dict[int, Curves]) -> Panel:
    scale = view.scale
    span = around([value * scale.factor for value in _values(every)])
    shown = {arm: [Point(p[0], *(v * scale.factor for v in p[1:])) for p in ps] for arm, ps in every[size].items()}
    title = f"{scale.name} on validation" + (", %" if scale.points else "")
    return _panel(view, f"Batch size {size}: {title}", shown, span, logarithmic=False)


def _loss_panel(view: View, size: int, every: dict[int, Curves]) -> Panel:
    values = _values(every)
    logarithmic = min(values) > 0
    span = around([math.log10(value) for value in values] if logarithmic else values)
    return _panel(view, f"Batch size {size}: training loss", every[size], span, logarithmic=logarithmic)


def _panel(view: View, title: str, found: Curves, span: tuple[float, float], *, logarithmic: bool) -> Panel:
    data: list[Json] = []
    for name, points in found.items():
        data += _drawn(view.arms[name], points)
    # On a logarithmic axis plotly wants ends and annotations as exponents.
    ends = [
        (view.arms[name], ps[-1].epoch, math.log10(ps[-1].median) if logarithmic else ps[-1].median)
        for name, ps in found.items()
    ]
    margin = {"l": 44, "r": label_room([arm for arm, *_ in ends])}
    epochs = [point.epoch for points in found.values() for point in points]
    x = {"title": "epoch", "nticks": 6, "range": [min(epochs), max(epochs)]}
    y = {"range": list(span)} | (log_ticks(span) if logarithmic else {"nticks": 6})
    labels = end_labels(ends, span, HEIGHT - TOP - BOTTOM)
    said = "; ".join(f"{name} {plain(ps[-1].median)}" for name, ps in found.items())
    label = f"{title} by epoch, medians over seeds, at the end: {said}."
    return Panel(title, label, {"data": data, "layout": layout(HEIGHT, x, y, annotations=labels, margin=margin)})


def _drawn(arm: Arm, points: list[Point]) -> list[Json]:
    """A band as one closed outline, and the line of the medians."""
    epochs = [point.epoch for point in points]
    outline = {"x": epochs + epochs[::-1], "y": [p.high for p in points] + [p.low for p in reversed(points)]}
    looks = {"fill": "toself", "fillcolor": veil(arm.color), "line": {"width": 0}, "hoverinfo": "skip"}
    said = [f"{arm.name}, epoch {plain(p.epoch)}: {plain(p.median)}" for p in points]
    medians = line(arm, epochs, [p.median for p in points], said, mode="lines")
    return [{"type": "scatter", "mode": "lines"} | outline | looks, medians]


def _sentence(view: View, size: int, found: Curves) -> str:
    scale = view.scale
    half = {arm: points[(len(points) - 1) // 2].median for arm, points in found.items()}
    end = {arm: points[-1].median for arm, points in found.items()}
    pick = max if scale.higher_is_better else min
    first, best = pick(half, key=half.__getitem__), pick(end, key=end.__getitem__)
    early, late = (max(at.values()) - min(at.values()) for at in (half, end))
    then = "and at the end" if first == best else f"and {called(best)} at the end"
    return (
        f"Batch size {size}: {called(first)} leads at half of the training {then}; the arms lie "
        f"{scale.size(early)} apart at half of the training and {scale.size(late)} at its end."
    )
