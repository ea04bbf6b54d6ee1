"""For all tests and docstring examples: one thread, one seed, and a folder of its own for each example."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the processes that tests start

import pytest
import torch
from hypothesis import settings

collect_ignore = ["tests/peers.py"]  # runs in another Python, beside Keras and Flax
torch.set_num_threads(1)
settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    """A test that passes passes again."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _folder_of_its_own(request: pytest.FixtureRequest) -> None:
    """An example in a docstring may write files: it runs in a temporary folder."""
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))
