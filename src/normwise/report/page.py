"""The page: one self-contained HTML file that opens from disk without a network."""

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, Template
from markupsafe import Markup

from normwise.files import write_atomic
from normwise.report import tables
from normwise.report.draw import DARK, Figure
from normwise.report.figures import figures
from normwise.report.pools import drawing, pools, words
from normwise.report.text import amount, count, duration, listing, plain
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
    return _template().render(
        view=view,
        config=view.config,
        verdict=view.verdict,
        title=_title(view),
        facts=_facts(view),
        main=next((figure for figure in drawn if figure.id == "differences"), None),
        details=[figure for figure in drawn if figure.id != "differences"],
        scorecard=tables.scorecard(view),
        numbers=tables.numbers(view),
        failures=tables.failures(view),
        settings=_settings(view),
        pools=_pools(view),
        rate=plain(view.verdict.get("learning_rate")),
        figures=_embedded({"dark": DARK, "panels": _panels(drawn)}),
        plotly=Markup(_plotly()),
        css=Markup(_asset("page.css")),
        js=Markup(_asset("page.js")),
    )


def _title(view: View) -> str:
    norm, task = view.verdict.get("norm"), view.config.get("task")
    return ": ".join(part for part in ("normwise", f"{norm} on {task}" if norm and task else task) if part)


def _facts(view: View) -> list[tuple[str, str]]:
    """How sure and at what cost, one line each."""
    facts = [("How sure", _sure(view)), ("Training length", _length(view)), ("Cost", _cost(view))]
    robust = view.verdict.get("robust")
    if robust and robust.get("statement"):
        facts.insert(1, ("Over batch sizes", robust["statement"]))
    return facts


def _sure(view: View) -> str:
    scale, verdict = view.scale, view.verdict
    if verdict.get("regret_bound") is None:
        return "No look was taken yet, so there is no bound on what another arm might gain."
    seeds = sorted(
        {arm["n"] for cell in view.cells for arm in cell["arms"] if arm.get("state") in ("safe", "alive")}
    )
    paired = (
        f" from {plain(seeds[0])}{f' to {seeds[-1]}' if len(seeds) > 1 else ''} paired seeds" if seeds else ""
    )
    tied = verdict.get("tie") or []
    tie = f" {listing(tied)} tie within that." if len(tied) > 1 else ""
    lost = scale.size(max(verdict["regret_bound"], 0.0))
    return (
        f"{100 * verdict['level']:g} % confidence{paired}: at most {lost} may be lost to another arm; "
        f"differences up to delta = {scale.size(verdict['delta'])} count as none.{tie}"
    )


def _length(view: View) -> str:
    changes = view.verdict.get("order_changes_at_double_length")
    if changes is None:
        return "Not checked at twice the training length."
    return (
        "At twice the training length the order changes."
        if changes
        else ("At twice the training length the order stays.")
    )


def _cost(view: View) -> str:
    config, trials = view.config, len(view.content.get("results") or [])
    parts = [count(trials, "trial")]
    if config.get("seconds") is not None:
        parts.append(f"{duration(config['seconds'])} on {count(config.get('workers') or 1, 'worker')}")
    setting = [config[key] for key in ("device", "precision") if config.get(key)]
    said = ", ".join([*parts, *setting])
    cost = _inference_cost(view)
    return f"{said}. {cost}" if cost else f"{said}."


def _inference_cost(view: View) -> str:
    norm, size = view.verdict.get("norm"), view.verdict.get("batch_size")
    arms = [
        arm
        for cell in view.cells
        if cell["batch_size"] == size
        for arm in cell["arms"]
        if arm["norm"] == norm
    ]
    if not arms or not view.priced or arms[0].get("cost") is None:
        return ""
    if not arms[0]["cost"]:
        return f"At inference {norm} folds away and costs nothing."
    return f"At inference the norms of {norm} cost {amount(arms[0]['cost'])} bytes and operations a sample."


def _settings(view: View) -> list[tables.Table]:
    config = view.config
    shown = ("task", "model", "data", "budget", "epochs", "batch_sizes", "training_samples", "judge_samples")
    shown += ("device", "precision", "engine", "workers", "seed")
    made = [
        tables.settings(
            "The task and how it was run", {k: config[k] for k in shown if config.get(k) is not None}
        ),
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


def _embedded(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _template() -> Template:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_asset("page.html"))


def _asset(name: str) -> str:
    return resources.files("normwise.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()
