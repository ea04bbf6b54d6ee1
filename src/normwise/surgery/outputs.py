"""Compares what a model gives before and after a change that may move it by rounding only."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normwise.errors import UsageError
from normwise.surgery.fold import tolerance
from normwise.surgery.forward import call, quiet, tensors
from normwise.surgery.plan import Plan


class Outputs(NamedTuple):
    """What a model gave for the example; in training also what its backward pass raised, if it did."""

    values: list[Tensor]
    failure: str = ""


class Before(NamedTuple):
    """The outputs in evaluation, in training (None: too few values for it), and of the example rounded otherwise."""

    evaluation: Outputs
    training: Outputs | None
    rounded: Outputs | None


def outputs_before(verb: str, model: nn.Module, example: Any) -> Before:
    """To be taken before the change; nothing in the model moves."""
    evaluation, training = _in_evaluation(verb, model, example), _in_training(verb, model, example)
    return Before(evaluation, training, training and _in_training(verb, model, _rounded(example)))


def require_same(plan: Plan, model: nn.Module, before: Before, example: Any) -> None:
    """To be called after the change: raises UsageError, or notes in the plan how far the outputs moved.

    In training a small batch may carry the last digit of its input far. So there the outputs may also
    move by `ROUNDINGS` times what the unchanged model's do for an example that is rounded otherwise.
    """
    _compare(plan, model, "evaluation", before.evaluation, _in_evaluation(plan.verb, model, example))
    after = _in_training(plan.verb, model, example)
    if before.training is None or after is None:
        plan.say("not compared in training: the example has too few values for it.")
        return
    if after.failure and not before.training.failure:
        raise UsageError(
            f"{plan.verb}: in training the backward pass fails where it did not ({after.failure}); nothing was changed."
        )
    _compare(plan, model, "training", before.training, after, before.rounded)


def _compare(
    plan: Plan, model: nn.Module, mode: str, old: Outputs, new: Outputs, rounded: Outputs | None = None
) -> None:
    error, size = _distance(old, new), max((float(a.abs().max()) for a in old.values if a.numel()), default=0.0)
    own = 0.0 if rounded is None else _distance(old, rounded)
    close = error <= tolerance(t.dtype for t in (*old.values, *model.parameters())) * size
    if not close and not error <= ROUNDINGS * own:
        raise UsageError(
            f"{plan.verb}: in {mode} the outputs of the example moved by up to {error:.3g} (their size is "
            f"{size:.3g}), more than rounding explains; nothing was changed."
        )
    why = (
        "" if close else f"; the last digit of the example alone moves them by {own:.3g}: take a larger one to see more"
    )
    plan.say(f"in {mode} the outputs of the example moved by at most {error:.3g} (their size is {size:.3g}{why}).")


def _distance(old: Outputs, new: Outputs) -> float:
    pairs = [(a, b) for a, b in zip(old.values, new.values, strict=True) if a.numel()]
    return max((float((a - b).abs().max()) for a, b in pairs), default=0.0)


def _in_evaluation(verb: str, model: nn.Module, example: Any) -> Outputs:
    try:
        return _run(model, example, training=False)
    except Exception as error:
        raise _no_run(verb, "evaluation", error) from error


def _in_training(verb: str, model: nn.Module, example: Any) -> Outputs | None:
    try:
        return _run(model, example, training=True)
    except ValueError:
        return None
    except Exception as error:
        raise _no_run(verb, "training", error) from error


def _no_run(verb: str, mode: str, error: Exception) -> UsageError:
    return UsageError(f"{verb}: in {mode} the model does not run on the example: {type(error).__name__}: {error}")


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

    return pytree.tree_map_only(Tensor, move, example)


ROUNDINGS = 4
