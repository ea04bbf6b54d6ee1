"""What a task is: a network, data, how it is trained and scored."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normwise.data import Data, Samples, Source, as_samples, targets_of
from normwise.errors import UsageError
from normwise.experiment import defaults
from normwise.experiment.fingerprint import data_digest, digest, model_digest, source_digest
from normwise.experiment.split import Split, split
from normwise.loading import call, describe

LENGTH = "Training length:"  # begins the sentence that another length makes untrue


class Parts(NamedTuple):
    """The samples of one seed: to train on, to score learning rates with, to judge with."""

    train: Samples
    validation: Samples
    judge: Samples


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """All that an experiment needs to know of a problem; `resolve` makes one. It travels to worker processes.

    `schedule` None means `rate_factor`; `delta` None: it must be said (`--delta`); `own_loop` is a
    user's `train(trial)`, which replaces model, data, loss and score; `own_model`: the user brought the
    network, so that it is an arm as it is. `assumptions` are sentences: what was taken where the task is
    silent.
    """

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[], Data]
    loss: Callable[[nn.Module, Any], Tensor]
    score: Callable[[nn.Module, Iterable[Any]], float]
    score_name: str
    failed_score: float
    log_loss: Callable[[nn.Module, Iterable[Any]], float] | None = None
    optimizer: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer] = defaults.sgd
    schedule: Callable[[torch.optim.Optimizer, int], Any] | None = None
    collate: Callable[[list[Any]], Any] | None = None
    epochs: float = 1
    lr: float = 0.1
    delta: float | None = None
    higher_is_better: bool = True
    groups: tuple[Tensor | None, ...] | None = None
    own_split: Callable[[int], Sequence[Any]] | None = None
    own_loop: Callable[[Any], Any] | None = None
    own_model: bool = False
    model_name: str = ""
    data_name: str = ""
    assumptions: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Task({self.name}: {self.model_name}, {self.score_name}, {self.epochs:g} epochs)"

    def with_epochs(self, epochs: float) -> "Task":
        """The same task, trained for another length."""
        kept = tuple(sentence for sentence in self.assumptions if not sentence.startswith(LENGTH))
        return dataclasses.replace(self, epochs=epochs, assumptions=kept)

    def parts(self, seed: int) -> Parts:
        """The samples of a seed in mixed order: the same for every arm, on every machine."""
        data = self.data()
        if self.own_split is not None:
            parts = own_parts(self.own_split, data, seed)
        else:
            drawn = split(
                [len(samples) if (y := targets_of(samples)) is None else y for samples in data.sets],
                seed=seed,
                groups=self.groups,
            )
            parts = Parts(*(samples.subset(index) for samples, index in zip(data.sources, drawn, strict=True)))
        # data often come sorted by class: a batch of such samples, or their first half, is no random draw
        generator = torch.Generator().manual_seed(seed)
        return Parts(*(samples.subset(torch.randperm(len(samples), generator=generator)) for samples in parts))

    def sizes(self) -> dict[str, int]:
        """How many samples train, score learning rates, and judge; zeros for a loop of the user's own."""
        if self.own_loop is not None:
            return dict.fromkeys(Parts._fields, 0)
        return {name: len(samples) for name, samples in self.parts(0)._asdict().items()}

    def summary(self) -> str:
        """The network in words, its parameters and layers; empty for a loop of the user's own."""
        if self.own_loop is not None:
            return ""
        model = call(self.model, "model()")
        return f"{sum(p.numel() for p in model.parameters()):,} parameters\n{model}"

    def fingerprint(self) -> dict[str, str]:
        """A short text for each part of the task; where one differs, it is another experiment."""
        said = {
            "epochs": f"{self.epochs:g}",
            "learning_rate": f"{self.lr:g}",
            "failed_score": f"{self.failed_score:g}",
        }
        said["higher_is_better"] = str(self.higher_is_better)
        if self.own_loop is not None:
            return {**said, "train": source_digest(self.own_loop)}
        data = self.data()
        in_memory = all(targets_of(samples) is not None and hasattr(samples, "inputs") for samples in data.sets)
        read = self.data.read if isinstance(self.data, Source) else self.data
        return {
            **said,
            "model": model_digest(self.model),
            "data": data_digest(data) if in_memory else digest(data_digest(data), source_digest(read)),
            "split": digest(self.groups, self.own_split and source_digest(self.own_split)),
            **{
                name: source_digest(part)
                for name in ("loss", "score", "optimizer", "schedule", "collate")
                if (part := getattr(self, name)) is not None
            },
        }


@dataclass(frozen=True)
class LoopSettings:
    """What `@normwise.task` says of a training loop of the user's own; None: not said."""

    lr: float | None = None
    epochs: float | None = None
    delta: float | None = None
    higher_is_better: bool = True
    failed_score: float | None = None
    score_name: str = "score"


def task(
    *,
    lr: float | None = None,
    epochs: float | None = None,
    delta: float | None = None,
    higher_is_better: bool = True,
    failed_score: float | None = None,
    score_name: str = "score",
) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Says what a training loop of your own does not show: `lr` at batch size 32, its length, what matters.

    `delta` is the smallest difference of interest in the score's unit, `failed_score` what a run that
    diverged counts as.

    >>> @task(lr=0.05, epochs=4, delta=0.01)
    ... def train(trial): ...
    >>> train.settings.epochs
    4
    """
    settings = LoopSettings(lr, epochs, delta, higher_is_better, failed_score, score_name)

    def decorate(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        function.__dict__["settings"] = settings
        return function

    return decorate


def own_parts(own_split: Callable[[int], Sequence[Any]], data: Data, seed: int) -> Parts:
    """The samples by the user's own `split(seed)`: indices into the one data set, or data sets."""
    given = call(lambda: own_split(seed), f"split({seed})")
    if not isinstance(given, Sequence) or len(given) != 3:
        raise UsageError(f"split(seed) must return (train, validation, judge), got {describe(given)}")
    if all(_is_index(part) for part in given):
        if len(data.sets) > 1:
            raise UsageError("split(seed) gave indices, which need data() to give one data set; it gave separate sets")
        drawn = Split(*(torch.as_tensor(part) for part in given))
        _check_indices(drawn, len(data.train))
        return Parts(*(data.train.subset(index.long()) for index in drawn))
    parts = Parts(*(as_samples(part, f"split({seed})") for part in given))
    if empty := [name for name, samples in parts._asdict().items() if len(samples) == 0]:
        raise UsageError(f"split({seed}): {empty[0]} is empty")
    return parts


def _is_index(part: Any) -> bool:
    if isinstance(part, Tensor) or hasattr(part, "__array__"):
        return getattr(part, "ndim", 0) == 1
    return isinstance(part, range) or (isinstance(part, list) and all(isinstance(i, int) for i in part))


def _check_indices(drawn: Split, size: int) -> None:
    if empty := [name for name, index in drawn._asdict().items() if len(index) == 0]:
        raise UsageError(f"split(seed): {empty[0]} is empty")
    everyone = torch.cat([index.unique() for index in drawn])
    if everyone.is_floating_point() or everyone.dtype == torch.bool:
        raise UsageError(f"split(seed) must return whole numbers as indices, got {everyone.dtype}")
    if everyone.min() < 0 or everyone.max() >= size:
        raise UsageError(f"split(seed): indices must lie in 0 .. {size - 1}, got {everyone.min()} .. {everyone.max()}")
    if len(everyone.unique()) < len(everyone):
        raise UsageError("split(seed): a sample stands in two of train, validation and judge")
