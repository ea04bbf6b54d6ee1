"""Trials on a Ray cluster: each is a Ray task, and on the machine where it lands a LocalEngine runs it.

So limits, retries, reasons and stacks are those of one machine; Ray adds the machines. The job, with the
data it holds, lies once in the object store. Only the driver writes results down.
"""

import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import cloudpickle

from normwise.errors import UsageError, require_workers
from normwise.experiment.engine import Engine, LocalEngine
from normwise.experiment.process import Limits, Order, WorkerError, pickle_job
from normwise.experiment.trial import Result, Trial, UnstackableError
from normwise.files import write_atomic

SECONDS_TO_ANSWER = 10.0
LOSSES = 3  # of machines or Ray workers in the middle of one order, before it counts as failed


class RayEngine(Engine):
    """Runs trials as tasks of the Ray cluster at `address`, at most `workers` at once.

    Without an address the environment's RAY_ADDRESS is taken, else Ray is started on this machine, on its
    loopback address alone. A task asks Ray for one CPU and `gpus` GPUs, for each of its `processes`, all on one
    machine. What a lost machine had is given to another; the other rules are those of `LocalEngine`. Raises
    UsageError where no cluster answers.
    """

    def __init__(
        self,
        job: Callable[[Trial], Result],
        folder: Path,
        *,
        workers: int,
        key: Callable[[Trial], str],
        address: str | None = None,
        gpus: float = 0.0,
        processes: int = 1,
        seconds_per_trial: float | None = None,
        memory_per_trial: int | None = None,
        log: Path,
    ) -> None:
        require_workers(workers)
        self._ray, self._mine = connect(address, workers * processes)
        self._key, self._workers, self._log = key, workers, log
        self._trials = folder / "trials"
        self._trials.mkdir(exist_ok=True)
        self._setup = _Setup(
            [self._ray.put(pickle_job(job))],
            tuple(os.path.abspath(entry) for entry in sys.path),
            Limits(seconds_per_trial, memory_per_trial),
            processes,
        )
        needs = {"num_cpus": processes, "num_gpus": gpus * processes}
        self._say_if_none_fits({"CPU": processes, "GPU": gpus * processes})
        self._task = self._ray.remote(_work).options(**needs, max_retries=0)
        self._pending: deque[tuple[Order, int]] = deque()  # orders, and how often each was lost
        self._running: dict[Any, tuple[Order, int]] = {}
        self._finished: deque[Result] = deque()

    def submit(self, *trials: Trial) -> None:
        """Queues a trial, or several that are trained as one where the job can: first in, first begun."""
        self._pending.append(([(self._key(trial), trial) for trial in trials], 0))
        self._feed()

    def next(self, timeout: float | None = None) -> Result | None:
        """The next finished trial; `None` after `timeout` seconds, or at once when nothing is under way."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self._finished and self._running:
            left = None if end is None else max(0.0, end - time.monotonic())
            ready, _ = self._ray.wait(list(self._running), timeout=left)
            for reference in ready:
                self._take(reference)
            self._feed()
            if not ready:
                break
        return self._finished.popleft() if self._finished else None

    def close(self) -> None:
        """Ends what still runs, and the cluster if it was started here."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
        if self._mine:
            self._ray.shutdown()

    def _say_if_none_fits(self, needs: Mapping[str, float]) -> None:
        """A cluster may grow; else no trial would ever begin, and nobody would know why."""
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(all(machine.get(kind, 0) >= number for kind, number in needs.items()) for machine in machines):
            wanted = " and ".join(f"{number:g} {kind}" for kind, number in needs.items() if number)
            words = f"a trial needs a machine with {wanted}, and the Ray cluster has none"
            print(f"normwise: {words}; waiting for one", file=sys.stderr)

    def _feed(self) -> None:
        while self._pending and len(self._running) < self._workers:
            order, losses = self._pending.popleft()
            self._running[self._task.remote(self._setup, order)] = order, losses

    def _take(self, reference: Any) -> None:
        """Keeps what a task brought, or has its order run again."""
        order, losses = self._running.pop(reference)
        errors = self._ray.exceptions
        try:
            texts, said = self._ray.get(reference)
        except errors.RayTaskError as error:
            raise WorkerError(f"a Ray worker stopped: {error.cause}") from error
        except errors.RayError as error:
            return self._lost(order, losses + 1, type(error).__name__)
        with self._log.open("a") as log:
            log.write(said)
        self._keep(order, texts)

    def _lost(self, order: Order, losses: int, why: str) -> None:
        if losses < LOSSES:  # one at a time: a single trial of a stack may be what ends the workers
            self._pending.extendleft(([entry], losses) for entry in reversed(order))
            return
        reason = f"the Ray worker or its machine was lost {losses} times ({why})"
        self._keep(order, (Result(trial, "failed", reason).to_json() for _, trial in order))

    def _keep(self, order: Order, texts: Iterable[str]) -> None:
        for (key, _), text in zip(order, texts, strict=True):
            write_atomic(self._trials / f"{key}.json", text)
            self._finished.append(Result.from_json(text))


def connect(address: str | None, workers: int) -> tuple[Any, bool]:
    """Ray, connected to a cluster; and whether that was started here and ends with us."""
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
    except ModuleNotFoundError as error:
        raise UsageError(f"--engine ray needs {error.name}; run: pip install 'normwise[ray]'") from error
    if ray.is_initialized():
        return ray, False
    address = address or os.environ.get("RAY_ADDRESS")
    here: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        if address:
            reach(address)
        ray.init(
            address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else here)
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"--ray-address must be that of a running Ray cluster, got {address} ({error}); "
            "start one with `ray start --head`, or leave the address out to use this machine alone"
        ) from error
    return ray, address is None


def size(address: str) -> int:
    """How many trials a running cluster can hold at once: its CPUs."""
    ray, _ = connect(address, 1)
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def reach(address: str) -> None:
    """Raises where nobody listens at host:port; Ray itself would wait for minutes.

    >>> reach("127.0.0.1:1")
    Traceback (most recent call last):
    ConnectionRefusedError: [Errno 111] Connection refused
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER).close()


class _Setup(NamedTuple):
    """What a task must know besides its order. The job stays a reference: most tasks need not fetch it."""

    job: list[Any]
    path: tuple[str, ...]
    limits: Limits
    processes: int


class _Bench(NamedTuple):
    """What a Ray worker keeps between its tasks: the process that has the job, and where it writes."""

    engine: LocalEngine
    keys: dict[Trial, str]
    folder: TemporaryDirectory[str]
    log: Path


_BENCHES: dict[tuple[str, str | None], _Bench] = {}


def _work(setup: _Setup, order: Order) -> tuple[list[str], str]:
    """Runs an order on this machine; returns its results in the order's order, and what the log gained."""
    bench = _bench(setup)
    before = bench.log.stat().st_size
    bench.keys.update({trial: key for key, trial in order})
    bench.engine.submit(*(trial for _, trial in order))
    results = {result.trial: result for result in iter(bench.engine.next, None)}
    for key, _ in order:
        (Path(bench.folder.name) / "trials" / f"{key}.json").unlink()
    with bench.log.open() as log:
        log.seek(before)
        return [results[trial].to_json() for _, trial in order], log.read()


def _bench(setup: _Setup) -> _Bench:
    import ray

    # Ray may give another GPU to the next task of this worker
    name = setup.job[0].hex(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if name not in _BENCHES:
        sys.path += [entry for entry in setup.path if entry not in sys.path]
        here = ray.get_runtime_context()  # beside Ray's own logs: it kills its workers, which then tidy nothing up
        session = Path(here.get_temp_dir(), here.get_session_name())
        folder, keys = TemporaryDirectory(prefix="normwise-", dir=session), {}
        log = Path(folder.name) / "workers.log"
        engine = LocalEngine(
            _Packed(ray.get(setup.job[0])),
            Path(folder.name),
            workers=1,
            key=keys.__getitem__,
            processes=setup.processes,
            seconds_per_trial=setup.limits.seconds,
            memory_per_trial=setup.limits.bytes,
            log=log,
        )
        _BENCHES[name] = _Bench(engine, keys, folder, log)
    return _BENCHES[name]


class _Packed:
    """A job that is unpacked where it is first run, so that a Ray worker itself imports nothing of it."""

    def __init__(self, pickled: bytes) -> None:
        self._pickled = pickled

    def __call__(self, trial: Trial) -> Result:
        return self._job()(trial)

    def resume(self, trial: Trial, path: Path) -> Result:
        job = self._job()
        return job.resume(trial, path) if hasattr(job, "resume") else job(trial)

    def stack(self, trials: list[Trial]) -> Any:
        job = self._job()
        if not hasattr(job, "stack"):
            raise UnstackableError("the job runs one trial at a time")
        return job.stack(trials)

    def resume_stack(self, trials: list[Trial], path: Path) -> Any:
        job = self._job()
        return job.resume_stack(trials, path) if hasattr(job, "resume_stack") else self.stack(trials)

    def _job(self) -> Any:
        if "_loaded" not in self.__dict__:
            self._loaded = cloudpickle.loads(self._pickled)
        return self._loaded
