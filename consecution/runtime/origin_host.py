"""The shell around an origin: commits, launches and tells what the core decided, in that order."""

from __future__ import annotations

import contextlib
import math
import os
import reprlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeVar

from consecution.errors import SourceError, WorldError, text_of
from consecution.protocol.dispatch import Credits, Dispatch, Sent
from consecution.protocol.origin import (
    Change,
    FailedEdges,
    FailureEntry,
    FailureKept,
    Launch,
    Origin,
    OriginLimits,
    Settled,
)
from consecution.protocol.poison import Condemned, Guard, Suspect, decode_apart
from consecution.protocol.step import Codec, Counts, Judge, always_retry, describe_failure, encode_apart
from consecution.protocol.values import (
    USER_ERRORS,
    Acks,
    Confirms,
    CreditReturn,
    Entry,
    FailedItem,
    Frame,
    FrameId,
    Go,
    Gos,
    Items,
    Message,
    Stage,
    TaskIndex,
    copied,
)
from consecution.report import Failure
from consecution.runtime import failpoints
from consecution.runtime.affinity import Affinity
from consecution.runtime.journal import NotesTaken
from consecution.runtime.occupation import not_back
from consecution.runtime.offspring import end_if_forked
from consecution.source import Note, Rejected, Source
from consecution.transport.codec import LiveCodec, ReusingCodec, without_mark

BIRTH = (-1,)
"""A batch that is just being made, where a frame has its path."""
BATCHES_PER_TURN = 8
"""So many births may share one commit whatever the window, while the source has more to give at once."""
TRIAL_S = 0.01
"""So long a source holds back while batches are under way that show what size is right,"""
TRIAL_COMMITS = 16
"""and so many times as long as its last commit: a batch is written down several times, in several places;"""
MOST_TRIAL_S = 1.0
"""but no longer than this."""
QUICK_READ_S = 0.002
NO_CALL = ("", 0.0)
COMMIT_STRETCH = 4
"""Reading for one commit may take so many times as long as the commit before it: a slow disk gets larger commits."""


class Outbox(Protocol):
    """Sends a message to a task. Never blocks."""

    def send(self, target: TaskIndex, message: Message) -> None: ...


class Store(Protocol):
    """Where an origin's changes go: the journal, or memory."""

    def apply(self, changes: list[Any]) -> None: ...

    def failures(self, limit: int) -> list[FailureEntry]: ...

    def close(self) -> None: ...


_T = TypeVar("_T")

OnStop = Callable[[TaskIndex, FailureEntry], None]
"""Told of an item for whose sake the run is to stop, and of its origin, before the entry is committed."""


class Companion(Protocol):
    """The durable task whose outputs this origin answers for: what it changes is part of the same commits."""

    @property
    def owes(self) -> bool:
        """Whether there is anything to commit, or to answer after a commit."""

    def take_changes(self) -> list[Any]:
        """What the next commit has to hold beside the origin's own changes."""

    def prepare(self, changes: list[Any]) -> None:
        """The commit of these changes comes next: a store elsewhere commits before it, and adds its mark."""

    def committed(self) -> bool:
        """Answer for what `take_changes` returned last. Returns whether there was anything to say."""


class Handlers(FailedEdges, Protocol):
    """The failed edges of the graph, with the ways that lead over them."""

    def dispatch_of(self, task: TaskIndex) -> Dispatch: ...

    def judge_of(self, task: TaskIndex) -> Judge: ...

    @property
    def credits(self) -> list[Credits]: ...


class _Way(NamedTuple):
    """How an execution leaves its origin, and where an item fails that cannot take that way, and by whose rule."""

    dispatch: Dispatch
    start: Entry
    judge: Judge


class MemoryStore:
    """Remembers the last ``keep`` failed items, and nothing else."""

    def __init__(self, keep: int) -> None:
        self._failures: deque[FailureEntry] = deque(maxlen=keep)

    def apply(self, changes: list[Change]) -> None:
        for change in changes:
            if isinstance(change, FailureKept):
                self._failures.append(change.entry)

    def failures(self, limit: int) -> list[FailureEntry]:
        return list(self._failures)[-limit:] if limit else []

    def close(self) -> None:
        pass


def by_task(pairs: Iterable[tuple[TaskIndex, _T]]) -> dict[TaskIndex, list[_T]]:
    """What is to go to each task, in order: one message will carry it."""
    found: dict[TaskIndex, list[_T]] = {}
    for task, told in pairs:
        found.setdefault(task, []).append(told)
    return found


class OriginHost:
    """One origin at work. Called by one thread.

    ``stored`` encodes what the journal takes; None where nothing is journalled, and then batches
    are launched from the live items alone. ``deciders`` are the durable tasks that may decide the first execution of a
    batch of the stream themselves, if one frame is all that it comes to.
    """

    def __init__(
        self,
        task: TaskIndex,
        origin: Origin,
        store: Store,
        dispatch: Dispatch,
        codec: Codec,
        outbox: Outbox,
        *,
        stored: Codec | None = None,
        now: Callable[[], float] = time.time,
        on_settled: Callable[[Settled], None] | None = None,
        on_stop: OnStop | None = None,
        judge: Judge = always_retry,
        guard: Guard | None = None,
        handlers: Handlers | None = None,
        deciders: Sequence[int] = (),
    ) -> None:
        self.task = task
        self.origin = origin
        self.store = store
        self._home = os.getpid()
        self._dispatch = dispatch
        self._codec = codec
        self._outbox = outbox
        self._stored = stored
        self.now = now
        self._on_settled = on_settled
        self._on_stop = on_stop
        self._guard = guard or Guard()
        self._handlers = handlers
        self._deciders = deciders
        self._own_way = _Way(dispatch, Entry(task, Stage.ROUTE), judge)
        self._live: dict[int, Sequence[Any]] = {}
        self.confirmed = True
        self.commit_s = 0.0
        """How long the latest commit took."""
        self.committed_s = 0.0
        """How long all of them took together."""
        self.companion: Companion | None = None
        self.at_work: Callable[[], bool] = lambda: False
        """Whether some task is known to be at what it was sent. So long no tree is late, however long it takes."""
        self.affinity = Affinity()
        """Where to wait for the disk, if commits do."""

    @property
    def has_outlets(self) -> bool:
        """Whether anything lies behind this task: without, what it makes goes nowhere."""
        return self._dispatch.has_outlets

    def receive(self, message: Message) -> None:
        """Take in acknowledgements, confirms and credits."""
        if isinstance(message, Acks):
            now_s = self.now()
            for ack in message.acks:
                self.origin.acked(ack, now_s, message.sender)
        elif isinstance(message, Confirms):
            self.origin.confirmed(message.sender, message.confirms, self.now())
        elif isinstance(message, CreditReturn):
            for credits in self._credits():
                credits.give_back(message.replica, message.count)

    def _credits(self) -> Iterable[Credits]:
        return self._dispatch.credits if self._handlers is None else (*self._dispatch.credits, *self._handlers.credits)

    def born(self, items: Sequence[Any], position: Any, rejected: Sequence[Rejected] = ()) -> int:
        """Make the next batch of these items. The rejected, and items that cannot be encoded, fail with the batch."""
        items = copied(items)  # Encoders know a list by its identity; a source may give the same one twice.
        count = len(items) + len(rejected)
        payload: Any = None
        failed = [self._describe(self._own_way, *refused)._replace(retryable=False) for refused in rejected]
        suspect = self._guard.take(self.task, self.origin.next_seq, BIRTH)
        if suspect is not None:
            items = self._sift(self._own_way, suspect, items, failed)
        if self._stored is not None:
            payload, items, unencoded = self._encode(items, self._stored)
            failed += unencoded
        self._guard.leave()
        seq = self.origin.born(count, payload, position, self.now(), born_failed=tuple(failed))
        self._live[seq] = items
        return seq

    def _encode(self, items: Sequence[Any], codec: Codec) -> tuple[Any, Sequence[Any], tuple[FailedItem, ...]]:
        payload, good, refused = encode_apart(items, codec)
        failed = (describe_failure(self.task, Stage.ROUTE, *found, codec, self._own_way.judge) for found in refused)
        return payload, good, tuple(failed)

    def start_due(self) -> None:
        """Start retries, and replay trees without progress, whose time has come."""
        due_s = self.origin.next_due_s()
        if due_s is not None and due_s <= (now_s := self.now()):
            if self.at_work():
                self.origin.heard_of(now_s)
            self.origin.start_retries(now_s)
            self.origin.expire(now_s)

    def turn(self) -> bool:
        """Do everything that is due: commit, launch, tell. Returns whether there was anything."""
        self.start_due()
        worked = False
        while self._owes and self._turn_once():
            worked = True
        return worked

    @property
    def _owes(self) -> bool:
        return self.origin.owes or (self.companion is not None and self.companion.owes)

    def _turn_once(self) -> bool:
        """One commit, and everything that may be said after it."""
        turn = self.origin.take_turn()
        if self._on_stop is not None:
            for entry in turn.stops:
                self._on_stop(self.task, entry)
        beside = self.companion.take_changes() if self.companion is not None else []
        if turn.changes or beside:
            if self._stored is not None:
                end_if_forked(self._home)  # a journal has one writer
            changes = [*beside, *turn.changes, *self.origin.take_forgotten()]
            if self.companion is not None:
                self.companion.prepare(changes)
            failpoints.passed("origin.before_commit")
            started_s = self.now()
            self.affinity.bind()
            try:
                self.store.apply(changes)
            finally:
                self.affinity.free()
            self.commit_s = self.now() - started_s
            self.committed_s += max(0.0, self.commit_s)
            failpoints.passed("origin.committed")
        answered = self.companion.committed() if self.companion is not None else False
        for launch in turn.launches:
            self._launch(launch, turn.low)
        if turn.launches:
            failpoints.passed("origin.launched")
        self._send_gos(turn.gos)
        for settled in turn.settled:
            self._tell(settled)
        return bool(turn or beside or answered)

    def _send_gos(self, ordered: list[tuple[TaskIndex, Go]]) -> None:
        for task, gos in by_task(ordered).items():
            self._outbox.send(task, Gos(self.task, gos))
        if ordered:
            failpoints.passed("origin.told")

    def _tell(self, settled: Settled) -> None:
        self.confirmed = self.confirmed and settled.confirmed
        if self._on_settled is not None:
            self._on_settled(settled)

    def _launch(self, launch: Launch, low: int) -> None:
        cause = Frame(
            self.task,
            launch.seq,
            launch.generation,
            (),
            FrameId(0),
            low,
            self.task,
            Stage.PROCESS,
            False,
            launch.payload,
        )
        way = self._way_of(launch.entry)
        if way is None:
            assert launch.entry is not None
            self._launch_retry(cause, launch.entry.task, launch.entry.stage)
            return
        failed: list[FailedItem] = []
        suspect = self._guard.take(self.task, launch.seq, ())
        items = self._live.pop(launch.seq, None)
        if items is None:
            items = self._decode(way, launch, suspect, failed)
        if suspect is not None:
            items = self._sift(way, suspect, items, failed)
        sent, unsent = way.dispatch.send(items, cause)
        self._guard.leave()
        failed += [self._describe(way, unsendable.item, unsendable.error) for unsendable in unsent]
        if launch.entry is None and self._deciders:
            if launch.again:
                sent += self._fences(cause)
            elif len(sent) == 1 and not failed:
                sent[0].frame.whole = True
        xor = produced_bytes = 0
        for target, frame in sent:
            self._outbox.send(target, frame)
            xor ^= frame.frame_id
            produced_bytes += self._codec.size(frame.payload)
        if self._stored is not None:
            produced_bytes = max(0, produced_bytes - self._codec.size(launch.payload))
        self.origin.launched(launch.seq, launch.generation, xor, self.now(), failed, produced_bytes)

    def _fences(self, cause: Frame) -> list[Sent]:
        """A frame for each that may have decided the first execution: it confirms that, or keeps to this one."""
        make_id = self._dispatch.make_id
        return [Sent(TaskIndex(task), replace(cause, frame_id=make_id(), payload=b"")) for task in self._deciders]

    def _way_of(self, entry: Entry | None) -> _Way | None:
        """None: this is a retry that enters at another task, and is sent there as it is."""
        if entry is None or entry == self._own_way.start:
            return self._own_way
        if entry.stage is not Stage.FAILED or self._handlers is None:
            return None
        return _Way(self._handlers.dispatch_of(entry.task), entry, self._handlers.judge_of(entry.task))

    def _sift(self, way: _Way, suspect: Suspect, items: Sequence[Any], failed: list[FailedItem]) -> list[Any]:
        """Try the way of each item, for one of them has taken the process down; the guilty are left out."""
        good: list[Any] = []

        def condemn(guilty: Condemned) -> None:
            failed.append(self._describe(way, *guilty))

        for item in self._guard.one_by_one(suspect, items, self._codec, condemn):
            way.dispatch.rehearse([item])
            good.append(item)
        return good

    def _describe(self, way: _Way, item: Any, error: BaseException) -> FailedItem:
        return describe_failure(*way.start, item, error, self._codec, way.judge)

    def _decode(self, way: _Way, launch: Launch, suspect: Suspect | None, failed: list[FailedItem]) -> Items:
        # A class or module that is not there is no item's fault, unless that has failed before and was put back.
        payload, was_put_back = without_mark(launch.payload)
        lets_through = (AttributeError, ImportError) if launch.entry is None and not was_put_back else ()
        alone = self.origin.count_of(launch.seq) == 1
        try:
            items, lost = decode_apart(payload, self._codec.decode, suspect, alone=alone, lets_through=lets_through)
        except Exception as error:
            raise WorldError(
                f"batch {launch.seq} of the journal cannot be decoded ({text_of(error)}): run again "
                "with the code that it was written with; nothing was lost"
            ) from error
        failed += [self._describe(way, item, item.error) for item in lost]
        return items

    def _launch_retry(self, cause: Frame, target: TaskIndex, stage: Stage) -> None:
        frame_id = self._dispatch.make_id()
        cause.frame_id = frame_id
        cause.stage = stage
        self._outbox.send(target, cause)
        self.origin.launched(cause.seq, cause.generation, frame_id, self.now())

    def replica_restarted(self, task: TaskIndex) -> None:
        """A new incarnation of a task behind a shuffle edge owes no credits."""
        for credits in self._credits():
            credits.reset(task)

    def close(self) -> None:
        self.store.close()


class SourceHost:
    """A source and its origin: reads as much as the window allows, in batches.

    ``reads_ahead`` False: one batch a turn, for an engine that carries it through the graph, still warm in the
    processor's cache, before it takes another turn.
    """

    def __init__(
        self,
        host: OriginHost,
        source: Source,
        *,
        linger_s: float = 0.0,
        reads_ahead: bool = True,
        notes: Sequence[tuple[int, bytes]] = (),
        node_of: Callable[[TaskIndex], str] = str,
    ) -> None:
        self.host = host
        self.origin = host.origin
        self.source = source
        self._notes = notes
        self._node_of = node_of
        self._calls = _Calls(source)
        self._births = host.companion = _Births(source, self._calls, self._tell)
        self._reader = _Reader(source, linger_s, time.monotonic, self._calls)
        self._reads_ahead = reads_ahead
        self._trying_since_s: float | None = None
        self._problem: SourceError | None = None
        self._stopping = False
        self._paused = False
        self.resting = False
        """Paused, and what had been read is on its way. Any thread may look."""
        self.counts = Counts()
        """Of its batches where others count frames; they wait from their birth until they are completely processed."""
        self._born_s: dict[int, float] = {}
        host._on_settled = self._settled

    def open(self) -> None:
        """Open the source where the journal stands. Raises SourceError."""
        if self.origin.exhausted:
            return
        notes, self._notes = self._notes, ()
        try:
            if notes:
                self._calls(self.source.recall, notes)
            with self._calls.noted("open"):
                self.source.open(self.origin.position)
        except SourceError:
            raise
        except USER_ERRORS as error:
            raise SourceError(
                f"the source {self.source!r} cannot be opened at {self.origin.position!r}: {text_of(error)}"
            ) from error

    def receive(self, message: Message) -> None:
        self.host.receive(message)

    def turn(self) -> bool:
        """Read, commit and launch. Returns whether there was anything to do.

        Raises SourceError if the source has raised, when all that came before is completely processed.
        """
        started_s, committed_s = time.monotonic(), self.host.committed_s
        self.host.start_due()  # Retries first: else new items would take all the room there is.
        try:
            worked = self._read()
        except SourceError as error:
            if self._births.halfway:
                raise
            self._fail(error)
            worked = True
        worked = self.host.turn() or worked
        if worked:
            self.counts.busy_s += time.monotonic() - started_s - (self.host.committed_s - committed_s)
        if self.origin.settled:
            self.raise_problem()
        return worked

    def _fail(self, error: SourceError) -> None:
        """Read it no more; the run ends with its first error, when what is open is completely processed."""
        self._problem = self._problem or error
        self.stop_reading()

    def raise_problem(self) -> None:
        """Raise what the source has raised, if it has."""
        if self._problem is not None:
            raise self._problem

    @property
    def reading_since_s(self) -> float | None:
        """When (monotonic) the source was asked for items, while it has not answered."""
        method, since_s = self._calls.latest
        return since_s if method == "read" else None

    @property
    def in_source(self) -> bool:
        """Whether a method of the source runs just now."""
        return bool(self._calls.latest[0])

    def hanging(self, since_s: float) -> SourceError | None:
        """What to raise if a method was called before ``since_s`` and has not come back. Any thread may ask."""
        method, called_s = self._calls.latest
        return None if not method or called_s > since_s else not_back(self.source, method, called_s)

    def fileno(self) -> int | None:
        """What to wait for before it is read again; None: it is to be asked."""
        try:
            return _checked_fileno(self.source, self._calls(self.source.fileno))
        except SourceError as error:
            self._fail(error)
            return None

    @property
    def wants_to_read(self) -> bool:
        return not self._paused and self._room() > 0

    def _room(self) -> int:
        """How many items to read now; 0: first something has to come of what is under way."""
        room = self.origin.room(self._left())
        if room and (self._is_ahead() or self._trial_left_s()):
            return 0
        return room

    def _is_ahead(self) -> bool:
        return not self.source.is_awaited and self.origin.is_ahead(self.host.commit_s)

    def _trial_left_s(self) -> float:
        """Seconds to wait for what batches under way show; 0.0: read."""
        if not self.origin.is_trying(self._left()):
            self._trying_since_s = None
            return 0.0
        now_s = self.host.now()
        if self._trying_since_s is None:
            self._trying_since_s = now_s
        most_s = min(TRIAL_S + TRIAL_COMMITS * self.host.commit_s, MOST_TRIAL_S)
        left_s = self._trying_since_s + most_s - now_s
        return left_s if 0.0 < left_s <= most_s else 0.0

    def next_wake_s(self) -> float | None:
        """Seconds until something is due; None: not before a message or the source wakes us."""
        due_s = self.origin.next_due_s()
        waits = [] if due_s is None else [max(0.0, due_s - self.host.now())]
        if trial_left_s := self._trial_left_s():
            waits.append(trial_left_s)
        if self.wants_to_read:
            linger_s = self._reader.left_s()
            if linger_s is not None:
                waits.append(linger_s)
        return min(waits, default=None)

    def _read(self) -> bool:
        if self._stopping and not self.origin.stopped:
            return self._stop()
        self.resting = self._paused
        if self._paused:
            return self._release()
        read = False
        now = self.host.now
        until_s = now() + max(QUICK_READ_S, COMMIT_STRETCH * self.host.commit_s)
        most = BATCHES_PER_TURN if self.origin.growing else max(BATCHES_PER_TURN, self.origin.limits.max_pending // 2)
        for _ in range(most):
            room = self._room()
            if not room:
                break
            items = self._read_batch(room)
            if items is None:
                self.origin.exhaust(self._calls(self.source.position))
                return True
            if not items:
                break
            read = True
            self._bear(items)
            full = len(items) == room or self.source.cut
            if not full or not self._reads_ahead or now() >= until_s:
                break
        return read

    def _left(self) -> float:
        """How many items the source has yet, or seems to have; infinite where it does not know, or was mistaken."""
        emitted, expected, share = self.origin.emitted, self.source.expected, self.source.read_share
        left = 0.0
        if expected is not None:
            left = expected - emitted
        elif share:
            left = emitted * (1.0 - share) / share
        return left if left > 0 else math.inf

    def _bear(self, items: Sequence[Any]) -> None:
        count = len(items)
        rejected: list[Rejected] = []
        if self.source.rejects:
            rejected = [item for item in items if type(item) is Rejected]
            items = [item for item in items if type(item) is not Rejected] if rejected else items
        seq = self.host.born(items, self._calls(self.source.position), rejected)
        self._born_s[seq] = time.monotonic()
        self._births.add(seq, count)

    def _stop(self) -> bool:
        released = self._release()
        self.origin.stopped = True
        return released

    def _release(self) -> bool:
        """What waits for a batch to fill was read, and so it goes."""
        kept = self._reader.release()
        if kept:
            self._bear(kept)
        return bool(kept)

    def _read_batch(self, room: int) -> Sequence[Any] | None:
        try:
            found = self._reader.read(room)
            self.counts.read_share = self.source.read_share
            return found
        except SourceError:
            raise
        except USER_ERRORS as error:
            raise SourceError(
                f"the source {self.source!r} raised {text_of(error)}; what came before it was taken"
            ) from error

    def stop_reading(self) -> None:
        """Take nothing more from the next turn on; what is open is finished. Any thread may call it."""
        self._stopping = True

    def pause(self, *, paused: bool) -> None:
        """Read nothing from the next turn on, or read again. Any thread may call it; a stop goes before a pause."""
        self._paused = paused

    @property
    def reading(self) -> str:
        """running, pausing, or paused."""
        if not self._paused:
            return "running"
        return "paused" if self.resting else "pausing"

    @property
    def drained(self) -> bool:
        """Reading was stopped, and all that was read is completely processed."""
        return self.origin.stopped and self.origin.settled

    def _settled(self, settled: Settled) -> None:
        self.counts.frames += 1
        self.counts.took(self._born_s.pop(settled.seq, 0.0), time.monotonic())
        if settled.given_up:
            self._tell(self.source.items_failed, settled.seq, [self._failure(entry) for entry in settled.given_up])
        self._tell(self.source.batch_settled, settled.seq, settled.failed, settled.confirmed)

    def _tell(self, hook: Callable[..., None], *what: Any) -> None:
        """What becomes of a batch. A source that cannot take it must not keep the others from being told."""
        try:
            self._calls(hook, *what)
        except SourceError as error:
            self._fail(error)

    def _failure(self, entry: FailureEntry) -> Failure:
        failed = entry.failed
        return Failure(self._node_of(failed.task), failed.shown, failed.error, failed.traceback, entry.attempts)

    def close(self) -> None:
        try:
            with self._calls.noted("close"):
                self.source.close()
        except USER_ERRORS as error:
            what = text_of(error)
            raise SourceError(f"the source {self.source!r} cannot be closed: {what}") from error
        finally:
            self.host.close()


class _Calls:
    """Calls of the source's methods, each of which may raise what it likes: that becomes a SourceError."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.latest = NO_CALL
        """Which method has not come back, and since when (monotonic); any thread may look."""

    @contextlib.contextmanager
    def noted(self, method: str) -> Iterator[None]:
        self.latest = method, time.monotonic()
        try:
            yield
        finally:
            self.latest = NO_CALL

    def __call__(self, method: Callable[..., _T], *given: Any) -> _T:
        name = getattr(method, "__name__", "a method")
        self.latest = name, time.monotonic()
        try:
            return method(*given)
        except SourceError:
            raise
        except USER_ERRORS as error:
            raise SourceError(
                f"the source {self._source!r}: {name}() raised {text_of(error)}; what came before it "
                f"was taken: mend {name}() and run again"
            ) from error
        finally:
            self.latest = NO_CALL


def _checked_fileno(source: Source, found: Any) -> int | None:
    if found is None or (type(found) is int and found >= 0):
        return found
    raise SourceError(
        f"the source {source!r}: fileno() gave {reprlib.repr(found)}; expected the number of an open descriptor, or "
        "None. A closed socket gives -1: keep it open until close() is called, or return None: read() is asked then"
    )


def _checked_items(source: Source, found: Any) -> Sequence[Any] | None:
    if found is None or (isinstance(found, Sequence) and not isinstance(found, (str, bytes))):
        return found
    raise SourceError(
        f"the source {source!r}: read() gave {reprlib.repr(found)}, a {type(found).__name__}; expected a list of "
        "items, a range, [] while there is nothing, or None at the end: return [item] of one, list(...) of an iterator"
    )


class _Births:
    """The batches of one commit, and what the source keeps with them (a `Companion`)."""

    def __init__(self, source: Source, calls: _Calls, tell: Callable[..., None]) -> None:
        self._source = source
        self._calls = calls
        self._tell = tell
        self.halfway = False
        """A batch is born, and what the source was to keep with it is missing: it must not be committed like that."""
        self._born: list[int] = []
        self._notes: dict[int, Note] = {}
        self._committing: list[int] = []

    def add(self, seq: int, count: int) -> None:
        self.halfway = True
        self._calls(self._source.batch_born, seq, count)
        note = self._calls(self._source.take_note, seq)
        self.halfway = False
        self._born.append(seq)
        if note is not None:
            self._notes[seq] = note

    @property
    def owes(self) -> bool:
        return bool(self._born)

    def take_changes(self) -> list[Any]:
        self._committing, self._born = self._born, []
        notes, self._notes = self._notes, {}
        if not notes:
            return []
        needed_since = max(note.needed_since for note in notes.values())
        return [NotesTaken(tuple((seq, note.body) for seq, note in notes.items()), needed_since)]

    def prepare(self, changes: list[Any]) -> None:
        """There is no store elsewhere."""

    def committed(self) -> bool:
        born, self._committing = self._committing, []
        for seq in born:
            self._tell(self._source.batch_journalled, seq)
        return bool(born)


class _Reader:
    """Reads a batch; with a linger, waits a little for a small one to fill."""

    def __init__(self, source: Source, linger_s: float, clock: Callable[[], float], calls: _Calls) -> None:
        self._source = source
        self._calls = calls
        self._linger_s = linger_s
        self._clock = clock
        self._kept: list[Any] = []
        self._since_s = 0.0
        self._ended = False
        self._error: BaseException | None = None

    def read(self, max_items: int) -> Sequence[Any] | None:
        if self._error is not None:
            raise self._error
        if self._ended:
            return None
        found = self._ask(max_items - len(self._kept)) if len(self._kept) < max_items else []
        if found is None:
            return self.release() or None
        if not self._linger_s:
            return found
        if found and not self._kept:
            self._since_s = self._clock()
        self._kept.extend(found)
        if len(self._kept) < max_items and (self.left_s() or 0.0) > 0 and not self._source.cut:
            return []
        return self.release()

    def release(self) -> list[Any]:
        """What is kept, whether it is a full batch or not."""
        kept, self._kept = self._kept, []
        return kept

    def _ask(self, max_items: int) -> Sequence[Any] | None:
        """What the source has; None at its end, and where it raises after something was kept: that goes first."""
        self._calls.latest = "read", self._clock()
        try:
            found: Sequence[Any] | None = self._source.read(max_items)
            if type(found) is not list:
                found = _checked_items(self._source, found)
        except USER_ERRORS as error:
            if not self._kept:
                raise
            self._error = error
            return None
        finally:
            self._calls.latest = NO_CALL
        self._ended = found is None
        return found

    def left_s(self) -> float | None:
        """Seconds until what is kept goes even if it is not a full batch; None: nothing is kept."""
        if not self._kept:
            return None
        return max(0.0, self._since_s + self._linger_s - self._clock())


def origin_limits(options: Any, parallel: int = 1, workers: int = 0) -> OriginLimits:
    """The limits of an origin under these options, where so many replicas may share its batches in so many workers."""
    return OriginLimits(
        batch_size=options.batch_size,
        max_pending=options.max_pending,
        max_pending_bytes=options.max_pending_bytes,
        retries=options.retries if options.robustness == "robust" else 0,
        retry_delay_s=options.retry_delay_s,
        tree_timeout_s=options.timeout_s * 4,
        parallel=parallel,
        workers=workers,
        replays=options.robustness == "robust",
    )


def failures_kept(options: Any) -> int:
    """How many failed items are remembered where nothing is journalled."""
    return options.keep_failed if options.robustness == "track" else 0


def live_codec(*, robust: bool) -> tuple[Codec, Codec | None]:
    """Codecs of an engine whose tasks share memory: (between tasks, for the journal)."""
    return LiveCodec(stores_bytes=robust), (ReusingCodec() if robust else None)


def process_codec(*, robust: bool) -> tuple[Codec, Codec | None]:
    """Codecs of an engine whose tasks are processes: (between tasks, for the journal)."""
    codec = ReusingCodec()
    return codec, (codec if robust else None)
