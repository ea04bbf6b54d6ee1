"""Times LSTM and GRU with each norm beside PyTorch's: microseconds per step, forward with backward.

    python benchmarks/recurrent.py [--threads 1] [--rounds 5] [--sizes 32x64x128]

One process per layer, taking turns; each entry is the lower quartile over all its turns, and the share of
PyTorch's. A size is batch x steps x hidden size; the input is as wide as the state and needs no gradient.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

PEERS = ["torch.LSTM", "LSTM:none", "LSTM:layer", "LSTM:batch", "torch.GRU", "GRU:none", "GRU:layer", "GRU:batch"]
SLICE = 0.4  # seconds a peer measures before the next one has its turn


def layer(peer: str, size: int) -> nn.Module:
    import normwise as nw

    if peer.startswith("torch."):
        return getattr(nn, peer.removeprefix("torch."))(size, size)
    kind, norm = peer.split(":")
    return getattr(nw, kind)(size, size, norm=norm)


def build(peer: str, cell: str) -> tuple[int, Callable[[], None]]:
    """The number of steps, and one training pass without the optimizer."""
    torch.manual_seed(0)
    batch, steps, size = map(int, cell.split("x"))
    module, x = layer(peer, size), torch.randn(steps, batch, size)

    def run() -> None:
        module.zero_grad()
        module(x)[0].sum().backward()

    return steps, run


def work(peer: str, threads: int) -> None:
    """A peer's process: measures what it reads, until its input ends."""
    torch.set_num_threads(threads)
    built: dict[str, tuple[int, Callable[[], None]]] = {}
    for line in sys.stdin:
        steps, run = built.setdefault(cell := line.strip(), build(peer, cell))
        run()
        times, end = [], time.perf_counter() + SLICE
        while time.perf_counter() < end:
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) / steps)
        print(json.dumps(times), flush=True)


def drive(options: argparse.Namespace) -> None:
    """Lets the peers take turns on every size, and prints one line per layer."""
    command = [sys.executable, __file__, "--threads", str(options.threads), "--work"]
    workers = {p: subprocess.Popen([*command, p], stdin=-1, stdout=-1, text=True) for p in options.peers}
    for cell in options.sizes:
        times: dict[str, list[float]] = {peer: [] for peer in workers}
        for _ in range(options.rounds):
            for peer, worker in workers.items():
                assert worker.stdin
                assert worker.stdout
                worker.stdin.write(cell + "\n")
                worker.stdin.flush()
                times[peer] += json.loads(worker.stdout.readline())
        quartiles = {peer: sorted(found)[len(found) // 4] for peer, found in times.items()}
        for peer, taken in quartiles.items():
            base = quartiles["torch.GRU" if "GRU" in peer else "torch.LSTM"]
            print(f"{cell:12s} {peer:12s} {taken * 1e6:8.1f} us a step  {taken / base:5.2f}", flush=True)
    for worker in workers.values():
        worker.communicate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", default=["32x64x128"])
    parser.add_argument("--peers", nargs="+", default=PEERS)
    parser.add_argument("--work")
    chosen = parser.parse_args()
    work(chosen.work, chosen.threads) if chosen.work else drive(chosen)
