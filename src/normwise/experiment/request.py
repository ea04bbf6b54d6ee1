"""What the user asked for, as plain data: enough to ask again."""

import dataclasses
import json
import math
import os
import shlex
from dataclasses import dataclass
from typing import Any

import torch

from normwise.errors import UsageError
from normwise.experiment.database import without_password
from normwise.surgery.command import read_spec

DEFAULTS: dict[str, Any] = {
    "task": "digits",
    "batch_sizes": [8, 64],
    "budget": "10m",
    "device": "cpu",
    "precision": "fp32",
    "processes": 1,
    "engine": "local",
    "stack": "auto",
    "seed": 0,
}
LARGEST_STACK = 16
ENGINES = ("local", "ray")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Request:
    """The options of a comparison; None where the user said nothing."""

    task: str | None = None
    model: str | None = None
    data: str | None = None
    norms: list[str] | None = None
    batch_sizes: list[int] | None = None
    budget: str | None = None
    epochs: float | None = None
    delta: str | None = None
    device: str | None = None
    precision: str | None = None
    processes: int | None = None
    engine: str | None = None
    ray_address: str | None = None
    stack: str | None = None
    ledger: str | None = None
    seed: int | None = None

    def over(self, earlier: "Request", replace_lists: bool = False) -> "Request":
        """This request where it says something, the earlier one elsewhere; arms and batch sizes add up.

        >>> Request(budget="1h").over(Request(task="digits", budget="2m"))
        ... # doctest: +ELLIPSIS
        Request(task='digits', ..., budget='1h', ...)
        """
        said = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        if not replace_lists:
            for name in said.keys() & {"norms", "batch_sizes"}:
                said[name] = list(dict.fromkeys([*(getattr(earlier, name) or ()), *said[name]]))
        if self.engine == "local":
            said["ray_address"] = None
        return dataclasses.replace(earlier, **said)

    def complete(self, from_python: bool = False) -> "Request":
        """With the defaults filled in and checked; a task given as an object has no name to fill in."""
        defaults = dict(DEFAULTS)
        if from_python or (self.model and self.data and not self.task):
            defaults.pop("task")
        whole = self.over(Request(**defaults), replace_lists=True)
        norms = None if whole.norms is None else list(dict.fromkeys(map(_norm, whole.norms)))
        sizes = list(dict.fromkeys(whole.batch_sizes or ()))
        whole = dataclasses.replace(whole, norms=norms, batch_sizes=sizes)
        if (whole.processes or 1) > 1 and whole.stack == "auto":
            whole = dataclasses.replace(whole, stack="off")
        whole.check()
        return whole

    def check(self) -> None:
        """Raises UsageError for values that can never work."""
        sizes = self.batch_sizes or []
        if any(size < 1 for size in sizes):
            raise UsageError(f"batch sizes must be positive whole numbers, got {min(sizes)}")
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.engine not in ENGINES:
            raise UsageError(f"engine must be one of {', '.join(ENGINES)}, got {self.engine!r}")
        if self.ray_address and self.engine != "ray":
            raise UsageError(f"ray_address {self.ray_address} needs the engine ray, got {self.engine!r}")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise UsageError(f"epochs must be a positive number, got {self.epochs}")
        try:
            torch.empty(0, device=self.device)
        except Exception as error:
            raise UsageError(f"device must be one that PyTorch has here, got {self.device!r}: {error}") from error
        largest, _ = parse_stack(self.stack or "auto")
        self._check_processes(1 if self.processes is None else self.processes, largest)

    def _check_processes(self, processes: int, stack: int) -> None:
        if processes < 1:
            raise UsageError(f"processes must be a positive whole number, got {processes}")
        if processes > 1 and stack > 1:
            raise UsageError(f"a trial on {processes} processes is trained alone: stack must be off, got {self.stack}")
        if uneven := [size for size in self.batch_sizes or () if size % processes]:
            raise UsageError(f"a batch size must be a multiple of the {processes} processes, got {uneven[0]}")
        if processes > 1 and torch.device(self.device or "cpu").index is not None:
            raise UsageError(
                f"each of {processes} processes takes a device of its own: leave the number out, got {self.device!r}"
            )

    def asks_the_same(self, other: "Request") -> bool:
        """Whether both ask for the same experiment; where trials run and are recorded is no part of it."""
        place = {"engine": None, "ray_address": None, "ledger": None}
        return dataclasses.replace(self, **place) == dataclasses.replace(other, **place)

    def to_dict(self) -> dict[str, Any]:
        """As config.json keeps it: without the password of a storage."""
        shown = None if self.ledger is None else without_password(self.ledger)
        return {**dataclasses.asdict(self), "ledger": shown}

    def command(self, out: str | os.PathLike[str]) -> str:
        """The shell command that asks for this again.

        >>> Request(task="digits", norms=["group:4"], epochs=2.0).command("runs/a")
        'normwise compare digits --norm group:4 --epochs 2 --out runs/a'
        """
        if not (self.task or self.data):
            return f"nw.compare(task, ..., out={str(out)!r})  # with the task object of the first call"
        words = ["normwise", "compare"]
        if self.task:
            words.append(shlex.quote(self.task))
        for name, value in self.to_dict().items():
            if name == "task" or value is None or value == DEFAULTS.get(name):
                continue
            flag = {"norms": "norm", "batch_sizes": "batch-size", "ray_address": "ray-address"}.get(name, name)
            value = without_password(value) if name == "ledger" else value
            for item in value if isinstance(value, list) else [value]:
                words += [f"--{flag}", shlex.quote(f"{item:g}" if isinstance(item, float) else str(item))]
        return " ".join([*words, "--out", shlex.quote(str(out))])


def _norm(text: str) -> str:
    """A spec as it is; a mapping, also one from @file, as JSON of its own."""
    found = read_spec(text)
    return found if isinstance(found, str) else json.dumps(found)


def parse_stack(text: str) -> tuple[int, bool]:
    """Reads how many trials are trained as one network at most, and whether a timing decides if any are.

    >>> parse_stack("auto"), parse_stack("off"), parse_stack("8")
    ((16, True), (1, True), (8, False))
    """
    if text in ("auto", "off"):
        return (LARGEST_STACK if text == "auto" else 1), True
    if not (text.isdecimal() and int(text) > 1):
        raise UsageError(f"stack must be auto, off, or a number of trials above 1, got {text!r}")
    return int(text), False


def parse_delta(text: str | float | None) -> tuple[float | None, float | None]:
    """Reads a delta: an absolute value, or a share of the reference arm's mean score.

    >>> parse_delta("0.5"), parse_delta("2%"), parse_delta(None)
    ((0.5, None), (None, 0.02), (None, None))
    """
    if text is None:
        return None, None
    body = str(text).strip()
    try:
        value = float(body.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise UsageError(f"delta must be a positive number in the score's unit, or a percentage like 2%, got {text!r}")
    return (None, value / 100) if body.endswith("%") else (value, None)
