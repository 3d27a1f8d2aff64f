"""What supervisor and workers tell each other, over one pipe per worker."""

from __future__ import annotations

from dataclasses import dataclass

from consecution.protocol.origin import FailureEntry, OriginCounts
from consecution.protocol.poison import Verdict
from consecution.protocol.values import TaskIndex

# -- supervisor to worker ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wire:
    """Close the sockets to endpoints that changed, connect to the new ones, answer `Switched`."""

    version: int
    endpoints: dict[TaskIndex, str]


@dataclass(frozen=True, slots=True)
class Replay:
    """All tasks have switched: an origin replays what is undecided, or abandons it without a journal."""

    after_death: bool


@dataclass(frozen=True, slots=True)
class RunEnd:
    """Run the node's ``end``; answer `Ended` when all it pushed is processed."""


@dataclass(frozen=True, slots=True)
class Drain:
    """A durable task answers `Ended` when all it has pushed is processed; its ``end`` does not run."""


@dataclass(frozen=True, slots=True)
class StopReading:
    """A source takes nothing more, and finishes what is open."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What was found about frames that kill workers, before any of them comes again."""

    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class Quit:
    """Close everything, answer `Closed`, exit."""


# -- worker to supervisor ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """Bound and ready to be wired."""

    task: TaskIndex
    endpoint: str
    pid: int


@dataclass(frozen=True, slots=True)
class Began:
    """``begin`` has returned."""

    task: TaskIndex


@dataclass(frozen=True, slots=True)
class Switched:
    task: TaskIndex
    version: int


@dataclass(frozen=True, slots=True)
class Beat:
    """Signs of life: ``progress`` changes whenever the task gets on; ``occupied_with`` user code or ''."""

    task: TaskIndex
    progress: tuple[int, ...]
    occupied_with: str
    items_in: int
    items_out: int
    failed: int
    busy_s: float
    origin: OriginCounts | None = None
    finished: bool = False
    drained: bool = False
    below: OriginCounts | None = None
    """The books of what this task, which is not the source, is the origin of."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """An item failed at a node whose ``on_error`` is "stop"; this task is the origin that keeps it."""

    task: TaskIndex
    entry: FailureEntry


@dataclass(frozen=True, slots=True)
class Ended:
    task: TaskIndex
    confirmed: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker cannot go on; ``doing`` names the step (start, begin, open, process, end, close).

    ``error`` is one of our own errors, pickled, which ends the run; None for what user code raised.
    """

    task: TaskIndex
    doing: str
    message: str
    traceback: str
    error: bytes | None


@dataclass(frozen=True, slots=True)
class Closed:
    """The last word of a worker."""

    beat: Beat
    confirmed: bool
    failures: tuple[FailureEntry, ...]
