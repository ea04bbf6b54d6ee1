"""What the figures were taken on."""

import os
import platform
from ctypes.util import find_library
from pathlib import Path
from typing import Any

from normwise.errors import UsageError

SYSTEM = "system"


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, and system.

    >>> machine()["cores"] > 0
    True
    """
    return {"processor": _processor(), "cores": cores(), "system": platform.platform()}


def cores() -> int:
    """The cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_allocator(name: str) -> str:
    """The library that is to be loaded before the C library's malloc: a path, or a name such as tcmalloc.

    >>> find_allocator(__file__) == str(Path(__file__).resolve())
    True
    """
    if name == SYSTEM:
        return name
    if Path(name).is_file():
        return str(Path(name).resolve())
    found = next(filter(None, (find_library(known) for known in (name, f"{name}_minimal"))), None)
    if not found:
        raise UsageError(
            f"--allocator must be system, a library's file, or the name of one that is installed, got {name!r}; "
            "tcmalloc: apt-get install libgoogle-perftools4."
        )
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
