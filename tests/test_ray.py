"""The Ray engine: the results of the local one, on machines that may go away."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from normwise.errors import UsageError
from normwise.experiment.ray_engine import RayEngine
from normwise.experiment.trial import Result, Trial

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
TRIALS = [Trial("batch", 8, 0.1, seed) for seed in range(6)]


def key(trial: Trial) -> str:
    return trial.key("task")


def engine(job: Any, folder: Path, **options: Any) -> RayEngine:
    return RayEngine(job, folder, **{"workers": 2, "key": key, "log": folder / "log.txt", **options})


def run(engine: RayEngine, trials: list[Trial]) -> list[Result]:
    for trial in trials:
        engine.submit(trial)
    return list(iter(engine.next, None))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines, simulated on this one, and this process connected to them."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    machines.add_node(num_cpus=1)
    ray.init(address=machines.address, log_to_driver=False, logging_level="ERROR")
    yield machines
    ray.shutdown()
    machines.shutdown()


def doubled(trial: Trial) -> Result:
    print("a word to the log")
    node = os.environ.get("RAY_NODE_ID", "")
    time.sleep(0.2)
    return Result(trial, measures={"judge": 2.0 * trial.seed, "pid": os.getpid(), "node": float(len(node))})


def left_behind() -> set[Path]:
    return {*Path(tempfile.gettempdir()).glob("normwise-*/trials")}


def test_every_trial_comes_back_once_with_its_file_and_its_words(cluster: Any, tmp_path: Path) -> None:
    before = left_behind()
    with engine(doubled, tmp_path) as on_ray:
        results = run(on_ray, TRIALS)
    assert sorted(result.trial for result in results) == TRIALS
    assert all(result.measures["judge"] == 2.0 * result.trial.seed for result in results)
    assert len({result.measures["pid"] for result in results}) == 2
    files = {path.stem: Result.from_json(path.read_text()) for path in (tmp_path / "trials").iterdir()}
    assert files == {key(result.trial): result for result in results}
    assert (tmp_path / "log.txt").read_text().count("a word to the log") == len(TRIALS)
    assert left_behind() <= before  # what the workers keep lies with Ray's logs


def test_trials_submitted_together_are_trained_as_one(cluster: Any, tmp_path: Path) -> None:
    with engine(Stacking(), tmp_path) as on_ray:
        on_ray.submit(*TRIALS[:4])
        results = list(iter(on_ray.next, None))
    assert [result.measures["together"] for result in results] == [4.0] * 4


class Stacking:
    """A job that says how many trials it was given at once."""

    def __call__(self, trial: Trial) -> Result:
        return Result(trial, measures={"together": 1.0})

    def stack(self, trials: list[Trial]) -> Iterator[Result]:
        return (Result(trial, measures={"together": float(len(trials))}) for trial in trials)


class Returning(Stacking):
    """Its first attempt is killed, after it has left something to go on from."""

    def resume_stack(self, trials: list[Trial], path: Path) -> Iterator[Result]:
        if not path.exists():
            path.write_text("half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        return (Result(trial, measures={"together": float(len(trials))}) for trial in trials)


def test_a_killed_stack_goes_on_from_its_checkpoint(cluster: Any, tmp_path: Path) -> None:
    with engine(Returning(), tmp_path, workers=1) as on_ray:
        on_ray.submit(*TRIALS[:3])
        results = list(iter(on_ray.next, None))
    assert [(result.status, result.measures) for result in results] == [("ok", {"together": 3.0})] * 3


def dies_at_three(trial: Trial) -> Result:
    if trial.seed == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return Result(trial)


def test_a_trial_that_kills_its_process_fails_alone(cluster: Any, tmp_path: Path) -> None:
    with engine(dies_at_three, tmp_path) as on_ray:
        results = {result.trial.seed: result for result in run(on_ray, TRIALS)}
    assert results.pop(3).reason == "worker killed by SIGKILL (2 attempts)"
    assert len(results) == 5
    assert not any(result.failed for result in results.values())


def sleeps_long(trial: Trial) -> Result:
    time.sleep(60 if trial.seed == 0 else 0)
    return Result(trial)


def test_a_trial_over_its_time_fails_with_the_reason(cluster: Any, tmp_path: Path) -> None:
    with engine(sleeps_long, tmp_path, seconds_per_trial=4.0) as on_ray:
        results = {result.trial.seed: result for result in run(on_ray, TRIALS[:2])}
    assert results[0].reason == "over the limit of 4 seconds per trial (2 attempts)"
    assert not results[1].failed


def rank_of(trial: Trial) -> Result:
    return Result(trial, measures={name: float(os.environ[name]) for name in ("RANK", "WORLD_SIZE")})


def test_a_trial_on_several_processes_waits_for_a_machine_that_has_room(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with engine(rank_of, tmp_path, processes=2) as on_ray:
        on_ray.submit(TRIALS[0])
        assert on_ray.next(timeout=2.0) is None
        larger = cluster.add_node(num_cpus=2)
        result = on_ray.next(timeout=60)
        cluster.remove_node(larger)
    assert result == Result(TRIALS[0], measures={"RANK": 0.0, "WORLD_SIZE": 2.0})
    said = "a trial needs a machine with 2 CPU, and the Ray cluster has none; waiting for one"
    assert said in capsys.readouterr().err


def test_what_a_lost_machine_had_is_run_elsewhere(cluster: Any, tmp_path: Path) -> None:
    third = cluster.add_node(num_cpus=1)
    places = tmp_path / "begun"
    places.mkdir()

    def slow(trial: Trial) -> Result:
        (places / f"{trial.seed}-{os.getpid()}").touch()
        time.sleep(2.0)
        return Result(trial)

    with engine(slow, tmp_path, workers=3) as on_ray:
        for trial in TRIALS[:3]:
            on_ray.submit(trial)
        while len(list(places.iterdir())) < 3:
            time.sleep(0.05)
        cluster.remove_node(third)
        results = list(iter(on_ray.next, None))
    assert sorted(result.trial for result in results) == TRIALS[:3]
    assert not any(result.failed for result in results)
    assert len(list(places.iterdir())) == 4


def test_a_machine_lost_in_a_comparison_changes_nothing(cluster: Any, tmp_path: Path) -> None:
    import small_task  # here, as the trials of other tests import this module within their limit of time

    import normwise as nw

    class Small:
        model, data = staticmethod(small_task.model), staticmethod(small_task.data)
        epochs, delta = 1, 0.01

    here, there = tmp_path / "here", tmp_path / "there"
    there.mkdir()
    options: dict[str, Any] = {"budget": "60trials", "stack": "off"}
    expected = nw.compare(Small(), ["batch", "none"], [16], workers=2, out=here, **options).content
    shutil.copy(here / "config.json", there)
    third = cluster.add_node(num_cpus=1)

    def remove() -> None:
        while len(list((there / "trials").glob("*.json"))) < 10:
            time.sleep(0.02)
        cluster.remove_node(third)

    lost = threading.Thread(target=remove)
    lost.start()
    found = nw.compare(Small(), ["batch", "none"], [16], workers=3, engine="ray", out=there, **options).content
    lost.join()
    assert found["verdict"] == expected["verdict"]
    rows = [
        sorted((row["key"], row["status"], row["measures"].get("judge")) for row in content["results"])
        for content in (found, expected)
    ]
    # the calibration ran before the plan was copied
    assert rows[0] == [row for row in rows[1] if row[0] in {key for key, *_ in rows[0]}]
    assert {row["key"] for row in expected["results"] if row["stage"] != "calibrate"} <= {key for key, *_ in rows[0]}


def test_a_ray_worker_lost_again_and_again_fails_the_trial(cluster: Any, tmp_path: Path) -> None:
    def ends_its_ray_worker(trial: Trial) -> Result:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
        return Result(trial)

    with engine(ends_its_ray_worker, tmp_path) as on_ray:
        (result,) = run(on_ray, TRIALS[:1])
    assert result.status == "failed"
    assert result.reason.startswith("the Ray worker or its machine was lost 3 times (")


def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(UsageError, match="--ray-address must be that of a running Ray cluster, got nowhere:1"):
        engine(doubled, tmp_path, address="nowhere:1")


def test_the_same_plan_decides_the_same_on_ray(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("local", "ray")}
    command = [sys.executable, "-m", "normwise", "compare", "--json", "--out"]
    small = "--model small_task.py:model --data small_task.py:data --epochs 1 --budget 110trials --batch-size 16"
    arms = "--norm batch --norm layer"

    def run(*words: str) -> dict[str, Any]:
        done = subprocess.run([*command, *words], cwd=Path(__file__).parent, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        return json.loads(done.stdout)

    here = run(str(folders["local"]), *small.split(), *arms.split())
    folders["ray"].mkdir()
    shutil.copy(folders["local"] / "config.json", folders["ray"])
    there = run(str(folders["ray"]), "--engine", "ray")
    assert there["config"]["engine"] == "ray"
    assert there["verdict"] == here["verdict"]
    judged = [
        {row["key"]: row["measures"].get("judge") for row in content["results"] if row["stage"] != "calibrate"}
        for content in (here, there)
    ]
    assert judged[0] == judged[1]
    assert len((folders["ray"] / "journal.log").read_text()) > 1000
