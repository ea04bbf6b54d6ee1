"""Explains oddities where they occur: what a reader would otherwise take for a mistake or a law of nature."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from normwise.experiment.arms import Arm
from normwise.experiment.evidence import Evidence

Note = dict[str, Any]
FEW = 8  # values per statistic below which batch statistics are mostly noise
SMALL_BATCH = 8


def notes(evidence: Evidence) -> list[Note]:
    """The notes that apply, in the order of the table."""
    return [note for explain in EXPLANATIONS for note in explain(evidence)]


def _note(id: str, title: str, text: str, *arms: str) -> Note:
    return {"id": id, "title": title, "text": text, "arms": list(arms)}


def _over_batch(e: Evidence) -> Iterator[Arm]:
    """The arms whose statistics come from the batch."""
    return (arm for arm in e.arms if arm.over_batch)


def _two_values(e: Evidence) -> Iterator[Note]:
    for arm in _over_batch(e):
        for size in (size for size, count in arm.values.items() if count == 2):
            yield _note(
                "two-values",
                "Outputs of +1 and -1",
                f"At batch size {size} {arm.name} standardizes two values per channel in layer "
                f"{arm.smallest[size]!r}: whatever they are, the results are +1 and -1, so the size of the difference "
                "is lost and almost no gradient passes. This is why it fails here; recalibration cannot help.",
                arm.name,
            )


def _few_values(e: Evidence) -> Iterator[Note]:
    for arm in _over_batch(e):
        for size in (size for size, count in arm.values.items() if 2 < count <= FEW):
            yield _note(
                "few-values",
                "Few values per statistic",
                f"At batch size {size} {arm.name} has {arm.values[size]} values per statistic in layer "
                f"{arm.smallest[size]!r}; its statistics are noisy there. The number of values N*H*W decides this, "
                "not the batch size alone.",
                arm.name,
            )


def _not_punished(e: Evidence) -> Iterator[Note]:
    for arm in _over_batch(e):
        sizes = [size for size, count in arm.values.items() if size <= SMALL_BATCH and count > FEW]
        if sizes:
            size = min(sizes)
            yield _note(
                "enough-values",
                "A small batch, but enough values",
                f"At batch size {size} {arm.name} still has {arm.values[size]} values per statistic in its poorest "
                f"layer ({arm.smallest[size]!r}), because positions count as well as samples. So the small batch by "
                "itself does not harm it.",
                arm.name,
            )


def _before_pooling(e: Evidence) -> Iterator[Note]:
    for arm in e.arms:
        if arm.before_pooling:
            yield _note(
                "before-pooling",
                "Instance norm directly before global pooling",
                f"{arm.name}: layer {arm.before_pooling[0]!r} feeds global average pooling with no activation "
                "between. The mean of every standardized plane is its bias, so the pooled vector is the same for "
                "all inputs and the network cannot do better than chance. Put an activation between.",
                arm.name,
            )


def _same_network(e: Evidence) -> Iterator[Note]:
    for arm in e.arms:
        if arm.aliases:
            names = ", ".join(arm.aliases)
            yield _note(
                "same-network",
                "The same network",
                f"{arm.name} and {names} build the same network here (one group per channel is instance norm, one "
                "group is layer norm), so it was run once.",
                arm.name,
            )
        if arm.name.startswith("group") and arm.as_instance:
            yield _note(
                "group-is-instance",
                "One channel per group",
                f"{arm.name} has one channel per group in {', '.join(arm.as_instance)}: there it is instance norm.",
                arm.name,
            )


def _high_rate(e: Evidence) -> Iterator[Note]:
    for size in e.plan.batch_sizes:
        instance, batch = (e.rates.get((name, size)) for name in ("instance", "batch"))
        if instance and batch and instance >= 2.9 * batch:
            yield _note(
                "high-rate",
                "Instance norm wants a higher learning rate",
                f"At batch size {size} instance was best at rate {instance:.3g}, batch at {batch:.3g}. At a common "
                "small rate instance norm would look much worse than it is; this is why every arm is tuned by itself.",
                "instance",
            )


def _one_at_a_time(e: Evidence) -> Iterator[Note]:
    """Where no way to stack worked, the first reason; slower stacks need no explanation."""
    why: dict[str, list[str]] = {}
    for arm, size in itertools.product(e.arms, e.plan.batch_sizes):
        tried = [result for result in e.of_kind("calibrate", arm.name, size) if result.trial.stack > 1]
        if tried and not any(result.measures for result in tried):
            reason = min(tried, key=lambda result: result.trial.channels_last).reason
            why.setdefault(reason, []).append(f"{arm.name} at batch size {size}")
    for reason, cells in why.items():
        yield _note(
            "one-at-a-time",
            "Trained one at a time",
            f"{', '.join(cells)}: trials could not be trained as one network, which costs time and changes no result. "
            f"The reason: {reason}.",
            *dict.fromkeys(cell.partition(" at batch size ")[0] for cell in cells),
        )


EXPLANATIONS: tuple[Callable[[Evidence], Iterator[Note]], ...] = (
    _two_values,
    _few_values,
    _not_punished,
    _before_pooling,
    _same_network,
    _high_rate,
    _one_at_a_time,
)
