"""Figures that rank the arms: paired differences (the main figure), score per seed, log-loss."""

from normwise.report.draw import BAND, MUTED, ZERO, Figure, Json, Panel
from normwise.report.rows import Row, reach, rows_panel
from normwise.report.text import called, count, decimal, listing
from normwise.report.view import View

OUT = {"worse": "dropped", "unstable": "unstable"}


def differences(view: View) -> Figure | None:
    """The main figure: each arm minus the named one, paired by seed, with the band of delta."""
    cells = [cell for cell in view.cells if any(arm.get("difference") for arm in cell["arms"])]
    if not cells:
        return None
    factor, delta = view.scale.factor, view.scale.factor * view.verdict["delta"]
    ends = [a["difference"][k] * factor for c in cells for a in _compared(view, c) for k in ("low", "high")]
    panels = [_difference_panel(view, cell, reach(ends, least=1.25 * delta), delta) for cell in cells]
    said = (
        f"Each arm minus the one named, on the same seeds, with {100 * view.verdict['level']:g} % intervals; "
    )
    said += "hollow marks are arms that were dropped. "
    said += " ".join(_difference_sentence(view, cell) for cell in cells)
    return Figure("differences", "Paired differences", tuple(panels), said)


def _compared(view: View, cell: Json) -> list[Json]:
    return [arm for arm in view.known(cell, "difference") if arm["norm"] != cell["norm"]]


def _difference_panel(view: View, cell: Json, span: tuple[float, float], delta: float) -> Panel:
    named, scale = view.arms[cell["norm"]], view.scale
    arms = [a for a in view.known(cell) if a["norm"] == cell["norm"] or a.get("difference")]
    rows = [_difference_row(view, cell, arm) for arm in arms]
    side = "right" if scale.higher_is_better else "left"
    axis = f"{scale.unit.strip() or scale.name}, arm minus {named.label} ({side} is better)"
    band = {"type": "rect", "xref": "x", "yref": "paper", "x0": -delta, "x1": delta, "y0": 0, "y1": 1}
    zero = {"type": "line", "xref": "x", "yref": "paper", "x0": 0, "x1": 0, "y0": 0, "y1": 1}
    shapes = [
        band | {"fillcolor": BAND, "line": {"width": 0}, "layer": "below"},
        zero | {"line": {"color": ZERO, "width": 1}, "layer": "below"},
    ]
    note = {"x": 0, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
    note |= {"text": f"delta \u00b1{scale.size(cell['delta'])}", "font": {"color": MUTED, "size": 12}}
    label = "; ".join(f"{row.arm.name} {row.text}" for row in rows)
    return Panel(
        f"Batch size {cell['batch_size']}",
        f"Batch size {cell['batch_size']}, difference to {cell['norm']} in {axis.split(',')[0]} "
        f"with {100 * cell['level']:g} % intervals: {label}.",
        rows_panel(rows, span, axis, shapes=shapes, annotations=[note]),
    )


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
    reach = "reaches" if len(could) == 1 else "reach"
    who = listing(could) if could else "no arm"
    parts = [f"{who} {reach if could else 'reaches'} beyond the band on the better side"]
    if behind:
        parts.append(
            f"{listing(behind)} {'lies' if len(behind) == 1 else 'lie'} wholly on the worse side of zero"
        )
    if unstable:
        parts.append(f"{listing(unstable)} {'was' if len(unstable) == 1 else 'were'} put out as unstable")
    return f"Batch size {cell['batch_size']}: {'; '.join(parts)}."


def seeds(view: View) -> Figure | None:
    """Every single run of the race: how much one seed says."""
    scale, runs = view.scale, {}
    for row in view.rows("race"):
        if row["length"] == 1 and "judge" in row["measures"]:
            run = (row["measures"]["judge"], row["seed"])
            runs.setdefault(row["batch_size"], {}).setdefault(row["arm"], []).append(run)
    if not runs:
        return None
    every = [score * scale.factor for arms in runs.values() for arm in arms.values() for score, _ in arm]
    low, high = min(every), max(every)
    pad = 0.05 * (high - low) or 1.0
    panels = [_seed_panel(view, size, runs[size], (low - pad, high + pad)) for size in sorted(runs)]
    return Figure("seeds", "Score per seed", tuple(panels), _seed_sentence(view, runs))


def _seed_panel(view: View, size: int, arms: dict[str, list], span: tuple[float, float]) -> Panel:
    scale = view.scale
    best, worst = (max, min) if scale.higher_is_better else (min, max)
    rows = []
    for name, runs in arms.items():
        scores = [score for score, _ in runs]
        mean = sum(scores) / len(scores)
        lowest = worst(runs)
        text = f"{scale.score(mean)}, worst {scale.score(lowest[0])} (seed {lowest[1]}), n {len(runs)}"
        dots = tuple(score * scale.factor for score in scores)
        rows.append((mean, Row(view.arms[name], text, mean * scale.factor, dots=dots)))
    rows.sort(key=lambda pair: pair[0], reverse=best is max)
    label = "; ".join(f"{row.arm.name} {row.text}" for _, row in rows)
    title = scale.name + (" in percent" if scale.points else "")
    return Panel(
        f"Batch size {size}",
        f"Score of every seed at batch size {size}: {label}.",
        rows_panel([row for _, row in rows], span, title),
    )


def _seed_sentence(view: View, runs: dict[int, dict[str, list]]) -> str:
    wide = {
        (name, size): max(arm)[0] - min(arm)[0]
        for size, arms in runs.items()
        for name, arm in arms.items()
        if len(arm) > 1
    }
    if not wide:
        return "Each dot is one seed, the large mark the mean."
    (name, size), width = max(wide.items(), key=lambda item: item[1])
    typical = sorted(wide.values())[len(wide) // 2]
    return (
        "Each dot is one seed, the large mark the mean. One seed decides nothing: single runs of one arm lie "
        f"{view.scale.size(typical)} apart in the typical case and {view.scale.size(width)} at most "
        f"({called(name)}, batch size {size})."
    )


def losses(view: View) -> Figure | None:
    """Log-loss on judge: often separates arms that accuracy cannot."""
    cells = [cell for cell in view.cells if any(arm.get("loss") for arm in cell["arms"])]
    if not cells:
        return None
    ends = [arm["loss"][k] for cell in cells for arm in view.known(cell, "loss") for k in ("low", "high")]
    pad = 0.05 * (max(ends) - min(ends)) or 1.0
    span = (min(ends) - pad, max(ends) + pad)
    said = " ".join(_loss_sentence(view, cell) for cell in cells)
    return Figure("losses", "Loss on judge", tuple(_loss_panel(view, cell, span) for cell in cells), said)


def _loss_panel(view: View, cell: Json, span: tuple[float, float]) -> Panel:
    arms = sorted(view.known(cell, "loss"), key=lambda arm: arm["loss"]["mean"])
    rows = []
    for arm in arms:
        mean, low, high = (arm["loss"][key] for key in ("mean", "low", "high"))
        text = f"{decimal(mean, 3)} ({decimal(low, 3)} to {decimal(high, 3)}), n {arm['n']}"
        rows.append(Row(view.arms[arm["norm"]], text, mean, low, high, hollow=arm.get("state") in OUT))
    label = "; ".join(f"{row.arm.name} {row.text}" for row in rows)
    size = cell["batch_size"]
    title = "mean loss on judge (left is better)"
    return Panel(
        f"Batch size {size}", f"Loss on judge at batch size {size}: {label}.", rows_panel(rows, span, title)
    )


def _loss_sentence(view: View, cell: Json) -> str:
    first = min(view.known(cell, "loss"), key=lambda arm: arm["loss"]["mean"])["norm"]
    best = view.known(cell)[0]["norm"]
    agrees = (
        f"as in {view.scale.name}" if first == best else f"while {called(best)} leads in {view.scale.name}"
    )
    seen = count(len(view.known(cell, "loss")), "arm")
    return f"Batch size {cell['batch_size']}: {called(first)} has the lowest loss of {seen}, {agrees}."
