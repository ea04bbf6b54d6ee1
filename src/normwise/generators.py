"""The random numbers of torch, NumPy and Python: started from a seed, and put back."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_everything(seed: int) -> None:
    """Starts the random numbers of torch, NumPy and Python: user code may draw from any of them.

    >>> seed_everything(0); first = random.random()
    >>> seed_everything(0); first == random.random()
    True
    """
    import numpy as np

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def rng_kept() -> Iterator[None]:
    """The random generators of torch, Python and NumPy go on as if nothing had been drawn inside.

    >>> state = torch.get_rng_state()
    >>> with rng_kept():
    ...     _ = torch.rand(3)
    >>> torch.equal(torch.get_rng_state(), state)
    True
    """
    numpy = sys.modules.get("numpy.random")
    python_state, numpy_state = random.getstate(), numpy.get_state() if numpy else None
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        if numpy:
            numpy.set_state(numpy_state)


@contextmanager
def reproducible(seed: int = 0) -> Iterator[None]:
    """Within, they start from `seed`; afterwards all go on as before.

    >>> with reproducible(): first = torch.rand(1)
    >>> with reproducible(): first == torch.rand(1)
    tensor([True])
    """
    import numpy.random  # so that it is kept  # noqa: F401

    with rng_kept():
        seed_everything(seed)
        yield
