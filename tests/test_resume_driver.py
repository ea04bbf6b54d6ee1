"""The next driver's engine goes on from what the last one's left."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from test_resume import TRIAL, Plain, key, same
from torch import nn

from normwise.experiment.engine import LocalEngine
from normwise.experiment.job import Job
from normwise.experiment.resolve import resolve
from normwise.experiment.setting import Setting
from normwise.experiment.train import train


def test_a_trial_of_a_driver_that_ended_goes_on(tmp_path: Path) -> None:
    task = resolve(Plain())
    expected = train(task, TRIAL, Setting())
    loss, held = task.loss, tmp_path / "held"

    def holding(model: nn.Module, batch: Any) -> torch.Tensor:
        while held.exists() and list(tmp_path.glob("trials/*.partial")):
            time.sleep(0.05)
        return loss(model, batch)

    held.touch()
    job = Job(task.__class__(**{**task.__dict__, "loss": holding}), Setting(), checkpoint_seconds=0.0)
    log = tmp_path / "log.txt"
    with LocalEngine(job, tmp_path, workers=1, key=key, log=log) as engine:
        engine.submit(TRIAL)
        while not list(tmp_path.glob("trials/*.partial")):
            assert engine.next(timeout=0.1) is None
    os.unlink(held)
    with LocalEngine(job, tmp_path, workers=1, key=key, log=log) as engine:
        engine.submit(TRIAL)
        result = engine.next()
    assert result
    assert same(result, expected)
    assert "goes on from" in log.read_text()
