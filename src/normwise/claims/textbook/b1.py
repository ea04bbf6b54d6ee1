"""B1: batch normalization trains faster, through higher learning rates."""

from normwise.claims.claim import Chart, Claim, Part, Published, Seed, Table, gap
from normwise.claims.experiments.speed import NORMS, TARGET, place

NONE, BATCH = place("none", 8, 64), place("batch", 8, 64)
SMALL_NONE, SMALL_BATCH = place("none", 8, 8), place("batch", 8, 8)


def grows_with_batch(seed: Seed) -> float:
    saved = gap(NONE, BATCH, "log_steps")(seed)
    return saved - gap(SMALL_NONE, SMALL_BATCH, "log_steps")(seed)


B1 = Claim(
    id="B1",
    title="Faster training through higher learning rates",
    statement="Batch normalization trains faster, because it allows higher learning rates.",
    row="Use case",
    parts=(
        Part(
            "steps at the best rate",
            "log10 of the steps to the target, without norm minus with batch norm; each at its own tuned rate; depth "
            "8, batch 64",
            gap(NONE, BATCH, "log_steps"),
            "speed",
            sign=1,
            delta=0.1,
            refuted_by="a network without norms, He-initialized and tuned, is as fast",
            unit="decades",
        ),
        Part(
            "highest rate",
            "log10 of the highest rate that still trains, batch norm minus none",
            gap(f"{BATCH},what=ceiling", f"{NONE},what=ceiling", "log_ceiling"),
            "speed",
            sign=1,
            delta=0.5,
            refuted_by="batch norm stands no higher rate",
            unit="decades",
        ),
        Part(
            "at one rate for both",
            "log10 of the steps to the target, none minus batch norm, both at rate 0.032",
            gap(f"{NONE},what=shared", f"{BATCH},what=shared", "log_steps"),
            "speed",
            sign=1,
            delta=0.1,
            refuted_by="at the same rate batch norm is no faster",
            unit="decades",
        ),
        Part(
            "wall time",
            "log10 of the seconds to the target, none minus batch norm, at the tuned rates",
            gap(NONE, BATCH, "log_seconds"),
            "speed",
            sign=1,
            delta=0.1,
            refuted_by="what a step costs more eats up what it brings",
            unit="decades",
        ),
        Part(
            "more so with large batches",
            "the decades of steps saved at batch 64 minus those at batch 8",
            grows_with_batch,
            "speed",
            sign=1,
            delta=0.1,
            refuted_by="batch norm saves as many steps at batch 8",
            unit="decades",
        ),
    ),
    design=(
        "A plain CNN of 8 convolutions, He's initialization for all, SGD with momentum at a constant rate, "
        f"tuned by half decades for each norm and batch size. Target: a training loss of {TARGET}, mean of the "
        "last steps. A run that never gets there counts as twice the steps it was given."
    ),
    chart=Chart(
        "speed",
        "norm",
        "log_steps",
        "",
        "norm",
        "log10 of steps to the target",
        "Steps to the target at each norm's tuned rate; 8 convolutions, batch 64; none: a weight and a bias.",
        only={"depth": "8", "batch_size": "64", "what": None},
    ),
    published=(
        Published(
            "Inception to 72.2 %: 31.0 million steps; with batch norm 13.3; with five times the rate and six other "
            "changes 2.1",
            "Ioffe and Szegedy, Batch normalization, 2015",
            "secondary",
        ),
        Published(
            "the larger rate is what makes batch norm faster and better",
            "Bjorck et al., Understanding batch normalization, 2018",
            "abstract",
        ),
        Published(
            "the gain is minimal when batches are small", "De and Smith, Batch normalization biases, 2020", "abstract"
        ),
    ),
    pilot="the target loss, the depth, the numbers of epochs and the rate that both share",
    tables=(
        Table(
            "Depth 8, batch 64, tuned rates",
            "speed",
            {
                norm: {
                    "share of runs that reached the target": (place(norm, 8, 64), "reached"),
                    "log10 of steps": (place(norm, 8, 64), "log_steps"),
                    "log10 of seconds": (place(norm, 8, 64), "log_seconds"),
                }
                for norm in NORMS
            },
        ),
    ),
    limits="The 15-fold speed-up of the first paper came with six other changes, which are not made here.",
)
