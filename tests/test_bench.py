"""The bench: what it measures, how its processes talk, and that it tells losses, failures and interruptions plainly."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from ctypes.util import find_library
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from normwise.bench import drive, page, peer, process, run, table
from normwise.bench.cells import Cell, choose
from normwise.bench.drive import Effort, Outcome, Peers
from normwise.bench.inputs import TOLERANCE, error, make, truth
from normwise.bench.machine import SYSTEM, find_allocator
from normwise.bench.peers import ALL, MEMORY, OURS, PEERS, Eager, Entry
from normwise.bench.process import PeerEnded, PeerProcess
from normwise.bench.summary import FASTEST, row, statement, summaries
from normwise.errors import UsageError

COMMAND = [sys.executable, "-m", "normwise", "bench", "--threads", "1"]
TINY = Cell("instance", (2, 4, 4, 4))
BRISK = Effort(rounds=2, seconds=0.002, patience=60.0)


def outcome(cell: Cell = TINY, **times: list[float]) -> Outcome:
    """What `drive` would find, with invented times of one and two rounds."""
    found = {name: {"state": "ok", "error": 0.0, "error_at_offset": 0.0} for name in times if name in ALL}
    return Outcome(cell, found, {"clone": [1.0], "copy": [0.5], **times})


def content(*outcomes: Outcome, **more: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "finished": True,
        "machine": {"processor": "P", "cores": 2, "system": "S"},
        "versions": {"torch": "2"},
        "how": {"threads": 1, "cells": len(outcomes)},
        "missing": {},
        **run._results(outcomes),
        **more,
    }


def shown(content: dict[str, Any]) -> str:
    from rich.console import Console

    console = Console(width=80)
    with console.capture() as captured:
        console.print(table.table(content), markup=False, highlight=False)
    return captured.get()


# The truth


@pytest.mark.parametrize("norm", ["instance", "group:2", "layer", "batch", "instance+residual+relu"])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("name", [OURS, "eager"])
def test_both_sides_compute_the_cell(norm: str, layout: str, name: str) -> None:
    cell = Cell(norm, (3, 4, 5, 5), layout, "float32", "forward+backward")
    inputs, side = make(cell), ALL[name].load()
    found = side.read(side.prepare(cell)(inputs)["run"]())
    assert len(found) == 5 if cell.fused else 4
    assert error(found, truth(cell, inputs)) < TOLERANCE["float32"]


def test_channels_last_inputs_lie_so() -> None:
    x = make(Cell("batch", (2, 4, 3, 3, 3), "channels-last")).x
    assert x.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_wrong_value_a_missing_one_and_nan_are_seen() -> None:
    wanted = [torch.ones(2, 3)]
    assert error([torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 3.0]])], wanted) == 2.0
    assert error([torch.ones(2, 2)], wanted) == inf
    assert error([torch.full((2, 3), torch.nan)], wanted) == inf


class Wrong(Eager):
    """Fast and wrong: it leaves the bias out."""

    def function(self, cell: Cell) -> Any:
        right = super().function(cell)
        return lambda x, weight, bias: right(x, weight, bias * 0)


def test_a_wrong_peer_is_not_timed() -> None:
    functions, answer = peer.prepare(Wrong(), TINY, check=True)
    assert answer["state"] == "wrong"
    assert answer["error"] > TOLERANCE["float32"]
    assert functions


def test_a_peer_that_is_wrong_at_a_large_mean_is_timed_and_marked() -> None:
    cell = Cell("group:2", (2, 4, 16, 16), "channels-last")
    _, answer = peer.prepare(ALL["eager"].load(), cell, check=True)
    assert answer["state"] == "wrong at a large mean"
    made = outcome(cell, normwise=[1.0], eager=[2.0])
    made.found["eager"] = answer
    assert "2.00x*" in shown(content(made))
    assert "* right at mean 0, wrong at a large mean: PyTorch eager." in shown(content(made))


def test_a_failure_is_an_answer() -> None:
    functions, answer = peer.prepare(ALL["eager"].load(), Cell("instance", (2, 4, 1)), check=True)
    assert (functions, answer["state"]) == ({}, "failed")
    assert answer["reason"].startswith("ValueError: Expected more than 1 spatial element")


# The processes


def test_peers_take_turns_in_processes_of_their_own() -> None:
    with Peers((MEMORY, OURS, "eager"), 1, BRISK) as peers:
        found = peers.measure(TINY)
        processes = {running._process.pid for running in peers._running.values()}
        assert len(processes) == 3
        threads = psutil.Process(next(iter(processes))).environ()["OMP_NUM_THREADS"]
    assert threads == "1"
    assert {name: len(times) for name, times in found.times.items()} == dict.fromkeys(
        ("clone", "copy", OURS, "eager"), BRISK.rounds
    )
    assert peers.versions["torch"] == torch.__version__
    assert not [pid for pid in processes if psutil.pid_exists(pid)]


SLOW = """
import sys, time
print('{"versions": {}}', flush=True)
for line in sys.stdin:
    %s
"""


@pytest.mark.skipif(not find_library("tcmalloc"), reason="needs tcmalloc (apt-get install libgoogle-perftools4)")
def test_another_allocator_spares_page_faults() -> None:
    cell, faults = Cell("instance", (1, 1, 2**24)), {}
    for name in (SYSTEM, "tcmalloc"):
        with Peers((MEMORY,), 1, BRISK, find_allocator(name)) as peers:
            peers.measure(cell)
            process = peers._running[MEMORY]._process.pid
            before = page_faults(process)
            peers._running[MEMORY].time(0.001, 60.0)
            faults[name] = page_faults(process) - before
    assert faults["tcmalloc"] < faults[SYSTEM] / 10


def page_faults(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[7])


def fake_peer(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Puts a script in the place of a peer's process."""
    (folder / "fake_peer.py").write_text(SLOW % body)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(process, "MODULE", "fake_peer")


def test_a_peer_that_dies_fails_the_cell_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_peer(tmp_path, monkeypatch, "sys.exit('boom')")
    with Peers(("eager",), 1, BRISK) as peers:
        reasons = [peers.measure(TINY).found["eager"] for _ in range(4)]
    assert reasons[0] == {"state": "failed", "reason": "exited with code 1: boom"}
    assert reasons[3]["reason"] == "left out: its process ended in 3 cells in a row"


def test_a_peer_that_compiles_for_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_peer(tmp_path, monkeypatch, "time.sleep(60)")
    running = PeerProcess("compile", 1)
    with pytest.raises(PeerEnded, match=r"took more than 0\.2 s to compile and check this cell"):
        running.prepare({}, patience=0.2)
    assert running._process.returncode == -signal.SIGKILL


def test_what_killed_a_peer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_peer(tmp_path, monkeypatch, "time.sleep(60)")
    running = PeerProcess("compile", 1)
    running._process.kill()
    with pytest.raises(PeerEnded, match="killed by SIGKILL"):
        running.time(0.1, patience=10)


def test_a_peer_lost_between_turns_leaves_no_half_times(monkeypatch: pytest.MonkeyPatch) -> None:
    with Peers((OURS, "eager"), 1, BRISK) as peers:
        prepare = peers._prepare

        def fatal(name: str, cell: Cell) -> dict[str, Any]:
            found = prepare(name, cell)
            peers._running["eager"]._process.kill() if name == "eager" else None
            return found

        monkeypatch.setattr(peers, "_prepare", fatal)
        found = peers.measure(TINY)
    assert found.found["eager"]["state"] == "failed"
    assert found.times.keys() == {OURS}


# What is said


def test_speedups_compare_round_by_round() -> None:
    made = row(outcome(normwise=[1.0, 1.0, 1.0, 1.0], eager=[2.0, 3.0, 4.0, 1.5]))
    assert made["peers"]["eager"] | {"seconds": 0} == made["peers"]["eager"] | {
        "seconds": 0,
        "speedup": 2.0,
        "low": 1.5,
        "high": 4.0,
    }
    assert (made["peers"][OURS]["clones"], made["peers"][OURS]["copies"]) == (1.0, 2.0)


def test_losses_stand_beside_wins() -> None:
    cells = [outcome(normwise=[1.0], eager=[4.0]), outcome(normwise=[1.0], eager=[0.25], compile=[0.5])]
    made = content(*cells)
    eager, compiled, fastest = made["summaries"]
    assert (eager["geometric_mean"], eager["slower"], eager["slower_in_every_round"]) == (1.0, [1], [1])
    assert eager["losses"] == ["instance 2x4x4x4 f float32: 0.25x, 750.00 ms more"]
    assert eager["statement"] == (
        "Against PyTorch eager: 1.00x, the geometric mean of 2 cells (2.00x at the speed of a copy); "
        "normwise is slower in 1 of 2 cells (1 in every round)."
    )
    assert compiled["cells"] == 1
    assert (fastest["peer"], fastest["geometric_mean"], fastest["slower"]) == (FASTEST, 1.0, [1])
    text = shown(made)
    assert "!0.25x" in text
    assert "slower: instance 2x4x4x4 f float32: 0.25x, 750.00 ms more" in text
    assert re.search(r' class="slower">0\.25x slower', page.render(made))


def test_a_win_in_every_cell_is_said_plainly() -> None:
    (found,) = summaries([row(outcome(normwise=[1.0], jax=[2.0]))])
    assert statement(found).endswith("normwise is slower in none of them.")


def test_large_tensors_are_to_be_judged_by_the_copy() -> None:
    large = outcome(Cell("batch", (32, 64, 112, 112)), normwise=[1.0])
    assert "Above 32 MB the time of a clone is mostly page faults" in shown(content(large))
    assert "page faults" not in shown(content(outcome(normwise=[1.0])))


def test_another_allocator_is_told() -> None:
    large = outcome(Cell("batch", (32, 64, 112, 112)), normwise=[1.0])
    text = shown(content(large, how={"threads": 1, "cells": 1, "allocator": "tcmalloc"}))
    assert "Memory of every peer by tcmalloc." in text
    assert "mostly page faults" not in text


def test_what_memory_allows_is_counted_in_tensors() -> None:
    forward = Cell("batch", (2, 4, 8))
    assert forward.least_copies == 1  # reads x, writes y
    assert replace(forward, passes="forward+backward").least_copies == 2.5  # reads g and x, writes the gradient
    assert replace(forward, norm="batch+residual+relu", passes="forward+backward").least_copies == 4


def test_a_busy_machine_is_told() -> None:
    busy, quiet = outcome(normwise=[1.0, 2.5]), outcome(normwise=[1.0, 1.9])
    text = shown(content(busy, quiet))
    assert "In 1 of 2 cells, marked ~, rounds of the same call differ by more than 2x" in text
    assert text.count("f~") == 1
    assert "f~" in shown(content(busy))
    assert "f+b~ " in shown(content(busy._replace(cell=replace(TINY, passes="forward+backward"))))
    assert "instance 2x4x4x4 f float32 ~<" in page.render(content(busy))
    assert "busy" not in shown(content(quiet))
    assert "f~" not in shown(content(quiet))
    assert run._progress(busy, 8, 8, 0.0).endswith("; unsteady: rounds of the same call differ by more than 2x")


def test_what_a_peer_does_not_offer_is_told_once() -> None:
    made = outcome(normwise=[1.0])
    made.found["onnxruntime"] = {"state": "not offered", "reason": "ONNX Runtime has no gradients"}
    assert shown(content(made, made)).count("ONNX Runtime has no gradients") == 1


def test_the_page_stands_alone_and_escapes_what_it_is_told() -> None:
    hostile = "</script><script>alert(1)</script>"
    made = outcome(normwise=[1.0], eager=[2.0])
    made.found["jax"] = {"state": "failed", "reason": hostile}
    text = page.render(content(made, machine={"processor": hostile, "cores": 2}, missing={"jax": hostile}))
    assert text.count(hostile) == 0
    assert text.count("&lt;/script&gt;&lt;script&gt;alert(1)") == 3
    outside = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"(?:src|href)=\"(?!data:)", outside)


# The command


def test_the_command_prints_one_object_and_writes_two_files(tmp_path: Path) -> None:
    arguments = ["--quick", "--shape", "2x4x4x4", "--norm", "instance", "--peer", "eager", "--peer", "jax", "--json"]
    done = subprocess.run([*COMMAND, *arguments, "--out", str(tmp_path / "new")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "new" / "bench.json").read_text())
    assert found["schema"] == 1
    assert found["finished"] is True
    assert found.keys() == {"schema", "finished", "machine", "versions", "how", "missing", "summaries", "cells"}
    assert len(found["cells"]) == 4
    for cell in found["cells"]:
        assert {"norm", "shape", "layout", "dtype", "passes", "bytes", "clone_seconds", "copy_seconds"} <= cell.keys()
        assert cell["peers"]["eager"]["speedup"] > 0
        assert cell["peers"][OURS]["state"] == "ok"
    assert "4 of 4: instance 2x4x4x4 last f+b float32" in done.stderr
    assert (tmp_path / "new" / "bench.html").read_text().startswith("<!DOCTYPE html>")


def test_a_missing_peer_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "jax", Entry("JAX", "jax_peer:Jax", ("no_such_package",)))
    chosen, missing = run._peers(["jax", "eager", "eager"])
    assert chosen == ["eager"]
    assert missing == {"jax": "JAX is not installed here; to compare: pip install no_such_package"}


def test_bad_usage_exits_with_two(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "--shape", "4"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "normwise: a shape must be NxCxsizes" in done.stderr
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file.* must be a folder that can be written to .*; take another --out"):
        run.bench("quick", peers=["eager"], out=tmp_path / "file")


def test_ctrl_c_keeps_what_was_measured() -> None:
    arguments = ["--shape", "2x4x4x4", "--norm", "instance", "--norm", "batch", "--peer", "eager", "--json"]
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    ) as bench:
        assert bench.stderr
        assert bench.stdout
        assert bench.stderr.readline().startswith("1 of 8")
        children = psutil.Process(bench.pid).children()
        bench.send_signal(signal.SIGINT)
        found = json.loads(bench.stdout.read())
    assert bench.returncode == 130
    assert found["finished"] is False
    assert 1 <= len(found["cells"]) < 8
    until = time.monotonic() + 5
    while (alive := [child for child in children if child.is_running()]) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive


def test_progress_tells_the_time_left() -> None:
    made = outcome(normwise=[1.0], eager=[2.0])
    assert run._progress(made, 3, 8, 70.0) == (
        "3 of 8: instance 2x4x4x4 f float32: 1 clones; PyTorch eager 2.00x; about 1 min 10 s left"
    )


def test_every_cell_is_driven_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = choose("quick")
    with Peers((), 1) as peers:
        monkeypatch.setattr(peers, "measure", lambda cell: outcome(cell))
        found = list(drive.drive(cells, peers))
    assert [made.cell for made, _ in found] == cells
    assert found[-1][1] == 0
