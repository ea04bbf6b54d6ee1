"""The driver: several decision processes, one engine, nothing asked twice."""

import random
from typing import Any

import pytest

from normwise.experiment.drive import Driver, ask, replay
from normwise.experiment.trial import Interrupted, Result, Trial


class FakeEngine:
    """Finishes trials in random order."""

    def __init__(self, seed):
        self.random, self.queue, self.submitted = random.Random(seed), [], []

    def submit(self, trial):
        self.queue.append(trial)
        self.submitted.append(trial)

    def next(self, timeout=None):
        self.random.shuffle(self.queue)
        trial = self.queue.pop()
        return Result(trial, measures={"judge": trial.seed / 100})


class FakeLedger:
    def __init__(self):
        self.results = {}

    def add(self, key, result):
        self.results.setdefault(key, result)


def driver_of(engine: Any, ledger: Any = None) -> Driver:
    known: Any = FakeLedger() if ledger is None else ledger
    return Driver(engine, known, key)


def key(trial):
    return trial.key("fingerprint")


def trials(arm, seeds):
    return [Trial(arm, 8, 0.1, seed) for seed in seeds]


def summing(arm):
    """Asks twice, the second time depending on the first answer."""
    first = yield trials(arm, range(4))
    second = yield trials(arm, range(4, 4 + round(100 * max(r.measures["judge"] for r in first.values()))))
    return sum(r.measures["judge"] for r in {**first, **second}.values())


@pytest.mark.parametrize("seed", range(5))
def test_outcomes_do_not_depend_on_the_order_of_results(seed):
    driver = driver_of(FakeEngine(seed))
    outcomes = driver.run({"a": summing("batch"), "b": summing("none")})
    assert outcomes == {"a": pytest.approx(0.21), "b": pytest.approx(0.21)}


def test_known_results_are_not_run_again():
    engine, ledger = FakeEngine(0), FakeLedger()
    for trial in trials("batch", range(4)):
        ledger.add(key(trial), Result(trial, measures={"judge": trial.seed / 100}))
    driver_of(engine, ledger).run({"a": summing("batch")})
    assert sorted(t.seed for t in engine.submitted) == [4, 5, 6]


def test_two_processes_that_want_the_same_trial_share_it():
    engine = FakeEngine(0)
    driver_of(engine).run({"a": summing("batch"), "b": summing("batch")})
    assert len(engine.submitted) == 7


def test_asking_for_nothing_goes_on():
    outcome = driver_of(FakeEngine(0)).run({"a": ask([])})
    assert outcome == {"a": {}}


def test_replay_decides_from_records_and_is_interrupted_where_they_end():
    def process():
        first = yield trials("batch", [1])
        try:
            yield trials("batch", [2])
        except Interrupted:
            return "partial", len(first)
        return "whole", 2

    results = {trial: Result(trial) for trial in trials("batch", [1, 2])}
    assert replay(process(), results) == ("whole", 2)
    del results[Trial("batch", 8, 0.1, 2)]
    assert replay(process(), results) == ("partial", 1)
