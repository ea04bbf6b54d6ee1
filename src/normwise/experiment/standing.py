"""Where a race stands: which arms are left, which are safe, which one to name, with what kind of verdict."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Literal

import numpy as np

from normwise.experiment.contrast import Arm, Rule, Values, bound, worse

Kind = Literal["winner", "tie", "safe", "undecided"]


@dataclass(frozen=True)
class Standing(Generic[Arm]):
    """What the scores so far say.

    `bounds` maps each arm to its regret bound; `safe` are the arms left whose bound is within delta,
    cheapest first; `tie` adds to them the dropped ones that were shown to be within delta.
    """

    named: Arm
    kind: Kind
    bounds: dict[Arm, float]
    safe: tuple[Arm, ...]
    tie: tuple[Arm, ...]
    settled: bool


def stand(
    scores: Mapping[Arm, Values], costs: Mapping[Arm, float], beaten_by: Mapping[Arm, Arm], rule: Rule
) -> Standing[Arm]:
    """Judges the stable arms: `scores` oriented so that higher is better, paired by seed.

    Settled is a race whose cheapest arm left is safe; at equal cost the better mean counts as cheaper.

    >>> rule = Rule(delta=0.01, alpha=0.05, looks=1, arms=2)
    >>> scores = {"batch": [0.93, 0.92, 0.95], "group:8": [0.90, 0.92, 0.94]}
    >>> standing = stand(scores, {"batch": 0.0, "group:8": 3.0}, {}, rule)
    >>> standing.named, standing.kind, standing.settled
    ('batch', 'undecided', False)
    """
    bounds = {arm: bound(scores, arm, rule, beaten_by) for arm in scores}
    left = sorted(_left(scores, beaten_by), key=lambda arm: (costs[arm], -np.mean(scores[arm])))
    safe = tuple(arm for arm in left if bounds[arm] <= rule.delta)
    close = tuple(arm for arm in beaten_by if bounds[arm] <= rule.delta)
    return Standing(
        named=safe[0] if safe else min(left, key=lambda arm: bounds[arm]),
        kind=_kind(len(beaten_by), len(safe), len(close), rule.arms),
        bounds=bounds,
        safe=safe,
        tie=safe + close if safe else (),
        settled=left[0] in safe,
    )


def drop(scores: Mapping[Arm, Values], beaten_by: Mapping[Arm, Arm], rule: Rule) -> dict[Arm, Arm]:
    """Who was beaten by whom, with those arms added that are now shown to be worse than the leader.

    >>> rule = Rule(delta=0.01, alpha=0.05, looks=1, arms=2)
    >>> drop({"batch": [0.9, 0.8, 0.9, 0.8], "none": [0.3, 0.2, 0.2, 0.3]}, {}, rule)
    {'none': 'batch'}
    """
    left = _left(scores, beaten_by)
    common = min(len(scores[arm]) for arm in left)
    leader = max(left, key=lambda arm: np.mean(scores[arm][:common]))
    beaten = {arm: leader for arm in left if arm != leader and worse(scores[arm], scores[leader], rule)}
    return {**beaten_by, **beaten}


def _left(scores: Mapping[Arm, Values], beaten_by: Mapping[Arm, Arm]) -> list[Arm]:
    return [arm for arm in scores if arm not in beaten_by]


def _kind(beaten: int, safe: int, close: int, arms: int) -> Kind:
    """A winner has beaten every rival, unstable ones too, and none by an amount shown to be within delta."""
    if not safe:
        return "undecided"
    if safe + close > 1:
        return "tie"
    return "winner" if beaten == arms - 1 > 0 else "safe"
