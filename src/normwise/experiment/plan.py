"""The plan of a comparison: what will be run, fixed before it starts, so that the clock decides nothing later."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from normwise.errors import UsageError
from normwise.experiment.trial import Trial

USED_SHARE = 0.8  # of the budget: the rest is for what timing cannot foresee
Cell = tuple[str, int]
PER_CELL = ("onednn", "price", "stack", "channels_last")


@dataclass(frozen=True)
class Plan:
    """Everything the race needs to know. The same plan gives the same verdict on any number of workers.

    `rates` maps a batch size to its grid of learning rates (ascending, a factor of 3 apart); `costs`
    maps an arm to its inference cost (bytes plus operations of its norms after folding); `onednn`
    maps (arm, batch size) to the choice of convolution kernels for a network alone, `stack` to how many
    trials are at most trained as one network (1, or no entry: none) and `channels_last` to its memory
    layout; `price` is what a full-length trial
    of a cell costs and `allowance` what a batch size may spend after its first look, in the same
    unit (core-seconds as timed in the calibration, or trials). Scores are fractions; `delta` is in
    their unit.
    """

    arms: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    rates: dict[int, tuple[float, ...]]
    costs: dict[str, float]
    onednn: dict[Cell, bool]
    delta: float
    seed: int = 0
    higher_is_better: bool = True
    tuning_seeds: int = 2
    full_length_rates: int = 3
    short_length: float = 0.25
    looks: tuple[int, ...] = (8, 16, 24)
    length_check: bool = True
    level: float = 0.95
    failed_score: float = 0.0
    price: dict[Cell, float] = field(default_factory=dict)
    allowance: dict[int, float] = field(default_factory=dict)
    stack: dict[Cell, int] = field(default_factory=dict)
    channels_last: dict[Cell, bool] = field(default_factory=dict)

    def trial(self, arm: str, batch_size: int, rate: float, seed: int, length: float = 1.0) -> Trial:
        """A training run as this plan has it: stacked or alone, with which kernels."""
        stack = self.stack.get((arm, batch_size), 1)
        onednn = stack > 1 or self.onednn.get((arm, batch_size), True)
        layout = self.channels_last.get((arm, batch_size), False)
        return Trial(arm, batch_size, rate, seed, length, onednn, stack=stack, channels_last=layout)

    # Tuning seeds never meet race seeds: each stage has its own thousand.
    def short_seeds(self) -> range:
        return range(self.seed * 10_000 + 1_000, self.seed * 10_000 + 1_000 + self.tuning_seeds)

    def full_seeds(self) -> range:
        return range(self.seed * 10_000 + 2_000, self.seed * 10_000 + 2_000 + self.tuning_seeds)

    def race_seeds(self, until: int) -> range:
        return range(self.seed * 10_000, self.seed * 10_000 + until)

    def affords(self, batch_size: int, spent: Iterable[Trial], wanted: Iterable[Trial]) -> bool:
        """Whether the trials after the first look, those run and those wanted, stay within the allowance."""
        if batch_size not in self.allowance:
            return True
        return self.total([*spent, *wanted]) <= self.allowance[batch_size]

    def total(self, trials: Iterable[Trial]) -> float:
        """The price of some trials; those of other plans cost nothing here."""
        return sum(self.price.get((t.arm, t.batch_size), 0.0) * t.length for t in trials)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it: cells become rows of arm, batch size, value."""
        content = dataclasses.asdict(self)
        for name in PER_CELL:
            content[name] = [[arm, size, value] for (arm, size), value in content[name].items()]
        for name in ("rates", "allowance"):
            content[name] = [[size, value] for size, value in content[name].items()]
        return content

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Plan":
        """Reads what `to_dict` wrote."""
        content = dict(content)
        for name in PER_CELL:
            content[name] = {(arm, size): value for arm, size, value in content.get(name, ())}
        content["rates"] = {size: tuple(grid) for size, grid in content["rates"]}
        content["allowance"] = {size: value for size, value in content["allowance"]}
        for name in ("arms", "batch_sizes", "looks"):
            content[name] = tuple(content[name])
        return cls(**content)


@dataclass(frozen=True)
class Budget:
    """What the user allows: seconds of wall time, or a number of full-length trials."""

    amount: float
    in_trials: bool = False

    def __str__(self) -> str:
        return f"{self.amount:g}trials" if self.in_trials else f"{self.amount:g}s"


def parse_budget(text: str) -> Budget:
    """Reads 90s, 2m, 1h or 200trials.

    >>> parse_budget("2m"), parse_budget("200trials")
    (Budget(amount=120.0, in_trials=False), Budget(amount=200.0, in_trials=True))
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|trials?)", str(text).strip())
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"budget must be a time like 90s, 2m or 1h, or a number like 200trials, got {text!r}")
    amount, unit = float(match[1]), match[2]
    if unit.startswith("trial"):
        return Budget(amount, in_trials=True)
    return Budget(amount * {"s": 1, "m": 60, "h": 3600}[unit])


# In the order in which a short budget cuts; before them go the length check and the later looks.
TUNING = (
    {"tuning_seeds": 2, "grid": 5, "full_length_rates": 3},
    {"tuning_seeds": 2, "grid": 3, "full_length_rates": 2},
    {"tuning_seeds": 1, "grid": 3, "full_length_rates": 2},
)


def fit_to_budget(plan: Plan, budget: Budget, *, workers: int, overhead: float) -> Plan:
    """Cuts a full plan to the budget: length check, third look, second look, rates, tuning seeds.

    `overhead` is the wall time that is no trial of the race (start, calibration, probes, report).
    Never cut: the training length, the fresh seeds. What is left after the first look becomes the
    allowance of later looks and of the length check. Raises UsageError below one look of 8 seeds.
    """
    available = budget.amount if budget.in_trials else (USED_SHARE * budget.amount - overhead) * workers
    for cut in TUNING:
        candidate = _with_tuning(plan, cut)
        spare = available - first_look_price(candidate)
        if spare >= 0:
            return _with_allowance(candidate, spare)
    least = first_look_price(_with_tuning(plan, TUNING[-1]))
    needed = f"{math.ceil(least)}trials" if budget.in_trials else f"{_needed(least, workers, overhead)}s"
    raise UsageError(
        f"the budget {budget} is too small for one look of {plan.looks[0]} paired seeds at "
        f"{len(plan.arms)} arms x {len(plan.batch_sizes)} batch sizes; the smallest that works is {needed}"
    )


def _needed(price: float, workers: int, overhead: float) -> int:
    return math.ceil((price / workers + overhead) / USED_SHARE)


def _with_tuning(plan: Plan, cut: Mapping[str, int]) -> Plan:
    return replace(
        plan,
        tuning_seeds=cut["tuning_seeds"],
        full_length_rates=cut["full_length_rates"],
        rates={size: _middle(grid, cut["grid"]) for size, grid in plan.rates.items()},
    )


def _middle(grid: tuple[float, ...], count: int) -> tuple[float, ...]:
    start = max(0, len(grid) - count) // 2
    return grid[start : start + count]


def first_look_price(plan: Plan) -> float:
    """The price of tuning every cell and of its first look."""
    return sum(_cell_trials(plan, size) * plan.price[arm, size] for arm in plan.arms for size in plan.batch_sizes)


def _cell_trials(plan: Plan, batch_size: int) -> float:
    """Full-length trials that one cell needs up to its first look."""
    short = len(plan.rates[batch_size]) * plan.short_length
    return plan.tuning_seeds * (short + plan.full_length_rates) + plan.looks[0]


def _with_allowance(plan: Plan, spare: float) -> Plan:
    """Shares what is spare by price, and plans the looks that half of the arms could afford."""
    weights = {size: sum(plan.price[arm, size] for arm in plan.arms) for size in plan.batch_sizes}
    whole = sum(weights.values())
    later = {seeds: (seeds - plan.looks[0]) * whole / 2 for seeds in plan.looks}
    looks = tuple(seeds for seeds in plan.looks if later[seeds] <= spare)
    check = later[looks[-1]] + plan.looks[0] * _check_price(plan) <= spare
    allowance = {size: spare * weight / whole for size, weight in weights.items()}
    return replace(plan, looks=looks, length_check=check, allowance=allowance)


def _check_price(plan: Plan) -> float:
    """Per seed: two arms at twice the length, half of the arms at half the length."""
    half = 0.5 * 0.5 * sum(plan.price.values())
    double = sum(2 * 2 * max(plan.price[arm, size] for arm in plan.arms) for size in plan.batch_sizes)
    return half + double


def grid_around(rate: float, batch_size: int, count: int = 5) -> tuple[float, ...]:
    """Learning rates a factor of 3 apart, centred on `rate` (given for batch 32) times sqrt(batch size / 32).

    >>> [f"{r:.3g}" for r in grid_around(0.1, 32)]
    ['0.0111', '0.0333', '0.1', '0.3', '0.9']
    """
    centre = rate * math.sqrt(batch_size / 32)
    return tuple(float(f"{centre * 3.0**k:.4g}") for k in range(-(count // 2), count // 2 + 1))
