"""Learning rates inside an arm: short schedules, full length, past the edge of the grid."""

from collections import Counter
from dataclasses import replace

import pytest
from scripted import SIZE, drive, failed, plan_for, result, scores

from normwise.experiment.race import run
from normwise.experiment.trial import Result, Trial
from normwise.experiment.tuning import choose, outside, tune


def test_tuning_takes_the_best_of_the_grid() -> None:
    plan = plan_for("batch", "layer", rates={SIZE: (0.003, 0.01, 0.03, 0.1, 0.3)})
    rates, asked = drive(tune(plan, SIZE, []), scores({"batch": 0.9, "layer": 0.5}, spread=0.0))
    assert rates == {"batch": 0.03, "layer": 0.03}
    short, full = asked
    assert {trial.length for trial in short} == {0.25}
    assert {trial.length for trial in full} == {1.0}
    assert {trial.seed for trial in short} == set(plan.short_seeds())
    assert {trial.seed for trial in full} == set(plan.full_seeds())
    assert Counter(trial.arm for trial in full) == {"batch": 6, "layer": 6}


def test_tuning_seeds_never_meet_race_seeds() -> None:
    plan = plan_for("batch", "layer", seed=3, rates={SIZE: (0.003, 0.01, 0.03, 0.1, 0.3)})
    _, asked = drive(run(plan, SIZE), scores({"batch": 0.9, "layer": 0.9}, spread=0.05))
    short, full, *rest = asked
    assert not {t.seed for t in short + full} & {t.seed for step in rest for t in step}
    assert {t.seed for step in rest for t in step} == set(plan.race_seeds(24))


def test_few_rates_need_no_short_schedules() -> None:
    _, asked = drive(tune(plan_for("batch"), SIZE, []), scores({"batch": 0.9}))
    assert [trial.length for step in asked for trial in step] == [1.0] * 6


def test_tolerance_prefers_the_smaller_rate() -> None:
    assert choose({0.01: 0.95, 0.03: 0.951, 0.1: 0.955}, delta=0.01) == 0.01
    assert choose({0.01: 0.9499, 0.03: 0.951, 0.1: 0.955}, delta=0.01) == 0.03


def rising(trial: Trial) -> Result:
    """The higher the rate the better, up to 0.9."""
    return result(trial, 0.9 - abs(trial.learning_rate - 0.9))


def test_grid_grows_past_its_edge_at_full_length_only() -> None:
    plan = plan_for("batch", rates={SIZE: (0.003, 0.01, 0.03, 0.1)}, full_length_rates=2)
    rates, asked = drive(tune(plan, SIZE, []), rising)
    assert rates == {"batch": 0.9}
    assert [sorted({t.learning_rate for t in step}) for step in asked] == [
        [0.003, 0.01, 0.03, 0.1],
        [0.03, 0.1],
        [0.3],
        [0.9],
    ]
    assert all(t.length == 1.0 and t.seed in plan.full_seeds() for step in asked[1:] for t in step)


def test_grid_grows_at_most_twice_a_side() -> None:
    plan = plan_for("batch")
    falling, asked = drive(tune(plan, SIZE, []), lambda trial: result(trial, -trial.learning_rate))
    assert len(asked) == 3
    assert falling == {"batch": pytest.approx(0.01 / 9, rel=1e-5)}


def test_equal_rates_do_not_grow_the_grid() -> None:
    assert outside({0.01: 1.0, 0.03: 1.0, 0.1: 1.0}, (0.01, 0.03, 0.1)) == []


def test_growing_is_paid_from_the_allowance() -> None:
    prices = {("batch", SIZE): 1.0}
    poor = plan_for("batch", price=prices, allowance={SIZE: 1.0})
    spent: list[Trial] = []
    assert drive(tune(poor, SIZE, spent), rising)[0] == {"batch": 0.1}
    assert spent == []
    rich = replace(poor, allowance={SIZE: 2.0})
    assert drive(tune(rich, SIZE, spent), rising)[0] == {"batch": 0.3}
    assert len(spent) == 2


def test_rate_that_could_not_run_counts_as_the_worst() -> None:
    """A failed trial has no score; a missing one must not make the mean of the others."""

    def answer(trial: Trial) -> Result:
        if trial.learning_rate == 0.1 and trial.seed % 2:
            return failed(trial)
        return result(trial, {0.01: 0.8, 0.03: 0.9, 0.1: 0.99}[trial.learning_rate])

    assert drive(tune(plan_for("batch"), SIZE, []), answer)[0] == {"batch": 0.03}


def test_tuning_of_a_score_of_which_less_is_better() -> None:
    def answer(trial: Trial) -> Result:
        return result(trial, {0.01: 3.0, 0.03: 1.0, 0.1: 2.0}[trial.learning_rate])

    plan = plan_for("batch", higher_is_better=False, failed_score=9.0)
    assert drive(tune(plan, SIZE, []), answer)[0] == {"batch": 0.03}
