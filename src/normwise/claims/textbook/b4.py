"""B4: batch normalization depends on the mini-batch."""

from normwise.claims.claim import Chart, Claim, Part, Published, Table, gap
from normwise.claims.experiments.sizes import EPOCHS, IMAGES, place

SMALL = place("batch", "mlp", 4)
FEW = {norm: place(norm, "cnn", 32, order="classes") for norm in ("batch", "group:8", "renorm")}
MIXED = {norm: place(norm, "cnn", 32) for norm in FEW}


def lost(net: str, size: int, name: str) -> Part:
    group, batch = place("group:8", net, size), place("batch", net, size)
    values = batch.rpartition("=")[2]
    return Part(
        name,
        f"accuracy of group norm minus batch norm at batch {size}, {values} values per statistic",
        gap(group, batch, "judge"),
        "sizes",
        sign=1,
        delta=0.02,
        refuted_by="batch norm is as good as group norm there",
        unit="points",
    )


B4 = Claim(
    id="B4",
    title="Dependence on the mini-batch",
    statement="Batch normalization needs large batches: with small ones, and at inference, its statistics are wrong.",
    row="Dependence on batch size",
    parts=(
        lost("mlp", 2, "perceptron, batch 2"),
        lost("cnn", 2, "CNN, batch 2"),
        lost("mlp", 64, "perceptron, batch 64"),
        Part(
            "wrong at inference",
            "accuracy with statistics taken afresh minus the remembered ones; perceptron, batch 4",
            lambda seed: seed[SMALL]["fresh"] - seed[SMALL]["judge"],
            "sizes",
            sign=1,
            delta=0.01,
            refuted_by="the remembered statistics are as good as fresh ones",
            unit="points",
        ),
        Part(
            "batches of two classes",
            "accuracy of group norm minus batch norm with remembered statistics; CNN, batch 32 of two classes only",
            gap(FEW["group:8"], FEW["batch"], "judge"),
            "sizes",
            sign=1,
            delta=0.02,
            refuted_by="batch norm stands batches that are no random draw as well as group norm",
            unit="points",
        ),
        Part(
            "batch renorm repairs",
            "accuracy of batch renorm minus batch norm; perceptron, batch 4",
            gap(place("renorm", "mlp", 4), SMALL, "judge"),
            "sizes",
            sign=1,
            delta=0.02,
            refuted_by="statistics tied to the remembered ones in training bring nothing",
            unit="points",
        ),
    ),
    design=(
        f"{IMAGES} images, {EPOCHS} epochs whatever the batch size, the rate tuned for each norm, network and batch "
        "size. A perceptron (planes of one value) and a CNN (smallest plane 4 x 4): the horizontal axis is what "
        "counts, the values behind one statistic. Batches of two classes, and batch renorm, at the rates tuned for "
        "mixed batches, and for batch norm."
    ),
    chart=Chart(
        "sizes",
        "values",
        "judge",
        "norm net",
        "values per statistic (batch size x plane)",
        "accuracy",
        "Accuracy of a perceptron (mlp) and a CNN, by how many values stand behind one statistic of batch norm; group "
        "norm, whose statistics need no batch, at the same places.",
        only={"length": None, "order": None},
        log_x=True,
    ),
    tables=(
        Table(
            "Accuracy with remembered statistics; CNN, batch 32",
            "sizes",
            {norm: {"mixed": (MIXED[norm], "judge"), "two classes": (FEW[norm], "judge")} for norm in FEW},
        ),
    ),
    published=(
        Published(
            "ResNet-50, validation error at 32, 16, 8, 4, 2 images a GPU: batch norm 23.6, 23.7, 24.8, 27.3, 34.7 %; "
            "group norm 24.1, 24.2, 24.0, 24.2, 24.1 %",
            "Wu and He, Group normalization, 2018",
            "secondary",
        ),
        Published(
            "of the loss at batch 2, statistics at inference alone bring back 6.18 points",
            "Singh and Shrivastava, EvalNorm, 2019",
            "abstract",
        ),
    ),
    pilot=(
        "the networks, the number of images and epochs, the sizes of batches and the grid of rates; the parts on "
        "batches of two classes and on batch renorm, of which one or two seeds had been seen"
    ),
    limits="Planes change with the network, so the curves need not join: the norms are compared at each place.",
)
