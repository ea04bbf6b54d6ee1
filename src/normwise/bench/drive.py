"""Lets the peers take turns on every cell, so that whatever else the machine does meets all of them alike."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self

from normwise.bench.cells import Cell
from normwise.bench.machine import SYSTEM
from normwise.bench.peer import lower_quartile
from normwise.bench.peers import MEMORY
from normwise.bench.process import PeerEnded, PeerProcess


class Effort(NamedTuple):
    """How long is measured: rounds of turns, seconds of a turn, and the seconds a peer may take to prepare a cell."""

    rounds: int = 7
    seconds: float = 0.1
    patience: float = 90.0


class Outcome(NamedTuple):
    """What came of one cell: per peer its state and why, its error, and the seconds of a call in each round."""

    cell: Cell
    found: dict[str, dict[str, Any]]
    times: dict[str, list[float]]


GIVE_UP = 3  # a peer whose process ended in so many cells in a row is left out from then on


@dataclass
class Peers(AbstractContextManager):
    """The peers' processes; one that ends is started again for the next cell."""

    names: Sequence[str]
    threads: int
    effort: Effort = field(default_factory=Effort)
    allocator: str = SYSTEM
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._running: dict[str, PeerProcess] = {}
        self._ended = dict.fromkeys(self.names, 0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._running.values():
            process.close()

    def __enter__(self) -> Self:
        return self

    def measure(self, cell: Cell) -> Outcome:
        """Prepares a cell in every process, then times it round by round, each round in another order."""
        outcome = Outcome(cell, {name: self._prepare(name, cell) for name in self.names}, {})
        for number in range(self.effort.rounds):
            ready = [name for name in self.names if outcome.found[name]["state"].startswith(("ok", "wrong at"))]
            start = number % max(len(ready), 1)
            for name in ready[start:] + ready[:start]:
                self._turn(name, outcome)
        return outcome

    def _prepare(self, name: str, cell: Cell) -> dict[str, Any]:
        if self._ended[name] >= GIVE_UP:
            return {"state": "failed", "reason": f"left out: its process ended in {GIVE_UP} cells in a row"}
        try:
            if name not in self._running:
                self._running[name] = PeerProcess(name, self.threads, self.allocator)
                self.versions |= self._running[name].versions
            found = self._running[name].prepare(asdict(cell), self.effort.patience)
        except PeerEnded as reason:
            return self._bury(name, reason)
        self._ended[name] = 0
        return found

    def _turn(self, name: str, outcome: Outcome) -> None:
        try:
            taken = self._running[name].time(self.effort.seconds, self.effort.patience)
        except PeerEnded as reason:
            outcome.found[name] = self._bury(name, reason)
            outcome.times.pop(name, None)
            return
        for what, seconds in taken.items():
            outcome.times.setdefault(what if name == MEMORY else name, []).append(seconds)

    def _bury(self, name: str, reason: PeerEnded) -> dict[str, Any]:
        self._running.pop(name, None)
        self._ended[name] += 1
        return {"state": "failed", "reason": str(reason)}


def drive(cells: Sequence[Cell], peers: Peers) -> Iterator[tuple[Outcome, float]]:
    """Measures the cells one after the other; with each, about how many seconds are left."""
    start = time.monotonic()
    for number, cell in enumerate(cells, 1):
        outcome = peers.measure(cell)
        yield outcome, (time.monotonic() - start) / number * (len(cells) - number)


def quartiles(outcome: Outcome) -> dict[str, float]:
    """The lower quartile over the rounds, of every peer and both yardsticks."""
    return {name: lower_quartile(values) for name, values in outcome.times.items()}
