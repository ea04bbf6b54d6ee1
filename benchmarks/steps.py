"""A training step of a whole model, as it is and after `nw.accelerate`: one process each, taking turns."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Made = tuple[nn.Module, Tensor, Tensor]
SIDES = ("unchanged", "accelerated")


def main(story: str, models: dict[str, Callable[[], Made]]) -> None:
    """The command of a script with such models; each function makes a model, its input and its target."""
    parser = argparse.ArgumentParser(description=story, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(models), choices=list(models))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="the least that a side measures in its turn")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(models[options.models[0]], options)
    else:
        for name in options.models:
            drive(name, options)


def work(make: Callable[[], Made], options: argparse.Namespace) -> None:
    """One side's process: tells the loss of its first step, then times steps whenever it is asked."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model, x, target = make()
    if options.work == SIDES[1]:
        import normwise as nw

        print(nw.accelerate(model, x), file=sys.stderr)
    torch.manual_seed(1)  # for dropout, the same on both sides
    step = training_step(model, x, target)
    print(json.dumps(step().item()), flush=True)
    step()
    for _ in sys.stdin:
        times, end = [], time.perf_counter() + options.seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        print(json.dumps(times), flush=True)


def training_step(model: nn.Module, x: Tensor, target: Tensor) -> Callable[[], Tensor]:
    """Forward, cross-entropy, backward, one step of SGD with momentum; gives the loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def drive(name: str, options: argparse.Namespace) -> None:
    """Lets both sides take turns, and prints both times, the speed-up and its range over the rounds."""
    command = [sys.executable, sys.argv[0], "--models", name, "--threads", str(options.threads)]
    command += ["--seconds", str(options.seconds), "--work"]
    sides = {side: subprocess.Popen([*command, side], stdin=-1, stdout=-1, text=True) for side in SIDES}
    losses: dict[str, float] = {side: _read(process) for side, process in sides.items()}
    rounds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side, process in sides.items():
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
            rounds[side].append(_lower_quartile(_read(process)))
    for process in sides.values():
        process.communicate()
    before, after = (_lower_quartile(rounds[side]) for side in SIDES)
    ratios = sorted(a / b for a, b in zip(*rounds.values(), strict=True))
    first = ", ".join(f"{loss:.5f}" for loss in losses.values())
    print(f"{name}: unchanged {before * 1e3:.0f} ms, accelerated {after * 1e3:.0f} ms a step: {before / after:.2f}x")
    print(f"  rounds {ratios[0]:.2f}x to {ratios[-1]:.2f}x; loss of the first step {first}")


def _read(process: subprocess.Popen) -> Any:
    assert process.stdout
    return json.loads(process.stdout.readline())


def _lower_quartile(values: list[float]) -> float:
    return sorted(values)[len(values) // 4]
