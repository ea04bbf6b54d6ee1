"""Runs a task for one batch, so that what cannot work is said in one sentence before anything is written."""

from typing import Any

import torch
from torch import Tensor, nn

from normwise.data import Batches
from normwise.errors import UsageError
from normwise.experiment.defaults import check_output, sgd
from normwise.experiment.task import Task
from normwise.generators import reproducible
from normwise.loading import call, describe

SAMPLES = 4
JUDGED = 500


def try_out(task: Task, *, classes: int | None, own_loss: bool, own_score: bool) -> float:
    """Tries network, loss, optimizer, schedule and score; returns the score of the untrained network.

    Raises UsageError with what was required and what came.
    """
    model = make_model(task)
    parts = task.parts(0)
    batches = Batches(parts.train, min(SAMPLES, len(parts.train)), collate=task.collate)
    batch = call(lambda: next(iter(batches)), "making a batch")
    model.eval()  # batch norm takes a batch of any size, and the weights stay as they are
    if not (own_loss and own_score):
        _run(lambda: check_output(model, batch, classes), "the model", batch)
    _check_loss(_run(lambda: task.loss(model, batch), "loss(model, batch)", batch))
    _check_optimizer(task, model)
    judge = parts.judge.subset(range(min(JUDGED, len(parts.judge))))
    return _run(lambda: task.score(model, Batches(judge, collate=task.collate)), "score(model, loader)", batch)


def make_model(task: Task) -> nn.Module:
    """The task's network, which must be one and have something to learn."""
    model = call(task.model, task.model_name)
    if not isinstance(model, nn.Module):
        raise UsageError(f"{task.model_name} must return a torch.nn.Module, got {describe(model)}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(f"{task.model_name}: the model has no parameters to train")
    return model


def _run(function: Any, what: str, batch: Any) -> Any:
    with reproducible():
        try:
            return function()
        except UsageError:
            raise
        except Exception as error:
            shape = describe(batch[0]) if isinstance(batch, tuple | list) and batch else describe(batch)
            reason = str(error).partition("\n")[0]
            raise UsageError(f"{what} failed on a batch with {shape}: {type(error).__name__}: {reason}") from error


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        what = describe(loss) + ("" if not isinstance(loss, Tensor) or loss.requires_grad else " without a gradient")
        raise UsageError(f"loss(model, batch) must return a tensor with one number and its gradient, got {what}")
    if not torch.isfinite(loss):
        raise UsageError(f"loss(model, batch) must be finite for the untrained network, got {loss.item()}")


def _check_optimizer(task: Task, model: nn.Module) -> None:
    if task.optimizer is sgd and task.schedule is None:
        return  # the first optimizer of a process imports torch's compiler, which takes a second
    optimizer = call(lambda: task.optimizer(model.parameters(), task.lr), "optimizer(params, lr)")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"optimizer(params, lr) must return a torch.optim.Optimizer, got {describe(optimizer)}")
    if task.schedule is None:
        return
    make = task.schedule
    scheduler = call(lambda: make(optimizer, 100), "schedule(optimizer, total_steps)")
    if not callable(getattr(scheduler, "step", None)):
        raise UsageError(
            f"schedule(optimizer, total_steps) must return a scheduler with step(), got {describe(scheduler)}"
        )
