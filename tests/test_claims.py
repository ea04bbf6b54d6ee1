"""The list of claims: complete, consistent, planned within its budget; what is exact is exact."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from normwise.claims import CLAIMS, EXPERIMENTS, find
from normwise.claims.claim import Experiment, Run, at_half, settings
from normwise.claims.experiments import amplify, costs, growth, mates
from normwise.claims.experiments.gains import width
from normwise.claims.experiments.training import FewClasses
from normwise.claims.schedule import make_schedule, seconds_for, seconds_of, tuned_cells
from normwise.claims.theory import growth as mean_field
from normwise.data import Arrays
from normwise.errors import UsageError
from normwise.generators import reproducible

ROOT = Path(__file__).parent.parent
IDS = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "I1", "I2", "I3", "I4", "I5", "I6", "I7", "R1", "H1", "H2"]
EVERYTHING = list(EXPERIMENTS.values())


class Anything(dict):
    """Measures of which every one is there."""

    def __missing__(self, name):
        return 0.5


def once(experiment, text, seed=0):
    with reproducible(seed):
        return experiment.measure(Run(settings(text), seed, 0.0, Path(".")))


def test_all_claims_of_the_textbook_are_there():
    assert list(CLAIMS) == IDS


@pytest.mark.parametrize("name", IDS)
def test_every_part_reads_cells_that_are_measured(name):
    for part in CLAIMS[name].parts:
        seed = {text: Anything() for text in EXPERIMENTS[part.experiment].cells}
        assert math.isfinite(part.contrast(seed))
        assert part.delta > 0
        assert part.refuted_by


@pytest.mark.parametrize("name", ["B3", "B4", "B7", "I3", "H1", "H2", "R1"])
def test_the_effect_is_also_measured_at_half_the_training_length(name):
    part = CLAIMS[name].parts[0]
    seed = {text: Anything() for text in EXPERIMENTS[part.experiment].cells}
    assert math.isfinite(part.contrast(at_half(seed)))


@pytest.mark.parametrize("name", ["B2", "B3", "B4", "I1", "I3", "I7", "R1", "H1", "H2"])
def test_the_effect_is_also_measured_at_one_rate_for_all(name):
    part = CLAIMS[name].parts[0]
    rivals = [text for group in EXPERIMENTS[part.experiment].rivals for text in group]
    assert math.isfinite(part.contrast({text: Anything() for text in rivals}))


@pytest.mark.parametrize("name", IDS)
def test_tables_read_cells_that_are_measured(name):
    for table in CLAIMS[name].tables:
        read = {text for row in table.rows.values() for text, _ in row.values()}
        assert len(read & set(EXPERIMENTS[table.experiment].cells)) >= 2 or len(read) == 1


@pytest.mark.parametrize("name", [name for name in IDS if name != "I2"])
def test_what_a_pilot_set_is_said(name):
    assert CLAIMS[name].pilot


def test_batches_of_two_classes_hold_two():
    samples = Arrays(torch.randn(200, 1), torch.arange(200) % 10)
    batches = list(FewClasses(samples, 8, shuffle=0))
    assert len(batches) == 25
    assert max(len(y.unique()) for _, y in batches) == 2


@pytest.mark.parametrize("experiment", EVERYTHING, ids=lambda one: one.name)
def test_cells_are_unique_and_their_rates_are_tuned_on_a_cell(experiment):
    assert len(set(experiment.cells)) == len(experiment.cells)
    assert set(tuned_cells(experiment)) <= set(experiment.cells)


def test_an_unknown_claim_is_named_with_the_known_ones():
    with pytest.raises(UsageError, match="unknown claim 'B44', known are: B1, B2"):
        find("B44")


@pytest.mark.parametrize("budget", ["quick", "20m", "60m", "3h"])
def test_the_plan_fits_the_budget(budget):
    """With the rates of the recorded run, as a short budget takes them."""
    schedule = make_schedule(EVERYTHING, seconds_of(budget), workers=2, known=list(EXPERIMENTS))
    most = 300 if budget == "quick" else 1.05 * seconds_of(budget)
    assert seconds_for(schedule, EVERYTHING, 2, 1.0) < most
    assert min(schedule.seeds.values()) >= 2


@pytest.mark.parametrize("name", IDS)
def test_each_claim_alone_takes_six_minutes_at_most(name):
    schedule = make_schedule(EVERYTHING, seconds_of("60m"), workers=2)
    used = {part.experiment for part in CLAIMS[name].parts} | {CLAIMS[name].chart.experiment}
    assert seconds_for(schedule, [EXPERIMENTS[one] for one in used], 2, 1.0) <= 360


def test_a_short_budget_leaves_out_what_stands_beside_the_verdicts():
    assert make_schedule(EVERYTHING, seconds_of("quick"), workers=2, known=list(EXPERIMENTS)).brief
    assert not make_schedule(EVERYTHING, seconds_of("60m"), workers=2).brief


def test_a_budget_is_quick_or_a_time():
    for wrong in ("soon", "200trials"):
        with pytest.raises(UsageError, match="quick"):
            seconds_of(wrong)


def test_a_slower_machine_gets_fewer_seeds():
    experiment = Experiment("slow", growth.measure, ("x=1",), seconds=1.0, seeds=50)
    fast, slow = (make_schedule([experiment], 60, 1, pace).seeds["slow"] for pace in (1.0, 4.0))
    assert fast > 3 * slow


@pytest.mark.parametrize("values", [8, 32, 128])
def test_batch_norm_grows_gradients_as_theory_says(values):
    rates = [once(growth.GROWTH, f"net=mlp,norm=batch,values={values}", seed)["growth"] for seed in range(4)]
    assert sum(rates) / 4 == pytest.approx(mean_field(values), rel=0.02)


@pytest.mark.parametrize("side", [8, 4])
def test_instance_norm_does_by_its_values_per_statistic(side):
    text = f"net=conv,norm=instance,side={side},values={side * side}"
    rates = [once(growth.GROWTH, text, seed)["growth"] for seed in range(8)]
    assert sum(rates) / 8 == pytest.approx(mean_field(side * side), rel=0.02)


def test_theory_needs_more_than_three_values():
    with pytest.raises(ValueError, match="more than 3 values"):
        mean_field(3)


@pytest.mark.parametrize("norm", ["instance", "group:4", "layer", "none"])
def test_batch_mates_change_nothing_but_for_batch_norm(norm):
    found, batch = once(mates.MATES, f"norm={norm}"), once(mates.MATES, "norm=batch")
    assert max(found.values()) < 1e-4
    assert min(batch["train"], batch["gradient"]) > 0.1
    assert batch["eval"] < 1e-4


def test_noise_of_batch_mates_falls_with_the_group_and_is_none_in_instance_norm():
    noise = {size: once(mates.MATES, f"norm=batch,ghost={size}")["noise"] for size in (32, 128)}
    assert noise[32] / noise[128] == pytest.approx(4, rel=0.3)
    assert once(mates.MATES, "norm=instance,ghost=16")["noise"] < 1e-8


def test_instance_norm_is_loud_where_one_image_is_flat_and_batch_norm_where_all_are():
    gain = {
        (norm, flat): once(amplify.AMPLIFY, f"norm={norm},flat={flat},eps=1e-05")["log_gain"]
        for norm in ("batch", "instance")
        for flat in ("here", "everywhere")
    }
    assert gain["instance", "here"] - gain["batch", "here"] > 1.5
    assert gain["instance", "everywhere"] == pytest.approx(gain["batch", "everywhere"], abs=0.1)


def test_instance_norm_does_not_see_contrast_and_brightness():
    found = {norm: once(amplify.AMPLIFY, f"norm={norm},flat=here,eps=1e-05") for norm in ("batch", "instance")}
    assert found["instance"]["change"] < 0.01 < 1 < found["batch"]["change"]
    assert found["instance"]["snr"] == pytest.approx(1, rel=1e-3)


def test_width_counts_decades_around_the_best():
    assert width({0.01: 0.1, 0.1: 0.88, 1.0: 0.9, 10.0: 0.87, 100.0: 0.1}) == pytest.approx(2)
    assert width({1.0: 0.9, 10.0: 0.2}) == 0


def test_measurements_leave_no_random_state_behind():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    once(amplify.AMPLIFY, "norm=batch,flat=here,eps=0.1")
    assert torch.equal(torch.rand(1), expected)


def test_costs_are_taken_in_a_process_of_their_own_and_folding_leaves_nothing():
    found = {norm: once(EXPERIMENTS["costs"], f"norm={norm},shape=deep") for norm in ("batch", "instance")}
    assert found["batch"]["counted"] == 0 < found["instance"]["counted"]
    assert min(found["batch"]["train"], found["instance"]["folded"]) > 0


def test_a_timing_process_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(costs, "MODULE", "normwise.no_such_module")
    with pytest.raises(RuntimeError, match="no_such_module"):
        costs.all_of(99)


def recorded(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "recorded" / "claims" / f"{name}.json").read_text())


def verdicts(run: dict[str, Any]) -> dict[tuple[str, str], str]:
    """Of every claim and of every part of one."""
    claims = {(claim["id"], ""): claim["verdict"] for claim in run["claims"]}
    return claims | {(claim["id"], part["name"]): part["verdict"] for claim in run["claims"] for part in claim["parts"]}


def test_of_two_recorded_runs_with_different_seeds_each_decides_and_none_turns_the_other_round():
    long, second = recorded("results"), recorded("second")
    assert long["config"]["seed"] != second["config"]["seed"]
    for run in (long, second):
        assert [claim["id"] for claim in run["claims"]] == IDS
        assert sum(claim["verdict"] != "undecided" for claim in run["claims"]) >= 10
    assert long["config"]["seconds"] >= 3600 >= second["config"]["seconds"]
    one, other = verdicts(long), verdicts(second)
    assert not [key for key in one if {one[key], other[key]} == {"supported", "contradicted"}]
