"""I7: instance normalization regularizes less."""

from normwise.claims.claim import Chart, Claim, Part, cell, gap
from normwise.claims.experiments.regularize import TARGET, WHOLE
from normwise.claims.textbook.b2 import B2

I7 = Claim(
    id="I7",
    title="Less implicit regularization",
    statement="Instance normalization lacks the noise of the batch and so regularizes less.",
    row="Regularization effect",
    parts=(
        Part(
            "larger gap",
            f"judge minus training log-loss where the training loss passes {TARGET}, instance minus batch norm",
            gap(cell(norm="instance"), WHOLE, "gap"),
            "regularize",
            sign=1,
            delta=0.02,
            refuted_by="at the same training loss instance norm generalizes as well",
            unit="nats",
        ),
        Part(
            "no noise",
            "variance of an image's activation over its batch-mates, instance norm in groups of 16",
            lambda seed: seed[cell(norm="instance", ghost=16)]["noise"],
            "mates",
            sign=0,
            delta=1e-4,
            refuted_by="the batch-mates change the activation",
        ),
        Part(
            "batch norm has noise",
            "the same, batch minus instance norm",
            gap(cell(norm="batch", ghost=16), cell(norm="instance", ghost=16), "noise"),
            "mates",
            sign=1,
            delta=0.001,
            refuted_by="batch norm's activations do not depend on the batch-mates either",
        ),
    ),
    design=B2.design,
    chart=Chart(
        "regularize",
        "norm",
        "gap",
        "dropout",
        "norm",
        "gap in nats at the same training loss",
        "The gap between judge and training loss at the same training loss. ghost: batch norm over so many images; "
        "usual: without dropout.",
    ),
    published=B2.published[:1],
    pilot=B2.pilot,
    limits="The gap is one of losses at one training loss; what it is worth in accuracy was not judged.",
)
