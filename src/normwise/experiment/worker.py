"""A worker process: runs the trials it is given, and hands each result over as a file.

Started by the engine as `python -m normwise.experiment.worker`. Orders come as pickles on standard
input: first the setup, then lists of (key, trial), of which several are trained as one if the job can.
Answers go, a word a line, to standard output: `begin` and `done`, or `stop` with a reason; where several
processes run each trial together also `fail`, which ends them all. Whatever the user's code prints goes to
standard error, the log.
"""

import ctypes
import faulthandler
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, BinaryIO, NoReturn

from normwise.experiment.meeting import tell_failure
from normwise.experiment.trial import Result, Trial, UnstackableError
from normwise.files import write_atomic

Job = Callable[[Trial], Result]


def main() -> None:
    """Works until standard input ends, which is when the driver closes it or dies."""
    orders, answers = _private_pipes()
    _die_with_driver()
    inbox: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_listen, args=(orders, inbox), daemon=True).start()
    setup = inbox.get()
    job, trials = _set_up(setup)
    while True:
        order: list[tuple[str, Trial]] = inbox.get()
        answers.write(b"begin\n")
        answer = _run(job, order, trials, setup["processes"])
        answers.write(f"{answer}\n".encode())
        if answer == "fail":
            os._exit(1)


def _run(job: Job, order: list[tuple[str, Trial]], trials: Path, processes: int) -> str:
    """Runs an order, each result a file as soon as there is one; returns the answer.

    Of several processes one that fails may leave the others waiting for it, and one that is lost makes the
    others fail: so a failure ends this process, and with it all of them.
    """
    keys = {trial: key for key, trial in order}
    for result in attempt_all(job, list(keys), lambda trial: trials / f"{keys[trial]}.partial"):
        if processes > 1 and result.status == "failed":
            tell_failure(result.reason)
            return "fail"
        if processes > 1 and os.environ["RANK"] != "0":
            continue
        path = trials / f"{keys[result.trial]}.json"
        try:
            write_atomic(path, result.to_json())
        except OSError as error:
            return f"stop cannot write {path}: {error}"
    return "done"


def attempt_all(job: Job, trials: list[Trial], place: Callable[[Trial], Path] | None = None) -> Iterator[Result]:
    """The results of trials that may be trained as one; where that fails, of one after the other.

    A trial may keep at its `place` what a next attempt goes on from, if the job has a method
    `resume(trial, path)`, and several at that of the first with `resume_stack(trials, path)`.

    >>> [result.trial.seed for result in attempt_all(Result, [Trial("batch", 8, 0.1, seed) for seed in (3, 4)])]
    [3, 4]
    """
    left = list(trials)
    stack: Callable[[list[Trial]], Iterator[Result]] | None = getattr(job, "stack", None)
    resume_stack = getattr(job, "resume_stack", None)
    if resume_stack and place:
        stack = partial(resume_stack, path=place(trials[0]))
    if stack is not None and len(trials) > 1:
        try:
            for result in stack(trials):
                left.remove(result.trial)
                yield result
        except (Exception, SystemExit) as error:
            print(f"normwise: {len(left)} trials run one at a time: {error}", file=sys.stderr)
            if not isinstance(error, UnstackableError):
                traceback.print_exc()
    resume = getattr(job, "resume", None)
    for trial in left:
        yield attempt(partial(resume, path=place(trial)) if resume and place else job, trial)


def attempt(job: Job, trial: Trial) -> Result:
    """What the job returns; an exception out of it becomes a failed result, its traceback goes to the log.

    >>> attempt(lambda trial: Result(trial), Trial("batch", 8, 0.1, seed=0)).status
    'ok'
    >>> attempt(lambda trial: None, Trial("batch", 8, 0.1, seed=0)).reason
    'TypeError: the job must return a Result, got NoneType'
    """
    try:
        result = job(trial)
        if not isinstance(result, Result):
            raise TypeError(f"the job must return a Result, got {type(result).__name__}")
        if result.trial != trial:
            raise ValueError(f"the job must return the result of {trial}, got that of {result.trial}")
        result.to_json()
        return result
    except BaseException as error:  # `sys.exit` in the user's code ends the trial, not the worker
        print(f"normwise: {trial} failed", file=sys.stderr)
        traceback.print_exc()
        return Result(trial, "failed", f"{type(error).__name__}: {error}"[:1000])


def _private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Takes the two pipes away from the user's code: it reads nothing, and prints to the log."""
    orders, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, TextIOWrapper)
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    faulthandler.enable()
    return orders, answers


def _die_with_driver() -> None:
    """Asks Linux to kill this process with its driver, for code that lets no other thread run."""
    if sys.platform == "linux":
        parent_death_signal = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)


def _listen(orders: BinaryIO, inbox: SimpleQueue[Any]) -> None:
    """Passes the orders on; when they end, so does the process, in the middle of a trial too."""
    try:
        while True:
            inbox.put(pickle.load(orders))
    except EOFError:
        pass
    except BaseException:
        traceback.print_exc()
    _leave()


def _leave() -> NoReturn:
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)  # what the user's code started goes with it
    os._exit(1)


def _set_up(setup: dict[str, Any]) -> tuple[Job, Path]:
    """Makes importable what the driver could import, and only then unpickles the job."""
    sys.path[:] = setup["path"]
    if setup["pythonpath"] is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = setup["pythonpath"]
    try:
        job = pickle.loads(setup["job"])
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # a thread that the import left behind would keep the process alive
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    return job, Path(setup["trials"])


if __name__ == "__main__":
    main()
