"""The user's code: found by name, called with the same random numbers, sent to other processes."""

import random
import subprocess
import sys
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch

from normwise.errors import UsageError
from normwise.generators import reproducible
from normwise.loading import call, describe, load_object, parse_options, required_parameters

CODE = """
import torch
from pathlib import Path
import beside

class Net(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, beside.WIDTH)

    @staticmethod
    def make():
        return Net()

def model():
    return Net()

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the user's file and one that it imports."""
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "beside.py").write_text("WIDTH = 5\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "needs.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    for name in ("mine", "beside", "broken", "needs"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize("text", ["mine:model", "mine.py:model", "mine.py:Net", "mine:Net.make"])
def test_finds_functions_and_classes_of_the_current_folder(folder: Path, text: str) -> None:
    assert load_object(text)().weight.shape == (5, 2)


def test_finds_a_file_elsewhere_and_what_stands_beside_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert load_object("../mine.py:model")().weight.shape == (5, 2)
    assert load_object(f"{folder}/mine.py:model")().weight.shape == (5, 2)


def test_a_file_is_run_once(folder: Path) -> None:
    (folder / "counts.py").write_text("with open('runs', 'a') as file: file.write('x')\ndef f(): pass\ndef g(): pass\n")
    load_object("counts.py:f")
    load_object("./counts.py:g")
    assert (folder / "runs").read_text() == "x"


def test_a_file_does_not_hide_an_installed_module(folder: Path) -> None:
    (folder / "json.py").write_text("def loads(): return 'mine'\n")
    assert load_object("json.py:loads")() == "mine"
    assert sys.modules["json"].loads("1") == 1


def test_functions_of_a_file_work_in_another_process(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = cloudpickle.dumps(load_object("mine.py:model"))
    elsewhere = tmp_path_factory.mktemp("worker")
    (elsewhere / "content").write_bytes(content)
    code = "import cloudpickle; print(tuple(cloudpickle.load(open('content', 'rb'))().weight.shape))"
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True)
    assert done.stdout == "(5, 2)\n", done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model", "expected package.module:function or file.py:function, got 'model'"),
        (":model", "expected package.module:function or file.py:function"),
        ("mine.py:", "expected package.module:function or file.py:function"),
        ("nowhere.py:model", "there is no file 'nowhere.py' in /"),
        ("no_such_module:model", "no module named 'no_such_module' in /.* or among the installed packages"),
        ("mine.inner:model", "importing mine.inner failed|no module named 'mine.inner'"),
        ("mine.py:modle", r"mine.py has no 'modle'; did you mean 'model'\?"),
        ("mine:Net.mak", r"mine has no 'mak'; did you mean 'make'\?"),
        ("mine.py:number", r"mine.py:number must be something to call \(a function or a class\), got 3"),
        ("broken.py:model", "running broken.py failed: ZeroDivisionError: division by zero"),
        ("broken:model", "importing broken failed: ZeroDivisionError: division by zero"),
        (
            "needs.py:model",
            "running needs.py failed: ModuleNotFoundError: No module named 'not_installed_anywhere'",
        ),
        ("needs:model", "importing needs failed: No module named 'not_installed_anywhere'"),
    ],
)
def test_what_cannot_be_found(folder: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_object(text)


def test_a_failed_file_is_tried_again(folder: Path) -> None:
    with pytest.raises(UsageError):
        load_object("broken.py:model")
    (folder / "broken.py").write_text("def model(): return 1\n")
    assert load_object("broken.py:model")() == 1


def test_a_factory_draws_the_same_numbers_and_disturbs_none() -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(()).item(), float(np.random.rand()), random.random()

    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    expected = draw()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    first = call(draw, "draw()")
    assert draw() == expected
    assert call(draw, "draw()") == first
    with reproducible(1):
        assert draw() != first


def test_an_own_usage_error_comes_through() -> None:
    def refuse() -> None:
        raise UsageError("give me more")

    with pytest.raises(UsageError, match=r"^give me more$"):
        call(refuse, "refuse()")


def test_required_parameters() -> None:
    class Factory:
        def __init__(self, size: int) -> None: ...

    assert required_parameters(lambda: None) == 0
    assert required_parameters(lambda a, b=1, *args, **kwargs: None) == 1
    assert required_parameters(Factory) == 1
    assert required_parameters("".join) == 1


@pytest.mark.parametrize(("text", "value"), [("", 3), ("a=5", 5), (" a = 5 ,", 5)])
def test_options(text: str, value: int) -> None:
    assert parse_options(text, {"a": 3}, "owner") == {"a": value}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "3"),
        ("x", "'x'"),
        ((1, "a"), "a tuple of 2 (int, str)"),
        ([], "a list"),
        (np.zeros(2), "a ndarray of shape (2,)"),
    ],
)
def test_describe(value: object, words: str) -> None:
    assert describe(value) == words
