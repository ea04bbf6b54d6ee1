"""The verdict: kinds, sentences, units, pairs over batch sizes, and JSON that any reader takes."""

import json
import random
from typing import Any

import pytest
from scripted import SIZE, plan_for

from normwise.experiment.race import ArmOutcome, CellOutcome
from normwise.experiment.verdict import build
from normwise.experiment.wording import Amounts

WHERE = "on this data set at this training length (delta 1.0)"
CELL_KEYS = {
    "kind",
    "norm",
    "batch_size",
    "learning_rate",
    "tie",
    "regret_bound",
    "delta",
    "level",
    "order_changes_at_double_length",
    "statement",
    "arms",
    "looks",
}
ARM_KEYS = {
    "norm",
    "learning_rate",
    "n",
    "mean",
    "low",
    "high",
    "worst",
    "failures",
    "state",
    "bound",
    "difference",
    "gain_half_to_full",
    "double",
    "cost",
    "loss",
}


PERIODS = {"batch": 1, "layer": 2, "group:8": 4, "none": 1}


def arm(norm: str, mean: float, spread: float = 0.002, n: int = 8, **more: Any) -> ArmOutcome:
    """Scores that swing around a mean, each arm with a period of its own."""
    scores = tuple(mean + spread * (-1) ** (seed // PERIODS[norm]) for seed in range(n))
    return ArmOutcome(norm, 0.1, more.pop("cost", 0.0), scores, failed=more.pop("failed", (False,) * n), **more)


def verdict(
    *arms: ArmOutcome, checked: tuple[str, str] | None = None, unit: str = "points", **changes: Any
) -> dict[str, Any]:
    plan = plan_for(*(arm.norm for arm in arms), **changes)
    looks = (max(len(arm.scores) for arm in arms),)
    return build(plan, [CellOutcome(SIZE, arms, looks, checked)], unit)


def test_tie_names_the_cheapest_and_lists_the_others() -> None:
    found = verdict(arm("layer", 0.972, cost=5.0), arm("batch", 0.970, cost=1.0), arm("group:8", 0.971, cost=5.0))
    assert (found["kind"], found["norm"], found["tie"]) == ("tie", "batch", ["batch", "layer", "group:8"])
    assert found["regret_bound"] == found["per_batch_size"][0]["arms"][1]["bound"] < 0.01
    assert found["statement"] == (
        f"Take batch: with 95 % confidence no other arm is more than 0.6 points better {WHERE}; "
        "tied with it: layer and group:8."
    )


def test_winner_has_beaten_every_rival_by_a_proven_amount() -> None:
    found = verdict(arm("batch", 0.97), arm("layer", 0.94, out="worse", beaten_by="batch"))
    assert (found["kind"], found["norm"], found["tie"], found["regret_bound"]) == ("winner", "batch", [], 0.0)
    assert found["statement"] == (
        f"Take batch: with 95 % confidence every other arm is at least 2.6 points worse {WHERE}."
    )


def test_beaten_rival_within_delta_makes_a_tie() -> None:
    found = verdict(arm("batch", 0.971, 0.0), arm("layer", 0.97, 0.0, out="worse", beaten_by="batch"))
    assert (found["kind"], found["tie"]) == ("tie", ["batch", "layer"])
    assert f"no other arm is better {WHERE}; tied with it: layer." in found["statement"]
    assert [a["state"] for a in found["per_batch_size"][0]["arms"]] == ["safe", "worse"]


def test_safe_arm_with_a_rival_left_says_who() -> None:
    found = verdict(arm("batch", 0.97), arm("layer", 0.96, 0.012))
    assert (found["kind"], found["norm"], found["tie"]) == ("safe", "batch", [])
    assert found["statement"].endswith(f"better {WHERE}; not shown worse: layer.")


def test_undecided_says_so_and_bounds_all_the_same() -> None:
    found = verdict(arm("batch", 0.97, 0.03), arm("layer", 0.97, 0.03), arm("group:8", 0.965, 0.04))
    assert (found["kind"], found["norm"]) == ("undecided", "batch")
    bound = found["regret_bound"]
    assert bound == min(a["bound"] for a in found["per_batch_size"][0]["arms"]) > 0.01
    said = Amounts(0.01, "points").at_most(bound)
    assert found["statement"].startswith(
        f"Take batch (undecided): with 95 % confidence no other arm is more than {said} better {WHERE}"
    )


@pytest.mark.parametrize("bound", [0.00661, 0.0066, 0.009999, 0.0123])
def test_said_bound_is_never_below_the_true_one(bound: float) -> None:
    assert float(Amounts(0.01, "points").at_most(bound).split()[0]) >= round(100 * bound, 6)
    assert float(Amounts(0.01, "points").at_least(bound).split()[0]) <= round(100 * bound, 6)


@pytest.mark.parametrize(
    ("delta", "unit", "shown", "amount"),
    [
        (0.01, "points", "1.0", "0.7 points"),
        (0.005, "points", "0.5", "0.66 points"),
        (0.02, "", "0.02", "0.007"),
        (0.5, "", "0.5", "0.01"),
        (3e-05, "", "3e-05", "0.006600"),
        (30.0, "", "30.0", "1"),
    ],
)
def test_amounts_in_the_unit_of_the_score(delta: float, unit: str, shown: str, amount: str) -> None:
    amounts = Amounts(delta, unit)
    assert (amounts.margin(), amounts.at_most(0.0066)) == (shown, amount)


def test_other_scores_keep_their_own_unit_and_sign() -> None:
    """An error rate of which less is better: scores were turned inside and are turned back."""
    arms = arm("batch", -2.0, 0.01), arm("layer", -3.0, 0.01, out="worse", beaten_by="batch")
    found = verdict(*arms, unit="", higher_is_better=False, delta=0.2)
    assert "every other arm is at least 0.98 worse" in found["statement"]
    assert "(delta 0.2)" in found["statement"]
    batch, layer = found["per_batch_size"][0]["arms"]
    assert batch["mean"] == pytest.approx(2.0)
    assert batch["worst"] == pytest.approx(2.01)
    assert layer["low"] < layer["mean"] < layer["high"]
    assert layer["difference"]["mean"] == pytest.approx(1.0)
    assert layer["difference"]["low"] < 1.0 < layer["difference"]["high"]


def test_unstable_arm_is_outside_the_claim() -> None:
    wild = arm("none", 0.96, 0.3, out="unstable", failed=(True, True, *[False] * 6))
    found = verdict(arm("batch", 0.97), arm("layer", 0.97), wild)
    assert "no other stable arm is" in found["statement"]
    assert found["statement"].endswith('; out as unstable: "none".')
    assert (
        found["per_batch_size"][0]["arms"][2] | {"bound": None, "state": "unstable", "failures": 2}
        == (found["per_batch_size"][0]["arms"][2])
    )


def test_last_stable_arm_claims_no_comparison() -> None:
    found = verdict(arm("batch", 0.97), arm("none", 0.5, out="unstable"))
    assert (found["kind"], found["regret_bound"]) == ("safe", None)
    assert found["statement"].startswith("Take batch: no other stable arm was left to compare it with")


def test_failures_of_the_named_arm_are_said() -> None:
    found = verdict(arm("batch", 0.97, failed=(True, *[False] * 7)), arm("layer", 0.97))
    assert found["norm"] == "batch"
    assert "; 1 of its 8 seeds failed; " in found["statement"]


def test_where_every_arm_is_unstable_the_sentence_says_so() -> None:
    half = (True, True) * 2 + (False,) * 4
    found = verdict(arm("batch", 0.97, failed=half), arm("layer", 0.97, failed=half))
    assert "; every arm is unstable: 4 of its 8 seeds failed; " in found["statement"]
    assert "every arm" not in verdict(arm("batch", 0.97, failed=half), arm("layer", 0.97))["statement"]


def test_undecided_pairs_are_compared_on_the_seeds_all_have() -> None:
    """A longer race makes no pair better: with wild seeds elsewhere it only had the smaller bound."""
    wild = arm("none", 0.90, 0.09, n=16)
    found = two_sizes([arm("batch", 0.986), arm("none", 0.8)], [arm("batch", 0.978, n=16), wild])
    assert (found["kind"], found["norm"], found["batch_size"]) == ("undecided", "batch", SIZE)
    assert '; kept open by "none" at batch size 64' in found["statement"]


def test_one_arm_alone() -> None:
    found = verdict(arm("batch", 0.97))
    assert (found["kind"], found["norm"], found["regret_bound"], found["robust"]) == (
        "safe",
        "batch",
        None,
        None,
    )


def test_single_seed_bounds_nothing_and_stays_json() -> None:
    found = verdict(arm("batch", 0.97, n=1), arm("layer", 0.9, n=1))
    assert (found["kind"], found["regret_bound"]) == ("undecided", None)
    assert "one seed does not tell" in found["statement"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


# Length check


def checked(full: float, double: tuple[float, float], spread: float = 0.002) -> dict[str, Any]:
    """batch is ahead of layer by `full`; both are run again at double length."""
    first = arm("batch", 0.97, double=(double[0], double[0] + spread) * 4, half=(0.95,) * 8)
    second = arm("layer", 0.97 - full, double=(double[1] + spread, double[1]) * 4, half=(0.93,) * 8)
    return verdict(first, second, checked=("batch", "layer"), delta=0.02)


@pytest.mark.parametrize(
    ("full", "double", "changes", "phrase"),
    [
        (0.004, (0.970, 0.980), True, "; at twice the length layer leads."),
        (0.004, (0.980, 0.970), False, "; at twice the length batch still leads layer."),
        (0.004, (0.970, 0.971), False, "; at twice the length layer and batch are not told apart."),
        (0.0, (0.970, 0.980), False, "; at twice the length layer leads."),
    ],
)
def test_order_at_double_length(full: float, double: tuple[float, float], changes: bool, phrase: str) -> None:
    found = checked(full, double)
    assert found["order_changes_at_double_length"] is changes
    assert found["statement"].endswith(phrase)


def test_length_check_is_in_the_arms() -> None:
    batch, layer = checked(0.004, (0.98, 0.97))["per_batch_size"][0]["arms"]
    assert batch["gain_half_to_full"]["mean"] == pytest.approx(0.02)
    assert layer["gain_half_to_full"]["mean"] == pytest.approx(0.036)
    assert batch["double"]["mean"] == pytest.approx(0.981)
    assert batch["double"]["n"] == 8
    assert batch["double"]["low"] < 0.981 < batch["double"]["high"]


def test_no_length_check_says_nothing_of_it() -> None:
    found = verdict(arm("batch", 0.97), arm("layer", 0.9))
    assert found["order_changes_at_double_length"] is None
    assert "twice" not in found["statement"]


# Several batch sizes


def two_sizes(small: list[ArmOutcome], large: list[ArmOutcome], **changes: Any) -> dict[str, Any]:
    plan = plan_for(*(arm.norm for arm in small), batch_sizes=(SIZE, 64), **changes)
    cells = [CellOutcome(SIZE, tuple(small), (8,)), CellOutcome(64, tuple(large), (8, 16))]
    return build(plan, cells, "points")


SMALL = [arm("batch", 0.95), arm("layer", 0.97)]
LARGE = [arm("batch", 0.98, n=16), arm("layer", 0.96, n=16)]


def test_best_pair_over_batch_sizes() -> None:
    found = two_sizes(SMALL, LARGE)
    assert (found["norm"], found["batch_size"], found["kind"]) == ("batch", 64, "winner")
    assert [cell["norm"] for cell in found["per_batch_size"]] == ["layer", "batch"]
    assert found["statement"].startswith(
        "Take batch at batch size 64: with 95 % confidence every other pair of norm and batch size is "
    )


def test_all_pairs_pay_for_each_other() -> None:
    """Two far pairs take no part, and still four pairs need a wider bound than two arms."""
    far = [arm("batch", 0.2), arm("layer", 0.1)]
    found = two_sizes(far, [arm("batch", 0.97, n=16), arm("layer", 0.969, n=16)])
    assert found["batch_size"] == 64
    assert found["regret_bound"] > found["per_batch_size"][1]["regret_bound"] > 0


def test_tie_over_pairs_lists_norms_once_and_says_where() -> None:
    found = two_sizes([arm("batch", 0.98), arm("layer", 0.981)], LARGE)
    assert (found["kind"], found["tie"]) == ("tie", ["layer", "batch"])
    assert found["statement"].startswith("Take layer at batch size 8: ")
    assert "tied with it: batch at batch size 8, batch at batch size 64" in found["statement"]


def test_dropped_in_its_race_is_out_of_the_pairs() -> None:
    """It is cheapest and within delta of all, and yet not named: it was shown to be worse."""
    cheap = arm("batch", 0.975, out="worse", beaten_by="layer")
    found = two_sizes([cheap, arm("layer", 0.976, cost=2.0)], [arm("batch", 0.9), arm("layer", 0.9, cost=2.0)])
    assert (found["norm"], found["batch_size"]) == ("layer", SIZE)
    assert found["tie"] == ["layer", "batch"]


def test_robust_norm_loses_least_at_its_worst() -> None:
    small = [arm("batch", 0.95), arm("layer", 0.97), arm("group:8", 0.965)]
    large = [arm("batch", 0.98, n=16), arm("layer", 0.96, n=16), arm("group:8", 0.976, n=16)]
    found = two_sizes(small, large)["robust"]
    assert found == {
        "norm": "group:8",
        "worst_loss": pytest.approx(0.005),
        "statement": "Over batch sizes 8 and 64 group:8 loses least: its mean is at worst 0.5 points behind "
        "the best, at batch size 8.",
    }


def test_robust_norm_may_be_best_everywhere() -> None:
    found = two_sizes([arm("batch", 0.97), arm("layer", 0.95)], LARGE)["robust"]
    assert found == {
        "norm": "batch",
        "worst_loss": 0.0,
        "statement": "batch has the best mean at each of the batch sizes 8 and 64.",
    }


def test_unstable_norm_is_not_robust() -> None:
    found = two_sizes([arm("batch", 0.97, out="unstable"), arm("layer", 0.95)], LARGE)
    assert found["robust"]["norm"] == "layer"
    nowhere = two_sizes(
        [arm("batch", 0.97, out="unstable"), SMALL[1]], [LARGE[0], arm("layer", 0.96, n=16, out="unstable")]
    )
    assert nowhere["robust"] is None


# Form


def test_keys_are_those_of_the_contract() -> None:
    found = two_sizes(SMALL, LARGE)
    assert found.keys() == CELL_KEYS - {"arms", "looks"} | {"per_batch_size", "robust"}
    for cell in found["per_batch_size"]:
        assert cell.keys() == CELL_KEYS
        assert all(a.keys() == ARM_KEYS for a in cell["arms"])
    assert found["per_batch_size"][1]["looks"] == [8, 16]


def test_losses_are_shown_only_where_every_seed_has_one() -> None:
    found = verdict(arm("batch", 0.97, losses=(0.1, 0.2) * 4), arm("layer", 0.97, losses=(0.1,) * 7))
    batch, layer = found["per_batch_size"][0]["arms"]
    assert batch["loss"]["mean"] == pytest.approx(0.15)
    assert layer["loss"] is None


def test_named_arm_has_no_difference_to_itself() -> None:
    found = verdict(arm("batch", 0.97), arm("layer", 0.9))
    assert [a["difference"] is None for a in found["per_batch_size"][0]["arms"]] == [True, False]


@pytest.mark.parametrize("case", range(30))
def test_any_outcome_is_plain_json_and_one_sentence(case: int) -> None:
    """Few seeds, equal scores, everything unstable: no NaN, and the named arm is one that is left."""
    draw = random.Random(case)
    names = ["batch", "layer", "none"][: draw.randint(1, 3)]
    seeds = draw.choice([1, 2, 8])
    arms = [
        arm(
            name,
            draw.choice([0.0, 0.9, 0.97]),
            draw.choice([0.0, 0.01]),
            seeds,
            out=draw.choice(["", "unstable"]),
        )
        for name in names[1:]
    ]
    found = verdict(arm(names[0], 0.95, n=seeds), *arms)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["statement"].endswith(".")
    assert ". " not in found["statement"]
    states = {a["norm"]: a["state"] for a in found["per_batch_size"][0]["arms"]}
    assert states[found["norm"]] in {"safe", "alive"}
