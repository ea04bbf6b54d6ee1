"""Sequences: digits read a few pixels a step, the adding problem, the characters of Python's own help texts."""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

from normwise.data.sets import Arrays, Data
from normwise.data.sources import digits

STEPS = 16  # of a digit: four pixels each
PERMUTATION_SEED = 7
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,:;()[]{}'\"`-_=+*/<>\n"
WINDOW = 48  # characters of a sample


def sequence_digits(permuted: bool = True) -> Data:
    """Digits as 16 steps of 4 pixels, in an order that is mixed up once and for all, or row by row.

    >>> sequence_digits().train
    Arrays(1797 samples of shape (16, 4), targets int64)
    """
    images = digits().train
    assert isinstance(images, Arrays)
    flat = images.inputs.flatten(1)
    if permuted:
        flat = flat[:, torch.randperm(64, generator=torch.Generator().manual_seed(PERMUTATION_SEED))]
    return Data(Arrays(flat.view(len(flat), STEPS, -1), images.targets))


def adding(samples: int, steps: int, generator: torch.Generator) -> Arrays:
    """The adding problem (Hochreiter and Schmidhuber, 1997): the sum of the two marked numbers.

    Inputs (samples, steps, 2): numbers between 0 and 1, and marks, one in each half.

    >>> x, y = adding(2, 10, torch.Generator().manual_seed(0))[0]
    >>> x[:, 1].sum().item(), bool(((x[:, 0] * x[:, 1]).sum() - y).abs() < 1e-6)
    (2.0, True)
    """
    numbers, marks = torch.rand(samples, steps, generator=generator), torch.zeros(samples, steps)
    half = steps // 2
    for low, high in ((0, half), (half, steps)):
        place = torch.randint(low, high, (samples, 1), generator=generator)
        marks.scatter_(1, place, 1.0)
    return Arrays(torch.stack([numbers, marks], -1), (numbers * marks).sum(1))


def charlm(windows: int | None = None) -> Data:
    """The text of `help()` in windows of 48 characters: inputs are codes of characters, targets those that follow.

    The first nine tenths train, the rest judges. The text grows with Python's version: see `text_digest`.
    """
    codes = encode(help_text())
    whole = codes[: (len(codes) - 1) // WINDOW * WINDOW]
    x, y = whole.view(-1, WINDOW), codes[1 : len(whole) + 1].view(-1, WINDOW)
    cut = len(x) * 9 // 10
    train, judge = Arrays(x[:cut].float(), y[:cut]), Arrays(x[cut:].float(), y[cut:])
    if windows is None:
        return Data(train, judge)
    return Data(train.subset(range(min(windows, cut))), judge)


@lru_cache(maxsize=1)
def help_text() -> str:
    """The topics of Python's help, in alphabetical order."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def text_digest() -> str:
    """A short hash of the text: another version of Python may have another."""
    return hashlib.sha256(help_text().encode()).hexdigest()[:12]


def encode(text: str) -> Tensor:
    """Codes of characters, lower case; 0 for those that are not in the alphabet.

    >>> encode("Ab\\u00e9")
    tensor([1, 2, 0])
    """
    known = {letter: i + 1 for i, letter in enumerate(LETTERS)}
    return torch.tensor([known.get(letter, 0) for letter in text.lower()])
