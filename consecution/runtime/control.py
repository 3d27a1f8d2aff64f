"""What supervisor and workers tell each other, over one pipe per worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from consecution.protocol.origin import FailureEntry, OriginCounts
from consecution.protocol.poison import Verdict
from consecution.protocol.values import TaskIndex, WorkerIndex

# -- supervisor to worker ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wire:
    """Close the sockets to endpoints that changed, connect to the new ones, answer `Switched`."""

    version: int
    endpoints: dict[WorkerIndex, str]


@dataclass(frozen=True, slots=True)
class Replay:
    """All tasks have switched: an origin replays what is undecided, or abandons it without a journal."""

    after_death: bool


@dataclass(frozen=True, slots=True)
class RunEnd:
    """Run the ``end`` of this task's node; answer `Ended` when all it pushed is processed."""

    task: TaskIndex


@dataclass(frozen=True, slots=True)
class Drain:
    """This durable task answers `Ended` when all it has pushed is processed; its ``end`` does not run."""

    task: TaskIndex


@dataclass(frozen=True, slots=True)
class StopReading:
    """The sources of this worker take nothing more, and finish what is open."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A source reads nothing until it is told ``paused=False``; what is open goes on."""

    paused: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """What was found about frames of this node that kill workers, before any of them comes again."""

    node: str
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class AtWork:
    """A task has been at one frame for as long as the timeout, and gets on with it. Told again and again."""


@dataclass(frozen=True, slots=True)
class TellBeats:
    """Somebody asks how far the run is: answer `Beats`, whatever user code is at."""


@dataclass(frozen=True, slots=True)
class EndBeats:
    """Tell no more how far you are: your stack is about to be asked for."""


@dataclass(frozen=True, slots=True)
class WaitOn:
    """Wait on this core from now on; None: wherever the system likes."""

    core: int | None


@dataclass(frozen=True, slots=True)
class Quit:
    """Close everything, answer `Closed`, exit."""


# -- worker to supervisor ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """Bound and ready to be wired."""

    worker: WorkerIndex
    endpoint: str
    pid: int


@dataclass(frozen=True, slots=True)
class Began:
    """Every ``begin`` has returned."""

    worker: WorkerIndex


@dataclass(frozen=True, slots=True)
class Switched:
    worker: WorkerIndex
    version: int


@dataclass(frozen=True, slots=True)
class Beat:
    """How far one task is: ``progress`` changes whenever it gets on; ``occupied_with`` user code or ''.

    The counts are those of `Counts`.
    """

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
    resting: bool = False
    """A source that is paused, and has let go of all that it has read."""
    below: OriginCounts | None = None
    """The books of what this task, which is no source, is the origin of."""
    frames: int = 0
    waited_s: float = 0.0
    commit_s: float = 0.0
    waiting: int = 0
    read_share: float | None = None
    address: Any = None
    """Where a source listens."""
    waits: bool = False
    """Its sink waits for the world with a frame in hand. It counts as not occupied, for it is to be left alone."""

    @property
    def has_frame(self) -> bool:
        """Whether it is at a frame, be it that it waits with that."""
        return bool(self.occupied_with) or self.waits


@dataclass(frozen=True, slots=True)
class Beats:
    """The signs of life of one worker, about once a second: those of all its tasks."""

    beats: tuple[Beat, ...]


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
    """The last word of a worker; ``beats`` of all its tasks."""

    beats: tuple[Beat, ...]
    confirmed: bool
    failures: tuple[FailureEntry, ...]
