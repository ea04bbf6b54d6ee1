"""The mean-field theory of normalized networks at initialization: pure formulas."""

import math


def growth(values: float) -> float:
    """By what factor the squared gradient grows per layer of a deep ReLU network with batch norm.

    `((B - 1 + j0) / (1 - j1) - 1) / (B - 3)`, with j0 and j1 the arc-cosine kernels of degree 0 and 1 at
    the correlation -1 / (B - 1) of standardized values; B = `values` behind one statistic, above 3. Its
    limit is pi / (pi - 1) (Yang et al., 2019, theorem 8, for batches of vectors). With B = H*W it is taken
    for instance norm here, which is not in the paper.

    >>> [round(growth(values), 3) for values in (4, 8, 16, 32, 64, 128)]
    [3.084, 1.788, 1.59, 1.522, 1.493, 1.48]
    >>> round(growth(1e9), 4) == round(math.pi / (math.pi - 1), 4)
    True
    """
    if values <= 3:
        raise ValueError(f"the growth is finite for more than 3 values per statistic, got {values}")
    c = -1 / (values - 1)
    angle = math.pi - math.acos(c)
    j0, j1 = angle / math.pi, (math.sqrt(1 - c * c) + angle * c) / math.pi
    return ((values - 1 + j0) / (1 - j1) - 1) / (values - 3)
