"""Writes two pages from the code when the site is built: the norms, and the public names."""

from types import ModuleType

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import normwise
from normwise.layers import NORMS, NormEntry

NORM_KINDS = {"plane": "Norms of planes", "position": "Norms of positions", "other": "Others"}
NORMS_HEAD = """# The norms

The name above each card is what `--norm`, `nw.swap` and `nw.build` understand. Norms of planes take
(N, C, \\*spatial), any rank, and standardize over positions; norms of positions standardize each position
over its features.
"""
ROOMS = {
    "experiment": "Comparisons",
    "surgery": "Surgery",
    "layers": "Layers",
    "functional": "Functions",
    "table": "Moments",
    "ops": "Backend",
}
REFERENCE_HEAD = "# Reference\n\nAll public names of `import normwise as nw`.\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that stand in no folder."""
    files.append(File.generated(config, "norms.md", content=norms_page()))
    files.append(File.generated(config, "reference.md", content=reference_page()))
    return files


def norms_page() -> str:
    """A card for each norm, by kind."""
    parts = [NORMS_HEAD]
    for kind, title in NORM_KINDS.items():
        cards = [card(entry) for entry in NORMS.values() if entry.kind == kind]
        parts += [f"## {title}\n", *cards] if cards else []
    return "\n".join(parts)


def card(entry: NormEntry) -> str:
    """What to know about one norm."""
    rows = {
        "Pools": entry.pools,
        "Use it": entry.when,
        "Do not use it": entry.when_not,
        "Option": entry.option,
        "Paper": entry.paper,
    }
    lines = [f"- **{title}**: {plain(text)}" for title, text in rows.items() if text]
    formula = f"```text\n{entry.formula}\n```\n"
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
