"""From a request to a plan: times every cell for a few steps and cuts the comparison to the budget."""

import itertools
import math
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

from normwise.errors import UsageError
from normwise.experiment.arms import Arm
from normwise.experiment.drive import Driver, ask
from normwise.experiment.plan import Budget, Cell, Plan, fit_to_budget, grid_around
from normwise.experiment.request import parse_delta, parse_stack
from normwise.experiment.task import Task
from normwise.experiment.trial import Result, Trial

CALIBRATION_SEED = 9_000
PROBE_SEEDS = 4
# Start of the workers, probes, report: wall seconds that are no trial of the race (measured on digits).
START, PROBES_PER_ARM, REPORT = 6.0, 1.5, 6.0


class Way(NamedTuple):
    """How trials may be trained: with which convolution kernels, how many as one network, in which layout."""

    onednn: bool = True
    stack: int = 1
    channels_last: bool = False


ALONE = Way(), Way(onednn=False)


@dataclass(frozen=True)
class Ask:
    """What the plan is made for."""

    task: Task
    arms: tuple[Arm, ...]
    batch_sizes: tuple[int, ...]
    budget: Budget
    delta: str | None
    seed: int
    workers: int
    stack: str = "auto"


def make_plan(wanted: Ask, driver: Driver, elapsed: float) -> Plan:
    """Calibrates and plans. `elapsed`: the wall seconds already spent when this was called.

    Raises UsageError where the budget is too small or no delta is known.
    """
    names, sizes = tuple(arm.name for arm in wanted.arms), wanted.batch_sizes
    rates = {size: grid_around(wanted.task.lr, size) for size in sizes}
    base = _base(wanted)
    cells = list(itertools.product(names, sizes))
    ways = _ways(wanted)
    trials = {
        (cell, way): Trial(*cell, rates[cell[1]][2], base + CALIBRATION_SEED, kind="calibrate", **way._asdict())
        for cell in cells
        for way in ways
    }
    if wanted.budget.in_trials:
        counted = Plan(names, sizes, rates, {}, {}, delta=0.0, price=dict.fromkeys(cells, 1.0))
        fit_to_budget(counted, wanted.budget, workers=wanted.workers, overhead=0.0)
    times = driver.run({"calibrate": ask(list(trials.values()))})["calibrate"]
    seconds = {which: _full_length(times[trial]) for which, trial in trials.items()}
    alone = {cell: min(ALONE, key=lambda way, cell=cell: seconds.get((cell, way), math.inf)) for cell in cells}
    chosen = {cell: _chosen(cell, alone[cell], ways, seconds, wanted.stack) for cell in cells}
    onednn = {cell: way.onednn for cell, way in alone.items()}
    price = {cell: 1.0 if wanted.budget.in_trials else seconds[cell, chosen[cell]] for cell in cells}
    plan = Plan(
        arms=names,
        batch_sizes=sizes,
        rates=rates,
        costs={arm.name: arm.cost for arm in wanted.arms},
        onednn=onednn,
        delta=_delta(wanted, driver, rates, onednn),
        seed=wanted.seed,
        higher_is_better=wanted.task.higher_is_better,
        failed_score=wanted.task.failed_score,
        price=price,
        stack={cell: way.stack for cell, way in chosen.items() if way.stack > 1},
        channels_last={cell: True for cell, way in chosen.items() if way.channels_last},
    )
    calibration = sum(result.seconds for result in times.values()) / wanted.workers
    overhead = START + REPORT + PROBES_PER_ARM * len(names) + max(elapsed, calibration)
    return fit_to_budget(plan, wanted.budget, workers=wanted.workers, overhead=overhead)


def _base(wanted: Ask) -> int:
    return wanted.seed * 10_000


def _ways(wanted: Ask) -> tuple[Way, ...]:
    """With and without oneDNN alone; stacked only with it, as grouped convolutions are slower without."""
    if wanted.task.own_loop is not None:
        return ALONE[:1]
    largest, _ = parse_stack(wanted.stack)
    return ALONE if largest == 1 else (*ALONE, Way(stack=largest), Way(stack=largest, channels_last=True))


def _chosen(cell: Cell, alone: Way, ways: tuple[Way, ...], seconds: dict[tuple[Cell, Way], float], stack: str) -> Way:
    """The stack where it can be had and, unless the user named a number, was timed to be faster."""
    stacked = min((way for way in ways if way.stack > 1), key=lambda way: seconds[cell, way], default=alone)
    if math.isinf(seconds[cell, stacked]):
        return alone
    _, by_timing = parse_stack(stack)
    return alone if by_timing and seconds[cell, stacked] >= seconds[cell, alone] else stacked


def _full_length(result: Result) -> float:
    """The seconds of a full-length trial; infinite where trials of this kind cannot be stacked."""
    if "full_length" not in result.measures and result.trial.stack > 1:
        return math.inf
    if "full_length" not in result.measures:
        trial = result.trial
        reason = (result.reason.splitlines() or ["no reason was given"])[0]
        raise UsageError(
            f"--norm {trial.arm} at batch size {trial.batch_size} cannot run: {reason} (more in workers.log of the run)"
        )
    return result.measures["full_length"]


def _delta(wanted: Ask, driver: Driver, rates: dict[int, tuple[float, ...]], onednn: dict[Any, bool]) -> float:
    """The smallest effect of interest: the user's, the task's, or 0.01 for accuracy and R^2."""
    absolute, share = parse_delta(wanted.delta)
    if share is not None:
        return float(f"{share * abs(_reference_score(wanted, driver, rates, onednn)):.3g}")
    delta = absolute if absolute is not None else wanted.task.delta
    if delta is not None and delta >= 1 and wanted.task.score_name == "accuracy":
        raise UsageError(f"delta must be below 1, as accuracy is a fraction (one point is 0.01), got {delta:g}")
    if delta is None:
        raise UsageError(
            f"the smallest difference of interest must be given for the score {wanted.task.score_name!r}: "
            "set --delta (a number in its unit, or 2% of the reference arm's score) or the task's delta"
        )
    return delta


def _reference_score(
    wanted: Ask, driver: Driver, rates: dict[int, tuple[float, ...]], onednn: dict[Any, bool]
) -> float:
    """The first arm's mean score at the first batch size and the middle rate, two trials at full length."""
    arm, size = wanted.arms[0].name, wanted.batch_sizes[0]
    trials = [
        Trial(arm, size, rates[size][2], _base(wanted) + CALIBRATION_SEED + k, onednn=onednn[arm, size]) for k in (1, 2)
    ]
    results = driver.run({"reference": ask(trials)})["reference"]
    scores = [r.measures.get("judge", wanted.task.failed_score) for r in results.values()]
    return sum(scores) / len(scores)


def probe_trials(plan: Plan, rates: dict[tuple[str, int], float]) -> list[Trial]:
    """Gradient growth and highest rate, at the smallest batch size, over a few fresh seeds."""
    size = min(plan.batch_sizes)
    return [
        Trial(arm, size, rates[arm, size], plan.seed * 10_000 + 3_000 + k, 1.0, plan.onednn[arm, size], "probe")
        for k in range(PROBE_SEEDS)
        for arm in plan.arms
        if (arm, size) in rates
    ]


def default_workers() -> int:
    """One a core this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
