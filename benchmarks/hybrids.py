"""Times table norms beside our own batch norm, and beside straightforward versions in PyTorch (papers.py).

    python benchmarks/hybrids.py [--threads 2] [--rounds 4] [--layer ghost ...]

One process per layer, taking turns. Each entry: milliseconds of a training forward without gradients, and of
forward and backward, lower quartiles of single calls; then how many times as long as our batch norm.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from papers import PAPERS
from torch import Tensor, nn

import normwise as nw

SHAPES = [(32, 256, 28, 28), (32, 64, 112, 112)]
SLICE = 0.4  # seconds a layer is measured before the next one has its turn


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nw.BatchNorm2d,
    "batch-instance": nw.BatchInstanceNorm,
    "switchable": nw.SwitchableNorm,
    "ghost": lambda c: nw.GhostNorm(c, chunk_size=8),
    "renorm": nw.RenormNorm,
    "frozen": nw.FrozenNorm,
    "ibn": nw.IBNorm,
    "filter-response": nw.FilterResponseNorm,
    "grn": nw.GlobalResponseNorm,
    "domain": nw.DomainNorm,
    "instance-enhanced": nw.InstanceEnhancedNorm,
    "sync": nw.SyncNorm,
    "conditional-instance": lambda c: nw.ConditionalInstanceNorm(c, classes=10),
    "conditional-batch": lambda c: nw.ConditionalBatchNorm(c, classes=10),
    "adain": nw.AdaptiveInstanceNorm,
    "adain, one style": nw.AdaptiveInstanceNorm,
    "mixstyle": lambda c: nw.MixStyle(c, p=1.0),
    "domain, each sample": nw.DomainNorm,
} | {f"{name}, paper": cls for name, cls in PAPERS.items()}


GIVEN: dict[str, Callable[[Tensor], Tensor]] = {  # what a layer is called with beside x
    "conditional-instance": lambda x: torch.arange(len(x)) % 10,
    "conditional-batch": lambda x: torch.arange(len(x)) % 10,
    "adain": torch.randn_like,
    "adain, one style": lambda x: torch.randn_like(x[:1]),
}


def calls(name: str, shape: list[int], layout: str) -> dict[str, Callable[[], object]]:
    """What is timed."""
    torch.manual_seed(0)
    form = torch.channels_last if layout == "last" else torch.contiguous_format
    x, g = (torch.randn(shape).contiguous(memory_format=form) for _ in range(2))
    layer, inputs = LAYERS[name](shape[1]), [x, *([GIVEN[name](x)] if name in GIVEN else [])]
    if isinstance(layer, nw.DomainNorm) and name.endswith("each sample"):
        layer.current = torch.arange(len(x)) % 2
    leaves = [x.requires_grad_(), *layer.parameters()]

    def forward() -> object:
        with torch.no_grad():
            return layer(*inputs)

    return {"f": forward, "f+b": lambda: torch.autograd.grad(layer(*inputs), leaves, g)}


def work(name: str, threads: int) -> None:
    """A layer's process: measures what it reads, until its input ends."""
    torch.set_num_threads(threads)
    for line in sys.stdin:
        times: dict[str, list[float]] = {}
        for mode, function in calls(name, *json.loads(line)).items():
            function()
            end = time.perf_counter() + SLICE / 2
            while time.perf_counter() < end:
                start = time.perf_counter()
                function()
                times.setdefault(mode, []).append(time.perf_counter() - start)
        print(json.dumps(times), flush=True)


def drive(threads: int, rounds: int, names: list[str]) -> None:
    """Lets the layers take turns on every cell, and prints one row per cell."""
    command = [sys.executable, __file__, "--threads", str(threads), "--work"]
    workers = {name: subprocess.Popen([*command, name], stdin=-1, stdout=-1, text=True) for name in names}
    print("| shape | " + " | ".join(f"{name}, f | f+b" for name in names) + " |")
    print("|---" * (1 + 2 * len(names)) + "|")
    for shape in SHAPES:
        for layout in ("first", "last"):
            row = _row((shape, layout), workers, rounds)
            print(
                f"| {'x'.join(map(str, shape))}{' channels-last' * (layout == 'last')} | {' | '.join(row)} |",
                flush=True,
            )
    for worker in workers.values():
        worker.communicate()


def _row(cell: object, workers: dict[str, subprocess.Popen], rounds: int) -> list[str]:
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for name, worker in workers.items():
            assert worker.stdin
            assert worker.stdout
            worker.stdin.write(json.dumps(cell) + "\n")
            worker.stdin.flush()
            for mode, values in json.loads(worker.stdout.readline()).items():
                times.setdefault((name, mode), []).extend(values)
    low = {key: sorted(values)[len(values) // 4] for key, values in times.items()}
    return [f"{low[key] * 1e3:.1f} ({low[key] / low['batch', key[1]]:.2f})" for key in low]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--layer", nargs="*", choices=LAYERS, default=list(LAYERS), help="these, beside batch norm")
    parser.add_argument("--work")
    chosen = parser.parse_args()
    names = [name for name in LAYERS if name == "batch" or name in chosen.layer]
    work(chosen.work, chosen.threads) if chosen.work else drive(chosen.threads, chosen.rounds, names)
