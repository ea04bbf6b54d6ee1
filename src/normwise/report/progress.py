"""Live progress on standard error: a display on a terminal, else a plain line every ten seconds."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from normwise.report.text import duration

REFRESH = 0.5  # seconds between two updates of a terminal


class Progress:
    """Shows how far a run is, who leads and how long it will take. Never writes to standard output.

    >>> import io
    >>> stream = io.StringIO()
    >>> with Progress(stream=stream) as progress:
    ...     progress.update(3, 40, seconds_left=70.0, stage="racing", leaders=["batch leads"], running=2)
    >>> print(stream.getvalue().strip())
    racing: 3 of 40 trials, 2 running, about 1 min 10 s left; batch leads
    """

    def __init__(self, *, stream: TextIO | None = None, interval: float = 10.0) -> None:
        self._stream = stream or sys.stderr
        self._live = self._display() if self._stream.isatty() else None
        self._interval = REFRESH if self._live else interval
        self._shown: float | None = None

    def due(self) -> bool:
        """Whether an update would be shown now: what it takes to make one may be worth saving."""
        return self._shown is None or time.monotonic() - self._shown >= self._interval

    def update(
        self,
        done: int,
        total: int,
        seconds_left: float | None = None,
        stage: str = "",
        leaders: Sequence[str] = (),
        running: int | None = 0,
    ) -> None:
        """Shows the state of the run, unless the last one was shown a moment ago."""
        if not self.due():
            return
        self._shown = time.monotonic()
        said = f"{done} of {total}" + ("" if running is None else f" trials, {running} running")
        if seconds_left is not None:
            said += f", about {duration(seconds_left)} left"
        if self._live:
            self._live.update(_frame(stage, done, total, said, leaders), refresh=True)
        else:
            print("; ".join([f"{stage}: {said}", *leaders]), file=self._stream, flush=True)

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def _display(self) -> Live:
        # Standard output belongs to --json, so it is left alone.
        console = Console(file=self._stream, highlight=False)
        stderr = self._stream is sys.stderr
        return Live(Text(""), console=console, transient=True, redirect_stdout=False, redirect_stderr=stderr)


def _frame(stage: str, done: int, total: int, said: str, leaders: Sequence[str]) -> Group:
    head = Table.grid(padding=(0, 1))
    head.add_row(Spinner("line"), Text(stage, style="bold"), ProgressBar(max(total, 1), done, width=24), Text(said))
    return Group(head, *(Text(f"  {leader}", style="dim") for leader in leaders))
