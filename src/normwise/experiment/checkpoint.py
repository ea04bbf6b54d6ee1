"""What a long trial leaves on disk while it trains, so that after a kill it goes on from there."""

import math
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from normwise.data import Batches
from normwise.experiment.trial import Trial

SECONDS = 30.0  # of training between two; a shorter trial has none
SHARE = 20  # a checkpoint that takes a second is written every 20 seconds at most


class Stateful(Protocol):
    """Anything with a state, as PyTorch has it."""

    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class UnusableError(Exception):
    """A checkpoint that is broken or another trial's; it is gone, and the trial must begin anew."""


@dataclass
class Checkpoint:
    """The checkpoint of one trial at `path`, written every so many seconds of training.

    A trial that goes on from it ends with the same numbers, bit for bit, as one that was never killed; what a
    user's loss, data set or module keeps outside its parameters and buffers is not in it. `before` is what
    the earlier attempts took, in seconds. `beside`: the trials that are trained as one with it.
    """

    path: Path
    trial: Trial
    every: float = SECONDS
    before: float = 0.0
    beside: tuple[Trial, ...] = ()

    def __post_init__(self) -> None:
        self._begun = time.monotonic()
        self._due = self._begun + self.every

    def due(self) -> bool:
        return time.monotonic() >= self._due

    def save(self, parts: Mapping[str, Stateful]) -> None:
        """Replaces the file. Where that fails, the trial goes on and no more are tried."""
        begun = time.monotonic()
        content: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
        content |= {"trial": self._whose(), "seconds": self.before + begun - self._begun}
        try:
            _replace(self.path, content)
        except Exception as error:
            _say(f"{self.path} could not be written, so {self.trial} goes on without: {error}")
            self._due = math.inf
        else:
            now = time.monotonic()
            self._due = now + max(self.every, SHARE * (now - begun))

    def resume(self, parts: Mapping[str, Stateful]) -> None:
        """Puts every part, in the order given, as the last attempt left it, if there was one.

        Raises UnusableError, with the parts in any state, where the file is of no use.
        """
        if not self.path.exists():
            return
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            if content["trial"] != self._whose():
                raise ValueError(f"it is that of {content['trial']}")
            for name, part in parts.items():
                part.load_state_dict(content[name])
            self.before = content["seconds"]
        except Exception as error:
            self.path.unlink(missing_ok=True)
            raise UnusableError(f"{self.path} was ignored: {type(error).__name__}: {error}") from error
        _say(f"{self.trial} goes on from {self.path}")

    def _whose(self) -> list[dict[str, Any]]:
        return [asdict(trial) for trial in (self.trial, *self.beside)]


class Stream:
    """Batches without end, pass after pass. Where it stands follows from the seed and the number taken."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._taken = 0
        self._pass: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        while True:
            for batch in self._pass:
                self._taken += 1
                yield batch
            self._pass = iter(self._batches)

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Draws the order of the passes that are over, and reads only the last one again."""
        self._taken = state["taken"]
        over, rest = divmod(self._taken, len(self._batches))
        for _ in range(over):
            iter(self._batches)
        self._pass = iter(self._batches)
        for _ in range(rest):
            next(self._pass)


@dataclass(frozen=True)
class Network:
    """A model with the buffers that its state_dict leaves out."""

    model: nn.Module

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.model.state_dict(), "buffers": dict(self.model.named_buffers())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["kept"])
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(state["buffers"][name])


class RandomNumbers:
    """The random numbers of torch, NumPy and Python; the last part to be put back."""

    def state_dict(self) -> dict[str, Any]:
        name, keys, *rest = np.random.get_state()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            "numpy": (name, np.asarray(keys).tolist(), *rest),
            "python": random.getstate(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["torch"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])
        np.random.set_state(state["numpy"])
        random.setstate(state["python"])


def _replace(path: Path, content: dict[str, Any]) -> None:
    # a name of its own kind: what a kill leaves behind is found again and removed
    new = path.with_suffix(".partial-new")
    try:
        with new.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise


def _say(what: str) -> None:
    print(f"normwise: {what}", file=sys.stderr)
