"""The values of the protocol: what a batch, a frame and an acknowledgement are.

A *batch* is a numbered slice of one origin's stream, a *frame* the part of a batch that travels over
one edge between two tasks, a *tree* every frame that descends from one execution of a batch.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NewType

from consecution.errors import text_of

TaskIndex = NewType("TaskIndex", int)
"""Position of a task in ``Plan.tasks``; the same in every process of a run."""

WorkerIndex = NewType("WorkerIndex", int)
"""Position of a worker in ``Plan.workers``: a process that lives and dies as one, with the tasks it hosts."""

FrameId = NewType("FrameId", int)
"""64 random bits, never 0, that stand for one frame in its tree's checksum."""


QUIET_LOAD_S = 0.005
"""What a task does in less is not worth an acknowledgement of its own: the frame takes along how long it was. But the
first is acknowledged in any case, so that its origin knows early that they take no longer."""

USER_ERRORS = (Exception, SystemExit, GeneratorExit)
"""What user code may raise at an item without taking the task down."""


class PartlyFailedError(Exception):
    """``failed`` is what has raised of what a node took in at once, each with its error: items, or parts of one.

    The rest has been taken in, and stays: whoever runs the node keeps it, and lists only these.
    """

    def __init__(self, failed: list[tuple[Any, BaseException]]) -> None:
        first = text_of(failed[0][1])
        super().__init__(f"{len(failed)} of what was taken in at once have failed; the first with {first}")
        self.failed = failed


def failed_parts(item: Any, error: BaseException) -> list[tuple[Any, BaseException]]:
    """What is to be listed where an item raised: itself, or what the node says."""
    return error.failed if isinstance(error, PartlyFailedError) else [(item, error)]


Items = list[Any] | range
LIVE = (list, range)
"""What a payload is that has stayed in its process: the items themselves."""


def copied(items: Sequence[Any]) -> Items:
    """These items, where nobody else can change them; a range stays one: it is kept and sent as its ends."""
    return items if type(items) is range else list(items)


def listed(items: Items) -> list[Any]:
    """The same list, or one of the numbers of a range: for code of users, who may change it."""
    return list(items) if type(items) is range else items


class BatchId(NamedTuple):
    """One execution of a batch as a sink sees it: the highest generation of a (origin, seq, path) counts."""

    origin: str
    seq: int
    generation: int
    path: tuple[int, ...]


class Labelled(NamedTuple):
    """An item that goes its own way: ``label`` names the output that it was pushed to, or the branch it comes by."""

    label: str
    item: Any

    def __repr__(self) -> str:
        return f"{self.label}: {self.item!r}"


def unlabelled(item: Any) -> Any:
    """The item as the user knows it."""
    return item.item if type(item) is Labelled else item


class Stage(enum.IntEnum):
    """Where in a task an item failed, and so where its retry goes in again."""

    PROCESS = 0
    """The node's own code raised; the item is an input of the node."""
    ROUTE = 1
    """The node was done; choosing the way on (router, key) raised. The item is an output of the node."""
    FAILED = 2
    """The item was given up here, and goes over the node's failed edge."""


class Entry(NamedTuple):
    """The point at which a retried item enters the graph again."""

    task: TaskIndex
    stage: Stage


class Action(enum.IntEnum):
    """What is to become of an item that raised."""

    RETRY = 0
    """Another try, as long as there are tries left; then it is given up."""
    PARK = 1
    """Given up at once."""
    STOP = 2
    """Given up, and the run takes nothing new."""


class Treatment(NamedTuple):
    """What a node's error policy said of one failed item; None: as the origin's limits say."""

    action: Action = Action.RETRY
    retries: int | None = None
    delay_s: float | None = None


@dataclass(slots=True)
class Frame:
    """A part of one execution of a batch on its way to one task.

    ``payload`` is a list of live items (threads, inline) or their encoding (processes); ``sender`` is
    the task that sent it, ``credited`` whether the receiver owes the sender a credit for it. ``sent_s``: when the
    shell sent it, in monotonic seconds, which all processes of a machine share; 0: it does not say. ``whole``: it is
    all that the first execution of its batch has come to so far, and nothing of that has failed. ``load_s``: so long
    tasks were at what has become this ``whole``, all together, whether they have said so or not.
    Not frozen, for speed alone: nobody changes a frame after it was sent.
    """

    origin: TaskIndex
    seq: int
    generation: int
    path: tuple[int, ...]
    frame_id: FrameId
    low: int
    sender: TaskIndex
    stage: Stage
    credited: bool
    payload: Any
    sent_s: float = 0.0
    whole: bool = False
    load_s: float = 0.0

    @property
    def is_fence(self) -> bool:
        """It holds nothing: a batch that runs again asks durable tasks by it whether its first execution counts."""
        return not self.payload

    @property
    def is_retry(self) -> bool:
        """It has come by no edge: it is a failed item that enters here again, and holds nothing else."""
        return not self.path


class FailedItem(NamedTuple):
    """An item that raised: where, what it was (encoded like a payload, as a one-item list), and why.

    ``retryable`` is False where trying again cannot help (the item could not even be encoded).
    """

    task: TaskIndex
    stage: Stage
    payload: Any
    error: str
    traceback: str
    retryable: bool
    shown: str
    """``repr`` of the item, shortened; for people."""
    treatment: Treatment = Treatment()
    """Given where the exception was still alive."""


@dataclass(slots=True)
class Ack:
    """What one task has done with one frame: ``xor`` is id_in ^ id_out1 ^ id_out2 ...

    ``produced_bytes`` is the size of what went out (0 where payloads are live objects). ``staged``: the
    frame lies safely in a durable task's inbox; that task is a participant of the batch from now on.
    ``load_s``: so long the task was at it, and the next frame had to wait; 0 where frames do not wait for each other.
    Of a ``staged`` frame it is the frame's own: what others were at it.
    """

    seq: int
    generation: int
    xor: int
    produced_bytes: int
    failed: tuple[FailedItem, ...]
    staged: bool = False
    load_s: float = 0.0


@dataclass(slots=True)
class Acks:
    """The acknowledgements of one loop turn of one task, all for the same origin."""

    sender: TaskIndex
    acks: list[Ack]


@dataclass(slots=True)
class CreditReturn:
    """``replica`` has worked off this many frames of the task that gets this message."""

    replica: TaskIndex
    count: int


class Go(NamedTuple):
    """A decided batch, to one of its participants: apply the frames of exactly this generation.

    ``after`` is the last earlier batch that the participant has not confirmed, -1 where there is none;
    ``low`` the origin's lowest batch not yet applied everywhere; ``xor`` folds the ids of the frames
    the participant has staged, so that a missing one is noticed.
    """

    seq: int
    generation: int
    after: int
    low: int
    xor: int


@dataclass(slots=True)
class Gos:
    """The decisions of one loop turn of one origin, all for the same participant."""

    origin: TaskIndex
    gos: list[Go]


class Confirm(NamedTuple):
    """A participant has applied this batch. ``load_s`` is its frame's, if it has decided the batch itself; else 0."""

    seq: int
    load_s: float = 0.0


@dataclass(slots=True)
class Confirms:
    """The batches of the origin that gets this message which one commit of a participant has applied."""

    sender: TaskIndex
    confirms: list[Confirm]


Message = Frame | Acks | CreditReturn | Gos | Confirms
"""What travels between tasks."""
