"""What the terminal shows of a bench: a table for each norm and layout, and a sentence for each peer."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from normwise.bench.machine import SYSTEM
from normwise.bench.peers import OURS, PEERS
from normwise.bench.summary import DIFFERS, FASTEST, mark, short

Json = dict[str, Any]
LOSS, WRONG = "!", "*"
STATES = {"not offered": "-"}
SHORT = {"eager": "eager", "compile": "compile", "jax": "JAX", "onnxruntime": "ONNX RT"}  # 80 columns hold them all
PAGE_FAULTS = 32 * 2**20  # bytes from which glibc always asks the system for new memory


def table(content: Json) -> RenderableType:
    """The whole bench for people.

    >>> from rich.console import Console
    >>> content = {"finished": False, "machine": {"processor": "P", "cores": 2}, "versions": {"torch": "2"}}
    >>> Console().print(table(content | {"how": {"threads": 1}, "missing": {}, "summaries": [], "cells": []}))
    P, 1 of 2 cores; torch 2
    interrupted: nothing was measured
    """
    rows = content["cells"]
    shown = [peer for peer in PEERS if any(peer in row["peers"] for row in rows)]
    parts: list[RenderableType] = [Text(where(content), style="dim")]
    if not content["finished"]:
        measured = f"{len(rows)} of {content['how']['cells']} cells were measured" if rows else "nothing was measured"
        parts.append(Text(f"interrupted: {measured}", style="yellow"))
    parts += [_part(title, list(part), shown) for title, part in groupby(rows, heading)]
    parts += [Text(note, style="dim") for note in notes(content)]
    for summary in content["summaries"]:
        parts.append(Text(summary["statement"], style="bold red" if summary["geometric_mean"] < 1 else "bold"))
        if summary["peer"] != FASTEST:
            parts += [Text(f"  slower: {loss}", style="red") for loss in summary["losses"]]
    return Group(*parts)


def where(content: Json) -> str:
    """The machine and the versions in a line."""
    machine, versions = content["machine"], content["versions"]
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{machine['processor']}, {content['how']['threads']} of {machine['cores']} cores; {said}"


def heading(row: Json) -> str:
    """What the rows of one table have in common."""
    return f"{row['norm']}, {row['layout']}, {row['dtype']}"


def notes(content: Json) -> Iterator[str]:
    """What a reader must know to read the numbers, as far as it concerns what is shown."""
    rows = content["cells"]
    if rows:
        yield (
            "normwise in multiples of x.clone(), in brackets of a copy into memory already in use; peers as speed-ups "
            f"of normwise: above 1 normwise is faster, {LOSS} marks where it is slower. f: forward, f+b: and backward."
        )
    if content["how"].get("allocator", SYSTEM) != SYSTEM:
        yield f"Memory of every peer by {content['how']['allocator']}."
    elif any(row["bytes"] > PAGE_FAULTS for row in rows):
        yield "Above 32 MB the time of a clone is mostly page faults: go by the copy, or by --allocator tcmalloc."
    if content["summaries"]:
        yield (
            "At the speed of a copy: what the speed-up would be if every tensor involved were read or written once, as "
            "fast as memory does so."
        )
    unsteady = sum(row["unsteady"] for row in rows)
    if unsteady:
        yield (
            f"In {unsteady} of {len(rows)} cells, marked ~, {DIFFERS}: the machine was busy; measure again when it is "
            "quiet."
        )
    bad = [(peer, row) for row in rows for peer, found in row["peers"].items() if found["state"].startswith("wrong at")]
    if bad:
        yield f"{WRONG} right at mean 0, wrong at a large mean: {', '.join(sorted({title(peer) for peer, _ in bad}))}."
    reasons = {
        f"{title(peer)}: {found['state']}: {found['reason']}"
        for row in rows
        for peer, found in row["peers"].items()
        if "reason" in found
    }
    yield from sorted(f"- {reason}" if "not offered" in reason else reason for reason in reasons)
    yield from content["missing"].values()


def title(peer: str) -> str:
    """A peer's name in sentences."""
    return "the fastest" if peer == FASTEST else PEERS[peer].title if peer in PEERS else peer


def _part(title_: str, rows: Sequence[Json], shown: Sequence[str]) -> Table:
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title_, title_justify="left", title_style="bold")
    for name in ("shape", ""):
        made.add_column(Text(name), no_wrap=True)
    for name in ("clone", "normwise", *(SHORT[peer] for peer in shown)):
        made.add_column(Text(name), justify="right", overflow="fold")
    for row in rows:
        peers = row["peers"]
        passes = "f" if row["passes"] == "forward" else "f+b"
        cells = [_ours(peers[OURS]), *(_speedup(peers.get(peer, {})) for peer in shown)]
        made.add_row("x".join(map(str, row["shape"])), passes + mark(row), short(row["clone_seconds"]), *cells)
    return made


def _ours(found: Json) -> Text:
    if "clones" not in found:
        return Text(found["state"], style="red")
    return Text(f"{_three(found['clones'])} ({_three(found['copies'])}){_mark(found)}")


def _speedup(found: Json) -> Text:
    if "speedup" not in found:
        state = str(found.get("state", ""))
        return Text(STATES.get(state, state), style="dim")
    slower = found["speedup"] < 1
    said = f"{LOSS if slower else ''}{found['speedup']:.2f}x{_mark(found)}"
    return Text(said, style="bold red" if slower else "green")


def _three(value: float) -> str:
    """Three digits."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _mark(found: Json) -> str:
    return WRONG if found["state"].startswith("wrong at") else ""
