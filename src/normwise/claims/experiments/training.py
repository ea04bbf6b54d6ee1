"""Small trainings on the claims' images: the library's own loop, loss, schedule and score."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from normwise.claims.images import Split, split
from normwise.data import Arrays, Batches, Data
from normwise.experiment import defaults
from normwise.experiment.evaluate import forget_statistics
from normwise.experiment.setting import Setting
from normwise.experiment.task import Task
from normwise.experiment.train import Fit, Loop
from normwise.surgery.recalibrate import recalibrate

RATES = (0.01, 0.032, 0.1, 0.32, 1.0, 3.2)  # half decades
TEST_BATCH = 250
SETTING = Setting()
TASK = Task(
    name="images",
    model=nn.Identity,
    data=lambda: Data(split(0).train),
    loss=defaults.cross_entropy,
    score=defaults.accuracy,
    score_name="accuracy",
    failed_score=0.1,
)


def plain(depth: int, width: int = 8, outputs: int = 10) -> nn.Sequential:
    """A plain CNN whose planes stay at 4 x 4, so that instance norm has values to measure at any depth.

    >>> plain(6)(torch.zeros(1, 1, 14, 14)).shape
    torch.Size([1, 10])
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = 1
    for i in range(1, depth + 1):
        channels = width * min(2 ** (i // 2), 4)
        conv = nn.Conv2d(before, channels, 3, stride=2 if i in (2, 4) else 1, padding=1, bias=False)
        # He's scale: the network without norms must be no straw man
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers |= {f"conv{i}": conv, f"norm{i}": nn.BatchNorm2d(channels), f"act{i}": nn.ReLU()}
        before = channels
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "linear": nn.Linear(before, outputs)}
    return nn.Sequential(layers)


def train(
    model: nn.Module,
    samples: Arrays,
    rate: float,
    *,
    batch_size: int,
    epochs: float,
    seed: int,
    schedule: Any = None,
    optimizer: Any = None,
    kind: type[Batches] = Batches,
) -> Fit:
    """Trains in place: SGD with momentum 0.9, one-cycle unless a `schedule` says otherwise."""
    task = replace(TASK, schedule=schedule, optimizer=optimizer or defaults.sgd)
    batches = kind(samples, batch_size, shuffle=seed)
    return Loop(task, SETTING, batches, epochs).fit(model, rate)


class FewClasses(Batches):
    """Batches that hold images of two classes only; pairs of classes and their images are drawn anew for each pass."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        samples = self.dataset
        assert isinstance(samples, Arrays)
        order = torch.randperm(len(samples), generator=self.generator)
        label = torch.randperm(10, generator=self.generator)[samples.targets[order]] // 2
        groups = [part for pair in range(5) for part in order[label == pair].split(self.batch_size)]
        full = [part for part in groups if len(part) == self.batch_size]
        for i in torch.randperm(len(full), generator=self.generator).tolist():
            yield samples.inputs[full[i]], samples.targets[full[i]]


def diverged(fit: Fit) -> float:
    """1 where the loss was not finite or ended above where it began (eighths of the run), else 0: counted, never
    left out.

    >>> diverged(Fit(losses=[1.0, 2.0])), diverged(Fit(losses=[2.0, 1.0]))
    (1.0, 0.0)
    """
    eighth = max(1, len(fit.losses) // 8)
    return float(bool(fit.reason) or sum(fit.losses[-eighth:]) > sum(fit.losses[:eighth]))


def constant(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """A schedule that leaves the rate as it is."""
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)


def accuracy(model: nn.Module, samples: Arrays, batch_size: int = 500) -> float:
    """The share of right answers; a tenth, a guess's, where the network gives NaN."""
    score = defaults.accuracy(model, Batches(samples, batch_size, drop_last=False))
    return score if score == score else TASK.failed_score


def log_loss(model: nn.Module, samples: Arrays) -> float:
    """Mean cross-entropy, at most 10, as a diverged network may give anything."""
    loss = defaults.log_loss(model, Batches(samples, 500, drop_last=False))
    return min(loss, 10.0) if loss == loss else 10.0


def scores(model: nn.Module, images: Split) -> dict[str, float]:
    """What every training measures: for rates on validation, for verdicts on judge, statistics as they are."""
    return {"validation": accuracy(model, images.validation), "judge": accuracy(model, images.judge)}


def fresh_scores(model: nn.Module, images: Split, seed: int) -> dict[str, float]:
    """The same with statistics taken afresh, which stay; beside them, but on tuning seeds, all three kinds."""
    if not remembers(model) or tuning(seed):
        refresh(model, images)
        return scores(model, images)
    sides = {"remembered": accuracy(model, images.judge)} | batch_score(model, images)
    refresh(model, images)
    found = scores(model, images)
    return found | sides | {"fresh": found["judge"]}


def batch_score(model: nn.Module, images: Split) -> dict[str, float]:
    """The accuracy with the statistics of the test batch."""
    return {"batch_statistics": accuracy(forget_statistics(model), images.judge, TEST_BATCH)}


def refresh(model: nn.Module, images: Split) -> None:
    """Takes the running statistics anew over all training images, with the weights as they are (PreciseBN)."""
    if remembers(model):
        recalibrate(model, Batches(images.train, 250), call=defaults.cross_entropy)


def remembers(model: nn.Module) -> bool:
    """Whether any norm has running statistics."""
    return any(getattr(module, "running_mean", None) is not None for module in model.modules())


def tuning(seed: int) -> bool:
    """Whether a seed chooses rates.

    >>> tuning(2901), tuning(2001)
    (True, False)
    """
    return seed % 1000 >= 900
