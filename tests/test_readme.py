"""Every command and Python block of the README and the docs runs, in order, as a newcomer would run them."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# `.ci/run` runs these: it begins in a clone with `make compare`, and `make test` runs this file.
SET_UP = ("git clone ", "cd normwise", "make compare", "make test")
SKIP = "runs elsewhere in CI"
BLOCK = re.compile(
    r"(?:^<!-- (?P<marker>[^\n]*) -->\n)?"
    r"^```(?P<language>bash|python)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """One fenced block; a title is the name of the file that the reader saves it in."""

    marker: str | None
    language: str
    title: str | None
    code: str


def blocks(page: Path) -> list[Block]:
    return [Block(**match.groupdict()) for match in BLOCK.finditer(page.read_text())]


def run(block: Block, names: dict[str, object]) -> None:
    """Runs a block here: a file or a command in a process of its own, the rest in one namespace."""
    if block.language == "python" and not block.title:
        exec(compile(block.code, "<block>", "exec"), names)
        return
    if block.title:
        Path(block.title).write_text(block.code)
    command = [sys.executable, block.title] if block.title else ["bash", "-euo", "pipefail", "-c", block.code]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, f"{block.code}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_every_block_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.marker != SKIP:
            run(block, names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_only_the_set_up_is_skipped(page: Path) -> None:
    skipped = [line for block in blocks(page) if block.marker == SKIP for line in block.code.splitlines()]
    assert [line for line in skipped if not line.startswith(SET_UP)] == []


def test_every_fence_is_understood() -> None:
    """A block in a form that `BLOCK` does not match would never run."""
    for page in PAGES:
        assert len(blocks(page)) == len(
            re.findall(r"^\s*```(?:bash|python|sh|py|console)", page.read_text(), re.MULTILINE)
        ), page


def test_a_block_that_fails_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="no-such-file"):
        run(Block(None, "bash", None, "ls no-such-file"), {})
    with pytest.raises(ZeroDivisionError):
        run(Block(None, "python", None, "1 / 0"), {})
