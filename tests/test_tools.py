"""The set-up: what it installs from Debian, or says in one sentence; what it hands to pip."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(folder: Path, *packages: str, installed: bool) -> subprocess.CompletedProcess[str]:
    """Runs the script on a machine that has `dpkg` and no `apt-get`."""
    (folder / "dpkg").write_text(f"#!/bin/sh\nexit {0 if installed else 1}\n")
    (folder / "dpkg").chmod(0o755)
    command = ["/bin/bash", str(ROOT / "tools" / "debian.sh"), *packages]
    return subprocess.run(command, env={"PATH": str(folder)}, capture_output=True, text=True)


def test_nothing_is_said_where_nothing_is_missing(tmp_path: Path) -> None:
    done = run(tmp_path, "chromium", installed=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_one_sentence_names_what_is_missing(tmp_path: Path) -> None:
    done = run(tmp_path, "chromium", "dataset-fashion-mnist", installed=False)
    assert done.returncode == 0
    assert done.stdout.startswith("Missing here: chromium dataset-fashion-mnist (Debian packages")
    assert done.stdout.count("\n") == 1


def test_extras_are_read_from_the_project_file() -> None:
    command = [sys.executable, str(ROOT / "tools" / "extras.py"), "lab", "docs"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert printed == [*extras["lab"], *extras["docs"]]
