"""Writes pages when the site is built: the norms and the public names from the code, the claims from a recorded run."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import normwise
from normwise.layers import NORMS, NormEntry
from normwise.layers.explain import explain
from normwise.report.claims import render
from normwise.report.claims_text import markdown

NORM_KINDS = {"plane": "Norms of planes", "position": "Norms of positions", "other": "Others"}
NORMS_HEAD = """# The norms

The name above each card is what `--norm`, `nw.swap` and `nw.build` understand. Norms of planes take
(N, C, \\*spatial), any rank, and stand in for each other; norms of positions take (..., features). Those that fit
either layout have an option `axis`, and a swap gives them the layer's. The others stand in for no norm: they take a
second input, or do not normalize.

In a drawing rows are instances, columns channels, and what is filled shares one statistic with the first value.
`normwise explain NAME` shows the same card with its steps on small numbers. What a norm does not promise is what the
conformance suite skips for it, with this reason.

IBN-Net's other form, IBN-b, is no norm of its own but a place: instance norm at the end of early stages. As a swap,
which replaces norms and adds none, it is a mapping: `nw.swap(model, {"layer1.*.bn3": "instance", "*": "keep"})`.
"""
ROOMS = {
    "experiment": "Comparisons",
    "claims": "Claims",
    "surgery": "Surgery",
    "layers": "Layers",
    "functional": "Functions",
    "table": "The table of moments",
    "measure": "Measuring it",
    "ops": "Backend",
}
RECORDED = Path(__file__).parent.parent / "benchmarks" / "recorded" / "claims"
REFERENCE_HEAD = "# Reference\n\nAll public names of `import normwise as nw`.\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that stand in no folder."""
    files.append(File.generated(config, "norms.md", content=norms_page()))
    files.append(File.generated(config, "claims.md", content=claims_page()))
    if long := recorded("results"):
        files.append(File.generated(config, "claims-report.html", content=render(long)))
    files.append(File.generated(config, "reference.md", content=reference_page()))
    return files


def claims_page(folder: Path = RECORDED) -> str:
    """The recorded run of `normwise claims`, with a short run's intervals beside it."""
    long, short = recorded("results", folder), recorded("quick", folder)
    return markdown(long or {"claims": [], "config": {"date": "never"}}, short, figures="claims-report.html")


def recorded(name: str, folder: Path = RECORDED) -> dict[str, Any] | None:
    """The content of a recorded run of `normwise claims`, if there is one."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def norms_page() -> str:
    """A card for each norm, by kind."""
    parts = [NORMS_HEAD]
    for kind, title in NORM_KINDS.items():
        cards = [card(entry) for entry in NORMS.values() if entry.kind == kind]
        parts += [f"## {title}\n", *cards] if cards else []
    return "\n".join(parts)


def card(entry: NormEntry) -> str:
    """What to know about one norm."""
    content = explain(entry.name)
    tensors = ", ".join(f"{tensor['name']} {tensor['shape']}" for tensor in content["tensors"])
    unkept = [f"{promise.replace('_', ' ').replace(':', ', in ')} ({why})" for promise, why in entry.cannot.items()]
    rows = {
        "Pools": entry.pools,
        "Use it": entry.when,
        "Do not use it": entry.when_not,
        "Measured by others": entry.evidence,
        "Option": entry.option,
        "Second input": entry.given and f"forward(x, {entry.given}, mask=None)",
        "Keeps": tensors or "nothing",
        "Costs": "; ".join(content["cost"]),
        "What most norms promise and it does not": "; ".join(unkept),
        "Paper": entry.paper,
    }
    lines = [f"- **{title}**: {plain(text)}" for title, text in rows.items() if text]
    formula = "```text\n" + "\n\n".join([entry.formula, *content["drawings"]]) + "\n```\n"
    return "\n".join([f"### `{entry.name}`\n", f"{plain(entry.summary)}\n", formula, *lines, ""])


def plain(text: str) -> str:
    """Text that Markdown shows as it is, with a capital first: N*H*W has no italics."""
    escaped = "".join(f"\\{sign}" if sign in "\\`*_[]<>" else sign for sign in text)
    return escaped[:1].upper() + escaped[1:]


def reference_page() -> str:
    """Every public name that is a class, a function or a module, in the room of the house it comes from."""
    rooms: dict[str, list[str]] = {room: [] for room in ROOMS}
    for name in dir(normwise):
        value = getattr(normwise, name)
        path = home(value)
        if path:
            rooms[path.split(".")[1]].append(f"::: {path}\n")
    parts = [f"## {ROOMS[room]}\n\n" + "\n".join(names) for room, names in rooms.items() if names]
    return "\n".join([REFERENCE_HEAD, *parts])


def home(value: object) -> str | None:
    """Where a public name is defined; None for a constant."""
    if isinstance(value, ModuleType):
        return value.__name__
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return f"{module}.{name}" if module and name else None
