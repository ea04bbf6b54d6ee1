"""A worker of several processes that run each trial together, started as torchrun starts them."""

from contextlib import suppress
from typing import BinaryIO

import psutil

from normwise.experiment.meeting import Meeting
from normwise.experiment.process import Limits, WorkerProcess

FAILED = "exited with code 1"  # after it has told why


class WorkerGroup(WorkerProcess):
    """A worker process with others that are sent all it is sent; it alone answers, and all end together."""

    def __init__(self, log: BinaryIO, processes: int, *, slot: int) -> None:
        self._meeting = Meeting(processes, before=slot * processes)
        super().__init__(log, self._meeting.environment(0))
        self._others = [
            WorkerProcess(log, self._meeting.environment(rank), answers=False) for rank in range(1, processes)
        ]

    def send(self, message: bytes) -> None:
        """Writes to all of them."""
        super().send(message)
        for other in self._others:
            other.send(message)

    def check(self, limits: Limits) -> None:
        """Kills them all when their trial is over a limit, the memory being that of each, or one has ended."""
        super().check(limits)
        for other in self._others:
            with suppress(psutil.Error), self._lock:
                if other.ended():
                    self.kill()
                elif self._begun and (why := other.over_memory(limits)):
                    self.kill(why)

    def kill(self, why: str = "") -> None:
        """Ends the processes and all that the user's code started in them."""
        super().kill(self._fault() or why)
        for other in self._others:
            other.kill()

    def close(self) -> None:
        """Ends the processes, waits for them and closes their pipes."""
        super().close()
        for other in self._others:
            other.close()

    def _fault(self) -> str:
        """Why they end, where one of them is at fault: what a process says that lost another one tells little."""
        ends = enumerate(process.ended() for process in (self, *self._others))
        lost = [f"process {rank} of {self._meeting.processes} {how}" for rank, how in ends if how not in ("", FAILED)]
        return lost[0] if lost else self._meeting.failure()
