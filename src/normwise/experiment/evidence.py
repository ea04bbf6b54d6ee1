"""Everything that was measured, in one place, for those who make tables of it."""

from dataclasses import dataclass

from normwise.experiment.arms import Arm
from normwise.experiment.plan import Plan
from normwise.experiment.trial import Result


@dataclass(frozen=True)
class Evidence:
    """Everything that was measured, in one place: the plan, the arms, the chosen rates, all results."""

    plan: Plan
    arms: tuple[Arm, ...]
    rates: dict[tuple[str, int], float]
    results: tuple[Result, ...]
    score_name: str
    in_points: bool

    def race(self, arm: str, batch_size: int) -> dict[int, Result]:
        """The results of the race by seed: full length, chosen rate, fresh seeds."""
        rate, seeds = self.rates[arm, batch_size], self.plan.race_seeds(self.plan.looks[-1])
        raced = {self.plan.trial(arm, batch_size, rate, seed) for seed in seeds}
        return {r.trial.seed: r for r in self.results if r.trial in raced}

    def of_kind(self, kind: str, arm: str, batch_size: int) -> list[Result]:
        return [
            r for r in self.results if r.trial.kind == kind and (r.trial.arm, r.trial.batch_size) == (arm, batch_size)
        ]

    def measured(self, arm: str, batch_size: int, name: str) -> dict[int, float]:
        """One measure of the race by seed, where it was taken."""
        return {s: r.measures[name] for s, r in self.race(arm, batch_size).items() if name in r.measures}
