"""What a worker process runs: any kind of trial of one task."""

from dataclasses import dataclass

from normwise.experiment.calibrate import calibrate, probe
from normwise.experiment.setting import Setting
from normwise.experiment.task import Task
from normwise.experiment.train import train
from normwise.experiment.trial import Result, Trial

RUN = {"train": train, "calibrate": calibrate, "probe": probe}


@dataclass(frozen=True)
class Job:
    """A task and where it runs; called with a trial it gives the result. It travels to the workers."""

    task: Task
    setting: Setting

    def __call__(self, trial: Trial) -> Result:
        return RUN[trial.kind](self.task, trial, self.setting)
