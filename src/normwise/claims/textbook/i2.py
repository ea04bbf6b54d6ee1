"""I2: instance normalization does not depend on the batch."""

from collections.abc import Callable

from normwise.claims.claim import Chart, Claim, Part, Published, Seed, cell, gap
from normwise.claims.experiments.mates import BATCH, MICRO

EXACT = 1e-4  # of the spread of the outputs: rounding in float32
WHOLE = f"the gradient of {BATCH} images accumulated over micro-batches of {MICRO}, relative error"


def alone(norm: str, measure: str) -> Callable[[Seed], float]:
    return lambda seed: seed[cell(norm=norm)][measure]


I2 = Claim(
    id="I2",
    title="Independent of the batch",
    statement="Instance normalization gives the same result whatever the batch and its size.",
    row="Normalization basis",
    parts=(
        Part(
            "outputs in training",
            "largest change of an image's outputs when a batch-mate is replaced, in standard deviations",
            alone("instance", "train"),
            "mates",
            sign=0,
            delta=EXACT,
            refuted_by="a batch-mate changes the outputs by more than rounding",
        ),
        Part(
            "outputs in evaluation",
            "the same in evaluation mode",
            alone("instance", "eval"),
            "mates",
            sign=0,
            delta=EXACT,
            refuted_by="a batch-mate changes the outputs in evaluation",
        ),
        Part(
            "gradient",
            WHOLE,
            alone("instance", "gradient"),
            "mates",
            sign=0,
            delta=EXACT,
            refuted_by="the accumulated gradient is another one",
        ),
        Part(
            "batch norm differs",
            f"{WHOLE}, batch minus instance norm",
            gap(cell(norm="batch"), cell(norm="instance"), "gradient"),
            "mates",
            sign=1,
            delta=0.05,
            refuted_by="batch norm's accumulated gradient is as good",
        ),
    ),
    design=(
        f"A small CNN at initialization on {BATCH} images: the last one is replaced by another, ten times as bright, "
        "and the outputs of the others are compared; the gradient of the whole batch is compared with that "
        "accumulated over micro-batches. Exact but for rounding."
    ),
    chart=Chart(
        "mates",
        "norm",
        "gradient",
        "",
        "norm",
        "relative error of the accumulated gradient",
        "How far the gradient accumulated over micro-batches is from that of the whole batch, by norm.",
        only={"ghost": None},
        log_y=True,
    ),
    published=(
        Published(
            "group norm: 24.1 to 24.2 % error from 32 down to 2 images a GPU; batch norm 23.6 to 34.7 %",
            "Wu and He, Group normalization, 2018",
            "secondary",
        ),
    ),
    limits="About the function alone: training also sees the batch size in the noise and number of its steps.",
)
