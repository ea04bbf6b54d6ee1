"""Runs several decision processes at once on one engine: each asks for trials, waits, and decides."""

import math
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from normwise.experiment.engine import Engine
from normwise.experiment.ledger import Ledger
from normwise.experiment.trial import Interrupted, Result, Trial

Process = Generator[list[Trial], dict[Trial, Result], Any]


@dataclass
class _Waiting:
    """A process with the trials it asked for and those still missing."""

    process: Process
    asked: list[Trial]
    missing: set[str]


@dataclass
class Driver:
    """Keeps an engine busy for any number of processes; the ledger answers what was run before.

    A process is a generator that yields lists of trials, is sent their results and returns its
    outcome (`race.run`). What it decides depends on the results alone, never on their order.
    """

    engine: Engine
    ledger: Ledger
    key: Callable[[Trial], str]
    watch: Callable[["Driver"], None] = lambda driver: None
    done: list[Result] = field(default_factory=list)
    pending: dict[str, Trial] = field(default_factory=dict)
    found: dict[str, Result] = field(default_factory=dict)

    def run(self, processes: dict[Hashable, Process]) -> dict[Hashable, Any]:
        """Runs every process to its end and returns what each returned."""
        outcomes: dict[Hashable, Any] = {}
        waiting: dict[Hashable, _Waiting] = {}
        for name, process in processes.items():
            self._advance(name, process, None, waiting, outcomes)
        while waiting:
            self._collect(waiting)
            for name in [name for name, wait in waiting.items() if not wait.missing]:
                wait = waiting.pop(name)
                results = {trial: self._result(self.key(trial)) for trial in wait.asked}
                self._advance(name, wait.process, results, waiting, outcomes)
        return outcomes

    def _advance(
        self,
        name: Hashable,
        process: Process,
        results: dict[Trial, Result] | None,
        waiting: dict[Hashable, _Waiting],
        outcomes: dict[Hashable, Any],
    ) -> None:
        try:
            asked = next(process) if results is None else process.send(results)
        except StopIteration as stop:
            outcomes[name] = stop.value
            return
        waiting[name] = _Waiting(process, asked, self._submit(asked))

    def _submit(self, trials: Iterable[Trial]) -> set[str]:
        """Queues what is not known. A stack that is known in part is run whole: a run that goes on after an
        interruption then groups its trials, and rounds, as the undisturbed one."""
        asked = list(dict.fromkeys(trials))
        missing = {key: trial for trial in asked if self._unknown(key := self.key(trial))}
        new = {trial for key, trial in missing.items() if key not in self.pending}
        self.pending.update({self.key(trial): trial for trial in new})
        for stack in stacks(asked):
            if not new.isdisjoint(stack):
                self.engine.submit(*stack)
        return set(missing)

    def _result(self, key: str) -> Result:
        return self.found.get(key) or self.ledger.results[key]

    def _unknown(self, key: str) -> bool:
        """Not yet run; a failed calibration or probe of an earlier call is tried again."""
        if key in self.found:
            return False
        result = self.ledger.results.get(key)
        return result is None or (result.failed and result.trial.kind != "train")

    def _collect(self, waiting: dict[Hashable, _Waiting]) -> None:
        """Waits for one more result where any process lacks one."""
        if not any(wait.missing for wait in waiting.values()):
            return
        result = self.engine.next(timeout=1.0)
        if result is not None and (key := self.key(result.trial)) in self.pending:
            self.ledger.add(key, result)
            self.found[key] = result
            del self.pending[key]
            self.done.append(result)
            for wait in waiting.values():
                wait.missing.discard(key)
        self.watch(self)


def stacks(trials: Iterable[Trial]) -> list[list[Trial]]:
    """Trials that may be trained as one network together, in the order in which each group begins.

    Those of one arm, batch size and length; where they are more than their `stack` allows, in groups as
    equal as can be. It depends on the trials alone, never on workers or time.

    >>> [len(each) for each in stacks(Trial("batch", 8, 0.1, seed, stack=4) for seed in range(10))]
    [4, 3, 3]
    """
    alike: dict[Trial, list[Trial]] = {}
    for trial in trials:
        together = trial.stack > 1 and trial.kind == "train"
        alike.setdefault(replace(trial, learning_rate=0.0, seed=0) if together else trial, []).append(trial)
    parts = ((group, math.ceil(len(group) / max(1, group[0].stack))) for group in alike.values())
    return [group[first::number] for group, number in parts for first in range(number)]


def replay(process: Process, results: Mapping[Trial, Result]) -> Any | None:
    """What a process decides on recorded results, interrupted where it asks for a trial that was not run.

    None where it knows nothing yet.
    """
    try:
        asked = next(process)
        while all(trial in results for trial in asked):
            asked = process.send({trial: results[trial] for trial in asked})
        while True:
            process.throw(Interrupted())
    except StopIteration as stop:
        return stop.value
    except Interrupted:
        return None


def ask(trials: list[Trial]) -> Process:
    """The simplest process: wants some trials and returns their results."""
    return (yield trials)
