"""One norm explained: its pools drawn, its steps on small numbers, what it keeps, what it costs, when to take it."""

from typing import Any

import torch
from torch import Tensor, nn

from normwise.layers.catalogue import NORMS
from normwise.layers.drawing import drawing
from normwise.layers.entry import NormEntry
from normwise.layers.spec import KEEP, NormSpec, build, parse
from normwise.table import Moments, moments

C = 64  # for shapes and counts, where the spec's groups divide it
NUMBERS = torch.tensor(  # (N, C, positions)
    [
        [[1.0, 2, 3], [4, 8, 12], [0, 3, 0], [5, 5, 8]],
        [[0.0, 0, 6], [10, 20, 30], [1, 1, 4], [7, 8, 9]],
        [[3.0, 1, 2], [2, 8, 14], [2, 3, 4], [6, 7, 8]],
    ]
)
STYLE = NUMBERS.flip(0) + 10
DEFAULTS = "with its defaults"


def explain(text: str) -> dict[str, Any]:
    """Everything `normwise explain` shows, as plain data.

    >>> explain("batch")["steps"]["statistics"]
    ['mean over N,HW: 2, 12, 2, 7', 'variance over N,HW: 3.1111, 65.7778, 2.2222, 1.7778']
    """
    if text.strip() == "keep":
        return {"schema": 1, "name": "keep", "summary": KEEP}
    spec = parse(text)
    entry = NORMS[spec.name]
    said = {name: getattr(entry, name) for name in _SAID}
    return {
        "schema": 1,
        **said,
        "cannot": dict(entry.cannot),
        "drawings": [drawing(axes, _groups(spec), _chunk(spec)) for axes in entry.axes],
        "drawn": _drawn(spec),
        "steps": _steps(spec),
        "channels": _channels(spec),
        "tensors": _tensors(spec),
        "cost": _cost(entry),
    }


def card(text: str) -> str:
    """The same for people, as lines of text.

    >>> print(card("none").splitlines()[0])
    none: no normalization: a learned weight and bias per channel
    """
    content = explain(text)
    if content["name"] == "keep":
        return f"keep: {KEEP}"
    blocks = [f"{content['name']}: {content['summary']}", content["formula"], _pools(content), _shown(content)]
    rows = [
        f"  {t['name']:<20} {t['kind']:<10} {t['shape']:<10} {t['count']} for C = {content['channels']}"
        for t in content["tensors"]
    ]
    blocks += ["Keeps\n" + "\n".join(rows or ["  nothing"]), "Costs\n" + "\n".join(f"  {c}" for c in content["cost"])]
    titles = {
        "when": "Take it when", "when_not": "Leave it when", "option": "Option", "evidence": "Measured by others",
        "paper": "Paper",
    }  # fmt: skip
    blocks += [f"{title}\n  {content[name]}" for name, title in titles.items() if content[name]]
    if content["given"]:
        blocks.append(f"Second input\n  forward(x, {content['given']}, mask=None)")
    reasons = [
        f"  not: {promise.replace('_', ' ').replace(':', ', in ')}. Why: {why}"
        for promise, why in content["cannot"].items()
    ]
    return "\n\n".join(blocks + (["What most norms promise and it does not\n" + "\n".join(reasons)] if reasons else []))


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
    lines = [f"Step by step, in training, on x of {len(NUMBERS)} instances, 4 channels, 3 positions{instead}"]
    for name, rows in content["steps"].items():
        lines += [f"  {name}", *(f"    {row}" for row in rows)]
    return "\n".join(lines)


def _example(spec: NormSpec) -> NormSpec:
    """The spec itself; where four channels have no such groups, or three instances are one chunk, two of each."""
    fitting = {"group": (1, 2, 4), "ghost": (1, 2)}.get(spec.name)
    fits = fitting is None or (spec.options and all(value in fitting for _, value in spec.options))
    return spec if fits else parse(f"{spec.name}:2")


def _groups(spec: NormSpec) -> int:
    return getattr(build(_example(spec), NUMBERS.shape[1]), "num_groups", 2)


def _chunk(spec: NormSpec) -> int:
    return getattr(build(_example(spec), NUMBERS.shape[1]), "chunk_size", len(NUMBERS))


def _drawn(spec: NormSpec) -> str:
    """What pools and statistics show, where it is not the spec's own."""
    if _example(spec) != spec:
        return f"as {_example(spec)}"
    follows = spec.name in ("group", "ghost")
    return DEFAULTS if spec.options and NORMS[spec.name].axes and not follows else ""


def _steps(spec: NormSpec) -> dict[str, list[str]]:
    """Statistics, standardized, scaled and shifted: measured on the layer itself."""
    entry, norm = NORMS[spec.name], build(_example(spec), NUMBERS.shape[1])
    last = entry.kind == "position" or ("axis", -1) in spec.options
    x = NUMBERS.movedim(1, -1) if last else NUMBERS
    embedding = getattr(norm, "embedding", None)
    condition = torch.zeros(len(x), embedding) if embedding else torch.zeros(len(x), dtype=torch.long)
    given = {"style": STYLE, "condition": condition}.get(entry.given)

    def run(values: dict[str, int]) -> list[str]:
        for name, value in values.items():
            norm.get_parameter(name).data.fill_(value)
        torch.manual_seed(0)
        y = norm(x, *([] if given is None else [given])).detach()
        return _rows(y.movedim(-1, 1) if last else y)

    learned = [name for name in ("weight", "bias") if norm._parameters.get(name) is not None]
    runs = [dict(zip(learned, values, strict=False)) for values in ([(1, 0), (2, 1)] if learned else [()])]
    steps = {"x": _rows(NUMBERS), "statistics": _statistics(spec)}
    with torch.random.fork_rng(devices=[]):
        return steps | {_with(values): run(values) for values in runs}


def _with(values: dict[str, int]) -> str:
    """What the layer was given to scale and shift with: its own parameters, as far as it has them."""
    return f"with {', '.join(f'{name} {value}' for name, value in values.items())}" if values else "y"


def _statistics(spec: NormSpec) -> list[str]:
    entry, table, groups = NORMS[spec.name], moments(NUMBERS), _groups(spec)
    chunk = _chunk(spec)
    found = []
    for axes in entry.axes:
        pooled = _pooled(table, axes, groups, chunk)
        if "x^2" in entry.formula:
            found.append(f"mean of squares over {axes}: {_numbers(pooled.var + pooled.mean**2)}")
        else:
            found += [f"mean over {axes}: {_numbers(pooled.mean)}", f"variance over {axes}: {_numbers(pooled.var)}"]
    return (found or ["none"]) + ([f"({DEFAULTS})"] if _drawn(spec) == DEFAULTS else [])


def _pooled(table: Moments, axes: str, groups: int, chunk: int) -> Moments:
    """The pool that these axes name, of the numbers."""
    if axes in ("C", "F"):
        return Moments(NUMBERS.mean(1), NUMBERS.var(1, correction=0), NUMBERS.shape[1])
    if "C" in axes:
        return table.pool(1) if "C/g" not in axes else Moments(*(_first(t, groups) for t in table.pool(1, groups)))
    if "N" not in axes:
        return table
    pooled = table.pool(0, -(-len(NUMBERS) // chunk))
    return Moments(pooled.mean[::chunk], pooled.var[::chunk], pooled.count)


def _first(t: Any, groups: int) -> Any:
    """Of each group of channels the first: they have the same statistic."""
    return t[:, :: t.shape[1] // groups] if isinstance(t, Tensor) else t


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{round(value, 4) + 0.0:g}" for value in values.flatten().tolist())


def _rows(y: Tensor) -> list[str]:
    return [f"instance {n}: " + " | ".join(_numbers(plane) for plane in planes) for n, planes in enumerate(y)]


def _channels(spec: NormSpec) -> int:
    """64 channels, or the next number that the groups divide."""
    divisor = max(1, *(int(value) for _, value in spec.options)) if spec.name == "group" and spec.options else 1
    return -(-C // divisor) * divisor


def _tensors(spec: NormSpec) -> list[dict[str, Any]]:
    """Parameters and buffers by name, with their shape in terms of C."""
    channels = _channels(spec)
    norm = build(spec, channels)
    kinds = {"parameter": norm.named_parameters(), "state": norm.named_buffers()}
    return [
        {"name": name, "kind": kind, "shape": _shape(t, channels), "count": t.numel()}
        for kind, named in kinds.items()
        for name, t in named
    ]


def _shape(t: Tensor, channels: int) -> str:
    return f"({', '.join('C' if size == channels else str(size) for size in t.shape)})"


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
