"""A small transformer on Python's help texts, by the norm of its features."""

from dataclasses import replace

import torch

from normwise.claims.claim import HALF, Experiment, Measures, Run, cell
from normwise.claims.experiments.training import TASK, diverged
from normwise.data import Arrays, Batches
from normwise.data.sequences import charlm
from normwise.experiment.setting import Setting
from normwise.experiment.tasks.charlm import CharLM, CharTransformer
from normwise.experiment.train import Loop
from normwise.surgery.swap import swap

WINDOWS, JUDGED, EPOCHS, BATCH = 1200, 400, 3, 16
RATES = (0.001, 0.0032, 0.01, 0.032, 0.1, 0.32)
NORMS = ("layer-token", "rms-token", "dyt")
SETTING = Setting()


def measure(run: Run) -> Measures:
    """`judge`: bits per character on text that is not trained on; windows of training text are drawn with the seed."""
    task = CharLM()
    data = charlm()
    assert isinstance(data.train, Arrays)
    assert isinstance(data.judge, Arrays)
    generator = torch.Generator().manual_seed(run.seed)
    order = torch.randperm(len(data.train), generator=generator)
    train, validation = (data.train.subset(part) for part in order[: WINDOWS + JUDGED].split([WINDOWS, JUDGED]))
    judge = data.judge.subset(torch.randperm(len(data.judge), generator=generator)[:JUDGED])
    model = swap(CharTransformer(), run.settings["norm"]).model
    epochs = EPOCHS * (0.5 if "length" in run.settings else 1)
    recipe = replace(TASK, loss=task.loss, optimizer=task.optimizer)
    fit = Loop(recipe, SETTING, SETTING.batches(train, BATCH, shuffle=run.seed), epochs).fit(model, run.rate)
    bits = [-task.score(model, Batches(samples, 100)) for samples in (validation, judge)]
    bits = [min(value, 10.0) if value == value else 10.0 for value in bits]
    return {"validation": -bits[0], "judge": bits[1], "diverged": diverged(fit)}


CELLS = tuple(cell(norm=norm) for norm in NORMS)

LANGUAGE = Experiment(
    "language",
    measure,
    CELLS + tuple(text + HALF for text in CELLS),
    seconds=3.0,
    seeds=7,
    rates=RATES,
    rate_of=lambda text: text.removesuffix(HALF),
    rivals=(CELLS,),
)
