"""The catalogue: what entries say, and that a norm added at run time appears everywhere."""

import inspect
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import test_conformance
import test_conformance_masks
import test_conformance_tools
from conformance import PROMISES
from rich.console import Console
from torch import nn

import normwise
from normwise.cli import main
from normwise.errors import UsageError
from normwise.layers import NORMS
from normwise.layers.cards import table
from normwise.layers.drawing import drawing
from normwise.layers.explain import card, explain
from normwise.layers.spec import KEEP

TESTS = Path(__file__).parent

SUITE = (test_conformance, test_conformance_masks, test_conformance_tools)  # so that PROMISES holds all


@pytest.mark.parametrize("name", NORMS)
def test_what_a_norm_cannot_is_a_promise_and_has_a_reason(name: str) -> None:
    promises = {name.removeprefix("test_") for module in SUITE for name in vars(module)} & PROMISES
    for promise, reason in NORMS[name].cannot.items():
        test, _, mode = promise.partition(":")
        assert test in promises
        assert mode in ("", "train", "eval")
        assert re.fullmatch(r"[^\n]{15,150}[^.\n]", reason), "one line, no full stop"


@pytest.mark.parametrize("name", NORMS)
def test_every_norm_is_explained(name: str) -> None:
    content, text = explain(name), card(name)
    entry = NORMS[name]
    for said in (entry.summary, entry.formula, entry.when, entry.when_not, entry.paper, *entry.cannot.values()):
        assert said in text
    assert len(content["drawings"]) == len(entry.axes)
    assert len(content["cost"]) == 3
    assert json.loads(json.dumps(content, allow_nan=False))["name"] == name
    assert content["schema"] == 1
    assert max(map(len, text.splitlines())) < 250


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_that_takes_no_mask_says_so(name: str) -> None:
    takes = "mask" in inspect.signature(NORMS[name].cls.forward).parameters
    assert ("each position by itself: padding reaches no other, so it takes no mask" in card(name)) != takes


def test_the_steps_are_those_of_the_layer() -> None:
    steps = explain("instance")["steps"]
    assert steps["statistics"][0].startswith("mean over HW: 2, 8, 1, 6")
    assert steps["with weight 1, bias 0"][0].startswith("instance 0: -1.2247, 0, 1.2247 | -1.2247, 0, 1.2247")
    assert steps["with weight 2, bias 1"][0].startswith("instance 0: -1.4495, 1, 3.4495")


def planes(text: str) -> list[list[str]]:
    """What a norm makes of the numbers: by instance, then by channel."""
    first = list(explain(text)["steps"].values())[2]
    return [row.partition(": ")[2].split(" | ") for row in first]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("ibn:1", "instance"), ("ibn:0", "batch"), ("ghost:1", "instance"), ("group:4", "instance"),
        ("group:size=4", "layer"), ("renorm:1,d_max=0", "batch"), ("mixstyle:0", "mixstyle:0.01"),
        ("grn:axis=-1", "grn"), ("dyt:0.5,axis=-1", "dyt"), ("conditional-batch:embedding=2", "batch"),
    ],
)  # fmt: skip
def test_an_option_is_explained_by_its_own_numbers(text: str, same: str) -> None:
    assert planes(text) == planes(same)


def test_options_change_what_is_explained() -> None:
    """Each of them was once shown with the numbers of its default."""
    for text in ("ibn:1", "ghost:1", "group:4", "renorm:1,d_max=0", "dyt:3", "mixstyle:0"):
        assert planes(text) != planes(text.partition(":")[0])
    assert planes("dyt:3")[0][0] == "0.9951, 1, 1"  # tanh(3 * x) of 1, 2, 3


def test_the_pools_of_groups_follow_their_number() -> None:
    four, two = explain("group:4"), explain("group")
    own = explain("instance")
    assert [row.replace("C/g,", "") for row in four["steps"]["statistics"]] == own["steps"]["statistics"]
    assert four["drawings"] == own["drawings"]
    assert two["drawings"] != four["drawings"]
    assert "with the first value; drawn as group:2)" in card("group")
    assert "; drawn" not in card("group:4") + card("batch") + card("ibn")


def test_what_does_not_follow_the_option_says_so() -> None:
    assert "with the first value; drawn with its defaults)" in card("ibn:1")
    assert explain("ibn:1")["steps"]["statistics"][-1] == "(with its defaults)"
    assert explain("group:8")["steps"] == explain("group:2")["steps"]  # four channels have no eight groups
    assert "4 channels, 3 positions, as group:2\n" in card("group:8")
    assert explain("group:8")["tensors"][0]["count"] == 64


def test_the_pools_of_chunks_follow_their_size() -> None:
    """Three instances in chunks of two: the drawing, the statistics and the numbers have as many."""
    two = explain("ghost:2")
    assert [row[15:19] for row in two["drawings"][0].splitlines()[1:]] == ["████", "████", "····"]
    assert two["steps"]["statistics"][0] == "mean over N,HW: 2, 14, 1.5, 7, 2, 8, 3, 7"
    assert planes("ghost:2")[2] == planes("instance")[2]
    assert explain("ghost:1")["drawings"] == explain("instance")["drawings"]
    assert explain("ghost")["steps"] == two["steps"] != explain("batch")["steps"]
    assert "with the first value; drawn as ghost:2)" in card("ghost")
    assert "; drawn" not in card("ghost:2") + card("ghost:1")
    assert "on x of 3 instances" in card("batch")


def test_groups_that_do_not_divide_64_channels_are_explained() -> None:
    content = explain("group:3")
    assert content["channels"] == content["tensors"][0]["count"] == 66
    assert "(C)        66 for C = 66" in card("group:size=3")
    assert explain("group:128")["channels"] == 128
    with pytest.raises(UsageError, match="got 64 and 0"):
        explain("group:0")


def test_only_what_a_norm_learns_is_set() -> None:
    assert list(explain("rms-token")["steps"])[2:] == ["with weight 1", "with weight 2"]
    assert list(explain("adain")["steps"])[2:] == ["y"]
    assert list(explain("grn")["steps"])[2:] == ["with weight 1, bias 0", "with weight 2, bias 1"]


def test_what_is_not_promised_does_not_read_as_a_promise() -> None:
    text = card("none").split("What most norms promise and it does not\n")[1]
    assert text == "  not: a constant added everywhere changes nothing. Why: it does not subtract the mean"


@pytest.mark.parametrize("name", [name for name, entry in NORMS.items() if entry.kind == "plane"])
def test_it_is_told_what_fold_takes(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), normwise.build(name, 8)).eval()
    assert [change.path for change in normwise.fold(model).changes] == ["1"] * NORMS[name].fixed
    assert ("nw.fold" in str(explain(name)["cost"])) == NORMS[name].fixed


def test_what_a_norm_keeps_and_costs() -> None:
    content = explain("batch")
    assert [(t["name"], t["shape"], t["count"]) for t in content["tensors"]][2:4] == [
        ("running_mean", "(C)", 64),
        ("running_var", "(C)", 64),
    ]
    assert content["cost"][1].startswith("evaluation: reads x once, writes it once: 8 bytes a value; a fixed weight")
    assert explain("mixstyle")["cost"][1] == "evaluation: nothing, x itself comes back"
    assert explain("instance")["cost"][1] == "evaluation: reads x twice, writes it once: 12 bytes a value"
    assert "the threshold keeps" in explain("filter-response")["cost"][2]


def command(*arguments: str) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["normwise", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
    return end.value.code


def test_the_command_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--version") == 0
    assert capsys.readouterr().out == f"normwise {normwise.__version__}\n"


def test_the_command_explains(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("explain", "ibn:0.25", "--json") == 0
    first, *rest = json.loads(capsys.readouterr().out)["steps"]["with weight 1, bias 0"][0][12:].split(" | ")
    assert [first] == planes("instance")[0][:1]
    assert rest == planes("batch")[0][1:]
    assert command("explain", "ibn") == 0
    assert "instance 0     ████  ····  ····  ····" in capsys.readouterr().out
    assert command("explain", "bach") == 2
    assert "did you mean batch?" in capsys.readouterr().err


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"unknown norm 'bach', known are: none, batch, .*; did you mean batch"):
        explain("bach")


def test_a_long_message_is_wrapped_at_words_in_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("explain", "nonsense") == 2
    piped = capsys.readouterr().err
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert command("explain", "nonsense") == 2
    shown = capsys.readouterr().err
    assert piped.count("\n") == 1
    assert max(map(len, shown.splitlines())) <= 60
    assert shown.split() == piped.split()


def test_keep_is_explained_though_it_is_no_norm(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("explain", "keep") == 0
    assert capsys.readouterr().out == f"keep: {KEEP}\n"
    assert explain("keep") == {"schema": 1, "name": "keep", "summary": KEEP}
    with pytest.raises(UsageError, match=r"keep is for compare and swap: .*; to build one, name one of: none, batch, "):
        normwise.build("keep", 16)


def test_a_piped_list_has_a_line_for_each_norm(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert command("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["keep", *NORMS]
    for line, entry in zip(lines[1:], NORMS.values(), strict=True):
        assert entry.summary in line


@pytest.mark.parametrize("width", [40, 80, 160])
def test_a_terminals_list_breaks_no_word(width: int) -> None:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(table(width), markup=False, highlight=False)
    shown = captured.get()
    assert max(map(len, shown.splitlines())) <= width
    words = set(shown.split())
    assert {"keep", *NORMS} <= words
    for entry in NORMS.values():
        assert set(entry.summary.split()) <= words
        assert set(entry.when.split()) <= words or width < 120


@pytest.mark.parametrize(
    ("axes", "first", "rest"),
    [
        ("HW", "████  ····  ····  ····", "····  ····  ····  ····"),
        ("N,HW", "████  ····  ····  ····", "████  ····  ····  ····"),
        ("C/g,HW", "████  ████  ····  ····", "····  ····  ····  ····"),
        ("C,HW", "████  ████  ████  ████", "····  ····  ····  ····"),
        ("C", "█···  █···  █···  █···", "····  ····  ····  ····"),
        ("F", "████  ····  ····  ····", "····  ····  ····  ····"),
    ],
)
def test_drawings(axes: str, first: str, rest: str) -> None:
    head, *rows = drawing(axes).splitlines()
    assert head.split() == ["token" if axes == "F" else "channel", "0", "1", "2", "3"]
    assert [row[15:] for row in rows] == [first, rest, rest]
    assert head.index("1") - head.index("0") == 6


ADDED = '''
"""A norm that somebody adds: its class, its line in NORMS, its reference. Nothing else."""
from functools import partial
import references
from normwise.layers import NORMS, NormEntry
from normwise.layers.base import TableNorm
from normwise.ops import standardize

class PairNorm(TableNorm):
    tracks = None
    def rule(self, x):
        return partial(rule, eps=self.eps)

def rule(table, weight, bias, *, eps):
    return standardize(table.pool(1, 2), eps).learned(weight, bias)

NORMS["pair"] = NormEntry(
    name="pair", cls=PairNorm, make=PairNorm, axes=("C/g,HW",), summary="two groups", formula="y = x", pools="pairs",
    when="tests", when_not="otherwise",
)
references.REFERENCES["pair"] = lambda x, state, training, mask=None: references.group(x, state, training, mask, 2)
'''


def test_a_norm_added_in_three_places_appears_everywhere(tmp_path: Path) -> None:
    (tmp_path / "added.py").write_text(ADDED)
    paths = os.pathsep.join(map(str, [tmp_path, TESTS, TESTS.parent / "src"]))
    environment = {**os.environ, "PYTHONPATH": paths}

    def python(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], env=environment, cwd=TESTS.parent, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run = "import sys, added; from normwise.cli import main; sys.argv[1:] = {}; main()"
    assert "two groups" in python("-c", run.format(["list"]))
    assert "pair: two groups" in python("-c", run.format(["explain", "pair"]))
    few = "pair and (reference or mask_equals or neighbours)"
    suite = [str(TESTS / name) for name in ("test_conformance.py", "test_conformance_masks.py")]
    assert "12 passed" in python("-m", "pytest", "-q", "-p", "added", "-p", "no:cacheprovider", "-k", few, *suite)
