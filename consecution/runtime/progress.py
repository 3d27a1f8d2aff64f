"""Shows on standard error how far a run is: a bar or a line on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from consecution.options import Options
from consecution.report import Status
from consecution.runtime.log_file import LogLine
from consecution.telling import is_terminal, tell, write

LINE_EVERY_S = 5.0
BAR_COLUMNS = 24


class Display(Protocol):
    """What shows a run: called with each `Status`, and cleared at the end. One thread uses it."""

    def __call__(self, status: Status) -> None: ...

    def clear(self) -> None:
        """Take away what would be written over. Harmless when repeated, and where nothing was shown."""


def make_display(options: Options) -> Display:
    """A bar on a terminal, or a line where `rich` is missing; in a log of JSON objects another one of them."""
    if options.log_format == "json":
        return Progress(live=False, describe=lambda status: LogLine.now("supervisor", None, str(status)).to_json())
    live = is_terminal(sys.stderr)
    if live:
        with contextlib.suppress(ImportError):
            return Bar()
    return Progress(live=live)


class Progress:
    """One line that is written over on a terminal, now and then a line elsewhere.

    ``describe`` makes the line of a status.
    """

    def __init__(self, *, live: bool, describe: Callable[[Status], str] = str) -> None:
        self._live = live
        self._describe = describe
        self._last_s = time.monotonic()
        self._shown = ""

    def __call__(self, status: Status) -> None:
        now_s = time.monotonic()
        if self._live:
            columns = shutil.get_terminal_size().columns
            line = self._describe(status)[: columns - 1]
            write("\r" + line.ljust(len(self._shown)))
            self._shown = line
        elif now_s - self._last_s >= LINE_EVERY_S:
            self._last_s = now_s
            tell(self._describe(status))

    def clear(self) -> None:
        if self._shown:
            write("\r" + " " * len(self._shown) + "\r")
            self._shown = ""


class Bar:
    """A bar and the time that is left, where the sources know how much they give, or have read; the status beside it.

    Needs a terminal and `rich` (ImportError); what is written to standard error meanwhile comes out above it.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bounded = (
            BarColumn(BAR_COLUMNS),
            TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(compact=True),
        )
        self._said = TextColumn("{task.description}", markup=False)
        self._drawn = RichProgress(
            self._said, console=Console(stderr=True), auto_refresh=False, transient=True, redirect_stdout=False
        )
        self._task: TaskID | None = None

    def __call__(self, status: Status) -> None:
        drawn: Any = self._drawn
        total, done = status.expected, float(max(status.completed, status.completed_before))
        if total is None and status.read_share is not None:
            total, done = 1, status.read_share
        shown = {"description": str(status), "total": total, "completed": done}
        drawn.columns = (self._said,) if total is None else (*self._bounded, self._said)
        if self._task is None:
            self._task = drawn.add_task(**shown)
            drawn.start()
        drawn.update(self._task, **shown, refresh=True)

    def clear(self) -> None:
        self._drawn.stop()


__all__ = ["Progress", "make_display"]
