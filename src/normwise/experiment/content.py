"""The content of results.json: verdict, scorecard, results, configuration."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from normwise.experiment import verdict
from normwise.experiment.arms import Arm, LeftOut
from normwise.experiment.plan import Plan
from normwise.experiment.race import CellOutcome
from normwise.experiment.request import Request
from normwise.experiment.scorecard import Evidence, build_scorecard
from normwise.experiment.task import Task
from normwise.experiment.trial import Result

SCHEMA = 1
PACKAGES = ("normwise", "torch", "numpy", "scipy", "scikit-learn", "optuna")
POINTS = ("accuracy",)  # scores that are fractions, shown in percent


def build_content(
    task: Task,
    plan: Plan,
    arms: Sequence[Arm],
    outcomes: Sequence[CellOutcome],
    results: Mapping[str, Result],
    config: dict[str, Any],
) -> dict[str, Any]:
    """Everything the report draws from, as JSON can hold it."""
    rates = {(arm.norm, cell.batch_size): arm.learning_rate for cell in outcomes for arm in cell.arms}
    in_points = task.score_name in POINTS
    evidence = Evidence(plan, tuple(arms), rates, tuple(results.values()), task.score_name, in_points)
    raced = bool(outcomes)
    return {
        "schema": SCHEMA,
        "verdict": verdict.build(plan, outcomes, "points" if in_points else "") if raced else no_verdict(plan),
        "scorecard": build_scorecard(evidence) if raced else {"arms": [], "rows": [], "notes": []},
        "results": [_row(key, result, plan) for key, result in sorted(results.items(), key=lambda kr: kr[1].trial)],
        "config": {**config, "next_step": ""},
    }


def no_verdict(plan: Plan) -> dict[str, Any]:
    """The verdict of a run that was stopped before its first look."""
    decision = {
        "kind": "undecided",
        "norm": None,
        "batch_size": None,
        "learning_rate": None,
        "tie": [],
        "regret_bound": None,
        "delta": plan.delta,
        "level": plan.level,
        "order_changes_at_double_length": None,
        "statement": f"Interrupted before {plan.looks[0]} paired seeds of any batch size were run: no verdict yet.",
    }
    return {**decision, "per_batch_size": [], "robust": None}


def configuration(
    task: Task,
    request: Request,
    plan: Plan,
    arms: Sequence[Arm],
    left_out: Sequence[LeftOut],
    fingerprint: Mapping[str, str],
    out: Path,
) -> dict[str, Any]:
    """What was asked, what was decided before the first trial, and where it ran."""
    sizes = task.sizes()
    return {
        "schema": SCHEMA,
        "request": request.to_dict(),
        "task": task.name,
        "model": task.model_name,
        "data": task.data_name,
        "score": _score(task),
        "arms": [{"name": arm.name, "aliases": list(arm.aliases), "pools": arm.pools} for arm in arms],
        "left_out": [{"norm": entry.norm, "why": entry.why} for entry in left_out],
        "batch_sizes": list(plan.batch_sizes),
        "epochs": task.epochs,
        "training_samples": sizes["train"],
        "judge_samples": sizes["judge"],
        **{name: getattr(request, name) for name in ("budget", "device", "precision", "processes", "engine", "seed")},
        "delta": plan.delta,
        "fingerprint": dict(fingerprint),
        "versions": versions(),
        "machine": machine(),
        "plan": plan.to_dict(),
        "assumptions": list(task.assumptions),
        "command": request.command(out),
        "model_summary": task.summary(),
        "finished": False,
        "seconds": 0.0,
    }


def _score(task: Task) -> dict[str, Any]:
    unit = "points" if task.score_name in POINTS else ""
    return {"name": task.score_name, "higher_is_better": task.higher_is_better, "unit": unit}


def versions() -> dict[str, str]:
    """The versions that matter."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    return {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()}


def _row(key: str, result: Result, plan: Plan) -> dict[str, Any]:
    trial = result.trial
    return {
        "arm": trial.arm,
        "batch_size": trial.batch_size,
        "learning_rate": trial.learning_rate,
        "seed": trial.seed,
        "length": trial.length,
        "onednn": trial.onednn,
        "stack": trial.stack,
        "channels_last": trial.channels_last,
        "kind": trial.kind,
        "stage": stage(result, plan),
        "key": key,
        "status": result.status,
        "reason": result.reason,
        "measures": result.measures,
        "curve": [list(point) for point in result.curve],
        "seconds": result.seconds,
    }


def stage(result: Result, plan: Plan) -> str:
    """Which part of the plan a trial belongs to: calibrate, probe, rate, race or length."""
    trial = result.trial
    if trial.kind != "train":
        return trial.kind
    if trial.seed not in plan.race_seeds(1_000):
        return "rate"
    return "race" if trial.length == 1 else "length"


def next_step(content: dict[str, Any]) -> str:
    """The line of code that takes the verdict over."""
    found = content["verdict"]
    if not found["norm"]:
        return ""
    training = f"learning rate {found['learning_rate']:g}, batch size {found['batch_size']}"
    if found["norm"] == "keep":
        return f"# keep the model as it is; train with {training}"
    spec = found["norm"] if found["norm"].startswith("{") else repr(found["norm"])
    return f"nw.swap(model, {spec})  # then train with {training}"
