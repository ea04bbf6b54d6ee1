"""Paired contrasts: t intervals on scores of the same seeds, and the two tests a race decides by."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
from scipy.special import stdtrit

Arm = TypeVar("Arm", bound=Hashable)
Values = Sequence[float] | np.ndarray


class Interval(NamedTuple):
    """A mean with the ends of its interval; there are none where one value is all there is."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Rule:
    """How strict a race is: what it pays for looking `looks` times at `arms` arms.

    Higher is better in all scores. "Worse" pays for every directed pair of arms, because the leader is
    chosen from the data; "safe" pays for the rivals of one arm, because the truly best arm is one.

    >>> rule = Rule(delta=0.01, alpha=0.05, looks=3, arms=5)
    >>> round(1 / rule.worse_alpha), round(1 / rule.safe_alpha)
    (1200, 240)
    """

    delta: float
    alpha: float
    looks: int
    arms: int

    @property
    def worse_alpha(self) -> float:
        return self.alpha / (self.looks * max(1, self.arms * (self.arms - 1)))

    @property
    def safe_alpha(self) -> float:
        return self.alpha / (self.looks * max(1, self.arms - 1))

    @property
    def floor(self) -> float:
        """The least SD of a paired difference: clones differ by 0 and would make t 0/0."""
        return self.delta / 20


def interval(values: Values, level: float, floor: float = 0.0) -> Interval:
    """The mean of some values with its two-sided t interval, `mean +- t * max(SD, floor) / sqrt(n)`.

    >>> mean, low, high = interval([0.90, 0.92, 0.94], level=0.95)
    >>> print(f"{mean:.2f}, {low:.2f} to {high:.2f}")
    0.92, 0.87 to 0.97
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, None, None)
    half = _half_width(np.asarray(values), (1 - level) / 2, floor)
    return Interval(mean, mean - half, mean + half)


def paired_interval(first: Values, second: Values, level: float, floor: float = 0.0) -> Interval:
    """The mean of `first - second` over their common seeds with its t interval.

    >>> mean, low, high = paired_interval([0.9, 0.8, 0.7], [0.8, 0.7, 0.6], level=0.95, floor=0.1)
    >>> print(f"{mean:.2f}, {low:.2f} to {high:.2f}")
    0.10, -0.15 to 0.35
    """
    return interval(difference(first, second), level, floor)


def difference(first: Values, second: Values) -> np.ndarray:
    """`first - second` for the seeds both have: the longer one has the same seeds first."""
    common = min(len(first), len(second))
    return np.asarray(first[:common], dtype=float) - np.asarray(second[:common], dtype=float)


def upper(first: Values, second: Values, alpha: float, floor: float) -> float:
    """The most by which `first` may be better than `second`, wrong with probability `alpha`.

    >>> round(upper([0.90, 0.92, 0.94], [0.91, 0.92, 0.93], alpha=0.05, floor=0.0), 4)
    0.0169
    """
    values = difference(first, second)
    return float(np.mean(values)) + _half_width(values, alpha, floor)


def worse(first: Values, second: Values, rule: Rule) -> bool:
    """Is `first` shown to be worse than `second`, in any amount?

    >>> rule = Rule(delta=0.01, alpha=0.05, looks=1, arms=2)
    >>> worse([0.5, 0.6, 0.7, 0.6], [0.8, 0.9, 0.9, 0.8], rule), worse([0.5, 0.6], [0.8, 0.6], rule)
    (True, False)
    """
    return upper(first, second, rule.worse_alpha, rule.floor) < 0


def bound(
    scores: Mapping[Arm, Values],
    arm: Arm,
    rule: Rule,
    beaten_by: Mapping[Arm, Arm] | None = None,
    alpha: float | None = None,
) -> float:
    """The most by which the best rival may be better than `arm`: its regret bound. Without rivals: -inf.

    >>> rule = Rule(delta=0.01, alpha=0.05, looks=1, arms=2)
    >>> scores = {"batch": [0.90, 0.92, 0.94], "layer": [0.89, 0.92, 0.93]}
    >>> round(bound(scores, "batch", rule), 4), bound({"batch": [0.9]}, "batch", rule)
    (0.0031, -inf)
    """
    return max(leads(scores, arm, rule, beaten_by, alpha).values(), default=-math.inf)


def leads(
    scores: Mapping[Arm, Values],
    arm: Arm,
    rule: Rule,
    beaten_by: Mapping[Arm, Arm] | None = None,
    alpha: float | None = None,
) -> dict[Arm, float]:
    """For each rival the most by which it may be better than `arm`, at `rule.safe_alpha`.

    `beaten_by` names for every dropped arm the one it was shown to be worse than. A dropped arm keeps
    its last interval; where the arm that beat it leads by less now, so does it.

    >>> rule = Rule(delta=0.01, alpha=0.05, looks=1, arms=2)
    >>> print(f"{leads({'batch': [0.90, 0.92, 0.94], 'layer': [0.89, 0.92, 0.93]}, 'batch', rule)['layer']:.4f}")
    0.0031
    """
    alpha = rule.safe_alpha if alpha is None else alpha
    beaten_by = beaten_by or {}

    def lead(rival: Arm) -> float:
        direct = upper(scores[rival], scores[arm], alpha, rule.floor)
        beater = beaten_by.get(rival, arm)
        return direct if beater == arm else min(direct, lead(beater))

    return {rival: lead(rival) for rival in scores if rival != arm}


def safe(scores: Mapping[Arm, Values], arm: Arm, rule: Rule, beaten_by: Mapping[Arm, Arm] | None = None) -> bool:
    """Is it shown that no rival is better than `arm` by more than delta?

    >>> rule = Rule(delta=0.01, alpha=0.05, looks=1, arms=2)
    >>> safe({"batch": [0.9] * 4, "batch again": [0.9] * 4}, "batch", rule)
    True
    """
    return bound(scores, arm, rule, beaten_by) <= rule.delta


def _half_width(values: np.ndarray, alpha: float, floor: float) -> float:
    if len(values) < 2:
        return math.inf
    deviation = max(float(np.std(values, ddof=1)), floor)
    return _quantile(len(values) - 1, alpha) * deviation / math.sqrt(len(values))


@lru_cache(maxsize=1024)
def _quantile(freedom: int, alpha: float) -> float:
    return float(stdtrit(freedom, 1 - alpha))
