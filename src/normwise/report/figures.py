"""Every figure of the report as a plotly dictionary, from the content of results.json; nothing drawn yet."""

from typing import Any

from normwise.report.against import cost, sizes
from normwise.report.curves import curves
from normwise.report.draw import Figure
from normwise.report.ranked import differences, losses, seeds
from normwise.report.rates import rates
from normwise.report.view import View

DETAILS = (curves, sizes, rates, seeds, losses, cost)


def figures(content: dict[str, Any]) -> list[Figure]:
    """The figures that a run has the data for: the main one first, then the details in their order.

    >>> figures({"verdict": {}, "config": {}, "results": []})
    []
    """
    view = View(content)
    return [figure for make in (differences, *DETAILS) if (figure := make(view))]
