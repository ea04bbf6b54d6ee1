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

ROUNDS, WARM_UP = 15, 4
SHAPES = {"wide": (32, 32, 28, 28), "deep": (32, 128, 7, 7)}


def main(seed: int, wanted: list[str]) -> None:
    """Prints the measures of every `norm shape` that is wanted."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    pairs = [text.rpartition(" ") for text in wanted]
    print(json.dumps({f"{norm} {shape}": times_of(norm, SHAPES[shape]) for norm, _, shape in pairs}))


def times_of(norm: str, shape: tuple[int, ...]) -> dict[str, float]:
    """Medians over rounds in which the norm, batch norm, a copy and a convolution take turns.

    `train`: forward and backward over a copy's time. `eval`: inference over a copy's. `against_batch`:
    training over batch norm's. `statistics`: training over the same with remembered statistics.
    `folded`: convolution and norm over the convolution, after folding. `counted`: bytes and operations of
    inference over those of a copy (0 once folded).
    """
    n, c, h, w = shape
    x = torch.randn(n, c, h, w)
    layer, batch = build(norm, c), build("batch", c)
    block = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), copy.deepcopy(layer)).eval()
    conv = copy.deepcopy(block[0])
    if norm in ("batch", "none"):
        fold(block)
    times = in_turns(
        copy=lambda: x.clone(),
        train=_training(layer, x),
        batch=_training(batch, x),
        frozen=_training(copy.deepcopy(layer).eval(), x),
        eval=_inference(copy.deepcopy(layer).eval(), x),
        block=_inference(block, x),
        conv=_inference(conv, x),
    )
    return {
        "train": times["train"] / times["copy"],
        "eval": times["eval"] / times["copy"],
        "against_batch": times["train"] / times["batch"],
        "statistics": times["train"] / times["frozen"],
        "folded": times["block"] / times["conv"],
        "counted": counted(block, x),
    }


def in_turns(**work: Callable[[], object]) -> dict[str, float]:
    """The median seconds of each piece of work, one after the other in every round; each comes twice and the
    second time counts, as the first finds the caches full of another's data.

    >>> sorted(in_turns(a=lambda: None, b=lambda: None))
    ['a', 'b']
    """
    seen: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS + WARM_UP):
        for name, one in work.items():
            one()
            start = time.perf_counter()
            one()
            seen[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[WARM_UP:]) for name, times in seen.items()}


def counted(block: nn.Module, x: Tensor) -> float:
    """The cost of the norms that inference still runs, as a multiple of a copy (8 bytes a value)."""
    with record(block) as records, torch.no_grad():
        block(x)
    return sum(norm_cost(one) for one in records) / (8 * x.numel())


def _training(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    x, g = x.clone().requires_grad_(), torch.randn_like(x)
    return lambda: torch.autograd.grad(layer(x), (x, *layer.parameters()), g)


def _inference(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    def infer() -> Tensor:
        with torch.inference_mode():
            return layer(x)

    return infer


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
