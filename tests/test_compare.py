"""The main job from end to end, on a task that trains in milliseconds."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_task

import normwise as nw
from normwise import cli
from normwise.errors import UsageError
from normwise.experiment.compare import run_request
from normwise.experiment.request import Request

HERE = Path(__file__).parent
COMMAND = [sys.executable, "-m", "normwise", "compare", "--json"]
SMALL = [
    "--model",
    "small_task.py:model",
    "--data",
    "small_task.py:data",
    "--epochs",
    "1",
    "--budget",
    "110trials",
]
ARMS = ["--norm", "batch", "--norm", "layer", "--norm", "none", "--batch-size", "16"]
pytestmark = pytest.mark.slow


def run(*arguments, check=True, **options):
    done = subprocess.run([*COMMAND, *map(str, arguments)], cwd=HERE, capture_output=True, text=True, **options)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished run: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    done = run(*SMALL, *ARMS, "--out", folder)
    return folder, json.loads(done.stdout), done.stderr


def scores(content):
    """What must be the same bit for bit: everything measured but times."""
    timed = ("calibrate",)
    return {
        row["key"]: (row["status"], {k: v for k, v in row["measures"].items()}, row["curve"])
        for row in content["results"]
        if row["stage"] not in timed
    }


def test_a_run_leaves_what_the_docs_promise(finished):
    folder, content, said = finished
    for name in ("report.html", "results.json", "results.csv", "journal.log", "config.json"):
        assert (folder / name).stat().st_size > 0, name
    assert content == json.loads((folder / "results.json").read_text())
    assert content["schema"] == 1
    assert content["config"]["finished"]
    assert content["verdict"]["kind"] in ("winner", "tie", "safe", "undecided")
    assert content["verdict"]["statement"]
    assert "arms: batch = keep, layer, none" in said
    with (folder / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(content["results"])


def test_every_arm_left_has_eight_paired_fresh_seeds(finished):
    _, content, _ = finished
    race = [row for row in content["results"] if row["stage"] == "race"]
    seeds = {}
    for row in race:
        seeds.setdefault(row["arm"], set()).add(row["seed"])
    assert set(seeds) == {"batch", "layer", "none"}
    assert all(set(range(8)) <= own for own in seeds.values())
    tuning = {row["seed"] for row in content["results"] if row["stage"] == "rate"}
    assert not tuning & set.union(*seeds.values())


def test_arms_that_build_the_same_network_run_once(finished):
    _, content, _ = finished
    assert content["config"]["arms"][0]["aliases"] == ["keep"]
    assert not any(row["arm"] == "keep" for row in content["results"])


def test_scorecard_has_every_row_for_every_arm(finished):
    _, content, _ = finished
    card = content["scorecard"]
    rows = {row["id"]: row for row in card["rows"]}
    assert {"pools", "score", "loss", "values", "gap_statistics", "gap_train", "worst", "failures", "step",
            "inference", "size", "growth", "highest_rate", "rate"} <= set(rows)  # fmt: skip
    for row in rows.values():
        assert len(row["cells"]) == len(card["arms"])
        assert all(cell["text"] != "not measured" for cell in row["cells"]), row["id"]
    assert [cell["value"] for cell in rows["values"]["cells"]] == [16, 8, 0]


def test_same_command_again_runs_nothing_new(finished):
    folder, content, _ = finished
    before = (folder / "journal.log").stat().st_size
    again = json.loads(run("--out", folder).stdout)
    assert scores(again) == scores(content)
    assert again["verdict"] == content["verdict"]
    assert (folder / "journal.log").stat().st_size == before


def test_same_config_gives_the_same_scores_with_other_workers(finished, tmp_path):
    folder, content, _ = finished
    shutil.copy(folder / "config.json", tmp_path)
    again = json.loads(run("--out", tmp_path, "--workers", 1).stdout)
    assert scores(again) == scores(content)
    assert again["verdict"] == content["verdict"]


def test_killed_driver_loses_nothing_and_counts_nothing_twice(finished, tmp_path):
    folder, content, _ = finished
    shutil.copy(folder / "config.json", tmp_path)
    driver = subprocess.Popen(
        [*COMMAND, "--out", tmp_path], cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    journal = tmp_path / "journal.log"
    deadline = time.monotonic() + 60
    while (not journal.exists() or journal.read_text().count('"result"') < 15) and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    recorded = journal.read_text().count('"result"')
    assert 15 <= recorded < len(scores(content))
    again = json.loads(run("--out", tmp_path).stdout)
    assert scores(again) == scores(content)
    keys = [row["key"] for row in again["results"]]
    assert len(keys) == len(set(keys))
    assert journal.read_text().count('"result"') == len(keys)


def test_ctrl_c_leaves_a_report_and_a_resumable_run(finished, tmp_path):
    folder, content, _ = finished
    shutil.copy(folder / "config.json", tmp_path)
    driver = subprocess.Popen(
        [*COMMAND, "--out", tmp_path], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    journal = tmp_path / "journal.log"
    deadline = time.monotonic() + 60
    while (not journal.exists() or journal.read_text().count('"result"') < 5) and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.send_signal(signal.SIGINT)
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 130, err
    assert not json.loads(out)["config"]["finished"]
    assert "interrupted" in (tmp_path / "report.html").read_text().lower()
    assert scores(json.loads(run("--out", tmp_path).stdout)) == scores(content)


def test_more_arms_extend_a_run_and_reuse_its_trials(finished, tmp_path):
    folder, content, _ = finished
    for name in ("config.json", "journal.log"):
        shutil.copy(folder / name, tmp_path)
    grown = json.loads(run("--norm", "group:4", "--budget", "200trials", "--out", tmp_path).stdout)
    assert {arm["name"] for arm in grown["config"]["arms"]} == {"batch", "layer", "none", "group:4"}
    old = scores(content)
    assert {key: value for key, value in scores(grown).items() if key in old} == old


def test_own_training_loop(tmp_path):
    found = nw.compare(small_task.own_loop, ["batch", "none"], [16], budget="60trials", out=tmp_path, workers=2)
    assert found.verdict["kind"] in ("winner", "tie", "safe", "undecided")
    rows = {row["id"]: row for row in found.scorecard["rows"]}
    assert rows["values"]["cells"][0]["text"] == "not measured"
    found.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 1000


def test_dict_batches_and_a_score_where_less_is_better(tmp_path):
    found = nw.compare(small_task.Dicts(), ["batch", "none"], [16], budget="60trials", out=tmp_path, workers=2)
    assert all(row["status"] != "failed" for row in found.results)
    race = [row["measures"] for row in found.results if row["stage"] == "race"]
    assert all({"judge", "train"} <= measures.keys() for measures in race)
    cell = found.verdict["per_batch_size"][0]
    means = {arm["norm"]: arm["mean"] for arm in cell["arms"]}
    named = next(arm for arm in cell["arms"] if arm["norm"] == cell["norm"])
    assert cell["kind"] in ("tie", "safe", "undecided") or named["mean"] == min(means.values())
    with pytest.raises(UsageError, match="started from Python"):
        run_request(Request(), out=tmp_path)
    with pytest.raises(UsageError, match="holds another experiment"):
        nw.compare(small_task.Unscored(), ["batch", "none"], [16], delta=0.1, budget="60trials", out=tmp_path)


def test_user_code_that_prints_and_draws_from_numpy(tmp_path):
    arguments = [*SMALL, "--model", "small_task.py:noisy_model", "--batch-size", "16", "--norm", "none"]
    first = json.loads(run(*arguments, "--budget", "60trials", "--out", tmp_path / "a").stdout)
    shutil.copy(tmp_path / "a" / "config.json", (tmp_path / "b").mkdir() or tmp_path / "b")
    assert scores(json.loads(run("--out", tmp_path / "b").stdout)) == scores(first)


def test_dry_run_changes_nothing(finished):
    folder, _, _ = finished
    names = ("config.json", "results.json", "results.csv", "report.html")
    before = {name: (folder / name).read_bytes() for name in names}
    planned = json.loads(run("--out", folder, "--budget", "300trials", "--dry-run").stdout)
    assert planned["config"]["budget"] == "300trials"
    assert {name: (folder / name).read_bytes() for name in names} == before


def test_mapping_of_patterns_from_a_file(tmp_path):
    (tmp_path / "map.json").write_text('{"1": "layer", "*": "batch"}')
    arguments = [*SMALL, "--norm", f"@{tmp_path / 'map.json'}", "--batch-size", "16", "--dry-run"]
    planned = json.loads(run(*arguments).stdout)
    assert [arm["name"] for arm in planned["config"]["arms"]] == ["keep", '{"1": "layer", "*": "batch"}']


BAD = {
    "unknown norm": (["--norm", "bacth", "--norm", "none"], "did you mean batch"),
    "groups that do not divide": (["--norm", "group:3", "--norm", "none"], "1, 2, 4 or 8 would do"),
    "no norm layers": (["--model", "small_task.py:broken_model"], "no normalization layer"),
    "missing function": (["--model", "small_task.py:modle"], "did you mean 'model'"),
    "missing module": (["--model", "nowhere.py:model"], "no file 'nowhere.py'"),
    "wrong thing": (["--model", "small_task.py:data"], "must return"),
    "NaN": (["--data", "small_task.py:nan_data"], "NaN"),
    "batch larger than the data": (["--batch-size", "4000"], "training samples"),
    "batch of one": (["--batch-size", "1", "--norm", "batch", "--norm", "none"], "at least 2 values each"),
    "budget": (["--budget", "soon"], "90s, 2m or 1h"),
    "short budget": (["--budget", "10trials"], "smallest that works"),
    "precision": (["--precision", "fp8"], "fp32, bf16, fp16"),
    "delta": (["--delta", "-1"], "positive"),
    "one arm": (["--norm", "batch"], "at least two different arms"),
    "bad mapping": (["--norm", "{1: layer}"], "must be JSON"),
    "delta in points": (["--delta", "1", "--norm", "none"], "one point is 0.01"),
    "device": (["--device", "warp"], "device must be one that PyTorch has"),
    "epochs": (["--epochs", "nan"], "positive number"),
    "workers": (["--workers", "-1"], "at least 1"),
    "position norm": (["--norm", "layer-token", "--norm", "none"], "alters no layer"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_2(case, tmp_path):
    arguments, message = BAD[case]
    out = tmp_path / "run"
    done = run(*SMALL, "--batch-size", "16", *arguments, "--out", out, check=False)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("normwise: ")]) == 1
    assert not (out / "results.json").exists()


def test_instance_norm_on_small_planes_names_the_layer(tmp_path):
    class Task:
        model = staticmethod(small_task.small_planes)
        epochs = 1

        def data(self):
            inputs, targets = small_task.data().tensors
            return inputs.repeat(1, 3)[:, :9].reshape(-1, 1, 3, 3), targets

    with pytest.raises(UsageError, match=r"layer '1'.*more than 1|layer '1'.*1"):
        nw.compare(Task(), ["instance", "none"], [16], budget="60trials", out=tmp_path)


def test_a_score_of_its_own_needs_a_delta(tmp_path):
    with pytest.raises(UsageError, match="--delta"):
        nw.compare(small_task.Unscored(), ["batch", "none"], [16], budget="60trials", out=tmp_path)


@pytest.mark.parametrize(("norms", "sizes"), [("batch", [16]), ({"*": "batch"}, [16]), (["batch"], 16)])
def test_lists_are_lists_even_of_one(norms, sizes, tmp_path):
    with pytest.raises(UsageError, match=r"must be a list, even of one, got .*; write \["):
        nw.compare("digits", norms, sizes, out=tmp_path)


@pytest.mark.parametrize(
    ("command", "says"),
    [("bench", "interrupted\n"), ("compare", "interrupted\n"), ("claims", "interrupted; the same command")],
)
def test_only_what_keeps_a_ledger_promises_to_continue(
    command: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("normwise.bench.run.bench", interrupted)
    monkeypatch.setattr("normwise.experiment.compare.run_request", interrupted)
    monkeypatch.setattr("normwise.claims.session.run_claims", interrupted)
    monkeypatch.setattr(sys, "argv", ["normwise", command])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 130
    assert capsys.readouterr().err.startswith(f"normwise: {says}")


def test_unwritable_folder():
    with pytest.raises(UsageError, match="take another --out"):
        nw.compare("digits", ["batch", "none"], [16], out="/proc/nothing")


def test_help_is_fast_and_needs_no_torch():
    code = """import sys
sys.argv = ["normwise", "--help"]
from normwise.cli import main
try:
    main()
except SystemExit:
    pass
"""
    done = subprocess.run(
        [sys.executable, "-c", code + "assert 'torch' not in sys.modules"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "compare" in done.stdout
    assert os.environ.get("COLUMNS") or "swap" in done.stdout
