"""A time every so many seconds."""

from __future__ import annotations

from datetime import datetime

from consecution.errors import UsageError
from consecution.sources.ticks import SECOND, TickSource, to_datetime

SHORTEST_S = 0.001


class EverySource(TickSource):
    """Every ``seconds`` the time when it was due, as a datetime in UTC.

    They are the multiples of ``seconds`` since 1970 (UTC): every 60 seconds means at each full minute, whenever the run
    was started. What fell due while no run was on is left out (``missed="skip"``), given as its newest (``"once"``), or
    given whole (``"all"``). The first run begins after ``start``, or now.

    UsageError for less than a millisecond, an unknown ``missed``, or a ``start`` without a timezone.
    """

    def __init__(self, seconds: float, *, missed: str = "skip", start: datetime | None = None) -> None:
        super().__init__(missed, start)
        if not isinstance(seconds, (int, float)) or not SHORTEST_S <= seconds < float("inf"):
            raise UsageError(f"Producer('every', seconds={seconds!r}): expected a number of at least {SHORTEST_S:g}")
        self._period = round(seconds * SECOND)

    def __repr__(self) -> str:
        return f"EverySource({self._period / SECOND:g})"

    def after(self, moment: int) -> int:
        return (moment // self._period + 1) * self._period

    def to_item(self, moment: int) -> datetime:
        return to_datetime(moment)
