"""How often is a race right? Replays it on invented arms whose truth is known, or on a recorded run.

    python benchmarks/replay.py                          the pilot's variances; the race tunes its arms
    python benchmarks/replay.py --run runs/digits        bootstrap of the seed rows of every batch size
    python benchmarks/replay.py --run runs/aa --clones   the recorded arms are one and the same

A recorded arm that was run at several rates with at least 4 seeds each is tuned anew in each replay,
with tuning seeds of its own; an arm with one such rate keeps it.
"""

import argparse
import json
import random
import statistics
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invented import SCENARIOS, Answer, Scenario, world
from invented import plan as plan_for

from normwise.experiment.field import field_of
from normwise.experiment.plan import Plan
from normwise.experiment.race import CellOutcome, contest, run
from normwise.experiment.trial import Result, Trial
from normwise.experiment.tuning import choose

LEAST = 4  # seeds that make a recorded rate usable


@dataclass(frozen=True)
class Replay:
    """What one replay came to; regret and bound in units of the score."""

    kind: str
    seeds: int
    safe: bool
    false_worse: bool
    regret: float
    bound: float
    lead: float
    delta: float


def invented(scenario: Scenario, rng: random.Random) -> Replay:
    """One whole race, tuning included, on arms whose truth is known."""
    plan = plan_for(scenario)
    answer, truth = world(scenario, rng)
    outcome = drive(run(plan, 32), answer)
    return judge(plan, outcome, {arm.norm: truth(arm.norm, arm.learning_rate) for arm in outcome.arms})


def drive(race: Generator[list[Trial], dict[Trial, Result], CellOutcome], answer: Answer) -> CellOutcome:
    """Runs a race on answers instead of training."""
    asked = next(race)
    while True:
        try:
            asked = race.send({trial: Result(trial, measures=answer(trial)) for trial in asked})
        except StopIteration as stop:
            return stop.value


def judge(plan: Plan, outcome: CellOutcome, truth: Mapping[str, float]) -> Replay:
    """Compares what a race says with the truth about its arms at their rates."""
    field = field_of(plan, [outcome])
    named = field.standing.named
    beaten = [(arm.norm, arm.beaten_by) for arm in outcome.arms if arm.beaten_by]
    return Replay(
        kind=field.standing.kind,
        seeds=outcome.looks[-1],
        safe=named in field.standing.safe,
        false_worse=any(truth[arm] >= truth[beater] for arm, beater in beaten),
        regret=max(truth.values()) - truth[named[0]],
        bound=field.regret_bound,
        lead=field.lead,
        delta=plan.delta,
    )


Rows = dict[str, dict[float, dict[int, dict[str, float]]]]  # arm -> rate -> seed -> measures


def recorded(content: Mapping[str, Any], batch_size: int) -> Rows:
    """The usable full-length rows of one batch size."""
    rows: Rows = {}
    for row in content["results"]:
        whole = row["kind"] == "train" and row["length"] == 1.0 and row["batch_size"] == batch_size
        if whole and {"judge", "validation"} <= row["measures"].keys():
            seeds = rows.setdefault(row["arm"], {}).setdefault(row["learning_rate"], {})
            seeds[row["seed"]] = row["measures"]
    usable = {arm: {r: s for r, s in rates.items() if len(s) >= LEAST} for arm, rates in rows.items()}
    return {arm: rates for arm, rates in usable.items() if rates}


def plan_of(content: Mapping[str, Any], rows: Rows, batch_size: int) -> Plan:
    """The recorded plan, for the arms of these rows and without its budget."""
    stored, costs = content["config"]["plan"], content["config"]["plan"].get("costs", {})
    return Plan(
        arms=tuple(rows),
        batch_sizes=(batch_size,),
        rates={batch_size: ()},
        costs={arm: float(costs.get(arm, 0.0)) for arm in rows},
        onednn={(arm, batch_size): True for arm in rows},
        delta=stored["delta"],
        higher_is_better=stored.get("higher_is_better", True),
        looks=tuple(stored["looks"]),
    )


def bootstrapped(plan: Plan, rows: Rows, clones: bool, rng: random.Random) -> Replay:
    """One race on seed rows drawn with replacement, the same rows for every arm."""
    size, sign = plan.batch_sizes[0], 1 if plan.higher_is_better else -1
    rates = {arm: _tuned(plan, by_rate, rng) for arm, by_rate in rows.items()}
    chosen = {arm: rows[arm][rate] for arm, rate in rates.items()}
    common = sorted(set.intersection(*(set(seeds) for seeds in chosen.values())))
    drawn = rng.choices(common, k=plan.looks[-1])
    outcome = drive(contest(plan, size, rates, []), lambda trial: chosen[trial.arm][drawn[trial.seed]])
    truth = {arm: sign * statistics.fmean(own[s]["judge"] for s in common) for arm, own in chosen.items()}
    return judge(plan, outcome, dict.fromkeys(truth, 0.0) if clones else truth)


def _tuned(plan: Plan, by_rate: Mapping[float, Mapping[int, Mapping[str, float]]], rng: random.Random) -> float:
    if len(by_rate) == 1:
        return next(iter(by_rate))
    sign = 1 if plan.higher_is_better else -1
    seeds = rng.sample(sorted(set.intersection(*(set(own) for own in by_rate.values()))), plan.tuning_seeds)
    scores = {rate: sign * statistics.fmean(own[s]["validation"] for s in seeds) for rate, own in by_rate.items()}
    return choose(scores, plan.delta)


HEAD = (
    "",
    "delta",
    "decided %",
    "mean n",
    "false worse %",
    "off by > delta %",
    "beyond bound %",
    "winner %",
    "by > delta %",
    "safe at 16 %",
)


def line(title: str, delta: str, replays: Iterable[Replay]) -> str:
    """One row of the table: shares of the replays in percent, seeds as a mean."""
    replays = list(replays)

    def percent(test: Callable[[Replay], bool]) -> str:
        return f"{100 * statistics.fmean(test(r) for r in replays):.1f}"

    cells = [
        title,
        delta,
        percent(lambda r: r.kind != "undecided"),
        f"{statistics.fmean(r.seeds for r in replays):.1f}",
        percent(lambda r: r.false_worse),
        percent(lambda r: r.regret > r.delta and r.kind != "undecided"),
        percent(lambda r: r.regret > max(0.0, r.bound)),
        percent(lambda r: r.kind == "winner"),
        percent(lambda r: r.kind == "winner" and r.lead > r.delta),
        percent(lambda r: r.safe and r.seeds <= 16),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--replays", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, help="the folder of a run: its results.json is replayed")
    parser.add_argument("--arms", nargs="+", help="only these arms of the run")
    parser.add_argument("--clones", action="store_true", help="the arms of the run are one and the same")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    if given.run is None:
        for scenario in SCENARIOS:
            replays = (invented(scenario, rng) for _ in range(given.replays))
            print(line(scenario.title, f"{scenario.delta:g} points", replays), flush=True)
        return
    content = json.loads((given.run / "results.json").read_text())
    for size in content["config"]["batch_sizes"]:
        rows = {arm: own for arm, own in recorded(content, size).items() if arm in (given.arms or [arm])}
        plan = plan_of(content, rows, size)
        replays = (bootstrapped(plan, rows, given.clones, rng) for _ in range(given.replays))
        print(line(f"batch size {size}: {', '.join(rows)}", f"{plan.delta:g}", replays), flush=True)


if __name__ == "__main__":
    main()
