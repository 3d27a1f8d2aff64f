"""The times when something is due, given as items: what all sources that go by the clock share.

Times are whole microseconds since 1970 here, in UTC: they can be compared and kept whatever a clock on a wall shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from consecution.errors import UsageError
from consecution.source import Source
from consecution.sources.alarm import Alarm

MISSED = ("skip", "once", "all")
SECOND = 1_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LOOKED_BACK = tuple(seconds * SECOND for seconds in (1, 60, 3600, 86_400, 32 * 86_400, 367 * 86_400))
"""Where the newest of many times is looked for: in the last second, minute, hour, day, month, year, then before."""
LONGEST_WAIT_S = 0.5
"""With ``may_block``: how long a read waits before it lets the caller look at other things."""

After = Callable[[int], int]
"""Time → the first time after it when something is due."""


class Ticks:
    """Says what is due. It reads no clock.

    ``last`` is the last time that was given; what is due after it and before ``now`` was missed: "skip" leaves it out,
    "once" gives the newest of it, "all" all of it. So it is with what falls due while nobody comes to take it, except
    that the newest is always given.
    """

    def __init__(self, after: After, missed: str, *, last: int, now: int) -> None:
        self._after = after
        self._missed = missed
        self.next = after(max(last, now) if missed == "skip" else last)
        """When something is due next."""

    def due(self, now: int, most: int) -> list[int]:
        """What is due by now, the oldest first, and not more than ``most``."""
        found: list[int] = []
        while self.next <= now and len(found) < most:
            time_due = self.next if self._missed == "all" else self._newest(now)
            found.append(time_due)
            self.next = self._after(time_due)
        return found

    def _newest(self, now: int) -> int:
        """The last one until now."""
        for back in LOOKED_BACK:
            if now - back <= self.next:
                break
            found = self._after(now - back)
            if found <= now:
                return self._last_of(found, now)
        return self._last_of(self.next, now)

    def _last_of(self, found: int, now: int) -> int:
        while (following := self._after(found)) <= now:
            found = following
        return found


class TickSource(Source):
    """A source whose items are the times when something was due: a subclass says which (`after`, `to_item`).

    The position is the last time that was given. The stream never ends.
    """

    def __init__(self, missed: str, start: datetime | None) -> None:
        if missed not in MISSED:
            raise UsageError(f"missed={missed!r}: expected one of {', '.join(map(repr, MISSED))}")
        if start is not None and start.tzinfo is None:
            raise UsageError(f"start={start!r}: give its timezone: datetime(..., tzinfo=...)")
        self._missed = missed
        self._start = None if start is None else to_microseconds(start)
        self._given: int | None = None
        self._ticks: Ticks | None = None
        self._alarm: Alarm | None = None

    def after(self, moment: int) -> int:
        """The first time after ``moment`` when something is due."""
        raise NotImplementedError

    def to_item(self, moment: int) -> datetime:
        """How a time is given."""
        raise NotImplementedError

    def now(self) -> int:
        """The time."""
        return time.time_ns() // 1000

    def open(self, position: Any) -> None:
        self._given = None if position is None else int(position)
        now = self.now()
        begins = now if self._start is None else self._start
        self._ticks = Ticks(self.after, self._missed, last=begins if self._given is None else self._given, now=now)
        self._alarm = Alarm(self.now, per_second=SECOND)

    def read(self, max_items: int) -> list[Any]:
        assert self._ticks is not None, "read before open"
        assert self._alarm is not None
        found = self._ticks.due(self.now(), max_items)
        if not found and self.may_block:
            time.sleep(min(LONGEST_WAIT_S, max(0, self._ticks.next - self.now()) / SECOND))
            found = self._ticks.due(self.now(), max_items)
        if found:
            self._given = found[-1]
        else:
            self._alarm.ring_at(self._ticks.next)
        return list(map(self.to_item, found))

    def position(self) -> int | None:
        return self._given

    def fileno(self) -> int | None:
        return None if self._alarm is None else self._alarm.fileno()

    def close(self) -> None:
        if self._alarm is not None:
            self._alarm.close()
        self._ticks = self._alarm = None


def to_microseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def to_datetime(moment: int) -> datetime:
    return EPOCH + timedelta(microseconds=moment)
