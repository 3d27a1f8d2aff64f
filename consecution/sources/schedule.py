"""Times as cron has them. The extra ``schedule`` reads the expressions."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from consecution.errors import MissingExtraError, UsageError
from consecution.sources.ticks import TickSource, to_datetime, to_microseconds


class ScheduleSource(TickSource):
    """The times of a cron expression when they are due, as datetimes of ``timezone``.

    ``cron`` has five fields (minute, hour, day of the month, month, day of the week), or six, the second before them.
    When clocks are set forward, what would be due in the hour that is left out is due right after it, once; when they
    are set back, it is due in the first of the two hours, once. Only where the minute or the hour begins with ``*``, or
    there are six fields, the intervals are kept instead. So does Debian's cron.

    What fell due while no run was on is left out (``missed="skip"``), given as its newest (``"once"``), or given whole
    (``"all"``). The first run begins after ``start``, or now.

    UsageError for an expression that is none or never comes, an unknown timezone or ``missed``, or a ``start`` without
    a timezone; MissingExtraError without cronsim.
    """

    def __init__(
        self, cron: str, *, timezone: str = "UTC", missed: str = "skip", start: datetime | None = None
    ) -> None:
        super().__init__(missed, start)
        self._cron = cron
        self._zone = _zone(timezone)
        try:
            self.after(0)
        except (_import_cronsim().CronSimError, LookupError) as error:
            raise UsageError(
                f"Producer('schedule', cron={cron!r}): {error}; expected minute, hour, day of the month, month and "
                "day of the week, as in '*/5 * * * *'"
            ) from error

    def __repr__(self) -> str:
        return f"ScheduleSource({self._cron!r}, timezone={self._zone.key!r})"

    def after(self, moment: int) -> int:
        for found in _import_cronsim().CronSim(self._cron, self.to_item(moment)):
            # From the second of two equal hours it begins at the first.
            due = to_microseconds(found)
            if due > moment:
                return due
        raise LookupError("it never comes")

    def to_item(self, moment: int) -> datetime:
        return to_datetime(moment).astimezone(self._zone)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise UsageError(
            f"Producer('schedule', timezone={name!r}): there is no such timezone here; expected a name such as "
            "'Europe/Berlin' (where the system has none of them: pip install tzdata)"
        ) from error


def _import_cronsim() -> Any:
    try:
        import cronsim
    except ImportError as error:
        raise MissingExtraError(
            f"Producer('schedule') needs cronsim: pip install 'consecution[schedule]' ({error})", extra="schedule"
        ) from error
    return cronsim
