"""I5: instance normalization costs less."""

import math

from normwise.claims.claim import Claim, Part, Published, Seed, cell
from normwise.claims.textbook.b5 import B5

INSTANCE, BATCH = cell(norm="instance", shape="wide"), cell(norm="batch", shape="wide")


def training(seed: Seed) -> float:
    return math.log(seed[INSTANCE]["against_batch"])


def inference(seed: Seed) -> float:
    return math.log(seed[INSTANCE]["folded"] / seed[BATCH]["folded"])


I5 = Claim(
    id="I5",
    title="Lower computational cost",
    statement="Instance normalization costs less than batch normalization: it needs no statistics of the batch.",
    row="Computational complexity",
    parts=(
        Part(
            "in training",
            "log of the time of forward and backward, instance over batch norm",
            training,
            "costs",
            sign=-1,
            delta=0.1,
            refuted_by="instance norm's training step takes as long or longer",
        ),
        Part(
            "at inference",
            "log of the time of a convolution with its norm, instance norm over batch norm folded",
            inference,
            "costs",
            sign=-1,
            delta=0.02,
            refuted_by="batch norm folds into the convolution and instance norm cannot",
        ),
        Part(
            "counted",
            "bytes and operations at inference in copies, instance minus batch norm folded",
            lambda seed: seed[INSTANCE]["counted"] - seed[BATCH]["counted"],
            "costs",
            sign=-1,
            delta=0.1,
            refuted_by="instance norm still has to measure every image",
        ),
    ),
    design=B5.design,
    chart=B5.chart,
    pilot=B5.pilot,
    published=(Published("no timing of instance against batch norm was found in print", "own search", "none"),),
    limits="Not measured: keeping statistics and exchanging them between devices, which instance norm does not.",
)
