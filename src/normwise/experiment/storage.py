"""The ledger's side of Optuna: opens a storage, mends its journal, writes a result as an Optuna trial.

Optuna is imported where it is used: it takes a third of a second, and workers need none of it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from normwise.errors import UsageError
from normwise.experiment.database import Database
from normwise.experiment.trial import Result

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

LARGEST_INTEGER = 2**53  # a database keeps parameters as doubles
LEAST_RATE, LARGEST_RATE = 1e-30, 1e30


class Store(Protocol):
    """What a ledger needs of the place where its study is kept."""

    @property
    def storage(self) -> "BaseStorage": ...

    def insist(self, step: Callable[[], None], again: Callable[[], None]) -> None:
        """Does a step that writes; after an interruption calls `again` first, then repeats it."""

    def leave(self) -> None:
        """Ends any waiting in `insist`."""

    def release(self) -> None:
        """Gives back what the calling thread holds."""

    def close(self) -> None:
        """Lets go of the storage."""


def open_store(folder: Path, url: str | None, warnings: list[str]) -> Store:
    """The journal in the folder or the storage at an Optuna URL."""
    if url is None:
        return Journal(folder / "journal.log", warnings)
    with _silence():
        return Database(url, study_name(folder, url))


def study_name(folder: Path, url: str | None) -> str:
    """The study's name in a storage: a shared one tells experiments apart by the name of the folder.

    >>> study_name(Path("runs/a"), None), study_name(Path("runs/a"), "sqlite:///team.db")
    ('normwise', 'a')
    """
    return "normwise" if url is None else folder.resolve().name


def open_study(storage: "BaseStorage", name: str, higher_is_better: bool) -> "Study":
    """The study of that name, made where there is none. Says nothing."""
    import optuna

    with _silence():
        try:
            return optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            direction = "maximize" if higher_is_better else "minimize"
            return optuna.create_study(study_name=name, storage=storage, direction=direction)


def record(key: str, result: Result) -> "FrozenTrial":
    """A result as an Optuna trial: the JSON of it is what counts, the rest is for optuna-dashboard.

    A failed trial has the state FAIL; one that was not judged (a calibration) PRUNED.

    >>> from normwise.experiment.trial import Trial
    >>> trial = record("a key", Result(Trial("batch", 8, 0.1, seed=0), measures={"judge": 0.5}))
    >>> trial.value, trial.params["learning_rate"], trial.user_attrs["arm"]
    (0.5, 0.1, 'batch')
    """
    from optuna.distributions import FloatDistribution, IntDistribution
    from optuna.trial import TrialState, create_trial

    trial, judge = result.trial, None if result.status == "failed" else result.measures.get("judge")
    state = TrialState.COMPLETE if judge is not None else TrialState.FAIL if result.failed else TrialState.PRUNED
    frozen = create_trial(
        state=state,
        value=judge,
        params={
            "learning_rate": min(max(trial.learning_rate, LEAST_RATE), LARGEST_RATE),
            "batch_size": trial.batch_size,
            "seed": trial.seed,
            "length": trial.length,
        },
        distributions={
            "learning_rate": FloatDistribution(LEAST_RATE, LARGEST_RATE, log=True),
            "batch_size": IntDistribution(1, LARGEST_INTEGER),
            "seed": IntDistribution(-LARGEST_INTEGER, LARGEST_INTEGER),
            "length": FloatDistribution(0, LARGEST_RATE),
        },
        user_attrs={"key": key, "arm": trial.arm, "result": result.to_json()},
    )
    if frozen.datetime_complete:
        frozen.datetime_start = frozen.datetime_complete - timedelta(seconds=result.seconds)
    return frozen


class Journal:
    """The journal file of a run's folder; writing it needs no patience."""

    def __init__(self, path: Path, warnings: list[str]) -> None:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        _mend(path, warnings)
        backend = JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
        try:
            self.storage = JournalStorage(backend)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise UsageError(
                f"{path} must be a journal of Optuna, but reading it failed ({type(error).__name__}: {error}); "
                "bring back a copy of it, or take another --out"
            ) from error

    def insist(self, step: Callable[[], None], again: Callable[[], None]) -> None:
        step()

    def leave(self) -> None:
        pass

    def release(self) -> None:
        pass

    def close(self) -> None:
        pass


def _mend(path: Path, warnings: list[str]) -> None:
    """Undoes what a killed driver left: Optuna would wait for its lock, and append to its half a line."""
    for lock in path.parent.glob(f"{path.name}.lock*"):
        lock.unlink(missing_ok=True)
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
        warnings.append(f"{path} ended in the middle of a line: {len(content) - whole} bytes were cut off")


@contextmanager
def _silence() -> Iterator[None]:
    """Optuna tells what it creates; its warnings may speak."""
    from optuna import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(level)
