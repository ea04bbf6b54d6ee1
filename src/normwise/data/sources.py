"""Where data come from: built-in sets, files, the user's own code. Read at most once per process."""

import importlib
import importlib.util
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normwise.data.check import check_data
from normwise.data.files import read_idx, read_npz
from normwise.data.images import read_image_folder
from normwise.data.sets import Arrays, Data, as_data
from normwise.errors import UsageError
from normwise.loading import call, describe, hint, load_object, required_parameters

FASHION_VARIABLE = "NORMWISE_FASHION_MNIST"
FASHION_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FORMS = "a folder with a sub-folder of images per class, an .npz file, package.module:function, file.py:function"


class Source:
    """Data that are read at the first call and kept; to another process travels only how to read them.

    >>> Source("digits", digits)().train
    Arrays(1797 samples of shape (1, 8, 8), targets int64)
    """

    def __init__(self, name: str, read: Callable[[], Data]) -> None:
        self.name = name
        self.read = read
        self._data: Data | None = None

    def __call__(self) -> Data:
        if self._data is not None:
            return self._data
        data: Data = call(self.read, f"reading {self.name}")
        check_data(data, self.name)
        self._data = data
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "read": self.read, "_data": None}


def load(data: Any) -> Data:
    """Reads a data set and checks it: a text as on the command line, a function, or the data themselves.

    >>> load("digits").train
    Arrays(1797 samples of shape (1, 8, 8), targets int64)
    """
    return find(data)()


def find(data: Any) -> Source:
    """The source that a text, a function or an object stands for; nothing is read yet.

    >>> find("digits").name
    'digits'
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, Path | str):
        return _named(str(data))
    if isinstance(data, type) or (callable(data) and not hasattr(data, "__getitem__")):
        return _made(getattr(data, "__name__", type(data).__name__), data)
    return Source("data", partial(as_data, data, "data"))


def digits() -> Data:
    """1797 images of handwritten digits, 8 x 8 pixels (scikit-learn), standardized by two constants."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise UsageError("digits needs scikit-learn: pip install 'normwise[lab]'")
    # Reading its file takes 20 ms, importing scikit-learn a second in every worker.
    table = np.loadtxt(Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    images = torch.from_numpy(table[:, :-1]).float().view(-1, 1, 8, 8)
    return Data(Arrays((images - 4.8842) / 6.0168, torch.from_numpy(table[:, -1]).long()))


def fashion_mnist(folder: Path | None = None) -> Data:
    """70,000 images of clothes, 28 x 28 pixels (Xiao et al., 2017): 60,000 to train, 10,000 to judge.

    Looked for in the folder given, else in that of the variable NORMWISE_FASHION_MNIST, in that of the
    Debian package dataset-fashion-mnist; else torchvision downloads them.
    """
    x, y, x_judge, y_judge = (read_idx(path) for path in fashion_files(folder))
    for images, labels in ((x, y), (x_judge, y_judge)):
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise UsageError(
                f"fashion-mnist: images {tuple(images.shape)} and labels {tuple(labels.shape)} do not match"
            )
    return Data(
        train=Arrays((x[:, None] / 255 - 0.2860) / 0.3530, y.long()),
        judge=Arrays((x_judge[:, None] / 255 - 0.2860) / 0.3530, y_judge.long()),
    )


BUILT_IN: dict[str, Callable[..., Data]] = {"digits": digits, "fashion-mnist": fashion_mnist}


def _named(text: str) -> Source:
    name, colon, rest = text.partition(":")
    if name == "fashion-mnist":
        return Source("fashion-mnist", partial(fashion_mnist, Path(rest).expanduser().absolute() if colon else None))
    if text in BUILT_IN:
        return Source(text, BUILT_IN[text])
    place, options = _path(text)
    if options and not place.is_dir():
        raise UsageError(f"there is no folder {str(place)!r}")
    if place.is_dir():
        return Source(place.name, partial(read_image_folder, place, options))
    if place.suffix == ".npz":
        if not place.is_file():
            raise UsageError(f"there is no file {text!r} in {os.getcwd()}")
        return Source(place.stem, partial(read_npz, place))
    if not colon:
        raise UsageError(f"unknown data {text!r}{hint(text, BUILT_IN)}; known: {', '.join(BUILT_IN)}, {FORMS}")
    return _made(text, load_object(text))


def _path(text: str) -> tuple[Path, str]:
    """The path and the options of `folder:size=32`; the worker processes may stand in another folder."""
    whole = Path(text).expanduser()
    before, colon, options = text.rpartition(":")
    if not whole.exists() and colon and "=" in options:
        return Path(before).expanduser().absolute(), options
    return whole.absolute(), ""


def _made(name: str, function: Callable[[], Any]) -> Source:
    """Data that a user's function makes."""
    if required_parameters(function):
        raise UsageError(f"{name} makes the data and must be callable without arguments")
    return Source("data" if "<" in name else name.rpartition(":")[2], partial(_make, name, function))


def _make(name: str, function: Callable[[], Any]) -> Data:
    value = function()
    if isinstance(value, str | Path) or value is None:
        raise UsageError(f"{name} must return the data themselves, got {describe(value)}")
    return as_data(value, name)


def fashion_files(folder: Path | None) -> list[Path]:
    if folder is not None:
        return _idx_files(folder, "the folder given")
    if os.environ.get(FASHION_VARIABLE):
        return _idx_files(Path(os.environ[FASHION_VARIABLE]).expanduser(), f"the folder of {FASHION_VARIABLE}")
    if DEBIAN_FOLDER.is_dir():
        return _idx_files(DEBIAN_FOLDER, "the folder of the package dataset-fashion-mnist")
    return _idx_files(_download(), "torchvision's download")


def _idx_files(folder: Path, what: str) -> list[Path]:
    """The four files, plain or gzipped, in the folder or where torchvision puts them below it."""
    places = (folder, folder / "raw", folder / "FashionMNIST" / "raw")
    found = {
        name: path
        for name in FASHION_FILES
        for place in places
        for path in (place / f"{name}.gz", place / name)
        if path.is_file()
    }
    if missing := [name for name in FASHION_FILES if name not in found]:
        raise UsageError(f"fashion-mnist: {what}, {folder}, lacks {', '.join(missing)} (plain or .gz)")
    return [found[name] for name in FASHION_FILES]


def _download() -> Path:
    try:
        datasets = importlib.import_module("torchvision.datasets")
    except ImportError as error:
        raise UsageError(
            "fashion-mnist is not on this machine: apt install dataset-fashion-mnist, "
            f"or name a folder with its four idx files (fashion-mnist:FOLDER or {FASHION_VARIABLE}), "
            "or pip install 'normwise[vision]' to download it"
        ) from error
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "normwise"
    try:
        datasets.FashionMNIST(str(folder), download=True)
    except Exception as error:
        raise UsageError(f"fashion-mnist: torchvision could not download it to {folder}: {error}") from error
    return folder
