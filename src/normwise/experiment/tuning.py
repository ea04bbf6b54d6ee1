"""Learning rates, tuned inside each arm: a grid on short schedules, then its best at full length."""

from collections.abc import Generator, Iterable, Mapping
from typing import TypeVar

from normwise.experiment.plan import Plan
from normwise.experiment.trial import Result, Trial

Outcome = TypeVar("Outcome")
# Yields the trials it wants, is sent their results, returns what it concludes.
Steps = Generator[list[Trial], dict[Trial, Result], Outcome]
Rates = Mapping[str, Iterable[float]]
Table = dict[str, dict[float, float]]  # arm -> rate -> mean validation score, higher is better

FACTOR = 3.0
EXTENSIONS = 2  # at most so many rates past each side of the grid


def tune(plan: Plan, batch_size: int, spent: list[Trial]) -> Steps[dict[str, float]]:
    """Finds the learning rate of each arm; arms are not compared, they run side by side to share workers.

    `spent` collects the trials past the grid: no plan foresees them, so they are paid from the allowance.
    """
    table = yield from _full_length(plan, batch_size)
    while wanted := _outside(table, plan.rates[batch_size]):
        further = trials(plan, batch_size, wanted, plan.full_seeds())
        if not plan.affords(batch_size, spent, further):
            break
        spent += further
        for arm, scores in (yield from _measure(plan, further)).items():
            table[arm].update(scores)
    return {arm: choose(scores, plan.delta) for arm, scores in table.items()}


def choose(scores: Mapping[float, float], delta: float) -> float:
    """The smallest rate within half a delta of the best: the best one often stands at a cliff.

    >>> choose({0.01: 0.90, 0.03: 0.967, 0.1: 0.970, 0.3: 0.971}, delta=0.01)
    0.03
    """
    best = max(scores.values())
    return min(rate for rate, score in scores.items() if score >= best - delta / 2)


def outside(scores: Mapping[float, float], grid: Iterable[float]) -> list[float]:
    """The rates to try past the edge of the grid: one where the best rate, and it alone, is at the edge.

    >>> outside({0.1: 0.8, 0.3: 0.9}, grid=(0.03, 0.1, 0.3)), outside({0.1: 0.9, 0.3: 0.9}, (0.1, 0.3))
    ([0.9], [])
    """
    first, last = min(grid := list(grid)), max(grid)
    low, high = min(first, *scores), max(last, *scores)
    best = max(scores, key=lambda rate: scores[rate])
    if sum(score == scores[best] for score in scores.values()) > 1:
        return []
    below = [low / FACTOR] if best == low and sum(rate < first for rate in scores) < EXTENSIONS else []
    above = [high * FACTOR] if best == high and sum(rate > last for rate in scores) < EXTENSIONS else []
    return [float(f"{rate:.6g}") for rate in below + above]


def trials(plan: Plan, batch_size: int, rates: Rates, seeds: Iterable[int], length: float = 1.0) -> list[Trial]:
    """Every arm at its rates for every seed; seed by seed, so that an interrupted run is still paired."""
    return [
        plan.trial(arm, batch_size, rate, seed, length) for seed in seeds for arm, own in rates.items() for rate in own
    ]


def _full_length(plan: Plan, batch_size: int) -> Steps[Table]:
    """Full-length scores of the rates that are best on short schedules; few rates need no short ones."""
    grid = plan.rates[batch_size]
    chosen: dict[str, list[float]] = {arm: list(grid) for arm in plan.arms}
    if len(grid) > plan.full_length_rates:
        grid_trials = trials(plan, batch_size, chosen, plan.short_seeds(), plan.short_length)
        short = yield from _measure(plan, grid_trials)
        chosen = {arm: _best(scores, plan.full_length_rates) for arm, scores in short.items()}
    return (yield from _measure(plan, trials(plan, batch_size, chosen, plan.full_seeds())))


def _best(scores: Mapping[float, float], count: int) -> list[float]:
    return sorted(sorted(scores, key=lambda rate: (-scores[rate], rate))[:count])


def _outside(table: Table, grid: tuple[float, ...]) -> dict[str, list[float]]:
    wanted = {arm: outside(scores, grid) for arm, scores in table.items()}
    return {arm: rates for arm, rates in wanted.items() if rates}


def _measure(plan: Plan, wanted: list[Trial]) -> Steps[Table]:
    scores = _validation(plan, (yield wanted))
    table: dict[str, dict[float, list[float]]] = {}
    for trial in wanted:
        table.setdefault(trial.arm, {}).setdefault(trial.learning_rate, []).append(scores[trial])
    return {arm: {rate: sum(own) / len(own) for rate, own in sorted(by_rate.items())} for arm, by_rate in table.items()}


def _validation(plan: Plan, results: Mapping[Trial, Result]) -> dict[Trial, float]:
    """Oriented scores; a trial that could not be run counts as the worst there is."""
    sign = 1 if plan.higher_is_better else -1
    known = {
        trial: sign * result.measures["validation"]
        for trial, result in results.items()
        if "validation" in result.measures
    }
    worst = min([sign * plan.failed_score, *known.values()])
    return {trial: known.get(trial, worst) for trial in results}
