"""A node that lets through only so many items a second."""

from __future__ import annotations

import time
from typing import Any

from consecution.errors import GraphError
from consecution.nodes import Node, check_seconds

BURST_S = 0.02
"""Unless told otherwise, what would have passed in so long a time may pass at once."""


class Bucket:
    """Counts how many items may pass: ``per_second`` in the long run, at most ``burst`` at once. Times are handed in.

    In any span of t seconds no more than ``per_second * t + burst + 1`` pass: somebody who looks a little late finds
    what has come in the meantime.

    Source: the token bucket of traffic shaping.
    """

    def __init__(self, per_second: float, burst: int, now_s: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._tokens = float(burst)
        self._counted_s = now_s

    def room(self, now_s: float) -> int:
        """How many may pass now."""
        self._tokens = min(self._burst + 1.0, self._tokens + max(0.0, now_s - self._counted_s) * self._per_second)
        self._counted_s = now_s
        return min(self._burst, int(self._tokens))

    def spend(self, count: int) -> None:
        """So many have passed; not more than `room` has said."""
        self._tokens -= count

    def due_s(self, now_s: float) -> float:
        """Seconds until the next may pass."""
        if self.room(now_s):
            return 0.0
        return (1.0 - self._tokens) / self._per_second


class RateLimit(Node):
    """Lets items pass, in order, as fast as ``per_second`` and no faster; the others wait, and hold the source back.

    At most ``burst`` pass at once after a pause (by default what comes in 20 ms, and at least one). It has one
    replica, so the limit is that of the whole run. It is for what plain and async nodes behind it do: a sink that waits
    for the decision gets all items of a batch together.
    """

    max_replicas = 1
    stateless = True
    paced_by_engine = False
    """Whether somebody else sees to it that items come no faster."""

    def __init__(self, per_second: float, burst: int | None = None, name: str | None = None) -> None:
        check_seconds(per_second, f"RateLimit({per_second!r})", "a number of items per second")
        if burst is not None and (type(burst) is not int or burst < 1):
            raise GraphError(f"RateLimit(burst={burst!r}): expected a whole number of 1 or more")
        super().__init__(name or "rate_limit")
        self._stem = None if name else self.name
        self.per_second = float(per_second)
        self.burst = burst or max(1, int(per_second * BURST_S))
        self._bucket: Bucket | None = None

    def make_bucket(self, now_s: float) -> Bucket:
        """A bucket of its kind, full."""
        return Bucket(self.per_second, self.burst, now_s)

    def process(self, item: Any) -> None:
        if not self.paced_by_engine:
            self._wait()
        self.push(item)

    def _wait(self) -> None:
        if self._bucket is None:
            self._bucket = self.make_bucket(time.monotonic())
        while due_s := self._bucket.due_s(time.monotonic()):
            time.sleep(due_s)
        self._bucket.spend(1)

    def _may_be_spread(self) -> bool:
        return False


__all__ = ["RateLimit"]
