"""Figures that rank the arms: paired differences (the main figure), score per seed, log-loss."""

import statistics

from normwise.report.draw import BAND, MUTED, ZERO, Figure, Json, Panel, around
from normwise.report.rows import Row, reach, rows_panel
from normwise.report.text import called, count, decimal, listing
from normwise.report.view import View

OUT = {"worse": "dropped", "unstable": "unstable"}


def differences(view: View) -> Figure | None:
    """The main figure: each arm minus the named one, paired by seed, with the band of delta."""
    cells = [cell for cell in view.cells if _compared(view, cell)]
    if not cells:
        return None
    factor, delta = view.scale.factor, view.scale.factor * view.verdict["delta"]
    ends = [a["difference"][k] * factor for c in cells for a in _compared(view, c) for k in ("low", "high")]
    panels = [_difference_panel(view, cell, reach(ends, least=1.25 * delta), delta) for cell in cells]
    level = f"{100 * view.verdict['level']:g} %"
    said = f"Each arm minus the one named on the same seeds, with {level} intervals; hollow: dropped. "
    said += " ".join(_difference_sentence(view, cell) for cell in cells)
    return Figure("differences", "Paired differences", tuple(panels), said)


def _compared(view: View, cell: Json) -> list[Json]:
    return [arm for arm in view.spanned(cell, "difference") if arm["norm"] != cell["norm"]]


def _difference_panel(view: View, cell: Json, span: tuple[float, float], delta: float) -> Panel:
    named, scale = view.arms[cell["norm"]], view.scale
    compared = _compared(view, cell)
    arms = [arm for arm in view.known(cell) if arm["norm"] == cell["norm"] or arm in compared]
    rows = [_difference_row(view, cell, arm) for arm in arms]
    side = "right" if scale.higher_is_better else "left"
    axis = f"{scale.unit.strip() or scale.name}, arm minus {named.label} ({side} is better)"
    note = _band_label(delta, span, f"delta \u00b1{scale.size(cell['delta'])}")
    label = "; ".join(f"{row.arm.name} {row.text}" for row in rows)
    return Panel(
        f"Batch size {cell['batch_size']}",
        f"Batch size {cell['batch_size']}, difference to {cell['norm']} in {axis.split(',')[0]} "
        f"with {100 * cell['level']:g} % intervals: {label}.",
        rows_panel(rows, span, axis, shapes=_band(delta), annotations=[note]),
    )


def _band(delta: float) -> list[Json]:
    whole = {"xref": "x", "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
    band = {"type": "rect", "x0": -delta, "x1": delta, "fillcolor": BAND, "line": {"width": 0}}
    zero = {"type": "line", "x0": 0, "x1": 0, "line": {"color": ZERO, "width": 1}}
    return [whole | band, whole | zero]


def _band_label(delta: float, span: tuple[float, float], text: str) -> Json:
    """Over the middle of the band; where that is near an edge, inwards from it, so that nothing is cut off."""
    place = -span[0] / (span[1] - span[0])
    x, anchor = (-delta, "left") if place < 0.25 else (delta, "right") if place > 0.75 else (0, "center")
    where = {"x": x, "xanchor": anchor, "y": 1, "yref": "paper", "yanchor": "bottom"}
    return where | {"text": text, "showarrow": False, "font": {"color": MUTED, "size": 12}}


def _difference_row(view: View, cell: Json, arm: Json) -> Row:
    scale, looks, state = view.scale, view.arms[arm["norm"]], arm.get("state")
    said = OUT.get(state or "", "safe" if state == "safe" else "")
    tail = ", ".join(part for part in (f"n {arm['n']}", said) if part)
    if arm["norm"] == cell["norm"]:
        return Row(looks, f"{scale.score(arm['mean'])}, {tail}", 0.0)
    mean, low, high = (arm["difference"][key] for key in ("mean", "low", "high"))
    text = f"{scale.signed(mean)} ({scale.span(low, high)}), {tail}"
    factor = scale.factor
    return Row(looks, text, mean * factor, low * factor, high * factor, hollow=state in OUT)


def _difference_sentence(view: View, cell: Json) -> str:
    delta, sign = cell["delta"], 1 if view.scale.higher_is_better else -1
    compared = [arm for arm in _compared(view, cell) if arm.get("state") != "unstable"]
    could = [a["norm"] for a in compared if max(sign * a["difference"][k] for k in ("low", "high")) > delta]
    behind = [a["norm"] for a in compared if max(sign * a["difference"][k] for k in ("low", "high")) < 0]
    unstable = [a["norm"] for a in cell["arms"] if a.get("state") == "unstable"]
    reach = f"{listing(could)} {'reaches' if len(could) == 1 else 'reach'}" if could else "no arm reaches"
    parts = [f"{reach} beyond the band on the better side"]
    if behind:
        parts.append(f"{listing(behind)} {'lies' if len(behind) == 1 else 'lie'} wholly on the worse side of zero")
    if unstable:
        parts.append(f"{listing(unstable)} {'was' if len(unstable) == 1 else 'were'} put out as unstable")
    return f"Batch size {cell['batch_size']}: {'; '.join(parts)}."


Runs = dict[str, list[tuple[float, int]]]


def seeds(view: View) -> Figure | None:
    """Every single run of the race: how much one seed says."""
    runs: dict[int, Runs] = {}
    for row in view.race():
        if "judge" in row["measures"]:
            run = (row["measures"]["judge"], row["seed"])
            runs.setdefault(row["batch_size"], {}).setdefault(row["arm"], []).append(run)
    if not runs:
        return None
    every = [score * view.scale.factor for arms in runs.values() for arm in arms.values() for score, _ in arm]
    panels = tuple(_seed_panel(view, size, runs[size], around(every)) for size in sorted(runs))
    return Figure("seeds", "Score per seed", panels, _seed_sentence(view, runs))


def _seed_panel(view: View, size: int, arms: Runs, span: tuple[float, float]) -> Panel:
    scale = view.scale
    rows = [_seed_row(view, name, runs) for name, runs in arms.items()]
    rows.sort(key=lambda row: row.value, reverse=scale.higher_is_better)
    label = "; ".join(f"{row.arm.name} {row.text}" for row in rows)
    figure = rows_panel(rows, span, scale.name + (" in percent" if scale.points else ""))
    return Panel(f"Batch size {size}", f"Score of every seed at batch size {size}: {label}.", figure)


def _seed_row(view: View, name: str, runs: list[tuple[float, int]]) -> Row:
    scale = view.scale
    mean = sum(score for score, _ in runs) / len(runs)
    worst, seed = min(runs) if scale.higher_is_better else max(runs)
    text = f"{scale.score(mean)}, worst {scale.score(worst)} (seed {seed}), n {len(runs)}"
    dots = tuple(score * scale.factor for score, _ in runs)
    return Row(view.arms[name], text, mean * scale.factor, dots=dots)


def _seed_sentence(view: View, runs: dict[int, Runs]) -> str:
    wide = {
        (name, size): max(arm)[0] - min(arm)[0]
        for size, arms in runs.items()
        for name, arm in arms.items()
        if len(arm) > 1
    }
    if not wide:
        return "Each dot is one seed, the large mark the mean."
    (name, size), width = max(wide.items(), key=lambda item: item[1])
    typical = statistics.median_low(wide.values())
    return (
        "Each dot is one seed, the large mark the mean. One seed decides nothing: single runs of one arm lie "
        f"{view.scale.size(typical)} apart in the typical case and {view.scale.size(width)} at most "
        f"({called(name)}, batch size {size})."
    )


def losses(view: View) -> Figure | None:
    """Log-loss on judge: often separates arms that accuracy cannot."""
    cells = [cell for cell in view.cells if view.spanned(cell, "loss")]
    if not cells:
        return None
    ends = [arm["loss"][k] for cell in cells for arm in view.spanned(cell, "loss") for k in ("low", "high")]
    span = around(ends)
    said = " ".join(_loss_sentence(view, cell) for cell in cells)
    return Figure("losses", "Loss on judge", tuple(_loss_panel(view, cell, span) for cell in cells), said)


def _loss_panel(view: View, cell: Json, span: tuple[float, float]) -> Panel:
    arms = sorted(view.spanned(cell, "loss"), key=lambda arm: arm["loss"]["mean"])
    rows = []
    for arm in arms:
        mean, low, high = (arm["loss"][key] for key in ("mean", "low", "high"))
        text = f"{decimal(mean, 3)} ({decimal(low, 3)} to {decimal(high, 3)}), n {arm['n']}"
        rows.append(Row(view.arms[arm["norm"]], text, mean, low, high, hollow=arm.get("state") in OUT))
    label = "; ".join(f"{row.arm.name} {row.text}" for row in rows)
    size = cell["batch_size"]
    title = "mean loss on judge (left is better)"
    return Panel(f"Batch size {size}", f"Loss on judge at batch size {size}: {label}.", rows_panel(rows, span, title))


def _loss_sentence(view: View, cell: Json) -> str:
    first = min(view.spanned(cell, "loss"), key=lambda arm: arm["loss"]["mean"])["norm"]
    best = view.known(cell)[0]["norm"]
    agrees = f"as in {view.scale.name}" if first == best else f"while {called(best)} leads in {view.scale.name}"
    seen = count(len(view.spanned(cell, "loss")), "arm")
    return f"Batch size {cell['batch_size']}: {called(first)} has the lowest loss of {seen}, {agrees}."
