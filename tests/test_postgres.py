"""The ledger in a real PostgreSQL: shared, claimed by one driver, patient while the server is away."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from postgres import Server

from normwise.errors import UsageError
from normwise.experiment import database
from normwise.experiment.database import with_driver
from normwise.experiment.ledger import Ledger
from normwise.experiment.trial import Result, Trial

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
FINGERPRINT = {"task": "digits"}
ABSENCE = float(os.environ.get("NORMWISE_TEST_ABSENCE", "3"))  # seconds for which the server is away


def result(seed: int) -> Result:
    return Result(Trial("batch", 8, 0.1, seed), measures={"judge": 0.5 + seed / 100})


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


def trials_seen(server: Server, folder: Path) -> int:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(with_driver(server.url))
    found = len(optuna.load_study(study_name=folder.name, storage=storage).trials)
    storage.remove_session()
    storage.engine.dispose()
    return found


def test_what_was_added_is_there_for_another_machine(server: Server, tmp_path: Path) -> None:
    here, there = tmp_path / "here" / "run", tmp_path / "there" / "run"
    here.mkdir(parents=True)
    there.mkdir(parents=True)
    with Ledger.open(here, FINGERPRINT, server.url) as ledger:
        ledger.add("a", result(0))
        ledger.add_plan({"looks": [8]})
    with Ledger.open(there, FINGERPRINT, server.url) as ledger:
        assert ledger.results == {"a": result(0)}
        assert ledger.plans == [{"looks": [8]}]


def test_two_may_look_and_one_may_drive(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    with Ledger.open(folder, FINGERPRINT, server.url) as ledger:
        ledger.add("a", result(0))
        assert trials_seen(server, folder) == 1
        with pytest.raises(UsageError, match=r"the experiment shared in postgresql://.* is in use by another normwise"):
            Ledger.open(folder, FINGERPRINT, server.url)
        ledger.add("b", result(1))
    Ledger.open(folder, FINGERPRINT, server.url).close()
    assert trials_seen(server, folder) == 2


def test_the_claim_ends_with_a_killed_driver(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    script = (
        "import os, pathlib; from normwise.experiment.ledger import Ledger;"
        f"Ledger.open(pathlib.Path({str(folder)!r}), {FINGERPRINT!r}, {server.url!r}); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script])
    end = time.monotonic() + 20
    while True:
        try:
            Ledger.open(folder, FINGERPRINT, server.url).close()
            return
        except UsageError:
            assert time.monotonic() < end
            time.sleep(0.2)


def test_a_server_that_goes_away_is_waited_for(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "patient"
    with Ledger.open(folder, FINGERPRINT, server.url) as ledger:
        ledger.add("a", result(0))
        server.stop()
        back = threading.Timer(ABSENCE, server.start)
        stopped = time.monotonic()
        back.start()
        try:
            ledger.add("b", result(1))
        finally:
            back.join()
        assert ABSENCE < time.monotonic() - stopped < ABSENCE + 10
        ledger.add("c", result(2))
        with pytest.raises(UsageError, match="in use by another normwise"):
            Ledger.open(folder, FINGERPRINT, server.url)
    assert capsys.readouterr().err.count("does not answer; waiting for it") == 1
    assert trials_seen(server, folder) == 3


def test_an_answer_that_got_lost_adds_nothing_twice(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lost"
    with Ledger.open(folder, FINGERPRINT, server.url) as ledger:
        add = ledger._study.add_trial
        calls: list[str] = []

        def add_and_lose(trial: optuna.trial.FrozenTrial) -> None:
            add(trial)
            calls.append("added")
            from sqlalchemy.exc import OperationalError

            raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

        monkeypatch.setattr(ledger._study, "add_trial", add_and_lose)
        ledger.add("a", result(0))
    assert calls == ["added"]
    assert trials_seen(server, folder) == 1


def test_a_server_that_stays_away_ends_in_words(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "PATIENCE", 1.5)
    with Ledger.open(tmp_path / "away", FINGERPRINT, server.url) as ledger:
        server.stop()
        try:
            with pytest.raises(UsageError, match=r"did not answer for 1\.5 seconds; finished trials wait in the run's"):
                ledger.add("a", result(0))
        finally:
            server.start()


def test_a_second_person_continues_from_the_ledger_alone(server: Server, tmp_path: Path) -> None:
    words = "--model small_task.py:model --data small_task.py:data --epochs 1 --budget 110trials --batch-size 16"
    arms = "--norm batch --norm layer --ledger"

    def run(folder: Path) -> dict[str, Any]:
        command = [sys.executable, "-m", "normwise", "compare", "--json", *words.split(), *arms.split(), server.url]
        done = subprocess.run(
            [*command, "--out", str(folder)], cwd=Path(__file__).parent, capture_output=True, text=True
        )
        assert not done.returncode, done.stderr
        return json.loads(done.stdout)

    first = run(tmp_path / "one" / "team")
    before = trials_seen(server, tmp_path / "team")
    second = run(tmp_path / "other" / "team")
    assert trials_seen(server, tmp_path / "team") == before
    assert second["verdict"] == first["verdict"]
    assert (tmp_path / "other" / "team" / "report.html").exists()


def test_optuna_dashboard_opens_it(server: Server, tmp_path: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    with Ledger.open(tmp_path / "shown", FINGERPRINT, server.url) as ledger:
        ledger.add("a", result(0))
        storage = optuna.storages.RDBStorage(with_driver(server.url))
        heads: list[str] = []
        asked = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies", "wsgi.input": None, "wsgi.errors": sys.stderr}
        body = b"".join(dashboard.wsgi(storage)(asked, lambda status, headers, error=None: heads.append(status)))
        storage.remove_session()
        storage.engine.dispose()
    assert heads == ["200 OK"]
    assert "shown" in {study["study_name"] for study in json.loads(body)["study_summaries"]}
