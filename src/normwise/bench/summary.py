"""From times to what is said of them: multiples, speed-ups, geometric means, losses. Pure."""

from collections.abc import Mapping, Sequence
from statistics import geometric_mean
from typing import Any

from normwise.bench.drive import Outcome, quartiles
from normwise.bench.peers import OURS, PEERS

Json = dict[str, Any]
FASTEST = "fastest"
UNSTEADY = 2.0  # rounds of the same call that differ by more: the machine was busy
DIFFERS = f"rounds of the same call differ by more than {UNSTEADY:g}x"


def row(outcome: Outcome) -> Json:
    """One cell of the table, as JSON holds it."""
    cell, seconds = outcome.cell, quartiles(outcome)
    clone, copy = seconds.get("clone"), seconds.get("copy")
    peers = {name: dict(found) for name, found in outcome.found.items() if name in (OURS, *PEERS)}
    for name, peer in peers.items():
        if name in seconds and clone and copy:
            peer |= {"seconds": seconds[name], "clones": seconds[name] / clone, "copies": seconds[name] / copy}
    ours = outcome.times.get(OURS)
    for name, peer in peers.items():
        if name != OURS and ours and "seconds" in peer:
            ratios = [theirs / own for theirs, own in zip(outcome.times[name], ours, strict=True)]
            speedup = seconds[name] / seconds[OURS]
            peer |= {"speedup": speedup, "low": min(*ratios, speedup), "high": max(*ratios, speedup)}
    return {
        "norm": cell.norm,
        "shape": list(cell.shape),
        "layout": cell.layout,
        "dtype": cell.dtype,
        "passes": cell.passes,
        "bytes": cell.bytes,
        "least_copies": cell.least_copies,
        "clone_seconds": clone,
        "copy_seconds": copy,
        "unsteady": any(max(times) > UNSTEADY * min(times) for times in outcome.times.values()),
        "peers": peers,
    }


def summaries(rows: Sequence[Json]) -> list[Json]:
    """For each peer, and for the fastest of them in each cell: geometric mean and losses.

    >>> peers = [{"eager": {"speedup": s, "low": s, "high": s, "copies": 3.0}} for s in (8.0, 0.5)]
    >>> found = summaries([{"peers": peer, "least_copies": 1.0} for peer in peers])[0]
    >>> round(found["geometric_mean"], 9), round(found["limit"], 9), found["cells"], found["slower"]
    (2.0, 3.0, 2, [1])
    """
    names = [name for name in PEERS if any("speedup" in row["peers"].get(name, {}) for row in rows)]
    return [_summary(name, rows) for name in (*names, *([FASTEST] if len(names) > 1 else []))]


def of(row: Mapping[str, Any], name: str) -> Json:
    """What a peer did in a cell, or the fastest of them."""
    if name != FASTEST:
        return row["peers"].get(name, {})
    known = [peer for other, peer in row["peers"].items() if other != OURS and "speedup" in peer]
    return min(known, key=lambda peer: peer["speedup"], default={})


def statement(summary: Json) -> str:
    """The sentence on one peer that tells losses as plainly as wins.

    >>> found = {"peer": "jax", "cells": 3, "geometric_mean": 1.5, "limit": 1.8, "slower": [1]}
    >>> statement(found | {"slower_in_every_round": []})[:86]
    'Against JAX: 1.50x, the geometric mean of 3 cells (1.80x at the speed of a copy); norm'
    """
    count, losses, certain = summary["cells"], len(summary["slower"]), len(summary["slower_in_every_round"])
    title = "the fastest of them in each cell" if summary["peer"] == FASTEST else PEERS[summary["peer"]].title
    said = f"in {losses} of {_cells(count)} ({certain} in every round)" if losses else "in none of them"
    return (
        f"Against {title}: {summary['geometric_mean']:.2f}x, the geometric mean of {_cells(count)} "
        f"({summary['limit']:.2f}x at the speed of a copy); normwise is slower {said}."
    )


def losses(rows: Sequence[Json], summary: Json) -> list[str]:
    """The cells in which normwise is slower than a peer, with the ratio and what a call costs more."""
    made = []
    for index in summary["slower"]:
        row, found = rows[index], of(rows[index], summary["peer"])
        more = row["peers"][OURS]["seconds"] - found["seconds"]
        made.append(f"{name(row)}: {found['speedup']:.2f}x, {short(more)} more")
    return made


def name(row: Mapping[str, Any]) -> str:
    """A cell's name."""
    return f"{row['norm']} {label(row)} {row['dtype']}"


def mark(row: Mapping[str, Any]) -> str:
    """The sign behind a cell whose rounds differ."""
    return "~" if row["unsteady"] else ""


def label(row: Mapping[str, Any]) -> str:
    """A cell's tensor and direction in few signs: f is forward, f+b forward and backward.

    >>> label({"shape": [2, 4, 8], "layout": "channels-last", "passes": "forward+backward"})
    '2x4x8 last f+b'
    """
    last = " last" if row["layout"] == "channels-last" else ""
    return f"{'x'.join(map(str, row['shape']))}{last} {'f' if row['passes'] == 'forward' else 'f+b'}"


def short(seconds: float | None) -> str:
    """A short time with its unit.

    >>> short(0.0016), short(4e-6), short(None)
    ('1.60 ms', '4.0 us', '')
    """
    if seconds is None:
        return ""
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def _summary(peer: str, rows: Sequence[Json]) -> Json:
    found = {i: of(row, peer) for i, row in enumerate(rows)}
    measured = {i: known for i, known in found.items() if "speedup" in known}
    return {
        "peer": peer,
        "cells": len(measured),
        "geometric_mean": geometric_mean([known["speedup"] for known in measured.values()]),
        "limit": geometric_mean([known["copies"] / rows[i]["least_copies"] for i, known in measured.items()]),
        "slower": [i for i, known in measured.items() if known["speedup"] < 1],
        "slower_in_every_round": [i for i, known in measured.items() if known["high"] < 1],
    }


def _cells(count: int) -> str:
    return f"{count} cell" if count == 1 else f"{count} cells"
