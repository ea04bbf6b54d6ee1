"""The ledger keeps what it is told once, refuses what is not its own, and survives half a line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from normwise.errors import UsageError
from normwise.experiment.ledger import Ledger, Lock
from normwise.experiment.process import SOURCE
from normwise.experiment.storage import record
from normwise.experiment.trial import Result, Trial

FINGERPRINT = {"task": "digits", "torch": "2.13.0"}
RESULTS = {
    f"key{seed}": Result(
        Trial("group:8", 8, 0.1, seed),
        measures={"judge": 0.25 * seed, "train": 1 / 3},
        curve=((0.5, 2.1, None), (1.0, 1.7, 0.5)),
        seconds=1.5,
    )
    for seed in range(3)
}
DIVERGED = Result(Trial("none", 8, 10.0, 0), "diverged", "the loss is not finite", {"judge": 0.1})
FAILED = Result(Trial("none", 8, 10.0, 1), "failed", "worker killed by SIGKILL (2 attempts)")
CALIBRATED = Result(Trial("none", 8, 0.0, -1, kind="calibrate"), measures={"step": 0.002})


def fill(folder: Path, url: str | None = None) -> None:
    with Ledger.open(folder, FINGERPRINT, url) as ledger:
        for key, result in RESULTS.items():
            ledger.add(key, result)


@pytest.fixture(params=["journal", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return None if request.param == "journal" else f"sqlite:///{tmp_path}/team.db"


def test_what_was_added_is_there_after_reopening(tmp_path: Path, url: str | None) -> None:
    everything = {**RESULTS, "diverged": DIVERGED, "failed": FAILED, "calibrated": CALIBRATED}
    with Ledger.open(tmp_path, FINGERPRINT, url) as ledger:
        for key, result in everything.items():
            ledger.add(key, result)
        assert ledger.results == everything
    with Ledger.open(tmp_path, FINGERPRINT, url) as ledger:
        assert ledger.results == everything
        assert ledger.warnings == []


def test_a_key_is_added_once(tmp_path: Path, url: str | None) -> None:
    fill(tmp_path, url)
    fill(tmp_path, url)
    with Ledger.open(tmp_path, FINGERPRINT, url) as ledger:
        ledger.add("key0", FAILED)
        assert ledger.results == RESULTS
    name = tmp_path.name if url else "normwise"
    storage = url or JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    assert len(optuna.load_study(study_name=name, storage=storage).trials) == len(RESULTS)


def test_of_two_drivers_on_one_database_the_first_result_counts(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/team.db"
    with Ledger.open(tmp_path, FINGERPRINT, url) as one, Ledger.open(tmp_path, FINGERPRINT, url) as other:
        one.add("key", RESULTS["key0"])
        other.add("key", RESULTS["key1"])
    with Ledger.open(tmp_path, FINGERPRINT, url) as ledger:
        assert ledger.results == {"key": RESULTS["key0"]}


def test_control_c_while_writing_neither_loses_nor_doubles(
    tmp_path: Path, url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_trial = optuna.Study.add_trial

    def interrupted(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        add_trial(study, trial)

    with Ledger.open(tmp_path, FINGERPRINT, url) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(optuna.Study, "add_trial", interrupted)
            with pytest.raises(KeyboardInterrupt):
                ledger.add("key0", RESULTS["key0"])
        ledger.add("key0", DIVERGED)
    with Ledger.open(tmp_path, FINGERPRINT, url) as ledger:
        assert ledger.results == {"key0": RESULTS["key0"]}


def test_plans_keep_their_order(tmp_path: Path, url: str | None) -> None:
    plans = [{"number": number, "arms": ["batch"]} for number in range(12)]
    with Ledger.open(tmp_path, FINGERPRINT, url) as ledger:
        for plan in plans:
            ledger.add_plan(plan)
    with Ledger.open(tmp_path, FINGERPRINT, url) as ledger:
        assert ledger.plans == plans


def test_optuna_sees_parameters_value_and_state() -> None:
    states = {"k": "COMPLETE", "d": "COMPLETE", "f": "FAIL", "c": "PRUNED"}
    results = {"k": RESULTS["key1"], "d": DIVERGED, "f": FAILED, "c": CALIBRATED}
    trials = {key: record(key, result) for key, result in results.items()}
    assert {key: trial.state.name for key, trial in trials.items()} == states
    assert [trial.value for trial in trials.values()] == [0.25, 0.1, None, None]
    assert trials["k"].params == {"learning_rate": 0.1, "batch_size": 8, "seed": 1, "length": 1.0}
    assert trials["k"].user_attrs["arm"] == "group:8"
    assert trials["k"].duration is not None
    assert trials["k"].duration.total_seconds() == 1.5


def test_a_judge_score_of_a_failed_trial_is_no_value() -> None:
    assert record("key", Result(FAILED.trial, "failed", measures={"judge": 0.5})).value is None


@pytest.mark.parametrize(("higher_is_better", "direction"), [(True, "MAXIMIZE"), (False, "MINIMIZE")])
def test_optuna_knows_which_way_is_better(tmp_path: Path, higher_is_better: bool, direction: str) -> None:
    url = f"sqlite:///{tmp_path}/team.db"
    Ledger.open(tmp_path, FINGERPRINT, url, higher_is_better=higher_is_better).close()
    assert optuna.load_study(study_name=tmp_path.name, storage=url).direction.name == direction


def test_optuna_keeps_silent_and_its_verbosity(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    fill(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == before


def test_another_experiment_is_refused_by_what_changed(tmp_path: Path, url: str | None) -> None:
    fill(tmp_path, url)
    other = {"task": "digits", "torch": "2.14.0", "model": "x" * 50}
    expected = (
        f"{tmp_path} holds another experiment: model was absent and is {'x' * 37}...; "
        "torch was 2.13.0 and is 2.14.0; take another --out, or undo the change to continue this one"
    )
    with pytest.raises(UsageError, match=f"^{re.escape(expected)}$"):
        Ledger.open(tmp_path, other, url)
    with Ledger.open(tmp_path, FINGERPRINT, url) as ledger:
        assert ledger.results == RESULTS


def test_a_ledger_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    monkeypatch.setattr("normwise.experiment.ledger.SCHEMA", 2)
    with pytest.raises(UsageError, match="a ledger of schema 1, this version of normwise reads 2; use the version"):
        Ledger.open(tmp_path, FINGERPRINT)


def test_a_driver_killed_while_it_began_the_ledger_can_begin_again(tmp_path: Path) -> None:
    fill(tmp_path)
    journal = tmp_path / "journal.log"
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
    fill(tmp_path)
    with Ledger.open(tmp_path, FINGERPRINT) as ledger:
        assert ledger.results == RESULTS


@pytest.mark.parametrize("cut", [1, 2, 100])
def test_a_journal_that_ends_in_half_a_line_opens(tmp_path: Path, cut: int) -> None:
    fill(tmp_path)
    journal = tmp_path / "journal.log"
    journal.write_bytes(journal.read_bytes()[:-cut])
    with Ledger.open(tmp_path, FINGERPRINT) as ledger:
        assert list(ledger.results) == ["key0", "key1"]
        assert [f"{journal} ended in the middle of a line" in line for line in ledger.warnings] == [True]
        ledger.add("key2", RESULTS["key2"])
    with Ledger.open(tmp_path, FINGERPRINT) as ledger:
        assert (ledger.results, ledger.warnings) == (RESULTS, [])


def test_a_damaged_journal_is_said_in_a_sentence(tmp_path: Path) -> None:
    fill(tmp_path)
    journal = tmp_path / "journal.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:2], b"rubbish\n", *lines[2:]]))
    with pytest.raises(UsageError, match=r"journal\.log must be a journal of Optuna, but reading it failed"):
        Ledger.open(tmp_path, FINGERPRINT)


@pytest.mark.parametrize("symbolic", [True, False])
def test_the_lock_that_a_killed_driver_left_in_the_journal_costs_no_time(tmp_path: Path, symbolic: bool) -> None:
    fill(tmp_path)
    lock = tmp_path / "journal.log.lock"
    if symbolic:
        lock.symlink_to(tmp_path / "journal.log")
    else:
        lock.touch()
    (tmp_path / "journal.log.lock0123.rename").touch()
    begin = time.monotonic()
    with Ledger.open(tmp_path, FINGERPRINT) as ledger:
        ledger.add("new", DIVERGED)
    assert time.monotonic() - begin < 5
    assert list(tmp_path.glob("journal.log*")) == [tmp_path / "journal.log"]


def test_a_database_that_cannot_be_opened_is_bad_input_and_hides_the_password(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must be the URL of a database, .*, got nonsense \("):
        Ledger.open(tmp_path, FINGERPRINT, "nonsense")
    with pytest.raises(UsageError, match=r"got nonsense://me:\.\.\.@host/db \(") as caught:
        Ledger.open(tmp_path, FINGERPRINT, "nonsense://me:secret@host/db")
    assert "secret" not in str(caught.value)


def hand_over(folder: Path, results: dict[str, Result]) -> Path:
    trials = folder / "trials"
    trials.mkdir()
    for key, result in results.items():
        (trials / f"{key}.json").write_text(result.to_json())
    return trials


def test_ingest_adds_what_no_driver_recorded(tmp_path: Path) -> None:
    trials = hand_over(tmp_path, RESULTS)
    with Ledger.open(tmp_path, FINGERPRINT) as ledger:
        ledger.add("key1", RESULTS["key1"])
        assert [ledger.ingest(trials), ledger.ingest(trials)] == [2, 0]
        assert (ledger.results, ledger.warnings) == (RESULTS, [])
    assert list(trials.iterdir()) == []


def test_ingest_of_no_folder_is_nothing(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, FINGERPRINT) as ledger:
        assert ledger.ingest(tmp_path / "trials") == 0


def test_ingest_skips_what_it_cannot_read_or_does_not_know(tmp_path: Path) -> None:
    trial = RESULTS["key0"].trial
    trials = hand_over(tmp_path, {"stranger": DIVERGED, trial.key("task"): RESULTS["key0"]})
    (trials / "empty.json").touch()
    (trials / "list.json").write_text("[1]")
    (trials / "other.json").write_text(json.dumps({"a": 1}))
    (trials / ".half.json.tmp").write_text("{")
    with Ledger.open(tmp_path, FINGERPRINT) as ledger:
        assert ledger.ingest(trials, key=lambda trial: trial.key("task")) == 1
        assert ledger.results == {trial.key("task"): RESULTS["key0"]}
        skipped = [re.sub(rf"{trials}/(\S+) was skipped: .*", r"\1", line) for line in ledger.warnings]
        assert skipped == ["empty.json", "list.json", "other.json", "stranger.json"]
        assert ledger.warnings[-1].endswith("it belongs to another experiment")
    assert (trials / "stranger.json").exists()


HOLD = """
import sys
from pathlib import Path
from normwise.experiment.ledger import Lock
with Lock(Path(sys.argv[1])):
    print(flush=True)
    input()
"""


def test_a_second_driver_is_told_who_the_first_is(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": SOURCE}
    ) as first:
        assert first.stdout
        first.stdout.readline()
        message = f"{tmp_path} is in use by the normwise process {first.pid}; let it end, or take another --out"
        with pytest.raises(UsageError, match=f"^{re.escape(message)}$"), Lock(tmp_path):
            pass
        first.kill()
        first.wait()
        with Lock(tmp_path):
            pass


def test_a_lock_can_be_taken_again_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Lock(tmp_path):
        raise KeyboardInterrupt
    with Lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_to_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match=r"file must be a folder that can be written to \("),
        Lock(tmp_path / "file"),
    ):
        pass


def test_ten_thousand_trials_open_in_five_seconds(tmp_path: Path) -> None:
    measures = {f"measure_number_{number}": number / 7 for number in range(15)}
    curve = tuple((epoch / 1.0, 1 / (epoch + 3), epoch / 13) for epoch in range(12))
    with Ledger.open(tmp_path, FINGERPRINT) as ledger:
        ledger.add("template", Result(RESULTS["key0"].trial, measures=measures, curve=curve))
    journal = tmp_path / "journal.log"
    last = journal.read_text().splitlines(keepends=True)[-1]
    with journal.open("a") as file:
        file.writelines(last.replace("template", f"key{number}") for number in range(10_000))
    begin = time.process_time()  # other load on the machine does not count
    with Ledger.open(tmp_path, FINGERPRINT) as ledger:
        seconds = time.process_time() - begin
        assert len(ledger.results) == 10_001
    assert seconds < 5, f"{seconds:.1f} s"
