"""Verdicts on claims from numbers alone: their order, Holm over the list, what equal arms and two runs give."""

import itertools

import numpy as np
import pytest

from normwise.claims.verdict import Evidence, judge, p_value, verdict

DELTA = 0.02


def draw(effect: float, deviation: float, seeds: int, run: int) -> list[float]:
    return list(np.random.default_rng([run, seeds]).normal(effect, deviation, seeds))


@pytest.mark.parametrize(
    ("low", "high", "sign", "expected"),
    [
        (0.03, 0.05, 1, "supported"),
        (-0.05, -0.03, -1, "supported"),
        (-0.01, 0.01, 1, "negligible"),
        (0.005, 0.015, -1, "negligible"),
        (-0.05, -0.005, 1, "contradicted"),
        (0.005, 0.05, -1, "contradicted"),
        (0.01, 0.05, 1, "undecided"),
        (-0.01, 0.05, 1, "undecided"),
        (-0.01, 0.01, 0, "supported"),
        (0.03, 0.05, 0, "contradicted"),
        (0.01, 0.05, 0, "undecided"),
        (None, None, 1, "undecided"),
    ],
)
def test_the_order_of_the_four_verdicts(low, high, sign, expected):
    assert verdict(low, high, sign, DELTA) == expected


def test_p_value_is_the_level_at_which_the_interval_decides():
    for run, effect in itertools.product(range(30), (0.0, 0.01, 0.03, -0.02)):
        one = Evidence(draw(effect, 0.02, 6, run), 1, DELTA)
        p = p_value(one)
        if p < 0.9:
            assert judge([one], alpha=p * 1.001)[0].verdict != "undecided"
            assert judge([one], alpha=p * 0.999)[0].verdict == "undecided"


def test_holm_pays_for_the_whole_list_that_was_fixed_beforehand():
    one = Evidence(draw(0.05, 0.02, 8, run=1), 1, DELTA)
    assert judge([one])[0].verdict == "supported"
    assert judge([one], family=10**6)[0].verdict == "undecided"


def test_holm_steps_down():
    """What is decided leaves the rest more: the last of a list is judged at the full level."""
    sure = [Evidence([1.0, 1.01, 0.99, 1.0], 1, DELTA)] * 9
    levels = [found.level for found in judge([*sure, Evidence(draw(0, 0.1, 4, 1), 1, DELTA)])]
    assert levels[-1] == pytest.approx(0.95)
    assert sorted(levels)[-1] == levels[0] == pytest.approx(1 - 0.05 / 10)


def test_identical_arms_are_negligible():
    assert judge([Evidence([0.0] * 8, 1, DELTA)], family=68)[0].verdict == "negligible"


def test_noise_alone_is_undecided_or_negligible():
    """Labels shuffled: both arms score what chance gives."""
    found = [judge([Evidence(draw(0, 0.01, 10, run), 1, DELTA)], family=68)[0].verdict for run in range(200)]
    assert set(found) == {"undecided", "negligible"}


def test_two_runs_never_flip_between_supported_and_contradicted():
    for effect, deviation in itertools.product((-0.03, -0.01, 0.0, 0.01, 0.03), (0.005, 0.02, 0.06)):
        found = {judge([Evidence(draw(effect, deviation, 12, run), 1, DELTA)], 68)[0].verdict for run in range(60)}
        assert not {"supported", "contradicted"} <= found, (effect, deviation, found)


def test_detectable_effect_is_found_in_four_runs_of_five():
    """Of an effect against zero: the power that the page promises."""
    detectable = judge([Evidence(draw(0, 0.02, 16, 3), 1, DELTA)])[0].detectable or 0.0
    hits = []
    for run in range(400):
        low = judge([Evidence(draw(detectable, 0.02, 16, run), 1, DELTA)])[0].low or 0.0
        hits.append(low > 0)
    assert 0.6 < np.mean(hits) < 0.95


def test_one_seed_decides_nothing():
    found = judge([Evidence([5.0], 1, DELTA), Evidence([], 1, DELTA)])
    assert [(one.verdict, one.seeds) for one in found] == [("undecided", 1), ("undecided", 0)]
    assert found[0].detectable is None
