"""What a budget buys: how many seeds each experiment gets, fixed before the first of them runs."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from normwise.claims.claim import HALF, Experiment, bare
from normwise.errors import UsageError
from normwise.experiment.plan import parse_budget

QUICK = 240.0  # seconds that `--budget quick` plans for
HOUR = 2880.0  # seconds planned of the hour in which every experiment takes its own number of seeds
SHARE = 0.8  # of a budget that is planned; the rest is for what takes longer than thought
FEWEST = 2  # seeds of an experiment that trains
TUNING_SEEDS = 2
REFERENCE = 0.0055  # seconds that the steps of `pace` took on the machine of the recorded run
START = 8.0  # seconds until the workers have imported PyTorch


@dataclass(frozen=True)
class Schedule:
    """Seeds and tuning seeds of each experiment. No tuning seeds: the rates of the recorded run are taken.
    A `brief` one leaves out what stands beside the verdicts, half the length and one rate for all."""

    seeds: dict[str, int]
    tuning: dict[str, int]
    brief: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def seconds_of(budget: str) -> float:
    """The wall time that a budget plans for.

    >>> seconds_of("quick"), seconds_of("60m")
    (240.0, 2880.0)
    """
    if budget == "quick":
        return QUICK
    try:
        parsed = parse_budget(budget)
    except UsageError as error:
        raise UsageError(f"budget must be quick or a time like 90s, 20m or 1h, got {budget!r}") from error
    if parsed.in_trials:
        raise UsageError(f"claims are budgeted in time (quick, 20m, 1h), got {budget!r}")
    return SHARE * parsed.amount


def make_schedule(
    experiments: Sequence[Experiment], seconds: float, workers: int, pace: float = 1.0, known: Sequence[str] = ()
) -> Schedule:
    """Shares `seconds` of wall time out: exact experiments first, then the seeds of the others in proportion;
    no more than an hour's before an hour and its tuning are paid for.

    `pace` is how much slower this machine is than the recorded run's; `known` names experiments whose
    rates are shipped, which a short budget does not tune again.

    >>> exact = Experiment("a", print, ("x=1",), seconds=1.0, seeds=5, exact=True)
    >>> trained = Experiment("b", print, ("x=1", "x=2"), seconds=2.0, seeds=10)
    >>> make_schedule([exact, trained], 41, workers=1).seeds
    {'a': 5, 'b': 7}
    """
    free = max(0.0, seconds - START) * workers / max(pace, 0.1)
    trained = [one for one in experiments if not one.exact]
    free -= sum(price(one) * one.seeds for one in experiments if one.exact)
    if brief := sum(price(one) * FEWEST for one in trained) > free:
        trained = [bare(one) for one in trained]
    floor = sum(price(one) * FEWEST for one in trained)
    tunable = [one for one in trained if one.rates]
    tuned, tuning = {one.name: 0 for one in tunable}, 0.0
    for most in (TUNING_SEEDS, 1, 0):
        tuned = {one.name: min(one.tuning, most or int(one.name not in known)) for one in tunable}
        tuning = sum(tuned[one.name] * tuning_price(one) for one in tunable)
        if floor + 2 * tuning <= free:  # at least half of the time is for fresh seeds
            break
    factor = (free - tuning) / max(sum(price(one) * one.seeds for one in trained), 1e-9)
    factor = min(factor, max(1.0, seconds / HOUR))
    seeds = {one.name: one.seeds if one.exact else _clamp(factor * one.seeds, one.most) for one in experiments}
    return Schedule(seeds, tuned, brief)


def seconds_for(schedule: Schedule, experiments: Sequence[Experiment], workers: int, pace: float) -> float:
    """How long some of the experiments will take."""
    core = sum(
        price(bare(one) if schedule.brief else one) * schedule.seeds[one.name]
        + tuning_price(one) * schedule.tuning.get(one.name, 0)
        for one in experiments
    )
    return core * pace / workers + START


def price(experiment: Experiment) -> float:
    """Core-seconds of one seed. Half as long costs half; at one rate, half of the rivals have it already."""
    halves = sum(one.endswith(HALF) for one in experiment.cells)
    more = sum(map(len, experiment.rivals))
    return experiment.seconds * (len(experiment.cells) + (more - halves) / 2)


def tuning_price(experiment: Experiment) -> float:
    """Core-seconds of one tuning seed."""
    return experiment.seconds * len(experiment.rates) * len(tuned_cells(experiment))


def tuned_cells(experiment: Experiment) -> list[str]:
    """The cells that rates are tried on, each once."""
    return list(dict.fromkeys(experiment.rate_of(one) for one in experiment.cells)) if experiment.rates else []


def pace() -> float:
    """How many times longer than the recorded run's machine this one takes for a little training.

    >>> pace() > 0
    True
    """
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 144, 10))
    x, threads = torch.zeros(32, 1, 14, 14), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = [_seconds_of_steps(model, x) for _ in range(12)]  # the least: a neighbour comes and goes
        return min(times) / REFERENCE
    finally:
        torch.set_num_threads(threads)


def _seconds_of_steps(model: nn.Module, x: torch.Tensor) -> float:
    start = time.perf_counter()
    for _ in range(10):
        model(x).sum().backward()
    return time.perf_counter() - start


def _clamp(seeds: float, most: int) -> int:
    return min(most, max(FEWEST, int(seeds)))
