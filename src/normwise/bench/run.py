"""`normwise bench`: chooses cells and peers, measures, and says what came of it."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from normwise.bench.cells import choose
from normwise.bench.drive import Effort, Outcome, Peers, drive
from normwise.bench.machine import SYSTEM, cores, find_allocator, machine
from normwise.bench.peers import MEMORY, OURS, PEERS
from normwise.bench.summary import DIFFERS, losses, name, row, statement, summaries
from normwise.errors import UsageError
from normwise.files import make_folder, write_atomic
from normwise.report.text import duration, plain

SCHEMA = 1
EFFORTS = {"quick": Effort(5, 0.05, 30.0), "default": Effort(), "all": Effort()}


def bench(
    selection: str = "default",
    *,
    norms: Sequence[str] = (),
    shapes: Sequence[str] = (),
    peers: Sequence[str] = (),
    threads: int | None = None,
    allocator: str = SYSTEM,
    out: Path | None = None,
    stream: TextIO | None = None,
) -> dict[str, Any]:
    """Measures the cells; the content of bench.json, which with bench.html is also written to `out`.

    Ctrl-C ends it early: what was measured so far is returned, and `finished` is false.
    """
    cells, threads = choose(selection, norms, shapes), _threads(threads)
    chosen, missing = _peers(peers)
    library = find_allocator(allocator)
    if out is not None:
        make_folder(out)
    told = stream or sys.stderr
    for sentence in missing.values():
        print(sentence, file=told, flush=True)
    effort = EFFORTS[selection]
    outcomes: list[Outcome] = []
    with Peers((MEMORY, OURS, *chosen), threads, effort, library) as running:
        try:
            for outcome, left in drive(cells, running):
                outcomes.append(outcome)
                print(_progress(outcome, len(outcomes), len(cells), left), file=told, flush=True)
        except KeyboardInterrupt:
            print("interrupted: what follows was measured before", file=told, flush=True)
        versions = {"python": platform.python_version(), **running.versions}
    memory = os.environ.get("LD_PRELOAD") or SYSTEM if allocator == SYSTEM else allocator  # the peers inherit it
    how = {"selection": selection, "threads": threads, "allocator": memory, **effort._asdict(), "cells": len(cells)}
    content = {
        "schema": SCHEMA,
        "finished": len(outcomes) == len(cells),
        "machine": machine(),
        "versions": versions,
        "how": how,
        "missing": missing,
        **_results(outcomes),
    }
    if out is not None:
        _write(content, out)
    return content


def _results(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    rows = [row(outcome) for outcome in outcomes]
    found = summaries(rows)
    said = [summary | {"statement": statement(summary), "losses": losses(rows, summary)} for summary in found]
    return {"summaries": said, "cells": rows}


def _peers(asked: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The peers to be measured, and for each that is not installed the sentence that says so."""
    unknown = [peer for peer in asked if peer not in PEERS]
    if unknown:
        raise UsageError(f"the peers are {', '.join(PEERS)}; got {unknown[0]!r}.")
    wanted = list(dict.fromkeys(asked or PEERS))
    missing = {
        peer: f"{PEERS[peer].title} is not installed here; to compare: pip install {' '.join(PEERS[peer].needs)}"
        for peer in wanted
        if not all(find_spec(package) for package in PEERS[peer].needs)
    }
    return [peer for peer in wanted if peer not in missing], missing


def _threads(asked: int | None) -> int:
    if asked is not None and asked < 1:
        raise UsageError(f"--threads must be at least 1, got {asked}.")
    return asked or cores()


def _progress(outcome: Outcome, done: int, total: int, left: float) -> str:
    """One line for a cell: how far we are, and the speed-ups just found."""
    made = row(outcome)
    said = [
        f"{PEERS[peer].title} {found['speedup']:.2f}x"
        if "speedup" in found
        else f"{PEERS[peer].title} {found['state']}"
        for peer, found in made["peers"].items()
        if peer != OURS
    ]
    ours = made["peers"][OURS]
    mine = f"{plain(ours['clones'])} clones" if "clones" in ours else ours["state"]
    busy = f"; unsteady: {DIFFERS}" if made["unsteady"] else ""
    end = f"; about {duration(left)} left" if done < total else ""
    return f"{done} of {total}: {name(made)}: {mine}; {', '.join(said)}{busy}{end}"


def _write(content: dict[str, Any], out: Path) -> None:
    from normwise.bench.page import render

    write_atomic(out / "bench.json", json.dumps(content, allow_nan=False))
    write_atomic(out / "bench.html", render(content))
