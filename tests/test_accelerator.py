"""Trials on an accelerator; skipped where there is none, so what is said here has to be read with docs/cluster.md."""

from pathlib import Path

import pytest
import small_task
import torch

import normwise as nw
from normwise.experiment.engine import LocalEngine
from normwise.experiment.job import Job
from normwise.experiment.ranks import Ranks
from normwise.experiment.resolve import resolve
from normwise.experiment.setting import Setting
from normwise.experiment.train import train
from normwise.experiment.trial import Trial

pytestmark = [
    pytest.mark.accelerator,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="PyTorch finds no accelerator on this machine"),
]


class Small:
    model, data = staticmethod(small_task.model), staticmethod(small_task.data)
    epochs, delta = 2, 0.01


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("arm", ["batch", "layer", "none"])
def test_a_trial_trains(arm: str, precision: str) -> None:
    device = str(torch.accelerator.current_accelerator())
    result = train(resolve(Small()), Trial(arm, 16, 0.05, seed=0), Setting(device, precision))
    assert result.status == "ok"
    assert result.measures["judge"] > 0.6


@pytest.mark.skipif(torch.accelerator.device_count() < 2, reason="PyTorch finds fewer than two accelerators here")
def test_a_trial_trains_on_two(tmp_path: Path) -> None:
    job = Job(resolve(Small()), Setting(str(torch.accelerator.current_accelerator()), ranks=Ranks(2)))
    log = tmp_path / "log.txt"
    with LocalEngine(job, tmp_path, workers=1, processes=2, key=lambda trial: trial.key(""), log=log) as engine:
        engine.submit(Trial("layer", 16, 0.05, seed=0, kind="calibrate"))
        engine.submit(Trial("layer", 16, 0.05, seed=0))
        times, result = iter(engine.next, None)
    assert times.measures["full_length"] > 0
    assert result.measures["judge"] > 0.6


@pytest.mark.slow
def test_a_comparison_runs(tmp_path: Path) -> None:
    device = str(torch.accelerator.current_accelerator())
    found = nw.compare(Small(), ["batch", "none"], [16], device=device, budget="60trials", workers=1, out=tmp_path)
    assert {row["status"] for row in found.results} == {"ok"}
