"""A ledger in a database: waits while the server is away, and on PostgreSQL lets one driver in."""

import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event
from typing import TYPE_CHECKING

from normwise.errors import UsageError

if TYPE_CHECKING:
    from sqlalchemy import Connection

PATIENCE = 600.0  # seconds for which a server may be away
FAREWELL = 2.0  # seconds in which a server notices that a connection has ended and frees its claim
PAUSE = 1.0
LOCK_CLASS = 0x6E6F726D  # "norm": advisory locks of others have another


class Database:
    """The Optuna storage at a URL, with a claim on one study that ends with this process."""

    def __init__(self, url: str, study: str) -> None:
        from optuna.storages import RDBStorage

        self._shown, self._study = without_password(url), study
        self._guard: Connection | None = None
        self._leaving = Event()
        try:
            self.storage = RDBStorage(with_driver(url), engine_kwargs={"pool_pre_ping": True})
        except Exception as error:
            raise UsageError(
                f"the ledger must be the URL of a database, such as sqlite:///runs.db, got {self._shown} "
                f"({type(error).__name__}: {str(error).splitlines()[0]})"
            ) from error
        try:
            self._claim()
        except BaseException:
            self.close()
            raise

    def insist(self, step: Callable[[], None], again: Callable[[], None]) -> None:
        """Does a step; where the server is away, waits for it, calls `again` and then repeats the step."""
        end = time.monotonic() + PATIENCE
        try:
            self._check_claim()
            return step()
        except Exception as error:
            if not is_away(error):
                raise
            print(f"normwise: {self._shown} does not answer; waiting for it", file=sys.stderr)
        while time.monotonic() < end and not self._leaving.wait(PAUSE):
            try:
                self._claim()
                again()
                return step()
            except Exception as error:
                if not is_away(error):
                    raise
        raise UsageError(
            f"{self._shown} did not answer for {PATIENCE:g} seconds; finished trials wait in the run's folder "
            "under trials/, and the same command continues when the database is back"
        )

    def leave(self) -> None:
        """Ends any waiting for the server."""
        self._leaving.set()

    def release(self) -> None:
        """Gives back the connection of the calling thread; the server may be away."""
        with suppress(Exception):
            self.storage.remove_session()

    def close(self) -> None:
        """Gives up the claim and lets go of the connections."""
        self._release_claim()
        self.release()
        self.storage.engine.dispose()

    def _claim(self) -> None:
        """Takes the study for this process; the server releases it when the connection ends."""
        from sqlalchemy import text

        if self.storage.engine.dialect.name != "postgresql":
            return  # the lock on the run's folder is all there is
        self._release_claim()
        self._guard = self.storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        query = text("SELECT pg_try_advisory_lock(:kind, hashtext(:study))")
        end = time.monotonic() + FAREWELL
        while not self._guard.scalar(query, {"kind": LOCK_CLASS, "study": self._study}):
            if time.monotonic() > end:
                raise UsageError(
                    f"the experiment {self._study} in {self._shown} is in use by another normwise process; "
                    "let it end, or take an --out of another name"
                )
            time.sleep(0.05)

    def _check_claim(self) -> None:
        """Raises where the connection that holds the claim is gone, though others may work again."""
        from sqlalchemy import text

        if self._guard is not None:
            self._guard.scalar(text("SELECT 1"))

    def _release_claim(self) -> None:
        """Ends the connection itself: in the pool it would keep the claim, and a dead one takes no goodbye."""
        if self._guard is not None:
            with suppress(Exception):
                driver_connection = self._guard.connection.dbapi_connection
                self._guard.invalidate()
                self._guard.close()
                if driver_connection is not None:
                    driver_connection.close()
            self._guard = None


def with_driver(url: str) -> str:
    """Names the driver that the extra `postgres` installs, where the URL names none.

    >>> with_driver("postgresql://me@host/runs")
    'postgresql+psycopg://me@host/runs'
    """
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)


def without_password(url: str) -> str:
    """A storage URL that may be shown.

    >>> without_password("postgresql://me:secret@host/runs")
    'postgresql://me:...@host/runs'
    """
    return re.sub(r"//([^:/@]*):[^@]*@", r"//\1:...@", url)


def is_away(error: BaseException) -> bool:
    """Whether the error, or what it came from, says that the server cannot be reached."""
    from sqlalchemy.exc import InterfaceError, OperationalError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OperationalError | InterfaceError):
            return "sqlite" not in str(type(cause.orig))
        cause = cause.__cause__
    return False
