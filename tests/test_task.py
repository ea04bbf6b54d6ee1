"""Tasks: their samples, a training loop of the user's own, and the way to another process."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from small_tasks import X, Y, arrays, given

from normwise.errors import UsageError
from normwise.experiment.resolve import resolve
from normwise.experiment.task import Parts, task


def train(trial: Any) -> tuple[float, float]:
    return trial.lr, trial.lr


class TestParts:
    def test_same_for_the_same_seed(self) -> None:
        found = resolve(given())
        first, again, other = found.parts(1), found.parts(1), found.parts(2)
        assert all(torch.equal(arrays(a).inputs, arrays(b).inputs) for a, b in zip(first, again, strict=True))
        kept, same = (arrays(part.validation).inputs[:, 0].sort().values for part in (first, other))
        assert torch.equal(kept, same)
        assert found.sizes() == {"train": 67, "validation": 20, "judge": 33}

    def test_groups(self) -> None:
        found = resolve(given(groups=[f"person {i // 6}" for i in range(120)], data=lambda: (X, torch.arange(120) % 2)))
        rows = {tuple(row.tolist()): i // 6 for i, row in enumerate(X)}
        met = [{rows[tuple(x.tolist())] for x in arrays(part).inputs} for part in found.parts(0)]
        assert sum(map(len, met)) == 20 == len(set().union(*met))
        assert "groups are kept together" in " ".join(found.assumptions)

    @pytest.mark.parametrize("kind", [torch.tensor, np.array, list, range])
    def test_own_split_by_indices(self, kind: Callable[[Any], Any]) -> None:
        def split(seed: int) -> Any:
            cuts = (range(seed, 60), range(60, 90), range(90, 120))
            return cuts if kind is range else tuple(kind(list(cut)) for cut in cuts)

        parts = resolve(given(split=split)).parts(2)
        assert isinstance(parts, Parts)
        assert [len(part) for part in parts] == [58, 30, 30]
        assert torch.equal(arrays(parts.train).inputs[:, 0].sort().values, X[2:60, 0].sort().values)

    def test_own_split_into_data_sets(self) -> None:
        found = resolve(given(split=lambda seed: ((X[seed:], Y[seed:]), (X[:9], Y[:9]), (X[9:12], Y[9:12]))))
        assert [len(part) for part in found.parts(20)] == [100, 9, 3]

    @pytest.mark.parametrize(
        ("drawn", "message"),
        [
            ((range(60), range(60, 120)), r"must return \(train, validation, judge\), got a tuple of 2"),
            (
                (range(60), range(50, 90), range(90, 120)),
                "a sample stands in two of train, validation and judge",
            ),
            ((range(60), range(60, 90), range(90, 121)), r"indices must lie in 0 .. 119, got 0 .. 120"),
            ((range(60), range(0), range(90, 120)), "validation is empty"),
            (
                (torch.rand(3), torch.rand(3), torch.rand(3)),
                "must return whole numbers as indices, got torch.float32",
            ),
            ((range(60), range(60, 90), (X[:0], Y[:0])), "must give a data set|is empty"),
        ],
    )
    def test_own_split_that_is_wrong(self, drawn: Any, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            resolve(given(split=lambda seed: drawn))

    def test_indices_into_separate_sets(self) -> None:
        with pytest.raises(UsageError, match=r"gave indices, which need data\(\) to give one data set"):
            resolve(given(data=lambda: ((X, Y), (X, Y)), split=lambda seed: (range(9), range(9, 12), range(12, 15))))


class TestOwnLoop:
    def test_settings(self) -> None:
        decorated = task(lr=0.3, epochs=4, delta=0.02, higher_is_better=False, failed_score=9)(train)
        found = resolve(decorated)
        assert (found.own_loop, found.name, found.own_model) == (decorated, "train", True)
        assert (found.lr, found.epochs, found.delta, found.higher_is_better) == (0.3, 4, 0.02, False)
        assert (found.failed_score, found.score_name, found.assumptions) == (9, "score", ())
        assert found.sizes() == {"train": 0, "validation": 0, "judge": 0}
        assert found.summary() == ""

    def test_without_settings_everything_is_said(self) -> None:
        def silent(trial: Any) -> tuple[float, float]:
            return 0.0, 0.0

        found = resolve(silent)
        assert (found.lr, found.epochs, found.delta, found.failed_score) == (0.1, 10, None, 0.0)
        assert len(found.assumptions) == 3

    def test_named_accuracy_it_has_a_delta(self) -> None:
        assert resolve(task(score_name="accuracy")(lambda trial: (0.0, 0.0))).delta == 0.01

    def test_its_network_cannot_be_asked_for(self) -> None:
        with pytest.raises(UsageError, match="a training loop of the user's own has no model"):
            resolve(train).model()

    def test_another_model_or_data_make_no_sense(self) -> None:
        with pytest.raises(UsageError, match="train is a training loop that brings its own model and data"):
            resolve(train, model="cnn")


USER_FILE = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

class Mine:
    epochs = 2
    def model(self): return net()
    def data(self): return torch.randn(90, 64), torch.arange(90) % 10

def make():
    return Mine()

def loop(trial):
    return trial.lr, 0.5
"""
WORKER = """
import glob, cloudpickle, torch
from types import SimpleNamespace
for path in sorted(glob.glob("task*")):
    task = cloudpickle.load(open(path, "rb"))
    if task.own_loop:
        print(task.own_loop(SimpleNamespace(lr=0.25)))
    else:
        torch.manual_seed(0)
        train, _, judge = task.parts(3)
        print(judge[2][0].double().sum().item(), task.loss(task.model(), train[:4]).item())
"""


def test_tasks_travel_to_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(USER_FILE)
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for i, text in enumerate(["own.py:make", "own.py:Mine", "own.py:loop", "digits"]):
        content = cloudpickle.dumps(resolve(text))
        assert len(content) < 10_000
        (elsewhere / f"task{i}").write_bytes(content)
    command = [sys.executable, "-W", "ignore", "-c", WORKER]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
    monkeypatch.chdir(elsewhere)
    with warnings.catch_warnings(action="ignore"):
        exec(WORKER, {})
    here = capsys.readouterr().out
    assert done.stdout == here, done.stderr
    assert here.splitlines()[2] == "(0.25, 0.5)"
