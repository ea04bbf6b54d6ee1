"""Score against what a user may choose or pay: the batch size, and the cost of inference."""

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
)
from normwise.report.text import amount, called, listing
from normwise.report.view import Arm, View

HEIGHT = 340


def sizes(view: View) -> Figure | None:
    """Score against batch size, one line for each arm."""
    if len(view.cells) < 2:
        return None
    scale, cells = view.scale, sorted(view.cells, key=lambda cell: cell["batch_size"])
    places = {cell["batch_size"]: i for i, cell in enumerate(cells)}
    found: dict[str, list[tuple[int, Json]]] = {}
    for cell in cells:
        for arm in view.known(cell):
            found.setdefault(arm["norm"], []).append((cell["batch_size"], arm))
    every = [
        a[k] * scale.factor for seen in found.values() for _, a in seen for k in ("low", "high") if a[k] is not None
    ]
    span = around(every or [0.0])
    # Side by side, or the intervals of several arms would hide each other.
    aside = {name: 0.02 * (i - (len(found) - 1) / 2) * (len(places) - 1) for i, name in enumerate(found)}
    data = [
        _size_line(view, view.arms[name], seen, [places[size] + aside[name] for size, _ in seen])
        for name, seen in found.items()
    ]
    ends = [(view.arms[n], places[s[-1][0]] + aside[n], s[-1][1]["mean"] * scale.factor) for n, s in found.items()]
    labels = end_labels(ends, span, HEIGHT - TOP - BOTTOM)
    ticks = {"tickvals": list(places.values()), "ticktext": [str(size) for size in places]}
    x = {"title": "batch size", "range": [-0.12, len(places) - 1 + 0.1], **ticks}
    margin = {"l": 44, "r": label_room([arm for arm, *_ in ends])}
    made = layout(HEIGHT, x, {"range": list(span), "nticks": 6}, annotations=labels, margin=margin)
    title = scale.name + (", %" if scale.points else "")
    said = "; ".join(
        f"{name} " + ", ".join(f"{scale.score(arm['mean'])} at {size}" for size, arm in seen)
        for name, seen in found.items()
    )
    panel = Panel(title, f"Score against batch size: {said}.", {"data": data, "layout": made})
    return Figure("sizes", "Score against batch size", (panel,), _size_sentence(view, found))


def _size_line(view: View, arm: Arm, seen: list[tuple[int, Json]], x: list[float]) -> Json:
    scale = view.scale
    means = [a["mean"] * scale.factor for _, a in seen]
    bars = {
        "type": "data",
        "symmetric": False,
        "array": [((a["high"] if a["high"] is not None else a["mean"]) - a["mean"]) * scale.factor for _, a in seen],
        "arrayminus": [(a["mean"] - (a["low"] if a["low"] is not None else a["mean"])) * scale.factor for _, a in seen],
        "color": arm.color,
        "thickness": 1,
        "width": 3,
    }
    said = [f"{arm.name}, batch size {size}: {scale.score(a['mean'])}" for size, a in seen]
    return line(arm, x, means, said, error_y=bars)


def _size_sentence(view: View, found: dict[str, list[tuple[int, Json]]]) -> str:
    moves = {
        name: max(a["mean"] for _, a in seen) - min(a["mean"] for _, a in seen)
        for name, seen in found.items()
        if len(seen) > 1
    }
    if len(moves) < 2:
        return "Bars are intervals of the mean."
    most, least = max(moves, key=moves.__getitem__), min(moves, key=moves.__getitem__)
    far, near = (view.scale.size(moves[name]) for name in (most, least))
    return (
        f"{called(most)} depends most on the batch size ({far} between its best and its worst), "
        f"{called(least)} least ({near}). Bars are intervals of the mean."
    )


def cost(view: View) -> Figure | None:
    """Score against the cost of inference after folding."""
    cells = [cell for cell in view.cells if len(view.known(cell, "cost")) > 1]
    if not cells or not view.priced:
        return None
    panels = tuple(_cost_panel(view, cell) for cell in cells)
    return Figure("cost", "Score against cost", panels, " ".join(_cost_sentence(view, c) for c in cells))


def _cost_panel(view: View, cell: Json) -> Panel:
    scale, arms, size = view.scale, view.known(cell, "cost"), cell["batch_size"]
    ys = [arm["mean"] * scale.factor for arm in arms]
    wide = max(arm["cost"] for arm in arms) - min(arm["cost"] for arm in arms)
    span = around(ys)
    data, labels = [], []
    for arm, y in zip(arms, ys, strict=True):
        looks = view.arms[arm["norm"]]
        said = f"{arm['norm']}: {scale.score(arm['mean'])}, cost {amount(arm['cost'])}"
        data.append(line(looks, [arm["cost"]], [y], [said], mode="markers"))
    for at in _columns([arm["cost"] for arm in arms], 0.2 * wide):
        ends = [(view.arms[arms[i]["norm"]], arms[i]["cost"], ys[i]) for i in at]
        labels += end_labels(ends, span, HEIGHT - TOP - BOTTOM)
    x: Json = {"title": "bytes and operations a sample, folded", "nticks": 5, "tickformat": "~s"}
    low = min(arm["cost"] for arm in arms)
    x["range"] = [low - 0.06 * wide, low + 1.06 * wide]
    margin = {"l": 44, "r": label_room([view.arms[arm["norm"]] for arm in arms])}
    made = layout(HEIGHT, x, {"range": list(span), "nticks": 6}, annotations=labels, margin=margin)
    said = "; ".join(f"{a['norm']} cost {amount(a['cost'])}, {scale.score(a['mean'])}" for a in arms)
    title = f"Batch size {size}: {scale.name}" + (", %" if scale.points else "")
    return Panel(title, f"Score against cost at batch size {size}: {said}.", {"data": data, "layout": made})


def _columns(costs: list[float], near: float) -> list[list[int]]:
    """Points whose labels would stand in one column."""
    columns: list[list[int]] = []
    for index in sorted(range(len(costs)), key=lambda i: costs[i]):
        if columns and costs[index] - costs[columns[-1][-1]] <= near:
            columns[-1].append(index)
        else:
            columns.append([index])
    return columns


def _cost_sentence(view: View, cell: Json) -> str:
    arms = view.known(cell, "cost")
    cheapest = min(arm["cost"] for arm in arms)
    cheap = [arm["norm"] for arm in arms if arm["cost"] == cheapest]
    best = arms[0]
    lost = abs(best["mean"] - next(arm for arm in arms if arm["norm"] == cheap[0])["mean"])
    if best["norm"] in cheap:
        return f"Batch size {cell['batch_size']}: {called(best['norm'])} has the best mean, no arm is cheaper."
    return (
        f"Batch size {cell['batch_size']}: the best mean is that of {called(best['norm'])}; the cheapest "
        f"{'arm is' if len(cheap) == 1 else 'arms are'} {listing(cheap)}, where the better one has a mean "
        f"{view.scale.size(lost)} behind it."
    )
