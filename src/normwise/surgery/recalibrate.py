"""recalibrate: recomputes running statistics as those of the whole data, not of the last few batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin

from normwise.errors import UsageError
from normwise.layers.recurrent import Recurrent
from normwise.layers.step_memory import StepMemory, memories
from normwise.measure import moments
from normwise.surgery.forward import call_labelled, quiet
from normwise.surgery.plan import Plan, operation
from normwise.surgery.recalibrate_steps import OneValue, level, listen, require_finite, write_steps
from normwise.table import Moments

Call = Callable[[nn.Module, Any], Any]


def recalibrate(model: nn.Module, loader: Iterable[Any], call: Call | None = None, *, dry_run: bool = False) -> Plan:
    """Recomputes the running statistics of batch and instance norms over a loader, in one pass.

    Batch norm: mean and unbiased variance of all values of a channel, between-batch variance included,
    pooled in float64 by the law of total variance. Tracked instance norm: the averages over all
    instances of their mean and variance. Recurrent layers with batch norm: each time step as batch norm,
    over the sequences that reach it. The forward runs in eval mode (no dropout), but the norms
    being recalibrated standardize with their batch, as they did while the weights were learned: so one
    pass serves all depths. `torch.optim.swa_utils.update_bn` knows PyTorch's batch norms alone and silently
    passes over ghost, renorm, switchable and the others: after averaging weights call this.

    Left alone: norms without running statistics and frozen ones, that is momentum 0, or eval mode
    inside a model in training mode (weights without gradients do not make a norm frozen); modes,
    momentum, random generators. `num_batches_tracked` becomes the number of uses pooled. A
    batch that gives a norm one value per channel is skipped, and the plan says so.

    Of several processes each measures its own loader: give all the same batches, or recalibrate the first and
    let DistributedDataParallel send its buffers on.

    Batches: a tensor; a tuple or list, of which the first is the input; a dict, of which `forward`
    gets the entries it knows. `call(model, batch)` runs the forward in any other case.

    >>> model = nn.Sequential(nn.BatchNorm1d(1)).eval()
    >>> plan = recalibrate(model, [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0]])])
    >>> model[0].running_mean.item(), round(model[0].running_var.item(), 3)
    (3.0, 6.667)
    """
    if isinstance(loader, Tensor | nn.Module) or not isinstance(loader, Iterable):
        raise UsageError(
            f"recalibrate: loader must give batches, got {type(loader).__name__}; a list of batches will do."
        )
    with operation("recalibrate", model, dry_run=dry_run) as plan:
        norms = _chosen(plan, model)
        if not norms:
            plan.say("nothing to recalibrate; `left` says why for each layer.")
            return plan
        pooled, batches = _measure(plan, model, norms, loader, call or call_labelled)
        for norm, path in norms.items():
            if norm in pooled:
                _write(plan, path, norm, *pooled[norm])
            else:
                plan.leave(path, type(norm).__name__, "the batches do not reach it")
        plan.say(f"{batches} {'batch' if batches == 1 else 'batches'}.")
    return plan


def _chosen(plan: Plan, model: nn.Module) -> dict[Any, str]:
    """The norms and memories of time steps to recalibrate, and their paths; the plan says why others are left."""
    chosen: dict[Any, str] = {}
    for path, norm in model.named_modules():
        if not isinstance(norm, _NormBase | Recurrent):
            continue
        if isinstance(norm, LazyModuleMixin):  # it changes its class when it knows them
            raise UsageError(f"{type(norm).__name__} must know its channels; run one batch through the model first.")
        why = _why_left(model, norm)
        for name, part in (memories(norm) or {"": norm}).items():
            place = ".".join(filter(None, (path, name)))
            if why:
                plan.leave(place, type(part).__name__, why)
            else:
                chosen[part] = place
    return chosen


def _why_left(model: nn.Module, norm: Any) -> str:
    """Why the statistics of a norm are not recomputed, or nothing."""
    if getattr(norm, "frozen", False):
        return "frozen"
    if model.training and not norm.training:
        return "frozen: in eval mode inside a model in training mode"
    if not memories(norm):
        if norm._buffers.get("running_mean") is None:
            return "it remembers no statistics"
        if norm.running_mean.dim() > 1:
            return "it has a memory for each domain; train them"
    return "frozen: its momentum is 0" if norm.momentum == 0 else ""


def _measure(
    plan: Plan, model: nn.Module, norms: dict[Any, str], loader: Iterable[Any], call: Call
) -> tuple[dict[Any, tuple[Moments, int]], int]:
    """Of each norm reached the pooled moments and the number of uses; and the number of batches."""
    pooled: dict[Any, tuple[Moments, int]] = {}
    seen: list[tuple[Any, Moments]] = []

    def observe(norm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, *mask = args or (kwargs["input"] if "input" in kwargs else kwargs["x"],)
        seen.append((norm, _observed(norm, norms[norm], x, mask[0] if mask else kwargs.get("mask"))))

    number = skipped = 0
    with quiet(model), _generators_kept(loader):
        for norm in norms:
            norm.training = True
            norm.register_forward_pre_hook(observe, with_kwargs=True)
        for layer in model.modules():
            if any(memory in norms for memory in memories(layer).values()):
                listen(cast(Recurrent, layer), norms, seen)
        for batch in loader:
            seen.clear()
            try:
                call(model, batch)
            except OneValue:
                skipped += 1
                continue
            number += 1
            for norm, table in seen:
                before, uses = pooled.get(norm, (None, 0))
                pooled[norm] = _pool(norm, [before, table] if before else [table]), uses + 1
    _require_batches(plan, number, skipped)
    return pooled, number


def _observed(norm: Any, path: str, x: Tensor, mask: Tensor | None) -> Moments:
    """The statistics of one use: of shape (1, C), in float64 on the CPU."""
    unbatched = any(isinstance(norm, kind) and x.dim() == rank for kind, rank in _UNBATCHED)
    table = moments(x.detach().unsqueeze(0) if unbatched else x.detach(), mask)
    mean, var, count = (torch.as_tensor(each).cpu().double().expand(table.mean.shape) for each in table)
    if isinstance(norm, _InstanceNorm):
        var, count = Moments(mean, var, count).unbiased, torch.ones_like(mean)
    pooled = _pool(norm, [Moments(mean, var, count)])
    if not isinstance(norm, _InstanceNorm) and bool((torch.as_tensor(pooled.count) <= 1).any()):
        raise OneValue
    require_finite(path, pooled.mean + pooled.var)
    return pooled


def _pool(norm: nn.Module, parts: Sequence[Moments]) -> Moments:
    """Of batch norms the pool, by the law of total variance; of instance norms the averages they remember."""
    mean, var, count = (torch.cat(each) for each in zip(*level(parts), strict=True))
    if not isinstance(norm, _InstanceNorm):
        return Moments(mean, var, count).pool(0)
    total = count.sum(0, keepdim=True)
    mean, var = (((count / total) * each).sum(0, keepdim=True) for each in (mean, var))
    return Moments(mean, var, total)


def _write(plan: Plan, path: str, norm: Any, pooled: Moments, uses: int) -> None:
    if isinstance(norm, StepMemory):
        write_steps(plan, path, norm, pooled, uses)
        return
    var = (pooled.var if isinstance(norm, _InstanceNorm) else pooled.unbiased)[0]
    old_mean, old_var = (norm.get_buffer(name).cpu().double() for name in _STATISTICS)
    moved = ((pooled.mean[0] - old_mean).abs() / (var + norm.eps).sqrt()).max().item()
    ratio = ((old_var + norm.eps) / (var + norm.eps)).log().abs().max().exp().item()
    name = type(norm).__name__
    plan.change(path, name, name, f"mean moved by up to {moved:.2g} deviations, variance by up to {ratio:.3g} times")
    with torch.no_grad():
        norm.get_buffer("running_mean").copy_(pooled.mean[0])
        norm.get_buffer("running_var").copy_(var)
        norm.get_buffer("num_batches_tracked").fill_(uses)


def _require_batches(plan: Plan, number: int, skipped: int) -> None:
    if number == 0:
        why = "every batch gives a norm one value per channel" if skipped else "the loader gave no batch"
        raise UsageError(f"recalibrate: {why}; give batches of at least 2 samples. Nothing was changed.")
    if skipped:
        plan.say(f"{skipped} of {number + skipped} batches left out: they give a norm one value per channel.")


@contextmanager
def _generators_kept(loader: Any) -> Iterator[None]:
    """A loader's own generators go on as if it had not been read."""
    owners = (loader, getattr(loader, "sampler", None))
    found = [g for each in owners if isinstance(g := getattr(each, "generator", None), torch.Generator)]
    states = [generator.get_state() for generator in found]
    try:
        yield
    finally:
        for generator, state in zip(found, states, strict=True):
            generator.set_state(state)


_STATISTICS = ("running_mean", "running_var")
_UNBATCHED = ((nn.InstanceNorm1d, 2), (nn.InstanceNorm2d, 3), (nn.InstanceNorm3d, 4))
