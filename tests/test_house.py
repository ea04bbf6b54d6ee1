"""The house keeps its order: who may import whom, what `__init__` files hold, how long things may get."""

import ast
import re
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import normwise

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "normwise"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Each floor stands on those before it; what stands side by side may meet, as long as there is no circle.
FLOORS = (
    {"errors", "files", "loading", "generators", "fakes", "kernels", "tail"},
    {"table"},
    {"ops"},
    {"plain", "measure", "mixture"},
    {"layers", "functional"},
    {"report", "surgery", "probe", "data", "networks"},
    {"experiment", "diagnosis"},
    {"claims", "bench"},
    {"cli"},
    {"__main__"},
)
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}
SOURCES = sorted(SOURCE.rglob("*.py"))
WRITTEN = [
    path for folder in ("src", "tests", "docs", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")
]


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def imported(path: Path) -> Iterator[str]:
    """The modules of the house that a file imports, anywhere in it. The version is no module."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            for alias in node.names:
                if (origin, alias.name) == ("normwise", "__version__"):
                    continue
                found = [name for name in (f"{origin}.{alias.name}", origin) if name in MODULES]
                yield from found[:1]


def room(module: str) -> str:
    """The part of the house a module belongs to: `normwise.layers.batch` to `layers`."""
    return [*module.split("."), ""][1]


def rooms() -> dict[str, set[str]]:
    """Which rooms each room imports."""
    doors: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        doors.setdefault(room(name), set()).update(room(other) for other in imported(path))
    return {name: others - {name} for name, others in doors.items()}


def test_every_room_has_its_floor() -> None:
    assert {room(name) for name in MODULES} - {""} <= FLOOR.keys()


def test_imports_never_go_up() -> None:
    up = [
        (name, other)
        for name, others in rooms().items()
        for other in others
        if name and (not other or FLOOR[other] > FLOOR[name])
    ]
    assert not up


def test_rooms_import_in_no_circle() -> None:
    doors = rooms()
    doors.pop("", None)
    TopologicalSorter(doors).prepare()


def test_modules_import_in_no_circle() -> None:
    """An `__init__` re-exports what its own modules hold: that way alone does not count."""
    graph = {name: set(imported(path)) - {name} for name, path in MODULES.items() if path.name != "__init__.py"}
    TopologicalSorter(graph).prepare()


def test_report_knows_nothing_of_the_rest() -> None:
    assert rooms().get("report", set()) <= {"files"}


def is_reexport(node: ast.stmt) -> bool:
    """What an `__init__` may hold: its docstring, imports, constants, and the lookup of lazy names."""
    if isinstance(node, ast.FunctionDef):
        return node.name in {"__getattr__", "__dir__"}
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return docstring or isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("__init__.py")), ids=module_name)
def test_an_init_only_reexports(path: Path) -> None:
    assert [ast.unparse(node) for node in ast.parse(path.read_text()).body if not is_reexport(node)] == []


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("__init__.py")), ids=module_name)
def test_no_public_name_hides_a_module(path: Path) -> None:
    """Importing `package.swap` would overwrite a function `swap` that the package re-exports."""
    package = import_module(module_name(path))
    names = set(getattr(package, "__all__", ())) | vars(package).keys()
    beside = {other.stem for other in path.parent.iterdir() if other.name != "__init__.py"}
    assert [name for name in sorted(names & beside) if not isinstance(getattr(package, name), ModuleType)] == []


def test_every_public_name_is_explained_by_an_example() -> None:
    public = {name: getattr(normwise, name) for name in dir(normwise)}
    verbs = {name: value for name, value in public.items() if isinstance(value, type | FunctionType)}
    assert [name for name, value in verbs.items() if ">>>" not in (value.__doc__ or "")] == []


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function's body; its signature and its docstring explain it and are not counted."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert text.count("\n") <= 400, "a file tells one story: split it"
    assert [(f.name, code_lines(f)) for f in functions if code_lines(f) > 40] == []


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_says_its_story_first(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_changelog_has_an_unreleased_section() -> None:
    assert re.search(r"^## \[Unreleased\]$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_version_stands_in_two_places_that_agree() -> None:
    assert normwise.__version__ == PROJECT["version"]


def test_every_dependency_that_make_installs_is_pinned() -> None:
    extras = [name for extra in ("lab", "dev", "docs") for name in PROJECT["optional-dependencies"][extra]]
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text().lower(), re.MULTILINE))
    asked = {re.split(r"[^\w.-]", name.lower())[0] for name in [*PROJECT["dependencies"], *extras]}
    assert asked - pinned == set()
