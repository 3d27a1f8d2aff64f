"""A descriptor that becomes readable at a time: what a source that can only look again gives to wait for."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

from consecution.sources.punctual import wake_on_time

LONGEST_SLEEP_S = 1.0
"""The clock may be set, and the machine may sleep: so often it is looked at anew."""


class Alarm:
    """Silent until the time that `ring_at` has named, by the clock ``now``, which counts ``per_second`` units a second.

    For one thread, which closes it in the end; its own is there once there is a time to wait for.
    """

    def __init__(self, now: Callable[[], float], *, per_second: int = 1) -> None:
        self._now = now
        self._per_second = per_second
        self._changed = threading.Condition()
        self._due: float | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._readable, self._bell = os.pipe()
        os.set_blocking(self._readable, False)

    def fileno(self) -> int:
        return self._readable

    def ring_at(self, due: float) -> None:
        """Be silent until then."""
        with self._changed:
            if due == self._due:
                return
            self._due = due
            with contextlib.suppress(BlockingIOError):
                os.read(self._readable, 1)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="consecution-alarm", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        wake_on_time()
        with self._changed:
            while not self._closed:
                left_s = None if self._due is None else (self._due - self._now()) / self._per_second
                if left_s is None or left_s > 0:
                    self._changed.wait(left_s and min(left_s, LONGEST_SLEEP_S))
                else:
                    self._due = None
                    os.write(self._bell, b".")

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        os.close(self._readable)
        os.close(self._bell)
