"""Faults in the middle of a whole comparison: the same verdict as undisturbed, or the fault's own trials failed."""

import contextlib
import errno
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import small_task
import torch
from postgres import Server
from torch import Tensor, nn

import normwise as nw
from normwise import cli
from normwise.errors import UsageError
from normwise.experiment import engines
from normwise.experiment.database import with_driver

pytestmark = pytest.mark.slow
FAULT = "NORMWISE_TEST_FAULT"  # a folder, where workers are to strike
ABSENCE = float(os.environ.get("NORMWISE_TEST_ABSENCE", "3"))  # seconds for which the database is away


class Faulty:
    """The small task; its loss strikes where a test has said so, which is no part of the experiment."""

    model, data = staticmethod(small_task.model), staticmethod(small_task.data)
    epochs, delta = 1, 0.01

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        if model.training and FAULT in os.environ:
            return loss * strike(Path(os.environ[FAULT]), model, torch.initial_seed() - 1)
        return loss


def strike(place: Path, model: nn.Module, seed: int) -> float:
    """Does what a file of the seed's number says to a network without norms; `kill` once to any."""
    with_norm = any(isinstance(module, nn.BatchNorm1d) for module in model.modules())
    order = place / str(seed)
    what = order.read_text() if order.exists() else ""
    if what == "kill":
        with contextlib.suppress(FileExistsError):
            (place / f"{seed} {with_norm}").open("x").close()
            os.kill(os.getpid(), signal.SIGKILL)
    elif what and not with_norm:
        return {"hang": hang, "eat": eat, "nan": lambda: math.nan}[what]()
    return 1.0


def hang() -> float:
    time.sleep(60)
    return 1.0


def eat() -> float:
    eaten = b"x" * 800_000_000
    time.sleep(60)
    return float(len(eaten))


def compare(out: Path, **options: Any) -> dict[str, Any]:
    options = {"budget": "60trials", "stack": "off", "workers": 2, **options}
    return nw.compare(Faulty(), ["batch", "none"], [16], out=out, **options).content


def scores(content: dict[str, Any]) -> dict[tuple[Any, ...], Any]:
    """What must be the same bit for bit, by trial; each is there once."""
    rows = [row for row in content["results"] if row["stage"] != "calibrate"]
    found = {
        (row["arm"], row["seed"], row["stage"], row["key"]): (row["status"], row["measures"], row["curve"])
        for row in rows
    }
    assert len(found) == len(rows)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("run")
    return folder, compare(folder)


@pytest.fixture
def folder(undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A run's folder with the plan of the undisturbed one, and nothing run."""
    (tmp_path / "run").mkdir()
    shutil.copy(undisturbed[0] / "config.json", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "orders").mkdir()
    monkeypatch.setenv(FAULT, str(tmp_path / "orders"))
    return tmp_path / "orders"


def test_workers_killed_in_their_trials_change_nothing(
    undisturbed: tuple[Path, dict[str, Any]], folder: Path, orders: Path
) -> None:
    for seed in (0, 3, 7):
        (orders / str(seed)).write_text("kill")
    content = compare(folder)
    assert scores(content) == scores(undisturbed[1])
    assert content["verdict"] == undisturbed[1]["verdict"]
    killed = {path.name for path in orders.iterdir() if " " in path.name}
    assert {f"{seed} {norm}" for seed in (0, 3, 7) for norm in (True, False)} <= killed
    assert (folder / "workers.log").read_text().count("worker killed by SIGKILL") == len(killed)


def test_trials_that_fail_by_themselves_fail_alone_and_the_run_completes(
    undisturbed: tuple[Path, dict[str, Any]], folder: Path, orders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "LONGEST_TRIAL", 12.0)
    monkeypatch.setattr(engines, "MEMORY_SHARE", 2 * 900 * 2**20 / psutil.virtual_memory().total)
    faults = {3: "hang", 4: "eat", 5: "nan"}
    for seed, what in faults.items():
        (orders / str(seed)).write_text(what)
    content = compare(folder)
    assert content["config"]["finished"]
    race = [row for row in content["results"] if row["arm"] == "none" and row["stage"] == "race"]
    told = {row["seed"]: (row["status"], row["reason"]) for row in race if row["seed"] in faults}
    assert told[3] == ("failed", "over the limit of 12 seconds per trial (2 attempts)")
    assert told[4] == ("failed", "over the limit of 900 MiB of memory per trial (2 attempts)")
    assert told[5][0] == "diverged"
    assert told[5][1].startswith("training loss nan at step 1 of ")
    others = {key: value for key, value in scores(content).items() if key[0] != "none" or key[1] not in faults}
    before = scores(undisturbed[1])
    assert {key: before[key] for key in others if key in before} == {
        key: value for key, value in others.items() if key in before
    }
    assert {key for key in before if key[0] == "batch" and key[2] == "race"} <= others.keys()


@pytest.mark.timeout(180)
def test_a_database_that_stops_for_a_while_changes_nothing(
    undisturbed: tuple[Path, dict[str, Any]], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        while len(list((folder / "trials").glob("*.json"))) < 10:
            time.sleep(0.02)
        server.stop()
        time.sleep(ABSENCE)
        server.start()

    with Server() as server:
        away = threading.Thread(target=interrupt)
        away.start()
        content = compare(folder, ledger=server.url)
        away.join()
        storage = optuna.storages.RDBStorage(with_driver(server.url))
        trials = optuna.load_study(study_name=folder.name, storage=storage).trials
        storage.remove_session()
        storage.engine.dispose()
    assert "does not answer; waiting for it" in capsys.readouterr().err
    assert content["config"]["seconds"] > ABSENCE
    assert scores(content) == scores(undisturbed[1])
    assert content["verdict"] == undisturbed[1]["verdict"]
    keys = [trial.user_attrs["key"] for trial in trials]
    assert sorted(keys) == sorted(row["key"] for row in content["results"])


@contextlib.contextmanager
def full_disk(name: str) -> Iterator[None]:
    """Within, no file can be completed whose name begins so: the disk is full when its data are there in part."""
    sync = os.fsync

    def fsync(handle: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{handle}")).name.lstrip(".").startswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@pytest.mark.skipif(sys.platform != "linux", reason="finds a file's name in /proc")
@pytest.mark.parametrize("name", ["report.html", "journal.log"])
def test_a_full_disk_is_told_and_the_run_continues(
    undisturbed: tuple[Path, dict[str, Any]], folder: Path, name: str
) -> None:
    if name == "report.html":  # all is run, and only the report is to be written
        shutil.copy(undisturbed[0] / "journal.log", folder)
    with full_disk(name), pytest.raises(UsageError) as told:
        compare(folder)
    assert str(told.value) == (
        f"{folder} needs room on its disk ([Errno 28] No space left on device); no finished trial is lost: "
        f"make room, and the same command with --out {folder} continues"
    )
    assert {path.name for path in folder.iterdir() if path.name.startswith(".")} <= {".lock"}
    json.loads((folder / "config.json").read_text())
    content = compare(folder)
    assert scores(content) == scores(undisturbed[1])
    assert content["verdict"] == undisturbed[1]["verdict"]
    assert (folder / "report.html").stat().st_size > 1000


def test_a_worker_on_a_full_disk_ends_the_command_in_words(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise engines_error(folder)

    monkeypatch.setattr("normwise.experiment.session.open_engine", full)
    monkeypatch.setattr(sys, "argv", ["normwise", "compare", f"{__file__}:Faulty", "--out", str(folder)])
    monkeypatch.setattr("normwise.experiment.compare._stored", lambda out: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert f"normwise: {folder} needs room on its disk (a worker stopped: " in capsys.readouterr().err


def engines_error(folder: Path) -> Exception:
    from normwise.experiment.process import WorkerError

    return WorkerError(f"a worker stopped: cannot write {folder}/trials/a.json: [Errno 28] No space left on device")
