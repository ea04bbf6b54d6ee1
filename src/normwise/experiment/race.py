"""The race of one batch size: tunes every arm, looks at paired fresh seeds, checks the training length."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from normwise.experiment.contrast import Rule, difference
from normwise.experiment.plan import Plan
from normwise.experiment.standing import Standing, drop, stand
from normwise.experiment.trial import Interrupted, Result, Trial
from normwise.experiment.tuning import Steps, trials, tune

UNSTABLE = 2  # failures in the FIRST seeds that put an arm out
FIRST = 4
CHECKED = 8  # seeds of the length check


@dataclass(frozen=True)
class ArmOutcome:
    """What one arm did at one batch size.

    `scores`, `half` and `double` (judge scores at full, half and double length) are oriented: higher
    is better, whatever the task's score. One number per race seed, the same seeds first in all arms.
    `losses` are the finite judge losses among them.
    """

    norm: str
    learning_rate: float
    cost: float
    scores: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    failed: tuple[bool, ...] = ()
    out: Literal["", "worse", "unstable"] = ""
    beaten_by: str | None = None
    half: tuple[float, ...] = ()
    double: tuple[float, ...] = ()

    def joined(self, results: Iterable[Result], plan: Plan) -> "ArmOutcome":
        """The same arm after some more seeds."""
        results = list(results)
        losses = [r.measures["judge_loss"] for r in results if "judge_loss" in r.measures]
        return replace(
            self,
            scores=(*self.scores, *(judged(result, plan) for result in results)),
            losses=(*self.losses, *losses),
            failed=(*self.failed, *(result.failed for result in results)),
        )


@dataclass(frozen=True)
class CellOutcome:
    """The race of one batch size: its arms, the seeds at each look, the two of the length check.

    `spent` are the trials that are paid from the allowance.
    """

    batch_size: int
    arms: tuple[ArmOutcome, ...]
    looks: tuple[int, ...] = ()
    checked: tuple[str, str] | None = None
    spent: tuple[Trial, ...] = ()

    def __getitem__(self, norm: str) -> ArmOutcome:
        return next(arm for arm in self.arms if arm.norm == norm)

    @property
    def left(self) -> tuple[ArmOutcome, ...]:
        return tuple(arm for arm in self.arms if not arm.out)

    @property
    def stable(self) -> tuple[ArmOutcome, ...]:
        return tuple(arm for arm in self.arms if arm.out != "unstable")

    @property
    def all_unstable(self) -> bool:
        """Two of its first four seeds put any arm out; where that would be all, none is."""
        return all(sum(arm.failed[:FIRST]) >= UNSTABLE for arm in self.arms)

    def beaten_by(self) -> dict[str, str]:
        return {arm.norm: arm.beaten_by for arm in self.arms if arm.beaten_by}

    def standing(self, rule: Rule) -> Standing[str]:
        """Judges all but the unstable arms."""
        scores = {arm.norm: arm.scores for arm in self.stable}
        return stand(scores, {arm.norm: arm.cost for arm in self.stable}, self.beaten_by(), rule)


def run(plan: Plan, batch_size: int) -> Steps[CellOutcome]:
    """Decides one batch size: yields the trials it needs, is sent their results, returns the outcome.

    No clock, no randomness, no input or output: the same results give the same outcome. Interrupted, it
    returns what it knows from the looks that are complete.
    """
    spent: list[Trial] = []
    rates = yield from tune(plan, batch_size, spent)
    cell = yield from contest(plan, batch_size, rates, spent)
    if plan.length_check and cell.looks:
        cell = yield from check_length(plan, cell, spent)
    return replace(cell, spent=tuple(spent))


def rule_for(plan: Plan, arms: int) -> Rule:
    """How strict this plan is when it compares so many arms."""
    return Rule(delta=plan.delta, alpha=1 - plan.level, looks=len(plan.looks), arms=arms)


def judged(result: Result, plan: Plan) -> float:
    """The score that counts in the race, oriented; a trial without one takes the plan's failed score."""
    score = result.measures.get("judge", plan.failed_score)
    return score if plan.higher_is_better else -score


def contest(plan: Plan, batch_size: int, rates: Mapping[str, float], spent: list[Trial]) -> Steps[CellOutcome]:
    """Races tuned arms on paired seeds until the cheapest one left is safe, or seeds or allowance are out."""
    rule = rule_for(plan, len(rates))
    arms = tuple(ArmOutcome(arm, rate, plan.costs[arm]) for arm, rate in rates.items())
    cell = CellOutcome(batch_size, arms)
    for look in plan.looks:
        asked = wanted(plan, cell, look)
        if cell.looks:
            if not plan.affords(batch_size, spent, asked):
                break
            spent += asked
        try:
            results = yield asked
        except Interrupted:
            break
        cell = after_look(plan, cell, results, look)
        if cell.standing(rule).settled:
            break
    return cell


def wanted(plan: Plan, cell: CellOutcome, look: int) -> list[Trial]:
    """What the arms left lack for this look."""
    seeds = plan.race_seeds(look)[max(cell.looks, default=0) :]
    return trials(plan, cell.batch_size, {arm.norm: [arm.learning_rate] for arm in cell.left}, seeds)


def after_look(plan: Plan, cell: CellOutcome, results: Mapping[Trial, Result], look: int) -> CellOutcome:
    """The race with the results of one more look: unstable arms and those shown to be worse are out."""
    by_seed = sorted((trial for trial in results if trial.batch_size == cell.batch_size), key=lambda trial: trial.seed)

    def own(arm: ArmOutcome) -> list[Result]:
        return [results[trial] for trial in by_seed if trial.arm == arm.norm]

    arms = tuple(arm.joined(own(arm), plan) for arm in cell.arms)
    joined = _steadied(replace(cell, arms=arms, looks=(*cell.looks, look)))
    return _dropped(joined, rule_for(plan, len(cell.arms)))


def check_length(plan: Plan, cell: CellOutcome, spent: list[Trial]) -> Steps[CellOutcome]:
    """Runs the arms left at half the length, the named one and its best rival at twice, on early seeds."""
    named = cell.standing(rule_for(plan, len(cell.arms))).named
    rival = _best_rival(cell, named)
    seeds = plan.race_seeds(min(CHECKED, cell.looks[0]))

    def of(arms: Iterable[str], length: float) -> list[Trial]:
        return trials(plan, cell.batch_size, {arm: [cell[arm].learning_rate] for arm in arms}, seeds, length)

    half = of((arm.norm for arm in cell.left), 0.5)
    double = of((named, rival), 2.0) if rival else []
    if not plan.affords(cell.batch_size, spent, half + double):
        return cell
    spent += half + double
    try:
        results = yield half + double
    except Interrupted:
        return cell

    def scores(arm: str, of_length: list[Trial]) -> tuple[float, ...]:
        return tuple(judged(results[trial], plan) for trial in of_length if trial.arm == arm)

    arms = (replace(a, half=scores(a.norm, half), double=scores(a.norm, double)) for a in cell.arms)
    return replace(cell, arms=tuple(arms), checked=(named, rival) if rival else None)


def _steadied(cell: CellOutcome) -> CellOutcome:
    """Puts out unstable arms; where all are, none is, and the race goes on by the scores."""
    if cell.all_unstable:
        return cell
    unstable = {arm.norm for arm in cell.left if sum(arm.failed[:FIRST]) >= UNSTABLE}
    arms = (replace(arm, out="unstable") if arm.norm in unstable else arm for arm in cell.arms)
    return replace(cell, arms=tuple(arms))


def _dropped(cell: CellOutcome, rule: Rule) -> CellOutcome:
    """Puts out what is shown to be worse than the leader."""
    beaten = drop({arm.norm: arm.scores for arm in cell.stable}, cell.beaten_by(), rule)
    arms = (replace(arm, out="worse", beaten_by=beaten[arm.norm]) if arm.norm in beaten else arm for arm in cell.arms)
    return replace(cell, arms=tuple(arms))


def _best_rival(cell: CellOutcome, named: str) -> str | None:
    """The stable arm that comes closest to the named one, or leads it by most, on their common seeds."""
    rivals = [arm for arm in cell.stable if arm.norm != named]
    closest = max(rivals, key=lambda arm: difference(arm.scores, cell[named].scores).mean(), default=None)
    return closest.norm if closest else None
