"""One CNN per norm, trained on clean images and judged on corrupted ones; batch norm also with the test batch's
own statistics, in random and in class-sorted order."""

import statistics
from collections.abc import Iterable

from torch import Tensor, nn

from normwise import networks
from normwise.claims.claim import HALF, Experiment, Measures, Run, cell
from normwise.claims.experiments.training import RATES, accuracy, diverged, fresh_scores, train, tuning
from normwise.claims.images import SIZE, split
from normwise.data import Arrays
from normwise.data.corrupt import CORRUPTIONS, corrupt
from normwise.experiment.evaluate import forget_statistics
from normwise.layers.blend import BatchInstanceNorm
from normwise.surgery.swap import swap

EPOCHS, BATCH = 10, 32
SHOWN = 1000  # corrupted images
SIZES = (1, 4, 16, 64, 250)  # of a test batch
STREAM = 64  # images of a test batch of a stream
SEVERITY = 2
# Two instance norms of four, in front or at the end: the order that IBN-Net argues about.
MIXES = {
    "early": {"norm[12]": "instance", "*": "batch"},
    "late": {"norm[34]": "instance", "*": "batch"},
}
NORMS = ("none", "batch", "instance", "group:8", "batch-instance", *MIXES)


def measure(run: Run) -> Measures:
    """Accuracies: `judge` on clean images, by corruption, `shifted` their mean, `adapted_N` by test batch size."""
    images, norm = split(run.seed), run.settings["norm"]
    model = swap(networks.build("cnn:depth=4", (1, SIZE, SIZE), 10), MIXES.get(norm, norm)).model
    epochs = EPOCHS * (0.5 if "length" in run.settings else 1)
    fit = train(model, images.train, run.rate, batch_size=BATCH, epochs=epochs, seed=run.seed)
    found = fresh_scores(model, images, run.seed) | {"diverged": diverged(fit)}
    if tuning(run.seed):  # the rest is not looked at
        return found
    shown = images.judge.subset(range(min(SHOWN, len(images.judge))))
    shifted = {kind: Arrays(corrupt(shown.inputs, kind, SEVERITY), shown.targets) for kind in CORRUPTIONS}
    found |= {kind: accuracy(model, samples) for kind, samples in shifted.items()}
    found["shifted"] = _mean(found[kind] for kind in CORRUPTIONS)
    return found | gates(model) | (adapted(model, shifted) if norm == "batch" else {})


def adapted(model: nn.Module, shifted: dict[str, Arrays]) -> Measures:
    """Accuracy with the statistics of each test batch: by its size, the mean over corruptions; at 64 by corruption
    too, of streams of independent images (`mixed_noise`) and of images sorted by class (`sorted_noise`)."""
    fresh = forget_statistics(model)
    found = {
        f"adapted_{size}": _mean(accuracy(fresh, one, size) for one in shifted.values())
        for size in SIZES
        if size != STREAM
    }
    for kind, samples in shifted.items():
        found[f"mixed_{kind}"] = accuracy(fresh, samples, STREAM)
        found[f"sorted_{kind}"] = accuracy(fresh, samples.subset(_order(samples.targets)), STREAM)
    return found | {
        f"adapted_{STREAM}": _mean(found[f"mixed_{kind}"] for kind in shifted),
        "sorted": _mean(found[f"sorted_{kind}"] for kind in shifted),
    }


def gates(model: nn.Module) -> Measures:
    """The mean gate of each batch-instance norm, from the input on: 1 is batch norm, 0 instance norm.

    >>> gates(nn.Sequential(BatchInstanceNorm(4), nn.ReLU()))
    {'gate_1': 1.0}
    """
    norms = [layer for layer in model.modules() if isinstance(layer, BatchInstanceNorm)]
    return {f"gate_{i}": float(norm.gate.detach().clamp(0, 1).mean()) for i, norm in enumerate(norms, 1)}


def _mean(values: Iterable[float]) -> float:
    return statistics.mean(values)


def _order(targets: Tensor) -> Tensor:
    return targets.argsort(stable=True)


RIVALS = tuple(cell(norm=norm) for norm in ("batch", "instance", "group:8", "batch-instance"))

SHIFT = Experiment(
    "shift",
    measure,
    (
        *(cell(norm=norm) for norm in NORMS),
        *(text + HALF for text in RIVALS),
    ),
    seconds=2.7,
    seeds=13,
    rates=RATES,
    rate_of=lambda text: text.removesuffix(HALF),
    rivals=(RIVALS,),
)
