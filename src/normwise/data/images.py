"""A folder with one sub-folder of images per class, read with Pillow into one tensor."""

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from normwise.data.files import PIXELS, standardize
from normwise.data.sets import Arrays, Data
from normwise.errors import UsageError
from normwise.loading import parse_options

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
# A folder `train` beside one of the others holds separate sets, not classes.
SETS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "judge": ("judge", "test"),
}
LARGEST_SIDE = 64
LARGEST_BYTES = 4 << 30


class Layout(NamedTuple):
    """What every image is brought to; `square` None: all have this size already."""

    mode: str
    width: int
    height: int
    square: int | None


def read_image_folder(folder: Path, options: str = "") -> Data:
    """Reads a folder with one sub-folder of images per class, or such folders named train and test (or val).

    Images of one size stay as they are. Else, or with `size=32`, the shorter side is scaled to the size
    and the middle square is cut out; the default size is the smallest side found, at most 64.
    """
    size = parse_options(options, {"size": 0}, str(folder))["size"]
    files = {name: _labelled(place) for name, place in _sets(folder).items()}
    classes = sorted({label for found in files.values() for label in found.values()})
    layout = _layout([path for found in files.values() for path in found], size)
    notes = [PIXELS, f"Classes: {', '.join(classes)} (the names of the sub-folders, in this order)."]
    if layout.square:
        notes.append(f"Images are scaled and cut to {layout.square} x {layout.square} (another: {folder}:size=...).")
    sets = {
        name: Arrays(
            standardize(torch.stack([_pixels(path, layout) for path in found])),
            torch.tensor([classes.index(label) for label in found.values()]),
        )
        for name, found in files.items()
    }
    return Data(**sets, notes=tuple(notes))


def _sets(folder: Path) -> dict[str, Path]:
    """The folders of separate sets, or the folder itself."""
    names = {place.name.lower(): place for place in _folders(folder)}
    found = {name: names[word] for name, words in SETS.items() for word in words if word in names}
    if "train" not in found or len(found) == 1:
        return {"train": folder}
    if "judge" not in found:
        found["judge"] = found.pop("validation")
    return found


def _folders(folder: Path) -> list[Path]:
    return sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))


def _labelled(folder: Path) -> dict[Path, str]:
    """All images with their class, in the order of their names."""
    found: dict[Path, str] = {}
    for place in _folders(folder):
        images = sorted(path for path in place.rglob("*") if path.suffix.lower() in ENDINGS)
        if not images:
            raise UsageError(f"{place} holds no image (known endings: {' '.join(sorted(ENDINGS))})")
        found |= dict.fromkeys(images, place.name)
    if not found:
        raise UsageError(f"{folder} must have one sub-folder of images per class; it has no sub-folder")
    return found


def _layout(paths: Iterable[Path], size: int) -> Layout:
    """One layout for all images; only their headers are read here."""
    paths = list(paths)
    seen = {_header(path) for path in paths}
    sizes = {size for size, _ in seen}
    mode = "L" if all(mode in ("1", "L", "LA", "I;16") for _, mode in seen) else "RGB"
    square = size or (min(LARGEST_SIDE, *(side for pair in sizes for side in pair)) if len(sizes) > 1 else None)
    width, height = (square, square) if square else next(iter(sizes))
    if (needed := 4 * len(mode) * width * height * len(paths)) > LARGEST_BYTES:
        raise UsageError(
            f"{len(paths)} images of {width} x {height} pixels need {needed / 2**30:.1f} GB of memory, "
            f"at most {LARGEST_BYTES >> 30} are taken: give a smaller size, e.g. FOLDER:size=64"
        )
    return Layout(mode, width, height, square)


def _header(path: Path) -> tuple[tuple[int, int], str]:
    with _open(path) as image:
        return image.size, image.mode


def _pixels(path: Path, layout: Layout) -> Tensor:
    """One image as bytes of shape (channels, height, width)."""
    try:
        with _open(path) as image:
            image = image.convert(layout.mode)
            if layout.square:
                image = _pillow().ImageOps.fit(image, (layout.square, layout.square))
            pixels = np.array(image, dtype=np.uint8)
    except OSError as error:
        raise UsageError(f"cannot read the image {path}: {error}") from error
    return torch.from_numpy(pixels.reshape(layout.height, layout.width, -1)).permute(2, 0, 1)


def _open(path: Path) -> Any:
    try:
        return _pillow().Image.open(path)
    except OSError as error:
        raise UsageError(f"cannot read the image {path}: {error}") from error


def _pillow() -> Any:
    try:
        importlib.import_module("PIL.ImageOps")
        return importlib.import_module("PIL")
    except ImportError as error:
        raise UsageError("reading images needs Pillow: pip install 'normwise[vision]'") from error
