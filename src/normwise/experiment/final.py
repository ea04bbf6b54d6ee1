"""The final over all batch sizes: races that ended early go on, where the best pair of all needs their seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from normwise.experiment import race
from normwise.experiment.drive import replay
from normwise.experiment.field import field_of
from normwise.experiment.plan import Plan
from normwise.experiment.race import CellOutcome
from normwise.experiment.trial import Interrupted, Result, Trial
from normwise.experiment.tuning import Steps

Cells = tuple[CellOutcome, ...]


def final(plan: Plan, cells: Sequence[CellOutcome]) -> Steps[Cells]:
    """Brings every race to the seeds of the longest, look by look, until the cheapest pair left is safe.

    Pairs of norm and batch size are compared on the seeds they share: eight of them may leave open what the
    other race knows from twenty-four. No pair is looked at more often than the plan pays for.
    """
    cells = tuple(cells)
    for look in plan.looks:
        behind = {cell.batch_size: cell for cell in cells if cell.looks[-1] < look <= _longest(cells)}
        wanted = {size: race.wanted(plan, cell, look) for size, cell in behind.items()}
        asked = {size: own for size, own in wanted.items() if plan.affords(size, behind[size].spent, own)}
        if not asked or field_of(plan, cells).standing.settled:
            continue
        try:
            results = yield [trial for own in asked.values() for trial in own]
        except Interrupted:
            break
        cells = tuple(_joined(plan, cell, asked.get(cell.batch_size), results, look) for cell in cells)
    return cells


def outcomes(plan: Plan, results: Mapping[Trial, Result]) -> Cells:
    """What the races and the final decide on these results; races before their first look are left out."""
    cells = [replay(race.run(plan, size), results) for size in plan.batch_sizes]
    known = [cell for cell in cells if cell is not None and cell.looks]
    return replay(final(plan, known), results) or ()


def _joined(
    plan: Plan, cell: CellOutcome, asked: list[Trial] | None, results: Mapping[Trial, Result], look: int
) -> CellOutcome:
    if asked is None:
        return cell
    return replace(race.after_look(plan, cell, results, look), spent=(*cell.spent, *asked))


def _longest(cells: Cells) -> int:
    return max(cell.looks[-1] for cell in cells)
