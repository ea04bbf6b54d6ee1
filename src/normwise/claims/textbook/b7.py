"""B7: batch normalization under another distribution, and with the test batch's own statistics."""

from normwise.claims.claim import Chart, Claim, Part, Published, Table, cell, gap
from normwise.claims.experiments.shift import EPOCHS, SEVERITY, SIZES, STREAM
from normwise.data.corrupt import CORRUPTIONS

BATCH, GROUP = cell(norm="batch"), cell(norm="group:8")

B7 = Claim(
    id="B7",
    title="Behaviour under shift",
    statement="Remembered statistics fail under another distribution; those of the test batch repair much of it.",
    row="Sensitivity to batch size",
    parts=(
        Part(
            "statistics of 64 test images",
            "accuracy on corrupted images with the test batch's statistics minus the remembered ones",
            lambda seed: seed[BATCH]["adapted_64"] - seed[BATCH]["shifted"],
            "shift",
            sign=1,
            delta=0.02,
            refuted_by="the test batch's statistics do not help",
            unit="points",
        ),
        Part(
            "batch norm fails more",
            "accuracy on corrupted images, group norm minus batch norm with remembered statistics",
            gap(GROUP, BATCH, "shifted"),
            "shift",
            sign=1,
            delta=0.02,
            refuted_by="group norm, which remembers nothing, fails as much",
            unit="points",
        ),
        Part(
            "test images sorted by class",
            "accuracy with the test batch's statistics, batches sorted by class minus mixed ones",
            lambda seed: seed[BATCH]["sorted"] - seed[BATCH]["adapted_64"],
            "shift",
            sign=-1,
            delta=0.02,
            refuted_by="the order of the test images does not matter",
            unit="points",
        ),
    ),
    design=(
        f"A CNN of 4 convolutions for each norm, {EPOCHS} epochs of 2,000 clean images, then less contrast, more "
        f"light, noise and blur at severity {SEVERITY} of 3; the mean over the four. Rates tuned on clean images."
    ),
    chart=Chart(
        "shift",
        "size",
        "adapted",
        "norm",
        "images in a test batch",
        "accuracy on corrupted images",
        "Batch norm with the statistics of the test batch, by its size; remembered statistics in the numbers below.",
        only={"length": None, "norm": "batch"},
        columns={str(size): f"adapted_{size}" for size in SIZES},
        log_x=True,
    ),
    tables=(
        Table(
            "Accuracy by corruption",
            "shift",
            {
                "batch norm, remembered statistics": {kind: (BATCH, kind) for kind in CORRUPTIONS},
                f"of {STREAM} test images, independent": {kind: (BATCH, f"mixed_{kind}") for kind in CORRUPTIONS},
                f"of {STREAM} test images, sorted by class": {kind: (BATCH, f"sorted_{kind}") for kind in CORRUPTIONS},
                "group norm": {kind: (GROUP, kind) for kind in CORRUPTIONS},
            },
        ),
    ),
    published=(
        Published(
            "ImageNet-C, mean corruption error of ResNet-50: batch norm 76.7, adapted 62.2; group norm 72.4",
            "Schneider et al., Improving robustness against common corruptions by covariate shift adaptation, 2020",
            "repository",
        ),
        Published(
            "class-ordered stream, accuracy on ImageNet-C without adaptation: batch norm 18.0, group norm 30.6; "
            "entropy adaptation lowers both",
            "Niu et al., Towards stable test-time adaptation, 2023",
            "repository",
        ),
    ),
    pilot="the networks, the training length and the grid of rates",
    limits="One severity of four corruptions; statistics of a test batch presume that it is mixed as in training.",
)
