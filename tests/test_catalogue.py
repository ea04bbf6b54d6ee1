"""The catalogue: what entries say, and that a norm added at run time appears everywhere."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import test_conformance
import test_conformance_masks
import test_conformance_tools
from conformance import PROMISES

import normwise
from normwise.cli import main
from normwise.errors import UsageError
from normwise.layers import NORMS
from normwise.layers.drawing import drawing
from normwise.layers.explain import card, explain

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


def test_the_steps_are_those_of_the_layer() -> None:
    steps = explain("instance")["steps"]
    assert steps["statistics"][0].startswith("mean over HW: 2, 8, 1, 6")
    assert steps["with weight 1, bias 0"][0].startswith("instance 0: -1.2247, 0, 1.2247 | -1.2247, 0, 1.2247")
    assert steps["with weight 2, bias 1"][0].startswith("instance 0: -1.4495, 1, 3.4495")


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
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(explain("ibn:0.25")))
    assert command("explain", "ibn") == 0
    assert "instance 0     ████  ····  ····  ····" in capsys.readouterr().out
    assert command("explain", "bach") == 2
    assert "did you mean batch?" in capsys.readouterr().err


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"unknown norm 'bach', known are: none, batch, .*; did you mean batch"):
        explain("bach")


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
    def rule(self):
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
