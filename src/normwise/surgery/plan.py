"""What a surgical verb did (or would do), why it left the rest, and the way back."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from normwise.errors import UsageError
from normwise.generators import rng_kept
from normwise.surgery.snapshot import Snapshot


@dataclass(frozen=True)
class Change:
    """One layer: where it is, what it was, what it became (the same if left), and a note or the reason."""

    path: str
    before: str
    after: str
    note: str = ""

    def __str__(self) -> str:
        what = self.before if self.before == self.after else f"{self.before} -> {self.after}"
        return f"{self.path or '(the model itself)'}: {what}" + (f" ({self.note})" if self.note else "")


class Plan:
    """What a verb changed, what it left and why. `undo()` puts the very same modules and tensors back.

    `model` is the model to go on with: the one given, except where that one was itself a norm.
    `applied` is False after a dry run and after `undo()`.

    >>> from normwise.surgery.swap import swap
    >>> plan = swap(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), "group:4")
    >>> plan
    swap: 1 layer changed
      1: batch -> group:4 (the remembered mean and variance are not used any more)
    """

    def __init__(self, verb: str, model: nn.Module) -> None:
        self.verb = verb
        self.model = model
        self.applied = False
        self._original = model
        self._undo: Callable[[], None] | None = None
        self._changes: list[Change] = []
        self._left: list[Change] = []
        self._notes: list[str] = []

    @property
    def changes(self) -> tuple[Change, ...]:
        """The layers that were changed, in the order of the model."""
        return tuple(self._changes)

    @property
    def left(self) -> tuple[Change, ...]:
        """The layers that could have been meant and were left; each note says why."""
        return tuple(self._left)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about the whole: what was checked, what to do next."""
        return tuple(self._notes)

    def undo(self) -> None:
        """Takes the change back: the same module objects, tensors, optimizer groups and state as before.

        What was learned since stays in the tensors that old and new layers share; a layer that
        returns takes the train or eval mode of the one that stood in for it. Later plans for the same layers
        are to be undone first. A second call does nothing.
        """
        if self._undo is not None:
            self._undo()
        self._undo, self.applied, self.model = None, False, self._original

    def change(self, path: str, before: str, after: str, note: str = "") -> None:
        """Records a changed layer (for the verbs)."""
        self._changes.append(Change(path, before, after, note))

    def leave(self, path: str, what: str, why: str) -> None:
        """Records a layer that was left, and why (for the verbs)."""
        self._left.append(Change(path, what, what, why))

    def say(self, sentence: str) -> None:
        """Adds a note (for the verbs)."""
        self._notes.append(sentence)

    def to_json(self) -> str:
        """The plan as one JSON object.

        >>> print(Plan("swap", nn.Identity()).to_json())
        {"schema": 1, "verb": "swap", "applied": false, "changes": [], "left": [], "notes": []}
        """
        content = {"schema": 1, "verb": self.verb, "applied": self.applied}
        rows = {"changes": self._changes, "left": self._left}
        lists = {name: [dataclasses.asdict(row) for row in each] for name, each in rows.items()}
        return json.dumps({**content, **lists, "notes": self._notes})

    def __repr__(self) -> str:
        count = len(self._changes)
        state = "changed" if self.applied else "would change"
        lines = [
            f"{self.verb}: {count} {'layer' if count == 1 else 'layers'} {state}",
            *_listed(self._changes),
        ]
        if self._left:
            lines += [f"left: {len(self._left)}", *_listed(self._left)]
        return "\n".join([*lines, *(f"note: {note}" for note in self._notes)])


@contextmanager
def operation(
    verb: str, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, *, dry_run: bool = False
) -> Iterator[Plan]:
    """The frame of every verb: the body edits freely, an exception or a dry run puts everything back.

    Random generators are left as they were.
    """
    require_plain(model, verb)
    before, plan = Snapshot(model, optimizer), Plan(verb, model)
    try:
        with rng_kept():
            yield plan
        undo = before.undo()
    except BaseException:
        before.restore()
        raise
    if dry_run:
        before.restore()
        plan.model = model
    else:
        plan.applied, plan._undo = True, undo


def require_plain(model: nn.Module, verb: str) -> None:
    """Wrapped and compiled models hold on to the layers they have seen, so surgery comes first."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"{verb} needs a torch.nn.Module, got {type(model).__name__}.")
    for path, module in model.named_modules():
        names = {each.__name__ for each in type(module).__mro__}
        found = sorted(names & _WRAPPERS.keys())
        wrapped = _WRAPPERS[found[0]] if found else "module.compile()" if _compiled(module) else None
        if wrapped is not None:
            where = f"its part {path!r}" if path else "this model"
            raise UsageError(
                f"{verb} must come before wrapping: {where} is wrapped by {wrapped}; {verb} the model inside."
            )


_WRAPPERS = {
    "DistributedDataParallel": "DistributedDataParallel",
    "FullyShardedDataParallel": "FullyShardedDataParallel",
    "FSDPModule": "fully_shard",
    "OptimizedModule": "torch.compile",
    "ScriptModule": "torch.jit",
}


def _compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None


def _listed(rows: list[Change], at_most: int = 30) -> list[str]:
    more = [f"  ... and {len(rows) - at_most} more"] if len(rows) > at_most else []
    return [f"  {row}" for row in rows[:at_most]] + more
