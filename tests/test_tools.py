"""The set-up script for Debian packages is silent where nothing is missing, else says one sentence."""

import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "tools" / "debian.sh"


def run(folder: Path, *packages: str, installed: bool) -> subprocess.CompletedProcess[str]:
    """Runs the script on a machine that has `dpkg` and no `apt-get`."""
    (folder / "dpkg").write_text(f"#!/bin/sh\nexit {0 if installed else 1}\n")
    (folder / "dpkg").chmod(0o755)
    command = ["/bin/bash", str(SCRIPT), *packages]
    return subprocess.run(command, env={"PATH": str(folder)}, capture_output=True, text=True)


def test_nothing_is_said_where_nothing_is_missing(tmp_path: Path) -> None:
    done = run(tmp_path, "chromium", installed=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_one_sentence_names_what_is_missing(tmp_path: Path) -> None:
    done = run(tmp_path, "chromium", "dataset-fashion-mnist", installed=False)
    assert done.returncode == 0
    assert done.stdout.startswith("Missing here: chromium dataset-fashion-mnist (Debian packages")
    assert done.stdout.count("\n") == 1
