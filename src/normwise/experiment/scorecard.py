"""The textbook's comparison table, measured: one column per arm, every number with unit and interval."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from normwise.experiment.arms import Arm
from normwise.experiment.contrast import interval
from normwise.experiment.evidence import Evidence
from normwise.experiment.notes import notes

Cell = dict[str, Any]
NOT_MEASURED: Cell = {"text": "not measured", "value": None, "low": None, "high": None, "note": None}


def cell(value: float | None, text: str, low: float | None = None, high: float | None = None) -> Cell:
    return {"text": text, "value": value, "low": low, "high": high, "note": None}


def from_values(values: Iterable[float], level: float, show: Callable[[float], str]) -> Cell:
    """Mean and t interval of a sample."""
    values = list(values)
    if not values:
        return NOT_MEASURED
    mean, low, high = interval(values, level)
    if low is None or high is None:
        return cell(mean, show(mean))
    return cell(mean, f"{show(mean)} ({show(low)} to {show(high)})", low, high)


@dataclass(frozen=True)
class Row:
    """One row of the table: how it is titled, how it was measured, and the function that fills a cell."""

    id: str
    title: str
    unit: str
    how: str
    fill: Callable[[Evidence, Arm, int], Cell]
    per_batch_size: bool = True
    # Where the row does not depend on the batch size: measured at the smallest.


def build_scorecard(evidence: Evidence) -> dict[str, Any]:
    """Fills the table: rows that depend on the batch size stand once for each."""
    rows = []
    for row in rows_for(evidence):
        sizes = evidence.plan.batch_sizes if row.per_batch_size else (min(evidence.plan.batch_sizes),)
        for size in sizes:
            rows.append(
                {
                    "id": row.id,
                    "title": row.title,
                    "unit": row.unit,
                    "how": row.how,
                    "batch_size": size if row.per_batch_size else None,
                    "cells": [row.fill(evidence, arm, size) for arm in evidence.arms],
                }
            )
    return {"arms": [arm.name for arm in evidence.arms], "rows": rows, "notes": notes(evidence)}


def rows_for(evidence: Evidence) -> list[Row]:
    """The rows in the textbook's order."""
    points = "points" if evidence.in_points else ""
    score_unit = "%" if evidence.in_points else ""
    return [
        Row("pools", "Averaged over", "", "by definition", lambda e, a, n: cell(None, a.pools), False),
        Row("score", f"Score ({evidence.score_name})", score_unit, "judge samples of fresh seeds, t interval", _score),
        Row("loss", "Log-loss", "nats", "judge samples; depends on the chosen rate", _of("judge_loss", ".3f")),
        Row("sensitivity", "Gain from smallest to largest batch", points,
            "score at the largest minus at the smallest batch size, paired by seed", _sensitivity, False),
        Row("values", "Values per statistic", "values",
            "of the layer with the fewest, counted from its input's shape in training", _values),
        Row("gap_statistics", "Lost by evaluation statistics", points,
            "score with the batch's statistics minus with the remembered ones, judge samples, paired", _lost),
        Row("gap_train", "Train minus judge", points,
            "score on as many training samples minus judge score, paired (regularization)", _gap),
        Row("worst", "Worst seed", score_unit, "lowest score of the race's seeds", _worst),
        Row("failures", "Failed seeds", "seeds", "diverged or crashed, of all seeds of the race", _failures),
        Row("step", "Training step", "ms", "median of four runs of 20 steps in a worker of one thread; range", _step),
        Row("inference", "Inference of one batch", "ms",
            "folded where it can be; median of 20 with quartiles, one thread, loss included", _inference),
        Row("size", "Parameters + buffers", "numbers", "of the whole network, before folding", _size, False),
        Row("growth", "Gradient growth per layer", "x",
            "factor of the squared gradient per norm layer towards the input, before training", _growth, False),
        Row("highest_rate", "Highest rate that trains", "",
            "100 steps at it lower the loss by a tenth; from the chosen rate up by factors of 3", _highest, False),
        Row("rate", "Chosen learning rate", "", "tuned on validation samples with seeds of its own", _rate),
    ]  # fmt: skip


def _points(evidence: Evidence) -> Callable[[float], str]:
    return (lambda x: f"{100 * x:.1f}") if evidence.in_points else (lambda x: f"{x:.3g}")


def _signed(evidence: Evidence) -> Callable[[float], str]:
    return (lambda x: f"{100 * x:+.1f}") if evidence.in_points else (lambda x: f"{x:+.3g}")


def _score(e: Evidence, arm: Arm, size: int) -> Cell:
    return from_values(e.measured(arm.name, size, "judge").values(), e.plan.level, _points(e))


def _of(name: str, form: str) -> Callable[[Evidence, Arm, int], Cell]:
    return lambda e, arm, size: from_values(
        e.measured(arm.name, size, name).values(), e.plan.level, lambda x: format(x, form)
    )


def _difference(e: Evidence, first: dict[int, float], second: dict[int, float]) -> Cell:
    """First minus second, turned so that positive says the first is better whatever the score."""
    sign = 1 if e.plan.higher_is_better else -1
    return from_values([sign * (first[s] - second[s]) for s in first if s in second], e.plan.level, _signed(e))


def _sensitivity(e: Evidence, arm: Arm, size: int) -> Cell:
    large, small = max(e.plan.batch_sizes), min(e.plan.batch_sizes)
    if large == small:
        return cell(None, "one batch size")
    return _difference(e, e.measured(arm.name, large, "judge"), e.measured(arm.name, small, "judge"))


def _values(e: Evidence, arm: Arm, size: int) -> Cell:
    if size not in arm.values:
        return NOT_MEASURED
    count = arm.values[size]
    return cell(float(count), f"{count}" if count else "none needed")


def _lost(e: Evidence, arm: Arm, size: int) -> Cell:
    batch = e.measured(arm.name, size, "batch_statistics")
    if not batch and e.race(arm.name, size):
        return cell(0.0, "0 (same statistics)") if arm.values else NOT_MEASURED
    return _difference(e, batch, e.measured(arm.name, size, "judge"))


def _gap(e: Evidence, arm: Arm, size: int) -> Cell:
    return _difference(e, e.measured(arm.name, size, "train"), e.measured(arm.name, size, "judge"))


def _worst(e: Evidence, arm: Arm, size: int) -> Cell:
    scores = e.measured(arm.name, size, "judge").values()
    if not scores:
        return NOT_MEASURED
    worst = min(scores) if e.plan.higher_is_better else max(scores)
    return cell(worst, _points(e)(worst))


def _failures(e: Evidence, arm: Arm, size: int) -> Cell:
    race = e.race(arm.name, size).values()
    failed = sum(r.failed for r in race)
    return cell(float(failed), f"{failed} of {len(race)}")


def _timed(e: Evidence, arm: Arm, size: int, name: str) -> Cell:
    chosen = e.plan.onednn.get((arm.name, size), True)
    for result in e.of_kind("calibrate", arm.name, size):
        if result.trial.onednn == chosen and result.trial.stack == 1 and name in result.measures:
            low, high = result.measures[f"{name}_low"], result.measures[f"{name}_high"]
            value = result.measures[name]
            return cell(value, f"{1e3 * value:.2f} ({1e3 * low:.2f} to {1e3 * high:.2f})", low, high)
    return NOT_MEASURED


def _step(e: Evidence, arm: Arm, size: int) -> Cell:
    return _timed(e, arm, size, "step")


def _inference(e: Evidence, arm: Arm, size: int) -> Cell:
    return _timed(e, arm, size, "inference")


def _size(e: Evidence, arm: Arm, size: int) -> Cell:
    if arm.parameters is None:
        return NOT_MEASURED
    return cell(float(arm.parameters), f"{arm.parameters:,} + {arm.buffers:,}")


def _probed(e: Evidence, arm: Arm, size: int, name: str, form: str) -> Cell:
    values = [r.measures[name] for r in e.of_kind("probe", arm.name, size) if name in r.measures]
    return from_values(values, e.plan.level, lambda x: format(x, form))


def _growth(e: Evidence, arm: Arm, size: int) -> Cell:
    return _probed(e, arm, size, "gradient_growth", ".2f")


def _highest(e: Evidence, arm: Arm, size: int) -> Cell:
    """The median over seeds; a seed where no rate from the chosen one up lowers the loss so soon counts as none."""
    probes = e.of_kind("probe", arm.name, size)
    values = sorted(r.measures.get("highest_rate", 0.0) for r in probes)
    if not values:
        return NOT_MEASURED
    low, middle, high = (f"{v:.3g}" if v else "none" for v in (values[0], values[len(values) // 2], values[-1]))
    return cell(values[len(values) // 2], f"{middle} ({low} to {high})", values[0], values[-1])


def _rate(e: Evidence, arm: Arm, size: int) -> Cell:
    rate = e.rates[arm.name, size]
    return cell(rate, f"{rate:.3g}")
