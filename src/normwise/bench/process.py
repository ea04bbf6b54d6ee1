"""The driver's side of a peer's process: starts it, asks it, waits no longer than told, ends it."""

import json
import os
import subprocess
from contextlib import suppress
from queue import Empty, SimpleQueue
from tempfile import TemporaryFile
from threading import Thread
from typing import IO, Any

from normwise.bench.machine import SYSTEM
from normwise.experiment import process

MODULE = "normwise.bench.peer"
START = 120.0  # seconds a process may take to import what it needs


class PeerEnded(Exception):
    """The process is gone; the message says why."""


class PeerProcess:
    """One peer, alone in its process and in its process group, so that compilers it started end with it."""

    def __init__(self, name: str, threads: int, allocator: str = SYSTEM) -> None:
        others = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "JAX_PLATFORMS": "cpu", **process.threads(threads)}
        if allocator != SYSTEM:
            others["LD_PRELOAD"] = os.pathsep.join(filter(None, (allocator, os.environ.get("LD_PRELOAD"))))
        self._log: IO[bytes] = TemporaryFile()  # noqa: SIM115  (closed with the process)
        self._process = process.start(MODULE, others, subprocess.PIPE, self._log, name)
        self._answers: SimpleQueue[str | None] = SimpleQueue()
        Thread(target=self._listen, daemon=True).start()
        try:
            self.versions: dict[str, str] = self._answer(START, "start")["versions"]
        except BaseException:
            self.close()
            raise

    def prepare(self, cell: dict[str, Any], patience: float) -> dict[str, Any]:
        """Lets the peer compile and check a cell; `state` in the answer says whether it can be timed."""
        return self._ask({"cell": cell}, patience, "compile and check this cell")

    def time(self, seconds: float, patience: float) -> dict[str, float]:
        """Times the prepared cell; the lower quartile in seconds of each of its functions."""
        return self._ask({"seconds": seconds}, patience, "take its turn")

    def close(self) -> None:
        """Ends the process and all that it started."""
        process.kill_group(self._process)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            with suppress(BrokenPipeError):
                pipe.close()  # pyright: ignore[reportOptionalMemberAccess]

    def _ask(self, order: dict[str, Any], patience: float, task: str) -> dict[str, Any]:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # that it is dead shows when it is listened to
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        return self._answer(patience, task)

    def _answer(self, patience: float, task: str) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=patience)
        except Empty:
            self.close()
            raise PeerEnded(f"took more than {patience:g} s to {task}") from None
        if line is None:
            raise PeerEnded(self._why())
        return json.loads(line)

    def _why(self) -> str:
        """How the process ended, with the last line of its log."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._log.seek(0)
        last = self._log.read().decode(errors="replace").strip().rpartition("\n")[2][:200]
        self.close()
        how = process.ended(self._process)
        return f"{how}: {last}" if last else how

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._answers.put(line.decode())
        self._answers.put(None)
