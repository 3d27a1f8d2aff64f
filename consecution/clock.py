"""A stopwatch with named, summing timers: every node carries one as ``self.clock``."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from time import perf_counter
from typing import Any


class Clock:
    """Sums the seconds spent under each name. Several names may run at once; not for several threads."""

    def __init__(self) -> None:
        self.delta: Counter[Any] = Counter()  # counts seconds, which are no whole numbers
        self.active_start_times: dict[str, float] = {}

    @contextlib.contextmanager
    def running(self, *names: str) -> Iterator[None]:
        """Run these timers inside the ``with`` block."""
        self.start(*names)
        try:
            yield
        finally:
            self.stop(*names)

    @contextlib.contextmanager
    def paused(self, *names: str) -> Iterator[None]:
        """Hold these timers inside the ``with`` block."""
        self.stop(*names)
        try:
            yield
        finally:
            self.start(*names)

    def start(self, *names: str) -> None:
        """Start timers; one that runs already runs on. ValueError without a name."""
        if not names:
            raise ValueError("You must provide at least one name to start")
        now_s = perf_counter()
        for name in names:
            self.active_start_times.setdefault(name, now_s)

    def stop(self, *names: str) -> None:
        """Stop timers, all of them without a name; what does not run is left alone."""
        now_s = perf_counter()
        for name in names or tuple(self.active_start_times):
            started_s: Any = self.active_start_times.pop(name, None)
            if started_s is not None:
                self.delta[name] += now_s - started_s

    def reset(self, *names: str) -> None:
        """Forget timers, all of them without a name."""
        for name in names or (*self.active_start_times, *self.delta):
            self.delta.pop(name, None)
            self.active_start_times.pop(name, None)

    def get_time(self, *names: str) -> float | dict[str, float]:
        """Seconds of one timer, or a dict of the seconds of several; all of them without a name.

        A timer that was stopped before tells what it had then, one that runs for the first time what it
        has so far; one that never ran is left out.
        """
        now_s = perf_counter()
        found: dict[str, float] = {}
        for name in names or (*self.delta, *self.active_start_times):
            if name in self.delta:
                found[name] = self.delta[name]
            elif name in self.active_start_times:
                found[name] = now_s - self.active_start_times[name]
        return next(iter(found.values())) if len(found) == 1 else found

    def __str__(self) -> str:
        rows = [("seconds", "name"), *((f"{seconds:0.6f}", name) for name, seconds in self.delta.most_common())]
        return "\n".join(f"{seconds: <15s}{name}" for seconds, name in rows)

    __repr__ = __str__
