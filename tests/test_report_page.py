"""The page as text: complete, self-contained, escaped, and ordered for a screen reader."""

import json
import re
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import report_content as made

from normwise.report import page, pools, tables
from normwise.report.view import View

VARIANTS = ("content", "tie", "undecided", "diverged", "hostile", "bare", "unfinished", "regression")
VOID = {"meta", "link", "br", "rect", "img"}


class Reader(HTMLParser):
    """Reads a page into elements with their attributes and their whole text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag, f"{tag} closes what it did not open"

    def handle_data(self, data: str) -> None:
        for _, _, texts in self.open:
            texts.append(data)

    def all(self, *tags: str) -> list[tuple[str, dict[str, str | None], str]]:
        return [(tag, attrs, "".join(texts)) for tag, attrs, texts in self.elements if tag in tags]


@cache
def rendered(variant: str) -> str:
    return page.render(getattr(made, variant)())


@cache
def read(variant: str) -> Reader:
    return Reader(rendered(variant).replace(page.plotly_source(), ""))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_verdict_is_the_one_first_heading(variant: str) -> None:
    (heading,) = read(variant).all("h1")
    assert heading[2] == getattr(made, variant)()["verdict"]["statement"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_headings_go_down_one_step_at_a_time(variant: str) -> None:
    levels = [int(tag[1]) for tag, _, _ in read(variant).all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_screen_reader_finds_its_way(variant: str) -> None:
    found = read(variant)
    assert [len(found.all(tag)) for tag in ("header", "main", "footer", "title")] == [1, 1, 1, 1]
    assert found.all("html")[0][1]["lang"] == "en"
    ids = [attrs["id"] for _, attrs, _ in found.all(*{tag for tag, _, _ in found.elements}) if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs, _ in found.all("section"):
        assert attrs["aria-labelledby"] in ids
    for _, attrs, _ in found.all("a"):
        assert (attrs["href"] or "")[1:] in ids
    for _, attrs, _ in found.all("div"):
        assert "role" not in attrs or attrs["role"] == "note" or attrs["aria-label"]
    for tag, attrs, _ in found.all("th"):
        assert attrs["scope"] in ("col", "row"), tag
    assert len(found.all("table")) == len(found.all("caption"))
    assert len(found.all("figure")) == len(found.all("figcaption"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_loaded_from_anywhere(variant: str) -> None:
    text = rendered(variant).replace(page.plotly_source(), "")
    assert not re.search(r"https?:|url\(|@import", text)
    addresses = [v for _, attrs, _ in read(variant).elements for k, v in attrs.items() if k in ("src", "href")]
    assert all(address and address.startswith(("#", "data:,")) for address in addresses)


@pytest.mark.parametrize("variant", VARIANTS)
def test_user_text_is_never_markup(variant: str) -> None:
    found = read(variant)
    assert len(found.all("script")) == 3
    assert not found.all("img")
    assert not [name for _, attrs, _ in found.elements for name in attrs if name.startswith("on")]
    data = found.all("script")[0][2]
    assert "<" not in data
    assert json.loads(data)["panels"].keys() <= {attrs["id"] for _, attrs, _ in found.all("figure")}


def test_hostile_names_are_shown_as_they_are() -> None:
    found = read("hostile")
    columns = [text for _, attrs, text in found.all("th") if attrs["scope"] == "col"]
    assert '<script>alert("arm")</script>' in columns
    assert '{"layer1.*": "ibn:0.5", "*": "gruppe:größe=4 – 归一化"}' in columns
    reasons = [text for _, _, text in found.all("td")]
    assert "</td><script>alert(3)</script>" in reasons


def test_the_page_is_small_enough_to_send() -> None:
    assert len(rendered("content").encode()) < 5_200_000


def test_a_large_run_stays_under_six_megabytes() -> None:
    content = made.content()
    names = [f"group:{i}" for i in range(1, 9)]
    content["results"] = [
        row
        | {
            "arm": name,
            "batch_size": size,
            "curve": [[e, 1 / (e + seed / 7), 0.5 + e / 200] for e in range(1, 61)],
        }
        for row in content["results"]
        if (row["arm"], row["batch_size"], row["stage"]) == ("batch", 64, "race")
        for seed in [row["seed"]]
        for name in names
        for size in (2, 8, 64)
    ]
    assert len(page.render(content).encode()) < 6_000_000


def test_how_sure_and_at_what_cost_stand_under_the_verdict() -> None:
    said = {
        name: text
        for (_, _, name), (_, _, text) in zip(read("content").all("dt"), read("content").all("dd"), strict=True)
    }
    assert said["How sure"] == (
        "95 % confidence from 16 to 24 paired seeds: at most 0.8 points may be lost to another arm; "
        "up to delta, 1.0 points, counts as none."
    )
    assert said["Cost"].startswith("424 trials, 3 min 34 s on 2 workers, cpu, fp32. At inference batch folds away")
    assert 'from 0.4 points (batch) to 1.5 points ("none")' in said["Training length"]
    assert "12 epochs; at twice the length no change of the order was shown." in said["Training length"]
    assert said["Over batch sizes"].startswith("Over batch sizes 8 and 64 batch loses least")


def test_a_tie_names_who_ties() -> None:
    text = "".join(text for _, _, text in read("tie").all("dd"))
    assert "batch and batch-instance tie within that." in text


def test_an_undecided_run_says_that_the_bound_is_beyond_delta() -> None:
    text = "".join(text for _, _, text in read("undecided").all("dd"))
    assert "at most 1.4 points may be lost to another arm; that is more than delta, 1.0 points" in text


def test_a_winner_has_nothing_to_lose() -> None:
    content = made.content()
    content["verdict"]["regret_bound"] = 0.0
    assert "16 to 24 paired seeds: no other arm is better." in page.render(content)


def test_a_run_without_a_look_gives_no_bound() -> None:
    text = "".join(text for _, _, text in read("unfinished").all("dd"))
    assert "No look was taken yet" in text
    assert "not checked at twice the length" in text


def test_the_next_step_is_a_line_to_copy() -> None:
    found = read("content")
    code = {attrs["id"]: text for _, attrs, text in found.all("code")}
    config = made.content()["config"]
    assert code == {"swap": config["next_step"], "command": config["command"]}
    assert [attrs["data-copy"] for _, attrs, _ in found.all("button")] == ["swap", "command"]
    text = "".join(text for _, _, text in found.all("section"))
    assert "train at batch size 64 with learning rate 0.15" in text


def test_an_unfinished_run_says_how_to_go_on_and_advises_nothing() -> None:
    found = read("unfinished")
    (banner,) = [text for _, attrs, text in found.all("div") if attrs.get("class") == "banner"]
    assert "Interrupted; continue with" in banner
    code = {attrs["id"]: text for _, attrs, text in found.all("code")}
    assert code == {"continue": made.unfinished()["config"]["command"]}


def test_a_finished_run_has_no_banner() -> None:
    assert not [attrs for _, attrs, _ in read("content").all("div") if attrs.get("class") == "banner"]


def test_each_drawing_says_its_numbers_where_it_cannot_be_drawn() -> None:
    found = read("content")
    drawn = [attrs for _, attrs, _ in found.all("div") if attrs.get("class") == "plot"]
    fallbacks = [text for _, attrs, text in found.all("p") if attrs.get("class") == "fallback"]
    assert len(drawn) == len(fallbacks) == 19
    assert all((attrs["aria-label"] or "-") in text for attrs, text in zip(drawn, fallbacks, strict=True))
    assert "instance \u22120.6 (\u22120.9 to \u22120.3), n 24" in fallbacks[1]
    assert found.all("noscript")


def test_the_scorecard_puts_intervals_in_small_type() -> None:
    table = tables.scorecard(View(made.content()))
    assert table is not None
    score = table.lines[1]
    assert (score.title, score.unit) == ("Score", "%, batch size 8")
    assert (score.cells[0].text, score.cells[0].small[:6]) == ("97.9", "(97.5 ")
    assert "judge" in score.remark
    assert table.lines[2].remark == "", "said once for rows of one measure"


def test_the_scorecard_says_in_words_what_is_averaged() -> None:
    table = tables.scorecard(View(made.content()))
    assert table is not None
    assert [cell.text for cell in table.lines[0].cells] == [
        "instances and positions",
        "positions",
        "the channels of a group and positions",
        "channels and positions",
        "instances and positions, blended with positions",
        "nothing",
    ]


def test_notes_become_numbered_footnotes_of_arms_and_cells() -> None:
    table = tables.scorecard(View(made.content()))
    assert table is not None
    assert [column.notes for column in table.columns] == [(), (1, 2), (), (), (), ()]
    values = next(line for line in table.lines if line.title == "Values per statistic")
    assert [cell.notes for cell in values.cells] == [(3,), (1,), (), (), (), ()]
    assert [title for title, _ in table.notes] == [
        "Instance norm before global pooling",
        "High learning rate",
        "",
    ]
    assert table.notes[2][1].startswith("Two values per statistic")


def test_all_numbers_stand_in_a_table_per_batch_size() -> None:
    first, second = tables.numbers(View(made.content()))
    assert first.caption.startswith("Batch size 8: differences are to batch")
    line = next(line for line in second.lines if line.title == "layer")
    cells = dict(zip(tables.NUMBERS, line.cells, strict=True))
    assert cells["Learning rate"].text == "0.05"
    assert cells["Seeds"].text == "16"
    assert re.fullmatch(r"\u22121\.\d", cells["Difference"].text)
    assert re.fullmatch(r"\(\u2212\d\.\d to \u2212\d\.\d\)", cells["Difference"].small)
    assert cells["State"].text == "dropped: worse"
    assert cells["Cost"].text == "61.4 thousand"
    assert cells["At twice the length"].text == ""


def test_a_bound_is_rounded_up() -> None:
    content = made.content()
    content["verdict"]["per_batch_size"][0]["arms"][0]["bound"] = 0.00701
    line = tables.numbers(View(content))[0].lines[0]
    assert dict(zip(tables.NUMBERS, line.cells, strict=True))["Regret bound"].text == "0.8 points"


def test_an_arm_of_which_nothing_is_known_keeps_its_line() -> None:
    content = made.content()
    content["verdict"]["per_batch_size"][0]["arms"][3].update(mean=None, low=None, high=None, difference=None)
    lines = tables.numbers(View(content))[0].lines
    assert [line.title for line in lines][-1] == "layer"
    assert len(lines) == 6


def test_failed_trials_stand_with_their_reasons() -> None:
    table = tables.failures(View(made.diverged()))
    assert table is not None
    assert table.caption == "2 of 420 trials failed"
    assert [cell.text for cell in table.lines[0].cells] == [
        "64", "0.05", "0", "1", "race", "diverged", "training loss became nan in epoch 3",
    ]  # fmt: skip
    assert tables.failures(View(made.content())) is None


def test_a_long_list_of_failures_is_cut_and_says_so() -> None:
    content = made.content()
    for row in content["results"]:
        row.update(status="failed", reason="out of memory")
    table = tables.failures(View(content))
    assert table is not None
    assert len(table.lines) == 200
    assert "the first 200 are shown, results.csv has all" in table.caption


def test_settings_read_as_words() -> None:
    table = tables.settings("Plan", {"rates": [[8, [0.1, 0.3]]], "length_check": True, "limit": None, "by": {"a": 1}})
    assert table is not None
    assert [(line.title, line.cells[0].text) for line in table.lines] == [
        ("rates", "8: 0.1, 0.3"), ("length check", "yes"), ("limit", "not set"), ("by", "a: 1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shaded", "dots"),
    [
        ("N,HW", 4, 0),
        ("HW", 1, 0),
        ("C,HW", 8, 0),
        ("C/4,HW", 2, 0),
        ("C/g,HW", 2, 0),
        ("C/32,HW", 1, 0),
        ("F", 0, 8),
        ("nothing", 0, 0),
        ("blend: N,HW + HW", 5, 0),
        ("HW; N,HW", 5, 0),
        ("HW + C,HW + N,HW", 13, 0),
    ],
)
def test_the_drawing_shades_what_shares_one_statistic(text: str, shaded: int, dots: int) -> None:
    drawn = pools.drawing(text, "#0072B2", "#3393cf")
    assert drawn.count('width="13" height="13" rx="1.5" fill="currentColor"') == shaded
    assert drawn.count('width="4" height="4" fill="currentColor"') == dots
    assert drawn.count('class="plane"') == 32 * max(1, len(pools.pools(text))) - shaded


def test_an_arm_whose_network_was_not_seen_has_no_drawing() -> None:
    content = made.content()
    content["config"]["arms"][0]["pools"] = ""
    names = [arm["name"] for arm in page._pools(View(content))]
    assert names == list(made.ARMS[1:])


def test_one_batch_size_needs_no_list_of_verdicts() -> None:
    headings = [text for _, _, text in read("bare").all("h2")]
    assert headings == ["The evidence at batch size 64", "Next step", "Details"]


def test_write_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    page.write(made.bare(), path)
    assert path.read_text() == rendered("bare")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_the_tables_of_a_report_need_no_score_unit() -> None:
    cells: Any = tables.numbers(View(made.regression()))[0].lines[0].cells
    assert "%" not in cells[2].text
