"""B2: batch normalization regularizes by the noise of its mini-batches."""

import math
import statistics

from normwise.claims.claim import Chart, Claim, Part, Published, Seed, cell, gap
from normwise.claims.experiments.mates import DRAWS
from normwise.claims.experiments.regularize import IMAGES, TARGET, WHOLE

SMALL = cell(norm="ghost:8", size=8)
SLOPE_SIZES = (32, 64, 128, 256)


def slope(seed: Seed) -> float:
    """The slope of log noise over log group size, plus 1."""
    x = [math.log(size) for size in SLOPE_SIZES]
    y = [math.log(seed[cell(norm="batch", ghost=size)]["noise"]) for size in SLOPE_SIZES]
    return statistics.linear_regression(x, y).slope + 1


def less_dropout(seed: Seed) -> float:
    none = gap(cell(norm="none", dropout=0.3), cell(norm="none"), "judge")(seed)
    return none - gap(cell(norm="ghost:128", dropout=0.3), WHOLE, "judge")(seed)


B2 = Claim(
    id="B2",
    title="Regularization by mini-batch noise",
    statement="The noise of mini-batch statistics regularizes, so that less dropout is needed.",
    row="Regularization effect",
    parts=(
        Part(
            "smaller gap",
            f"judge minus training log-loss where the training loss passes {TARGET}; groups of 8 minus the whole "
            "batch of 128",
            gap(SMALL, WHOLE, "gap"),
            "regularize",
            sign=-1,
            delta=0.02,
            refuted_by="noisier statistics leave the gap as it is, at the same training loss",
            unit="nats",
        ),
        Part(
            "noise is 1 / group size",
            "slope of the log variance of an image's activation over its batch-mates, on the log of the group size "
            "(32 to 256), plus 1",
            slope,
            "mates",
            sign=0,
            delta=0.1,
            refuted_by="the variance does not fall as 1 / group size",
        ),
        Part(
            "less need for dropout",
            "what dropout of 0.3 adds to accuracy, without norm minus with batch norm",
            less_dropout,
            "regularize",
            sign=1,
            delta=0.01,
            refuted_by="dropout helps batch norm as much as a network without norms",
            unit="points",
        ),
        Part(
            "accuracy",
            "best accuracy, groups of 8 minus the whole batch",
            gap(SMALL, WHOLE, "judge"),
            "regularize",
            sign=1,
            delta=0.005,
            refuted_by="noisier statistics bring no accuracy",
            unit="points",
        ),
    ),
    design=(
        f"A CNN on {IMAGES} images, batch 128 throughout; batch norm over groups of 4 to 128 of them is the only "
        "change, all at one constant rate; statistics taken afresh before each look. The mechanism: one image's "
        f"activation after one norm, over {DRAWS} draws of its batch-mates."
    ),
    chart=Chart(
        "mates",
        "ghost",
        "noise",
        "norm",
        "group size",
        "variance of one image's activation over its batch-mates",
        "How much one image's activation after one norm varies with its batch-mates, by how many share the statistics.",
        log_x=True,
        log_y=False,
    ),
    published=(
        Published(
            "group norm has a lower training error than batch norm at batch 32, yet 0.5 points more validation error",
            "Wu and He, Group normalization, 2018",
            "secondary",
        ),
        Published(
            "batch norm is population norm plus a decay of its weight",
            "Luo et al., Towards understanding regularization in batch normalization, 2019",
            "abstract",
        ),
        Published(
            "ghost batch norm helps also at medium batches", "Summers and Dinneen, Four things, 2020", "secondary"
        ),
    ),
    pilot="the target loss, the number of images and rounds, the sizes of groups",
    limits="Few training images, on purpose: regularization has most to do there.",
)
