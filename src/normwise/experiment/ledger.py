"""What is known of an experiment: every finished trial and every plan, kept in an Optuna storage.

The driver alone writes it, under a `Lock` on the run's folder. Whoever has the ledger can report and
continue; the files that workers hand over under `trials/` are only the way into it.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from normwise.errors import UsageError
from normwise.experiment.storage import Store, open_store, open_study, record, study_name
from normwise.experiment.trial import Result, Trial
from normwise.files import discard_partial

if TYPE_CHECKING:
    from optuna import Study

SCHEMA = 1


class Ledger:
    """The finished trials of one experiment by key, and its plans. Adding a key twice adds it once.

    `warnings` holds a sentence for whatever had to be skipped or mended.

    >>> trial = Trial("batch", 8, 0.1, seed=0)
    >>> with Ledger.open(Path("."), {"task": "digits"}) as ledger:
    ...     ledger.add("a key", Result(trial, measures={"judge": 0.5}))
    >>> with Ledger.open(Path("."), {"task": "digits"}) as ledger:
    ...     ledger.results["a key"].measures
    {'judge': 0.5}
    """

    def __init__(self, study: "Study", store: Store, warnings: list[str]) -> None:
        self._study, self._store = study, store
        self._thread = ThreadPoolExecutor(1)
        self.warnings = warnings
        self.results: dict[str, Result] = {}
        self.plans: list[dict[str, Any]] = []
        self._do(self._load)

    @classmethod
    def open(
        cls,
        folder: Path,
        fingerprint: dict[str, str],
        url: str | None = None,
        *,
        higher_is_better: bool = True,
    ) -> Self:
        """Opens or begins the ledger of a run's folder: its `journal.log`, or a study at the storage `url`.

        Call it under the folder's `Lock`. The study in a shared storage has the name of the folder.
        """
        warnings: list[str] = []
        store = open_store(folder, url, warnings)
        try:
            study = open_study(store.storage, study_name(folder, url), higher_is_better)
            _check(study, fingerprint, folder)
            return cls(study, store, warnings)
        except BaseException:
            store.close()
            raise

    def add(self, key: str, result: Result) -> None:
        """Records a finished trial, unless its key is known."""

        def write() -> None:
            if key not in self.results:
                self._study.add_trial(record(key, result))
                self.results[key] = result

        self._insist(write)

    def add_plan(self, plan: dict[str, Any]) -> None:
        """Records a plan (anything that JSON can hold) after those before it, unless it is known."""

        def write() -> None:
            if plan not in self.plans:
                self._study.set_user_attr(f"plan {len(self.plans):05}", plan)
                self.plans.append(plan)

        self._insist(write)

    def ingest(self, folder: Path, key: Callable[[Trial], str] | None = None) -> int:
        """Adds what workers handed over and no driver recorded; returns how many that were.

        Files that the ledger knows are then removed. One that cannot be read, or whose name is not the
        `key` of its trial, stays where it is and is named in `warnings`.
        """
        before = len(self.results)
        for path in sorted(folder.glob("*.json")):
            if path.stem not in self.results:
                try:
                    result = Result.from_json(path.read_text())
                    if key and key(result.trial) != path.stem:
                        raise ValueError("it belongs to another experiment")
                except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                    self.warnings.append(f"{path} was skipped: {type(error).__name__}: {error}")
                    continue
                self.add(path.stem, result)
            path.unlink(missing_ok=True)
            discard_partial(path)
        return len(self.results) - before

    def close(self) -> None:
        """Lets go of the storage."""
        self._store.leave()
        self._do(self._store.release)
        self._thread.shutdown()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, step: Callable[[], None]) -> None:
        """Does it in a thread of its own: Ctrl-C ends the waiting here, never the writing there."""
        self._thread.submit(step).result()

    def _insist(self, step: Callable[[], None]) -> None:
        # what was written before an answer got lost must not be written again
        self._do(lambda: self._store.insist(step, self._load))

    def _load(self) -> None:
        for trial in self._study.get_trials(deepcopy=False):
            if key := trial.user_attrs.get("key"):
                self.results.setdefault(key, Result.from_json(trial.user_attrs["result"]))
        attributes = self._study.user_attrs
        self.plans = [attributes[name] for name in sorted(attributes) if name.startswith("plan ")]


class Lock:
    """Keeps a second driver out of a run's folder. The system releases it when the process dies.

    >>> with Lock(Path(".")):
    ...     with Lock(Path(".")):
    ...         pass
    Traceback (most recent call last):
    normwise.errors.UsageError: . is in use by the normwise process ...; let it end, or take another --out
    """

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock

        self._folder = folder
        self._pid = folder / ".pid"
        self._lock = FileLock(folder / ".lock")

    def __enter__(self) -> Self:
        from filelock import Timeout

        try:
            self._lock.acquire(timeout=0)
            self._pid.write_text(str(os.getpid()))
        except Timeout:
            raise UsageError(
                f"{self._folder} is in use by the normwise process {self._owner()}; let it end, or take another --out"
            ) from None
        except OSError as error:
            self._lock.release()
            raise UsageError(
                f"{self._folder} must be a folder that can be written to ({error.strerror}); take another --out"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pid.unlink(missing_ok=True)
        self._lock.release()

    def _owner(self) -> str:
        try:
            return self._pid.read_text()
        except OSError:
            return "on another machine or of another user"


def _check(study: "Study", fingerprint: dict[str, str], folder: Path) -> None:
    """Refuses the ledger of another version or experiment; signs a new one."""
    attributes = study.user_attrs
    if "schema" not in attributes:
        study.set_user_attr("fingerprint", fingerprint)
        study.set_user_attr("schema", SCHEMA)  # last: what has it is complete
        return
    if attributes["schema"] != SCHEMA:
        raise UsageError(
            f"{folder} has a ledger of schema {attributes['schema']}, this version of normwise reads "
            f"{SCHEMA}; use the version that wrote it, or take another --out"
        )
    require_same(attributes["fingerprint"], fingerprint, folder)


def require_same(old: dict[str, str], new: dict[str, str], folder: Path) -> None:
    """Raises UsageError, saying what changed, where a run's folder belongs to another experiment."""
    if changes := _changes(old, new):
        raise UsageError(
            f"{folder} holds another experiment: {'; '.join(changes)}; "
            "take another --out, or undo the change to continue this one"
        )


def _changes(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Which entries of two fingerprints differ, and how.

    >>> _changes({"torch": "2.13.0", "data": "ab"}, {"torch": "2.14.0", "data": "ab"})
    ['torch was 2.13.0 and is 2.14.0']
    """

    def short(value: str | None) -> str:
        return "absent" if value is None else value if len(value) <= 40 else f"{value[:37]}..."

    return [
        f"{name} was {short(old.get(name))} and is {short(new.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
