"""The claims in print: the page, the table in a terminal, the documentation, the figures and the words."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from invented_claims import claim, experiment, made, working

from normwise import cli
from normwise.claims.content import claims_content
from normwise.claims.gather import Gathered
from normwise.claims.registry import CLAIMS
from normwise.report import claims as page
from normwise.report import claims_figure, claims_text, claims_words

ROWS_OF = {"B1": "Use case", "I2": "Normalization basis"}


OTHERS = {"second": "supported", "third": "supported", "fourth": "contradicted"}


def test_the_page_shows_every_number_and_escapes():
    content = {"claims": made([0.2, 0.21, 0.19, 0.2]), "config": {"budget": "1m", "family": 1}}
    text = page.render(content)
    assert "20.0 points (18.7 to 21.3 points, 4 seeds)" in text
    assert "A &lt;caption&gt;." in text
    assert "<caption>." not in text.replace("A &lt;caption&gt;.", "")
    assert "run X" in text
    assert "effect of" in text


def test_the_figure_has_a_point_for_each_setting():
    content = made([0.2, 0.3])
    (line,) = content[0]["figure"]["lines"]
    assert [(point["x"], point["mean"]) for point in line["points"]] == [("a", 0.0), ("b", 0.25)]


def test_pictures_stand_in_the_page(tmp_path):
    from normwise.claims.pictures import add_pictures

    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "X-01-batch on original images.png").write_bytes(b"png")
    (tmp_path / "pictures" / "X.txt").write_text("Features of nothing.")
    content = made([0.2, 0.3])
    add_pictures(content, tmp_path)
    assert content[0]["figure"]["pictures_note"] == "Features of nothing."
    assert content[0]["figure"]["pictures"][0]["name"] == "batch on original images"
    assert 'src="data:image/png;base64,cG5n"' in page.render({"claims": content, "config": {}})


def test_without_a_measurement_the_page_says_so(tmp_path: Path):
    content = claims_content([claim("X", experiment(working))], {}, 1, str)
    page.write({"claims": content, "config": {"finished": False}}, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "nothing was measured" in text
    assert "Interrupted" in text


def test_the_documentation_shows_the_recorded_run_and_a_short_one_beside_it():
    config = {"budget": "60m", "family": 1, "date": "2026-11-22 15:00 UTC", "machine": {"system": "Linux", "cores": 2}}
    content = {"claims": made([0.2, 0.21, 0.19, 0.2]), "config": config}
    text = claims_text.markdown(content, {"claims": made([0.1, 0.3])})
    assert "Recorded 2026-11-22 15:00 UTC" in text
    assert "on 2 cores, Linux" in text
    assert "| Part | Mean | Interval | Quick run | Seeds | Verdict |\n" in text
    assert "| first | 20.0 points | 18.7 to 21.3 points | \u2212" in text
    assert "points (2 seeds, undecided) | 4 | supported |" in text
    assert "**row**" in text
    assert "## X Title & more: ✓ supported" in text
    assert "run X" in text
    assert "A \\<caption\\>." in text


def test_the_documentation_says_which_short_run_stands_beside_the_recorded_one():
    long = {"claims": made([0.2, 0.21]), "config": {"budget": "60m", "family": 1, "date": "on Monday"}}
    config = {"budget": "quick", "family": 1, "date": "on Tuesday", "seed": 1, "seconds": 295.0}
    text = claims_text.markdown(long, {"claims": made([0.1, 0.3]), "config": config})
    assert "Recorded on Monday, 0 s." in text
    assert "of a short one: on Tuesday, seed 1, 4 min 55 s. Budget quick: 2 seeds a number. It would show an" in text
    assert "Quick run" not in claims_text.markdown(long)


def part(detectable, seeds, delta=0.1):
    return {"detectable": detectable, "delta": delta, "seeds": seeds}


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            [part(7.658, 2), part(7.658, 24)],
            "2 to 24 seeds a number. Half of the numbers would show an effect 77 times",
        ),
        ([part(0.05666, 10), part(0.05666, 10)], "Budget 1m: 10 seeds a number. Half of the numbers would show an"),
        ([part(0.05666, 10)], "It would show an effect 57 % as large as the smallest one of interest in 80 of 100"),
        ([part(0.0999, 3)], "It would show an effect as large as the smallest one"),
        ([part(0.2, 3)], "It would show an effect twice as large as the smallest one"),
        ([part(None, 1), part(0.15, 8)], "8 seeds a number. It would show an effect 1.5 times as large as"),
    ],
)
def test_what_the_budget_bought_is_said_in_plain_words(parts, said):
    assert said in claims_words.bought({"claims": [{"parts": parts}], "config": {"budget": "1m", "family": 76}})


def test_where_nothing_was_measured_the_budget_bought_nothing():
    assert claims_words.bought({"claims": [{"parts": [part(None, 0)]}], "config": {}}) == ""


def test_the_paragraph_names_the_other_parts_by_verdict():
    first = made([0.2, 0.21, 0.19, 0.2])[0]
    others = [{**first["parts"][0], "name": name, "verdict": verdict} for name, verdict in OTHERS.items()]
    said = claims_words.paragraph({**first, "parts": [*first["parts"], *others]})
    assert said.startswith("Supported, first: b minus a: 20.0 points (18.7 to 21.3 points, 4 seeds).")
    assert "Also supported: second: 20.0 points; third: 20.0 points. Contradicted: fourth: 20.0 points." in said


def printed(content, capsys):
    """What `normwise claims` prints of this content."""
    cli._show(content, False, lambda: page.console(content))
    return capsys.readouterr().out


def test_the_terminal_shows_the_rows_of_the_textbooks_table_with_measured_and_verdict(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    use, basis = ({**made([0.2, 0.21, 0.19, 0.2])[0], "id": name, "row": row} for name, row in ROWS_OF.items())
    text = printed({"claims": [use, basis], "config": {}}, capsys)
    rows = [line.split("\u2502")[1:-1] for line in text.splitlines() if line.startswith("\u2502")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["", "Normalization basis", "", ""],
        ["I2", "b is better than a.", "✓ first: 20.0 points", "✓ supported"],
        ["", "Use case", "", ""],
        ["B1", "b is better than a.", "✓ first: 20.0 points", "✓ supported"],
    ]


def test_the_terminal_shows_brackets_as_they_are(capsys):
    """The command prints without markup, so what is bold must be styled, not tagged."""
    claim = {**made([0.2, 0.21, 0.19, 0.2])[0], "row": "[bold]a[/bold]"}
    assert "[bold]a[/bold]" in printed({"claims": [claim], "config": {}}, capsys)
    assert "\\" not in printed({"claims": [claim], "config": {}}, capsys)


def test_the_terminal_says_where_the_page_is_and_how_to_go_on(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    content = {"claims": made([0.2, 0.21]), "config": {"folder": "/runs/" + "claims" * 9, "finished": True}}
    said = printed(content, capsys).replace("\n", "")
    assert f"report: /runs/{'claims' * 9}/report.html" in said
    assert "interrupted" not in said
    content["config"]["finished"] = False
    said = printed(content, capsys).replace("\n", "")
    assert f"interrupted; the same command continues with --out /runs/{'claims' * 9}" in said


def test_an_interrupted_run_says_once_how_to_go_on(capsys, monkeypatch):
    content = {"claims": made([0.2, 0.21]), "config": {"folder": "there", "finished": False}}
    monkeypatch.setattr("normwise.claims.session.run_claims", lambda *_, **__: content)
    monkeypatch.setattr(sys, "argv", ["normwise", "claims"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr()
    assert (stop.value.code, (said.out + said.err).count("interrupted")) == (130, 1)


def test_every_row_of_the_textbooks_table_has_a_claim():
    assert {claim.row for claim in CLAIMS.values()} == set(claims_words.ROWS)


def test_lines_named_by_a_bare_number_say_what_it_is():
    cells = {"norm=a": {"judge": 0.1}, "norm=a,dropout=0.3": {"judge": 0.2}}
    one = replace(claim("X", experiment(working)), chart=replace(claim("X", experiment(working)).chart, by="dropout"))
    content = claims_content([one], {"working": Gathered({1: cells}, {})}, 1, str)
    assert [line["name"] for line in content[0]["figure"]["lines"]] == ["usual", "dropout 0.3"]


def test_numbers_are_drawn_in_order_with_ticks_where_something_was_measured():
    content = made([0.2, 0.3])[0]
    points = [{"x": x, "mean": 0.5, "low": 0.4, "high": 0.6, "seeds": 2} for x in ("512", "8")]
    content["figure"] |= {"lines": [{"name": "batch", "points": points}], "log_x": True}
    drawn = claims_figure.figure(content).panels[0].figure
    assert drawn["data"][0]["x"] == [8.0, 512.0]
    assert drawn["layout"]["xaxis"]["ticktext"] == ["8", "512"]
    assert not drawn["layout"]["showlegend"]


def test_names_are_drawn_as_rows_in_their_order_within_the_range_of_the_bars():
    content = made([0.2, 0.3])[0]
    lines = [
        {"name": name, "points": [{"x": x, "mean": 0.8, "low": 0.7, "high": 0.9, "seeds": 2} for x in ("none", "<b>")]}
        for name in ("wide", "deep")
    ]
    content["figure"]["lines"] = lines
    drawn = claims_figure.figure(content).panels[0].figure
    assert drawn["layout"]["yaxis"]["categoryarray"] == ["none", "&lt;b&gt;"]
    low, high = drawn["layout"]["xaxis"]["range"]
    assert 0.6 < low < 0.7
    assert 0.9 < high < 1.0
    assert drawn["layout"]["showlegend"]
