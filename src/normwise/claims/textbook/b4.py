"""B4: batch normalization depends on the mini-batch."""

from normwise.claims.claim import Chart, Claim, Part, Published, gap
from normwise.claims.experiments.sizes import EPOCHS, IMAGES, place

SMALL = place("batch", "mlp", 4)


def lost(net: str, size: int, name: str, half: bool = False) -> Part:
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
        half=gap(f"{group},length=half", f"{batch},length=half", "judge") if half else None,
    )


B4 = Claim(
    id="B4",
    title="Dependence on the mini-batch",
    statement="Batch normalization needs large batches: with small ones, and at inference, its statistics are wrong.",
    row="Sensitivity to batch size",
    parts=(
        lost("mlp", 2, "perceptron, batch 2", half=True),
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
    ),
    design=(
        f"{IMAGES} images, {EPOCHS} epochs whatever the batch size, the rate tuned for each norm, network and batch "
        "size. A perceptron (planes of one value) and a CNN (smallest plane 4 x 4): the horizontal axis is what "
        "counts, the values behind one statistic."
    ),
    chart=Chart(
        "sizes",
        "values",
        "judge",
        "norm net",
        "values per statistic of batch norm (batch size x plane)",
        "accuracy",
        "Up to 64 the perceptron's and the CNN's points stand on one axis: batch norm fails where few values stand "
        "behind a statistic, not where the batch is small.",
        only={"length": None},
        log_x=True,
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
    limits="What decides is the number of values behind a statistic, batch size times plane, not the batch size.",
)
