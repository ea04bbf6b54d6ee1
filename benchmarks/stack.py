"""What a training step of a network costs in a stack, against the plain loop that trains it alone.

    python benchmarks/stack.py [--members 16] [--rounds 5] [--network resnet]
    python benchmarks/stack.py --trials

Networks of normwise on digits, one thread. Each peer is a process of its own: alone with oneDNN, alone
without, stacked, stacked with channels last in memory (the mlp has no such layout and is stacked as before), and
stacked by vmap (what networks get that the surgery does not know). They take turns; of each the lower
quartile over all rounds is taken, in milliseconds per step and network. `times` is the better of alone
divided by the better of stacked, as the calibration of a comparison chooses. To reach at 16 members: 5 (batch
4) and 2 (batch 32) for the cnn, 3 for mlp and resnet. With `--trials`, whole trials of `make compare` instead,
evaluation included: seconds of a stack of eight per trial, and of the same trial alone at its better oneDNN
setting, one after the other in one process. To reach: 2 over both batch sizes, 3 at batch size 8.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from normwise.experiment import stacked_train
from normwise.experiment.resolve import resolve
from normwise.experiment.setting import Setting
from normwise.experiment.stack_loss import by_vmap
from normwise.experiment.train import Loop, build, environment, train
from normwise.experiment.trial import Trial

CELLS = list(itertools.product(("cnn", "mlp", "resnet"), (4, 32), ("batch", "group:4")))
PEERS = ("alone", "alone, no oneDNN", "stacked", "channels last", "vmap")
STEPS, RATE = 20, 1e-6
COMPARED = ("batch", "instance", "group:4", "layer", "none"), (8, 64)  # by `make compare`


def alone(network: str, batch_size: int, arm: str, onednn: bool) -> Callable[[], float]:
    """Seconds per step of the plain loop."""
    task, trial = resolve("digits", model=network), Trial(arm, batch_size, RATE, 0, onednn=onednn)
    batches = Setting().batches(task.parts(0).train, batch_size, shuffle=0)
    loop, model = Loop(task, Setting(), batches, STEPS / len(batches)), build(task, arm, 0)

    def run() -> float:
        with environment(trial):
            return _seconds(lambda: loop.fit(model, RATE)) / loop.steps

    return run


def stacked(network: str, batch_size: int, arm: str, members: int, layout: bool) -> Callable[[], float]:
    """Seconds per step and member of a stack."""
    task = resolve("digits", model=network)
    length = STEPS / (len(task.parts(0).train) // batch_size) / task.epochs
    trials = [Trial(arm, batch_size, RATE, seed, length, channels_last=layout) for seed in range(members)]
    stack = stacked_train.Stack(task, trials, Setting())

    def run() -> float:
        with environment(trials[0]):
            return _seconds(stack.fit) / stack.steps / members

    return run


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def whole_trials() -> None:
    """Prints a line for each cell of the default comparison, and one for each batch size."""
    task, setting = resolve("digits"), Setting()
    both = 0.0, 0.0
    train(task, Trial("batch", 8, 0.05, 0, 0.1), setting)  # imports, and reading the data
    for batch_size in COMPARED[1]:
        sums = 0.0, 0.0
        for arm in COMPARED[0]:
            trials = [Trial(arm, batch_size, 0.05, seed, stack=16) for seed in range(8)]
            stack = _seconds(lambda trials=trials: list(stacked_train.train_stack(task, trials, setting))) / len(trials)
            ways = (replace(trials[0], onednn=onednn, stack=1) for onednn in (True, False))
            single = min(_seconds(lambda trial=trial: train(task, trial, setting)) for trial in ways)
            print(
                f"batch size {batch_size:3} {arm:9} alone {single:.3f} s, stacked {stack:.3f} s: {single / stack:.1f}"
            )
            sums = sums[0] + single, sums[1] + stack
        print(f"batch size {batch_size:3} all arms: {sums[0] / sums[1]:.2f} times", flush=True)
        both = both[0] + sums[0], both[1] + sums[1]
    print(f"both batch sizes: {both[0] / both[1]:.2f} times")


def serve(peer: str, members: int) -> None:
    """A peer: for the number of a cell on standard input one measurement on standard output."""
    torch.set_num_threads(1)
    if peer == "vmap":
        stacked_train.make_losses = lambda members, loss, sample, *rest, **more: by_vmap(members, loss, sample)
    made: dict[int, Callable[[], float]] = {}
    for line in sys.stdin:
        cell = int(line)
        if cell not in made:
            network, batch_size, arm = CELLS[cell]
            if peer.startswith("alone"):
                made[cell] = alone(network, batch_size, arm, peer == "alone")
            else:
                layout = peer == "channels last" and network != "mlp"
                made[cell] = stacked(network, batch_size, arm, members, layout)
            made[cell]()
        print(json.dumps(made[cell]()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--network", choices=("cnn", "mlp", "resnet"), help="only this one")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--trials", action="store_true", help="whole trials of the default comparison")
    options = parser.parse_args()
    if options.trials:
        torch.set_num_threads(1)
        whole_trials()
        return
    if options.peer:
        serve(options.peer, options.members)
        return
    processes = {peer: start(peer, options.members) for peer in PEERS}
    print(f"torch {torch.__version__}, one thread, {options.members} members, ms per step and network")
    print(f"{'network':9}{'batch':>6} {'norm':9}" + "".join(f"{peer:>18}" for peer in PEERS) + f"{'times':>8}")
    cells = [cell for cell, what in enumerate(CELLS) if options.network in (None, what[0])]
    times: dict[tuple[int, str], list[float]] = {}
    for _, cell, peer in itertools.product(range(options.rounds), cells, PEERS):
        times.setdefault((cell, peer), []).append(1e3 * ask(processes[peer], cell))
    for cell in cells:
        network, batch_size, arm = CELLS[cell]
        found = [statistics.quantiles(times[cell, peer], n=4)[0] for peer in PEERS]
        columns = "".join(f"{value:18.3f}" for value in found)
        print(f"{network:9}{batch_size:6} {arm:9}{columns}{min(found[:2]) / min(found[2:4]):8.1f}")
    for process in processes.values():
        process.communicate()


def start(peer: str, members: int) -> "subprocess.Popen[str]":
    command = [sys.executable, __file__, "--peer", peer, "--members", str(members)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: "subprocess.Popen[str]", cell: int) -> float:
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{cell}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


if __name__ == "__main__":
    main()
