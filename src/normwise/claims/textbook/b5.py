"""B5: batch statistics cost computation."""

from collections.abc import Callable

from normwise.claims.claim import Chart, Claim, Part, Published, Seed, Table, cell
from normwise.claims.experiments.costs import NORMS, SHAPES

BATCH = cell(norm="batch", shape="wide")
TIMES = {
    "training": "train",
    "training, channels-last": "train_last",
    "training over batch norm": "against_batch",
    "inference": "eval",
    "inference, folded where it can be": "folded",
}


def less_one(measure: str) -> Callable[[Seed], float]:
    return lambda seed: seed[BATCH][measure] - 1


B5 = Claim(
    id="B5",
    title="Overhead of batch statistics",
    statement="Computing batch statistics makes batch normalization expensive.",
    row="Computational complexity",
    parts=(
        Part(
            "in training",
            "time of forward and backward with batch statistics over that with remembered ones, minus 1",
            less_one("statistics"),
            "costs",
            sign=1,
            delta=0.1,
            refuted_by="measuring the batch costs next to nothing",
        ),
        Part(
            "at inference",
            "time of a convolution with batch norm folded into it over the bare convolution, minus 1",
            less_one("folded"),
            "costs",
            sign=1,
            delta=0.1,
            refuted_by="a folded batch norm costs nothing",
        ),
        Part(
            "counted",
            "bytes and operations of the norms that folded inference still runs, over those of a copy",
            lambda seed: seed[BATCH]["counted"],
            "costs",
            sign=1,
            delta=0.1,
            refuted_by="no norm is left to run",
        ),
    ),
    design=(
        "Activations of 32 x 32 x 28 x 28 and 32 x 128 x 7 x 7, one thread. Every round the norm, its rivals, a copy "
        "and a convolution take turns in an order drawn anew, each twice, the second time counts; medians over 21 "
        "rounds of the ratios in a round, in a process of their own."
    ),
    chart=Chart(
        "costs",
        "norm",
        "train",
        "shape",
        "norm",
        "forward and backward, in copies of the activation",
        "What a norm's training step costs, as a multiple of copying the activation once; none: a weight and a bias.",
    ),
    tables=tuple(
        Table(
            f"Times on the {shape} activation; the norm's over those of a copy, and of the convolution where folded; "
            "batch norm against itself is the measurement's own error",
            "costs",
            {
                norm: {title: (cell(norm=norm, shape=shape), measure) for title, measure in TIMES.items()}
                for norm in NORMS
            },
        )
        for shape in SHAPES
    ),
    published=(
        Published(
            "restructuring batch norm's passes over memory made training DenseNet-121 25.7 % faster",
            "Jung et al., Restructuring batch normalization, 2018",
            "abstract",
        ),
    ),
    pilot="how the clock is read: the order of turns, ratios within a round, the number of rounds",
    limits="On a CPU, one thread, with this library's kernels where they are built; no GPU was measured.",
)
