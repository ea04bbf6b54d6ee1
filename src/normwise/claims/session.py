"""One call of `normwise claims`: plans, measures on worker processes, judges, writes the page."""

import contextlib
import inspect
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from normwise import networks
from normwise.claims import images
from normwise.claims.claim import Claim, Experiment, bare
from normwise.claims.content import claims_content
from normwise.claims.experiments import training
from normwise.claims.gather import Asked, Gathered, Measuring, collect, gather
from normwise.claims.images import pool_name
from normwise.claims.pictures import add_pictures
from normwise.claims.registry import CLAIMS, EXPERIMENTS, find
from normwise.claims.schedule import Schedule, make_schedule, pace, seconds_for, seconds_of
from normwise.data import corrupt, photos, sequences
from normwise.errors import UsageError, require_list, require_workers
from normwise.experiment.content import machine, versions
from normwise.experiment.drive import Driver
from normwise.experiment.engine import LocalEngine
from normwise.experiment.fingerprint import digest
from normwise.experiment.ledger import Ledger, Lock
from normwise.experiment.prepare import default_workers
from normwise.experiment.room import room
from normwise.experiment.tasks import charlm, stylize
from normwise.experiment.trial import Interrupted, Trial
from normwise.files import make_folder, write_atomic
from normwise.ops import backend
from normwise.report import claims as page
from normwise.report.progress import Progress

Content = dict[str, Any]
SHARED = (images, training, networks, corrupt, photos, sequences, stylize, charlm)  # what measurements rest on
LONGEST = 600.0  # seconds of one measurement


@dataclass(frozen=True)
class ClaimResult:
    """What was found of one claim.

    >>> ClaimResult({"id": "B1", "title": "Faster training", "verdict": "supported", "qualified": True})
    ClaimResult(B1 Faster training: supported, qualified)
    """

    content: Content

    @property
    def id(self) -> str:
        return self.content["id"]

    @property
    def verdict(self) -> str:
        """supported, negligible, contradicted or undecided: that of the first part."""
        return self.content["verdict"]

    @property
    def parts(self) -> list[Content]:
        return self.content["parts"]

    def __repr__(self) -> str:
        more = ", qualified" if self.content["qualified"] else ""
        return f"ClaimResult({self.id} {self.content['title']}: {self.verdict}{more})"


def run(
    names: Sequence[str] | None = None,
    budget: str = "60m",
    *,
    out: str | Path | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> list[ClaimResult]:
    """Measures the textbook's claims, all or those named, and says what holds.

    `budget` (`quick`, `20m`, `1h`) is for all of them and buys seeds. The same `out` reuses what it holds.
    Raises UsageError for a name that is none.

    >>> run(["B99"])
    Traceback (most recent call last):
    normwise.errors.UsageError: unknown claim 'B99', known are: B1, B2, ...
    """
    content = run_claims(names, budget, out=out, seed=seed, workers=workers)
    return [ClaimResult(claim) for claim in content["claims"]]


def run_claims(
    names: Sequence[str] | None = None,
    budget: str = "60m",
    *,
    out: str | Path | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> Content:
    """The same, as the content of results.json, which also lies in the folder, beside the page."""
    require_workers(workers)
    chosen = require_list("names", names) if names else CLAIMS
    claims = list({(claim := find(name)).id: claim for name in chosen}.values())
    folder = Path(out or Path("runs") / f"claims-{datetime.now():%Y%m%d-%H%M%S}")
    seconds_of(budget)
    make_folder(folder)
    with room(folder), Lock(folder):
        return Session(claims, budget, folder, seed, workers or default_workers()).run()


def gated(gates: Sequence[str], names: Sequence[str] | None) -> set[str]:
    """The claims that the exit code depends on; they must be among those that are run.

    >>> gated(["b6"], None), gated([], ["B6"])
    ({'B6'}, set())
    """
    wanted, run = {find(name).id for name in gates}, {find(name).id for name in names or CLAIMS}
    if missing := sorted(wanted - run):
        raise UsageError(f"--gate {missing[0]} needs that claim to be run; name it too, or name none to run all")
    return wanted


@dataclass
class Session:
    """One run under the lock of its folder."""

    claims: Sequence[Claim]
    budget: str
    folder: Path
    seed: int
    workers: int

    def run(self) -> Content:
        """Runs what the folder does not hold yet; Ctrl-C reports what is known and stays resumable."""
        start = time.monotonic()
        fingerprint = {"claims": "1"}
        job = Measuring(self.experiments, self.folder)
        log = self.folder / "log.txt"
        with Ledger.open(self.folder, fingerprint) as ledger:
            # before the workers start: they take the cores while they import, and the machine's pace would be theirs
            schedule, seconds = self._schedule(ledger)
            engine = LocalEngine(
                job, self.folder, workers=self.workers, key=self.key, log=log, seconds_per_trial=LONGEST
            )
            with engine, Progress() as progress:
                ledger.ingest(self.folder / "trials", self.key)
                driver = Driver(engine, ledger, self.key)
                driver.watch = lambda d: self._show(d, seconds, start, progress)
                asked, finished = self._measure(driver, schedule)
                gathered = {name: self._collected(one, ledger) for name, one in asked.items()}
        content = self._content(gathered, schedule, finished, self._before() + time.monotonic() - start)
        write_atomic(self.folder / "results.json", json.dumps(content, allow_nan=False, indent=1))
        page.write(content, self.folder / "report.html")
        return content

    def _before(self) -> float:
        """Seconds that earlier sittings in this folder took."""
        try:
            return float(json.loads((self.folder / "results.json").read_text())["config"]["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0

    @cached_property
    def experiments(self) -> dict[str, Experiment]:
        """What these claims look at; exact experiments first."""
        names = dict.fromkeys(name for claim in self.claims for name in claim.experiments)
        return dict(sorted(((n, EXPERIMENTS[n]) for n in names), key=lambda pair: not pair[1].exact))

    @cached_property
    def _identities(self) -> dict[str, str]:
        """Another source of an experiment, another PyTorch, other images: measured anew."""
        shared = [inspect.getsource(module) for module in SHARED]
        own = {name: inspect.getsource(inspect.getmodule(one.measure) or run) for name, one in EXPERIMENTS.items()}
        common = digest(*shared, torch.__version__, backend(), pool_name())
        return {name: digest(source, common) for name, source in own.items()}

    def key(self, trial: Trial) -> str:
        return trial.key(self._identities[trial.arm.partition("/")[0]])

    def _schedule(self, ledger: Ledger) -> tuple[Schedule, float]:
        """The schedule of the same request of before, or a new one, with the seconds it will take.

        It is made for the whole list, so that a claim has the same seeds alone; the clock decides nothing later.
        """
        request = {"budget": self.budget, "seed": self.seed, "workers": self.workers, "experiments": [*EXPERIMENTS]}
        for plan in ledger.plans:
            if plan["request"] == request:
                schedule, rate = Schedule(**plan["schedule"]), plan["pace"]
                break
        else:
            rate, everything = pace(), list(EXPERIMENTS.values())
            schedule = make_schedule(everything, seconds_of(self.budget), self.workers, rate, list(shipped_rates()))
            ledger.add_plan({"request": request, "schedule": schedule.to_dict(), "pace": rate})
        return schedule, seconds_for(schedule, list(self.experiments.values()), self.workers, rate)

    def _measure(self, driver: Driver, schedule: Schedule) -> tuple[dict[str, Asked], bool]:
        known = shipped_rates()
        processes = {
            name: gather(
                bare(one) if schedule.brief else one,
                schedule.seeds[name],
                schedule.tuning.get(name, 0),
                self.seed,
                known.get(name, {}),
            )
            for name, one in self.experiments.items()
        }
        asked: dict[str, Asked] = {}
        told = {name: _told(name, process, asked) for name, process in processes.items()}
        try:
            driver.run({**told})
            return asked, True
        except KeyboardInterrupt:
            driver.ledger.ingest(self.folder / "trials", self.key)
            for process in told.values():
                with contextlib.suppress(StopIteration, Interrupted):
                    process.throw(Interrupted())
            return asked, False

    def _collected(self, asked: Asked, ledger: Ledger) -> Gathered:
        keys = dict.fromkeys(self.key(trial) for trial in asked.trials + asked.rivals)
        return collect((ledger.results[key] for key in keys if key in ledger.results), asked)

    def _show(self, driver: Driver, seconds: float, start: float, progress: Progress) -> None:
        if not progress.due():
            return
        done, running = len(driver.done), len(driver.pending)
        taken = time.monotonic() - start
        at_this_rate = taken * running / done if done else 0.0  # a plan may be overrun
        left = max(seconds - taken, at_this_rate) if running else None
        progress.update(done, done + running, left, "measuring", running=min(running, self.workers))

    def _content(self, gathered: dict[str, Gathered], schedule: Schedule, finished: bool, seconds: float) -> Content:
        family = sum(len(claim.parts) for claim in map(find, CLAIMS))

        def command(name: str) -> str:
            return f"normwise claims {name} --budget {self.budget}" + (f" --seed {self.seed}" if self.seed else "")

        claims = claims_content(self.claims, gathered, family, command)
        add_pictures(claims, self.folder)
        return {
            "schema": 1,
            "claims": claims,
            "config": {
                "budget": self.budget,
                "seed": self.seed,
                "finished": finished,
                "folder": str(self.folder),
                "family": family,
                "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
                "seconds": seconds,
                "images": pool_name(),
                "schedule": schedule.to_dict(),
                "rates": {name: found.rates for name, found in gathered.items() if found.rates},
                "versions": versions(),
                "machine": {**machine(), "workers": self.workers},
            },
        }


def _told(name: str, process: Any, asked: dict[str, Asked]) -> Any:
    """The same process; what it asked for is known also when the run is interrupted."""
    found = yield from process
    asked[name] = found
    return found


def shipped_rates() -> dict[str, dict[str, float]]:
    """The learning rates that the recorded run tuned, by experiment and cell."""
    file = resources.files("normwise.claims").joinpath("rates.json")
    return json.loads(file.read_text()) if file.is_file() else {}
