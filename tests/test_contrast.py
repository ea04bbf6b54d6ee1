"""Paired contrasts against SciPy and against their promised error rates."""

import math

import numpy as np
import pytest
from scipy import stats

from normwise.experiment.contrast import (
    Rule,
    bound,
    difference,
    interval,
    paired_interval,
    safe,
    upper,
    worse,
)

RULE = Rule(delta=0.01, alpha=0.05, looks=3, arms=5)
FIRST = [0.97, 0.98, 0.965, 0.99, 0.97, 0.975, 0.98, 0.96]
SECOND = [0.96, 0.975, 0.97, 0.97, 0.955, 0.97, 0.97, 0.95]


def test_interval_is_the_t_interval() -> None:
    mean, low, high = interval(FIRST, level=0.9)
    expected = stats.t.interval(0.9, 7, np.mean(FIRST), stats.sem(FIRST))
    assert mean == pytest.approx(np.mean(FIRST))
    assert (low, high) == pytest.approx(expected)


def test_paired_interval_is_that_of_the_differences() -> None:
    test = stats.ttest_rel(FIRST, SECOND).confidence_interval(0.95)
    assert paired_interval(FIRST, SECOND, level=0.95)[1:] == pytest.approx((test.low, test.high))


def test_upper_is_the_one_sided_test_turned_round() -> None:
    alpha = 0.01
    at_bound = np.asarray(FIRST) - upper(FIRST, SECOND, alpha, floor=0.0)
    assert stats.ttest_rel(at_bound, SECOND, alternative="less").pvalue == pytest.approx(alpha)


def test_unequal_lengths_are_paired_on_their_common_seeds() -> None:
    assert list(difference([0.5, 0.6, 0.7], [0.4, 0.4])) == pytest.approx([0.1, 0.2])
    assert paired_interval([*FIRST, 0.1], SECOND, 0.95) == paired_interval(FIRST, SECOND, 0.95)


def test_one_value_has_a_mean_and_no_interval() -> None:
    assert interval([0.5], level=0.95) == (0.5, None, None)
    assert upper([0.9], [0.1], alpha=0.05, floor=0.0) == math.inf
    assert not worse([0.1], [0.9], RULE)
    assert not safe({"a": [0.9], "b": [0.1]}, "a", RULE)


def test_identical_arms_have_the_floor_as_spread() -> None:
    clones = {"a": FIRST, "b": list(FIRST)}
    expected = stats.t.ppf(1 - RULE.safe_alpha, 7) * 0.0005 / math.sqrt(8)
    assert bound(clones, "a", RULE) == pytest.approx(expected)
    assert safe(clones, "a", RULE)
    assert not worse(FIRST, FIRST, RULE)
    assert paired_interval(FIRST, FIRST, 0.95) == (0.0, 0.0, 0.0)


def test_floor_does_not_touch_a_wider_spread() -> None:
    assert upper(FIRST, SECOND, 0.05, floor=1e-9) == upper(FIRST, SECOND, 0.05, floor=0.0)


def test_worse_pays_for_every_directed_pair_and_look() -> None:
    pairs = Rule(delta=0.01, alpha=0.05, looks=1, arms=2)
    p_value = stats.ttest_rel(SECOND, FIRST, alternative="less").pvalue
    assert pairs.worse_alpha == 0.025
    assert RULE.worse_alpha == pytest.approx(0.05 / (3 * 5 * 4))
    assert RULE.safe_alpha == pytest.approx(0.05 / (3 * 4))
    assert RULE.worse_alpha < p_value < pairs.worse_alpha
    assert worse(SECOND, FIRST, pairs)
    assert not worse(SECOND, FIRST, RULE)


def test_bound_is_that_of_the_worst_rival() -> None:
    scores = {"a": SECOND, "b": FIRST, "c": [x - 0.1 for x in FIRST]}
    assert bound(scores, "a", RULE) == upper(FIRST, SECOND, RULE.safe_alpha, RULE.floor)
    assert bound(scores, "b", RULE) < bound(scores, "a", RULE)


def test_dropped_arm_keeps_its_last_interval() -> None:
    """Its seeds ended earlier: it is compared on those it has."""
    dropped = [x - 0.02 for x in FIRST]
    scores = {"named": [*SECOND, *SECOND], "dropped": dropped}
    direct = upper(dropped, SECOND, RULE.safe_alpha, RULE.floor)
    assert bound(scores, "named", RULE, {"dropped": "named"}) == direct


def test_dropped_arm_is_no_better_than_what_beat_it() -> None:
    """At eight seeds the dropped arm could not be bounded; the arm that beat it since was."""
    later = [0.97] * 16
    scores = {"named": [0.95] * 8 + later, "leader": [0.97] * 8 + later, "dropped": [0.9, 1.0] * 4}
    alone = bound({name: scores[name] for name in ("named", "leader")}, "named", RULE)
    assert bound(scores, "named", RULE, {"dropped": "leader"}) == alone
    assert bound(scores, "named", RULE) > 5 * alone


def test_bound_without_rivals_is_minus_infinity() -> None:
    assert bound({"a": FIRST}, "a", RULE) == -math.inf


def replays(count: int, arms: int, seeds: int, spread: float, shift: float = 0.0) -> np.ndarray:
    """Scores of equal arms, arm 0 shifted, so that paired differences have SD `spread`."""
    scores = np.random.default_rng(0).normal(0.97, spread / math.sqrt(2), (count, arms, seeds))
    scores[:, 0] += shift
    return scores


def test_equal_arms_are_rarely_called_worse_than_the_leader() -> None:
    """The promise behind k (k - 1): at most 5 % of the races, over three looks, with one wrong drop."""
    wrong = 0
    for scores in replays(300, arms=5, seeds=24, spread=0.009):
        looks = [scores[:, :seen] for seen in (8, 16, 24)]
        wrong += any(worse(arm, look[look.mean(axis=1).argmax()], RULE) for look in looks for arm in look)
    assert wrong / 300 <= 0.05


@pytest.mark.parametrize("seeds", [8, 16])
def test_bound_covers_the_true_lead(seeds: int) -> None:
    """Arm 0 is better by one point: a rival's bound may fall short of that in at most 5 %."""
    short = sum(
        min(bound(dict(enumerate(scores)), arm, RULE) for arm in (1, 2, 3, 4)) < 0.01
        for scores in replays(300, arms=5, seeds=seeds, spread=0.009, shift=0.01)
    )
    assert short / 300 <= 0.05


def test_clones_are_safe_at_sixteen_seeds() -> None:
    rule = Rule(delta=0.01, alpha=0.05, looks=3, arms=2)
    found = [safe({"a": first, "b": second}, "a", rule) for first, second in replays(300, 2, 16, spread=0.009)]
    assert np.mean(found) >= 0.9
