"""A claim, an experiment and the content of a run, invented for tests."""

from typing import Literal

from normwise.claims.claim import Chart, Claim, Experiment, Measures, Part, Published, Run, gap
from normwise.claims.content import claims_content
from normwise.claims.gather import Gathered


def working(run: Run) -> Measures:
    return {"judge": 0.5 + 0.3 * (run.settings["norm"] == "b") + 0.001 * (run.seed % 3)}


def experiment(measure, rates=()):
    cells = ("norm=a", "norm=b")
    rivals = (cells,) if rates else ()
    return Experiment(measure.__name__, measure, cells, 0.01, 8, rates=rates, rivals=rivals, exact=not rates)


def claim(name, measured, sign: Literal[-1, 0, 1] = 1):
    contrast = gap("norm=b", "norm=a", "judge")
    parts = (Part("first", "b minus a", contrast, measured.name, sign, 0.05, "a is as good", "points"),)
    chart = Chart(measured.name, "norm", "judge", "", "norm", "score", "A <caption>.")
    return Claim(
        name, "Title & more", "b is better than a.", "row", parts, "design", chart, (Published("x", "y", "read"),)
    )


def made(numbers, half=None):
    one = experiment(working)
    seeds = {i: {"norm=a": {"judge": 0.0}, "norm=b": {"judge": value}} for i, value in enumerate(numbers)}
    return claims_content([claim("X", one)], {one.name: Gathered(seeds, {})}, 1, lambda name: f"run {name}")
