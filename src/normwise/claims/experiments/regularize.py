"""The noise of small groups of batch-mates as a regularizer: the gap at the same training loss, with dropout too."""

import copy
from collections import OrderedDict
from itertools import pairwise

from torch import nn

from normwise.claims.claim import Experiment, Measures, Run, cell
from normwise.claims.experiments.training import (
    accuracy,
    batch_score,
    constant,
    diverged,
    log_loss,
    plain,
    refresh,
    remembers,
    train,
    tuning,
)
from normwise.claims.images import Split, split
from normwise.surgery.swap import swap

IMAGES, BATCH = 512, 128
ROUNDS, EPOCHS = 16, 3  # the losses are taken after every round of epochs
TARGET = 0.45  # training loss at which the gap is taken
GHOSTS = (4, 8, 32, 128)
RATES = (0.01, 0.032, 0.1, 0.32, 1.0)


def measure(run: Run) -> Measures:
    """`gap`: judge minus training log-loss where the training loss passes the target; `judge`: the best accuracy by
    validation; statistics are taken afresh before each look. `half_judge`: the same in the first half of the rounds."""
    images = split(run.seed, IMAGES)
    model = network(run.settings["norm"], float(run.settings.get("dropout", 0)))
    course: list[tuple[float, float]] = []
    found = {"validation": 0.0, "judge": 0.0, "diverged": 0.0}
    remembered = model
    for i in range(ROUNDS):
        fit = train(
            model, images.train, run.rate, batch_size=BATCH, epochs=EPOCHS, seed=100 * run.seed + i, schedule=constant
        )
        found["diverged"] = max(found["diverged"], diverged(fit) if i == 0 else float(bool(fit.reason)))
        remembered = copy.deepcopy(model)
        course.append(look(model, images))
        if (validation := accuracy(model, images.validation)) > found["validation"]:
            found |= {"validation": validation, "judge": accuracy(model, images.judge)}
        if i < ROUNDS // 2:
            found["half_judge"] = found["judge"]
        if course[-1][0] < TARGET / 1.5:
            break
    if remembers(model) and not tuning(run.seed):
        sides = {"remembered": accuracy(remembered, images.judge), "fresh": accuracy(model, images.judge)}
        found |= sides | batch_score(model, images)
    gap = gap_at(course, TARGET)
    return found | ({} if gap is None else {"gap": gap})


def network(norm: str, dropout: float) -> nn.Module:
    """A plain CNN with dropout before its last layer; `ghost:8` is batch norm over groups of 8."""
    model = swap(plain(4, width=16), norm).model
    children = OrderedDict(model.named_children())
    last = children.pop("linear")
    return nn.Sequential(OrderedDict([*children.items(), ("drop", nn.Dropout(dropout)), ("linear", last)]))


def look(model: nn.Module, images: Split) -> tuple[float, float]:
    """Training and judge log-loss, in evaluation with fresh statistics."""
    refresh(model, images)
    return log_loss(model, images.train), log_loss(model, images.judge)


def gap_at(course: list[tuple[float, float]], target: float) -> float | None:
    """Judge minus training loss where the training loss first passes the target, between two looks.

    >>> gap_at([(1.0, 1.1), (0.5, 0.8)], 0.75)
    0.2
    >>> gap_at([(1.0, 1.1)], 0.75) is None
    True
    """
    for (before, first), (after, second) in pairwise(course):
        if before >= target > after:
            share = (before - target) / (before - after)
            return round((1 - share) * (first - before) + share * (second - after), 12)
    return None


WHOLE = cell(norm="ghost:128", size=128)

REGULARIZE = Experiment(
    "regularize",
    measure,
    (
        *(cell(norm=f"ghost:{size}", size=size) for size in GHOSTS),  # of the 128, the whole batch
        *(cell(norm=norm) for norm in ("none", "instance")),
        *(cell(norm=norm, dropout=0.3) for norm in ("none", "ghost:128")),
    ),
    seconds=4.0,
    seeds=14,
    rates=RATES,
    rivals=((cell(norm="ghost:8", size=8), WHOLE, cell(norm="instance")),),
    rate_of=lambda text: WHOLE if "ghost" in text else cell(norm=text.partition(",")[0].removeprefix("norm=")),
)
