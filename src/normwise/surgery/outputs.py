"""Compares what a model gives before and after a change that may move it by rounding only."""

from collections.abc import Iterable
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normwise.errors import UsageError
from normwise.surgery.forward import call, quiet, tensors
from normwise.surgery.plan import Plan


class Outputs(NamedTuple):
    """What a model gave for the example; in training also what its backward pass raised, if it did."""

    values: list[Tensor]
    failure: str = ""


class Pair(NamedTuple):
    """What a model gave for the example, and for the example rounded otherwise."""

    given: Outputs
    rounded: Outputs


class Before(NamedTuple):
    """In evaluation, and in training (None: too few values for it)."""

    evaluation: Pair
    training: Pair | None


def outputs_before(verb: str, model: nn.Module, example: Any) -> Before:
    """To be taken before the change; nothing in the model moves."""
    rounded = _rounded(example)
    evaluation = Pair(*(_outputs(verb, model, each, training=False) for each in (example, rounded)))
    given = _in_training(verb, model, example)
    other = given and _in_training(verb, model, rounded)
    return Before(evaluation, Pair(given, other) if given and other else None)


def require_same(plan: Plan, model: nn.Module, before: Before, example: Any) -> None:
    """To be called after the change: raises UsageError, or notes in the plan how far the outputs moved.

    A network may carry the last digit of its input far, most of all in training with a small batch. So the
    outputs may also move by `ROUNDINGS` times what the unchanged model's do for an example that is rounded otherwise:
    each output by its own, and in evaluation by at most a tenth of its size, beyond which nothing would be shown.
    """
    verb = f"{plan.verb}, after the change"
    _compare(plan, model, "evaluation", before.evaluation, _outputs(verb, model, example, training=False))
    if before.training is None:
        plan.say("not compared in training: the example has too few values for it.")
        return
    after = _outputs(verb, model, example, training=True)
    if after.failure and not before.training.given.failure:
        raise UsageError(
            f"{plan.verb}: in training the backward pass fails where it did not ({after.failure}); nothing was changed."
        )
    _compare(plan, model, "training", before.training, after)


def moved(before: list[Tensor], after: list[Tensor]) -> tuple[float, float]:
    """How far the outputs moved at most (nan counts as farthest), and how large they were where they are finite.

    >>> moved([torch.tensor([1.0, -2.0])], [torch.tensor([1.0, -1.5])])
    (0.5, 2.0)
    """
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a.numel()]
    errors = [float((a - b).abs().where(a != b, 0).max()) for a, b in pairs]
    return _most(errors), _most([float(a.abs().where(a.isfinite(), 0).max()) for a, _ in pairs])


def tolerance(dtypes: Iterable[torch.dtype]) -> float:
    """Relative to the outputs, for a deep network: 1e-4 in float32; half precision rounds at every layer."""
    precision = max(torch.finfo(dtype).eps for dtype in dtypes)
    return precision * (1000 if precision < 1e-5 else 20)


def _compare(plan: Plan, model: nn.Module, mode: str, before: Pair, new: Outputs) -> None:
    old, rounded = before.given.values, before.rounded.values
    error, size = moved(old, new.values)
    limit = tolerance(t.dtype for t in (*old, *model.parameters())) * size
    far = [each for each in zip(old, new.values, rounded, strict=True) if not moved([each[0]], [each[1]])[0] <= limit]
    own = max((moved([given], [other])[0] for given, _, other in far), default=0.0)
    why = f"; the last digit of the example alone moves them by {own:.3g}" if own else ""
    if not all(_explained(mode, *each) for each in far):
        raise UsageError(
            f"{plan.verb}: in {mode} the outputs of the example moved by up to {error:.3g} (their size is "
            f"{size:.3g}{why}), more than rounding explains; nothing was changed."
        )
    why += ": take a larger one to see more" if why and mode == "training" else ""
    plan.say(f"in {mode} the outputs of the example moved by at most {error:.3g} (their size is {size:.3g}{why}).")


def _explained(mode: str, given: Tensor, after: Tensor, rounded: Tensor) -> bool:
    """By rounding, for one output. In evaluation, where samples stand alone, a tenth of its size is beyond that."""
    error, size = moved([given], [after])
    allowed = ROUNDINGS * moved([given], [rounded])[0]
    return error <= (min(allowed, SHARE * size) if mode == "evaluation" else allowed) < inf


def _most(values: list[float]) -> float:
    """The largest, and nan if there is one, which `max` may pass over."""
    return float(torch.tensor(values or [0.0], dtype=torch.float64).max())


def _in_training(verb: str, model: nn.Module, example: Any) -> Outputs | None:
    try:
        return _outputs(verb, model, example, training=True)
    except UsageError as error:
        if isinstance(error.__cause__, ValueError):
            return None
        raise


def _outputs(verb: str, model: nn.Module, example: Any, *, training: bool) -> Outputs:
    try:
        return _run(model, example, training=training)
    except Exception as error:
        mode, what = "training" if training else "evaluation", f"{type(error).__name__}: {error}"
        raise UsageError(f"{verb}: in {mode} the model does not run on the example: {what}") from error


def _run(model: nn.Module, example: Any, *, training: bool) -> Outputs:
    copies = pytree.tree_map_only(Tensor, Tensor.clone, example)
    with quiet(model), torch.set_grad_enabled(training):
        model.train(training)
        torch.manual_seed(0)  # the same dropout each time
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


def _rounded(example: Any) -> Any:
    """Each number of the example moved by about one unit of its last digit, up or down."""

    def move(x: Tensor) -> Tensor:
        if not x.is_floating_point() or x.layout != torch.strided:
            return x
        return x * (1 + torch.finfo(x.dtype).eps * torch.randn_like(x).sign())

    torch.manual_seed(0)  # the same verdict each time; the frame of every verb puts the generators back
    return pytree.tree_map_only(Tensor, move, example)


ROUNDINGS = 4
SHARE = 0.1
