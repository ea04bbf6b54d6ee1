"""One call of `compare` on its folder: survey the arms, plan, race, probe, report."""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from normwise.experiment import race
from normwise.experiment.arms import Arm, LeftOut, survey
from normwise.experiment.comparison import Comparison, Content
from normwise.experiment.content import POINTS, build_content, configuration, next_step, versions
from normwise.experiment.drive import Driver, ask
from normwise.experiment.engine import Engine
from normwise.experiment.engines import open_engine
from normwise.experiment.final import final, outcomes
from normwise.experiment.ledger import Ledger, require_same
from normwise.experiment.plan import Plan, first_look_price, parse_budget
from normwise.experiment.prepare import Ask, make_plan, probe_trials
from normwise.experiment.race import CellOutcome
from normwise.experiment.ranks import Ranks
from normwise.experiment.request import Request
from normwise.experiment.setting import Setting
from normwise.experiment.task import Task
from normwise.experiment.trial import Result, Trial
from normwise.experiment.wording import Amounts
from normwise.files import write_atomic
from normwise.ops import backend
from normwise.report import console
from normwise.report.text import called


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
