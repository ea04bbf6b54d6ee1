"""The drawing of what a norm averages over: a grid of planes with one pool shaded."""

import re
from typing import NamedTuple

from normwise.report.text import listing

INSTANCES, CHANNELS, CELL, GAP = 4, 8, 13, 2
GROUPS = 4  # drawn where the number of groups is not said
STEP = CHANNELS * (CELL + GAP) + 22
WORDS = {
    "N": "instances",
    "C": "channels",
    "C/g": "the channels of a group",
    "HW": "positions",
    "F": "features",
}


class Pool(NamedTuple):
    """How many instances and channels share one statistic, and whether whole planes do."""

    instances: int
    channels: int
    planes: bool


def pools(text: str) -> list[Pool]:
    """Reads what an arm averages over; a blend has several pools, an arm without a norm none.

    N are instances, C channels, C/4 those of one group of four, HW positions, F the features of one
    position. A plus blends, a semicolon separates layers of different norms.

    >>> pools("C/4,HW"), pools("N,HW + HW")[0], pools("nothing")
    ([Pool(instances=1, channels=2, planes=True)], Pool(instances=4, channels=1, planes=True), [])
    """
    return [_pool(part) for part in _parts(text)]


def words(text: str) -> str:
    """What an arm averages over, in words.

    >>> words("N,HW + HW")
    'instances and positions, blended with positions'
    """
    said = [listing([WORDS.get(axis.strip(), WORDS["C/g"]) for axis in part.split(",")]) for part in _parts(text)]
    return ", blended with ".join(said) or "nothing"


def _parts(text: str) -> list[str]:
    """The pools of a text, each once."""
    parts = (part.strip() for part in re.split(r"[+;]", text.removeprefix("blend:")))
    return list(dict.fromkeys(part for part in parts if re.fullmatch(r"(N|C(/\w+)?|HW|F)(,\s*(C(/\w+)?|HW|F))*", part)))


def _pool(text: str) -> Pool:
    axes = {axis.strip().partition("/")[0]: axis.partition("/")[2] for axis in text.split(",")}
    groups = int(axes["C"]) if axes.get("C", "").isdigit() else GROUPS if axes.get("C") else 1
    channels = max(1, CHANNELS // groups) if axes.keys() & {"C", "F"} else 1
    return Pool(INSTANCES if "N" in axes else 1, channels, planes="HW" in axes)


def drawing(text: str, color: str, dark: str) -> str:
    """The SVG of an arm's pools, of an unshaded grid where nothing is pooled; holds no user text."""
    grids = pools(text) or [None]
    width, height = STEP * len(grids) - 22, INSTANCES * (CELL + GAP)
    parts = [_grid(pool, i * STEP) for i, pool in enumerate(grids)]
    parts += [f'<text x="{i * STEP - 17}" y="{height / 2 + 4}" class="plus">+</text>' for i in range(1, len(grids))]
    style = f"color:{color};color:light-dark({color},{dark})"
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg {size} aria-hidden="true" style="{style}">{"".join(parts)}</svg>'


def _grid(pool: Pool | None, left: int) -> str:
    return "".join(_cell(pool, n, c, left) for n in range(INSTANCES) for c in range(CHANNELS))


def _cell(pool: Pool | None, n: int, c: int, left: int) -> str:
    x, y = left + c * (CELL + GAP), n * (CELL + GAP)
    square = f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" rx="1.5"'
    if pool is None or n >= pool.instances or c >= pool.channels:
        return f'{square} class="plane"/>'
    if pool.planes:
        return f'{square} fill="currentColor"/>'
    return f'{square} class="plane"/><rect x="{x + 4}" y="{y + 4}" width="4" height="4" fill="currentColor"/>'
