"""Where trials run: the small interface every engine has, and the one for this machine's processes.

`LocalEngine` gives each worker process a thread of its own, which feeds it the oldest waiting trial the
moment it has finished one, whatever the driver is doing. Only files and these threads hold state, so
killing any worker loses at most its current attempt, and killing the driver no finished trial.
"""

from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Protocol, Self

from normwise.errors import require_workers
from normwise.experiment.process import Death, Limits, Order, WorkerError, WorkerProcess, pack
from normwise.experiment.trial import Result, Trial
from normwise.experiment.worker_group import WorkerGroup
from normwise.files import discard_partial, write_atomic

ATTEMPTS = 2  # of a trial, where its worker dies
FALSE_STARTS = 3  # of workers that die in a row before they begin a trial
SECONDS_BETWEEN_CHECKS = 0.5


class Engine(Protocol):
    """Runs trials somewhere. A context manager; leaving it ends whatever still runs."""

    def submit(self, *trials: Trial) -> None:
        """Queues a trial, or several that are trained as one where the job can: first in, first begun."""
        ...

    def next(self, timeout: float | None = None) -> Result | None:
        """The next finished trial; `None` after `timeout` seconds, or at once when nothing is under way."""
        ...

    def close(self) -> None:
        """Ends the workers, also in the middle of a trial."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LocalEngine(Engine):
    """Runs trials in worker processes of this machine, one thread each.

    `job` is any callable from a Trial to a Result that cloudpickle can pickle; trials submitted together go
    to its method `stack(trials)`, a generator of their results, where it has one. Each result is left as
    `folder/trials/<key>.json` before `next` returns it. What the job prints goes to `log`. A worker that
    dies is replaced and its trial tried once more, then recorded as failed with the reason; the same
    holds for a trial over its limit (`seconds_per_trial`; `memory_per_trial` in bytes, of the whole
    process, PyTorch and data included). With `processes` a worker is so many, started as torchrun would:
    each runs every trial, the first one's results count, and they are replaced together, also where the job
    raises. Of a stack that fails so, what is not finished is then run one trial at a time.

    >>> trial = Trial("batch", 8, 0.1, seed=3)
    >>> job = lambda trial: Result(trial, measures={"judge": trial.seed / 4})
    >>> with LocalEngine(job, Path("."), workers=1, key=lambda t: t.key(""), log=Path("log.txt")) as engine:
    ...     engine.submit(trial)
    ...     engine.next().measures
    {'judge': 0.75}
    """

    def __init__(
        self,
        job: Callable[[Trial], Result],
        folder: Path,
        *,
        workers: int,
        key: Callable[[Trial], str],
        processes: int = 1,
        seconds_per_trial: float | None = None,
        memory_per_trial: int | None = None,
        log: Path,
    ) -> None:
        require_workers(workers)
        self._key, self._processes = key, processes
        self._trials = folder / "trials"
        self._setup = pack(job, self._trials, processes)
        self._limits = Limits(seconds_per_trial, memory_per_trial)
        self._trials.mkdir(exist_ok=True)
        self._log_path = log
        self._log = log.open("ab", buffering=0)
        self._pending: SimpleQueue[Order | None] = SimpleQueue()
        self._finished: SimpleQueue[Result | BaseException] = SimpleQueue()
        self._under_way = 0
        self._lock = Lock()
        self._closing = Event()
        self._workers: dict[int, WorkerProcess] = {}
        self._slots = [Thread(target=self._serve, args=(slot,), daemon=True) for slot in range(workers)]
        self._watch = Thread(target=self._check_limits, daemon=True)
        for thread in (*self._slots, self._watch):
            thread.start()

    def submit(self, *trials: Trial) -> None:
        """Queues a trial, or several that are trained as one where the job can: first in, first begun."""
        self._under_way += len(trials)
        self._pending.put([(self._key(trial), trial) for trial in trials])

    def next(self, timeout: float | None = None) -> Result | None:
        """The next finished trial; `None` after `timeout` seconds, or at once when nothing is under way."""
        if not self._under_way:
            return None
        try:
            item = self._finished.get(timeout=timeout)
        except Empty:
            return None
        if isinstance(item, BaseException):
            raise item
        self._under_way -= 1
        return item

    def close(self) -> None:
        """Ends the workers, also in the middle of a trial."""
        with self._lock:
            self._closing.set()
            for worker in self._workers.values():
                worker.kill()
        for _ in self._slots:
            self._pending.put(None)
        for thread in (*self._slots, self._watch):
            thread.join()
        while self._workers:  # and with a group the port where it meets
            self._workers.popitem()[1].close()
        self._log.close()

    def _serve(self, slot: int) -> None:
        """The life of a worker and its successors, in a thread of its own."""
        try:
            self._start(slot)
            for order in iter(self._pending.get, None):
                for result in self._complete(slot, order):
                    self._finished.put(result)
        except _ClosingError:
            pass
        except BaseException as error:
            self._finished.put(error)

    def _complete(self, slot: int, order: Order) -> list[Result]:
        """Runs an order until there is a result to each of its trials, if only a failed one."""
        for key, _ in order:
            self._file(key).unlink(missing_ok=True)
        reasons = self._attempts(slot, order)
        missing = [entry for entry in order if not self._file(entry[0]).exists()]
        if missing and len(order) > 1:  # one of them may be at fault: the others get their results
            for entry in missing:
                self._complete(slot, [entry])
        elif missing:
            reason = f"{'; then '.join(dict.fromkeys(reasons))} ({ATTEMPTS} attempts)"
            write_atomic(self._file(order[0][0]), Result(order[0][1], "failed", reason).to_json())
        for key, _ in order:
            discard_partial(self._file(key))
        return [Result.from_json(self._file(key).read_text()) for key, _ in order]

    def _attempts(self, slot: int, order: Order) -> list[str]:
        """Runs an order as it is, again if the worker dies; returns why it died, if that was so each time."""
        reasons: list[str] = []
        false_starts = 0
        while len(reasons) < ATTEMPTS:
            death = self._workers[slot].run(order)
            if death:
                self._replace(slot, death, order)
            if not death or all(self._file(key).exists() for key, _ in order):
                return []
            if death.begun:
                reasons.append(death.reason)
                if death.over_limit and len(order) > 1:
                    break
            elif (false_starts := false_starts + 1) == FALSE_STARTS:
                raise WorkerError(self._hopeless(death))
        return reasons

    def _file(self, key: str) -> Path:
        return self._trials / f"{key}.json"

    def _start(self, slot: int) -> None:
        with self._lock:
            if self._closing.is_set():
                raise _ClosingError
            if self._processes > 1:
                worker = WorkerGroup(self._log, self._processes, slot=slot)
            else:
                worker = WorkerProcess(self._log)
            self._workers[slot] = worker
        worker.send(self._setup)

    def _replace(self, slot: int, death: Death, order: Order) -> None:
        self._workers[slot].close()
        if not self._closing.is_set():
            had = ", ".join(str(trial) for _, trial in order)
            self._log.write(f"normwise: {death.reason}; it had {had}\n".encode())
        self._start(slot)

    def _check_limits(self) -> None:
        while not self._closing.wait(SECONDS_BETWEEN_CHECKS):
            with self._lock:
                workers = list(self._workers.values())
            for worker in workers:
                worker.check(self._limits)

    def _hopeless(self, death: Death) -> str:
        end = "\n".join(self._log_path.read_text(errors="replace").splitlines()[-15:])
        return (
            f"{FALSE_STARTS} worker processes in a row ended before they began a trial, "
            f"the last one: {death.reason}. The end of {self._log_path}:\n{end}"
        )


class _ClosingError(Exception):
    """The engine is being closed: no worker may start any more."""
