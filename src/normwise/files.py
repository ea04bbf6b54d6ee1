"""Files that are never half written, and the folders they lie in."""

import os
import tempfile
from pathlib import Path

from normwise.errors import UsageError


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Replaces a file in one step: a reader sees the old content or the new one, never a part.

    >>> write_atomic("example.txt", "whole")
    >>> Path("example.txt").read_text()
    'whole'
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def discard_partial(path: Path) -> None:
    """Removes what was kept beside a file while it was in the making, as `name.partial`.

    >>> Path("example.partial").touch()
    >>> discard_partial(Path("example.json")); Path("example.partial").exists()
    False
    """
    for suffix in (".partial", ".partial-new"):
        path.with_suffix(suffix).unlink(missing_ok=True)


def make_folder(path: Path) -> Path:
    """The folder of a run, made where it is missing."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{path} must be a folder that can be written to ({error.strerror}); take another --out"
        ) from error
    return path
