"""The error a user can mend: bad input, said in one sentence (exit code 2); and bad input that any call may get."""

from collections.abc import Iterable, Mapping
from typing import Any


class UsageError(ValueError):
    """Bad input: the message says what was required, what came and what to do."""


def require_list(name: str, given: Any) -> Any:
    """The same; a text is a sequence of letters to Python, and a mapping one of its keys.

    >>> require_list("norms", "batch")
    Traceback (most recent call last):
    normwise.errors.UsageError: norms must be a list, even of one, got 'batch'; write ['batch']
    """
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise UsageError(f"{name} must be a list, even of one, got {given!r}; write [{given!r}]")
    return given


def require_workers(workers: int | None) -> None:
    """Raises UsageError for fewer than one worker; None is the machine's number of cores."""
    if workers is not None and workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}")
