"""The content of the claims' results.json: verdicts, numbers, figures as data. Nothing is run or drawn here."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from normwise.claims.claim import Chart, Claim, Part, Seed, Table, at_half, settings
from normwise.claims.gather import Gathered
from normwise.claims.verdict import ALPHA, Evidence, Judgement, judge
from normwise.experiment.contrast import interval

Json = dict[str, Any]
SURE = {
    "read": "read in the paper",
    "repository": "the authors' repository",
    "abstract": "the paper's abstract",
    "secondary": "secondary sources",
    "none": "nothing found",
}


def claims_content(
    claims: Sequence[Claim], gathered: Mapping[str, Gathered], family: int, command: Callable[[str], str]
) -> list[Json]:
    """One entry per claim, in the order given. `family` is the number of parts on the whole list."""
    parts = [(claim, part) for claim in claims for part in claim.parts]
    evidence = [
        Evidence(values(part, _seeds(gathered.get(part.experiment))), part.sign, part.delta) for _, part in parts
    ]
    judged = list(zip(parts, evidence, judge(evidence, family), strict=True))
    return [
        _claim(
            claim,
            [_part(part, found, one.values, gathered) for (owner, part), one, found in judged if owner is claim],
            gathered,
            command(claim.id),
        )
        for claim in claims
    ]


def values(part: Part, seeds: Sequence[Seed]) -> list[float]:
    """The part's number for every seed that has all its measurements."""
    numbers: list[float] = []
    for seed in seeds:
        try:
            number = part.contrast(seed)
        except (KeyError, ZeroDivisionError, ValueError):  # a measurement that failed or is still missing
            continue
        if math.isfinite(number):
            numbers.append(number)
    return numbers


def _seeds(found: Gathered | None) -> list[Seed]:
    return list(found.seeds.values()) if found else []


def _part(part: Part, judged: Judgement, numbers: Sequence[float], gathered: Mapping[str, Gathered]) -> Json:
    found = gathered.get(part.experiment)
    return {
        "name": part.name,
        "effect": part.effect,
        "unit": part.unit,
        "sign": part.sign,
        "delta": part.delta,
        "refuted_by": part.refuted_by,
        **judged._asdict(),
        "values": list(numbers),
        "left_out": len(_seeds(found)) - len(numbers),
        "half_length": _beside(part, [at_half(seed) for seed in _seeds(found)]),
        "one_rate": _beside(part, list(found.at_one_rate.values()) if found else []),
    }


def _beside(part: Part, seeds: Sequence[Seed]) -> Json | None:
    """The part's number elsewhere, with an ordinary interval: it is shown, no verdict hangs on it."""
    numbers = values(part, seeds)
    if not numbers:
        return None
    mean, low, high = interval(numbers, 1 - ALPHA)
    return {"mean": mean, "low": low, "high": high, "seeds": len(numbers)}


def _claim(claim: Claim, parts: list[Json], gathered: Mapping[str, Gathered], command: str) -> Json:
    first = parts[0]["verdict"]
    names = dict.fromkeys(claim.experiments)
    known = [gathered[name] for name in names if name in gathered]
    return {
        "id": claim.id,
        "title": claim.title,
        "statement": claim.statement,
        "row": claim.row,
        "verdict": first,
        "qualified": any(part["verdict"] not in (first, "undecided") for part in parts[1:]),
        "parts": parts,
        "design": claim.design,
        "limits": claim.limits,
        "pilot": claim.pilot,
        "published": [{**one._asdict(), "sure": SURE[one.sure]} for one in claim.published],
        "figure": _figure(claim.chart, gathered.get(claim.chart.experiment)),
        "tables": [_table(one, gathered.get(one.experiment)) for one in claim.tables] + _statistics(claim, known),
        "rates": {cell: rate for found in known for cell, rate in found.rates.items()},
        "shared_rates": {cell: rate for found in known for cell, rate in found.shared.items()},
        "rates_at_an_edge": [cell for found in known for cell in found.edges],
        "diverged": _diverged(known),
        "failures": [text for found in known for text in found.failures],
        "command": command,
    }


def _diverged(known: Sequence[Gathered]) -> dict[str, str]:
    """By cell how many of its runs diverged, of how many; on tuning seeds they only decide which rate is taken."""
    seen: dict[str, list[float]] = {}
    for found in known:
        for says, seeds in (("", found.seeds), (" at one rate for all", found.at_one_rate)):
            for seed in seeds.values():
                for cell, measures in seed.items():
                    seen.setdefault(f"{cell}{says}", []).append(measures.get("diverged", 0.0))
    return {cell: f"{round(sum(marks))} of {len(marks)}" for cell, marks in seen.items() if any(marks)}


STATISTICS = {"remembered": "remembered", "fresh": "taken afresh", "batch_statistics": "of the test batch"}


def _statistics(claim: Claim, known: Sequence[Gathered]) -> list[Json]:
    """Batch norm's score by where its statistics come from, side by side."""
    rows: Json = {}
    for found in known:
        for seed in found.seeds.values():
            rows |= {
                text: {title: (text, measure) for measure, title in STATISTICS.items()}
                for text, measures in seed.items()
                if len(measures.keys() & STATISTICS.keys()) > 1
            }
    # the one task scored by a loss, where less is better
    what = "log10 of the style loss at the end" if claim.chart.experiment == "stylization" else "Score"
    tables = [_table(Table(f"{what} by the statistics in evaluation", "", rows), found) for found in known]
    return [table for table in tables if table["rows"]]


def _table(table: Table, found: Gathered | None) -> Json:
    """Means over the seeds that have the measure."""
    rows: Json = {}
    for name, columns in table.rows.items():
        for column, (text, measure) in columns.items():
            numbers = [s[text][measure] for s in _seeds(found) if measure in s.get(text, {})]
            if numbers:
                rows.setdefault(name, {})[column] = statistics.mean(numbers)
    columns = list(dict.fromkeys(column for given in table.rows.values() for column in given))
    return {"title": table.title, "columns": columns, "rows": rows}


def _figure(chart: Chart, found: Gathered | None) -> Json:
    """The chart's lines: mean and range of the middle half over seeds at every value of x."""
    series: dict[str, dict[str, list[float]]] = {}
    for seed in (found.seeds if found else {}).values():
        for text, measures in seed.items():
            given = settings(text)
            if any(given.get(name) != value for name, value in chart.only.items()):
                continue
            columns = chart.columns or ({given[chart.x]: chart.y} if chart.x in given else {})
            line = series.setdefault(", ".join(filter(None, (_named(name, given) for name in chart.by.split()))), {})
            for x, measure in columns.items():
                if measure in measures:
                    line.setdefault(x, []).append(measures[measure])
    series = {name: line for name, line in series.items() if line}
    unnamed = "usual" if len(series) > 1 else ""
    lines = [{"name": name or unnamed, "points": [_point(x, line[x]) for x in line]} for name, line in series.items()]
    return {
        "x_title": chart.x_title,
        "y_title": chart.y_title,
        "caption": chart.caption,
        "log_x": chart.log_x,
        "log_y": chart.log_y,
        "lines": lines,
        "theory": _theory(chart, lines),
        "pictures": [],
    }


def _named(setting: str, given: Mapping[str, str]) -> str:
    """What a line is called: the setting's value, with its name where the value is a bare number."""
    value = given.get(setting, "")
    return f"{setting} {value}" if value[:1].isdigit() else value


def _point(x: str, numbers: list[float]) -> Json:
    low, high = (numbers[0], numbers[0])
    if len(numbers) > 1:
        low, _, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return {"x": x, "mean": statistics.mean(numbers), "low": low, "high": high, "seeds": len(numbers)}


def _theory(chart: Chart, lines: list[Json]) -> list[Json]:
    if chart.theory is None:
        return []
    places = sorted({float(point["x"]) for line in lines for point in line["points"]})
    if not places:
        return []
    first, last = math.log(places[0]), math.log(places[-1])
    grid = [math.exp(first + (last - first) * i / 40) for i in range(41)]
    return [{"x": x, "y": chart.theory(x)} for x in grid]
