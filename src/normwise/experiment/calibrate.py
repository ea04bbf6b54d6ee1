"""What a few steps tell before the race: times of a step, gradient growth, the highest rate that trains."""

import copy
import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from normwise.data import Batches
from normwise.experiment.evaluate import evaluate
from normwise.experiment.setting import Setting
from normwise.experiment.stack_timing import time_stack
from normwise.experiment.task import Task
from normwise.experiment.train import Loop, build, environment, own_loop
from normwise.experiment.trial import Result, Trial, UnstackableError, finite
from normwise.probe.measure import gradient_growth
from normwise.probe.record import record
from normwise.surgery.fold import fold

WARM_UP, TIMED = 5, 20
FIRST_TIME = 10.0  # seconds
CEILING_STEPS, CEILING_RATES = 100, 8
COMPARED, LOWERED = 10, 0.1


def calibrate(task: Task, trial: Trial, setting: Setting) -> Result:
    """Times about 20 training steps, one evaluation and the inference of one folded batch.

    With a loop of the user's own, times one epoch of it. With `stack`, times a stack's steps per trial;
    no measures but a reason where the trials cannot be stacked.
    """
    start = time.perf_counter()
    reason, measures = "", {}
    with environment(trial):
        try:
            measure = time_stack if trial.stack > 1 else _time_steps if task.own_loop is None else _time_own_loop
            measures = measure(task, trial, setting)
        except UnstackableError as error:
            reason = str(error)
    return Result(trial, reason=reason, measures=finite(**measures), seconds=time.perf_counter() - start)


def _time_own_loop(task: Task, trial: Trial, setting: Setting) -> dict[str, float]:
    short = replace(trial, kind="train", length=1 / task.epochs)
    seconds = _seconds(lambda: own_loop(task, short, setting))
    with setting.ranks.together(setting.device):  # all processes must do it again, or none
        (seconds,) = setting.ranks.mean(seconds)
    if seconds < FIRST_TIME:  # most of it may have been imports and reading data
        seconds = _seconds(lambda: own_loop(task, short, setting))
    return {"full_length": seconds * task.epochs}


def _time_steps(task: Task, trial: Trial, setting: Setting) -> dict[str, float]:
    parts = task.parts(trial.seed)
    batches = setting.share(parts.train, trial.batch_size, shuffle=trial.seed, collate=task.collate)
    loop = Loop(task, setting, batches, task.epochs)
    # A loop of a few steps, several times: its schedule is complete, its rate too small to diverge.
    short = Loop(task, setting, batches, TIMED / len(batches))
    with setting.ranks.together(setting.device):
        start = time.perf_counter()
        model = build(task, trial.arm, trial.seed, setting.device)
        building = time.perf_counter() - start
        short.fit(model, 1e-6)
        steps = sorted(_seconds(lambda: short.fit(model, 1e-6)) / short.steps for _ in range(4))
    evaluation = _seconds(lambda: evaluate(task, model, parts, trial, setting))
    whole = setting.batches(parts.train, trial.batch_size, shuffle=trial.seed, collate=task.collate)
    low, middle, high = _quartiles(_inference_times(task, model, whole, setting))
    return {
        "step": statistics.median(steps),
        "step_low": steps[0],
        "step_high": steps[-1],
        "steps": loop.steps,
        "evaluation": evaluation,
        "building": building,
        "inference": middle,
        "inference_low": low,
        "inference_high": high,
        "full_length": building + loop.steps * statistics.median(steps) + 2 * evaluation,
    }


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def _inference_times(task: Task, model: nn.Module, batches: Batches, setting: Setting) -> list[float]:
    """Seconds to score one training-sized batch with the folded model."""
    model = copy.deepcopy(model).eval()
    fold(model)
    batch = next(iter(batches))
    with torch.no_grad(), setting.autocast():
        for _ in range(WARM_UP):
            task.loss(model, batch)
        return [_seconds(lambda: task.loss(model, batch)) for _ in range(TIMED)]


def probe(task: Task, trial: Trial, setting: Setting) -> Result:
    """The gradient's growth per norm layer at initialization, and the highest constant rate that still trains."""
    start = time.perf_counter()
    with environment(trial):
        parts = task.parts(trial.seed)
        batches = setting.share(parts.train, trial.batch_size, shuffle=trial.seed, collate=task.collate)
        with setting.ranks.together(setting.device):
            measures = finite(
                gradient_growth=_growth(task, trial, setting, next(iter(batches))),
                highest_rate=_highest_rate(task, trial, setting, batches),
            )
    return Result(trial, measures=measures, seconds=time.perf_counter() - start)


def _growth(task: Task, trial: Trial, setting: Setting, batch: object) -> float | None:
    model = build(task, trial.arm, trial.seed, setting.device).train()
    with record(model) as records, setting.autocast():
        loss = task.loss(model, batch)
    loss.backward()
    return gradient_growth(records)


def _highest_rate(task: Task, trial: Trial, setting: Setting, batches: Batches) -> float | None:
    """The last rate that trains, from the chosen one up by factors of 3: two failures in a row after it end the search.

    A small rate may fail because it is slow, so failures before the first success do not count.
    """
    highest, failures = None, 0
    for step in range(CEILING_RATES):
        rate = trial.learning_rate * 3.0**step
        if _trains(task, trial, setting, batches, rate):
            highest, failures = rate, 0
        elif highest is not None and (failures := failures + 1) == 2:
            break
    return highest


def _trains(task: Task, trial: Trial, setting: Setting, batches: Batches, rate: float) -> bool:
    """Whether 100 steps at a constant rate lower the loss by a tenth of what it was on ten batches before them."""
    model = build(task, trial.arm, trial.seed, setting.device).train()
    optimizer = task.optimizer(model.parameters(), rate)
    if not len(batches):
        return False
    stream = itertools.chain.from_iterable(itertools.repeat(batches))
    ranks = setting.ranks
    with torch.no_grad(), setting.autocast():
        losses = [task.loss(model, batch).item() for batch in itertools.islice(stream, COMPARED)]
    (before,) = ranks.mean(statistics.fmean(losses))
    trained = ranks.parallel(model)
    losses = []
    for batch in itertools.islice(stream, CEILING_STEPS):
        with setting.autocast():
            loss = task.loss(trained, batch)
        losses.extend(ranks.mean(loss.item()))
        if not math.isfinite(losses[-1]):
            return False
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return statistics.fmean(losses[-COMPARED:]) < (1 - LOWERED) * before
