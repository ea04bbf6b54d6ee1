"""What a command leaves behind and says when it cannot start, is stopped early, or is asked to go on with nothing."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from normwise import cli
from normwise.errors import UsageError
from normwise.experiment import prepare, session
from normwise.experiment.compare import run_request
from normwise.experiment.request import Request

HERE = Path(__file__).parent
SMALL = Request(
    model=f"{HERE}/small_task.py:model",
    data=f"{HERE}/small_task.py:data",
    epochs=1,
    norms=["batch", "none"],
    batch_sizes=[16],
    budget="110trials",
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("other", [None, "weights.safetensors"])
def test_a_folder_without_a_run_needs_a_task(other: str | None, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """It silently trained the digits into it."""
    if other:
        Path("there").mkdir()
        Path("there", other).touch()
    monkeypatch.setattr(sys, "argv", ["normwise", "compare", "--out", "there"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "no run in there to go on with; name a task: normwise compare digits --out there" in capsys.readouterr().err
    assert [path.name for path in Path().rglob("*.*")] == ([other] if other else [])


def test_too_few_trials_are_refused_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_full_length", lambda result: pytest.fail("it was timed"))
    with pytest.raises(UsageError, match="the smallest that works is 22trials"):
        run_request(Request(**{**SMALL.to_dict(), "budget": "5trials"}))
    assert list(Path("runs").iterdir()) == []


def test_a_refused_run_leaves_a_folder_that_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine").mkdir()
    with pytest.raises(UsageError, match="too small"):
        run_request(Request(**{**SMALL.to_dict(), "budget": "5trials"}), out="mine")
    assert Path("mine").is_dir()


def test_stopped_before_the_plan_it_says_how_to_continue(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "make_plan", stopped)
    command = ["normwise", "compare", "--model", SMALL.model, "--data", SMALL.data, "--batch-size", "16"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    (made,) = Path("runs").iterdir()
    said = [line for line in capsys.readouterr().err.splitlines() if "interrupted" in line]
    assert len(said) == 1
    assert said[0].startswith("normwise: interrupted; continue with: normwise compare ")
    assert said[0].endswith(f"--out {made}")
    assert (made / "config.json").exists()


def test_timing_shows_how_far_it_is(capsys: Any) -> None:
    content = run_request(SMALL, dry_run=True)
    assert content["config"]["plan"]["arms"] == ("batch", "none")
    assert re.match(r"timing a few steps of each arm: \d of 8\n", capsys.readouterr().err)
