"""What does the Ray engine cost? Trials that sleep one second on a simulated cluster, and trials that do nothing.

    python benchmarks/cluster.py [--trials-per-worker 8] [--empty 1000]

The machines are simulated on this one (`ray.cluster_utils`): what is measured is Ray and the driver, not a network.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from normwise.experiment.ray_engine import RayEngine
from normwise.experiment.trial import Result, Trial


def sleep(trial: Trial) -> Result:
    time.sleep(1.0)
    return Result(trial)


def nothing(trial: Trial) -> Result:
    return Result(trial)


def seconds(job, trials: int, workers: int) -> float:
    """Wall time of some trials after one warming trial on every worker."""
    with tempfile.TemporaryDirectory() as folder:
        engine = RayEngine(
            job, Path(folder), workers=workers, key=lambda trial: trial.key(""), log=Path(folder) / "log.txt"
        )
        with engine:
            for seed in range(10_000, 10_000 + 4 * workers):  # several each: Ray spreads them as it likes
                engine.submit(Trial("batch", 8, 0.1, seed))
            list(iter(engine.next, None))
            begin = time.perf_counter()
            for seed in range(trials):
                engine.submit(Trial("batch", 8, 0.1, seed))
            assert len(list(iter(engine.next, None))) == trials
            return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials-per-worker", type=int, default=8)
    parser.add_argument("--empty", type=int, default=1000)
    options = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    for _ in range(3):
        machines.add_node(num_cpus=4)
    ray.init(address=machines.address, log_to_driver=False, logging_level="ERROR")
    print(f"Ray {ray.__version__}, 4 simulated machines of 4 workers on {os.cpu_count()} cores")
    print("| workers | trials of 1 s | seconds | ideal | share of ideal |\n|---|---|---|---|---|")
    for workers in (1, 2, 4, 8, 16):
        ideal = options.trials_per_worker
        taken = seconds(sleep, ideal * workers, workers)
        print(f"| {workers} | {ideal * workers} | {taken:.2f} | {ideal} | {ideal / taken:.1%} |", flush=True)
    taken = seconds(nothing, options.empty, 2)
    print(f"\n{options.empty} empty trials on 2 workers: {1000 * taken / options.empty:.1f} ms a trial")
    ray.shutdown()
    machines.shutdown()


if __name__ == "__main__":
    main()
