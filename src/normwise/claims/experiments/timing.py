"""Times norms in a process of its own, which `costs` starts: arguments: seed, then `norm shape` texts."""

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from normwise.layers.spec import build
from normwise.probe.measure import norm_cost
from normwise.probe.record import record
from normwise.surgery.fold import fold

ROUNDS, WARM_UP = 21, 4
SHAPES = {"wide": (32, 32, 28, 28), "deep": (32, 128, 7, 7)}


def main(seed: int, wanted: list[str]) -> None:
    """Prints the measures of every `norm shape` that is wanted."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    pairs = [text.rpartition(" ") for text in wanted]
    print(json.dumps({f"{norm} {shape}": times_of(norm, SHAPES[shape]) for norm, _, shape in pairs}))


def times_of(norm: str, shape: tuple[int, ...]) -> dict[str, float]:
    """Medians, over rounds in which the norm, batch norm, a copy and a convolution take turns, of ratios in a round.

    `train`: forward and backward over a copy's time; `train_last`: so in channels-last. `eval`: inference over
    a copy's. `against_batch`: training over batch norm's. `statistics`: training over the same with
    remembered statistics. `folded`: convolution and norm over the convolution, after folding. `counted`: bytes and
    operations of inference over those of a copy (0 once folded).
    """
    n, c, h, w = shape
    x = torch.randn(n, c, h, w)
    layer, batch = build(norm, c), build("batch", c)
    block = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), copy.deepcopy(layer)).eval()
    conv = copy.deepcopy(block[0])
    if norm in ("batch", "none"):
        fold(block)
    # the same tensors for all: where they lie in memory makes a difference of its own
    same = x.detach().clone().requires_grad_(), torch.randn_like(x)
    last = tuple(each.detach().to(memory_format=torch.channels_last).requires_grad_() for each in same)
    times = in_turns(
        copy=lambda: x.clone(),
        train=_training(layer, *same),
        batch=_training(batch, *same),
        frozen=_training(copy.deepcopy(layer).eval(), *same),
        last=_training(copy.deepcopy(layer), *last),
        eval=_inference(copy.deepcopy(layer).eval(), x),
        block=_inference(block, x),
        conv=_inference(conv, x),
    )
    return {
        "train": ratio(times["train"], times["copy"]),
        "train_last": ratio(times["last"], times["copy"]),
        "eval": ratio(times["eval"], times["copy"]),
        "against_batch": ratio(times["train"], times["batch"]),
        "statistics": ratio(times["train"], times["frozen"]),
        "folded": ratio(times["block"], times["conv"]),
        "counted": counted(block, x),
    }


def in_turns(**work: Callable[[], object]) -> dict[str, list[float]]:
    """The seconds of each piece of work, one after the other in every round; each comes twice and the second time
    counts, as the first finds the caches full of another's data. The order is drawn for each round: what came
    before decides where in memory a result lies, which alone made one batch norm a third slower than another.

    >>> sorted(in_turns(a=lambda: None, b=lambda: None))
    ['a', 'b']
    """
    seen: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS + WARM_UP):
        for i in torch.randperm(len(work)).tolist():
            name, one = list(work.items())[i]
            one()
            start = time.perf_counter()
            one()
            seen[name].append(time.perf_counter() - start)
    return {name: times[WARM_UP:] for name, times in seen.items()}


def ratio(first: list[float], second: list[float]) -> float:
    """The median of the ratios in a round: what slows a whole round down falls out.

    >>> ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])
    2.0
    """
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def counted(block: nn.Module, x: Tensor) -> float:
    """The cost of the norms that inference still runs, as a multiple of a copy (8 bytes a value)."""
    with record(block) as records, torch.no_grad():
        block(x)
    return sum(norm_cost(one) for one in records) / (8 * x.numel())


def _training(layer: nn.Module, x: Tensor, g: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(layer(x), (x, *layer.parameters()), g)


def _inference(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    def infer() -> Tensor:
        with torch.inference_mode():
            return layer(x)

    return infer


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
