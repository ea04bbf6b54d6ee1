"""I3: instance normalization generalizes worse in discriminative tasks."""

from collections.abc import Callable

from normwise.claims.claim import Chart, Claim, Part, Published, Seed, cell, gap
from normwise.claims.textbook.b7 import B7

INSTANCE, BATCH = cell(norm="instance"), cell(norm="batch")


def where_contrast(is_: str) -> Callable[[Seed], float]:
    return gap(cell(norm="instance", contrast=is_), cell(norm="batch", contrast=is_), "judge")


I3 = Claim(
    id="I3",
    title="Limited generalization in discriminative tasks",
    statement="Instance normalization generalizes worse than batch normalization when classes are to be told apart.",
    row="Use case",
    parts=(
        Part(
            "clean images",
            "accuracy, instance minus batch norm, trained and judged on clean images",
            gap(INSTANCE, BATCH, "judge"),
            "shift",
            sign=-1,
            delta=0.005,
            refuted_by="instance norm is as accurate",
            unit="points",
        ),
        Part(
            "contrast and light",
            "accuracy under less contrast, instance minus batch norm; instance norm removes such a change by "
            "construction, all but what the borders keep",
            gap(INSTANCE, BATCH, "contrast"),
            "shift",
            sign=-1,
            delta=0.02,
            refuted_by="instance norm is better there",
            unit="points",
        ),
        Part(
            "noise and blur",
            "accuracy under noise and under blur, mean, instance minus batch norm with remembered statistics",
            lambda seed: gap(INSTANCE, BATCH, "noise")(seed) / 2 + gap(INSTANCE, BATCH, "blur")(seed) / 2,
            "shift",
            sign=-1,
            delta=0.02,
            refuted_by="instance norm is better there",
            unit="points",
        ),
        Part(
            "contrast is the class",
            "accuracy at telling high from low contrast, instance minus batch norm",
            where_contrast("label"),
            "style",
            sign=-1,
            delta=0.05,
            refuted_by="instance norm tells contrasts apart as well",
            unit="points",
        ),
        Part(
            "contrast misleads",
            "accuracy where contrast went with the class in training and with nothing now, instance minus batch norm",
            where_contrast("along"),
            "style",
            sign=-1,
            delta=0.02,
            refuted_by="instance norm, which cannot see contrast, is not misled",
            unit="points",
        ),
    ),
    design=(
        f"{B7.design} Two made-up worlds besides, with the norm also on the pixels: contrast is the class; or "
        "contrast goes with the class in training and with nothing in judging."
    ),
    chart=Chart(
        "shift",
        "norm",
        "judge",
        "",
        "norm",
        "accuracy on clean images",
        "Accuracy on clean images. early and late: instance norm in two of four places, batch norm in the others.",
        only={"length": None},
    ),
    published=(
        Published(
            "ResNet-50 on ImageNet, error: instance norm 28.4 %, batch norm 23.6 %",
            "Wu and He, Group normalization, 2018",
            "secondary",
        ),
        Published(
            "instance norm alone degrades classification; gated with batch norm it is better than either",
            "Nam and Kim, Batch-instance normalization, 2018",
            "abstract",
        ),
    ),
    pilot=f"on clean images: {B7.pilot}",
    limits="The made-up worlds are two ends: contrast is all there is to learn, or all that misleads.",
)
