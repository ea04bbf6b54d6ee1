"""The page of a bench: one self-contained HTML file with the drawing and every number."""

from importlib import resources
from typing import Any

from normwise.bench.figure import figure
from normwise.bench.peers import OURS, PEERS
from normwise.bench.summary import mark, name, short
from normwise.bench.table import notes, where
from normwise.report.page import filled

Json = dict[str, Any]


def render(content: Json) -> str:
    """Makes the page from the content of bench.json.

    >>> content = {"finished": True, "machine": {"processor": "P<1>", "cores": 2}, "versions": {"torch": "2"}}
    >>> "P&lt;1&gt;" in render(content | {"how": {"threads": 1}, "missing": {}, "summaries": [], "cells": []})
    True
    """
    own = resources.files("normwise.bench").joinpath("page.html").read_text(encoding="utf-8")
    drawn = figure(content["cells"])
    shown = [peer for peer in PEERS if any(peer in row["peers"] for row in content["cells"])]
    return filled(
        own,
        {drawn.id: [p.figure for p in drawn.panels]} if drawn else {},
        content=content,
        where=where(content),
        notes=list(notes(content)),
        drawn=drawn,
        titles=[PEERS[peer].title for peer in shown],
        rows=[_line(row, shown) for row in content["cells"]],
    )


def _line(row: Json, shown: list[str]) -> Json:
    ours = row["peers"][OURS]
    multiples = [f"{ours[key]:.2f}" if key in ours else ours["state"] for key in ("clones", "copies")]
    return {
        "name": f"{name(row)} {mark(row)}".strip(),
        "cells": [short(row["clone_seconds"]), short(row["copy_seconds"]), short(ours.get("seconds")), *multiples],
        "peers": [_cell(row["peers"].get(peer, {})) for peer in shown],
    }


def _cell(found: Json) -> Json:
    slower = found.get("speedup", 1) < 1
    said = f"{found['speedup']:.2f}x" if "speedup" in found else found.get("state", "")
    wrong = "wrong at a large mean" if "speedup" in found and found["state"] != "ok" else ""
    return {"said": said, "slower": slower, "more": wrong}
