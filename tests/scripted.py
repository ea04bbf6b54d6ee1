"""Races without training: a plan, scores from a script, and a driver that remembers what was asked for."""

import random
from collections.abc import Callable, Generator
from typing import Any

from normwise.experiment.plan import Plan
from normwise.experiment.trial import Result, Status, Trial

Answer = Callable[[Trial], Result]
SIZE = 8


def plan_for(*arms: str, **changes: Any) -> Plan:
    """Arms of equal cost at batch size 8, three rates, delta one point."""
    settings: dict[str, Any] = {
        "arms": arms,
        "batch_sizes": (SIZE,),
        "rates": {SIZE: (0.01, 0.03, 0.1)},
        "costs": dict.fromkeys(arms, 0.0),
        "onednn": {(arm, size): True for arm in arms for size in (SIZE, 64)},
        "delta": 0.01,
        **changes,
    }
    return Plan(**settings)


def result(trial: Trial, score: float, status: Status = "ok", **measures: float) -> Result:
    return Result(trial, status, measures={"judge": score, "validation": score, **measures})


def failed(trial: Trial) -> Result:
    """What the engine says of a trial whose worker died."""
    return Result(trial, "failed", "the worker was killed by signal 9")


def scores(means: dict[str, float], spread: float = 0.003) -> Answer:
    """Each arm's mean with a spread that depends on arm and seed; the middle rate is the best."""

    def answer(trial: Trial) -> Result:
        off = 0.05 * (trial.learning_rate != 0.03)
        noise = random.Random(f"{trial.arm} {trial.seed}").choice((-1, 1))
        return result(trial, means[trial.arm] - off + spread * noise)

    return answer


def drive(process: Generator[list[Trial], dict[Trial, Result], Any], answer: Answer) -> tuple[Any, list[list[Trial]]]:
    """The outcome of a process and every list of trials it asked for."""
    asked: list[list[Trial]] = []
    while True:
        try:
            asked.append(process.send({t: answer(t) for t in asked[-1]}) if asked else next(process))
        except StopIteration as stop:
            return stop.value, asked
