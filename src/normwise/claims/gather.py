"""Asks for an experiment's measurements: rates on tuning seeds first, then the cells on fresh seeds."""

import math
import statistics
from collections.abc import Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from normwise.claims.claim import Experiment, Measures, Run, settings
from normwise.claims.schedule import tuned_cells
from normwise.experiment.trial import Interrupted, Result, Trial, finite
from normwise.generators import reproducible

TUNING = 900  # the first tuning seed; fresh seeds are 1, 2, ...
BLOCK = 1000  # seeds of one master seed
NO_RATE = 1.0  # of what trains nothing: the ledger wants one above zero
WIDER = 2  # how often a grid is extended where its best rate is at an end


@dataclass(frozen=True)
class Gathered:
    """What is known of an experiment: per seed the measures of each cell, the rates taken, the failures; and the
    measures of rivals `at_one_rate`, the `shared` one."""

    seeds: dict[int, dict[str, Measures]]
    rates: dict[str, float]
    failures: tuple[str, ...] = ()
    edges: tuple[str, ...] = ()
    at_one_rate: dict[int, dict[str, Measures]] = field(default_factory=dict)
    shared: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """What an experiment asked for in the end, and with which rates: `shared` are those of rivals measured at one."""

    trials: tuple[Trial, ...] = ()
    rates: dict[str, float] = field(default_factory=dict)
    edges: tuple[str, ...] = ()
    rivals: tuple[Trial, ...] = ()
    shared: dict[str, float] = field(default_factory=dict)


Process = Generator[list[Trial], dict[Trial, Result], Asked]


@dataclass(frozen=True)
class Measuring:
    """What a worker runs: any cell of any experiment. It travels to the workers."""

    experiments: dict[str, Experiment]
    folder: Path

    def __call__(self, trial: Trial) -> Result:
        name, _, text = trial.arm.partition("/")
        run = Run(settings(text), trial.seed, trial.learning_rate, self.folder)
        with reproducible(trial.seed):
            measures = self.experiments[name].measure(run)
        return Result(trial, measures=finite(**measures))


def trial_of(experiment: Experiment, cell: str, seed: int, rate: float = 0.0) -> Trial:
    """The trial of a cell; a batch size is among its settings, if it has one."""
    return Trial(f"{experiment.name}/{cell}", 1, rate or NO_RATE, seed)


def gather(experiment: Experiment, seeds: int, tuning: int, master: int, known: Mapping[str, float]) -> Process:
    """The process that a `Driver` runs. `known` rates are taken where `tuning` is 0."""
    asked = Asked()
    with suppress(Interrupted):
        rates, edges = yield from _tune(experiment, tuning, master, known)
        own = {one: rates.get(experiment.rate_of(one), 0.0) for one in experiment.cells}
        shared = {one: middle([own[each] for each in group]) for group in experiment.rivals for one in group}
        fresh = range(master * BLOCK + 1, master * BLOCK + seeds + 1)
        trials, rivals = (
            tuple(trial_of(experiment, one, seed, rate) for seed in fresh for one, rate in given.items())
            for given in (own, shared)
        )
        asked = Asked(trials, rates, edges, rivals, shared)
        yield list(dict.fromkeys(trials + rivals))
    return asked


def middle(rates: Iterable[float]) -> float:
    """One rate for all: the half decade that is nearest to the middle of their own.

    >>> middle([0.032, 0.32]), middle([0.01])
    (0.1, 0.01)
    """
    logs = statistics.mean(math.log10(rate) for rate in rates)
    return float(f"{10 ** (round(2 * logs) / 2):.2g}")


def collect(results: Iterable[Result], asked: Asked) -> Gathered:
    """Orders results by seed and cell; a measurement that crashed is a failure with its reason."""
    known = {result.trial: result for result in results}
    failures = tuple(f"{t.arm}, seed {t.seed}: {one.reason}" for t, one in known.items() if one.failed)
    seeds, rivals = (_by_seed(known, trials) for trials in (asked.trials, asked.rivals))
    return Gathered(seeds, asked.rates, failures, asked.edges, rivals, asked.shared)


def _by_seed(known: Mapping[Trial, Result], trials: Iterable[Trial]) -> dict[int, dict[str, Measures]]:
    seeds: dict[int, dict[str, Measures]] = {}
    for trial in trials:
        if trial in known and not known[trial].failed:
            seeds.setdefault(trial.seed, {})[trial.arm.partition("/")[2]] = known[trial].measures
    return dict(sorted(seeds.items()))


def _tune(
    experiment: Experiment, tuning: int, master: int, known: Mapping[str, float]
) -> Generator[list[Trial], dict[Trial, Result], tuple[dict[str, float], tuple[str, ...]]]:
    """The best rate of each cell; a grid whose best value is an end is extended by half decades."""
    rates = {one: known[one] for one in tuned_cells(experiment) if not tuning and one in known}
    seeds = range(master * BLOCK + TUNING, master * BLOCK + TUNING + max(tuning, 1))
    grids = {one: list(experiment.rates) for one in tuned_cells(experiment) if one not in rates}
    scores: dict[tuple[str, float], float] = {}
    best: dict[str, float] = {}
    for _ in range(WIDER + 1):
        asked = [
            trial_of(experiment, one, seed, rate)
            for one, grid in grids.items()
            for rate in grid
            if (one, rate) not in scores
            for seed in seeds
        ]
        if not asked:
            break
        results = yield asked
        scores |= _means(experiment, results)
        best = {one: max(grid, key=lambda rate, one=one: scores.get((one, rate), -1e9)) for one, grid in grids.items()}
        grids = {one: _extended(grid, best[one]) for one, grid in grids.items()}
    tried = {one: [rate for cell, rate in scores if cell == one] for one in best}
    edges = tuple(one for one, rate in best.items() if rate in (min(tried[one]), max(tried[one])))
    return rates | best, edges


def _extended(grid: list[float], best: float) -> list[float]:
    if best == max(grid):
        return [*grid, float(f"{best * 10**0.5:.2g}")]
    return [float(f"{best / 10**0.5:.2g}"), *grid] if best == min(grid) else grid


def _means(experiment: Experiment, results: Mapping[Trial, Result]) -> dict[tuple[str, float], float]:
    found: dict[tuple[str, float], list[float]] = {}
    for trial, result in results.items():
        score = result.measures.get(experiment.score, -1e6)
        found.setdefault((trial.arm.partition("/")[2], trial.learning_rate), []).append(score)
    return {key: statistics.mean(values) for key, values in found.items()}
