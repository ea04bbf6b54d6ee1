"""Data from files of numbers: idx (MNIST's format) and .npz."""

import gzip
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normwise.data.sets import Arrays, Data, as_arrays
from normwise.errors import UsageError

PIXELS = "Pixels 0 to 255 are read as (x / 255 - 0.5) / 0.25."
# Other usual names for the parts of an .npz file.
PARTS = {"val": "validation", "judge": "test"}


def standardize(pixels: Tensor) -> Tensor:
    """Bytes as numbers near standard size, the same for every data set.

    >>> standardize(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-2.,  2.])
    """
    return pixels.float().div_(255).sub_(0.5).div_(0.25)


def read_idx(path: Path) -> Tensor:
    """Reads an idx file of bytes, plain or gzipped, as a uint8 tensor of the shape it declares.

    >>> _ = Path("labels").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
    >>> read_idx(Path("labels"))
    tensor([7, 8, 9], dtype=torch.uint8)
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    rank = content[3] if len(content) > 3 else 0
    # The magic number: two zero bytes, 8 for unsigned bytes, the number of dimensions.
    if content[:3] != b"\0\0\x08" or rank == 0 or len(content) < 4 + 4 * rank:
        raise UsageError(f"{path} is no idx file of bytes: it must begin with 00 00 08, got {content[:3].hex(' ')!r}")
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank)
    if len(values) != math.prod(shape):
        raise UsageError(f"{path} is damaged: it declares shape {shape} but holds {len(values)} bytes")
    return torch.from_numpy(values.reshape(shape).copy())


def read_npz(path: Path) -> Data:
    """Reads x and y, or x_train, y_train, x_test, y_test (and the same for validation), from an .npz file.

    >>> np.savez("own.npz", x=np.zeros((4, 28, 28), np.uint8), y=[0, 1, 0, 1])
    >>> read_npz(Path("own.npz")).train
    Arrays(4 samples of shape (1, 28, 28), targets int64)
    """
    arrays = _arrays(path)
    pixels = any(name.startswith("x") and array.dtype == np.uint8 for name, array in arrays.items())
    notes = (PIXELS,) if pixels else ()
    if {"x", "y"} <= arrays.keys():
        return Data(_pair(arrays, "", path), notes=notes)
    if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        validation = {"x_validation", "y_validation"} <= arrays.keys()
        return Data(
            train=_pair(arrays, "_train", path),
            judge=_pair(arrays, "_test", path),
            validation=_pair(arrays, "_validation", path) if validation else None,
            notes=notes,
        )
    raise UsageError(
        f"{path} must hold arrays x and y, or x_train, y_train, x_test and y_test; it has {', '.join(arrays) or 'none'}"
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the file, by their usual names. Nothing in it is run: no pickles."""
    try:
        with path.open("rb") as opened:
            file: Any = np.load(opened, allow_pickle=False)
            arrays = {name: file[name] for name in getattr(file, "files", ())}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        pickled = "allow_pickle" in str(error)
        reason = "it holds Python objects, or is no .npz file; only arrays of numbers are read" if pickled else error
        raise UsageError(f"cannot read {path}: {reason}") from error
    split = {name: name.partition("_") for name in arrays}
    return {f"{a}{_}{PARTS.get(part, part)}": arrays[name] for name, (a, _, part) in split.items()}


def _pair(arrays: Mapping[str, np.ndarray], part: str, path: Path) -> Arrays:
    x = arrays[f"x{part}"]
    images = standardize(torch.from_numpy(_channels_first(x))) if x.dtype == np.uint8 else x
    return as_arrays(images, arrays[f"y{part}"], str(path))


def _channels_first(x: np.ndarray) -> np.ndarray:
    """Bytes are images: (N, H, W) gets one channel, (N, H, W, 1, 3 or 4) its channels to the front."""
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return x
