"""Times the native kernels beside PyTorch: one process per peer, taking turns; multiples of x.clone().

    python benchmarks/kernels.py [--threads 2] [--dtype float32] [--rounds 3] [--peers normwise eager compile]
                                 [--cells REGEX]   only cells whose line begins so, e.g. "8x32.* last .*group"

Peers: `normwise` (the raw operators), `public` (nw.functional and autograd), `forced` (the same, never PyTorch's
operator: shows what the rule in normwise.plain is worth), `eager`, `compile`; a dtype of its own behind a colon, as
in `public:bfloat16 public`; an address behind @, as in `normwise@/other/src`, takes another build.
Each cell is the lower quartile over all rounds of its own peer's process,
divided by that of x.clone() in the same process (its milliseconds stand first; `warm` is a copy into memory that was
used before). `f` is the forward alone, `f+b` forward and backward with weight, bias and a given gradient.
"""

import argparse
import itertools
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

SHAPES = [
    (32, 256, 28, 28), (8, 32, 32, 32), (16, 96, 40, 40), (32, 64, 112, 112), (4, 64, 256, 256),
    (32, 512, 7, 7), (2, 32, 48, 48, 48), (4, 16, 8, 8), (2, 32, 16, 16),
]  # fmt: skip
NORMS = ["instance", "group", "batch", "batch+relu+residual"]
SLICE = 0.02  # seconds a peer measures before the next one has its turn


def eager(norm: str, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """What a user of PyTorch writes."""
    if norm == "instance":
        return F.instance_norm(x, None, None, weight, bias)
    if norm == "group":
        return F.group_norm(x, 8, weight, bias)
    y = F.batch_norm(x, None, None, weight, bias, training=True)
    return y if norm == "batch" else F.relu(y + residual)


def public() -> Callable[..., Tensor]:
    """What a user of normwise writes, imported once: an import in every call would be timed with it."""
    from normwise import functional, kernels, plain
    from normwise.tail import Tail

    def run(norm: str, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        if norm == "instance":
            return functional.instance_norm(x, None, None, weight, bias)
        if norm == "group":
            return functional.group_norm(x, 8, weight, bias)
        if norm == "batch":
            return functional.batch_norm(x, None, None, weight, bias, training=True)
        return plain.batch_norm(x, weight, bias, 1e-5, tail=Tail(residual, kernels.RELU))[0]  # as NormAct calls it

    return run


def forward_and_backward(peer: str, norm: str, args: tuple[Tensor, ...], g: Tensor) -> tuple[Callable, Callable]:
    """Two functions to time: the forward without gradients, and forward with backward."""
    if peer == "normwise":
        return _ours(norm, args, g)
    if peer == "forced":
        from normwise import plain

        plain._suits_pytorch = lambda *_: False
    if peer == "compile":
        torch.compiler.reset()  # after eight graphs of one function it would go on in eager mode
        run = torch.compile(eager, dynamic=False)
    else:
        run = public() if peer in ("public", "forced") else eager
    leaves = [t.clone().requires_grad_() for t in args]

    def forward() -> Tensor:
        with torch.no_grad():
            return run(norm, *args)

    def both() -> object:
        used = leaves if "residual" in norm else leaves[:3]
        return torch.autograd.grad(run(norm, *leaves), used, g)

    return forward, both


def _ours(norm: str, args: tuple[Tensor, ...], g: Tensor) -> tuple[Callable, Callable]:
    from normwise import kernels

    x, weight, bias, residual = args
    groups = {"instance": x.shape[1], "group": 8}.get(norm, 0)
    fused = "residual" in norm
    act = kernels.RELU if fused else kernels.NONE
    r = residual if fused else None

    def forward() -> tuple[Tensor, Tensor, Tensor]:
        return kernels.norm(x, weight, bias, groups, 1e-5, residual=r, act=act)

    def both() -> object:
        y, mean, var = forward()
        return kernels.norm_backward(g, x, mean, var, weight, bias, groups, 1e-5, y if fused else None, act)

    return forward, both


def measure(cell: dict, peer: str, built: dict) -> dict[str, list[float]]:
    """One turn: seconds of single calls of clone, forward, and forward with backward, taken alternately."""
    key = json.dumps(cell)
    if key not in built:
        built.clear()
        built[key] = _build(cell, peer)
    functions = built[key]
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + SLICE
    while time.perf_counter() < end:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return times


def _build(cell: dict, peer: str) -> dict[str, Callable]:
    torch.manual_seed(0)
    shape, dtype = cell["shape"], getattr(torch, cell["dtype"])
    x, g, residual = (_laid_out(torch.randn(shape, dtype=dtype), cell["layout"]) for _ in range(3))
    weight, bias = torch.rand(shape[1], dtype=dtype) + 0.5, torch.randn(shape[1], dtype=dtype)
    forward, both = forward_and_backward(peer, cell["norm"], (x, weight, bias, residual), g)
    warm = torch.empty_like(x)
    return {"clone": x.clone, "warm": lambda: warm.copy_(x), "f": forward, "f+b": both}


def _laid_out(x: Tensor, layout: str) -> Tensor:
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return x.contiguous(memory_format=last) if layout == "last" else x


def work(peer: str, threads: int) -> None:
    """A peer's process: measures what it reads, until its input ends."""
    torch.set_num_threads(threads)
    name, _, source = peer.partition("@")
    name, _, dtype = name.partition(":")
    own = {"dtype": dtype} if dtype else {}
    if source:
        sys.path.insert(0, source)
    built: dict = {}
    for line in sys.stdin:
        print(json.dumps(measure(json.loads(line) | own, name, built)), flush=True)


def drive(options: argparse.Namespace) -> None:
    """Lets the peers take turns on every cell, and prints one line per cell."""
    command = [sys.executable, __file__, "--threads", str(options.threads), "--work"]
    workers = {p: subprocess.Popen([*command, p], stdin=-1, stdout=-1, text=True) for p in options.peers}
    print("shape, layout, norm", "clone, ms", "warm", *options.peers, "last / first", sep=" | ")
    ratios: list[float] = []
    for layout, shape, norm in itertools.product(("first", "last"), SHAPES, options.norms):
        cell = {"shape": shape, "layout": layout, "norm": norm, "dtype": options.dtype}
        if re.match(options.cells, _name(cell)):
            times = _times(cell, workers, options.rounds)
            print(_name(cell), *_row(times), sep=" | ", flush=True)
            ratios += _speed_ups(times)
    print("geometric mean, last / first:", f"{math.exp(sum(map(math.log, ratios)) / max(1, len(ratios))):.2f}")
    for worker in workers.values():
        worker.communicate()


def _times(cell: dict, workers: dict[str, subprocess.Popen], rounds: int) -> list[dict[str, float]]:
    """The lower quartile of every function, peer by peer."""
    times: dict[str, dict[str, list[float]]] = {peer: {} for peer in workers}
    for _ in range(rounds):
        for peer, worker in workers.items():
            assert worker.stdin
            assert worker.stdout
            worker.stdin.write(json.dumps(cell) + "\n")
            worker.stdin.flush()
            for name, values in json.loads(worker.stdout.readline()).items():
                times[peer].setdefault(name, []).extend(values)
    return [{name: sorted(v)[len(v) // 4] for name, v in t.items()} for t in times.values()]


def _row(times: list[dict[str, float]]) -> list[str]:
    clone = min(t["clone"] for t in times)
    cells = [f"{t['f'] / clone:.2f}, {t['f+b'] / clone:.2f}" for t in times]
    ratio = ", ".join(f"{r:.2f}" for r in _speed_ups(times))
    return [f"{clone * 1e3:.4f}", f"{min(t['warm'] for t in times) / clone:.2f}", *cells, ratio]


def _speed_ups(times: list[dict[str, float]]) -> list[float]:
    return [times[-1][name] / times[0][name] for name in ("f", "f+b")]


def _name(cell: dict) -> str:
    return f"{'x'.join(map(str, cell['shape']))} {cell['layout']} {cell['norm']}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peers", nargs="+", default=["normwise", "eager"])
    parser.add_argument("--norms", nargs="+", default=NORMS)
    parser.add_argument("--cells", default="")
    parser.add_argument("--work")
    chosen = parser.parse_args()
    work(chosen.work, chosen.threads) if chosen.work else drive(chosen)
