"""What the training loop costs a step beyond a bare PyTorch loop that indexes the same in-memory tensors.

    python benchmarks/loop.py [--rounds 15]

An almost empty model (one linear layer of 4 weights), batch size 8, SGD with momentum, one-cycle. Each
peer runs in a process of its own; rounds alternate; the lower quartile of the microseconds a step and
the difference are printed. The number to reach: at most 40 us a step.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
from torch import nn

STEPS, BATCH, SAMPLES = 3000, 8, 998


def tensors():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SAMPLES, 2, generator=generator), torch.randint(0, 2, (SAMPLES,), generator=generator)


def bare() -> float:
    """The loop a researcher writes by hand."""
    x, y = tensors()
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=STEPS + 1)
    loss_of = nn.CrossEntropyLoss()
    start, step = time.perf_counter(), 0
    while step < STEPS:
        order = torch.randperm(SAMPLES)
        for i in range(0, SAMPLES - BATCH + 1, BATCH):
            index = order[i : i + BATCH]
            optimizer.zero_grad()
            loss = loss_of(model(x[index]), y[index])
            loss.backward()
            optimizer.step()
            scheduler.step()
            step += 1
            if step == STEPS:
                break
    return (time.perf_counter() - start) / STEPS


def ours() -> float:
    """The same by normwise's loop, with its curve and divergence check."""
    from torch.utils.data import TensorDataset

    from normwise.experiment.resolve import resolve
    from normwise.experiment.setting import Setting
    from normwise.experiment.train import Loop

    class Empty:
        def model(self):
            return nn.Linear(2, 2)

        def data(self):
            return TensorDataset(*tensors())

    task, setting = resolve(Empty()), Setting()
    batches = setting.batches(task.parts(0).train, BATCH, shuffle=0, collate=task.collate)
    loop = Loop(task, setting, batches, STEPS / len(batches))
    model = task.model()
    start = time.perf_counter()
    fit = loop.fit(model, 0.1)
    return (time.perf_counter() - start) / len(fit.losses)


def measure(name: str) -> float:
    """One round in a fresh process, after a round to warm up."""
    out = subprocess.run([sys.executable, __file__, "--peer", name], capture_output=True, text=True, check=True)
    return json.loads(out.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peer", choices=["bare", "ours"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peer:
        run = {"bare": bare, "ours": ours}[options.peer]
        run()
        print(json.dumps(run()))
        return
    times = {"bare": [], "ours": []}
    for _ in range(options.rounds):
        for name in times:
            times[name].append(1e6 * measure(name))
    quartiles = {name: statistics.quantiles(values, n=4)[0] for name, values in times.items()}
    print(f"torch {torch.__version__}, one thread, {options.rounds} rounds, lower quartile, us a step")
    for name, value in quartiles.items():
        print(f"{name:6}{value:8.1f}")
    print(f"beyond the bare loop: {quartiles['ours'] - quartiles['bare']:+.1f} us a step (to reach: at most 40)")


if __name__ == "__main__":
    main()
