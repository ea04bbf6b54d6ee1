"""A disk without room left, told as what it is."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from normwise.errors import UsageError

# a worker's or a database's error reaches the driver as text
FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "disk is full")


@contextlib.contextmanager
def room(folder: Path) -> Iterator[None]:
    """Within, an error that comes from a full disk becomes a UsageError; all others pass.

    >>> with room(Path("runs/mine")):
    ...     raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    Traceback (most recent call last):
    normwise.errors.UsageError: runs/mine needs room on its disk ([Errno 28] No space left on device); no finished ...
    """
    try:
        yield
    except Exception as error:
        if not any(words in str(error) for words in FULL):
            raise
        raise UsageError(
            f"{folder} needs room on its disk ({error}); no finished trial is lost: make room, and the same "
            f"command with --out {folder} continues"
        ) from error
