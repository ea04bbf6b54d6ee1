"""The images of the trained claims: Fashion-MNIST pooled to 14 x 14 where it is installed, else digits."""

import os
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from normwise.data import Arrays, load
from normwise.data.files import read_idx
from normwise.data.sources import DEBIAN_FOLDER, FASHION_VARIABLE, fashion_files

SIZE = 14
TRAIN, VALIDATION, JUDGE = 2000, 1000, 3000


class Split(NamedTuple):
    """The images of one seed."""

    train: Arrays
    validation: Arrays
    judge: Arrays


def pool_name() -> str:
    """Which images are taken on this machine."""
    return "Fashion-MNIST, 14 x 14" if _installed() else "digits, enlarged to 14 x 14"


@lru_cache(maxsize=4)
def split(seed: int, train: int = TRAIN) -> Split:
    """Images drawn anew with the seed: to train on, to choose rates with, to judge with; never twice.

    Of the 1,797 digits, where Fashion-MNIST is not installed, a third trains and a half judges.

    >>> split(0).train.inputs.shape[1:]
    torch.Size([1, 14, 14])
    """
    x, y = pool()
    sizes = [train, VALIDATION, JUDGE]
    if sum(sizes) > len(y):
        sizes = [round(size * len(y) / sum(sizes)) - 1 for size in sizes]
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    return Split(*(Arrays(x[index], y[index]) for index in order[: sum(sizes)].split(sizes)))


@lru_cache(maxsize=1)
def pool() -> tuple[Tensor, Tensor]:
    """All images (N, 1, 14, 14), about mean 0 and deviation 1, and their classes."""
    if not _installed():
        digits = load("digits").train
        assert isinstance(digits, Arrays)
        return F.interpolate(digits.inputs, size=(SIZE, SIZE), mode="bilinear"), digits.targets
    images, labels = (read_idx(path)[:20_000] for path in fashion_files(None)[:2])
    x = F.avg_pool2d(images[:, None].float() / 255, 2)
    return (x - 0.2860) / 0.3530, labels.long()


def _installed() -> bool:
    return bool(os.environ.get(FASHION_VARIABLE)) or DEBIAN_FOLDER.is_dir()
