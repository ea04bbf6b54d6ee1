"""What a trained network is worth: its scores, also under other statistics than the remembered ones."""

import copy

from torch import nn

from normwise.errors import UsageError
from normwise.experiment.setting import Setting
from normwise.experiment.task import Parts, Task
from normwise.experiment.trial import Trial, finite
from normwise.surgery.recalibrate import recalibrate

RECALIBRATION_BATCH = 256  # population statistics hardly depend on it, and small batches take long


def evaluate(task: Task, model: nn.Module, parts: Parts, trial: Trial, setting: Setting) -> dict[str, float]:
    """Scores on the validation and judge samples; full-length trials also answer the scorecard's questions."""
    judge = setting.batches(parts.judge, collate=task.collate)
    with setting.autocast():
        measures = finite(
            validation=task.score(model, setting.batches(parts.validation, collate=task.collate)),
            judge=task.score(model, judge),
        )
        if task.log_loss is not None:
            measures |= finite(judge_loss=task.log_loss(model, judge))
        if trial.length >= 1:
            measures |= _gap(task, model, parts, setting) | _statistics(task, model, parts, trial, setting)
    return measures


def _gap(task: Task, model: nn.Module, parts: Parts, setting: Setting) -> dict[str, float]:
    """The score on as many training samples as there are judge samples."""
    size = min(len(parts.train), len(parts.judge))
    return finite(train=task.score(model, setting.batches(parts.train.subset(range(size)), collate=task.collate)))


def _statistics(task: Task, model: nn.Module, parts: Parts, trial: Trial, setting: Setting) -> dict[str, float]:
    """The judge score with the batch's own statistics, and with running statistics taken afresh."""
    if not any(getattr(module, "running_mean", None) is not None for module in model.modules()):
        return {}
    judge = setting.batches(parts.judge, trial.batch_size, collate=task.collate, drop_last=True)
    scores = finite(batch_statistics=task.score(forget_statistics(model), judge))
    fresh = copy.deepcopy(model)
    size = max(trial.batch_size, RECALIBRATION_BATCH)
    batches = setting.batches(parts.train, size, collate=task.collate, drop_last=len(parts.train) > size)
    try:
        recalibrate(fresh, batches, call=task.loss)  # only the task knows how its model is called
    except UsageError:  # a network that diverged gives its norms what is not finite
        return scores
    return scores | finite(recalibrated=task.score(fresh, judge))


def forget_statistics(model: nn.Module) -> nn.Module:
    """A copy whose norms use the batch's statistics in evaluation too, by PyTorch's own convention (buffers None)."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            forgotten = {"running_mean": None, "running_var": None, "num_batches_tracked": None}
            for name, value in {**forgotten, "track_running_stats": False}.items():
                setattr(module, name, value)
    return model
