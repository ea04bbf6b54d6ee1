"""Fixtures of the tests of the kernels, and of what accelerate joins."""

import pytest
from blocks import watch_joins

from normwise import plain


@pytest.fixture
def always_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors too, so that the tests are quick."""
    monkeypatch.setattr(plain, "_suits_pytorch", lambda *_: False)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was done in one pass, as it is done."""
    return watch_joins(monkeypatch)
