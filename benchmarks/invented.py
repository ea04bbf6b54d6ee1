"""Arms whose truth is known: means, spreads and learning rates as the pilot measured them."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from normwise.experiment.plan import Plan
from normwise.experiment.trial import Trial

Answer = Callable[[Trial], dict[str, float]]
GRID = tuple(3.0**step for step in range(-2, 3))


@dataclass(frozen=True)
class Arm:
    """An invented arm: mean at its best rate and SD in points, and what a factor of 3 off that rate costs."""

    mean: float
    deviation: float
    curvature: float = 0.35


@dataclass(frozen=True)
class Scenario:
    """Invented arms; clones are identical, so they share their best rate; priced ones differ in cost."""

    title: str
    arms: tuple[Arm, ...]
    delta: float = 1.0
    correlation: float = 0.32
    clones: bool = False
    priced: bool = False


# PILOT.md section 3: means and SDs of 24 seeds on a resampled split; curvatures from section 4's plateaus.
DIGITS_32 = (
    Arm(98.02, 0.62, 0.21),
    Arm(97.70, 0.62, 0.9),
    Arm(96.71, 0.91),
    Arm(97.05, 0.92),
    Arm(95.57, 0.96, 2),
)
DIGITS_4 = (
    Arm(97.87, 0.79, 0.5),
    Arm(97.69, 0.70, 2),
    Arm(96.97, 0.73, 0.9),
    Arm(96.92, 0.89),
    Arm(95.95, 1.16, 2),
)
FASHION = (
    Arm(74.4, 0.96, 0.21),
    Arm(76.8, 1.09, 0.9),
    Arm(69.3, 1.66),
    Arm(68.3, 2.11),
    Arm(77.4, 0.91, 0.5),
)
FLAT = Arm(98.0, 0.77, 0.0)
TUNED = replace(FLAT, curvature=0.35)
SCENARIOS = (
    Scenario("digits, batch 32", DIGITS_32),
    Scenario("digits, batch 32", DIGITS_32, delta=0.5),
    Scenario("digits, batch 4", DIGITS_4, correlation=0.35),
    Scenario("digits, batch 4", DIGITS_4, delta=0.5, correlation=0.35),
    Scenario("Fashion, badly undertrained", FASHION, correlation=0.23),
    Scenario("one of five better by delta + 0.1", (replace(TUNED, mean=99.1), *[TUNED] * 4)),
    Scenario("one of five better by delta + 0.1", (replace(TUNED, mean=98.6), *[TUNED] * 4), delta=0.5),
    Scenario("A/A, 5 arms, every rate alike", (FLAT,) * 5, clones=True),
    Scenario("A/A, 5 arms, every rate alike", (FLAT,) * 5, delta=0.5, clones=True),
    Scenario("A/A, 5 arms, own tuning seeds", (TUNED,) * 5, clones=True),
    Scenario("A/A, 5 arms, own tuning seeds, costs differ", (TUNED,) * 5, clones=True, priced=True),
    Scenario("A/A, 2 arms, own tuning seeds", (TUNED,) * 2, clones=True),
    Scenario("A/A, 2 arms, steep, own tuning seeds", (replace(TUNED, curvature=2.0),) * 2, clones=True),
)


def plan(scenario: Scenario) -> Plan:
    """The default plan for these arms; nobody needs the length check here."""
    names = tuple(f"arm {index}" for index in range(len(scenario.arms)))
    return Plan(
        arms=names,
        batch_sizes=(32,),
        rates={32: GRID},
        costs={name: float(scenario.priced * index) for index, name in enumerate(names)},
        onednn={(name, 32): True for name in names},
        delta=scenario.delta / 100,
        length_check=False,
    )


def world(scenario: Scenario, rng: random.Random) -> tuple[Answer, Callable[[str, float], float]]:
    """Answers trials as if they had been run, and tells the truth about an arm at a rate."""
    arms = {f"arm {index}": arm for index, arm in enumerate(scenario.arms)}
    off = rng.uniform(-0.5, 0.5)
    best = {name: off if scenario.clones else rng.uniform(-0.5, 0.5) for name in arms}
    splits: dict[int, float] = {}

    def truth(name: str, rate: float, shift: float = 0.0) -> float:
        steps = math.log(rate, 3) - best[name] - shift
        return (arms[name].mean - arms[name].curvature * steps**2) / 100

    def answer(trial: Trial) -> dict[str, float]:
        # A short schedule scores lower and likes a higher rate. The validation images are the same for
        # all rates, so what blurs the choice is initial weights and order: 0.4 to 0.8 points.
        short = trial.length < 1
        score = truth(trial.arm, trial.learning_rate, 0.3 if short else 0.0) - 0.08 * short
        shared = splits.setdefault(trial.seed, rng.gauss(0, 1)) * math.sqrt(scenario.correlation)
        own = rng.gauss(0, 1) * math.sqrt(1 - scenario.correlation)
        noise = (shared + own) * arms[trial.arm].deviation / 100
        return {"judge": score + noise, "validation": score + rng.gauss(0, 0.007)}

    return answer, truth
