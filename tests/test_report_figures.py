"""The figures as data: what stands where, in which unit, and what each sentence says."""

import math
import re
import statistics
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
import pytest
import report_content as made

from normwise.report.draw import Figure, end_labels, log_ticks, spread
from normwise.report.figures import figures
from normwise.report.rows import reach
from normwise.report.view import COLORS, View

VARIANTS = [
    made.content,
    made.tie,
    made.undecided,
    made.diverged,
    made.hostile,
    made.bare,
    made.unfinished,
    made.regression,
]


def figure(content: dict[str, Any], name: str) -> Figure:
    return next(figure for figure in figures(content) if figure.id == name)


def trace(panel: dict[str, Any], name: str) -> dict[str, Any]:
    """The last trace of an arm: its mark."""
    return [trace for trace in panel["data"] if trace.get("name") == name][-1]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.__name__)
def test_every_figure_is_valid_plotly(variant: Any) -> None:
    for shown in figures(variant()):
        for panel in shown.panels:
            assert go.Figure(panel.figure).data
            assert panel.label.endswith(".")
            assert re.search(r"\d", panel.label), "a label states its numbers"


def test_a_whole_run_has_every_figure() -> None:
    names = [figure.id for figure in figures(made.content())]
    assert names == ["differences", "curves", "sizes", "rates", "seeds", "losses", "cost"]


def test_missing_detail_leaves_out_the_figure_it_is_for() -> None:
    assert [f.id for f in figures(made.bare())] == ["differences", "rates", "seeds", "cost"]
    assert [f.id for f in figures(made.unfinished())] == ["rates"]


def test_differences_are_in_points_with_a_band_of_delta_around_the_named_arm() -> None:
    content = made.content()
    panel = figure(content, "differences").panels[1].figure
    gap = content["verdict"]["per_batch_size"][1]["arms"][2]["difference"]
    assert trace(panel, "group:4")["x"] == [pytest.approx(100 * gap["mean"])]
    lines = [t["x"] for t in panel["data"] if t["mode"] == "lines"]
    assert [pytest.approx(100 * gap["low"]), pytest.approx(100 * gap["high"])] in lines
    assert trace(panel, "batch")["x"] == [0.0]
    band = panel["layout"]["shapes"][0]
    assert (band["x0"], band["x1"]) == (-1.0, 1.0)


def test_arms_stand_best_first_and_dropped_ones_are_hollow() -> None:
    panel = figure(made.content(), "differences").panels[1].figure
    marks = [t for t in panel["data"] if t["mode"] == "markers"]
    assert [t["name"] for t in marks] == ["batch-instance", "batch", "instance", "layer", "group:4", "none"]
    assert [t["y"][0] for t in marks] == [0, -1, -2, -3, -4, -5]
    hollow = [t["name"] for t in marks if t["marker"]["color"] not in COLORS]
    assert hollow == ["layer", "group:4", "none"]


def test_both_panels_of_differences_share_one_axis() -> None:
    first, second = (p.figure["layout"]["xaxis"]["range"] for p in figure(made.content(), "differences").panels)
    assert first == second


def test_an_arm_far_out_is_put_at_the_edge_with_its_true_numbers() -> None:
    panel = figure(made.diverged(), "differences").panels[1]
    mark, low = trace(panel.figure, "none"), panel.figure["layout"]["xaxis"]["range"][0]
    assert -12 < low < 0
    assert (mark["x"], mark["marker"]["symbol"]) == ([low], "arrow-bar-left")
    assert "none \u221246.0 (\u221297.0 to 5.0), n 4, unstable" in panel.label


def test_the_sentence_names_who_may_be_better() -> None:
    content = made.content()
    arms = content["verdict"]["per_batch_size"][0]["arms"]
    arms[1]["difference"] = {"mean": 0.004, "low": -0.004, "high": 0.012}
    said = figure(content, "differences").sentence
    assert "Batch size 8: instance reaches beyond the band on the better side" in said
    assert "Batch size 64: no arm reaches beyond the band" in said


def test_the_sentence_names_unstable_arms() -> None:
    assert '"none" was put out as unstable' in figure(made.diverged(), "differences").sentence


def test_less_is_better_turns_the_words_round() -> None:
    shown = figure(made.regression(), "differences")
    assert "left is better" in shown.panels[0].figure["layout"]["xaxis"]["title"]["text"]
    assert "no arm reaches beyond the band on the better side" in shown.sentence
    marks = [t["name"] for t in shown.panels[0].figure["data"] if t["mode"] == "markers"]
    assert marks == ["batch-instance", "batch", "instance", "layer", "group:4", "none"]


def test_an_arm_with_one_seed_has_no_interval_and_is_not_compared() -> None:
    content = made.content()
    content["verdict"]["per_batch_size"][0]["arms"][1]["difference"] = {
        "mean": 0.0,
        "low": None,
        "high": None,
    }
    panel = figure(content, "differences").panels[0].figure
    assert "instance" not in [t.get("name") for t in panel["data"]]


def test_curves_are_medians_with_quartiles_over_seeds() -> None:
    content = made.content()
    panel = figure(content, "curves").panels[0].figure
    ends = [
        100 * row["curve"][-1][2]
        for row in content["results"]
        if (row["arm"], row["batch_size"], row["stage"]) == ("layer", 8, "race")
    ]
    low, median, high = statistics.quantiles(ends, n=4, method="inclusive")
    line = trace(panel, "layer")
    assert (line["x"][-1], line["y"][-1]) == (12, pytest.approx(median))
    band = panel["data"][panel["data"].index(line) - 1]
    assert (band["y"][11], band["y"][12]) == (pytest.approx(high), pytest.approx(low))


def test_curves_leave_failed_runs_and_other_rates_out() -> None:
    content = made.content()
    for row in content["results"]:
        if (row["arm"], row["batch_size"], row["stage"]) == ("none", 8, "race"):
            row["status"] = "diverged"
        if (row["arm"], row["batch_size"], row["stage"]) == ("layer", 8, "race"):
            row["learning_rate"] = 0.123
    names = {t.get("name") for t in figure(content, "curves").panels[0].figure["data"]}
    assert names == {None, "batch", "instance", "group:4", "batch-instance"}


def test_the_loss_axis_is_logarithmic_only_where_every_loss_is_positive() -> None:
    content = made.content()
    assert figure(content, "curves").panels[2].figure["layout"]["yaxis"]["type"] == "log"
    for row in content["results"]:
        row["curve"] = [[epoch, loss - 0.1, None] for epoch, loss, _ in row["curve"]]
    shown = figure(content, "curves").panels
    assert [panel.title for panel in shown] == ["Batch size 8: training loss", "Batch size 64: training loss"]
    assert "type" not in shown[0].figure["layout"]["yaxis"]


def test_the_sentence_of_the_curves_says_how_the_gap_closes() -> None:
    said = figure(made.content(), "curves").sentence
    assert re.search(r"Batch size 8: batch-instance leads at half of the training and batch at the end", said)
    early, late = re.findall(r"([\d.]+) points", said)[:2]
    assert float(early) > 3 * float(late)


def test_score_against_batch_size_has_a_line_per_arm_with_intervals() -> None:
    content = made.content()
    panel = figure(content, "sizes").panels[0].figure
    cells = content["verdict"]["per_batch_size"]
    line, arms = trace(panel, "instance"), [cell["arms"][1] for cell in cells]
    assert line["y"] == [pytest.approx(100 * arm["mean"]) for arm in arms]
    assert line["error_y"]["array"] == [pytest.approx(100 * (arm["high"] - arm["mean"])) for arm in arms]
    assert panel["layout"]["xaxis"]["ticktext"] == ["8", "64"]
    assert len({note["text"] for note in panel["layout"]["annotations"]}) == 6


def test_the_sentence_on_batch_sizes_names_the_most_and_the_least_dependent_arm() -> None:
    assert re.match(r'"none" depends most .* instance least', figure(made.content(), "sizes").sentence)


def test_rates_mark_the_chosen_one_at_both_batch_sizes() -> None:
    shown = figure(made.content(), "rates")
    assert [panel.title for panel in shown.panels] == list(made.ARMS)
    stars = [t for t in shown.panels[1].figure["data"] if t["marker"]["symbol"] == "star"]
    assert [t["x"] for t in stars] == [[0.15], [0.5]]
    places = [note["x"] for note in shown.panels[1].figure["layout"]["annotations"]]
    assert places == [math.log10(0.15), math.log10(0.5)]
    assert 'from 0.015 ("none") to 0.15 (instance)' in shown.sentence


def test_rates_without_a_verdict_say_that_none_is_chosen() -> None:
    shown = figure(made.unfinished(), "rates")
    assert "no rate is chosen yet" in shown.sentence
    assert all(t["marker"]["symbol"] != "star" for panel in shown.panels for t in panel.figure["data"])


def test_every_seed_is_a_dot_and_the_worst_is_named() -> None:
    content = made.content()
    panel = figure(content, "seeds").panels[1]
    dots = [t for t in panel.figure["data"] if len(t["x"]) > 1]
    assert sorted(len(t["x"]) for t in dots) == [8, 16, 16, 24, 24, 24]
    runs = [r for r in content["results"] if (r["arm"], r["batch_size"], r["stage"]) == ("none", 64, "race")]
    worst = min(runs, key=lambda row: row["measures"]["judge"])
    assert f"worst {100 * worst['measures']['judge']:.1f} % (seed {worst['seed']})" in panel.label


def test_failed_runs_that_have_a_score_are_dots_too() -> None:
    panel = figure(made.diverged(), "seeds").panels[1]
    assert re.search(r"none [\d.]+ %, worst 10\.0 % \(seed 0\), n 4", panel.label)


def test_losses_are_ranked_from_low_to_high() -> None:
    panel = figure(made.content(), "losses").panels[0].figure
    means = [t["x"][0] for t in panel["data"] if t["mode"] == "markers"]
    assert means == sorted(means)


def test_cost_needs_amounts() -> None:
    content = made.content()
    assert trace(figure(content, "cost").panels[0].figure, "layer")["x"] == [61440.0]
    for cell in content["verdict"]["per_batch_size"]:
        for arm in cell["arms"]:
            arm["cost"] = float(arm["cost"] > 0)
    assert "cost" not in [shown.id for shown in figures(content)]


def test_an_arm_looks_the_same_in_every_figure() -> None:
    looks: dict[str, set[str]] = {}
    for shown in figures(made.content()):
        for panel in shown.panels:
            for t in panel.figure["data"]:
                if t.get("name") and t["marker"]["color"] in COLORS:
                    looks.setdefault(t["name"], set()).add(t["marker"]["color"])
    assert set(looks) == set(made.ARMS)
    assert all(len(colors) == 1 for colors in looks.values())
    assert len(set.union(*looks.values())) == 6


def test_arms_of_one_colour_differ_in_marker_and_dash() -> None:
    content = made.content()
    content["config"]["arms"] = [{"name": f"group:{i}", "aliases": [], "pools": "C/g,HW"} for i in range(1, 30)]
    arms = list(View(content).arms.values())
    assert len({(arm.color, arm.symbol, arm.dash) for arm in arms}) == len(arms)


def test_user_text_cannot_be_markup_in_a_figure() -> None:
    for shown in figures(made.hostile()):
        for panel in shown.panels:
            assert "<script" not in repr(panel.figure)


@pytest.mark.parametrize("places", [[5.0, 6.0, 7.0, 90.0], [0.0, 0.0, 0.0], [99.0, 100.0, 3.0], [50.0]])
def test_spread_keeps_order_gap_and_room(places: list[float]) -> None:
    moved = spread(places, gap=16, room=100)
    order = sorted(range(len(places)), key=lambda i: places[i])
    steps = [moved[b] - moved[a] for a, b in pairwise(order)]
    assert all(step >= 16 - 1e-9 for step in steps)
    assert min(moved) >= 0
    assert max(moved) <= 100


def test_labels_at_line_ends_do_not_overlap() -> None:
    arm = View(made.content()).arms["batch"]
    notes = end_labels([(arm, 1, 97.9), (arm, 1, 98.0), (arm, 1, 60.0)], (50.0, 100.0), 200)
    heights = sorted((100.0 - note["y"]) * 4 + note["ay"] for note in notes)
    assert heights[1] - heights[0] >= 16


def test_reach_keeps_delta_in_sight_and_shuts_out_what_would_hide_the_rest() -> None:
    low, high = reach([-0.1, 0.1, 0.2], least=1.0)
    assert (low < -1, high > 1) == (True, True)
    assert reach([-1.0, 0.5, -0.5, 1.0, -500.0], least=1.0)[0] > -20


def test_log_ticks_are_numbers_a_person_would_choose() -> None:
    assert log_ticks((-1.0, 0.0))["ticktext"] == ["0.1", "0.2", "0.5", "1"]
    assert log_ticks((-3.0, 1.0))["ticktext"] == ["0.001", "0.01", "0.1", "1", "10"]
