"""What a stack costs per trial, and whether it trains as its trials do alone."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

from normwise.experiment.evaluate import evaluate
from normwise.experiment.setting import Setting
from normwise.experiment.stacked_train import Stack
from normwise.experiment.task import Task
from normwise.experiment.train import standard
from normwise.experiment.trial import Trial, UnstackableError

TYPICAL = 8  # members: the seeds of a look
STEPS, COMPARED = 20, 6
TOLERANCE = 1e-3  # of a loss after a few steps; rounding alone is a thousand times smaller
HARMLESS = 1e-6  # a learning rate that cannot diverge


def time_stack(task: Task, trial: Trial, setting: Setting) -> dict[str, float]:
    """Seconds of a step, an evaluation and a whole trial, each per member of a stack of 8.

    Raises UnstackableError where stacked training is impossible or gives other losses than training alone.
    """
    per_epoch = len(task.parts(trial.seed).train) // trial.batch_size
    if not per_epoch:
        raise UnstackableError("the training set is smaller than a batch")
    short = replace(trial, kind="train", length=STEPS / per_epoch / task.epochs)
    _require_equal(task, short, setting)
    trials = [replace(short, seed=trial.seed + k, learning_rate=HARMLESS) for k in range(min(trial.stack, TYPICAL))]
    start = time.perf_counter()
    stack = Stack(task, trials, setting)
    building = (time.perf_counter() - start) / len(trials)
    stack.fit()
    steps = sorted(_seconds(stack.fit) / stack.steps / len(trials) for _ in range(4))
    parts = stack.rows[trial.seed].parts()
    evaluation = _seconds(lambda: evaluate(task, stack.model(0), parts, trial, setting))
    number = max(1, round(task.epochs * per_epoch))
    return {
        "step": statistics.median(steps),
        "step_low": steps[0],
        "step_high": steps[-1],
        "steps": number,
        "evaluation": evaluation,
        "building": building,
        "full_length": building + number * statistics.median(steps) + 2 * evaluation,
    }


def _require_equal(task: Task, trial: Trial, setting: Setting) -> None:
    """Trains two members for a few steps, one of them alone too."""
    stack = Stack(task, [trial, replace(trial, seed=trial.seed + 1)], setting)
    stack.fit()
    together, alone = stack.fits[0].losses[:COMPARED], standard(task, trial, setting)[0].losses[:COMPARED]
    for step, (one, other) in enumerate(zip(together, alone, strict=True), start=1):
        if math.isfinite(other) and not math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            raise UnstackableError(f"stacked training gives another loss at step {step}: {one:.6g}, alone {other:.6g}")


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
