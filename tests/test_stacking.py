"""Stacks on their way: how trials are grouped, when a stack is chosen, and what a fault in one costs."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_task
from scripted import plan_for

from normwise.errors import UsageError
from normwise.experiment.arms import Arm
from normwise.experiment.calibrate import calibrate
from normwise.experiment.drive import Driver, ask, stacks
from normwise.experiment.engine import LocalEngine
from normwise.experiment.plan import Plan, parse_budget
from normwise.experiment.prepare import Ask, make_plan
from normwise.experiment.request import Request
from normwise.experiment.resolve import resolve
from normwise.experiment.setting import Setting
from normwise.experiment.stack_timing import time_stack
from normwise.experiment.task import Task
from normwise.experiment.trial import Result, Trial, UnstackableError

TRIALS = [Trial("batch", 8, 0.1, seed, stack=4) for seed in range(4)]
CELL = ("batch", 16)
Way = tuple[bool, int, bool]  # oneDNN, stack, channels last
Seconds = dict[Way, float | None]


class Small:
    """The small task, with whatever a test adds."""

    model, data, epochs = staticmethod(small_task.model), staticmethod(small_task.data), 1


@pytest.fixture(scope="module")
def task() -> Task:
    return resolve(Small())


def key(trial: Trial) -> str:
    return trial.key("task")


def test_only_trials_of_one_kind_are_grouped() -> None:
    kinds = [
        *TRIALS,
        Trial("batch", 8, 0.3, 0, stack=4),
        Trial("layer", 8, 0.1, 0, stack=4),
        Trial("batch", 16, 0.1, 0, stack=4),
        Trial("batch", 8, 0.1, 0, 0.25, stack=4),
        Trial("batch", 8, 0.1, 0, kind="calibrate", stack=4),
        Trial("batch", 8, 0.1, 0),
        Trial("batch", 8, 0.1, 1),
    ]
    assert [len(stack) for stack in stacks(kinds)] == [3, 2, 1, 1, 1, 1, 1, 1]


def test_stacks_are_equal_and_the_same_for_any_number_of_workers() -> None:
    trials = [Trial("batch", 8, 0.1, seed, stack=16) for seed in range(24)]
    assert [len(stack) for stack in stacks(trials)] == [12, 12]
    assert sorted(trial for stack in stacks(trials) for trial in stack) == trials


def test_a_stack_known_in_part_is_run_whole_and_what_was_known_stays() -> None:
    """So a run that was interrupted groups its trials as the undisturbed one."""
    submitted: list[tuple[Trial, ...]] = []

    class Engine:
        def submit(self, *trials: Trial) -> None:
            submitted.append(trials)

        def next(self, timeout: float | None = None) -> Result:
            trial = next(t for stack in submitted for t in stack if t not in done)
            done.add(trial)
            return Result(trial, measures={"judge": 0.5})

    class Known:
        results = {key(TRIALS[1]): Result(TRIALS[1])}

        def add(self, key: str, result: Result) -> None:
            self.results[key] = result

    done: set[Trial] = set()
    engine: Any = Engine()
    ledger: Any = Known()
    driver = Driver(engine, ledger, key)
    results = driver.run({"all": ask(TRIALS), "again": ask(TRIALS)})["all"]
    assert submitted == [tuple(TRIALS)]
    assert {trial: bool(result.measures) for trial, result in results.items()} == {t: t.seed != 1 for t in TRIALS}
    assert sorted(result.trial.seed for result in driver.done) == [0, 2, 3]
    driver.run({"known": ask(TRIALS)})
    assert len(submitted) == 1


class Together:
    """A job that leaves a line for each stack and each trial alone, and does something before the third member."""

    def __init__(self, folder: Path, fault: Callable[[int], object] = lambda attempt: None) -> None:
        self.folder, self.fault = folder, fault

    def __call__(self, trial: Trial) -> Result:
        self.note(f"alone {trial.seed}")
        return Result(trial, measures={"judge": 2.0 * trial.seed})

    def stack(self, trials: list[Trial]) -> Iterator[Result]:
        attempt = self.note(f"stack of {len(trials)}")
        for trial in trials:
            if trial.seed == 2:
                self.fault(attempt)
            yield Result(trial, measures={"judge": 2.0 * trial.seed})

    def note(self, line: str) -> int:
        with (self.folder / "noted").open("a") as file:
            file.write(f"{line}\n")
        return len(self.noted())

    def noted(self) -> list[str]:
        return (self.folder / "noted").read_text().splitlines()


def run(job: Together, **limits: Any) -> dict[Trial, Result]:
    with LocalEngine(job, job.folder, workers=1, key=key, log=job.folder / "log.txt", **limits) as engine:
        engine.submit(*TRIALS)
        results = list(iter(engine.next, None))
    assert sorted(result.trial for result in results) == TRIALS
    assert {path.stem for path in (job.folder / "trials").iterdir()} == {key(trial) for trial in TRIALS}
    return {result.trial: result for result in results}


def assert_right(results: dict[Trial, Result]) -> None:
    assert {trial: result.measures for trial, result in results.items()} == {
        trial: {"judge": 2.0 * trial.seed} for trial in TRIALS
    }


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(attempt: int) -> None:
    raise RuntimeError("no luck")


def test_a_stack_is_one_unit_of_work_with_a_result_for_each(tmp_path: Path) -> None:
    job = Together(tmp_path)
    assert_right(run(job))
    assert job.noted() == ["stack of 4"]


def test_a_worker_killed_in_a_stack_runs_it_again(tmp_path: Path) -> None:
    job = Together(tmp_path, lambda attempt: die() if attempt == 1 else None)
    assert_right(run(job))
    assert job.noted() == ["stack of 4"] * 2


def test_a_stack_that_kills_every_worker_is_run_one_at_a_time_where_it_is_not_finished(tmp_path: Path) -> None:
    job = Together(tmp_path, lambda attempt: die())
    assert_right(run(job))
    assert job.noted() == ["stack of 4", "stack of 4", "alone 2", "alone 3"]


def test_a_stack_that_hangs_is_ended_and_run_one_at_a_time(tmp_path: Path) -> None:
    job = Together(tmp_path, lambda attempt: time.sleep(60))
    assert_right(run(job, seconds_per_trial=0.5))
    assert job.noted() == ["stack of 4", "alone 2", "alone 3"]
    assert "over the limit of 0.5 seconds per trial" in (tmp_path / "log.txt").read_text()


def test_an_exception_in_a_stack_falls_back_to_one_at_a_time(tmp_path: Path) -> None:
    job = Together(tmp_path, fail)
    assert_right(run(job))
    assert job.noted() == ["stack of 4", "alone 2", "alone 3"]
    assert "RuntimeError: no luck" in (tmp_path / "log.txt").read_text()


class Timed:
    """A driver whose calibrations take what a test says; None cannot be had."""

    def __init__(self, seconds: Seconds) -> None:
        self.seconds = seconds

    def run(self, processes: dict[Any, Any]) -> dict[Any, Any]:
        asked = next(processes["calibrate"])
        return {"calibrate": {trial: self.result(trial) for trial in asked}}

    def result(self, trial: Trial) -> Result:
        seconds = self.seconds.get((trial.onednn, trial.stack, trial.channels_last))
        return Result(trial, measures={} if seconds is None else {"full_length": seconds})


def planned(task: Task, stack: str, seconds: Seconds) -> Plan:
    arms = (Arm("batch"), Arm("layer"))
    wanted = Ask(task, arms, (16,), parse_budget("1h"), None, 0, 2, stack)
    driver: Any = Timed(seconds)
    return make_plan(wanted, driver, 0.0)


ALONE, BARE, STACK, PIXELS = (True, 1, False), (False, 1, False), (True, 16, False), (True, 16, True)
EIGHT = True, 8, False


@pytest.mark.parametrize(
    ("stack", "seconds", "expected"),
    [
        ("auto", {ALONE: 4.0, BARE: 2.0, STACK: 1.0}, STACK),
        ("auto", {ALONE: 4.0, BARE: 2.0, STACK: 1.0, PIXELS: 0.5}, PIXELS),
        ("auto", {ALONE: 4.0, BARE: 2.0, STACK: 0.5, PIXELS: 1.0}, STACK),
        ("auto", {ALONE: 4.0, BARE: 2.0, STACK: 3.0, PIXELS: 2.0}, BARE),
        ("auto", {ALONE: 4.0, BARE: 2.0, STACK: None}, BARE),
        ("off", {ALONE: 4.0, BARE: 2.0}, BARE),
        ("8", {ALONE: 4.0, BARE: 2.0, EIGHT: 3.0}, EIGHT),
        ("8", {ALONE: 1.0, BARE: 2.0, EIGHT: None}, ALONE),
    ],
)
def test_a_stack_is_chosen_where_it_was_timed_to_be_faster_or_asked_for(
    task: Task, stack: str, seconds: Seconds, expected: Way
) -> None:
    plan = planned(task, stack, seconds)
    trial = plan.trial("batch", 16, 0.1, 0)
    assert (trial.onednn, trial.stack, trial.channels_last) == expected
    assert plan.price[CELL] == seconds[expected]
    assert plan.onednn[CELL] == (seconds[ALONE] < seconds[BARE])  # type: ignore[operator]
    assert Plan.from_dict(plan.to_dict()) == plan


def test_the_stack_is_part_of_what_a_trial_is() -> None:
    alone = Trial("batch", 8, 0.1, 0)
    for layout in (False, True):
        plan = plan_for("batch", stack={("batch", 8): 16}, channels_last={("batch", 8): layout})
        trial = plan.trial("batch", 8, 0.1, 0)
        assert trial == replace(alone, stack=16, channels_last=layout)
        assert len({key(alone), key(trial), key(replace(trial, channels_last=not layout))}) == 3


def test_calibration_times_a_stack_per_member(task: Task) -> None:
    result = calibrate(task, Trial(*CELL, 0.1, 0, kind="calibrate", stack=4), Setting())
    assert {"step", "evaluation", "building", "full_length"} <= result.measures.keys()
    assert result.measures["step_low"] <= result.measures["step"] <= result.measures["step_high"]


def test_calibration_says_why_there_is_no_stack() -> None:
    class Adam(Small):
        def optimizer(self, params: Any, lr: float) -> Any:
            import torch

            return torch.optim.Adam(params, lr)

    result = calibrate(resolve(Adam()), Trial(*CELL, 0.1, 0, kind="calibrate", stack=4), Setting())
    assert (result.measures, result.reason) == ({}, "the optimizer is the task's own")


def test_a_stack_that_trains_otherwise_than_alone_is_refused(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    from normwise.experiment import stacked_train

    monkeypatch.setattr(stacked_train, "MOMENTUM", 0.5)
    with pytest.raises(UnstackableError, match="stacked training gives another loss at step 3"):
        time_stack(task, Trial(*CELL, 0.3, 0, kind="calibrate", stack=4), Setting())


@pytest.mark.parametrize("stack", ["1", "-4", "some", "4.5"])
def test_a_bad_stack_says_what_is_right(stack: str) -> None:
    with pytest.raises(UsageError, match="stack must be auto, off, or a number of trials above 1"):
        Request(stack=stack).complete()
