"""Times table norms beside our own batch norm, and blends beside versions as in their papers' repositories.

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
from torch import Tensor, nn
from torch.nn import functional as F

import normwise as nw

SHAPES = [(32, 256, 28, 28), (32, 64, 112, 112)]
SLICE = 0.4  # seconds a layer is measured before the next one has its turn


class PaperBatchInstance(nn.BatchNorm2d):
    """As github.com/hyeonseobnam/Batch-Instance-Normalization."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.gate = nn.Parameter(torch.ones(num_features))

    def forward(self, input: Tensor) -> Tensor:
        batch_weight, rest = self.weight * self.gate, self.weight * (1 - self.gate)
        mean, var = self.running_mean, self.running_var
        batch = F.batch_norm(input, mean, var, batch_weight, self.bias, self.training, self.momentum or 0.0, self.eps)
        n, c = input.shape[:2]
        flat = input.reshape(1, n * c, *input.shape[2:])
        instance = F.batch_norm(flat, None, None, None, None, True, 0.0, self.eps).view(input.shape)
        return batch + instance * rest[None, :, None, None]


class PaperSwitchable(nn.BatchNorm2d):
    """As github.com/switchablenorms/Switchable-Normalization."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.mean_weight, self.var_weight = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

    def forward(self, input: Tensor) -> Tensor:
        x = input.reshape(*input.shape[:2], -1)
        mean_in, var_in = x.mean(-1, keepdim=True), x.var(-1, keepdim=True)
        temp = var_in + mean_in**2
        mean_ln = mean_in.mean(1, keepdim=True)
        var_ln = temp.mean(1, keepdim=True) - mean_ln**2
        mean_bn = mean_in.mean(0, keepdim=True)
        var_bn = temp.mean(0, keepdim=True) - mean_bn**2
        a, b = F.softmax(self.mean_weight, 0), F.softmax(self.var_weight, 0)
        mean = a[0] * mean_in + a[1] * mean_ln + a[2] * mean_bn
        var = b[0] * var_in + b[1] * var_ln + b[2] * var_bn
        x = ((x - mean) / (var + self.eps).sqrt()).view(input.shape)
        return x * self.weight[:, None, None] + self.bias[:, None, None]


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nw.BatchNorm2d,
    "batch-instance": nw.BatchInstanceNorm,
    "batch-instance, paper": PaperBatchInstance,
    "switchable": nw.SwitchableNorm,
    "switchable, paper": PaperSwitchable,
    "ghost": lambda c: nw.GhostNorm(c, chunk_size=8),
    "renorm": nw.RenormNorm,
    "frozen": nw.FrozenNorm,
    "ibn": nw.IBNorm,
    "filter-response": nw.FilterResponseNorm,
    "grn": nw.GlobalResponseNorm,
    "domain": nw.DomainNorm,
    "instance-enhanced": nw.InstanceEnhancedNorm,
}


def calls(name: str, shape: list[int], layout: str) -> dict[str, Callable[[], object]]:
    """What is timed."""
    torch.manual_seed(0)
    form = torch.channels_last if layout == "last" else torch.contiguous_format
    x, g = (torch.randn(shape).contiguous(memory_format=form) for _ in range(2))
    x.requires_grad_()
    layer = LAYERS[name](shape[1])
    given = [x, *layer.parameters()]

    def forward() -> object:
        with torch.no_grad():
            return layer(x)

    return {"f": forward, "f+b": lambda: torch.autograd.grad(layer(x), given, g)}


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
