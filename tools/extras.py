"""Prints what the named extras of pyproject.toml depend on, one requirement a line, for pip."""

import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def requirements(extras: list[str]) -> list[str]:
    """The requirements of all the extras."""
    known = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    return [requirement for extra in extras for requirement in known[extra]]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:])))
