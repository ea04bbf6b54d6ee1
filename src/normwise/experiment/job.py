"""What a worker process runs: any kind of trial of one task."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from normwise.experiment.calibrate import calibrate, probe
from normwise.experiment.checkpoint import SECONDS, Checkpoint
from normwise.experiment.ranks import Follower
from normwise.experiment.setting import Setting
from normwise.experiment.stacked_train import train_stack
from normwise.experiment.task import Task
from normwise.experiment.train import train
from normwise.experiment.trial import Result, Trial

RUN = {"train": train, "calibrate": calibrate, "probe": probe}


@dataclass(frozen=True)
class Job:
    """A task and where it runs; called with a trial it gives the result. It travels to the workers."""

    task: Task
    setting: Setting
    checkpoint_seconds: float = SECONDS

    def __call__(self, trial: Trial) -> Result:
        return RUN[trial.kind](self.task, trial, self.setting)

    def resume(self, trial: Trial, path: Path) -> Result:
        """The same, on from what a killed attempt left at `path`; with a loop of the user's own from the start."""
        if trial.kind != "train":
            return self(trial)
        kind = Follower if self.setting.ranks.rank else Checkpoint
        return train(self.task, trial, self.setting, kind(path, trial, self.checkpoint_seconds))

    def stack(self, trials: Sequence[Trial]) -> Iterator[Result]:
        """The results of trials of one arm, batch size and length, trained as one network."""
        return train_stack(self.task, trials, self.setting)

    def resume_stack(self, trials: Sequence[Trial], path: Path) -> Iterator[Result]:
        """The same, on from what a killed attempt left at `path`."""
        first, *rest = trials
        checkpoint = Checkpoint(path, first, self.checkpoint_seconds, beside=tuple(rest))
        return train_stack(self.task, trials, self.setting, checkpoint)
