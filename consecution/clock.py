"""A stopwatch with named, summing timers: every node carries one as ``self.clock``."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator


class Clock:
    """Sums the seconds spent under each name. Several names may run at once; not for several threads."""

    def __init__(self) -> None:
        self.delta: dict[str, float] = {}
        self.active_start_times: dict[str, datetime.datetime] = {}

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
        for name in names:
            self.active_start_times.setdefault(name, datetime.datetime.now())

    def stop(self, *names: str) -> None:
        """Stop timers, all of them without a name; what does not run is left alone."""
        now = datetime.datetime.now()
        for name in names or tuple(self.active_start_times):
            started = self.active_start_times.pop(name, None)
            if started is not None:
                self.delta[name] = self.delta.get(name, 0.0) + (now - started).total_seconds()

    def reset(self, *names: str) -> None:
        """Forget timers, all of them without a name."""
        for name in names or (*self.active_start_times, *self.delta):
            self.delta.pop(name, None)
            self.active_start_times.pop(name, None)

    def get_time(self, *names: str) -> float | dict[str, float]:
        """Seconds of one timer, or a dict of several; a timer that runs tells what it has so far."""
        now = datetime.datetime.now()
        found: dict[str, float] = {}
        for name in names or (*self.delta, *self.active_start_times):
            if name in self.delta:
                found[name] = self.delta[name]
            elif name in self.active_start_times:
                found[name] = (now - self.active_start_times[name]).total_seconds()
        return next(iter(found.values())) if len(found) == 1 else found

    def __str__(self) -> str:
        slowest_first = sorted(self.delta.items(), key=lambda timer: timer[1], reverse=True)
        rows = [("seconds", "name"), *((f"{seconds:0.6f}", name) for name, seconds in slowest_first)]
        return "\n".join(f"{seconds: <15s}{name}" for seconds, name in rows)

    __repr__ = __str__
