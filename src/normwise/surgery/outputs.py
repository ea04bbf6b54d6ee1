"""Shows that a model computes the same after its norms became ours: norm by norm, and as a whole."""

from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normwise import plain
from normwise.errors import UsageError
from normwise.surgery.forward import call, quiet, tensors
from normwise.surgery.plan import Plan
from normwise.surgery.witness import Witness


class Outputs(NamedTuple):
    """What a model gave for the example; in training also what its backward pass raised, if it did."""

    values: list[Tensor]
    failure: str = ""


Before = dict[str, Outputs | None]  # in evaluation, and in training (None: too few values for it)


def outputs_before(verb: str, model: nn.Module, example: Any) -> Before:
    """To be taken before the change; nothing in the model moves."""
    with plain.called_instead(Witness()):  # norms of ours, too, hand on what PyTorch's give
        return {mode: _before(verb, model, example, mode) for mode in ("evaluation", "training")}


def require_same(plan: Plan, model: nn.Module, before: Before, example: Any) -> None:
    """To be called after the change: raises UsageError, or notes in the plan how far the outputs moved.

    A network may carry the last digit of a norm far, most of all in training with a small batch. So each norm is
    compared by itself, on what reaches it, and hands on what PyTorch's gives: then the whole must give what it gave.
    """
    for mode, old in before.items():
        if old is None:
            plan.say(f"not compared in {mode}: the example has too few values for it.")
        else:
            _require_same(plan, model, mode, old, example)


def moved(before: list[Tensor], after: list[Tensor]) -> tuple[float, float]:
    """How far the outputs moved at most (a new nan counts as farthest), and how large they were where they are finite.

    >>> moved([torch.tensor([1.0, -2.0])], [torch.tensor([1.0, -1.5])])
    (0.5, 2.0)
    """
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a.numel()]
    errors = [float((a - b).abs().where((a != b) & ~(a.isnan() & b.isnan()), 0).max()) for a, b in pairs]
    return _most(errors), _most([float(a.abs().where(a.isfinite(), 0).max()) for a, _ in pairs])


def tolerance(dtypes: Iterable[torch.dtype]) -> float:
    """Relative to the outputs, for a deep network: 1e-4 in float32; half precision rounds at every layer."""
    rounding = {dtype for dtype in dtypes if dtype.is_floating_point or dtype.is_complex} or {torch.float32}
    precision = max(torch.finfo(dtype).eps for dtype in rounding)
    return precision * (1000 if precision < 1e-5 else 20)


def _require_same(plan: Plan, model: nn.Module, mode: str, old: Outputs, example: Any) -> None:
    verb = f"{plan.verb}, after the change"
    new = _outputs(verb, model, example, mode)
    if new.failure and not old.failure:
        _refuse(plan, mode, f"the backward pass fails where it did not ({new.failure})")
    limit = tolerance(t.dtype for t in (*old.values, *model.parameters()))
    for witness in (Witness(), Witness(grouped=True)):  # only PyTorch's own operator gives just what the model gave
        with plain.called_instead(witness):
            same = _outputs(verb, model, example, mode)
        if witness.wrong:
            _refuse(plan, mode, witness.wrong[0])
        pairs = (moved([one], [other]) for one, other in zip(old.values, same.values, strict=True))
        far = [_far(error, size) for error, size in pairs if not error <= limit * size]
        if not far:
            break
    else:
        _refuse(plan, mode, f"the outputs of the example {far[0]}, more than rounding explains")
    error, size = moved(old.values, new.values)
    why = "" if error <= limit * size else "; each norm is right to rounding, which the network carries so far"
    plan.say(f"in {mode} the outputs of the example {_far(error, size)}{why}.")


def _refuse(plan: Plan, mode: str, why: str) -> NoReturn:
    raise UsageError(f"{plan.verb}: in {mode} {why}; nothing was changed.")


def _far(error: float, size: float) -> str:
    return f"moved by at most {error:.3g} (their size is {size:.3g})"


def _most(values: list[float]) -> float:
    """The largest, and nan if there is one, which `max` may pass over."""
    return float(torch.tensor(values or [0.0], dtype=torch.float64).max())


def _before(verb: str, model: nn.Module, example: Any, mode: str) -> Outputs | None:
    try:
        return _outputs(verb, model, example, mode)
    except UsageError as error:
        if mode == "training" and isinstance(error.__cause__, ValueError):
            return None
        raise


def _outputs(verb: str, model: nn.Module, example: Any, mode: str) -> Outputs:
    try:
        return _run(model, example, training=mode == "training")
    except Exception as error:
        raise UsageError(
            f"{verb}: in {mode} the model does not run on the example: {type(error).__name__}: {error}"
        ) from error


def _run(model: nn.Module, example: Any, *, training: bool) -> Outputs:
    copies = pytree.tree_map_only(Tensor, Tensor.clone, example)
    with quiet(model), torch.set_grad_enabled(training):  # so that each run draws the same dropout
        model.train(training)
        found = tensors(call(model, copies))
        return Outputs([each.detach().clone() for each in found], _backward(model, found))


def _backward(model: nn.Module, found: list[Tensor]) -> str:
    """What the backward pass raises; no gradient is kept."""
    ends = [each for each in found if each.requires_grad]
    learning = [p for p in model.parameters() if p.requires_grad]
    try:
        if ends and learning:
            torch.autograd.grad(ends, learning, [torch.ones_like(each) for each in ends], allow_unused=True)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return ""
