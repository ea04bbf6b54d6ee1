"""Batch sizes and plane sizes: a perceptron (planes of one value) and a CNN, by values per statistic."""

import copy

from normwise import networks
from normwise.claims.claim import HALF, Experiment, Measures, Run, cell
from normwise.claims.experiments.training import (
    FewClasses,
    accuracy,
    batch_score,
    diverged,
    refresh,
    remembers,
    scores,
    train,
    tuning,
)
from normwise.claims.images import SIZE, split
from normwise.data import Batches
from normwise.surgery.swap import swap

EPOCHS, IMAGES = 6, 1000
PLANE = {"mlp": 1, "cnn": 16}  # values of the smallest plane
NETWORKS = {"mlp": "mlp", "cnn": "cnn:depth=5"}
SIZES = {"mlp": (2, 4, 16, 64), "cnn": (2, 32)}
NORMS = ("batch", "group:8")
RATES = (0.001, 0.0032, 0.01, 0.032, 0.1, 0.32)  # small batches want small ones


def place(norm: str, net: str, size: int, **more: object) -> str:
    """The text of a cell; `values` are those behind one statistic of batch norm."""
    return cell(norm=norm, net=net, batch_size=size, values=size * PLANE[net], **more)


def measure(run: Run) -> Measures:
    """Accuracies with the remembered statistics (`judge`), with fresh ones and with those of the test batch."""
    given, images = run.settings, split(run.seed, IMAGES)
    model = swap(networks.build(NETWORKS[given["net"]], (1, SIZE, SIZE), 10), given["norm"]).model
    epochs = EPOCHS * (0.5 if "length" in given else 1)
    size, kind = int(given["batch_size"]), FewClasses if "order" in given else Batches
    fit = train(model, images.train, run.rate, batch_size=size, epochs=epochs, seed=run.seed, kind=kind)
    found = scores(model, images) | {"diverged": diverged(fit)}
    if remembers(model) and not tuning(run.seed):
        found |= {"remembered": found["judge"]} | batch_score(model, images)
        refresh(fresh := copy.deepcopy(model), images)
        found["fresh"] = accuracy(fresh, images.judge)
    return found


FEW = tuple(place(norm, "cnn", 32, order="classes") for norm in (*NORMS, "renorm"))

SIZES_EXPERIMENT = Experiment(
    "sizes",
    measure,
    (
        *(place(norm, net, size) for net, sizes in SIZES.items() for size in sizes for norm in NORMS),
        place("renorm", "mlp", 4),
        *FEW,
        *(place(norm, "mlp", size) + HALF for norm in NORMS for size in (2, 4)),
        *(place(norm, "cnn", 32) + HALF for norm in NORMS),
    ),
    seconds=1.6,
    seeds=10,
    tuning=1,
    rates=RATES,
    rate_of=lambda text: text.removesuffix(HALF).removesuffix(",order=classes").replace("renorm", "batch"),
    rivals=tuple(
        tuple(place(norm, net, size) for norm in NORMS) for net, size in (("mlp", 2), ("mlp", 4), ("cnn", 32))
    ),
)
