"""Numbers about a network's norms, from records: pure arithmetic."""

import math
import statistics
from collections.abc import Sequence

from normwise.layers import NORMS
from normwise.probe.record import Record

BYTES_PER_NUMBER = 4


def values_per_statistic(record: Record) -> int:
    """How many values stand behind the smallest statistic of a norm: what decides whether its statistics hurt.

    Batch norm N*H*W, instance norm H*W, group norm C/g*H*W; a blend counts its smallest pool; 0 where
    nothing is pooled.
    """
    pools = NORMS[record.state.spec.name].axes
    return min((math.prod(_extent(axis, record) for axis in pool.split(",")) for pool in pools), default=0)


def _extent(axis: str, record: Record) -> int:
    """How many values one pooled axis holds: N, C, C/g (a group's channels), HW (positions) or F (features)."""
    n, c, *spatial = record.shape
    if ("axis", -1) in record.state.spec.options:
        n, *spatial, c = record.shape
    if axis == "C/g":
        return c // int(dict(record.state.spec.options)["groups"])
    return {"N": n, "C": c, "HW": math.prod(spatial), "F": record.shape[-1]}[axis]


def norm_cost(record: Record) -> int:
    """Bytes moved plus operations of a norm at inference: two passes where it measures, one where it remembers.

    Reading and writing cost 4 bytes a value, standardizing 2 operations, statistics a read and 3 operations.
    """
    name, tracks = record.state.spec.name, bool(record.state.track_running_stats)
    pools = [axes for axes in NORMS[name].axes if not tracks or (name != "instance" and "N" not in axes.split(","))]
    return math.prod(record.shape) * (2 * BYTES_PER_NUMBER + 2 + bool(pools) * BYTES_PER_NUMBER + 3 * len(pools))


def gradient_growth(records: Sequence[Record]) -> float | None:
    """By what factor the squared gradient grows per norm layer, from the last to the first (1 = stable).

    The slope of log(sum of squares) over depth by least squares; None for fewer than two layers.
    """
    logs = [math.log(r.squared_gradient) for r in records if r.squared_gradient]
    if len(logs) < 2:
        return None
    return math.exp(-statistics.linear_regression(range(len(logs)), logs).slope)
