"""What user code runs just now, for whoever watches over what hangs.

A worker process that hangs is killed. A thread cannot be: who waits for one that hangs in user code stops waiting.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from consecution.errors import SourceError, WorkerError
from consecution.runtime.offspring import come_back_alone

LOOK_EVERY_S = 0.1


class Occupied:
    """Says which step of user code is running; set by the task's thread, read by any."""

    occupied_with: str = ""
    """The name of the step, empty between them."""
    raised_in: str = ""
    """The name of the last step that has raised."""

    @contextlib.contextmanager
    def _occupied(self, what: str) -> Iterator[None]:
        self.occupied_with = what
        try:
            yield
        except BaseException:
            self.raised_in = what
            raise
        finally:
            self.occupied_with = ""


class GivenUp(BaseException):
    """Raised where user code comes back at last from what others have given up: nothing is to be done any more."""


class LastHook:
    """The pipeline's ``end``, called once, in a thread that cannot be killed.

    Whoever gives it up does what was to come after it; `call` then raises GivenUp when the hook comes back.
    """

    def __init__(self, hook: Callable[[], Any]) -> None:
        self._hook = hook
        self._lock = threading.Lock()
        self._given_up = False
        self.since_s: float | None = None
        """When (monotonic) it was called, while it has not come back."""

    def call(self) -> Any:
        self.since_s = time.monotonic()
        try:
            return come_back_alone(self._hook)
        finally:
            with self._lock:
                self.since_s = None
                if self._given_up:
                    raise GivenUp

    def give_up(self, since_s: float) -> WorkerError | None:
        """What to raise in its place, if it was called before ``since_s`` and has not come back."""
        with self._lock:
            called_s = self.since_s
            if called_s is None or called_s > since_s or self._given_up:
                return None
            self._given_up = True
        return WorkerError(
            f"the pipeline's end() has not come back for {time.monotonic() - called_s:.0f} s, and the stop did not "
            "wait any longer: every item is processed, but what end() had to do may be missing; with a state "
            "directory the next run calls it again"
        )


def not_back(source: Any, method: str, called_s: float) -> SourceError:
    """What a stop ends with that has waited long enough for a source; ``called_s`` is monotonic seconds."""
    remedy = "; let read() return [] while there is nothing, or give Producer a generator, which may wait"
    return SourceError(
        f"the source {source!r} has not come back from {method}() for {time.monotonic() - called_s:.0f} s, and the "
        "stop did not wait any longer: what is open is left as after a crash, and what it holds is in use until "
        f"{method}() comes back or this program ends{remedy if method == 'read' else ''}"
    )


def wait_looking(over: threading.Event, timeout_s: float | None, look: Callable[[], None]) -> bool:
    """Wait for the end of a run, and not longer than ``timeout_s``; ``look`` is called now and then meanwhile."""
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        left_s = LOOK_EVERY_S if deadline_s is None else deadline_s - time.monotonic()
        if over.wait(max(0.0, min(LOOK_EVERY_S, left_s))):
            return True
        if left_s <= 0:
            return False
        look()
