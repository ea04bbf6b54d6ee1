"""A run of claims from end to end on small invented experiments: designs broken on purpose, resumption, the page."""

import errno
import importlib.util
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from invented_claims import claim, experiment, made, working

from normwise import cli
from normwise.claims import images, session
from normwise.claims.claim import Measures, Part, Run, gap, settings
from normwise.claims.content import claims_content
from normwise.claims.experiments import sizes
from normwise.claims.gather import Gathered
from normwise.data import Arrays
from normwise.errors import UsageError
from normwise.generators import reproducible

ROOT = Path(__file__).parent.parent

RATES = (0.01, 0.1, 1.0)


def identical(run: Run) -> Measures:
    """Two arms that are one: the same number whatever the norm."""
    return {"judge": run.seed % 7 / 7}


def shuffled(run: Run) -> Measures:
    """Labels shuffled: chance for both arms, drawn apart."""
    return {"judge": 0.1 + random.Random(f"{run.seed} {run.settings['norm']}").gauss(0, 0.005)}


def tuned(run: Run) -> Measures:
    """Best at the rate 3.2, beyond the grid; the measurement says which rate it had."""
    return {"validation": -abs(run.rate - 3.2), "judge": run.rate}


def apart(run: Run) -> Measures:
    """One arm is best at 0.1, the other at 1."""
    return {"validation": -abs(run.rate - (0.1 if run.settings["norm"] == "a" else 1.0)), "judge": run.rate}


def endless(run: Run) -> Measures:
    """The higher the rate the better, without end."""
    return {"validation": run.rate, "judge": run.rate}


def crashing(run: Run) -> Measures:
    raise RuntimeError("no such thing")


def stopping(run: Run) -> Measures:
    """Stops the driver in the middle of the run, once."""
    mark = run.folder / "stopped"
    if run.seed % 1000 == 4 and not mark.exists():
        mark.touch()
        import signal
        import time

        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(0.5)
    return {"judge": 1.0 if run.settings["norm"] == "b" else 0.0, "process": float(os.getpid())}


@pytest.fixture
def invented(monkeypatch):
    def use(**measures):
        made = {
            name: experiment(*(given if isinstance(given, tuple) else (given,))) for name, given in measures.items()
        }
        claims = {name: claim(name, one) for name, one in made.items()}
        monkeypatch.setattr(session, "EXPERIMENTS", {one.name: one for one in made.values()})
        monkeypatch.setattr(session, "CLAIMS", claims)
        monkeypatch.setattr(session, "find", claims.__getitem__)
        return claims

    return use


def verdicts(content):
    return {claim["id"]: claim["verdict"] for claim in content["claims"]}


def test_broken_designs_decide_nothing_and_a_working_one_does(invented, tmp_path):
    invented(SAME=identical, CHANCE=shuffled, WORKS=working, CRASH=crashing)
    content = session.run_claims(out=tmp_path, workers=2, budget="1m")
    assert verdicts(content) == {
        "SAME": "negligible",
        "CHANCE": "negligible",
        "WORKS": "supported",
        "CRASH": "undecided",
    }
    crash = content["claims"][3]
    assert len(crash["failures"]) == 16
    assert "no such thing" in crash["failures"][0]
    assert json.loads((tmp_path / "results.json").read_text()) == content
    assert content["config"]["folder"] == str(tmp_path)
    assert (tmp_path / "report.html").read_text().count("Title &amp; more") >= 4


def test_the_best_rate_is_looked_for_beyond_the_grid(invented, tmp_path):
    invented(TUNED=(tuned, RATES))
    found = session.run_claims(out=tmp_path, workers=1, budget="1m")["claims"][0]
    assert found["rates"] == {"norm=a": 3.2, "norm=b": 3.2}
    assert found["rates_at_an_edge"] == []


def test_a_rate_at_the_end_of_its_grid_is_named(invented, tmp_path):
    invented(ENDLESS=(endless, RATES))
    found = session.run_claims(out=tmp_path, workers=1, budget="1m")["claims"][0]
    assert found["rates"] == {"norm=a": 10.0, "norm=b": 10.0}
    assert found["rates_at_an_edge"] == ["norm=a", "norm=b"]
    said = "Best rate at the end of its grid, also after it was extended: norm=a; norm=b."
    assert said in (tmp_path / "report.html").read_text()


def test_rivals_are_also_measured_at_one_rate(invented, tmp_path):
    claims = invented(APART=(apart, RATES))
    found = session.run_claims(out=tmp_path, workers=1, budget="1m")["claims"][0]
    assert claims
    assert found["rates"] == {"norm=a": 0.1, "norm=b": 1.0}
    assert found["shared_rates"] == {"norm=a": 0.32, "norm=b": 0.32}
    assert found["parts"][0]["mean"] == pytest.approx(0.9)
    assert found["parts"][0]["one_rate"]["mean"] == pytest.approx(0)
    assert "One rate for all, where it was measured: norm=a: 0.32" in (tmp_path / "report.html").read_text()


def test_a_full_disk_is_told_as_one(invented, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    invented(WORKS=working)
    monkeypatch.setattr(session, "write_atomic", full)
    with pytest.raises(UsageError, match="needs room on its disk"):
        session.run_claims(out=tmp_path, workers=1, budget="1m")


def real(monkeypatch, seeds, **cells):
    """The measurement of `sizes`, its labels shuffled, judged as a claim of its own."""
    monkeypatch.setattr(sizes, "split", nonsense)
    contrast = gap(cells["first"], cells["second"], "judge")
    broken = Part("first", "first minus second", contrast, "sizes", 1, 0.02, "it is", "points")
    found = {}
    for seed in range(1, seeds + 1):
        with reproducible(seed):
            found[seed] = {text: sizes.measure(Run(settings(text), seed, 0.01, Path())) for text in set(cells.values())}
    one = replace(claim("X", experiment(working)), parts=(broken,))
    return claims_content([one], {"sizes": Gathered(found, {})}, 1, str)[0]["parts"][0]


def nonsense(seed, train):
    """The images with labels that have nothing to do with them."""
    parts = images.split(seed, train)
    return images.Split(*(Arrays(part.inputs[:600], torch.randint(10, (len(part),))[:600]) for part in parts))


def test_a_trained_network_on_shuffled_labels_decides_nothing(monkeypatch):
    cells = {"first": sizes.place("group:8", "mlp", 64), "second": sizes.place("batch", "mlp", 64)}
    part = real(monkeypatch, 6, **cells)
    assert abs(part["mean"]) < 0.04
    assert part["verdict"] in ("undecided", "negligible")


def test_two_arms_that_are_one_network_are_negligible(monkeypatch):
    text = sizes.place("batch", "mlp", 64)
    part = real(monkeypatch, 3, first=text, second=text)
    assert part["verdict"] == "negligible"
    assert part["values"] == [0.0] * 3


def test_an_interrupted_run_goes_on_with_what_it_has(invented, tmp_path):
    invented(STOP=stopping)
    first = session.run_claims(out=tmp_path, workers=1, budget="1m")
    assert not first["config"]["finished"]
    assert 0 < first["claims"][0]["parts"][0]["seeds"] < 8
    second = session.run_claims(out=tmp_path, workers=1, budget="1m")
    assert second["config"]["finished"]
    assert second["claims"][0]["parts"][0]["seeds"] == 8
    values = first["claims"][0]["parts"][0]["values"]
    assert second["claims"][0]["parts"][0]["values"][: len(values)] == values


def test_the_command_says_no_where_a_gate_is_contradicted(invented, tmp_path, monkeypatch, capsys):
    claims = invented(WORKS=working)
    claims["WORKS"] = claim("WORKS", experiment(working), sign=-1)
    arguments = ["normwise", "claims", "WORKS", "--budget", "1m", "--workers", "1", "--json"]
    monkeypatch.setattr("sys.argv", [*arguments, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert json.loads(capsys.readouterr().out)["claims"][0]["verdict"] == "contradicted"
    monkeypatch.setattr("sys.argv", [*arguments, "--out", str(tmp_path), "--gate", "WORKS"])
    with pytest.raises(SystemExit, match="1"):
        cli.main()


def test_a_gate_must_be_run():
    with pytest.raises(UsageError, match="--gate B4 needs that claim to be run"):
        session.gated(["B4"], ["I2"])


def test_another_seed_draws_other_numbers(invented, tmp_path):
    invented(CHANCE=shuffled)
    first, second = (
        session.run_claims(out=tmp_path / str(seed), workers=1, budget="1m", seed=seed)["claims"][0] for seed in (0, 1)
    )
    assert first["parts"][0]["values"] != second["parts"][0]["values"]
    assert "--seed 1" in second["command"]


def test_a_seed_that_lacks_a_measurement_is_left_out_and_counted():
    one = experiment(working)
    seeds = {i: {"norm=a": {"judge": 0.0}, "norm=b": {"judge": 0.5} if i else {}} for i in range(4)}
    content = claims_content([claim("X", one)], {one.name: Gathered(seeds, {})}, 1, str)
    assert (content[0]["parts"][0]["seeds"], content[0]["parts"][0]["left_out"]) == (3, 1)


def test_only_a_finished_run_of_all_claims_is_recorded(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("record_claims", ROOT / "benchmarks" / "record_claims.py")
    assert spec is not None
    assert spec.loader is not None
    record = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(record)
    monkeypatch.setattr(record, "RECORDED", tmp_path / "recorded")
    monkeypatch.setattr(record, "RATES", tmp_path / "rates.json")
    today = claim("X", experiment(working))
    monkeypatch.setattr(record, "CLAIMS", {"X": replace(today, limits="What is said today.")})
    content = {"claims": made([0.2, 0.3]), "config": {"finished": False, "rates": {"sizes": {"norm=batch": 0.1}}}}
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="not a finished run of all claims"):
        record.main(tmp_path)
    content["config"]["finished"] = True
    (tmp_path / "results.json").write_text(json.dumps(content))
    record.main(tmp_path, tmp_path)
    assert json.loads((tmp_path / "rates.json").read_text()) == {"sizes": {"norm=batch": 0.1}}
    recorded, quick = (
        json.loads((tmp_path / "recorded" / f"{name}.json").read_text()) for name in ("results", "quick")
    )
    assert quick["config"]["finished"]
    assert recorded["claims"][0]["limits"] == "What is said today."
    assert recorded["claims"][0]["parts"] == content["claims"][0]["parts"]


def test_bad_input_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="workers must be at least 1, got 0"):
        session.run_claims(["I2"], out=tmp_path / "run", workers=0)
    with pytest.raises(UsageError, match=r"names must be a list, even of one, got 'I2'; write \['I2'\]"):
        session.run("I2", out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"must be a folder that can be written to .*; take another --out"):
        session.run_claims(["I2"], out=tmp_path / "file" / "run")
    assert not (tmp_path / "run").exists()


def test_the_time_of_all_sittings_adds_up(invented, tmp_path):
    invented(CHANCE=shuffled)
    first = session.run_claims(out=tmp_path, workers=1, budget="1m")["config"]["seconds"]
    assert session.run_claims(out=tmp_path, workers=1, budget="1m")["config"]["seconds"] > first
