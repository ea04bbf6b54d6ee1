"""The driver's side of one worker process: starts it, gives it trials, watches over it, ends it."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, NamedTuple

import cloudpickle
import psutil

from normwise.errors import UsageError
from normwise.experiment.trial import Result, Trial

SOURCE = str(Path(__file__).parents[2])
MODULE = "normwise.experiment.worker"
LIBRARIES = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM")


class WorkerError(RuntimeError):
    """Workers cannot do their work at all; the message says why, or ends with the end of the log."""


Order = list[tuple[str, Trial]]  # one trial with its key, or several that are trained as one


class Death(NamedTuple):
    """How a worker process ended, whether it had begun its order, and whether it was over a limit."""

    reason: str
    begun: bool
    over_limit: bool = False


class Limits(NamedTuple):
    """What one trial may use; `None` is no limit. The memory is that of its whole process.

    An order of several trials may take as long as these one after the other, but no more memory than one:
    the process shares the machine's memory with others, whatever it runs.
    """

    seconds: float | None = None
    bytes: int | None = None


class WorkerProcess:
    """One worker process. `run` blocks in a thread of the engine's; `check` and `kill` come from others."""

    def __init__(self, log: BinaryIO, environment: Mapping[str, str] | None = None, answers: bool = True) -> None:
        stdout = subprocess.PIPE if answers else subprocess.DEVNULL
        self._process = start(MODULE, {**threads(1), **(environment or {})}, stdout, log)
        self._usage = psutil.Process(self._process.pid)
        self._lock = Lock()
        self._begun: float | None = None
        self._trials = 1
        self._why = ""

    def send(self, message: bytes) -> None:
        """Writes to the worker. That it is dead shows when it is listened to."""
        with suppress(BrokenPipeError):
            stdin = self._process.stdin
            assert stdin
            stdin.write(message)
            stdin.flush()

    def run(self, order: Order) -> Death | None:
        """Runs an order; returns when all its results have been handed over, or how the worker died instead."""
        self._trials = len(order)
        self.send(pickle.dumps(order))
        assert self._process.stdout
        for line in self._process.stdout:
            answer = line.decode().strip()
            if answer == "begin":
                self._begun = time.monotonic()
            elif answer == "done":
                with self._lock:
                    self._begun = None
                return None
            elif answer == "fail":
                self.kill()
            else:
                raise WorkerError(f"a worker stopped: {answer.removeprefix('stop ')}")
        return Death(self._bury(), self._begun is not None, bool(self._why))

    def check(self, limits: Limits) -> None:
        """Kills the worker when its trial is over a limit, and its children when it is dead."""
        with suppress(psutil.Error), self._lock:
            if self._usage.status() == psutil.STATUS_ZOMBIE:
                self.kill()  # a child that it forked holds the pipe open, so `run` has not noticed
            elif self._begun and (why := self._excess(limits, time.monotonic() - self._begun)):
                self.kill(why)

    def kill(self, why: str = "") -> None:
        """Ends the process and all that the user's code started in it."""
        self._why = self._why or why
        if self._process.returncode is None:
            kill_group(self._process)

    def close(self) -> None:
        """Ends the process with all it started, waits for it and closes its pipes."""
        self.kill()
        self._bury()
        for pipe in filter(None, (self._process.stdin, self._process.stdout)):
            with suppress(BrokenPipeError):
                pipe.close()

    def ended(self) -> str:
        """How the process ended, where it has."""
        return ended(self._process)

    def over_memory(self, limits: Limits) -> str:
        """What to say of a process that has more memory than a trial may."""
        if limits.bytes is not None and self._usage.memory_info().rss > limits.bytes:
            return f"over the limit of {limits.bytes / 2**20:.0f} MiB of memory per trial"
        return ""

    def _excess(self, limits: Limits, seconds: float) -> str:
        if limits.seconds is not None and seconds > limits.seconds * self._trials:
            return f"over the limit of {limits.seconds:g} seconds per trial"
        return self.over_memory(limits)

    def _bury(self) -> str:
        """Waits for the end of a process whose pipe has ended, and says why it ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        kill_group(self._process)
        self._process.wait()
        return self._why or f"worker {self.ended()}"


def start(
    module: str, environment: Mapping[str, str], stdout: int, log: BinaryIO, *arguments: str
) -> "subprocess.Popen[bytes]":
    """A module of ours in a process and a session of its own, where what it starts ends with it."""
    pythonpath = os.pathsep.join(filter(None, (SOURCE, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [*command(module), *arguments],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=log,
        env={**os.environ, "PYTHONPATH": pythonpath, **environment},
        start_new_session=True,
    )


def command(module: str) -> list[str]:
    """Runs a module of ours, whatever lies in the current folder."""
    return [sys.executable, "-P", "-m", module]


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process with all that it started."""
    with suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def ended(process: "subprocess.Popen[bytes]") -> str:
    """How a process ended, where it has."""
    code = process.poll()
    if code is None:
        return ""
    return f"killed by {signal_name(-code)}" if code < 0 else f"exited with code {code}"


def threads(number: int) -> dict[str, str]:
    """The environment in which every library takes so many threads."""
    return {f"{library}_NUM_THREADS": str(number) for library in LIBRARIES}


def pack(job: Callable[[Trial], Result], trials: Path, processes: int = 1) -> bytes:
    """All that a worker must know before its first trial.

    >>> type(pack(Result, Path("trials")))
    <class 'bytes'>
    """
    setup: dict[str, Any] = {
        "path": [os.path.abspath(entry) for entry in sys.path],
        "pythonpath": os.environ.get("PYTHONPATH"),
        "trials": str(trials.resolve()),
        "job": pickle_job(job),
        "processes": processes,
    }
    return pickle.dumps(setup)


def pickle_job(job: Callable[[Trial], Result]) -> bytes:
    """A job as it travels to a worker, or a UsageError that says what keeps it from it."""
    try:
        return cloudpickle.dumps(job)
    except Exception as error:
        raise UsageError(
            f"the task must fit through a pipe to the worker processes, but pickling it failed ({error}); "
            "make in its functions what cannot be pickled, such as locks, open files and connections"
        ) from error


def signal_name(number: int) -> str:
    """The name of a signal.

    >>> signal_name(9), signal_name(4000)
    ('SIGKILL', 'signal 4000')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
