"""When a node's ``on_timer`` is due."""

from __future__ import annotations

import time
from collections.abc import Callable


class Timer:
    """Ticks every so many seconds, the first time after that long; what was missed is made up for by one tick.

    ``every_s`` None: never. A stopped timer stays so.
    """

    def __init__(self, every_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._due_s = None if every_s is None else clock() + every_s

    def ticks(self) -> bool:
        """Whether it is time; the next time is counted from now."""
        if self._due_s is None or self._every_s is None or self._clock() < self._due_s:
            return False
        self._due_s = self._clock() + self._every_s
        return True

    def left_s(self) -> float | None:
        """Seconds until it ticks; None: it will not."""
        return None if self._due_s is None else max(0.0, self._due_s - self._clock())

    def stop(self) -> None:
        """The stream has ended, or the run is stopping."""
        self._due_s = None
