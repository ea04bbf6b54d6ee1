"""All that a verdict compares: the arms of one batch size, or the pairs of norm and batch size of several."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from normwise.experiment.contrast import Rule, bound, difference, leads, paired_interval, worse
from normwise.experiment.plan import Plan
from normwise.experiment.race import ArmOutcome, CellOutcome, rule_for
from normwise.experiment.standing import Standing, drop, stand

Pair = tuple[str, int]  # norm and batch size


@dataclass(frozen=True)
class Field:
    """The stable pairs, who of them was beaten by whom, and where that leaves them."""

    rule: Rule
    arms: dict[Pair, ArmOutcome]
    unstable: tuple[Pair, ...]
    beaten_by: dict[Pair, Pair]
    standing: Standing[Pair]

    @property
    def named(self) -> ArmOutcome:
        return self.arms[self.standing.named]

    @property
    def regret_bound(self) -> float:
        return self.standing.bounds[self.standing.named]

    @property
    def kept_open_by(self) -> tuple[Pair, ...]:
        """The rivals that may be better than the named pair by more than delta, the least known first."""
        scores = {pair: arm.scores for pair, arm in self.arms.items()}
        ahead = leads(scores, self.standing.named, self.rule, self.beaten_by)
        return tuple(sorted((p for p in ahead if ahead[p] > self.rule.delta), key=lambda p: -ahead[p]))

    @property
    def lead(self) -> float:
        """What the named pair is at least ahead of every other, at the level that drops arms."""
        scores = {pair: arm.scores for pair, arm in self.arms.items()}
        return -bound(scores, self.standing.named, self.rule, self.beaten_by, alpha=self.rule.worse_alpha)

    @property
    def open(self) -> tuple[Pair, ...]:
        """Neither shown to be worse nor to be safe."""
        return tuple(p for p in self.arms if p not in self.beaten_by and p not in self.standing.safe)


def field_of(plan: Plan, outcomes: Sequence[CellOutcome]) -> Field:
    """Judges one batch size, or several at once: what a race put out stays out, and more may fall."""
    rule = rule_for(plan, sum(len(cell.arms) for cell in outcomes))
    arms = {(arm.norm, cell.batch_size): arm for cell in outcomes for arm in cell.stable}
    unstable = [(arm.norm, cell.batch_size) for cell in outcomes for arm in cell.arms if arm.out == "unstable"]
    scores = {pair: arm.scores for pair, arm in arms.items()}
    costs = {pair: arm.cost for pair, arm in arms.items()}
    dropped = {pair: (arm.beaten_by, pair[1]) for pair, arm in arms.items() if arm.beaten_by}
    beaten_by = drop(scores, dropped, rule)
    standing = stand(scores, costs, beaten_by, rule)
    # more pairs, a stricter level: a winner over all must have what each race dropped shown again
    if standing.kind == "winner" and not all(worse(scores[p], scores[by], rule) for p, by in beaten_by.items()):
        standing = replace(standing, kind="safe")
    return Field(rule, arms, tuple(unstable), beaten_by, standing)


@dataclass(frozen=True)
class LengthCheck:
    """Two arms at the training length and at twice of it: who leads, and is it shown?"""

    leader: str
    other: str
    shown: bool
    still: bool
    changes: bool


def length_check(cell: CellOutcome, plan: Plan) -> LengthCheck | None:
    """The order changes where the means swap places and the interval at double length excludes zero."""
    if cell.checked is None:
        return None
    first, second = (cell[norm] for norm in cell.checked)
    before = difference(first.scores, second.scores).mean()
    mean, low, high = paired_interval(first.double, second.double, plan.level, plan.delta / 20)
    leader, other = cell.checked if mean > 0 else cell.checked[::-1]
    shown = low is not None and high is not None and not low <= 0 <= high
    same, swapped = bool(before * mean > 0), bool(before * mean < 0)
    return LengthCheck(leader, other, shown, still=shown and same, changes=shown and swapped)
