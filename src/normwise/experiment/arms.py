"""The arms of a comparison: which normalizations can run in this network, and what each costs before it is trained."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from normwise.errors import UsageError
from normwise.experiment.setting import Setting
from normwise.experiment.task import Task
from normwise.experiment.train import build
from normwise.layers import NORMS, spec
from normwise.probe.measure import norm_cost, values_per_statistic
from normwise.probe.record import Record, record
from normwise.probe.structure import before_global_pooling
from normwise.surgery.command import read_spec
from normwise.surgery.fold import fold

CHECKED_SPLITS = 4  # groups and splits of the user's own may differ in size
DEFAULT_ARMS = ("batch", "instance", "group", "layer", "none")


@dataclass(frozen=True)
class Arm:
    """One arm and what a single forward pass says of it.

    `cost`: bytes moved plus operations of the norms left after folding, for one sample. `values` and
    `smallest` map a batch size to the fewest values behind a statistic and the layer where that is.
    """

    name: str
    aliases: tuple[str, ...] = ()
    pools: str = ""
    cost: float = 0.0
    parameters: int | None = None
    buffers: int = 0
    values: dict[int, int] = field(default_factory=dict)
    smallest: dict[int, str] = field(default_factory=dict)
    over_batch: bool = False
    before_pooling: tuple[str, ...] = ()
    as_instance: tuple[str, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """An arm that cannot run here, and why."""

    norm: str
    why: str


def survey(
    task: Task, named: Sequence[str] | None, batch_sizes: Sequence[int], setting: Setting
) -> tuple[tuple[Arm, ...], tuple[LeftOut, ...]]:
    """The arms that can run, equal ones joined, and those left out.

    An arm that the user named and that is impossible, or alters no layer, is a UsageError; a default
    arm is left out. Fewer than two arms are a UsageError.
    """
    wanted = [_canonical(name) for name in (named or DEFAULT_ARMS)]
    if task.own_model and "keep" not in wanted:
        wanted.insert(0, "keep")
    if task.own_loop is not None:
        return tuple(_unseen(name) for name in dict.fromkeys(wanted)), ()
    check_parts(task, batch_sizes)
    if not any(spec.read(module) is not None for module in task.model().modules()):
        raise UsageError("the model has no normalization layer, so there is nothing to compare")
    found: dict[Any, Arm] = {}
    left: list[LeftOut] = []
    for name in dict.fromkeys(wanted):
        try:
            key, arm = _inspect(task, name, batch_sizes, setting)
        except UsageError as error:
            if named and name in [_canonical(n) for n in named]:
                raise UsageError(f"--norm {name}: {error}") from error
            left.append(LeftOut(name, str(error)))
            continue
        found[key] = _join(found[key], arm, named or ()) if key in found else arm
    if len(found) < 2:
        raise UsageError(_too_few(found, left))
    return tuple(found.values()), tuple(left)


def check_parts(task: Task, batch_sizes: Sequence[int]) -> None:
    """Raises UsageError where a training set is smaller than a batch."""
    samples = min(len(task.parts(seed).train) for seed in range(CHECKED_SPLITS))
    if samples < max(batch_sizes):
        raise UsageError(
            f"a batch size must not exceed the {samples} training samples of a split, got {max(batch_sizes)}; "
            "choose smaller batch sizes or bring more data"
        )


def _canonical(name: str) -> str:
    return name if name == "keep" or name.startswith("{") else str(spec.parse(name))


def _unseen(name: str) -> Arm:
    """An arm of a user's own loop: the network is not seen, its cost is only ranked."""
    if name == "keep" or name.startswith("{"):
        return Arm(name)
    parsed = spec.parse(name)
    return Arm(
        name, pools=" + ".join(NORMS[parsed.name].axes) or "nothing", cost=0.0 if NORMS[parsed.name].fixed else 1.0
    )


def _inspect(task: Task, name: str, batch_sizes: Sequence[int], setting: Setting) -> tuple[Any, Arm]:
    """Builds the arm and runs it once at each batch size, as training will."""
    before = task.model()
    model = build(task, name, seed=0, device=setting.device)
    _check_altered(before, model, name)
    parts = {size: size // setting.ranks.processes for size in batch_sizes}  # what a norm sees of a batch
    batches = {size: next(iter(_training(task, part, setting))) for size, part in parts.items()}
    passes = {size: _forward(task, model, batch, size) for size, batch in batches.items()}
    values, smallest = _fewest_values(passes, setting.ranks.processes)
    folded = copy.deepcopy(model).eval()
    fold(folded)
    first = min(batch_sizes)
    left = _forward(task, folded, batches[first], first)
    arm = Arm(
        name,
        pools=_pools(passes[first]),
        cost=sum(norm_cost(entry) for entry in left) / parts[first],
        parameters=sum(p.numel() for p in model.parameters()),
        buffers=sum(b.numel() for b in model.buffers()),
        values=values,
        smallest=smallest,
        over_batch=any("N" in pool.split(",") for r in passes[first] for pool in NORMS[r.state.spec.name].axes),
        before_pooling=_fatal_pooling(model),
        as_instance=tuple(dict.fromkeys(r.path for r in passes[first] if _is_instance(r.state))),
    )
    return _signature(model), arm


def _training(task: Task, size: int, setting: Setting):
    return setting.batches(task.parts(0).train, size, collate=task.collate)


def _forward(task: Task, model: nn.Module, batch: Any, size: int) -> list[Record]:
    """The norms' records of one training-mode forward; an impossible one names the layer."""
    with torch.random.fork_rng(), torch.no_grad(), record(model) as records:
        try:
            task.loss(model, batch)
        except ValueError as error:
            raise UsageError(_failure(records, size, error)) from error
    return records


def _failure(records: list[Record], size: int, error: ValueError) -> str:
    """Which layer failed; PyTorch's own words on too few values get what is required and what to do."""
    where = f"layer {records[-1].path!r}: " if records else ""
    if "Expected more than 1" not in str(error):
        return f"{where}{error}"
    return (
        f"{where}its statistics need at least 2 values each, and at batch size {size} an input of shape "
        f"{records[-1].shape} has 1; use a larger batch size or leave this arm out"
    )


def _fewest_values(passes: dict[int, list[Record]], processes: int) -> tuple[dict[int, int], dict[int, str]]:
    values, smallest = {}, {}
    for size, records in passes.items():
        shares = [processes if r.state.spec.name == "sync" else 1 for r in records]  # that the layer pools
        counted = [(values_per_statistic(r) * n, r.path) for r, n in zip(records, shares, strict=True)]
        values[size], smallest[size] = min((c for c in counted if c[0]), default=(0, ""))
    return values, smallest


def _pools(records: list[Record]) -> str:
    """The pooled axes, such as "N,HW"; several pools are blended."""
    axes = dict.fromkeys(" + ".join(NORMS[r.state.spec.name].axes) or "nothing" for r in records)
    return "; ".join(axes)


def _is_instance(state: spec.NormState) -> bool:
    """One channel per group: instance norm by whatever name."""
    groups = dict(state.spec.options).get("groups")
    return state.spec.name == "instance" or groups == state.num_features


def _fatal_pooling(model: nn.Module) -> tuple[str, ...]:
    modules = dict(model.named_modules())
    states = {path: spec.read(modules[path]) for path in before_global_pooling(model)}
    return tuple(path for path, state in states.items() if state is not None and _is_instance(state))


def _signature(model: nn.Module) -> Any:
    modules = [(path, spec.signature(m)) for path, m in model.named_modules() if spec.read(m) is not None]
    return tuple(modules)


def _check_altered(before: nn.Module, after: nn.Module, name: str) -> None:
    """A spec that leaves every layer as it was compares the network with itself, unless it is what it has."""
    if name == "keep" or _signature(before) != _signature(after):
        return
    states = [state for m in before.modules() if (state := spec.read(m)) is not None]
    asked = read_spec(name)
    names = set(map(str, asked.values())) if isinstance(asked, dict) else {str(asked)}
    if not any(str(state.spec) in names for state in states):
        tokens = any(NORMS[state.spec.name].kind == "position" for state in states)
        hint = "its norms work per position: try layer-token and rms-token" if tokens else "it has no such norm"
        if any(NORMS[text.partition(":")[0]].kind == "other" for text in names if text != "None"):
            hint = "this one stands in for no norm"
        raise UsageError(f"it alters no layer of this network; {hint}")


def _join(first: Arm, second: Arm, named: Sequence[str]) -> Arm:
    """One arm for two names; what the user typed goes before `keep`."""
    if first.name == "keep" and second.name in map(_canonical, named) and "keep" not in named:
        first, second = second, first
    return replace(first, aliases=(*first.aliases, second.name, *second.aliases))


def _too_few(found: dict[Any, Arm], left: list[LeftOut]) -> str:
    names = "; ".join([" = ".join([arm.name, *arm.aliases]) for arm in found.values()]) or "none"
    why = "".join(f"; {entry.norm} is impossible: {entry.why}" for entry in left)
    return f"a comparison needs at least two different arms, got {names}{why}; name more with --norm"
