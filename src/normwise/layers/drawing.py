"""Which values share one statistic, drawn as text: a grid of planes with the pool of the first value filled."""

INSTANCES, CHANNELS, PIXELS = 3, 4, 4
FILLED, EMPTY = "█", "·"


def drawing(axes: str, groups: int = 2, chunk: int = INSTANCES) -> str:
    """Draws one pool: rows are instances, columns channels (tokens), the signs of a cell positions (features).

    `axes` is one of `NormEntry.axes`: N (in chunks), C, C/g (of `groups`), HW and F joined by commas.

    >>> print(drawing("N,HW"))
           channel 0     1     2     3
    instance 0     ████  ····  ····  ····
    instance 1     ████  ····  ····  ····
    instance 2     ████  ····  ····  ····
    """
    pooled = axes.split(",")
    width = CHANNELS if "C" in pooled else CHANNELS // groups if "C/g" in pooled else 1
    whole = "HW" in pooled or "F" in pooled
    lines = [f"{'token' if 'F' in pooled else 'channel':>14} {'     '.join(map(str, range(CHANNELS)))}"]
    for n in range(INSTANCES):
        cells = [_cell(c < width and n < (chunk if "N" in pooled else 1), whole) for c in range(CHANNELS)]
        lines.append(f"instance {n}     {'  '.join(cells)}")
    return "\n".join(lines)


def _cell(pooled: bool, whole: bool) -> str:
    filled = (PIXELS if whole else 1) if pooled else 0
    return FILLED * filled + EMPTY * (PIXELS - filled)
