"""From numbers per seed to a verdict: supported, negligible, contradicted or undecided, in this order."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from normwise.experiment.contrast import interval

Word = Literal["supported", "negligible", "contradicted", "undecided"]
ALPHA = 0.05
POWER = 0.8
FLOOR = 1 / 20  # of delta, under the SD: what never varies would make t 0/0


class Evidence(NamedTuple):
    """One number per seed, and what was said of it beforehand."""

    values: Sequence[float]
    sign: int
    delta: float


class Judgement(NamedTuple):
    """A verdict with the interval it was taken from, at the `level` that Holm's procedure left it.

    `detectable` is the effect beyond zero that these seeds would have shown in 80 of 100 runs.
    """

    verdict: Word
    mean: float | None
    low: float | None
    high: float | None
    level: float
    seeds: int
    detectable: float | None


def judge(evidence: Sequence[Evidence], family: int | None = None, alpha: float = ALPHA) -> list[Judgement]:
    """Verdicts over a list, wrong anywhere with probability `alpha` at most (Holm, 1979).

    `family` is the length of the whole list that was fixed beforehand, where only some of it was run.

    >>> sure = Evidence([0.50, 0.52, 0.51, 0.49], sign=1, delta=0.1)
    >>> clones = Evidence([0.001, -0.001, 0.0, 0.0], sign=1, delta=0.1)
    >>> [found.verdict for found in judge([sure, clones, Evidence([0.1, 0.4], sign=-1, delta=0.1)])]
    ['supported', 'negligible', 'undecided']
    """
    order = sorted(range(len(evidence)), key=lambda i: p_value(evidence[i]))
    left = max(family or 0, len(evidence))
    levels: dict[int, float] = {}
    open_still = True
    for index in order:
        levels[index] = alpha / max(left, 1)
        open_still = open_still and p_value(evidence[index]) <= levels[index]
        left -= open_still
    return [_judgement(one, levels[i]) for i, one in enumerate(evidence)]


def verdict(low: float | None, high: float | None, sign: int, delta: float) -> Word:
    """The verdict of one interval.

    With a sign: *supported* beyond delta on that side, *negligible* within +-delta, *contradicted* beyond
    zero on the other side. Of an equality: *supported* within +-delta, *contradicted* wholly outside.

    >>> verdict(0.2, 0.4, 1, 0.1), verdict(-0.05, 0.05, 1, 0.1), verdict(0.01, 0.3, -1, 0.1), verdict(-1, 1, 1, 0.1)
    ('supported', 'negligible', 'contradicted', 'undecided')
    >>> verdict(-0.05, 0.05, 0, 0.1), verdict(0.2, 0.4, 0, 0.1)
    ('supported', 'contradicted')
    """
    if low is None or high is None:
        return "undecided"
    if sign == 0:
        outside = low > delta or high < -delta
        return "supported" if -delta <= low and high <= delta else "contradicted" if outside else "undecided"
    near, far = (low, high) if sign > 0 else (-high, -low)
    if near > delta:
        return "supported"
    if -delta <= near and far <= delta:
        return "negligible"
    return "contradicted" if far < 0 else "undecided"


def p_value(one: Evidence) -> float:
    """The smallest error probability at which the interval decides anything; 1 for fewer than two seeds.

    >>> p_value(Evidence([0.5], 1, 0.1))
    1.0
    """
    n = len(one.values)
    if n < 2:
        return 1.0
    mean, error = _mean_and_error(one)

    def tail(distance: float) -> float:
        return float(stdtr(n - 1, -distance / error))

    within = max(tail(one.delta - mean), tail(one.delta + mean))
    if one.sign == 0:
        decided = min(within, tail(mean - one.delta), tail(-one.delta - mean))
    else:
        decided = min(within, tail(one.sign * mean - one.delta), tail(-one.sign * mean))
    return min(1.0, 2 * decided)


def _judgement(one: Evidence, alpha: float) -> Judgement:
    n = len(one.values)
    if n == 0:
        return Judgement("undecided", None, None, None, 1 - alpha, 0, None)
    mean, low, high = interval(one.values, 1 - alpha, one.delta * FLOOR)
    detectable = None
    if n > 1:
        error = _mean_and_error(one)[1]
        detectable = error * float(stdtrit(n - 1, 1 - alpha / 2) + stdtrit(n - 1, POWER))
    return Judgement(verdict(low, high, one.sign, one.delta), mean, low, high, 1 - alpha, n, detectable)


def _mean_and_error(one: Evidence) -> tuple[float, float]:
    values = np.asarray(one.values, dtype=float)
    deviation = max(float(values.std(ddof=1)), one.delta * FLOOR)
    return float(values.mean()), deviation / math.sqrt(len(values))
