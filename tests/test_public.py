"""The public names: found lazily, the same in code and stub, and cheap to import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import normwise

STUB = Path(normwise.__file__).with_suffix(".pyi")


def stub_names() -> dict[str, str]:
    """Each public name and the module it comes from, as type checkers see it."""
    nodes = [node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in nodes for alias in node.names}


def test_stub_and_code_agree() -> None:
    names = stub_names()
    assert [names.pop(name) for name in ("claims", "functional")] == ["normwise", "normwise"]
    assert names == {name: f"normwise.{home}" for name, home in normwise._HOME.items()}  # pyright: ignore
    assert set(dir(normwise)) == {*names, "claims", "functional", "__version__"}


@pytest.mark.parametrize("name", stub_names())
def test_every_name_is_there(name: str) -> None:
    assert getattr(normwise, name) is not None


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'normwise' has no attribute 'BatchNorm4d'"):
        normwise.BatchNorm4d  # pyright: ignore  # noqa: B018


def test_import_is_light() -> None:
    code = "import sys, normwise; dir(normwise); print('torch' in sys.modules, normwise.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"False {normwise.__version__}\n"


def test_import_time_names_no_heavy_module() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import normwise"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "normwise" in loaded
    assert not loaded & {"torch", "numpy", "optuna", "plotly", "scipy", "typer"}
