"""H1: hybrids combine the strengths of batch and instance normalization."""

from collections.abc import Callable

from normwise.claims.claim import Chart, Claim, Part, Published, Seed, Table, cell, gap
from normwise.claims.textbook.b7 import B7

BATCH, INSTANCE, BLEND, EARLY, LATE = (
    cell(norm=norm) for norm in ("batch", "instance", "batch-instance", "early", "late")
)


def over_both(text: str, seed: Seed) -> float:
    """Mean accuracy on clean and on corrupted images."""
    return (seed[text]["judge"] + seed[text]["shifted"]) / 2


def lead(hybrid: str, of: Callable[[float, float], float], seed: Seed) -> float:
    """The hybrid minus the better (`max`) or the worse (`min`) of its parents."""
    return over_both(hybrid, seed) - of(over_both(BATCH, seed), over_both(INSTANCE, seed))


H1 = Claim(
    id="H1",
    title="Hybrids",
    statement="Hybrids combine the strengths of batch and instance normalization.",
    row="Use case",
    parts=(
        Part(
            "better than either parent",
            "mean accuracy on clean and corrupted images, batch-instance norm minus the better of its parents",
            lambda seed: lead(BLEND, max, seed),
            "shift",
            sign=1,
            delta=0.01,
            refuted_by="one of the parents alone does as well over both kinds of images",
            unit="points",
        ),
        Part(
            "better than the worse parent",
            "the same, batch-instance norm minus the worse of the two",
            lambda seed: lead(BLEND, min, seed),
            "shift",
            sign=1,
            delta=0.01,
            refuted_by="the hybrid is no better than the worse of its parents",
            unit="points",
        ),
        Part(
            "instance norm in front, batch norm behind",
            "the same, instance norm in the first two places and batch norm in the others minus the better parent",
            lambda seed: lead(EARLY, max, seed),
            "shift",
            sign=1,
            delta=0.01,
            refuted_by="one of the parents alone does as well over both kinds of images",
            unit="points",
        ),
        Part(
            "instance norm belongs in front",
            "accuracy on corrupted images, instance norm in the first two places minus in the last two",
            gap(EARLY, LATE, "shifted"),
            "shift",
            sign=1,
            delta=0.02,
            refuted_by="it does not matter where instance norm stands",
            unit="points",
        ),
    ),
    design=B7.design,
    chart=Chart(
        "shift",
        "norm",
        "shifted",
        "",
        "norm",
        "accuracy on corrupted images",
        "Trained on clean images. early and late: instance norm in two of four places, batch norm in the others.",
        only={"length": None},
    ),
    tables=tuple(
        Table(f"Mean gate of batch-instance norm, by place, {title}: 1 is batch norm, 0 instance norm", name, rows)
        for title, name, rows in (
            (
                "trained on clean images",
                "shift",
                {"clean images": {f"norm {i}": (BLEND, f"gate_{i}") for i in range(1, 5)}},
            ),
            (
                "in the made-up worlds of I3, where norm 1 stands on the pixels",
                "style",
                {
                    says: {f"norm {i}": (f"{BLEND},contrast={one}", f"gate_{i}") for i in range(1, 5)}
                    for says, one in (("contrast is the class", "label"), ("contrast misleads", "along"))
                },
            ),
        )
    ),
    pilot=f"{B7.pilot}, and which parents the parts compare",
    published=(
        Published(
            "a little instance norm in front: ResNet-50 24.27 to 22.54 % error",
            "Pan et al., IBN-Net, 2018",
            "repository",
        ),
        Published(
            "gated batch and instance norm is better than either",
            "Nam and Kim, Batch-instance normalization, 2018",
            "abstract",
        ),
    ),
    limits="The gate of batch-instance norm starts at batch norm and learns at the network's rate.",
)
