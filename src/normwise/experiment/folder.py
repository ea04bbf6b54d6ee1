"""The folder of a run: one that must exist to go on with, and one that goes when nothing came of it."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from normwise.errors import UsageError
from normwise.experiment.request import Request


def require_task(request: Request, out: str | Path) -> None:
    """Raises UsageError where a folder without a run is to go on, and nothing says with what."""
    if not (request.task or request.model or request.data):
        raise UsageError(f"no run in {out} to go on with; name a task: normwise compare digits --out {out}")


@contextlib.contextmanager
def stopping(folder: Path, request: Request, fresh: bool) -> Iterator[None]:
    """Within, Ctrl-C says how to continue, and a refusal before the plan removes a folder made for this call.

    >>> try:
    ...     with stopping(Path("runs/mine"), Request(task="digits"), fresh=False):
    ...         raise KeyboardInterrupt
    ... except KeyboardInterrupt as interrupted:
    ...     print(interrupted)
    interrupted; continue with: normwise compare digits --out runs/mine
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; continue with: {request.command(folder)}") from None
    except UsageError:
        if fresh and not _planned(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _planned(folder: Path) -> bool:
    path = folder / "config.json"
    return path.exists() and json.loads(path.read_text()).get("plan") is not None
