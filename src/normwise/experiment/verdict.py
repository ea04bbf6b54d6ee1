"""From race outcomes to the verdict of results.json: per batch size, over all pairs, and the robust norm."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from normwise.experiment.contrast import Interval, interval, paired_interval
from normwise.experiment.field import Field, Pair, field_of, length_check
from normwise.experiment.plan import Plan
from normwise.experiment.race import ArmOutcome, CellOutcome
from normwise.experiment.wording import Amounts, Claim, joined, length_phrase
from normwise.report.text import called, count, listing

Content = dict[str, Any]


def build(plan: Plan, outcomes: Sequence[CellOutcome], unit: str = "") -> Content:
    """The verdict over all batch sizes; `unit` is "points" where scores are fractions shown in percent."""
    amounts = Amounts(plan.delta, unit)
    return {
        **decision(plan, outcomes, amounts),
        "per_batch_size": [cell(plan, outcome, amounts) for outcome in outcomes],
        "robust": robust(outcomes, amounts),
    }


def cell(plan: Plan, outcome: CellOutcome, amounts: Amounts) -> Content:
    """The verdict of one batch size, with what is known of each of its arms."""
    field = field_of(plan, [outcome])
    arms = [_arm(plan, field, arm, (arm.norm, outcome.batch_size)) for arm in outcome.arms]
    return {**decision(plan, [outcome], amounts), "arms": arms, "looks": list(outcome.looks)}


def decision(plan: Plan, outcomes: Sequence[CellOutcome], amounts: Amounts) -> Content:
    """The best arm of one batch size, or the best pair of norm and batch size of several."""
    field = field_of(plan, outcomes)
    norm, size = field.standing.named
    tie = field.standing.tie if field.standing.kind == "tie" else ()
    home = next(outcome for outcome in outcomes if outcome.batch_size == size)
    check = length_check(home, plan)
    return {
        "kind": field.standing.kind,
        "norm": norm,
        "batch_size": size,
        "learning_rate": field.named.learning_rate,
        "tie": list(dict.fromkeys(name for name, _ in tie)),
        "regret_bound": _finite(max(0.0, field.regret_bound), field.regret_bound),
        "delta": plan.delta,
        "level": plan.level,
        "order_changes_at_double_length": check.changes if check else None,
        "statement": joined(
            _claim(plan, field, len(outcomes) == 1).sentence(amounts),
            *_additions(field, outcomes),
            length_phrase(check.leader, check.other, shown=check.shown, still=check.still) if check else "",
        ),
    }


def robust(outcomes: Sequence[CellOutcome], amounts: Amounts) -> Content | None:
    """The norm, stable everywhere, that loses least to the best mean at its worst batch size."""
    norms = [a.norm for a in outcomes[0].arms if all(a.norm in _means(outcome) for outcome in outcomes)]
    if len(outcomes) < 2 or not norms:
        return None

    def worst(norm: str) -> tuple[float, int]:
        losses = [(max(_means(o).values()) - _means(o)[norm], o.batch_size) for o in outcomes]
        return max(losses, key=lambda loss: loss[0])

    norm = min(norms, key=lambda norm: (worst(norm)[0], outcomes[0][norm].cost))
    loss, size = worst(norm)
    sizes = listing([str(outcome.batch_size) for outcome in outcomes])
    behind = f"its mean is at worst {amounts.about(loss)} behind the best, at batch size {size}"
    text = f"Over batch sizes {sizes} {called(norm)} loses least: {behind}."
    best = f"{called(norm)} has the best mean at each of the batch sizes {sizes}."
    return {"norm": norm, "worst_loss": loss, "statement": text if loss > 0 else best}


def _means(outcome: CellOutcome) -> dict[str, float]:
    return {arm.norm: float(np.mean(arm.scores)) for arm in outcome.stable}


def _claim(plan: Plan, field: Field, alone: bool) -> Claim:
    rival = "arm" if alone else "pair of norm and batch size"
    return Claim(
        name=_named([field.standing.named], alone),
        kind=field.standing.kind,
        bound=field.regret_bound,
        lead=field.lead,
        level=plan.level,
        rival=f"stable {rival}" if field.unstable else rival,
    )


def _additions(field: Field, outcomes: Sequence[CellOutcome]) -> list[str]:
    """What the sentence leaves out: who ties, who may be better or as good, who was put out as unstable."""
    alone = len(outcomes) == 1
    tied = field.standing.tie[1:] if field.standing.kind == "tie" else ()
    named = field.standing.named
    rivals = field.kept_open_by if field.standing.kind == "undecided" and not alone else ()
    open_by = f"kept open by {_named(rivals[:1], alone)}" if rivals else ""
    others = f" and {count(len(rivals) - 1, 'other pair')}" if len(rivals) > 1 else ""
    said = {
        "tied with it": tied,
        "not shown worse": [pair for pair in field.open if alone and pair != named],
        "out as unstable": field.unstable,
    }
    failed = sum(field.named.failed)
    failures = f"{failed} of its {len(field.named.failed)} seeds failed" if failed else ""
    if failures and all(outcome.all_unstable for outcome in outcomes):
        failures = f"every arm is unstable: {failures}"
    return [failures, open_by + others, *(f"{what}: {_named(pairs, alone)}" for what, pairs in said.items() if pairs)]


def _named(pairs: Sequence[Pair], alone: bool) -> str:
    if alone:
        return listing([norm for norm, _ in pairs])
    by_size: dict[int, list[str]] = {}
    for norm, size in pairs:
        by_size.setdefault(size, []).append(norm)
    return ", ".join(f"{listing(norms)} at batch size {size}" for size, norms in by_size.items())


def _arm(plan: Plan, field: Field, arm: ArmOutcome, pair: Pair) -> Content:
    """One arm in the units of the task: scores turned back to where less may be better."""
    bound = field.standing.bounds.get(pair, math.inf)
    state = "safe" if pair in field.standing.safe else arm.out or "alive"
    floor = plan.delta / 20
    against = paired_interval(arm.scores, field.named.scores, plan.level, floor)
    whole = len(arm.losses) == len(arm.scores)
    return {
        "norm": arm.norm,
        "learning_rate": arm.learning_rate,
        "n": len(arm.scores),
        **_turned(plan, interval(arm.scores, plan.level)),
        "worst": min(arm.scores) if plan.higher_is_better else -min(arm.scores),
        "failures": sum(arm.failed),
        "state": state,
        "bound": _finite(bound, bound),
        "difference": None if arm is field.named else _turned(plan, against),
        "gain_half_to_full": _gain(plan, arm),
        "double": {**_turned(plan, interval(arm.double, plan.level)), "n": len(arm.double)} if arm.double else None,
        "cost": arm.cost,
        "loss": interval(arm.losses, plan.level)._asdict() if whole else None,
    }


def _gain(plan: Plan, arm: ArmOutcome) -> Content | None:
    """What full length brought over half of it; positive is better whatever the score."""
    if not arm.half:
        return None
    return paired_interval(arm.scores, arm.half, plan.level, plan.delta / 20)._asdict()


def _turned(plan: Plan, values: Interval) -> Content:
    if plan.higher_is_better:
        return values._asdict()
    low, high = (None if end is None else -end for end in (values.high, values.low))
    return {"mean": -values.mean, "low": low, "high": high}


def _finite(value: float, test: float) -> float | None:
    return value if math.isfinite(test) else None
