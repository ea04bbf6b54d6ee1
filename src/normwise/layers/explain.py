"""One norm explained: its pools drawn, its steps on small numbers, what it keeps, what it costs, when to take it."""

from typing import Any

import torch
from torch import Tensor, nn

from normwise.layers.catalogue import NORMS
from normwise.layers.drawing import drawing
from normwise.layers.entry import NormEntry
from normwise.layers.spec import NormSpec, build, parse
from normwise.table import Moments, moments

C = 64  # for shapes and counts
NUMBERS = torch.tensor(  # (N, C, positions)
    [[[1.0, 2, 3], [4, 8, 12], [0, 3, 0], [5, 5, 8]], [[0.0, 0, 6], [10, 20, 30], [1, 1, 4], [7, 8, 9]]]
)
STYLE = NUMBERS.flip(0) + 10
DEFAULTS = "with its defaults"


def explain(text: str) -> dict[str, Any]:
    """Everything `normwise explain` shows, as plain data.

    >>> explain("batch")["steps"]["statistics"]
    ['mean over N,HW: 2, 14, 1.5, 7', 'variance over N,HW: 4.3333, 74.6667, 2.25, 2.3333']
    """
    spec = parse(text)
    entry = NORMS[spec.name]
    said = {name: getattr(entry, name) for name in _SAID}
    return {
        "schema": 1,
        **said,
        "cannot": dict(entry.cannot),
        "drawings": [drawing(axes, _groups(spec)) for axes in entry.axes],
        "drawn": _drawn(spec),
        "steps": _steps(spec),
        "tensors": _tensors(str(spec)),
        "cost": _cost(entry),
    }


def card(text: str) -> str:
    """The same for people, as lines of text.

    >>> print(card("none").splitlines()[0])
    none: no normalization: a learned weight and bias per channel
    """
    content = explain(text)
    blocks = [f"{content['name']}: {content['summary']}", content["formula"], _pools(content), _shown(content)]
    rows = [f"  {t['name']:<20} {t['kind']:<10} {t['shape']:<10} {t['count']} for C = {C}" for t in content["tensors"]]
    blocks += ["Keeps\n" + "\n".join(rows or ["  nothing"]), "Costs\n" + "\n".join(f"  {c}" for c in content["cost"])]
    titles = {
        "when": "Take it when", "when_not": "Leave it when", "option": "Option", "evidence": "Measured by others",
        "paper": "Paper",
    }  # fmt: skip
    blocks += [f"{title}\n  {content[name]}" for name, title in titles.items() if content[name]]
    if content["given"]:
        blocks.append(f"Second input\n  forward(x, {content['given']}, mask=None)")
    reasons = [
        f"  {promise.replace('_', ' ').replace(':', ', in ')}: {why}" for promise, why in content["cannot"].items()
    ]
    return "\n\n".join(blocks + (["What it does not promise\n" + "\n".join(reasons)] if reasons else []))


_SAID = (
    "name", "kind", "summary", "formula", "pools", "axes", "option", "given", "when", "when_not", "evidence", "paper",
)  # fmt: skip


def _pools(content: dict[str, Any]) -> str:
    drawings = "\n\n".join(content["drawings"])
    drawn = f"; drawn {content['drawn']}" if content["drawn"] else ""
    shared = f" (filled: what shares a statistic with the first value{drawn})\n\n{drawings}" if drawings else ""
    return f"Averages over {content['pools']}{shared}"


def _shown(content: dict[str, Any]) -> str:
    """The steps, one below the other."""
    instead = f", {content['drawn']}" if content["drawn"] not in ("", DEFAULTS) else ""
    lines = [f"Step by step, in training, on x of 2 instances, 4 channels, 3 positions{instead}"]
    for name, rows in content["steps"].items():
        lines += [f"  {name}", *(f"    {row}" for row in rows)]
    return "\n".join(lines)


def _example(spec: NormSpec) -> NormSpec:
    """The spec itself; group:2, as drawn, where no number of groups is given or four channels do not have so many."""
    fits = spec.options and all(value in (1, 2, 4) for _, value in spec.options)
    return spec if spec.name != "group" or fits else parse("group:2")


def _groups(spec: NormSpec) -> int:
    return getattr(build(_example(spec), NUMBERS.shape[1]), "num_groups", 2)


def _drawn(spec: NormSpec) -> str:
    """What pools and statistics show, where it is not the spec's own."""
    if _example(spec) != spec:
        return f"as {_example(spec)}"
    return DEFAULTS if spec.options and NORMS[spec.name].axes and spec.name != "group" else ""


def _steps(spec: NormSpec) -> dict[str, list[str]]:
    """Statistics, standardized, scaled and shifted: measured on the layer itself."""
    entry, norm = NORMS[spec.name], build(_example(spec), NUMBERS.shape[1])
    last = entry.kind == "position" or ("axis", -1) in spec.options
    x = NUMBERS.movedim(1, -1) if last else NUMBERS
    embedding = getattr(norm, "embedding", None)
    condition = torch.zeros(2, embedding) if embedding else torch.tensor([0, 0])
    given = {"style": STYLE, "condition": condition}.get(entry.given)

    def run(weight: float, bias: float) -> list[str]:
        for name, value in (("weight", weight), ("bias", bias)):
            if norm._parameters.get(name) is not None:
                norm.get_parameter(name).data.fill_(value)
        torch.manual_seed(0)
        y = norm(x, *([] if given is None else [given])).detach()
        return _rows(y.movedim(-1, 1) if last else y)

    with torch.random.fork_rng(devices=[]):
        steps = {"x": _rows(NUMBERS), "statistics": _statistics(spec)}
        return {**steps, "with weight 1, bias 0": run(1, 0), "with weight 2, bias 1": run(2, 1)}


def _statistics(spec: NormSpec) -> list[str]:
    entry, table, groups = NORMS[spec.name], moments(NUMBERS), _groups(spec)
    found = []
    for axes in entry.axes:
        pooled = _pooled(table, axes, groups)
        if "x^2" in entry.formula:
            found.append(f"mean of squares over {axes}: {_numbers(pooled.var + pooled.mean**2)}")
        else:
            found += [f"mean over {axes}: {_numbers(pooled.mean)}", f"variance over {axes}: {_numbers(pooled.var)}"]
    return (found or ["none"]) + ([f"({DEFAULTS})"] if _drawn(spec) == DEFAULTS else [])


def _pooled(table: Moments, axes: str, groups: int) -> Moments:
    """The pool that these axes name, of the numbers."""
    if axes in ("C", "F"):
        return Moments(NUMBERS.mean(1), NUMBERS.var(1, correction=0), NUMBERS.shape[1])
    if "C" in axes:
        return table.pool(1) if "C/g" not in axes else Moments(*(_first(t, groups) for t in table.pool(1, groups)))
    return table.pool(0) if "N" in axes else table


def _first(t: Any, groups: int) -> Any:
    """Of each group of channels the first: they have the same statistic."""
    return t[:, :: t.shape[1] // groups] if isinstance(t, Tensor) else t


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{round(value, 4) + 0.0:g}" for value in values.flatten().tolist())


def _rows(y: Tensor) -> list[str]:
    return [f"instance {n}: " + " | ".join(_numbers(plane) for plane in planes) for n, planes in enumerate(y)]


def _tensors(text: str) -> list[dict[str, Any]]:
    """Parameters and buffers by name, with their shape in terms of C."""
    norm = build(text, C)
    kinds = {"parameter": norm.named_parameters(), "state": norm.named_buffers()}
    return [
        {"name": name, "kind": kind, "shape": _shape(t), "count": t.numel()}
        for kind, named in kinds.items()
        for name, t in named
    ]


def _shape(t: Tensor) -> str:
    return f"({', '.join('C' if size == C else str(size) for size in t.shape)})"


def _cost(entry: NormEntry) -> list[str]:
    """How often the activation is read and written, in float32 bytes per value."""
    own = any("N" not in axes.split(",") for axes in entry.axes)
    reads = {"training": 2 if entry.axes else 1, "evaluation": 2 if own else 1}
    lines = [f"{mode}: reads x {_times(n)}, writes it once: {4 * (n + 1)} bytes a value" for mode, n in reads.items()]
    if _idle(entry):
        lines[1] = "evaluation: nothing, x itself comes back"
    elif entry.fixed:
        lines[1] += "; a fixed weight and bias per channel, which nw.fold takes into the convolution before it"
    more = entry.cannot.get("keeps_one_activation_for_the_backward_pass")
    return [*lines, f"backward: {'keeps more than x: ' + more if more else 'keeps x and small tables'}"]


def _idle(entry: NormEntry) -> bool:
    norm: nn.Module = build(entry.name, NUMBERS.shape[1]).eval()
    return entry.kind != "position" and not entry.given and norm(NUMBERS) is NUMBERS


def _times(n: int) -> str:
    return {1: "once", 2: "twice"}[n]
