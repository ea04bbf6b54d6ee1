"""The engine that a request asks for, with the limits of its trials."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from normwise.errors import UsageError
from normwise.experiment.engine import Engine, LocalEngine
from normwise.experiment.job import Job
from normwise.experiment.plan import parse_budget
from normwise.experiment.prepare import default_workers
from normwise.experiment.request import Request
from normwise.experiment.setting import Setting
from normwise.experiment.task import Task
from normwise.experiment.trial import Trial

LONGEST_TRIAL = 24 * 3600.0  # seconds, where the budget is counted in trials
SHORTEST_LIMIT = 60.0
MEMORY_SHARE = 0.9  # of the machine's memory, for all workers together


def open_engine(
    request: Request, task: Task, setting: Setting, folder: Path, workers: int, key: Callable[[Trial], str]
) -> Engine:
    """Workers on this machine or on a Ray cluster.

    No trial may take longer than the whole budget, nor on this machine more than its share of the memory.
    """
    budget = parse_budget(request.budget or "")
    common: dict[str, Any] = {
        "workers": workers,
        "key": key,
        "processes": setting.ranks.processes,
        "seconds_per_trial": LONGEST_TRIAL if budget.in_trials else max(budget.amount, SHORTEST_LIMIT),
        "log": folder / "workers.log",
    }
    if request.engine == "ray":
        from normwise.experiment.ray_engine import RayEngine

        gpus = 0.0 if setting.device == "cpu" else 1.0
        return RayEngine(Job(with_data(task), setting), folder, address=request.ray_address, gpus=gpus, **common)
    share = int(MEMORY_SHARE * psutil.virtual_memory().total / workers / setting.ranks.processes)
    return LocalEngine(Job(task, setting), folder, memory_per_trial=share, **common)


def workers_for(request: Request, wanted: int | None = None) -> int:
    """As many as are wanted, else one a core this process may use or, on a running Ray cluster, a CPU of it.

    Fewer where a trial takes several, or as many GPUs of this machine. Raises UsageError where it lacks them.
    """
    processes, gpus = request.processes or 1, _gpus(request)
    if gpus is not None and (wanted or 1) * processes > gpus:
        raise UsageError(
            f"each of {processes} processes takes a GPU of its own: {wanted or 1} trials at once need "
            f"{(wanted or 1) * processes}, this machine has {gpus}; lower the workers or the processes"
        )
    if wanted:
        return wanted
    cores = _cores(request)
    return max(1, (cores if gpus is None else min(cores, gpus)) // processes)


def _gpus(request: Request) -> int | None:
    """How many GPUs of this machine the trials share out; None where Ray does, or where each trial takes the first."""
    here = request.engine == "local" and (request.processes or 1) > 1
    return torch.accelerator.device_count() if here and torch.device(request.device or "cpu").type != "cpu" else None


def _cores(request: Request) -> int:
    address = request.ray_address or os.environ.get("RAY_ADDRESS")
    if request.engine == "ray" and address:
        from normwise.experiment.ray_engine import size

        return size(address)
    return default_workers()


def with_data(task: Task) -> Task:
    """The task with its data read here, so that another machine need not have the files.

    Data that are no tensors travel as they are: paths in them must be good there too.
    """
    if task.own_loop is not None:
        return task
    data = task.data()
    return replace(task, data=lambda: data)
