"""Two made-up worlds: contrast is the class, or contrast goes with the class in training and with nothing later."""

import torch
from torch import Tensor, nn

from normwise.claims.claim import Experiment, Measures, Run, cell
from normwise.claims.experiments.shift import gates
from normwise.claims.experiments.training import RATES, diverged, fresh_scores, plain, train
from normwise.claims.images import Split, split
from normwise.data import Arrays
from normwise.layers.spec import build
from normwise.surgery.swap import swap

IMAGES, EPOCHS, BATCH = 1000, 5, 32
HIGH, LOW = 1.0, 0.5  # contrast
TOGETHER = 0.95  # of training images whose contrast goes with their class
NORMS = ("batch", "instance", "batch-instance")
WORLDS = ("label", "along")


def measure(run: Run) -> Measures:
    """Accuracy of a small CNN with the norm also on the pixels, in the world where contrast is the `label` or goes
    with it (`along`) in training only."""
    images = world(split(run.seed, IMAGES), run.settings["contrast"])
    norm, outputs = run.settings["norm"], 2 if run.settings["contrast"] == "label" else 10
    model = nn.Sequential(build(norm, 1), swap(plain(3, outputs=outputs), norm).model)
    fit = train(model, images.train, run.rate, batch_size=BATCH, epochs=EPOCHS, seed=run.seed)
    return fresh_scores(model, images, run.seed) | gates(model) | {"diverged": diverged(fit)}


def world(images: Split, contrast: str) -> Split:
    """The images with their contrast set; validation images, which choose the rate, are of the training's world."""
    if contrast == "label":
        return Split(*(_labelled(part) for part in images))
    return Split(*(_along(part, share) for part, share in zip(images, (TOGETHER, TOGETHER, 0.5), strict=True)))


def _labelled(samples: Arrays) -> Arrays:
    label = torch.randint(2, (len(samples),))
    return Arrays(_contrast(samples.inputs, label == 1), label)


def _along(samples: Arrays, share: float) -> Arrays:
    """Even classes have the high contrast in a `share` of their images, odd ones the low."""
    usual = torch.rand(len(samples)) < share
    return Arrays(_contrast(samples.inputs, (samples.targets % 2 == 0) == usual), samples.targets)


def _contrast(x: Tensor, high: Tensor) -> Tensor:
    """Every image gets mean 0 and the deviation of its contrast."""
    x = (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True).clamp(min=1e-3)
    return x * torch.where(high, HIGH, LOW)[:, None, None, None]


STYLE = Experiment(
    "style",
    measure,
    tuple(cell(norm=norm, contrast=contrast) for contrast in WORLDS for norm in NORMS),
    seconds=0.7,
    seeds=7,
    rates=RATES,
    rivals=tuple(tuple(cell(norm=norm, contrast=one) for norm in ("batch", "instance")) for one in WORLDS),
)
