"""What norms cost: times as multiples of copying the activation, in a process of their own, and passes counted."""

import json
import os
import subprocess
import sys
from functools import lru_cache

from normwise.claims.claim import Experiment, Measures, Run, cell

NORMS, SHAPES = ("none", "batch", "instance", "group:8", "layer"), ("wide", "deep")
MODULE = "normwise.claims.experiments.timing"
KEEP = str(1 << 30)
# The allocator keeps what is freed: else each large result is paid for in page faults, or not, by luck.
SURROUNDINGS = {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": KEEP, "MALLOC_MMAP_THRESHOLD_": KEEP}


def measure(run: Run) -> Measures:
    """The measures of `timing` for a norm and a shape; all of a seed are taken by one process."""
    return all_of(run.seed)[f"{run.settings['norm']} {run.settings['shape']}"]


@lru_cache(maxsize=4)
def all_of(seed: int) -> dict[str, Measures]:
    """Starts the process and waits for its numbers."""
    wanted = [f"{norm} {shape}" for shape in SHAPES for norm in NORMS]
    command = [sys.executable, "-P", "-m", MODULE, str(seed), *wanted]
    done = subprocess.run(command, env={**os.environ, **SURROUNDINGS}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the timing process failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout)


COSTS = Experiment(
    "costs",
    measure,
    tuple(cell(norm=norm, shape=shape) for shape in SHAPES for norm in NORMS),
    seconds=0.75,
    seeds=10,
    exact=True,
)
