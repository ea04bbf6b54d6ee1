"""The engine that a request asks for, with the limits of its trials."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

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


def workers_for(request: Request) -> int:
    """One a core this process may use, on a running Ray cluster one a CPU of it; less where a trial takes several."""
    address = request.ray_address or os.environ.get("RAY_ADDRESS")
    if request.engine == "ray" and address:
        from normwise.experiment.ray_engine import size

        cores = size(address)
    else:
        cores = default_workers()
    return max(1, cores // (request.processes or 1))


def with_data(task: Task) -> Task:
    """The task with its data read here, so that another machine need not have the files.

    Data that are no tensors travel as they are: paths in them must be good there too.
    """
    if task.own_loop is not None:
        return task
    data = task.data()
    return replace(task, data=lambda: data)
