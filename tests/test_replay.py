"""Error rates of whole races, tuning included, on arms whose truth is known."""

import random
import runpy
import sys
from pathlib import Path

import pytest
from scripted import SIZE


@pytest.fixture(scope="module")
def replay():
    folder = Path(__file__).parent.parent / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        yield runpy.run_path(str(folder / "replay.py"))
    finally:
        sys.path.remove(str(folder))


def replays(replay, title: str, delta: float, count: int = 200) -> list:
    rng = random.Random(0)
    scenario = next(s for s in replay["SCENARIOS"] if (s.title, s.delta) == (title, delta))
    return [replay["invented"](scenario, rng) for _ in range(count)]


@pytest.mark.parametrize("delta", [0.5, 1.0])
def test_equal_arms_are_called_worse_in_at_most_5_percent_of_races(replay, delta: float) -> None:
    races = replays(replay, "A/A, 5 arms, every rate alike", delta)
    assert sum(race.false_worse for race in races) <= 0.05 * len(races)


def test_separately_tuned_clones_are_safe_and_none_is_better_by_delta(replay) -> None:
    races = replays(replay, "A/A, 2 arms, own tuning seeds", 1.0)
    assert sum(race.safe and race.seeds <= 16 for race in races) >= 0.9 * len(races)
    assert sum(race.kind == "winner" for race in races) <= 0.05 * len(races)


@pytest.mark.parametrize("title", ["digits, batch 32", "one of five better by delta + 0.1"])
@pytest.mark.parametrize("delta", [0.5, 1.0])
def test_named_arm_is_within_its_bound(replay, title: str, delta: float) -> None:
    races = replays(replay, title, delta)
    assert sum(race.regret > max(0.0, race.bound) for race in races) <= 0.05 * len(races)
    assert sum(race.regret > race.delta and race.kind != "undecided" for race in races) <= 0.05 * len(races)


def test_recorded_run_is_replayed(replay, tmp_path, monkeypatch, capsys) -> None:
    """Two clones: one with a single rate, one that is tuned anew in each replay."""
    rng = random.Random(0)
    rows = [
        {"arm": arm, "learning_rate": rate, "batch_size": SIZE, "seed": seed, "length": 1.0, "kind": "train"}
        | {"measures": {"judge": rng.gauss(0.95, 0.006), "validation": rng.gauss(0.95, 0.006)}}
        for arm, rate in (("batch", 0.1), ("again", 0.1), ("again", 0.3))
        for seed in range(24)
    ]
    plan = {"delta": 0.01, "looks": [8, 16, 24], "costs": {"batch": 0.0, "again": 0.0}}
    content = {"results": rows, "config": {"batch_sizes": [SIZE], "plan": plan}}
    (tmp_path / "results.json").write_text(replay["json"].dumps(content))
    monkeypatch.setattr("sys.argv", ["replay.py", "--run", str(tmp_path), "--clones", "--replays", "50"])
    replay["main"]()
    head, _, line = capsys.readouterr().out.splitlines()
    assert line.startswith("| batch size 8: batch, again | 0.01 |")
    assert line.count("|") == head.count("|")
