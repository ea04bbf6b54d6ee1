"""A peer's process: prepares a cell, checks its result, times it, as the driver asks.

Started as `python -m normwise.bench.peer NAME`. Orders and answers are lines of JSON on standard input and
output; whatever a library prints goes to standard error. `{"cell": {...}}` prepares a cell, `{"seconds": 0.1}`
times the one prepared last for that long.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from math import isfinite
from typing import Any

from normwise.bench.cells import Cell
from normwise.bench.inputs import OFFSET, TOLERANCE, TOLERANCE_AT_OFFSET, error, make, truth
from normwise.bench.peers import ALL, MEMORY, Bind, NotOfferedError, Peer, Run

LEAST_CALLS = 3


def main() -> None:
    """Answers until the orders end."""
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)
        for answer in session(sys.argv[1], sys.stdin):
            print(json.dumps(answer), file=answers)


def session(name: str, orders: Any) -> Iterator[dict[str, Any]]:
    """The answers to lines of orders; the first tells the versions.

    >>> answers = session("eager", ['{"cell": {"norm": "instance", "shape": [2, 4, 4, 4]}}', '{"seconds": 0.01}'])
    >>> [sorted(answer) for answer in answers]
    [['versions'], ['error', 'error_at_offset', 'state'], ['run']]
    """
    peer = ALL[name].load()
    yield {"versions": peer.versions()}
    prepared: dict[str, Run] = {}
    for line in orders:
        order = json.loads(line)
        if "cell" in order:
            cell = Cell(**(order["cell"] | {"shape": tuple(order["cell"]["shape"])}))
            prepared = {}  # frees the last cell's memory first
            prepared, answer = prepare(peer, cell, check=name != MEMORY)
            yield answer
        else:
            yield timed(prepared, order["seconds"])


def prepare(peer: Peer, cell: Cell, check: bool) -> tuple[dict[str, Run], dict[str, Any]]:
    """Functions ready to be timed, and what is to be said of them: their error, or why there are none."""
    try:
        bind = peer.prepare(cell)
        found = checked(peer, cell, bind) if check else {}
        return bind(make(cell)), {"state": "ok"} | found
    except NotOfferedError as reason:
        return {}, {"state": "not offered", "reason": str(reason)}
    except Exception as failure:
        said = str(failure).strip().splitlines() or [""]
        return {}, {"state": "failed", "reason": f"{type(failure).__name__}: {said[0]}"[:300]}


def checked(peer: Peer, cell: Cell, bind: Bind) -> dict[str, Any]:
    """Compares with float64, at mean 0 and at a large mean."""
    found: dict[str, Any] = {}
    for name, mean, most in (
        ("error", 0.0, TOLERANCE[cell.dtype]),
        ("error_at_offset", OFFSET[cell.dtype], TOLERANCE_AT_OFFSET[cell.dtype]),
    ):
        inputs = make(cell, mean)
        off = error(peer.read(bind(inputs)["run"]()), truth(cell, inputs))
        found[name] = off if isfinite(off) else None
        if off > most:
            found["state"] = "wrong" if name == "error" else found.get("state", "wrong at a large mean")
    return found


def timed(functions: dict[str, Run], seconds: float) -> dict[str, float]:
    """Calls the functions in turn for so long; the lower quartile of each, in seconds."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or any(len(values) < LEAST_CALLS for values in times.values()):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: lower_quartile(values) for name, values in times.items()}


def lower_quartile(values: list[float]) -> float:
    """A quarter of the values are below it.

    >>> lower_quartile([5.0, 1.0, 3.0, 2.0, 4.0])
    2.0
    """
    return sorted(values)[len(values) // 4]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main()
