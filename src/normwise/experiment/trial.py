"""The records of the experiment: a Trial says what is run, a Result what came of it."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Kind = Literal["train", "calibrate", "probe"]
Status = Literal["ok", "diverged", "failed"]


@dataclass(frozen=True, order=True)
class Trial:
    """One run of one arm: everything that decides its outcome, given the task.

    `length` is a multiple of the task's training length. `onednn` is part of the identity because
    another convolution kernel rounds differently, and so is `stack`: the trial is trained in one network
    with at most so many of its kind (1: alone). With whom is no part of it: it changes rounding at most,
    and follows from the plan (`drive.stacks`), also when an interrupted run goes on. A calibration with
    `stack` above 1 times such a network. `channels_last` is the memory layout in a stack, and rounds
    differently too.

    >>> Trial("group:8", batch_size=8, learning_rate=0.1, seed=0).length
    1.0
    """

    arm: str
    batch_size: int
    learning_rate: float
    seed: int
    length: float = 1.0
    onednn: bool = True
    kind: Kind = "train"
    stack: int = 1
    channels_last: bool = False

    def key(self, fingerprint: str) -> str:
        """A content hash: the same trial of the same task has the same key on every machine.

        >>> trial = Trial("batch", 8, 0.1, seed=0)
        >>> trial.key("task") == Trial("batch", 8, 0.1, seed=0).key("task"), len(trial.key("task"))
        (True, 24)
        """
        identity = json.dumps([dataclasses.asdict(self), fingerprint], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Result:
    """What came of one trial. `measures` holds finite numbers only; a missing name was not measured.

    Names: `judge`, `validation` and `train` (scores), `judge_loss`, `first_loss` and `last_loss`
    (training), `batch_statistics` and `recalibrated` (judge score under other statistics), ...
    """

    trial: Trial
    status: Status = "ok"
    reason: str = ""
    measures: dict[str, float] = field(default_factory=dict)
    curve: tuple[tuple[float, float | None, float | None], ...] = ()
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """True where the trial diverged or could not be run."""
        return self.status != "ok"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Result":
        """Reads what `to_json` wrote.

        >>> result = Result(Trial("none", 8, 0.1, 0), measures={"judge": 0.5})
        >>> Result.from_json(result.to_json()) == result
        True
        """
        content: dict[str, Any] = json.loads(text)
        content["trial"] = Trial(**content["trial"])
        content["curve"] = tuple((e, loss, score) for e, loss, score in content["curve"])
        return cls(**content)


def finite(**measures: float | None) -> dict[str, float]:
    """Keeps the numbers that are there and finite (JSON and Optuna know no NaN).

    >>> finite(judge=0.5, judge_loss=float("nan"), train=None)
    {'judge': 0.5}
    """
    return {name: float(x) for name, x in measures.items() if x is not None and math.isfinite(x)}


class Scores(NamedTuple):
    """What a user's own training loop returns.

    >>> Scores(validation=0.91, judge=0.9).judge
    0.9
    """

    validation: float
    judge: float


class Interrupted(Exception):
    """Thrown into a decision process that will get no more results: it returns what it knows."""


class UnstackableError(Exception):
    """These trials cannot be trained as one; the message says why. They are run one at a time instead."""
