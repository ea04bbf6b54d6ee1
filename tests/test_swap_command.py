"""`normwise swap`: what it writes, and what it refuses in a sentence, with nothing written; in Python too."""

import json
import sys
from pathlib import Path

import pytest
from models import plain, untouched
from safetensors.torch import load_file
from torch import nn

import normwise as nw
from normwise.cli import main
from normwise.errors import UsageError

MODEL = """
from torch import nn

def make():
    return nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) for _ in range(7)))
"""


def swap(folder: Path, *arguments: str) -> object:
    """The exit code of the command on this model."""
    (folder / "net.py").write_text(MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["normwise", "swap", f"{folder / 'net.py'}:make", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
    return end.value.code


def test_the_command_writes_the_plan_and_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert swap(tmp_path, "instance", "--where", "2.*", "-o", str(tmp_path / "out"), "--json") == 0
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert json.loads(capsys.readouterr().out) == plan
    assert [change["path"] for change in plan["changes"]] == ["2.1"]
    weights = load_file(tmp_path / "out" / "weights.safetensors")
    assert "2.1.weight" in weights
    assert "2.1.running_mean" not in weights
    assert "3.1.running_mean" in weights


@pytest.mark.parametrize("last", ["-o", "--dry-run"])
def test_where_that_matches_nothing(last: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert swap(tmp_path, "group:2", "--where", "stage1.*", *([last, str(out)] if last == "-o" else [last])) == 2
    said = capsys.readouterr()
    assert said.err == (
        "normwise: swap: where='stage1.*' matches no normalization layer, known are: '0.1', '1.1', '2.1', '3.1', "
        "'4.1' and 2 more; give such a path, or a pattern for several such as 'layer1.*'.\n"
    )
    assert not said.out
    assert not out.exists()


def test_a_mapping_that_matches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert swap(tmp_path, '{"stage1.*": "group:2", "x": "instance"}', "-o", str(out)) == 2
    assert capsys.readouterr().err == (
        "normwise: swap: the mapping's 'stage1.*', 'x' matches no normalization layer, known are: '0.1', '1.1', '2.1', "
        "'3.1', '4.1' and 2 more; give such a path, or a pattern for several such as 'layer1.*'.\n"
    )
    assert not out.exists()
    assert swap(tmp_path, '{"stage1.*": "group:2", "0.1": "keep"}', "--dry-run") == 0
    assert "pattern 'stage1.*' matches no normalization layer" in capsys.readouterr().out


def test_the_command_says_what_it_wrote_and_what_it_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert swap(tmp_path, "instance", "-o", str(out)) == 0
    first = capsys.readouterr().out
    assert "7 layers changed" in first
    assert first.endswith(f"written to {out}: plan.json, weights.safetensors\n")
    assert swap(tmp_path, "group:2", "-o", str(out)) == 0
    again = capsys.readouterr().out
    assert again.endswith(f"written to {out}: plan.json, weights.safetensors (replaced an earlier swap's)\n")
    assert swap(tmp_path, "group:2", "--dry-run") == 0
    assert "written" not in capsys.readouterr().out


def test_the_command_says_that_nothing_was_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert swap(tmp_path, "keep", "-o", str(out)) == 0
    said = capsys.readouterr().out
    assert "swap: 0 layers changed\n" in said
    assert said.endswith("weights.safetensors; no layer was changed: these are the model's own weights\n")
    assert json.loads((out / "plan.json").read_text())["changes"] == []


def test_no_folder_to_write_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert swap(tmp_path, "group:2") == 2
    assert "give -o FOLDER, or --dry-run to see the plan only" in capsys.readouterr().err


def test_where_that_matches_nothing_in_python() -> None:
    model = nn.Sequential(plain(), plain())
    message = r"swap: where='nowhere', '2\.\*' matches no normalization layer, known are: '0.1', '0.4', '1.1', '1.4'; "
    with untouched(model), pytest.raises(UsageError, match=message):
        nw.swap(model, "group:2", where=["nowhere", "2.*"])
    plan = nw.swap(model, "group:2", where=["nowhere", "0.1"])
    assert [change.path for change in plan.changes] == ["0.1"]
    assert plan.notes == ("pattern 'nowhere' matches no normalization layer; the first is at '0.1'.",)


def test_a_mapping_that_matches_nothing_in_python() -> None:
    model = nn.Sequential(plain(), plain())
    with (
        untouched(model),
        pytest.raises(UsageError, match=r"swap: the mapping's '7' matches .*'0.1', '0.4', '1.1', '1"),
    ):
        nw.swap(model, {"7": "group:2"})
    message = r"the mapping's '1\.\*' matches no normalization layer of where='0\.\*', known are: '0.1', '0.4'; "
    with untouched(model), pytest.raises(UsageError, match=message):
        nw.swap(model, {"1.*": "group:2"}, where="0.*")
    assert not nw.swap(model, {"7": "group:2"}, where=[]).changes
