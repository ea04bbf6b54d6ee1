"""One CNN per norm, trained on clean images and judged on corrupted ones; batch norm also with the test batch's
own statistics, in random and in class-sorted order."""

from torch import Tensor, nn

from normwise import networks
from normwise.claims.claim import Experiment, Measures, Run, cell
from normwise.claims.experiments.training import RATES, accuracy, diverged, refresh, scores, train
from normwise.claims.images import SIZE, split
from normwise.data import Arrays
from normwise.data.corrupt import CORRUPTIONS, corrupt
from normwise.experiment.evaluate import forget_statistics
from normwise.surgery.swap import swap

EPOCHS, BATCH = 10, 32
SHOWN = 1000  # corrupted images
SIZES = (1, 4, 16, 64, 250)  # of a test batch
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
    refresh(model, images)
    found = scores(model, images) | {"diverged": diverged(fit)}
    if run.seed % 1000 >= 900:  # a tuning seed: the rest is not looked at
        return found
    shown = images.judge.subset(range(min(SHOWN, len(images.judge))))
    shifted = {kind: Arrays(corrupt(shown.inputs, kind, SEVERITY), shown.targets) for kind in CORRUPTIONS}
    found |= {kind: accuracy(model, samples) for kind, samples in shifted.items()}
    found["shifted"] = sum(found[kind] for kind in CORRUPTIONS) / len(CORRUPTIONS)
    return found | (adapted(model, shifted) if norm == "batch" else {})


def adapted(model: nn.Module, shifted: dict[str, Arrays]) -> Measures:
    """The mean accuracy over corruptions with the statistics of each test batch, by its size; `sorted`: by class."""
    fresh = forget_statistics(model)

    def mean(samples: list[Arrays], size: int) -> float:
        return sum(accuracy(fresh, one, size) for one in samples) / len(samples)

    sets = list(shifted.values())
    by_class = [one.subset(_order(one.targets)) for one in sets]
    return {f"adapted_{size}": mean(sets, size) for size in SIZES} | {"sorted": mean(by_class, 64)}


def _order(targets: Tensor) -> Tensor:
    return targets.argsort(stable=True)


SHIFT = Experiment(
    "shift",
    measure,
    (
        *(cell(norm=norm) for norm in NORMS),
        *(cell(norm=norm, length="half") for norm in ("batch", "instance")),
    ),
    seconds=2.1,
    seeds=20,
    rates=RATES,
    rate_of=lambda text: text.removesuffix(",length=half"),
)
