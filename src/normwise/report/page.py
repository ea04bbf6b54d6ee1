"""The page: one self-contained HTML file that opens from disk without a network."""

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from normwise.files import write_atomic
from normwise.report import tables
from normwise.report.draw import DARK, Figure
from normwise.report.facts import facts
from normwise.report.figures import figures
from normwise.report.pools import drawing, pools, words
from normwise.report.text import plain
from normwise.report.view import Json, View


def write(content: dict[str, Any], path: str | Path) -> None:
    """Writes the report of a run, in one step."""
    write_atomic(path, render(content))


def render(content: dict[str, Any]) -> str:
    """Makes the report of a run from the content of its results.json.

    >>> page = render({"verdict": {"statement": "Nothing is decided."}, "config": {}, "results": []})
    >>> "<h1>Nothing is decided.</h1>" in page
    True
    """
    view = View(content)
    drawn = figures(content)
    claim, additions = _parted(view.verdict["statement"])
    return filled(
        asset("page.html"),
        _panels(drawn),
        view=view,
        config=view.config,
        verdict=view.verdict,
        title=_title(view),
        claim=claim,
        additions=additions,
        facts=facts(view),
        main=next((figure for figure in drawn if figure.id == "differences"), None),
        details=[figure for figure in drawn if figure.id != "differences"],
        scorecard=tables.scorecard(view),
        numbers=tables.numbers(view),
        failures=tables.failures(view),
        settings=_settings(view),
        pools=_pools(view),
        rate=plain(view.verdict.get("learning_rate")),
    )


def _title(view: View) -> str:
    norm, task = view.verdict.get("norm"), view.config.get("task")
    return ": ".join(part for part in ("normwise", f"{norm} on {task}" if norm and task else task) if part)


def _parted(statement: str) -> tuple[str, str]:
    """The claim, to be printed large, and what the statement adds to it after the next semicolon."""
    end = statement.find("; ", statement.find(":") + 1)
    return (statement, "") if end < 0 else (statement[: end + 1], statement[end + 2 :])


def _settings(view: View) -> list[tables.Table]:
    config = view.config
    shown = ("task", "model", "data", "budget", "epochs", "batch_sizes", "training_samples", "judge_samples")
    shown += ("device", "precision", "processes", "engine", "workers", "seed")
    made = [
        tables.settings("The task and how it was run", {k: config[k] for k in shown if config.get(k) is not None}),
        tables.settings("The plan, fixed before the race", config.get("plan") or {}),
        tables.settings("Versions", config.get("versions") or {}),
        tables.settings("Machine", config.get("machine") or {}),
        tables.settings("Fingerprint", config.get("fingerprint") or {}),
    ]
    return [table for table in made if table]


def _pools(view: View) -> list[Json]:
    """For each arm whose network was seen: the drawing of what it averages over."""
    return [
        {
            "name": arm["name"],
            "aliases": arm.get("aliases") or [],
            "words": words(arm["pools"]),
            "drawing": Markup(drawing(arm["pools"], color, DARK.get(color, color))),
            "several": len(pools(arm["pools"])) > 1,
        }
        for arm in view.config.get("arms") or []
        if arm.get("pools") and (color := view.arms[arm["name"]].color)
    ]


def _panels(drawn: list[Figure]) -> dict[str, list[Json]]:
    return {figure.id: [panel.figure for panel in figure.panels] for figure in drawn}


def embedded(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(_rounded(value), allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _rounded(value: Any) -> Any:
    """Six digits are more than a drawing shows, and a third of the bytes."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value


def filled(own: str, panels: dict[str, list[Json]], **content: Any) -> str:
    """A page from its own template, with the macros, looks and drawings that all pages have."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(asset("macros.html") + own).render(
        **content,
        figures=embedded({"dark": DARK, "panels": panels}),
        plotly=Markup(plotly_source()),
        css=Markup(asset("page.css")),
        js=Markup(asset("page.js")),
    )


def asset(name: str) -> str:
    return resources.files("normwise.report").joinpath(name).read_text(encoding="utf-8")


@cache
def plotly_source() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()
