"""The main job: `compare` says which normalization a network should use, on evidence it shows."""

import contextlib
import csv
import dataclasses
import io
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from normwise.errors import UsageError, require_list, require_workers
from normwise.experiment import race
from normwise.experiment.arms import Arm, LeftOut, survey
from normwise.experiment.content import POINTS, build_content, configuration, next_step, versions
from normwise.experiment.drive import Driver, ask
from normwise.experiment.engine import Engine
from normwise.experiment.engines import open_engine, workers_for
from normwise.experiment.final import final, outcomes
from normwise.experiment.folder import require_task, stopping
from normwise.experiment.ledger import Ledger, Lock, require_same
from normwise.experiment.plan import Plan, first_look_price, parse_budget
from normwise.experiment.prepare import Ask, make_plan, probe_trials
from normwise.experiment.race import CellOutcome
from normwise.experiment.ranks import Ranks
from normwise.experiment.request import Request
from normwise.experiment.resolve import resolve
from normwise.experiment.room import room
from normwise.experiment.setting import Setting
from normwise.experiment.task import Task
from normwise.experiment.trial import Result, Trial
from normwise.experiment.wording import Amounts
from normwise.files import make_folder, write_atomic
from normwise.ops import backend
from normwise.report import console, page
from normwise.report.text import called

Content = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a comparison found: the verdict, the scorecard, and every trial behind them.

    >>> Comparison({"verdict": {"statement": "Take batch: ..."}})
    Comparison(Take batch: ...)
    """

    content: Content

    @property
    def verdict(self) -> Content:
        return self.content["verdict"]

    @property
    def scorecard(self) -> Content:
        return self.content["scorecard"]

    @property
    def results(self) -> list[Content]:
        return self.content["results"]

    def save(self, path: str | Path) -> None:
        """Writes the report as one HTML file."""
        page.write(self.content, path)

    def to_json(self, path: str | Path) -> None:
        """Writes everything as JSON (docs: "results.json")."""
        write_atomic(path, json.dumps(self.content, allow_nan=False, indent=1))

    def to_csv(self, path: str | Path) -> None:
        """Writes one line per trial."""
        write_atomic(path, _csv(self.results))

    def __repr__(self) -> str:
        return f"Comparison({self.verdict['statement']})"


def compare(
    task: Any,
    norms: Sequence[str | Mapping[str, str]] | None = None,
    batch_sizes: Sequence[int] = (8, 64),
    *,
    budget: str = "10m",
    delta: float | str | None = None,
    epochs: float | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    processes: int = 1,
    workers: int | None = None,
    engine: str = "local",
    ray_address: str | None = None,
    stack: str | int = "auto",
    ledger: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
) -> Comparison:
    """Compares normalizations on a task: tunes the learning rate of each, races them on fresh paired seeds.

    `task`: the name of a built-in one, an object with `model()`, `data()` and what else it wants to
    set, `package.module:function` that makes one, or a function `train(trial) -> Scores`. `norms`: spec
    texts or mappings of patterns. `stack`: how many trials are at most trained as one network ("auto": up
    to 16, where that is faster; "off"). `processes`: how many train one trial together, each on its share of
    every batch (`device="cuda"`: each on a GPU of its own). The same `out` continues an interrupted run or
    extends a finished one.
    Raises UsageError for input that cannot work.

    >>> compare("digits", ["batch", "bacth"])
    Traceback (most recent call last):
    normwise.errors.UsageError: unknown norm 'bacth', known are: ...; did you mean batch?
    """
    request = Request(
        task=task if isinstance(task, str) else None,
        norms=None if norms is None else [_text(norm) for norm in require_list("norms", norms)],
        batch_sizes=list(require_list("batch_sizes", batch_sizes)),
        budget=budget,
        epochs=epochs,
        delta=None if delta is None else str(delta),
        device=device,
        precision=precision,
        processes=processes,
        engine=engine,
        ray_address=ray_address,
        stack=str(stack),
        ledger=ledger,
        seed=seed,
    )
    given = None if isinstance(task, str) else resolve(task)
    return Comparison(run_request(request, task=given, out=out, workers=workers))


def run_request(
    request: Request,
    *,
    task: Task | None = None,
    out: str | Path | None = None,
    workers: int | None = None,
    dry_run: bool = False,
) -> Content:
    """Runs what was asked, or goes on with what the folder `out` holds, and returns the content of results.json."""
    stored = _stored(out)
    if stored:
        request = request.over(_earlier(stored, request))
        if task is None and not (request.task or request.data):
            raise UsageError(
                f"{out} was started from Python: continue it there with nw.compare(task, out={str(out)!r})"
            )
    elif out is not None and task is None:
        require_task(request, out)
    request = request.complete(from_python=task is not None)
    require_workers(workers)
    task = task or resolve(request.task, model=request.model, data=request.data)
    if request.epochs is not None:
        task = task.with_epochs(request.epochs)
    with contextlib.ExitStack() as stack:
        # a plan that is only looked at leaves nothing behind
        temporary = dry_run and out is None
        fresh = out is None or not Path(out).exists()
        folder = Path(stack.enter_context(TemporaryDirectory())) if temporary else _folder(out, task)
        stack.enter_context(room(folder))
        if not temporary:
            stack.enter_context(stopping(folder, request, fresh))
        stack.enter_context(Lock(folder))
        return Session(request, task, folder, workers_for(request, workers), stored).run(dry_run)


class Session:
    """One call of compare, under the lock of its folder."""

    def __init__(self, request: Request, task: Task, folder: Path, workers: int, stored: Content | None) -> None:
        self.start = time.monotonic()
        self.request, self.task, self.folder, self.workers = request, task, folder, workers
        processes = request.processes or 1
        self.setting = Setting(request.device or "cpu", request.precision or "fp32", Ranks(processes))
        same = stored is not None and Request(**stored["request"]).asks_the_same(request)
        self.stored = stored
        self.stored_plan = Plan.from_dict(stored["plan"]) if stored and same and stored.get("plan") else None
        self.fingerprint = {
            **task.fingerprint(),
            **{name: versions()[name] for name in ("torch", "normwise")},
            "device": self.setting.device,
            "precision": self.setting.precision,
            "backend": backend(),
            **({"processes": str(processes)} if processes > 1 else {}),
        }
        self._identity = json.dumps(self.fingerprint, sort_keys=True)

    def run(self, dry_run: bool = False) -> Content:
        """Surveys the arms, plans, races, probes, reports. Ctrl-C reports what is known; the run stays resumable."""
        if self.stored and self.stored.get("fingerprint"):
            require_same(self.stored["fingerprint"], self.fingerprint, self.folder)
        arms, left_out = survey(self.task, self.request.norms, self.request.batch_sizes or [], self.setting)
        with (
            Ledger.open(
                self.folder,
                self.fingerprint,
                self.request.ledger,
                higher_is_better=self.task.higher_is_better,
            ) as ledger,
            self._engine() as engine,
            console.Progress() as progress,
        ):
            ledger.ingest(self.folder / "trials", self._key)
            for warning in ledger.warnings:
                print(f"normwise: {warning}", file=sys.stderr)
            driver = Driver(engine, ledger, self._key)
            if not (dry_run or self.stored):
                # an interruption before the plan must be resumable too
                early = {"request": self.request.to_dict(), "fingerprint": self.fingerprint, "plan": None}
                write_atomic(self.folder / "config.json", json.dumps(early, indent=1))
            driver.watch = lambda d: _show_timing(d, progress)
            plan = self.stored_plan or self._plan_of(ledger, arms) or self._new_plan(arms, driver)
            config = self._config(plan, arms, left_out)
            if dry_run:
                return {"schema": 1, "config": config}
            self._keep(plan, config, ledger)
            console.announce(config, sys.stderr)
            driver.watch = lambda d: self._show(d, plan, progress)
            finished = self._race(driver, plan)
            # what was tried again is not in the ledger, which keeps the first result of a key
            results = {**ledger.results, **driver.found}
        return self._report(plan, arms, config, results, finished)

    def _race(self, driver: Driver, plan: Plan) -> bool:
        """True when everything that was planned has been run."""
        try:
            raced = driver.run({size: race.run(plan, size) for size in plan.batch_sizes})
            driver.run({"final": final(plan, [raced[size] for size in plan.batch_sizes])})
            if self.task.own_loop is None:
                driver.run({"probe": ask(probe_trials(plan, _rates(raced.values())))})
        except KeyboardInterrupt:
            driver.ledger.ingest(self.folder / "trials", self._key)
            return False
        return True

    def _plan_of(self, ledger: Ledger, arms: tuple[Arm, ...]) -> Plan | None:
        """The plan that a shared ledger has for these arms, where the run began in another folder."""
        if self.stored or not ledger.plans:
            return None
        plan = Plan.from_dict(ledger.plans[-1])
        same = plan.arms == tuple(arm.name for arm in arms) and plan.seed == (self.request.seed or 0)
        return plan if same and plan.batch_sizes == tuple(self.request.batch_sizes or ()) else None

    def _new_plan(self, arms: tuple[Arm, ...], driver: Driver) -> Plan:
        wanted = Ask(
            self.task,
            arms,
            tuple(self.request.batch_sizes or ()),
            parse_budget(self.request.budget or ""),
            self.request.delta,
            self.request.seed or 0,
            self.workers,
            self.request.stack or "auto",
        )
        plan = make_plan(wanted, driver, time.monotonic() - self.start)
        # half of a loop that counts whole epochs may be the whole of it
        checkable = self.task.own_loop is None or self.task.epochs >= 2
        return dataclasses.replace(plan, length_check=plan.length_check and checkable)

    def _keep(self, plan: Plan, config: Content, ledger: Ledger) -> None:
        """Stores the plan before the first trial of the race."""
        record = json.loads(json.dumps(plan.to_dict()))
        if record not in ledger.plans:
            ledger.add_plan(record)
        write_atomic(self.folder / "config.json", json.dumps(config, indent=1))

    def _config(self, plan: Plan, arms: Sequence[Arm], left_out: Sequence[LeftOut]) -> Content:
        config = configuration(self.task, self.request, plan, arms, left_out, self.fingerprint, self.folder)
        return {**config, "workers": self.workers}

    def _engine(self) -> Engine:
        return open_engine(self.request, self.task, self.setting, self.folder, self.workers, self._key)

    def _key(self, trial: Trial) -> str:
        return trial.key(self._identity)

    def _show(self, driver: Driver, plan: Plan, progress: console.Progress) -> None:
        if not progress.due():
            return
        known = {result.trial: result for result in driver.ledger.results.values()}
        cells = outcomes(plan, known)
        amounts = Amounts(plan.delta, "points" if self.task.score_name in POINTS else "")
        trained = [r for r in driver.done if r.trial.kind == "train"]
        price = plan.total(r.trial for r in trained)
        # later looks come only where the first does not settle it: what is pending tells of them
        waiting = plan.total(driver.pending.values())
        seconds = sum(r.seconds for r in trained)
        before = plan.total(t for t in known if t.kind == "train") - price
        left = max(waiting, first_look_price(plan) - before - price)
        left *= (seconds / price if price else 1.0) / self.workers
        progress.update(
            done=len(known),
            total=len(known) + len(driver.pending),
            seconds_left=max(0.0, left),
            stage="racing" if cells else "tuning learning rates",
            leaders=[_leader(plan, cell, amounts) for cell in cells],
            running=min(self.workers, len(driver.pending)),
        )

    def _report(
        self,
        plan: Plan,
        arms: tuple[Arm, ...],
        config: Content,
        results: dict[str, Result],
        finished: bool,
    ) -> Content:
        raced = outcomes(plan, {result.trial: result for result in results.values()})
        config = config | {"finished": finished, "seconds": round(time.monotonic() - self.start, 1)}
        content = build_content(self.task, plan, arms, raced, results, config)
        content["config"]["next_step"] = next_step(content)
        content["config"]["folder"] = str(self.folder)
        found = Comparison(content)
        found.to_json(self.folder / "results.json")
        found.to_csv(self.folder / "results.csv")
        found.save(self.folder / "report.html")
        write_atomic(self.folder / "config.json", json.dumps(content["config"], indent=1))
        return content


def _rates(outcomes: Iterable[CellOutcome]) -> dict[tuple[str, int], float]:
    return {(arm.norm, cell.batch_size): arm.learning_rate for cell in outcomes for arm in cell.arms}


def _show_timing(driver: Driver, progress: console.Progress) -> None:
    stage = "timing a few steps of each arm"
    progress.update(len(driver.done), len(driver.done) + len(driver.pending), stage=stage, running=None)


def _leader(plan: Plan, cell: CellOutcome, amounts: Amounts) -> str:
    standing = cell.standing(race.rule_for(plan, len(cell.arms)))
    regret = max(0.0, standing.bounds[standing.named])
    most = amounts.at_most(regret) if math.isfinite(regret) else "not known"
    return f"batch size {cell.batch_size}: {called(standing.named)}, regret at most {most}"


def _earlier(stored: Content, request: Request) -> Request:
    """What was asked before; arms that were taken by default count as asked for when others are added."""
    earlier = Request(**stored["request"])
    if request.norms and earlier.norms is None:
        earlier = dataclasses.replace(earlier, norms=[arm["name"] for arm in stored.get("arms", [])] or None)
    return earlier


def _stored(out: str | Path | None) -> Content | None:
    path = Path(out) / "config.json" if out else None
    if path is None or not path.exists():
        return None
    try:
        stored = json.loads(path.read_text())
        Request(**stored["request"])
        return stored
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} must be the configuration of a run, but cannot be read ({error})") from error


def _folder(out: str | Path | None, task: Task) -> Path:
    folder = Path(out) if out else Path("runs") / f"{task.name}-{datetime.now():%Y%m%d-%H%M%S}"
    return make_folder(folder)


def _text(norm: str | Mapping[str, str]) -> str:
    return norm if isinstance(norm, str) else json.dumps(dict(norm))


def _csv(rows: Sequence[Content]) -> str:
    fixed = [
        "arm",
        "batch_size",
        "learning_rate",
        "seed",
        "length",
        "stage",
        "status",
        "reason",
        "seconds",
        "key",
    ]
    measures = sorted({name for row in rows for name in row["measures"]})
    file = io.StringIO()
    writer = csv.DictWriter(file, fixed + measures, extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows({**row, **row["measures"]} for row in rows)
    return file.getvalue()
