"""What a claim's numbers say, in words: numbers with their units, sentences, what a budget bought."""

import math
import re
import statistics
from collections.abc import Sequence
from typing import Any

from normwise.report.text import count, decimal

Json = dict[str, Any]
MARKS = {"supported": "✓", "negligible": "≈", "contradicted": "✗", "undecided": "?"}
ROWS = (  # of the textbook's table
    "Normalization basis",
    "Use case",
    "Dependence on batch size",
    "Sensitivity to batch size",
    "Regularization effect",
    "Computational complexity",
    "Impact on gradient flow",
)


def by_row(claims: Sequence[Json]) -> dict[str, list[Json]]:
    """The claims by row of the textbook's table, in its order.

    >>> by_row([{"row": "Use case", "id": "B1"}, {"row": "Normalization basis", "id": "I2"}])
    {'Normalization basis': [{'row': 'Normalization basis', 'id': 'I2'}], 'Use case': [{'row': 'Use case', 'id': 'B1'}]}
    """
    rows = dict.fromkeys([*ROWS, *(claim["row"] for claim in claims)])
    found = {row: [claim for claim in claims if claim["row"] == row] for row in rows}
    return {row: members for row, members in found.items() if members}


def verdict(claim: Json) -> str:
    """The verdict with its mark; `qualified` where another part of the claim says otherwise.

    >>> verdict({"verdict": "supported", "qualified": True})
    '✓ supported, qualified'
    """
    return f"{MARKS[claim['verdict']]} {claim['verdict']}{', qualified' if claim['qualified'] else ''}"


def measured(claim: Json) -> list[str]:
    """The verdict's mark, the name and the number of each part.

    >>> measured({"parts": [{"name": "gap", "verdict": "supported", "mean": 0.3, "unit": "nats", "delta": 0.1}]})
    ['✓ gap: 0.30 nats']
    """
    return [f"{MARKS[part['verdict']]} {_named(part)}" for part in claim["parts"]]


def paragraph(claim: Json) -> str:
    """What was found: the first part in full, the others by verdict, and what the claim's design leaves open."""
    first, *others = claim["parts"]
    said = [_sentence(first)]
    for word in MARKS:
        found = [_named(part) for part in others if part["verdict"] == word]
        head = f"Also {word}" if word == first["verdict"] else word.capitalize()
        said += [f"{head}: {'; '.join(found)}."] if found else []
    return " ".join([*said, claim["limits"]]).strip()


def _named(part: Json) -> str:
    return f"{part['name']}: {number(part['mean'], part)}"


def _sentence(part: Json) -> str:
    head = f"{part['verdict'].capitalize()}, {part['name']}: {part['effect']}"
    if part["mean"] is None:
        return f"{head}; nothing was measured."
    text = f"{head}: {number(part['mean'], part)} ({interval(part)}, {count(part['seeds'], 'seed')})"
    if part["verdict"] == "undecided" and part["detectable"] is not None:
        text += f"; an effect of {number(part['detectable'], part)} would have been seen"
    if part["half_length"]:
        text += f"; at half the training length {number(part['half_length']['mean'], part)}"
    if part["one_rate"]:
        text += f"; at one learning rate for all {number(part['one_rate']['mean'], part)}"
    return f"{text}."


def number(value: float | None, part: Json) -> str:
    """A number of a part with its unit, with as many digits as a tenth of delta takes.

    >>> number(0.0312, {"unit": "points", "delta": 0.01}), number(-0.238, {"unit": "points", "delta": 0.02})
    ('3.1 points', '−23.8 points')
    >>> number(-2.6e-7, {"unit": "", "delta": 1e-4}), number(None, {})
    ('−2.6e−07', '-')
    """
    if value is None:
        return "-"
    factor = 100 if part["unit"] in ("points", "%") else 1
    delta = part["delta"] * factor
    digits = max(0, 1 - math.floor(math.log10(delta) + 1e-9))
    if delta < 1e-3:
        text = f"{value:.1e}".replace("-", "\u2212") if value else "0"
    else:
        text = decimal(value * factor, digits)
    return " ".join(filter(None, (text, part["unit"])))


def interval(part: Json) -> str:
    """The interval behind a verdict; a very wide one with fewer digits.

    >>> interval({"low": -0.01, "high": 0.002, "unit": "points", "delta": 0.01})
    '−1.0 to 0.2 points'
    >>> interval({"low": -6.6021, "high": 6.5567, "unit": "points", "delta": 0.01})
    '−660 to 656 points'
    """
    if part["low"] is None:
        return "no interval"
    unit = part["unit"] if part["unit"] in ("points", "%") else ""
    bare = {"unit": unit, "delta": max(part["delta"], (part["high"] - part["low"]) / 10)}
    low = number(part["low"], bare).removesuffix(f" {unit}")
    return f"{low} to {number(part['high'], bare)}"


def beside(found: Json | None, part: Json) -> str:
    """A number that stands beside a verdict, with its ordinary 95 % interval.

    >>> beside({"mean": 0.05, "low": 0.04, "high": 0.06}, {"unit": "points", "delta": 0.01}), beside(None, {})
    ('5.0 points (4.0 to 6.0 points)', '-')
    """
    if found is None:
        return "-"
    return f"{number(found['mean'], part)} ({interval({**part, **found})})"


def notes(claim: Json) -> list[str]:
    """What else must be said of a claim's runs: rates, ends of grids, divergence, failures."""
    rates, shared = (_listed(claim[name], "{:.3g}") for name in ("rates", "shared_rates"))
    found = {
        "Learning rates, tuned per cell on other seeds": rates,
        "One rate for all, where it was measured": shared,
        "Best rate at the end of its grid, also after it was extended": "; ".join(map(cell, claim["rates_at_an_edge"])),
        "Runs that diverged, which count with the score they had": _listed(claim["diverged"], "{}"),
        "Measurements that failed": "; ".join(claim["failures"]),
    }
    return [f"{title}: {text}." for title, text in found.items() if text]


def _listed(found: Json, form: str) -> str:
    return "; ".join(f"{cell(name)}: {form.format(value)}" for name, value in found.items())


def cell(text: str) -> str:
    """A cell's settings with room to break a line.

    >>> cell("norm=batch,gain=3"), cell("of 64 images, sorted")
    ('norm=batch, gain=3', 'of 64 images, sorted')
    """
    return re.sub(r",(?=\S)", ", ", text)


def bought(content: Json) -> str:
    """What the budget bought: seeds, and the effects that would have been seen.

    >>> part = {"detectable": 0.14, "delta": 0.1, "seeds": 8}
    >>> bought({"claims": [{"parts": [part]}], "config": {"budget": "60m", "family": 76}}).split(". ")[0]
    'Budget 60m: 8 seeds a number'
    """
    config = content["config"]
    parts = [part for claim in content["claims"] for part in claim["parts"] if part.get("detectable") is not None]
    if not parts:
        return ""
    few, many = min(part["seeds"] for part in parts), max(part["seeds"] for part in parts)
    seeds = f"{few} to {count(many, 'seed')}" if few < many else count(few, "seed")
    ratio = statistics.median(part["detectable"] / part["delta"] for part in parts)
    return (
        f"Budget {config.get('budget')}: {seeds} a number. {'Half of the numbers' if len(parts) > 1 else 'It'} would "
        f"show an effect {times(ratio)} the smallest one of interest in 80 of 100 runs. In at most 5 of 100 runs is "
        f"any of the {config.get('family')} verdicts on the list wrong (Holm's procedure)."
    )


def times(ratio: float) -> str:
    """How many times as large, in words and two digits.

    >>> times(1.407), times(76.58), times(1234.5)
    ('1.4 times as large as', '77 times as large as', '1200 times as large as')
    >>> times(0.5666), times(1.03), times(1.97), times(0.004)
    ('57 % as large as', 'as large as', 'twice as large as', 'less than 1 % as large as')
    """
    rounded = float(f"{ratio:.1f}" if ratio < 10 else f"{ratio:.2g}")
    if rounded < 1:
        return f"{100 * ratio:.0f} % as large as" if ratio >= 0.01 else "less than 1 % as large as"
    return {1.0: "as large as", 2.0: "twice as large as"}.get(rounded, f"{rounded:g} times as large as")


def counts(claims: Sequence[Json]) -> str:
    """How many claims got which verdict.

    >>> counts([{"verdict": "supported"}, {"verdict": "supported"}, {"verdict": "undecided"}])
    '2 supported, 1 undecided'
    """
    found = [claim["verdict"] for claim in claims]
    return ", ".join(f"{found.count(word)} {word}" for word in MARKS if word in found)
