"""I6: instance normalization stabilizes gradients less."""

from collections.abc import Callable

from normwise.claims.claim import Claim, Part, Published, Seed, cell, gap
from normwise.claims.experiments.growth import IMAGES
from normwise.claims.textbook.b6 import B6
from normwise.claims.theory import growth


def text(norm: str, side: int) -> str:
    return cell(net="conv", norm=norm, side=side, values=side * side * (IMAGES if norm == "batch" else 1))


def against_batch(side: int, why: str) -> Part:
    return Part(
        f"planes of {side} x {side}",
        "log of the growth of the squared gradient per layer, instance minus batch norm",
        gap(text("instance", side), text("batch", side), "log_growth"),
        "growth",
        sign=1,
        delta=0.05,
        refuted_by=why,
    )


def agreement(side: int) -> Callable[[Seed], float]:
    return lambda seed: seed[text("instance", side)]["growth"] / growth(side * side) - 1


I6 = Claim(
    id="I6",
    title="Less gradient stabilization",
    statement="Instance normalization stabilizes gradients less than batch normalization.",
    row="Impact on gradient flow",
    parts=(
        against_batch(4, "gradients grow no faster with instance norm on small planes"),
        against_batch(8, "gradients grow no faster with instance norm on planes of 64 values"),
        against_batch(2, "gradients grow no faster with instance norm on planes of 4 values"),
        *(
            Part(
                f"theory at {side * side} values",
                f"growth per layer over the formula's {growth(side * side):.3f}, minus 1",
                agreement(side),
                "growth",
                sign=0,
                delta=0.02,
                unit="%",
                refuted_by="the formula for batch norm, with the values of one plane in place of the batch, is more "
                "than 2 % away from what instance norm does",
            )
            for side in (8, 4)
        ),
    ),
    design=(
        "The convolutional network of B6 on planes of 8 x 8, 4 x 4 and 2 x 2: batch norm has 16 times as many values "
        "behind a statistic as instance norm."
    ),
    chart=B6.chart,
    published=(
        Published(
            "small groups of channels raise the gradients of early layers: instance norm as the extreme is unstable",
            "Lubana et al., Beyond BatchNorm, 2021",
            "abstract",
        ),
        Published("the formula is for batch norm; its use for instance norm was not found", "own search", "none"),
    ),
    pilot="the sizes of the planes, as a few seeds of the growth on them had been seen",
    limits="Networks at initialization on random images; planes above 8 x 8 were not measured.",
)
