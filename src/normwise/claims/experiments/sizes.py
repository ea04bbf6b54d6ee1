"""Batch sizes and plane sizes: a perceptron (planes of one value) and a CNN, by values per statistic."""

import copy

from normwise import networks
from normwise.claims.claim import Experiment, Measures, Run, cell
from normwise.claims.experiments.training import accuracy, diverged, refresh, scores, train
from normwise.claims.images import SIZE, split
from normwise.experiment.evaluate import forget_statistics
from normwise.surgery.swap import swap

EPOCHS, IMAGES = 6, 1000
PLANE = {"mlp": 1, "cnn": 16}  # values of the smallest plane
NETWORKS = {"mlp": "mlp", "cnn": "cnn:depth=5"}
SIZES = {"mlp": (2, 4, 16, 64), "cnn": (2, 8, 32)}
NORMS = ("batch", "group:8")
RATES = (0.001, 0.0032, 0.01, 0.032, 0.1, 0.32)  # small batches want small ones


def place(norm: str, net: str, size: int) -> str:
    """The text of a cell; `values` are those behind one statistic of batch norm."""
    return cell(norm=norm, net=net, batch_size=size, values=size * PLANE[net])


def measure(run: Run) -> Measures:
    """Accuracies with the remembered statistics (`judge`), with fresh ones and with those of the test batch."""
    given, images = run.settings, split(run.seed, IMAGES)
    model = swap(networks.build(NETWORKS[given["net"]], (1, SIZE, SIZE), 10), given["norm"]).model
    epochs = EPOCHS * (0.5 if "length" in given else 1)
    fit = train(model, images.train, run.rate, batch_size=int(given["batch_size"]), epochs=epochs, seed=run.seed)
    found = scores(model, images) | {"diverged": diverged(fit)}
    if given["norm"] == "batch":
        found["batch_statistics"] = accuracy(forget_statistics(model), images.judge, 250)
        fresh = copy.deepcopy(model)
        refresh(fresh, images)
        found["fresh"] = accuracy(fresh, images.judge)
    return found


SIZES_EXPERIMENT = Experiment(
    "sizes",
    measure,
    (
        *(place(norm, net, size) for net, sizes in SIZES.items() for size in sizes for norm in NORMS),
        *(f"{place(norm, 'mlp', 2)},length=half" for norm in NORMS),
    ),
    seconds=1.3,
    seeds=14,
    rates=RATES,
    rate_of=lambda text: text.removesuffix(",length=half"),
)
