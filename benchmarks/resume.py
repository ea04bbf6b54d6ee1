"""What does going on cost? A run killed in the middle beside an undisturbed one; a ledger with 10,000 trials.

    python benchmarks/resume.py

Wall seconds of whole commands, the start of Python and the writing of the report included.
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = [sys.executable, "-m", "normwise", "compare", "--json", "--out"]
ASKED = "digits --model mlp --norm batch --norm none --batch-size 32 --epochs 2 --stack off --budget 60trials"
TRIALS = 10_000


def start(folder: Path, *words: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([*COMMAND, str(folder), *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def run(folder: Path, *words: str) -> tuple[float, dict]:
    begin = time.perf_counter()
    said, _ = start(folder, *words).communicate()
    return time.perf_counter() - begin, json.loads(said)


def planned(first: Path, folder: Path) -> Path:
    """A folder with the plan of a first run, and nothing run."""
    folder.mkdir()
    shutil.copy(first / "config.json", folder)
    return folder


def enlarge(folder: Path) -> None:
    """Repeats the journal's last trial until there are so many; each has a key and a seed of its own."""
    journal = folder / "journal.log"
    lines = journal.read_text().splitlines(keepends=True)
    last = next(line for line in reversed(lines) if "judge" in line)
    key = json.loads(last)["user_attrs"]["key"]
    seed = next(part for part in last.replace("\\", "").split(", ") if part.startswith('"seed": '))
    escaped = seed.replace('"', '\\"')
    assert escaped in last
    with journal.open("a") as file:
        for number in range(TRIALS - len(lines)):
            file.write(last.replace(key, f"{number:024}").replace(escaped, f'\\"seed\\": {5_000_000 + number}'))


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        first = Path(place) / "first"
        run(first, *ASKED.split())
        whole, expected = run(planned(first, Path(place) / "whole"))
        folder = planned(first, Path(place) / "killed")
        begin = time.perf_counter()
        driver = start(folder)
        time.sleep(whole / 2)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        before = time.perf_counter() - begin
        after, found = run(folder)
        assert found["verdict"] == expected["verdict"]
        print(f"undisturbed {whole:.1f} s; killed after {before:.1f} s, then {after:.1f} s to the end: ", end="")
        print(f"{before + after - whole:.1f} s more, trials in flight included")
        again, _ = run(folder)
        print(f"a finished run again, with its report: {again:.1f} s")
        enlarge(folder)
        again, found = run(folder)
        print(f"the same with {len(found['results']):,} trials in its ledger: {again:.1f} s")


if __name__ == "__main__":
    main()
