"""What the terminal shows: the plan before a run, its progress, and the summary after it."""

from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from normwise.report.progress import Progress
from normwise.report.tables import STATES
from normwise.report.text import MINUS, count, duration, plain
from normwise.report.view import Json, View

__all__ = ["Progress", "announce", "plan", "summary"]


def summary(content: dict[str, Any]) -> RenderableType:
    """The verdict, one compact table a batch size, and where the report is.

    >>> from rich.console import Console
    >>> Console(width=60).print(summary({"verdict": {"statement": "Take batch."}, "config": {}}))
    Take batch.
    """
    view = View(content)
    config, verdict = view.config, view.verdict
    parts: list[RenderableType] = [Text(verdict["statement"], style="bold")]
    robust = verdict.get("robust")
    if robust:
        parts.append(Text(robust["statement"]))
    parts += [_cell(view, cell) for cell in view.cells]
    if view.cells and config.get("next_step"):
        parts.append(_line("next", config["next_step"]))
    if config.get("folder"):
        parts.append(_line("report", str(Path(config["folder"]) / "report.html")))
    if config.get("finished") is False:
        parts.append(_line("interrupted; continue with", config["command"], style="yellow"))
    return Group(*parts)


def _line(title: str, said: str, style: str = "") -> Text:
    return Text.assemble((f"{title}: ", f"dim {style}".strip()), (said, style), overflow="fold")


def _cell(view: View, cell: Json) -> Group:
    """The statement of one batch size and a line for each arm, narrow enough for 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("norm", overflow="fold", max_width=24)
    for title in (
        "rate",
        "n",
        view.scale.name + (" %" if view.scale.points else ""),
        f"minus {cell['norm']}",
    ):
        table.add_column(Text(title), justify="right", overflow="fold")
    table.add_column("state")
    for arm in view.known(cell) + [arm for arm in cell["arms"] if arm.get("mean") is None]:
        style = "bold" if arm["norm"] == cell["norm"] else ""
        table.add_row(*(Text(said.replace(MINUS, "-")) for said in _said(view, arm)), style=style)
    said = Text(f"batch size {cell['batch_size']}: {cell['statement']}")
    return Group(Text(""), said, table) if len(view.cells) > 1 else Group(table)


def _said(view: View, arm: Json) -> tuple[str, ...]:
    scale, difference = view.scale, arm.get("difference") or {}
    against = scale.signed(difference["mean"]) if difference else ""
    if difference.get("low") is not None:
        against += f" ({scale.span(difference['low'], difference['high'])})"
    score = "" if arm.get("mean") is None else scale.number(arm["mean"])
    state = STATES.get(arm.get("state") or "", "").removeprefix("dropped: ")
    failed = f", {arm['failures']} failed" if arm.get("failures") else ""
    return arm["norm"], plain(arm.get("learning_rate")), str(arm.get("n", "")), score, against, state + failed


def announce(config: Json, stream: TextIO) -> None:
    """Prints the plan of a run before it starts."""
    Console(file=stream, highlight=False).print(plan({"config": config}))


def plan(content: dict[str, Any]) -> RenderableType:
    """What will be run: arms, batch sizes, trials, time."""
    config = content["config"]
    lines = [_line("task", f"{config['task']}, {config['model']}, {plain(config['epochs'])} epochs")]
    lines.append(_line("arms", ", ".join(_arm(arm) for arm in config["arms"])))
    lines += [_line("left out", f"{arm['norm']}: {arm['why']}") for arm in config.get("left_out") or []]
    lines.append(_line("batch sizes", ", ".join(map(str, config["batch_sizes"]))))
    lines += [_line("plan", said) for said in _schedule(config)]
    return Group(*lines)


def _arm(arm: Json) -> str:
    return " = ".join([arm["name"], *(arm.get("aliases") or [])])


def _schedule(config: Json) -> list[str]:
    """What is tried, and how many trials and how much time that is."""
    made = config["plan"]
    grids = [len(grid) for _, grid in made["rates"]]
    tuned, looks = made["tuning_seeds"], made["looks"]
    tried = f"{count(max(grids), 'learning rate')} x {count(tuned, 'seed')}"
    raced = f"then looks at {', '.join(map(str, looks))} seeds"
    check = "then a check at twice the length" if made["length_check"] else "no length check"
    trials = len(made["arms"]) * sum(tuned * (grid + made["full_length_rates"]) + looks[0] for grid in grids)
    return [f"{tried}, {raced}, {check}", f"{count(trials, 'trial')} up to the first look, {_time(config)}"]


def _time(config: Json) -> str:
    """The planned time: prices are core-seconds, unless the budget counts trials."""
    made, workers = config["plan"], config.get("workers") or 1
    if "trial" in str(config["budget"]) or not made["price"]:
        return f"budget {config['budget']} of full length (a quarter of it counts as a quarter)"
    short, full, tuned = made["short_length"], made["full_length_rates"], made["tuning_seeds"]
    lengths = {size: tuned * (len(grid) * short + full) + made["looks"][0] for size, grid in made["rates"]}
    first = sum(price * lengths[size] for _, size, price in made["price"]) / workers
    later = sum(spare for _, spare in made["allowance"]) / workers
    most = f"{duration(first + later)} at most on {count(workers, 'worker')}"
    return f"about {duration(first)}; {most}; budget {config['budget']}"
