"""The site: its generated pages leave nothing out, its examples are code, and it loads nothing from elsewhere."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import normwise
from normwise.layers import NORMS

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]


def load(name: str) -> ModuleType:
    """A module of the docs folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def links(page: Path) -> list[Path]:
    """The files of this repository that a page links to."""
    found = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text())
    return [(page.parent / link).resolve() for link in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_is_there_in_a_clone(page: Path) -> None:
    """Pages that only the site has (norms, claims, reference) cannot be linked to: who reads a clone has none."""
    assert [link for link in links(page) if not link.exists()] == []


def test_the_first_page_leads_to_all_written_ones() -> None:
    written = {page.resolve() for page in (ROOT / "docs").glob("*.md")}
    included = {ROOT / "docs" / name for name in ("index.md", "changelog.md", "contributing.md")}
    assert written - included <= set(links(ROOT / "docs" / "index.md"))


def test_every_norm_has_its_card() -> None:
    cards = re.findall(r"^### `(.+)`$", load("hooks").norms_page(), re.MULTILINE)
    assert sorted(cards) == sorted(NORMS)


def test_signs_of_markdown_are_shown_as_they_are() -> None:
    assert load("hooks").plain("values (N*H*W) of [x]_i") == r"Values (N\*H\*W) of \[x\]\_i"


def test_every_public_function_and_class_is_in_the_reference() -> None:
    page = load("hooks").reference_page()
    public = [value for name in dir(normwise) if callable(value := getattr(normwise, name))]
    shown = re.findall(r"^::: .*\.(\w+)$", page, re.MULTILINE)
    assert {value.__name__ for value in public} <= set(shown)


def test_examples_in_docstrings_become_code() -> None:
    text = inspect.cleandoc("""
        Adds.

        >>> add(
        ...     1, 2)
        3

        More.""")
    examples = load("examples")
    shown = examples.EXAMPLE.sub(examples.fenced, text)
    assert shown == "Adds.\n\n```pycon\n>>> add(\n...     1, 2)\n3\n```\n\nMore."


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    loaded = [tag for page in pages for tag in re.findall(r"<(?:script|link|img)\b[^>]*>", page.read_text())]
    assert len(pages) > 8
    assert [tag for tag in loaded if re.search(r"(?:src|href)=[\"']?(?:https?:)?//", tag)] == []
