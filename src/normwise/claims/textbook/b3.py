"""B3: batch normalization depends less on the initialization."""

from normwise.claims.claim import Chart, Claim, Part, Published, Seed, cell, gap
from normwise.claims.experiments.gains import DEPTH, GAINS, LARGE, width


def plateau(norm: str, seed: Seed) -> float:
    return width({float(gain): seed[cell(norm=norm, gain=gain)]["judge"] for gain in GAINS})


B3 = Claim(
    id="B3",
    title="Less dependence on initialization",
    statement="With batch normalization training depends less on the initial weights.",
    row="Use case",
    parts=(
        Part(
            "wider plateau",
            "decades of the weights' scale within 5 points of the best, batch norm minus none",
            lambda seed: plateau("batch", seed) - plateau("none", seed),
            "gains",
            sign=1,
            delta=0.5,
            refuted_by="a network without norms trains over as wide a range of scales",
            unit="decades",
        ),
        Part(
            "not batch norm alone",
            "the same, batch norm minus group norm",
            lambda seed: plateau("batch", seed) - plateau("group:8", seed),
            "gains",
            sign=0,
            delta=0.6,
            refuted_by="group norm, which is invariant to the scale too, has a narrower plateau",
            unit="decades",
        ),
        Part(
            "it moves into the rate",
            "accuracy with weights ten times as large that learn at a hundred times the rate, minus that of usual "
            "weights",
            gap(cell(norm="batch", gain=LARGE, rates="scaled"), cell(norm="batch", gain=1), "judge"),
            "gains",
            sign=0,
            delta=0.02,
            refuted_by="a rate that grows with the square of the scale does not give the same training",
            unit="points",
        ),
    ),
    design=(
        f"A CNN of {DEPTH} convolutions whose weights, none else, are drawn 0.03 to 10 times as large as He's; SGD at "
        "the rate that is best at 1, for each norm. Statistics are taken afresh before scoring."
    ),
    chart=Chart(
        "gains",
        "gain",
        "judge",
        "norm",
        "scale of the initial weights",
        "accuracy",
        "Accuracy after the same training, by the scale of the first weights; each norm at its own rate for scale 1.",
        only={"rates": None, "length": None},
        log_x=True,
    ),
    published=(
        Published(
            "BN((aW)u) = BN(Wu), and the gradient of aW is smaller by a",
            "Ioffe and Szegedy, Batch normalization, 2015, section 3.3",
            "secondary",
        ),
        Published(
            "residual networks start well without norms when their branches are scaled down",
            "De and Smith, Batch normalization biases, 2020; Zhang et al., Fixup, 2019",
            "secondary",
        ),
    ),
    pilot="the network, the range of scales and the 5 points that bound a plateau (2 were thought of first)",
    limits="One network, SGD and one rate per norm for all scales; Adam was not tried.",
)
