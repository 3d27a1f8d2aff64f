"""A run seen from another process, by its state directory: whether it goes on, how far it is, how it ended."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from consecution.errors import NotRunningError, WorldError
from consecution.protocol.origin import Origin, OriginCounts, OriginLimits
from consecution.protocol.values import TaskIndex
from consecution.runtime.books import Books
from consecution.runtime.control_socket import ask
from consecution.runtime.glimpse import Glimpse
from consecution.runtime.run_record import holder_of, read_run_record
from consecution.runtime.state import look_at_state_dir
from consecution.runtime.steering import pause_is_kept

LOOK_EVERY_S = 0.1
PATIENCE_S = 30.0
"""So long a run may hold the state directory without listening: while it starts, and while it closes."""
GLANCE_S = 1.0
"""Who only looks is told of that sooner."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What a state directory tells of its run. Times are wall-clock seconds.

    ``state`` is that of a run that goes on, or "busy" where it does not listen: it starts, it closes, or it is no run
    but another command. Else finished, stopped, failed, killed, new (nothing ran yet), or unknown (something did, but
    its record is not there, as after a restore).
    ``counts`` are those of `Status`, as plain values: of a run that is over, what the journals say. ``pause_kept``: a
    pause outlasts the run, so the next one reads nothing until it is resumed.
    """

    state_dir: str
    running: bool
    state: str
    counts: dict[str, Any]
    pid: int | None = None
    mode: str | None = None
    started_s: float | None = None
    ended_s: float | None = None
    error: str | None = None
    metrics_port: int | None = None
    pause_kept: bool = False

    @property
    def paused(self) -> bool:
        """Whether no source is read; of a run that is over, whether the next one will read none."""
        return self.pause_kept or self.state in ("pausing", "paused")

    @property
    def open(self) -> int:
        """Everything that is not yet completely processed."""
        return int(self.counts["pending"]) + int(self.counts["pending_below"])


class _BusyError(WorldError):
    """Somebody holds the state directory, and does not listen."""


class Outside:
    """A state directory and the run that may hold it.

    UsageError where it is none, StateDirError where it is another user's.
    """

    def __init__(self, path: Path) -> None:
        look_at_state_dir(path)
        self.path = path

    def holder(self) -> int | None:
        """The process that holds it; None: nobody does."""
        return holder_of(self.path)

    def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        """What the run answers. NotRunningError where there is none, WorldError where it does not answer.

        A run that is just starting, or closing, is waited for.
        """
        return self._ask(command, fields, PATIENCE_S)

    def _ask(self, command: str, fields: dict[str, Any], patience_s: float) -> dict[str, Any]:
        deadline_s = time.monotonic() + patience_s
        while True:
            record = read_run_record(self.path)
            try:
                if record is not None and record.control is not None:
                    return ask(record.control, {"command": command, **fields})
            except NotRunningError:
                pass
            holder = self.holder()
            if holder is None:
                raise NotRunningError(f"no run goes on over {self.path}")
            if time.monotonic() > deadline_s:
                raise _BusyError(
                    f"process {holder} holds {self.path} and does not listen: another command is at work there, or the "
                    "run is of a version without a control socket; wait for it"
                )
            time.sleep(LOOK_EVERY_S)

    def see(self) -> Sight:
        """How things stand, whether a run goes on or not."""
        return replace(self._see(), pause_kept=pause_is_kept(self.path))

    def _see(self) -> Sight:
        try:
            return self._sight_of(self._ask("status", {}, GLANCE_S))
        except NotRunningError:
            return self._sight_of_what_is_left()
        except _BusyError:
            return Sight(str(self.path), True, "busy", _counts_of(_NO_BOOKS), self.holder())

    def _sight_of(self, answer: dict[str, Any]) -> Sight:
        counts = answer["status"]
        state = counts.pop("state")
        known: dict[str, Any] = {name: answer.get(name) for name in ("pid", "mode", "started_s", "metrics_port")}
        return Sight(str(self.path), True, state, counts, **known)

    def _sight_of_what_is_left(self) -> Sight:
        record = read_run_record(self.path)
        counts = dict(record.status or {}) if record is not None else {}
        counts.pop("state", None)
        counts.update(_counts_of(look_at_books(self.path)))
        if record is None:
            return Sight(str(self.path), False, "unknown" if counts["emitted"] else "new", counts)
        state = record.outcome or "killed"
        ended_s = record.ended_s if record.ended_s is not None else self._last_written_s()
        return Sight(
            str(self.path), False, state, counts, record.pid, record.mode, record.started_s, ended_s, record.error
        )

    def _last_written_s(self) -> float | None:
        """When a run that could not say so was last at work, as far as the journals show it."""
        times = [path.stat().st_mtime for path in self.path.glob("origins*/*/data.mdb")]
        return max(times, default=None)

    def await_end(self, holder: int, timeout_s: float | None) -> bool:
        """Wait until this process holds the directory no more; False: it still does after that time."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while self.holder() == holder:
            if deadline_s is not None and time.monotonic() > deadline_s:
                return False
            time.sleep(LOOK_EVERY_S)
        return True


def look_at_books(path: Path) -> Books:
    """What the journals say is done and open."""
    state = look_at_state_dir(path)
    sources: dict[TaskIndex, OriginCounts] = {}
    below: list[OriginCounts] = []
    for name in state.origins:
        with Glimpse(state.origin_path(name)).opened() as journal:
            counts = Origin(OriginLimits(), journal.restore()).counts()
        if name in state.sources:
            sources[TaskIndex(len(sources))] = counts
        else:
            below.append(counts)
    return Books.of(sources, below)


_NO_BOOKS = Books({})


def _counts_of(books: Books) -> dict[str, int]:
    total = books.total
    return {
        "emitted": total.emitted,
        "completed": total.completed,
        "failed": total.failed + books.failed_below,
        "pending": total.pending,
        "pending_below": books.pending_below,
        "handled": total.handled + books.handled_below,
    }
