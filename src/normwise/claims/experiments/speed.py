"""How fast plain CNNs train with and without a norm, and the highest rate they stand, by batch size."""

import math
import time

import torch

from normwise.claims.claim import Experiment, Measures, Run, cell
from normwise.claims.experiments.training import constant, plain, train
from normwise.claims.images import split
from normwise.surgery.swap import swap

TARGET = 0.8  # training loss, mean over a window; a constant guess has 2.3
EPOCHS = {8: 4, 64: 12}
CEILING_RATES = tuple(round(0.01 * 10 ** (i / 2), 4) for i in range(9))  # 0.01 to 100
CEILING_EPOCHS = 1.0
RATES = (0.003, 0.01, 0.032, 0.1, 0.32, 1.0)
SHARED = 0.032  # the one rate for all, where a cell says `what=shared`
NORMS = ("none", "batch", "group:8", "layer", "instance")


def place(norm: str, depth: int, size: int, **more: object) -> str:
    return cell(norm=norm, depth=depth, batch_size=size, **more)


def measure(run: Run) -> Measures:
    """Steps and seconds to the target at the tuned rate (`what=shared`: at one rate for all), or
    (`what=ceiling`) the highest rate that still trains."""
    if run.settings.get("what") == "ceiling":
        return {"log_ceiling": math.log10(ceiling(run))}
    size = int(run.settings["batch_size"])
    start = time.perf_counter()
    losses = _losses(run, SHARED if "what" in run.settings else run.rate, EPOCHS[size])
    per_step = math.log10((time.perf_counter() - start) / len(losses))
    planned = round(EPOCHS[size] * (len(split(run.seed).train) // size))
    whole, half = (_log_steps(losses[:steps], size, steps) for steps in (planned, planned // 2))
    reached = float(whole <= math.log10(planned))
    end = losses[-1] if math.isfinite(losses[-1]) else 1e3
    return {
        "log_steps": whole,
        "half_log_steps": half,
        "log_seconds": whole + per_step,
        "half_log_seconds": half + per_step,
        "reached": reached,
        "diverged": float(not losses[0] >= end),
        # where the target is never met the loss still tells rates apart
        "validation": -whole if reached else -10 - min(end, 1e3),
    }


def _log_steps(losses: list[float], size: int, planned: int) -> float:
    """log10 of the steps to the target; never there, also where the run broke off: twice those planned."""
    return math.log10(steps_to(losses, TARGET, window=max(4, 512 // size)) or 2 * planned)


def steps_to(losses: list[float], target: float, window: int) -> int | None:
    """The first step at which the mean loss of the last `window` steps is below the target.

    >>> steps_to([2.0, 1.0, 0.5, 0.1], 0.4, window=2)
    4
    """
    for end in range(window, len(losses) + 1):
        if sum(losses[end - window : end]) / window < target:
            return end
    return None


def ceiling(run: Run) -> float:
    """The highest rate of the grid that ends, after an epoch, with a lower loss than it began with."""
    best = CEILING_RATES[0]
    for rate in CEILING_RATES:
        losses = _losses(run, rate, CEILING_EPOCHS)
        end = losses[-8:]
        if all(map(math.isfinite, losses)) and sum(end) / len(end) < 0.9 * losses[0]:
            best = rate
    return best


def _losses(run: Run, rate: float, epochs: float) -> list[float]:
    given, images = run.settings, split(run.seed)
    torch.manual_seed(run.seed)
    model = swap(plain(int(given["depth"])), given["norm"]).model
    size = int(given["batch_size"])
    fit = train(model, images.train, rate, batch_size=size, epochs=epochs, seed=run.seed, schedule=constant)
    return fit.losses


SPEED = Experiment(
    "speed",
    measure,
    (
        *(place(norm, 8, 64) for norm in NORMS),
        *(place(norm, 8, 8) for norm in ("none", "batch")),
        *(place(norm, 8, 64, what="ceiling") for norm in ("none", "batch", "instance")),
        *(place(norm, 8, 64, what="shared") for norm in ("none", "batch")),
        *(place(norm, 8, 8, what="ceiling") for norm in ("none", "batch")),
    ),
    seconds=3.0,
    seeds=10,
    rates=RATES,
    rate_of=lambda text: text.partition(",what=")[0],
)
