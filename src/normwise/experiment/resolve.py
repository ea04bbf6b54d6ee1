"""From what the user brought (names, functions, objects) to a Task: what is missing gets its default."""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from normwise.data import BUILT_IN, Arrays, Source, examine, find
from normwise.errors import UsageError
from normwise.experiment import defaults
from normwise.experiment.adapt import AsNumber, group_labels, standardized
from normwise.experiment.assumptions import sentences
from normwise.experiment.defaults import CLASSES, DELTAS, VALUES
from normwise.experiment.fingerprint import same_start
from normwise.experiment.network import find_network
from normwise.experiment.task import LENGTH, LoopSettings, Task
from normwise.experiment.tasks import TASKS
from normwise.experiment.try_out import make_model, try_out
from normwise.loading import call, describe, hint, load_object, required_parameters

# All that a user's task may have; `name` and `score_name` are what they are called in the report.
ATTRIBUTES = (
    "name", "model", "data", "loss", "score", "score_name", "higher_is_better", "optimizer", "schedule",
    "collate", "epochs", "lr", "delta", "failed_score", "groups", "split",
)  # fmt: skip
SAMPLES_SEEN = 12_000
LOOP_EPOCHS = 10
FORMS = "package.module:function or file.py:function"
UNTELLING = ("model", "<lambda>")
Said = Mapping[str, Any]


def resolve(task: Any = None, model: Any = None, data: Any = None) -> Task:
    """Makes a Task of a built-in name, an object, a function or the name of one.

    `model` and `data` replace those of the task. Raises UsageError where something cannot work.

    >>> task = resolve("digits")
    >>> task.model_name, task.score_name, task.epochs, task.sizes()
    ('cnn', 'accuracy', 13, {'train': 998, 'validation': 300, 'judge': 499})
    """
    if isinstance(task, Task):
        return task
    name, found = _understand(task)
    if not isinstance(found, Mapping):
        if model is not None or data is not None:
            raise UsageError(f"{name} is a training loop that brings its own model and data: give no others")
        return _own_loop(name, found)
    said = {**found, **{key: value for key, value in (("model", model), ("data", data)) if value is not None}}
    if "data" not in said:
        raise UsageError(f"{name} has no data: give it data(), or name them with --data")
    source = find(said["data"])
    if data is not None and (task is None or name in BUILT_IN):
        name = source.name
    return _assemble(name, said, source)


def _understand(task: Any) -> tuple[str, Said | Callable[[Any], Any]]:
    """The name of a task with what its object says of it, or with the user's training loop."""
    if task is None:
        return "task", {}
    if isinstance(task, str):
        if task in TASKS:
            return _attributes(task, TASKS[task](), task)
        if task.partition(":")[0] in BUILT_IN:
            return task.partition(":")[0], {"data": task}
        if ":" not in task:
            known = [*BUILT_IN, *TASKS]
            raise UsageError(f"unknown task {task!r}; known: {', '.join(known)}, {FORMS}{hint(task, known)}")
        return _made(task.rpartition(":")[2], task, load_object(task))
    if isinstance(task, type) or (callable(task) and not isinstance(task, nn.Module) and not hasattr(task, "model")):
        name = getattr(task, "__name__", type(task).__name__)
        return _made(name, name, task)
    return _attributes(type(task).__name__, task, "the task")


def _made(name: str, text: str, function: Callable[..., Any]) -> tuple[str, Said | Callable[[Any], Any]]:
    required = required_parameters(function)
    if required == 1 and not inspect.isclass(function):
        return name, function
    if required:
        raise UsageError(
            f"{text} requires {required} arguments; a function that makes a task requires none, "
            "a training loop train(trial) one"
        )
    return _attributes(name, call(function, text), f"{text}()")


def _attributes(name: str, value: Any, what: str) -> tuple[str, Said]:
    said = {key: found for key in ATTRIBUTES if (found := getattr(value, key, None)) is not None}
    if isinstance(value, nn.Module) or not ("model" in said or "data" in said):
        wanted = "; a network alone is given as the model" if isinstance(value, nn.Module) else ""
        raise UsageError(f"{what} must be a task, an object with model() and data(), got {describe(value)}{wanted}")
    return str(said.get("name", name)), said


def _own_loop(name: str, train: Callable[[Any], Any]) -> Task:
    """A task whose training is the user's own function."""
    settings: LoopSettings = getattr(train, "settings", LoopSettings())
    failed = settings.failed_score
    if failed is None:
        failed = 0.0 if settings.higher_is_better else 1000.0
    usual = {
        "epochs": f"{LENGTH} {LOOP_EPOCHS} epochs",
        "lr": "Learning rates are centred on 0.1 at batch size 32, times sqrt(batch size / 32)",
        "failed_score": f"A run that fails scores {failed:g}",
    }
    return Task(
        name=_slug(name),
        model=partial(_absent, "model"),
        data=partial(_absent, "data"),
        loss=partial(_absent, "loss"),
        score=partial(_absent, "score"),
        score_name=settings.score_name,
        failed_score=_number("failed_score", failed),
        epochs=_positive("epochs", LOOP_EPOCHS if settings.epochs is None else settings.epochs),
        lr=_positive("lr", 0.1 if settings.lr is None else settings.lr),
        delta=_delta(settings.delta, settings.score_name),
        higher_is_better=settings.higher_is_better,
        own_loop=train,
        own_model=True,
        model_name=name,
        data_name=name,
        assumptions=tuple(
            f"{sentence} (set it by @normwise.task({key}=...))."
            for key, sentence in usual.items()
            if getattr(settings, key) is None
        ),
    )


def _absent(what: str, *_: Any) -> Any:
    raise UsageError(f"a training loop of the user's own has no {what} that could be called")


def _assemble(name: str, said: Said, source: Source) -> Task:
    """A Task of what the user said, with the defaults for the rest, tried out for one batch."""
    data = source()
    facts = examine(data)
    if not facts.pairs and not {"loss", "score"} <= said.keys():
        raise UsageError(
            f"samples that are {describe(data.train[0])} need the task's own loss(model, batch) and "
            "score(model, loader); the default ones know pairs (input, target)"
        )
    kind = VALUES if facts.classes is None else CLASSES
    notes = list(data.notes)
    if kind is VALUES and not said.keys() & {"loss", "score"} and isinstance(data.train, Arrays):
        source = Source(source.name, partial(standardized, source))
        notes.append("The network learns standardized targets (mean 0, deviation 1 over the training set).")
    network = find_network(said.get("model"), facts, data)
    score_name = str(said.get("score_name", "score")) if "score" in said else kind.score_name
    task = Task(
        name=_slug(name),
        model=network.make,
        data=source,
        loss=said.get("loss", kind.loss),
        score=AsNumber(said["score"]) if "score" in said else kind.score,
        score_name=score_name,
        failed_score=facts.majority,
        log_loss=None if "loss" in said else kind.log_loss,
        optimizer=said.get("optimizer", defaults.sgd),
        schedule=said.get("schedule"),
        collate=said.get("collate"),
        delta=_delta(said.get("delta"), score_name),
        higher_is_better="score" not in said or bool(said.get("higher_is_better", True)),
        groups=group_labels(said["groups"], data) if "groups" in said else None,
        own_split=said.get("split"),
        own_model=network.own,
        model_name=network.name,
        data_name=name if source.name == "data" else source.name,
    )
    return _complete(task, said, facts.classes, notes)


def _complete(task: Task, said: Said, classes: int | None, notes: list[str]) -> Task:
    """The length, the rate and the score of a failed run, which take a task that works."""
    model = make_model(task)
    samples = len(task.parts(0).train)
    task = replace(
        task,
        lr=_positive("lr", said["lr"] if "lr" in said else _usual_rate(task, model)),
        epochs=_positive("epochs", said.get("epochs", math.ceil(SAMPLES_SEEN / samples))),
        model_name=type(model).__name__ if task.model_name in UNTELLING else task.model_name,
    )
    untrained = try_out(task, classes=classes, own_loss="loss" in said, own_score="score" in said)
    failed = said.get("failed_score", untrained if "score" in said else task.failed_score)
    task = replace(task, failed_score=_number("failed_score", failed))
    if task.own_model and same_start(task.model):
        notes.append("Every seed starts from the same weights: the network comes with them.")
    return replace(task, assumptions=(*notes, *sentences(task, said, classes)))


def _usual_rate(task: Task, model: nn.Module) -> float:
    """0.1 for SGD; for another optimizer the rate that it has in PyTorch (Adam: 0.001)."""
    if task.optimizer is defaults.sgd:
        return 0.1
    optimizer = call(lambda: task.optimizer(model.parameters(), 0.1), "optimizer(params, lr)")
    if isinstance(optimizer, torch.optim.SGD) or not isinstance(optimizer, torch.optim.Optimizer):
        return 0.1
    usual = inspect.signature(type(optimizer)).parameters.get("lr")
    return usual.default if usual is not None and isinstance(usual.default, float) else 0.1


def _delta(given: Any, score_name: str) -> float | None:
    return DELTAS.get(score_name) if given is None else _positive("delta", given)


def _positive(name: str, value: Any) -> float:
    if _number(name, value) <= 0:
        raise UsageError(f"the task's {name} must be positive, got {value}")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"the task's {name} must be a finite number, got {describe(value)}")
    return value


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "task"
