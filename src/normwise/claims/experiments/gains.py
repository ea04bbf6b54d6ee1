"""How much the scale of the initial weights matters, with and without norms."""

from collections.abc import Callable

import torch
from torch import nn

from normwise.claims.claim import HALF, Experiment, Measures, Run, cell
from normwise.claims.experiments.training import RATES, diverged, fresh_scores, plain, train
from normwise.claims.images import split
from normwise.experiment.defaults import sgd
from normwise.surgery.swap import swap

DEPTH, EPOCHS, BATCH, IMAGES = 6, 6, 32, 1000
GAINS = (0.03, 0.1, 0.3, 1, 3, 10)
NORMS = ("none", "batch", "group:8", "instance")
LARGE = 10


def measure(run: Run) -> Measures:
    """Accuracy where the convolutions' weights, none else, are drawn `gain` times as large as He's.

    `rates=scaled`: these weights learn at the rate times the gain squared.
    """
    given, images = run.settings, split(run.seed, IMAGES)
    model, gain = plain(DEPTH), float(given["gain"])
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            with torch.no_grad():
                layer.weight.mul_(gain)
    model = swap(model, given["norm"]).model
    optimizer = _scaled(model, gain) if "rates" in given else sgd
    epochs = EPOCHS * (0.5 if "length" in given else 1)
    fit = train(model, images.train, run.rate, batch_size=BATCH, epochs=epochs, seed=run.seed, optimizer=optimizer)
    return fresh_scores(model, images, run.seed) | {"diverged": diverged(fit)}


def _scaled(model: nn.Module, gain: float) -> Callable[[object, float], torch.optim.Optimizer]:
    convs = [layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    known = {id(weight) for weight in convs}

    def optimizer(params: object, lr: float) -> torch.optim.Optimizer:
        others = [p for p in model.parameters() if id(p) not in known]
        return torch.optim.SGD([{"params": convs, "lr": lr * gain**2}, {"params": others}], lr=lr, momentum=0.9)

    return optimizer


def width(accuracies: dict[float, float], within: float = 0.05) -> float:
    """Decades of gain around the best one that are less than `within` worse than it.

    >>> round(width({0.1: 0.2, 1: 0.9, 10: 0.89}), 2)
    1.0
    """
    best = max(accuracies.values())
    good = [gain for gain, value in accuracies.items() if value >= best - within]
    return float(torch.tensor(max(good) / min(good)).log10())


COMPARED = tuple(cell(norm=norm, gain=gain) for norm in ("batch", "none") for gain in GAINS)

GAINS_EXPERIMENT = Experiment(
    "gains",
    measure,
    (
        *(cell(norm=norm, gain=gain) for norm in NORMS for gain in GAINS),
        cell(norm="batch", gain=LARGE, rates="scaled"),
        *(text + HALF for text in COMPARED),
    ),
    seconds=0.8,
    seeds=10,
    rates=RATES,
    rate_of=lambda text: cell(norm=text.partition(",")[0].removeprefix("norm="), gain=1),
    rivals=(COMPARED,),
)
