"""What the local engine costs: its share of bare PyTorch processes, and the driver's work per trial.

    python benchmarks/engine.py [--workers 2] [--rounds 10] [--trials 8]

Rounds alternate between as many bare PyTorch processes and the engine with as many workers; both run the
same trials (a small CNN trained for 150 steps) in processes that are warm. The share is the bare
time divided by the engine's, round by round: other load on the machine hits both. The goal is 0.93.
The second table runs 1,000 trials that do nothing, with the ledger, one worker: wall time and the
driver's own processor time per trial.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from normwise.experiment.engine import LocalEngine
from normwise.experiment.ledger import Ledger
from normwise.experiment.trial import Result, Trial

STEPS = 150


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--trials", type=int, default=8, help="per worker and round")
    options.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.bare:
        serve_bare()
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), arguments.workers, arguments.rounds, arguments.trials)
        overhead(Path(folder))


def train(seed: int) -> float:
    """One trial: a small CNN on 1,000 random images of 8 x 8."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    images, labels = torch.randn(1000, 1, 8, 8), torch.randint(10, (1000,))
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3)]
    model = nn.Sequential(*layers, nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loss = torch.zeros(())
    for _ in range(STEPS):
        batch = torch.randint(1000, (32,))
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def serve_bare() -> None:
    """A bare process: trains as many trials as each line of standard input says."""
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        for seed in range(int(line)):
            train(seed)
        print("done", flush=True)


def compare(folder: Path, workers: int, rounds: int, trials: int) -> None:
    def job(trial: Trial) -> Result:
        return Result(trial, measures={"loss": train(trial.seed)})

    def key(trial: Trial) -> str:
        return trial.key("compare")

    bare = [start_bare() for _ in range(workers)]
    with LocalEngine(job, folder, workers=workers, key=key, log=folder / "log.txt") as engine:
        runs = (lambda count: run_bare(bare, count)), (lambda count: run_engine(engine, workers, count))
        for warm in runs:
            warm(2)
        report_shares([(clock(runs[0], trials), clock(runs[1], trials)) for _ in range(rounds)])
    for process in bare:
        process.communicate()


def start_bare() -> "subprocess.Popen[str]":
    # A session of its own, as a worker has: Linux shares the processor fairly among sessions.
    return subprocess.Popen(
        [sys.executable, __file__, "--bare"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        start_new_session=True,
    )


def run_bare(processes: list["subprocess.Popen[str]"], count: int) -> None:
    for process in processes:
        assert process.stdin
        process.stdin.write(f"{count}\n")
        process.stdin.flush()
    for process in processes:
        assert process.stdout
        process.stdout.readline()


def run_engine(engine: LocalEngine, workers: int, count: int) -> None:
    for number in range(count * workers):
        engine.submit(Trial("batch", 32, 0.05, number % count, length=number))
    for result in iter(engine.next, None):
        assert not result.failed, result.reason


def clock(run: Callable[[int], None], count: int) -> float:
    begin = time.perf_counter()
    run(count)
    return time.perf_counter() - begin


def report_shares(seconds: list[tuple[float, float]]) -> None:
    shares = [bare / engine for bare, engine in seconds]
    for (bare, engine), share in zip(seconds, shares, strict=True):
        print(f"bare {bare:6.2f} s   engine {engine:6.2f} s   share {share:.3f}")
    low, middle, high = statistics.quantiles(shares, n=4)
    print(f"share of bare processes: median {middle:.3f}, quartiles {low:.3f} to {high:.3f}")


def overhead(folder: Path, count: int = 1000) -> None:
    def key(trial: Trial) -> str:
        return trial.key("overhead")

    with (
        Ledger.open(folder, {"task": "nothing"}) as ledger,
        LocalEngine(lambda trial: Result(trial), folder, workers=1, key=key, log=folder / "log.txt") as engine,
    ):
        engine.submit(Trial("none", 8, 0.1, -1))
        engine.next()
        begin, used = time.perf_counter(), time.process_time()
        for seed in range(count):
            engine.submit(Trial("none", 8, 0.1, seed))
        for result in iter(engine.next, None):
            ledger.add(key(result.trial), result)
        wall, used = time.perf_counter() - begin, time.process_time() - used
    print(f"a trial that does nothing: {wall / count * 1e3:.2f} ms, of it the driver {used / count * 1e3:.2f}")


if __name__ == "__main__":
    main()
