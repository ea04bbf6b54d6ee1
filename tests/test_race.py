"""The race, driven by scripted results: tuning, looks, drops, failures, the length check, and error rates."""

import random
from dataclasses import replace
from typing import Any

import pytest
from scripted import SIZE, Answer, drive, failed, plan_for, result, scores

from normwise.experiment.drive import replay
from normwise.experiment.race import check_length, contest, rule_for, run
from normwise.experiment.trial import Result, Trial

RATES = {"batch": 0.03, "layer": 0.03, "none": 0.03}


def race(answer: Answer, *arms: str, **changes):
    """The outcome of a contest of tuned arms, its standing, and the number of trials at each look."""
    plan = plan_for(*arms, **changes)
    rates = dict.fromkeys(arms, 0.03)
    cell, asked = drive(contest(plan, SIZE, rates, []), answer)
    return cell, cell.standing(rule_for(plan, len(arms))), [len(step) for step in asked]


# Looks


def test_clear_winner_needs_one_look() -> None:
    cell, standing, asked = race(scores({"batch": 0.97, "layer": 0.9, "none": 0.8}), "batch", "layer", "none")
    assert (standing.named, standing.kind) == ("batch", "winner")
    assert asked == [24]
    assert cell.looks == (8,)
    assert cell.beaten_by() == {"layer": "batch", "none": "batch"}


def test_identical_arms_tie_at_the_first_look() -> None:
    _, standing, asked = race(lambda trial: result(trial, 0.9 + trial.seed / 1000), "batch", "layer")
    assert (standing.kind, standing.tie) == ("tie", ("batch", "layer"))
    assert asked == [16]


def test_cheaper_arm_is_named_among_safe_ones() -> None:
    means = {"layer": 0.972, "batch": 0.970}
    _, standing, _ = race(scores(means), *means, costs={"layer": 5.0, "batch": 1.0})
    assert (standing.named, standing.kind, standing.tie) == ("batch", "tie", ("batch", "layer"))


def test_better_mean_is_named_at_equal_cost() -> None:
    _, standing, _ = race(scores({"batch": 0.970, "layer": 0.972}), "batch", "layer")
    assert standing.named == "layer"


def test_race_goes_on_until_the_cheapest_arm_is_safe() -> None:
    """The leader is safe at once; the cheaper arm behind it needs more seeds."""
    means = {"layer": 0.976, "batch": 0.970}
    _, standing, asked = race(scores(means, 0.006), *means, costs={"layer": 5.0, "batch": 1.0})
    assert len(asked) > 1
    assert len(race(scores(means, 0.006), *means)[2]) == 1
    assert standing.named in means


def test_undecided_at_the_last_look_names_the_smallest_bound() -> None:
    _, standing, asked = race(scores({"batch": 0.95, "layer": 0.95}, 0.1), "batch", "layer", delta=0.001)
    assert standing.kind == "undecided"
    assert asked == [16, 16, 16]
    assert standing.bounds[standing.named] == min(standing.bounds.values()) > 0.001


def test_dropped_arm_runs_no_more_and_keeps_its_seeds() -> None:
    close = scores({"batch": 0.95, "layer": 0.95}, 0.02)

    def answer(trial: Trial) -> Result:
        return result(trial, 0.5) if trial.arm == "none" else close(trial)

    cell, standing, asked = race(answer, "batch", "layer", "none")
    assert asked[:2] == [24, 16]
    assert (len(cell["none"].scores), len(cell["batch"].scores)) == (8, 8 * len(asked))
    assert cell["none"].out == "worse"
    assert "none" in standing.bounds


def test_sole_survivor_with_a_rival_within_delta_is_a_tie() -> None:
    """An interval that excludes zero makes no winner: the rival is shown to be worse, and to be close."""
    cell, standing, _ = race(scores({"batch": 0.970, "layer": 0.968}, spread=0.0), "batch", "layer")
    assert cell["layer"].out == "worse"
    assert (standing.kind, standing.named, standing.tie) == ("tie", "batch", ("batch", "layer"))


def test_one_safe_arm_beside_undropped_rivals() -> None:
    def answer(trial: Trial) -> Result:
        swing = {"batch": 0.0, "layer": 0.03}[trial.arm] * (1 if trial.seed % 2 else -1)
        return result(trial, {"batch": 0.97, "layer": 0.95}[trial.arm] + swing)

    _, standing, _ = race(answer, "batch", "layer")
    assert (standing.kind, standing.named, standing.tie) == ("safe", "batch", ("batch",))


def test_less_is_better_turns_the_order() -> None:
    _, standing, _ = race(scores({"batch": 0.97, "layer": 0.9}), "batch", "layer", higher_is_better=False)
    assert (standing.named, standing.kind) == ("layer", "winner")


def test_one_arm_alone_is_safe_after_one_look() -> None:
    _, standing, asked = race(scores({"batch": 0.97}), "batch")
    assert (standing.named, standing.kind, asked) == ("batch", "safe", [8])


def test_looks_stop_where_the_allowance_is_out() -> None:
    prices = {("batch", SIZE): 1.0, ("layer", SIZE): 2.0}
    answer = scores({"batch": 0.95, "layer": 0.95}, 0.1)
    given = {"delta": 0.001, "price": prices}
    assert race(answer, "batch", "layer", **given, allowance={SIZE: 24.0})[2] == [16, 16]
    assert race(answer, "batch", "layer", **given, allowance={SIZE: 23.9})[2] == [16]


def test_trials_come_seed_by_seed() -> None:
    """An interrupted look leaves pairs."""
    plan = plan_for("batch", "layer")
    first = next(contest(plan, SIZE, {"batch": 0.03, "layer": 0.03}, []))
    assert [(trial.seed, trial.arm) for trial in first[:3]] == [(0, "batch"), (0, "layer"), (1, "batch")]


def test_convolution_kernels_are_those_of_the_plan() -> None:
    plan = plan_for("batch", "layer", onednn={("batch", SIZE): False, ("layer", SIZE): True})
    _, asked = drive(run(plan, SIZE), scores({"batch": 0.95, "layer": 0.95}))
    assert {(t.arm, t.onednn) for step in asked for t in step} == {("batch", False), ("layer", True)}


def test_interrupted_race_stands_on_its_finished_looks() -> None:
    plan = plan_for("batch", "layer", delta=0.001)
    answer = scores({"batch": 0.95, "layer": 0.95}, 0.1)
    whole, asked = drive(run(plan, SIZE), answer)
    tuned, first, second, third, check = [{trial: answer(trial) for trial in step} for step in asked]

    def known(*steps: dict[Trial, Result]) -> Any:
        return replay(run(plan, SIZE), {trial: found for step in steps for trial, found in step.items()})

    assert known() is None
    assert known(tuned, dict(list(first.items())[:-1])).looks == ()
    early = known(tuned, first, dict(list(second.items())[:-1]))
    assert early.looks == (8,)
    assert early["batch"].scores == whole["batch"].scores[:8]
    unchecked = known(tuned, first, second, third)
    assert (unchecked.looks, unchecked.checked) == ((8, 16, 24), None)
    assert known(tuned, first, second, third, check) == whole


# Failures


def with_failures(arms: dict[str, set[int]], score: float | None = None) -> Answer:
    """Arms at 0.95 that fail on some seeds: with that score, or without any."""

    def answer(trial: Trial) -> Result:
        if trial.seed in arms.get(trial.arm, ()):
            return failed(trial) if score is None else result(trial, score, "diverged")
        return scores({"batch": 0.95, "layer": 0.95, "none": 0.95})(trial)

    return answer


@pytest.mark.parametrize("score", [0.949, None])
def test_two_failures_in_the_first_four_seeds_put_an_arm_out(score: float | None) -> None:
    cell, standing, _ = race(with_failures({"none": {0, 3}}, score), "batch", "layer", "none")
    assert cell["none"].out == "unstable"
    assert sum(cell["none"].failed) == 2
    assert "none" not in standing.bounds


def test_later_failures_are_counted_and_keep_the_arm() -> None:
    cell, _, _ = race(with_failures({"none": {0, 4, 5}}, 0.949), "batch", "layer", "none")
    assert cell["none"].out == ""
    assert sum(cell["none"].failed) == 3


def test_diverged_trial_keeps_its_score_and_its_place() -> None:
    cell, _, _ = race(with_failures({"layer": {5}}, 0.31), "batch", "layer")
    assert cell["layer"].scores[5] == 0.31


@pytest.mark.parametrize(("higher_is_better", "imputed"), [(True, 0.1), (False, -0.1)])
def test_trial_without_a_score_takes_the_failed_score(higher_is_better: bool, imputed: float) -> None:
    answer = with_failures({"layer": {5}})
    cell, _, _ = race(answer, "batch", "layer", failed_score=0.1, higher_is_better=higher_is_better)
    assert cell["layer"].scores[5] == imputed
    assert len(cell["layer"].scores) == len(cell["batch"].scores)


def test_where_all_are_unstable_none_is_put_out() -> None:
    seeds = {0, 1}
    cell, _, _ = race(with_failures({"batch": seeds, "layer": seeds}, 0.1), "batch", "layer")
    assert [arm.out for arm in cell.arms] == ["", ""]


def test_last_stable_arm_is_safe() -> None:
    _, standing, asked = race(with_failures({"layer": {0, 1}}, 0.1), "batch", "layer")
    assert (standing.named, standing.kind, asked) == ("batch", "safe", [16])


def test_losses_are_kept_where_they_are_finite() -> None:
    def answer(trial: Trial) -> Result:
        return result(trial, 0.9, judge_loss=0.5) if trial.seed != 3 else result(trial, 0.1, "diverged")

    cell, _, _ = race(answer, "batch")
    assert cell["batch"].losses == (0.5,) * 7


# Length check


def by_length(gain: dict[str, float]) -> Answer:
    """Arms that differ in what each doubling of the length brings them."""

    def answer(trial: Trial) -> Result:
        base = scores({"batch": 0.95, "layer": 0.94, "none": 0.5}, 0.012)(trial).measures["judge"]
        return result(trial, base + gain[trial.arm] * {0.5: -1, 1.0: 0, 2.0: 1}[trial.length])

    return answer


def checked(gain: dict[str, float], **changes):
    plan = plan_for("batch", "layer", "none", delta=0.02, **changes)
    answer = by_length(gain)
    cell, _ = drive(contest(plan, SIZE, RATES, []), answer)
    return drive(check_length(plan, cell, []), answer)


GAIN = {"batch": 0.0, "layer": 0.03, "none": 0.0}


def test_length_check_asks_for_two_arms_twice_and_for_all_left_half() -> None:
    cell, (asked,) = checked(GAIN)
    assert {(t.arm, t.length) for t in asked} == {
        ("batch", 0.5),
        ("batch", 2.0),
        ("layer", 0.5),
        ("layer", 2.0),
    }
    assert {t.seed for t in asked} == set(range(8))
    assert cell.checked == ("batch", "layer")
    assert [len(arm.half) for arm in cell.arms] == [8, 8, 0]
    assert [len(arm.double) for arm in cell.arms] == [8, 8, 0]


def test_length_check_is_left_out_where_the_allowance_is_out() -> None:
    prices = {(arm, SIZE): 1.0 for arm in RATES}
    plan = plan_for(*RATES, delta=0.02, price=prices, allowance={SIZE: 39.0})
    cell, asked = drive(run(plan, SIZE), by_length(GAIN))
    assert cell.checked is None
    assert all(t.length <= 1.0 for step in asked for t in step)
    affordable = replace(plan, allowance={SIZE: 40.0})
    assert drive(run(affordable, SIZE), by_length(GAIN))[0].checked == ("batch", "layer")


def test_winner_is_checked_against_the_best_dropped_arm() -> None:
    plan = plan_for("batch", "layer", "none", delta=0.001)
    cell, asked = drive(run(plan, SIZE), by_length(GAIN))
    assert {t.arm for t in asked[-1] if t.length == 2.0} == {"batch", "layer"}
    assert {t.arm for t in asked[-1] if t.length == 0.5} == {arm.norm for arm in cell.left}


def test_no_length_check_where_the_plan_has_none() -> None:
    plan = plan_for("batch", "layer", length_check=False)
    _, asked = drive(run(plan, SIZE), scores(dict.fromkeys(RATES, 0.9)))
    assert {t.length for step in asked for t in step} == {1.0}


def test_same_results_give_the_same_outcome_in_any_order() -> None:
    """What workers finish first must not matter."""
    plan = plan_for("batch", "layer", "none")
    answer = scores({"batch": 0.96, "layer": 0.955, "none": 0.95}, 0.01)

    def shuffled() -> object:
        process = run(plan, SIZE)
        asked = next(process)
        while True:
            order = random.Random(len(asked)).sample(asked, len(asked))
            try:
                asked = process.send({trial: answer(trial) for trial in order})
            except StopIteration as stop:
                return stop.value

    assert shuffled() == drive(run(plan, SIZE), answer)[0]
