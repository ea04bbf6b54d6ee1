"""Photographs and textures that come with scikit-image, else the two photographs of scikit-learn."""

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from normwise.errors import UsageError

PHOTOS = (
    "astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg",
    "hubble_deep_field.jpg", "camera.png", "coins.png", "moon.png",
)  # fmt: skip
TEXTURES = ("brick.png", "grass.png", "gravel.png")
SMALL_PHOTOS = ("china.jpg", "flower.jpg")
SIDE = 96  # pixels of the shorter side


@lru_cache(maxsize=1)
def photographs() -> dict[str, Tensor]:
    """Photographs by name, (3, H, W) between 0 and 1, the shorter side 96 pixels; grey ones thrice.

    >>> min(photo.shape[1] for photo in photographs().values())
    96
    """
    paths = _paths()
    if not paths:
        raise UsageError("photographs need scikit-image: pip install 'normwise[vision]'")
    return {path.stem: _read(path) for path in paths}


def photo_names() -> list[str]:
    """The names of the photographs on this machine; none is read.

    >>> photo_names() == list(photographs())
    True
    """
    return [path.stem for path in _paths()]


@lru_cache(maxsize=1)
def textures() -> dict[str, Tensor]:
    """Textures by name, made like photographs; without scikit-image two that are drawn: stripes and blobs.

    >>> len(textures()) >= 2
    True
    """
    folder = _folder("skimage", "data")
    if folder is not None:
        return {name.partition(".")[0]: _read(folder / name) for name in TEXTURES if (folder / name).is_file()}
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    stripes = 0.5 + 0.5 * torch.sin((x + y) * 0.8)
    blobs = 0.5 + 0.5 * torch.sin(x * 0.6) * torch.sin(y * 0.6)
    return {"stripes": stripes.expand(3, -1, -1).clone(), "blobs": blobs.expand(3, -1, -1).clone()}


def crops(images: list[Tensor], count: int, size: int, generator: torch.Generator) -> Tensor:
    """Random squares (count, 3, size, size), each from one of the images.

    >>> crops([torch.zeros(3, 9, 9)], 2, 4, torch.Generator()).shape
    torch.Size([2, 3, 4, 4])
    """

    def draw(most: int) -> int:
        return int(torch.randint(most, (1,), generator=generator))

    found = []
    for _ in range(count):
        image = images[draw(len(images))]
        top, left = (draw(side - size + 1) for side in image.shape[1:])
        found.append(image[:, top : top + size, left : left + size])
    return torch.stack(found)


def _paths() -> list[Path]:
    folder = _folder("skimage", "data")
    if folder is not None:
        return [folder / name for name in PHOTOS if (folder / name).is_file()]
    folder = _folder("sklearn", "datasets", "images")
    return [] if folder is None else [folder / name for name in SMALL_PHOTOS]


def _folder(package: str, *inside: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent.joinpath(*inside)


def _read(path: Path) -> Tensor:
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError("photographs need Pillow: pip install pillow") from error
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float() / 255
    height, width = pixels.shape[1:]
    factor = SIDE / min(height, width)
    size = (max(SIDE, round(height * factor)), max(SIDE, round(width * factor)))
    return F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0].clamp(0, 1)
