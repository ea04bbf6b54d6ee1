"""The plan: budgets are read, cut in the agreed order, and never below one look."""

import itertools
import json

import pytest

from normwise.errors import UsageError
from normwise.experiment.plan import Budget, Plan, first_look_price, fit_to_budget, grid_around, parse_budget
from normwise.experiment.trial import Trial

ARMS, SIZES = ("batch", "group:4", "none"), (8, 64)
FULL = Plan(
    arms=ARMS,
    batch_sizes=SIZES,
    rates={size: grid_around(0.1, size) for size in SIZES},
    costs=dict.fromkeys(ARMS, 0.0),
    onednn=dict.fromkeys(itertools.product(ARMS, SIZES), True),
    delta=0.01,
    price={(arm, size): 2.0 if size == 8 else 1.0 for arm in ARMS for size in SIZES},
)
# One cell: 2 seeds x (5 rates at a quarter + 3 at full length) + 8 seeds = 16.5 trials; all cells 9 a trial.
FIRST_LOOK = 16.5 * 9
LEAST = (0.75 + 2 + 8) * 9


def fitted(core_seconds: float) -> Plan:
    return fit_to_budget(FULL, Budget(core_seconds / 0.8), workers=1, overhead=0.0)


@pytest.mark.parametrize(("text", "budget"), [("90s", 90), ("2m", 120), ("1.5h", 5400), (" 3 m ", 180)])
def test_budget_is_read(text, budget):
    assert parse_budget(text) == Budget(budget)


@pytest.mark.parametrize("text", ["", "10", "m", "-2m", "0s", "2 minutes", "ten trials"])
def test_bad_budget_says_what_is_right(text):
    with pytest.raises(UsageError, match="90s, 2m or 1h"):
        parse_budget(text)


def test_first_look_price_counts_tuning_and_eight_seeds():
    assert first_look_price(FULL) == pytest.approx(FIRST_LOOK)


def test_large_budget_cuts_nothing():
    plan = fitted(1000)
    assert (plan.looks, plan.length_check, plan.tuning_seeds) == ((8, 16, 24), True, 2)
    assert plan.rates == FULL.rates
    assert sum(plan.allowance.values()) == pytest.approx(1000 - FIRST_LOOK)


def test_cuts_come_in_the_agreed_order():
    states = []
    for seconds in range(1000, int(LEAST), -1):
        plan = fitted(seconds)
        states.append((plan.length_check, plan.looks, len(plan.rates[8]), plan.tuning_seeds))
    assert [state for state, _ in itertools.groupby(states)] == [
        (True, (8, 16, 24), 5, 2),
        (False, (8, 16, 24), 5, 2),
        (False, (8, 16), 5, 2),
        (False, (8,), 5, 2),
        (False, (8,), 3, 2),
        (False, (8,), 3, 1),
    ]


def test_too_small_budget_names_the_smallest_that_works():
    with pytest.raises(UsageError, match="too small for one look of 8 paired seeds") as error:
        fitted(LEAST - 1)
    smallest = parse_budget(str(error.value).split()[-1])
    assert fit_to_budget(FULL, smallest, workers=1, overhead=0.0).looks == (8,)


def test_budget_in_trials_ignores_the_clock():
    plan = fit_to_budget(FULL, parse_budget("1000trials"), workers=7, overhead=1e9)
    assert plan.looks == (8, 16, 24)


def test_shorter_grid_keeps_its_middle():
    assert fitted(LEAST).rates[8] == FULL.rates[8][1:4]


def test_allowance_bounds_what_comes_after_the_first_look():
    plan = fitted(FIRST_LOOK + 90)  # 60 of it for batch size 8, where a trial costs 2
    trials = [Trial("batch", 8, 0.1, seed) for seed in range(30)]
    assert plan.affords(8, [], trials)
    assert not plan.affords(8, trials, [Trial("batch", 8, 0.1, 31, length=0.5)])


def test_plan_survives_json():
    plan = fitted(400)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_stages_never_share_seeds():
    seeds = [*FULL.short_seeds(), *FULL.full_seeds(), *FULL.race_seeds(24)]
    assert len(set(seeds)) == len(seeds)
