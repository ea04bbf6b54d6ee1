"""Records two identical arms at every rate of the grid, so that an A/A race can be replayed with tuning of its own.

    python benchmarks/record_clones.py --out benchmarks/recorded/results.json
    python benchmarks/replay.py --run benchmarks/recorded --clones

The small CNN on digits with batch norm at batch size 64, 24 seeds at each of five rates, full length:
120 trials, a few minutes on two cores. An arm and its clone are the same network, so each is recorded
once and written under two names; in a replay each draws its own tuning seeds.
"""

import argparse
import itertools
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from normwise.experiment.content import machine, versions
from normwise.experiment.engine import LocalEngine
from normwise.experiment.job import Job
from normwise.experiment.plan import grid_around
from normwise.experiment.prepare import default_workers
from normwise.experiment.resolve import resolve
from normwise.experiment.setting import Setting
from normwise.experiment.trial import Result, Trial
from normwise.files import write_atomic

BATCH_SIZE, SEEDS = 64, 24


def record(folder: Path) -> list[Result]:
    """Runs every rate with every seed."""
    job = Job(resolve("digits"), Setting())
    trials = [
        Trial("batch", BATCH_SIZE, rate, seed)
        for seed, rate in itertools.product(range(SEEDS), grid_around(0.1, BATCH_SIZE))
    ]
    with LocalEngine(
        job, folder, workers=default_workers(), key=lambda t: t.key("clones"), log=folder / "log"
    ) as engine:
        for trial in trials:
            engine.submit(trial)
        return [result for _ in trials if (result := engine.next()) is not None]


def rows(results: list[Result]) -> list[dict[str, object]]:
    """The rows of results.json that a replay reads, once for the arm and once for its clone."""
    return [
        {
            "arm": arm,
            "batch_size": BATCH_SIZE,
            "learning_rate": result.trial.learning_rate,
            "seed": result.trial.seed,
            "length": 1.0,
            "kind": "train",
            "measures": {name: result.measures[name] for name in ("judge", "validation")},
        }
        for arm in ("batch", "batch again")
        for result in sorted(results, key=lambda r: r.trial)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        results = record(Path(folder))
    plan = {"costs": {"batch": 0.0, "batch again": 0.0}, "delta": 0.01, "looks": [8, 16, 24]}
    config = {"plan": plan, "batch_sizes": [BATCH_SIZE], "versions": versions(), "machine": machine()}
    write_atomic(options.out, json.dumps({"schema": 1, "results": rows(results), "config": config}, indent=0))


if __name__ == "__main__":
    main()
