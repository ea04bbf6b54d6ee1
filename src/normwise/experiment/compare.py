"""The main job: `compare` says which normalization a network should use, on evidence it shows."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from normwise.errors import UsageError, require_list, require_workers
from normwise.experiment.comparison import Comparison, Content
from normwise.experiment.engines import workers_for
from normwise.experiment.folder import require_task, stopping
from normwise.experiment.ledger import Lock
from normwise.experiment.request import Request
from normwise.experiment.resolve import resolve
from normwise.experiment.room import room
from normwise.experiment.session import Session
from normwise.experiment.task import Task
from normwise.files import make_folder


def compare(
    task: Any,
    norms: Sequence[str | Mapping[str, str]] | None = None,
    batch_sizes: Sequence[int] = (8, 64),
    *,
    budget: str = "10m",
    delta: float | str | None = None,
    epochs: float | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    processes: int = 1,
    workers: int | None = None,
    engine: str = "local",
    ray_address: str | None = None,
    stack: str | int = "auto",
    ledger: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
) -> Comparison:
    """Compares normalizations on a task: tunes the learning rate of each, races them on fresh paired seeds.

    `task`: the name of a built-in one, an object with `model()`, `data()` and what else it wants to
    set, `package.module:function` that makes one, or a function `train(trial) -> Scores`. `norms`: spec
    texts or mappings of patterns. `stack`: how many trials are at most trained as one network ("auto": up
    to 16, where that is faster; "off"). `processes`: how many train one trial together, each on its share of
    every batch (`device="cuda"`: each on a GPU of its own). The same `out` continues an interrupted run or
    extends a finished one.
    Raises UsageError for input that cannot work.

    >>> compare("digits", ["batch", "bacth"])
    Traceback (most recent call last):
    normwise.errors.UsageError: unknown norm 'bacth', known are: ...; did you mean batch?
    """
    request = Request(
        task=task if isinstance(task, str) else None,
        norms=None if norms is None else [_text(norm) for norm in require_list("norms", norms)],
        batch_sizes=list(require_list("batch_sizes", batch_sizes)),
        budget=budget,
        epochs=epochs,
        delta=None if delta is None else str(delta),
        device=device,
        precision=precision,
        processes=processes,
        engine=engine,
        ray_address=ray_address,
        stack=str(stack),
        ledger=ledger,
        seed=seed,
    )
    given = None if isinstance(task, str) else resolve(task)
    return Comparison(run_request(request, task=given, out=out, workers=workers))


def run_request(
    request: Request,
    *,
    task: Task | None = None,
    out: str | Path | None = None,
    workers: int | None = None,
    dry_run: bool = False,
) -> Content:
    """Runs what was asked, or goes on with what the folder `out` holds, and returns the content of results.json."""
    stored = _stored(out)
    if stored:
        request = request.over(_earlier(stored, request))
        if task is None and not (request.task or request.data):
            raise UsageError(
                f"{out} was started from Python: continue it there with nw.compare(task, out={str(out)!r})"
            )
    elif out is not None and task is None:
        require_task(request, out)
    request = request.complete(from_python=task is not None)
    require_workers(workers)
    task = task or resolve(request.task, model=request.model, data=request.data)
    if request.epochs is not None:
        task = task.with_epochs(request.epochs)
    with contextlib.ExitStack() as stack:
        # a plan that is only looked at leaves nothing behind
        temporary = dry_run and out is None
        fresh = out is None or not Path(out).exists()
        folder = Path(stack.enter_context(TemporaryDirectory())) if temporary else _folder(out, task)
        stack.enter_context(room(folder))
        if not temporary:
            stack.enter_context(stopping(folder, request, fresh))
        stack.enter_context(Lock(folder))
        return Session(request, task, folder, workers_for(request, workers), stored).run(dry_run)


def _earlier(stored: Content, request: Request) -> Request:
    """What was asked before; arms that were taken by default count as asked for when others are added."""
    earlier = Request(**stored["request"])
    if request.norms and earlier.norms is None:
        earlier = dataclasses.replace(earlier, norms=[arm["name"] for arm in stored.get("arms", [])] or None)
    return earlier


def _stored(out: str | Path | None) -> Content | None:
    path = Path(out) / "config.json" if out else None
    if path is None or not path.exists():
        return None
    try:
        stored = json.loads(path.read_text())
        Request(**stored["request"])
        return stored
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} must be the configuration of a run, but cannot be read ({error})") from error


def _folder(out: str | Path | None, task: Task) -> Path:
    folder = Path(out) if out else Path("runs") / f"{task.name}-{datetime.now():%Y%m%d-%H%M%S}"
    return make_folder(folder)


def _text(norm: str | Mapping[str, str]) -> str:
    return norm if isinstance(norm, str) else json.dumps(dict(norm))
