"""The origin: cuts batches, answers for their trees, decides them once, in order, and replays them.

The rules this file keeps:

1. A batch is born into the journal before any of its frames leaves (`Turn.changes`, then `Turn.launches`).
2. An acknowledgement counts only for the current execution of its batch: (seq, generation).
3. Batches are decided in ``seq`` order, each once; from then on a batch is never executed again, and
   only the failures of the execution that was decided are kept. The decision is committed before any
   participant is told to ``go``; a batch is forgotten when all of its participants have confirmed.
4. A retry is a one-item batch of its own. Its birth and the removal of its failure entry are one commit;
   if it fails again the entry comes back, with one more attempt, in the commit of its decision.
5. Before every replay the generation rises, in the journal. A frame says of ``low`` only what is committed: its
   receiver drops what lies below, and that would be the batch itself if it had to run again.
6. The failed inputs of a durable task are its own origin's: their retries enter at that very task, and
   descend from no batch (``root`` is `NO_ROOT`).
7. That a batch is forgotten needs no commit of its own: it rides with the next one, and waits for that as long as
   anything is open. A crash before it is one just before the forgetting: the ``go`` is repeated, and confirmed again.
8. A durable task may have decided a batch's first execution, where a single frame was all of it. That the task has
   confirmed it is the decision, whatever has run since. So a batch runs again only with a fence for each such task.
9. An item that is given up at a node with a failed edge never becomes an entry: in the commit that would keep
   it, a batch is born that goes over that edge. In the books it is a retry, pending until it is over.

The origin neither sends nor commits. It collects what has to be done in a `Turn`; the shell around it
first commits ``changes`` as one transaction, and only then launches, sends ``go``s and tells.

Source: the XOR acker is Storm's; ordered transactions are Trident's.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from consecution.protocol.values import LIVE, Ack, Action, Confirm, Entry, FailedItem, Go, Stage, TaskIndex

SLOW_S = 1.0
"""A batch that takes longer than this from birth to completion, where few others are open, halves the next ones."""
QUICK_S = 0.25
"""A full batch that takes less than this, beside few others, makes the next ones larger: to take about as long, but"""
MOST_GROWTH = 32
"""not more times as large than this (where little is done with an item, two steps will do), and not less than"""
LEAST_GROWTH = 1.5
"""this, which makes no batch slow that was quick."""
FEW_OPEN = 8
"""Where more are open, a batch has waited for others: its share of the time is what counts."""
LARGE_BATCH = 500
QUICK_LARGE_S = 0.5
"""`QUICK_S` of a batch of more items: they are cheap, and cheaper in larger batches. Dear ones are shared out better
in small ones."""
FEW_LARGE_OPEN = 16
"""Where batches of more items are slow, first fewer are open at a time, down to so many: small ones cost more."""
FIRST_BATCH_SIZE = 16
"""One, where replicas share the batches: a few items may be all there are, and nobody knows yet what they cost."""
TRIAL_BATCHES = 4
"""So many full batches, and two for each replica, are enough to show whether the next ones may be larger."""
LAST_BATCHES = 2
"""A batch is at most the n-th part of what is left of a stream: so many times the replicas. So these end together."""
LEAST_SHARE_S = 0.005
"""But none is smaller for that than what goes through in so long a time."""
AHEAD_S = 0.2
"""What is under way keeps the workers below busy for so long, at most: what is dear is dealt out late, to whoever is
free by then; little is left to do at a stop, and little is done again after a death."""
AHEAD_COMMITS = 4
"""But it does so for as many commits: what is read then has to be committed while there is something left to do."""
AHEAD_BATCHES = 2
"""And so many batches are under way for each of them, however long they take: one to be at, and the next."""
FORGOTTEN_SHARE = 1 / 4
"""So much of what items have cost is forgotten with each batch: large ones tell more than small ones, whose time goes
into what each batch costs."""
WINDOW_SHARE = 4
"""So many batches of large items, at least, share the window's bytes."""
LONGEST_RETRY_DELAY_S = 30.0
LONGEST_TRUST = 30
"""So many times as long as a tree may go unheard of it is waited for while others are at work; then it runs again."""
GIVEN_UP_TOLD = 10
"""So many of a batch's items that are given up are told with its end."""
NO_ROOT = -1
"""The root of what descends from no batch of this origin's stream: the failed inputs of its own durable task."""


@dataclass(frozen=True, slots=True)
class OriginLimits:
    """What an origin may have open, and how often it tries. Sizes in items, batches and bytes."""

    batch_size: int = 1000
    max_pending: int = 64
    max_pending_bytes: int = 64 * 1024 * 1024
    retries: int = 3
    retry_delay_s: float = 0.05
    tree_timeout_s: float = 120.0
    parallel: int = 1
    """How many replicas share this origin's batches, each at one of its own."""
    workers: int = 0
    """How many workers are at its trees before they are staged; 0: items wait there beside each other, or nowhere."""
    replays: bool = True
    """False without a journal: payloads are forgotten at launch, and a death abandons what is open."""


@dataclass(frozen=True, slots=True)
class RetryMark:
    """What a batch that is a retry carries on behalf of the failed item; one over a failed edge may hold several.

    ``root`` is the batch of the source stream the item descends from; ``held`` how many of that batch's
    items are counted as pending until all of its retries are settled.
    """

    root: int
    held: int
    attempts: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch as the journal holds it until its decision."""

    seq: int
    count: int
    payload: Any
    retry: RetryMark | None = None
    born_failed: tuple[FailedItem, ...] = ()
    """Items that could not be encoded: they fail with the batch, whatever its execution."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A decided batch as the journal holds it until all participants have confirmed.

    ``participants`` are the durable tasks that staged something, each with the XOR of the ids of what it
    staged; ``held`` is that of `RetryMark`, for a batch of the source stream.
    """

    seq: int
    generation: int
    count: int
    participants: tuple[tuple[TaskIndex, int], ...]
    retry: RetryMark | None = None
    held: int = 0


@dataclass(frozen=True, slots=True)
class FailureEntry:
    """A failed item in the failure store. ``due_s`` is wall-clock seconds; None: given up, for a person.

    ``failed_s`` says when it last failed, on the same clock.
    """

    key: int
    failed: FailedItem
    attempts: int
    root: int
    held: int
    due_s: float | None
    failed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Head:
    """An origin's counters and its place in the source; one small record, rewritten with every commit.

    ``failed`` counts the entries of the failure store that are given up, ``handled`` the items that went over
    failed edges instead.
    """

    next_seq: int = 0
    next_key: int = 0
    generation: int = 0
    position: Any = None
    emitted: int = 0
    failed: int = 0
    exhausted: bool = False
    handled: int = 0


@dataclass(frozen=True, slots=True)
class BatchBorn:
    record: BatchRecord


@dataclass(frozen=True, slots=True)
class BatchDecided:
    """The batch's payload leaves the journal; ``decision`` stays, or nothing where nobody has to confirm."""

    seq: int
    decision: Decision | None = None


@dataclass(frozen=True, slots=True)
class BatchForgotten:
    """All participants have confirmed."""

    seq: int


@dataclass(frozen=True, slots=True)
class FailureKept:
    entry: FailureEntry


@dataclass(frozen=True, slots=True)
class FailureTaken:
    key: int


@dataclass(frozen=True, slots=True)
class HeadMoved:
    head: Head


Change = BatchBorn | BatchDecided | BatchForgotten | FailureKept | FailureTaken | HeadMoved
"""What a journal is asked to apply; the changes of one turn are one transaction."""


@dataclass(frozen=True, slots=True)
class Launch:
    """Send this execution of a batch on its way; ``entry`` None: through the origin's own outlets.

    ``again``: it is not the first one. Whoever may have decided that has to be asked.
    """

    seq: int
    generation: int
    payload: Any
    entry: Entry | None
    again: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """A batch of the source stream is completely processed, its retries included.

    ``given_up`` are the first of the ``failed`` items, without payload and traceback; those that were given up
    before a restart are not among them.
    """

    seq: int
    failed: int
    confirmed: bool
    given_up: tuple[FailureEntry, ...] = field(default=(), compare=False)


@dataclass(slots=True)
class Turn:
    """What one turn of the loop has to do, in this order: commit, then launch, send ``gos``, and tell.

    ``stops`` are failed items for whose sake the run is to take nothing new. They are told before the commit:
    after it a crash could make the run go on as if nothing had been asked.
    """

    changes: list[Change] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    gos: list[tuple[TaskIndex, Go]] = field(default_factory=list)
    settled: list[Settled] = field(default_factory=list)
    stops: list[FailureEntry] = field(default_factory=list)
    low: int = 0
    """The origin's lowest batch not yet applied everywhere, once ``changes`` are committed: what launches may say."""

    def __bool__(self) -> bool:
        return bool(self.changes or self.launches or self.gos or self.settled)


@dataclass(frozen=True, slots=True)
class Restored:
    """What a journal held when it was opened. Entries that were given up are not among ``waiting``.

    ``given_up`` are the roots of these, one for each.
    """

    head: Head = Head()
    batches: tuple[BatchRecord, ...] = ()
    waiting: tuple[FailureEntry, ...] = ()
    decided: tuple[Decision, ...] = ()
    given_up: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class OriginCounts:
    """``emitted == completed + pending`` always; ``failed`` counts items given up at some node.

    ``handled`` are those among the given up that went over a failed edge; they are not among the ``failed``.
    ``own_retries`` are failed inputs of this origin's own durable task that wait for, or are in, another try.
    """

    emitted: int
    completed: int
    failed: int
    pending: int
    replayed: int
    abandoned: int
    own_retries: int = 0
    handled: int = 0


class FailedEdges(Protocol):
    """The failed edges of the graph, for an origin."""

    def leads_from(self, task: TaskIndex) -> bool:
        """Whether the node of this task has one."""

    def payload_of(self, given_up: list[tuple[FailedItem, int]]) -> Any:
        """What goes over it for these items, each with the number of its tries. Never raises."""


@dataclass(slots=True)
class _Batch:
    record: BatchRecord
    generation: int
    born_s: float
    progress_s: float
    size_bytes: int
    xor: int = 0
    acked: set[int] = field(default_factory=set)
    launched: bool = False
    complete: bool = False
    replays: int = 0
    failed: list[FailedItem] = field(default_factory=list)
    produced_bytes: int = 0
    participants: dict[TaskIndex, int] = field(default_factory=dict)
    beside: int = 0
    """How many were open when it was born."""
    load_s: float = 0.0
    """How long tasks have been at it, all together."""


@dataclass(slots=True)
class _Decided:
    """A decided batch until all of its participants have confirmed."""

    decision: Decision
    waiting: dict[TaskIndex, int]
    size_bytes: int
    progress_s: float
    repeats: int = 0


@dataclass(slots=True)
class _Root:
    """A batch of the source stream until it, and every retry that descends from it, is over.

    Until the batch itself is applied all its items are pending, afterwards those ``held`` for retries.
    ``open`` counts what is not over: the batch itself, its retries, and entries that wait for one.
    """

    count: int = 0
    held: int = 0
    applied: bool = True
    open: int = 0
    failed: int = 0
    given_up: list[FailureEntry] = field(default_factory=list)

    @property
    def pending(self) -> int:
        return self.held if self.applied else self.count


class Origin:
    """The state machine of one origin. Called by one thread; times are handed in.

    ``now_s`` is wall-clock seconds (due times outlive the process). A new origin holds everything
    back until the first `replay`, which the supervisor orders once all tasks are wired.
    """

    def __init__(
        self,
        limits: OriginLimits,
        restored: Restored = Restored(),
        now_s: float = 0.0,
        failed_edges: FailedEdges | None = None,
    ) -> None:
        self.limits = limits
        self._failed_edges = failed_edges
        head = restored.head
        self.generation = head.generation
        self.position = head.position
        self.exhausted = head.exhausted
        self.stopped = False
        self._next_seq = head.next_seq
        self._next_key = head.next_key
        self._emitted = head.emitted
        self._failed = head.failed
        self._handled = head.handled
        self._replayed = 0
        self._abandoned = 0
        self._pending = 0
        self._pending_bytes = 0
        self._batches: dict[int, _Batch] = {}
        self._decided: dict[int, _Decided] = {}
        self._unconfirmed: dict[TaskIndex, dict[int, None]] = {}
        self._waiting: dict[int, FailureEntry] = {}
        self._due: list[tuple[float, int]] = []
        self._roots: dict[int, _Root] = {}
        self._handed: dict[RetryMark, list[tuple[FailedItem, int]]] = {}
        self._forgotten: list[BatchForgotten] = []
        self._handed_s = now_s
        self._head_moved = False
        self._turn = Turn()
        self._running = False
        self._no_expiry_before_s = math.inf
        self._heard_s = -math.inf
        """When it last heard of a tree that is decided,"""
        self._at_work_s = -math.inf
        """and when it was last told that somebody is at work."""
        self._target = 1 if limits.parallel > 1 else min(FIRST_BATCH_SIZE, limits.batch_size)
        self.growing = self._target < limits.batch_size
        """Batches of this stream have not found their size yet: make few of them until more is known."""
        self._tried = 0
        """Full batches of the size that is being tried."""
        self._window = limits.max_pending
        """How many batches may be open just now."""
        self._fitting = limits.batch_size
        """How many items like those of the last batch fit into a batch's share of the window."""
        self._fitting_whole = limits.batch_size
        """The same, with all that became of the items of the last batch that was completed."""
        self._through_items = 0
        self._busy_since_s = self._through_at_s = 0.0
        """When it began to have something open, had it never stopped since, and when a batch was last through."""
        self._least_share = 1
        """How many items go through in `LEAST_SHARE_S`, as far as is known."""
        self._ahead = False
        self._load_s = self._load_items = 0.0
        """So long tasks were at what became of so many items, all together; the latest batches count most."""
        self._heard: set[TaskIndex] = set()
        """The tasks that have acknowledged anything since batches last ran again, but for those that stage it."""
        self._restore(restored, now_s)

    def _restore(self, restored: Restored, now_s: float) -> None:
        for decision in sorted(restored.decided, key=lambda d: d.seq):
            self._await_confirms(decision, 0, now_s)
            if decision.retry is None:
                self._open_root(decision.seq, decision.count, decision.held)
            else:
                self._hold(decision.retry.root, decision.retry.held)
        for record in sorted(restored.batches, key=lambda r: r.seq):
            self._open(record, _size_of(record.payload), now_s)
            if record.retry is not None:
                self._hold(record.retry.root, record.retry.held)
        for entry in restored.waiting:
            self._wait(entry)
            self._hold(entry.root, entry.held)
        for root in restored.given_up:
            if root in self._roots:
                self._roots[root].failed += 1

    # -- what others may ask ---------------------------------------------------------------------

    @property
    def next_seq(self) -> int:
        """The number of the batch that is born next."""
        return self._next_seq

    @property
    def low(self) -> int:
        """The lowest batch that is not yet applied everywhere; everything below it is forgotten."""
        undecided = next(iter(self._batches), self._next_seq)
        return next(iter(self._decided), undecided)

    @property
    def emitted(self) -> int:
        """How many items of the stream have become batches."""
        return self._emitted

    @property
    def open_count(self) -> int:
        return len(self._batches) + len(self._decided)

    @property
    def has_own_retries(self) -> bool:
        """Whether failed inputs of this origin's own durable task wait for, or are in, another try."""
        return self._count_own_retries() > 0

    @property
    def settled(self) -> bool:
        """Nothing is open, nothing waits for a retry and no commit is owed."""
        return not (self.open_count or self._waiting or self._forgotten or self._turn or self._head_moved)

    @property
    def owes(self) -> bool:
        """Whether `take_turn` would return anything."""
        return bool(self._turn or self._head_moved or self._handed or (self._forgotten and not self.open_count))

    @property
    def forgotten(self) -> tuple[int, ...]:
        """Batches that are over, and still in the journal."""
        return tuple(change.seq for change in self._forgotten)

    @property
    def finished(self) -> bool:
        """The stream has ended and all of it is completely processed."""
        return self.exhausted and self.settled

    def counts(self) -> OriginCounts:
        return OriginCounts(
            emitted=self._emitted,
            completed=self._emitted - self._pending - self._abandoned,
            failed=self._failed,
            pending=self._pending + self._abandoned,
            replayed=self._replayed,
            abandoned=self._abandoned,
            own_retries=self._count_own_retries(),
            handled=self._handled,
        )

    def _count_own_retries(self) -> int:
        """Each is copied first: other threads ask for the books while the origin's own goes on."""
        found = [(batch.record.retry, batch.record.count) for batch in list(self._batches.values())]
        found += [(decided.decision.retry, decided.decision.count) for decided in list(self._decided.values())]
        found += [(mark, len(given_up)) for mark, given_up in list(self._handed.items())]
        waiting = sum(entry.root == NO_ROOT for entry in list(self._waiting.values()))
        return waiting + sum(count for mark, count in found if mark is not None and mark.root == NO_ROOT)

    def count_of(self, seq: int) -> int:
        """How many items the payload of an undecided batch holds; 0: there is no such batch."""
        batch = self._batches.get(seq)
        return 0 if batch is None else batch.record.count - len(batch.record.born_failed)

    def room(self, left: float = math.inf) -> int:
        """How many items the next batch may have now; 0 while nothing may be taken.

        ``left``: how many the stream has yet, where somebody knows.
        """
        if not self._running or self.stopped or self.exhausted or not self._has_room():
            return 0
        return min(self._target, self._fitting, self._fitting_whole, self.share_of(left))

    def is_ahead(self, commit_s: float = 0.0) -> bool:
        """Whether the workers below have enough to do for now, or nothing shows yet how dear items are.

        Once it is, it stays so until half of that is done: then much is read, and committed, at once. ``commit_s``: how
        long a commit takes.
        """
        most_s = max(AHEAD_S, AHEAD_COMMITS * commit_s)
        self._ahead = self.limits.workers > 0 and self._has_given_enough(most_s / 2 if self._ahead else most_s)
        return self._ahead

    def _has_given_enough(self, each_worker_s: float) -> bool:
        workers = self.limits.workers
        enough_s = each_worker_s * workers
        if self._load_s * self._target * len(self._batches) < enough_s * self._load_items:
            return False  # nor has it when one looks closer
        under_way = [batch for batch in self._batches.values() if not batch.complete and batch.record.retry is None]
        if self._load_items:
            each_s = self._load_s / self._load_items
        elif len(self._heard) < workers:
            return len(under_way) >= TRIAL_BATCHES * workers
        else:
            each_s = max((batch.load_s / max(1, batch.record.count) for batch in under_way), default=0.0)
        if len(under_way) < AHEAD_BATCHES * workers:
            return False
        return sum(max(0.0, each_s * batch.record.count - batch.load_s) for batch in under_way) > enough_s

    def is_trying(self, left: float = math.inf) -> bool:
        """Whether batches enough of one size are under way to show how large the next may be, and none has yet.

        Not where all that is ``left`` of the stream may be open in batches of this size.
        """
        tried = self._tried >= max(TRIAL_BATCHES, 2 * self.limits.parallel)
        return self.growing and tried and left > self._target * self.limits.max_pending

    def share_of(self, left: float) -> int:
        """How many of the last items are to be one batch, so that no replica is at it when the others have nothing.

        Source: guided self-scheduling (Polychronopoulos and Kuck, 1987).
        """
        limits = self.limits
        if limits.parallel == 1:
            return limits.batch_size
        return math.ceil(min(limits.batch_size, max(self._least_share, left / (limits.parallel * LAST_BATCHES))))

    def next_due_s(self) -> float | None:
        """When `start_retries` and `expire` are to be called next; None: not before an event.

        They may then find that there is nothing to do yet, and a later time holds.
        """
        if not self._running:
            return None
        due_s = self._no_expiry_before_s if self.limits.replays and (self._batches or self._decided) else math.inf
        if self._due and self._due[0][0] < due_s and self._has_room():
            due_s = self._due[0][0]
        return None if due_s == math.inf else due_s

    # -- birth -----------------------------------------------------------------------------------

    def born(
        self,
        count: int,
        payload: Any,
        position: Any,
        now_s: float,
        *,
        size_bytes: int | None = None,
        born_failed: tuple[FailedItem, ...] = (),
    ) -> int:
        """Cut the next batch: ``count`` items, ``position`` of the source after them. Returns its seq."""
        record = BatchRecord(self._next_seq, count, payload, None, born_failed)
        self.position = position
        self._emitted += count
        self._birth(record, _size_of(payload) if size_bytes is None else size_bytes, now_s)
        return record.seq

    def exhaust(self, position: Any) -> None:
        """The source has ended for good."""
        self.exhausted = True
        self.position = position
        self._head_moved = True

    def start_retries(self, now_s: float) -> None:
        """Give birth to the retries that are due, the longest waiting first, as far as there is room."""
        while self._running and self._due and self._due[0][0] <= now_s and self._has_room():
            _, key = heapq.heappop(self._due)
            self._retry(self._waiting.pop(key), now_s)

    def _retry(self, entry: FailureEntry, now_s: float) -> None:
        self._turn.changes.append(FailureTaken(entry.key))
        failed = entry.failed
        mark = RetryMark(entry.root, entry.held, entry.attempts, Entry(failed.task, failed.stage))
        record = BatchRecord(self._next_seq, 1, failed.payload, mark)
        self._birth(record, _size_of(failed.payload), now_s)

    def _bear_handed(self) -> None:
        """What was given up in this turn at a node with a failed edge goes over that; room or not, for it is here."""
        handed, self._handed = self._handed, {}
        for mark, given_up in handed.items():
            assert self._failed_edges is not None
            payload = self._failed_edges.payload_of(given_up)
            record = BatchRecord(self._next_seq, len(given_up), payload, mark)
            self._birth(record, _size_of(payload), self._handed_s)

    def _birth(self, record: BatchRecord, size_bytes: int, now_s: float) -> None:
        self._next_seq = record.seq + 1
        self._tried += record.retry is None and record.count >= self._target
        self._fit(record, size_bytes)
        batch = self._open(record, size_bytes, now_s)
        self._turn.changes.append(BatchBorn(record))
        self._head_moved = True
        self._launch(batch, now_s)

    def _fit(self, record: BatchRecord, size_bytes: int) -> None:
        if record.retry is None and size_bytes:
            self._fitting = self._share_in_items(record.count, size_bytes)

    def _share_in_items(self, count: int, size_bytes: int) -> int:
        return max(1, self.limits.max_pending_bytes // WINDOW_SHARE * count // size_bytes)

    def _open(self, record: BatchRecord, size_bytes: int, now_s: float) -> _Batch:
        if not self.open_count:
            self._busy_since_s += now_s - self._through_at_s
        batch = _Batch(record, self.generation, now_s, now_s, size_bytes, beside=self.open_count)
        self._batches[record.seq] = batch
        self._pending_bytes += size_bytes
        if record.retry is None:
            self._open_root(record.seq, record.count, 0)
        return batch

    def _launch(self, batch: _Batch, now_s: float) -> None:
        record = batch.record
        batch.generation = self.generation
        batch.xor = 0
        batch.acked.clear()
        batch.failed = []
        batch.participants = {}
        batch.load_s = 0.0
        batch.launched = False
        batch.progress_s = now_s
        self._no_expiry_before_s = min(self._no_expiry_before_s, now_s + self._patience_s(batch))
        entry = record.retry.entry if record.retry is not None else None
        self._turn.launches.append(Launch(record.seq, batch.generation, record.payload, entry, batch.replays > 0))
        if not self.limits.replays:
            batch.record = BatchRecord(record.seq, record.count, None, record.retry, record.born_failed)

    def _has_room(self) -> bool:
        open_count = self.open_count
        if not open_count:
            return True
        return open_count < self._window and self._pending_bytes < self.limits.max_pending_bytes

    # -- travel ----------------------------------------------------------------------------------

    def launched(
        self,
        seq: int,
        generation: int,
        xor: int,
        now_s: float,
        failed: Iterable[FailedItem] = (),
        produced_bytes: int = 0,
    ) -> None:
        """The origin's own step is done: ``xor`` folds the ids of all frames it sent.

        Only now may the tree be found complete; an earlier zero would mean nothing.
        """
        batch = self._batches.get(seq)
        if batch is None or batch.generation != generation:
            return
        batch.launched = True
        self._fit(batch.record, batch.size_bytes + produced_bytes)
        self._fold(batch, xor, failed, produced_bytes, now_s)

    def acked(self, ack: Ack, now_s: float, sender: TaskIndex = TaskIndex(-1)) -> None:
        """``sender`` is done with one frame. Acks of other executions and of decided batches are ignored.

        So are repeats: no two frames of an execution have the same ``xor``.
        """
        batch = self._batches.get(ack.seq)
        if batch is None or batch.generation != ack.generation or batch.complete or ack.xor in batch.acked:
            return
        batch.acked.add(ack.xor)
        if ack.staged:
            batch.participants[sender] = batch.participants.get(sender, 0) ^ ack.xor
            batch.load_s = max(batch.load_s, ack.load_s)
        else:
            batch.load_s += ack.load_s
            self._heard.add(sender)
        self._fold(batch, ack.xor, ack.failed, ack.produced_bytes, now_s)

    def _fold(self, batch: _Batch, xor: int, failed: Iterable[FailedItem], produced_bytes: int, now_s: float) -> None:
        batch.xor ^= xor
        batch.progress_s = now_s
        batch.failed.extend(failed)
        batch.produced_bytes += produced_bytes
        self._pending_bytes += produced_bytes
        if batch.launched and not batch.xor:
            batch.complete = True
            self._adapt(batch, now_s)
            self._decide(now_s)

    def _adapt(self, batch: _Batch, now_s: float) -> None:
        """Learn from a batch that is complete how large the next ones should be, and how many may be open."""
        if batch.record.retry is not None:
            return
        count, took_s, beside = batch.record.count, now_s - batch.born_s, max(FEW_OPEN, batch.beside)
        self._learn_rate(count, now_s)
        self._learn_load(batch)
        whole_bytes = batch.size_bytes + batch.produced_bytes
        if whole_bytes and not batch.replays:
            self._fitting_whole = self._share_in_items(count, whole_bytes)
        share_s = took_s * FEW_OPEN / beside
        quick_s = QUICK_LARGE_S if count > LARGE_BATCH else QUICK_S
        is_slow = took_s > SLOW_S and not batch.replays
        is_full = count >= self._target
        if is_slow and count > LARGE_BATCH and beside > FEW_LARGE_OPEN:
            self._window = min(self._window, max(FEW_LARGE_OPEN, beside // 2))
        elif is_slow and share_s > SLOW_S:
            self._target = min(self._target, max(1, count // 2))  # once, however many of that size are slow
            self._window = self._window if count > LARGE_BATCH else min(self.limits.max_pending, self._window * 2)
        elif share_s < quick_s and is_full:
            growth = max(LEAST_GROWTH, quick_s / max(share_s, quick_s / MOST_GROWTH))
            self._target = min(self.limits.batch_size, math.ceil(self._target * growth))
            self._tried = 0
        if took_s < quick_s:
            self._window = min(self.limits.max_pending, self._window * 2)
        if is_full or is_slow:
            self.growing = self.growing and share_s < quick_s and self._target < self.limits.batch_size

    def _learn_rate(self, count: int, now_s: float) -> None:
        self._through_items += count
        self._through_at_s = now_s
        busy_s = now_s - self._busy_since_s
        if busy_s > 0:
            self._least_share = max(1, int(self._through_items / busy_s * LEAST_SHARE_S))

    def _learn_load(self, batch: _Batch) -> None:
        """What was decided before it was to run again, maybe in an earlier life, shows nothing of what items cost."""
        if batch.load_s or (batch.launched and not batch.replays):
            self._load_s += batch.load_s - self._load_s * FORGOTTEN_SHARE
            self._load_items += batch.record.count - self._load_items * FORGOTTEN_SHARE

    # -- decision --------------------------------------------------------------------------------

    def _decide(self, now_s: float) -> None:
        while self._batches:
            seq, batch = next(iter(self._batches.items()))
            if not batch.complete:
                return
            del self._batches[seq]
            self._heard_s = max(self._heard_s, batch.progress_s)
            self._settle(batch, now_s)

    def _settle(self, batch: _Batch, now_s: float) -> None:
        """Commit what this execution has come to: its failures, and who has to apply it."""
        record = batch.record
        failed = [*record.born_failed, *batch.failed]
        if record.retry is not None:
            root, held = record.retry.root, record.retry.held
        else:
            root, held = record.seq, min(record.count, sum(1 for item in failed if self._is_held(item)))
        decision = self._decision(batch, held)
        self._turn.changes.append(BatchDecided(record.seq, decision))
        for item in failed:
            self._keep(item, record.retry, root, held, now_s)
        size_bytes = batch.size_bytes + batch.produced_bytes
        if decision is None:
            self._pending_bytes -= size_bytes
            self._close(record.seq, record.retry)
        else:
            self._await_confirms(decision, size_bytes, now_s)
            self._order_gos(decision.seq, decision.generation, decision.participants)

    def _decision(self, batch: _Batch, held: int) -> Decision | None:
        if not batch.participants:
            return None
        record = batch.record
        return Decision(
            record.seq, batch.generation, record.count, tuple(batch.participants.items()), record.retry, held
        )

    def _await_confirms(self, decision: Decision, size_bytes: int, now_s: float) -> None:
        decided = self._decided[decision.seq] = _Decided(decision, dict(decision.participants), size_bytes, now_s)
        self._no_expiry_before_s = min(self._no_expiry_before_s, self._repeat_s(decided))
        for task, _ in decision.participants:
            self._unconfirmed.setdefault(task, {})[decision.seq] = None

    def _order_gos(self, seq: int, generation: int, participants: Iterable[tuple[TaskIndex, int]]) -> None:
        for task, xor in participants:
            after = max((other for other in self._unconfirmed[task] if other < seq), default=-1)
            self._turn.gos.append((task, Go(seq, generation, after, self.low, xor)))

    def confirmed(self, sender: TaskIndex, confirms: Iterable[Confirm], now_s: float) -> None:
        """``sender`` has applied these batches. What is confirmed twice, or is unknown, is ignored."""
        for seq, load_s in confirms:
            if seq in self._batches:
                self._decided_below(self._batches[seq], load_s, now_s)
                continue
            decided = self._decided.get(seq)
            if decided is None or decided.waiting.pop(sender, None) is None:
                continue
            del self._unconfirmed[sender][seq]
            decided.progress_s = now_s
            if not decided.waiting:
                self._forget(decided)

    def _decided_below(self, batch: _Batch, load_s: float, now_s: float) -> None:
        """A durable task has decided the first execution, and applied it: that is all there is, whatever ran since."""
        if not batch.launched:
            seq = batch.record.seq
            self._turn.launches = [launch for launch in self._turn.launches if launch.seq != seq]
        batch.failed, batch.participants = [], {}
        batch.load_s = max(batch.load_s, load_s)
        batch.progress_s = now_s
        if not batch.complete:
            batch.complete = True
            self._adapt(batch, now_s)
        self._decide(now_s)

    def _forget(self, decided: _Decided) -> None:
        decision = decided.decision
        del self._decided[decision.seq]
        self._pending_bytes -= decided.size_bytes
        self._forgotten.append(BatchForgotten(decision.seq))
        self._close(decision.seq, decision.retry)

    def retry_of(self, seq: int) -> RetryMark | None:
        """The mark of a decided batch that is a retry; None for all others."""
        decided = self._decided.get(seq)
        return None if decided is None else decided.decision.retry

    def fail_here(self, failed: FailedItem, retry: RetryMark | None, now_s: float) -> None:
        """An input of this origin's own durable task failed while it was applied.

        ``retry`` is the mark of the batch it came in, where that is a retry of this origin.
        """
        self._keep(failed, retry, NO_ROOT, 0, now_s)

    def _keep(self, failed: FailedItem, retry: RetryMark | None, root: int, held: int, now_s: float) -> None:
        again = retry is not None and retry.entry == (failed.task, failed.stage)
        attempts = retry.attempts + 1 if retry is not None and again else 1
        if self._leaves(failed, attempts):
            self._hand_over(failed, attempts, root, held, now_s)
            return
        due_s = now_s + self._delay_s(failed, attempts) if self._may_retry(failed, attempts) else None
        entry = FailureEntry(self._next_key, failed, attempts, root, held, due_s, now_s)
        self._next_key += 1
        self._head_moved = True
        self._turn.changes.append(FailureKept(entry))
        if due_s is not None:
            self._wait(entry)
            self._hold(root, held)
            return
        self._failed += 1
        if root in self._roots:
            self._give_up(self._roots[root], entry)
        if failed.treatment.action is Action.STOP:
            self._turn.stops.append(entry)

    @staticmethod
    def _give_up(root: _Root, entry: FailureEntry) -> None:
        root.failed += 1
        if len(root.given_up) < GIVEN_UP_TOLD:
            root.given_up.append(replace(entry, failed=entry.failed._replace(payload=None, traceback="")))

    def _is_held(self, failed: FailedItem) -> bool:
        """After its first try: whether its batch is not over with it."""
        return self._may_retry(failed, 1) or self._leaves(failed, 1)

    def _leaves(self, failed: FailedItem, attempts: int) -> bool:
        """Given up, and its node has a failed edge. It stays where it failed on that edge, or the run is to stop."""
        edges = self._failed_edges
        if edges is None or failed.stage is Stage.FAILED or failed.treatment.action is Action.STOP:
            return False
        return edges.leads_from(failed.task) and not self._may_retry(failed, attempts)

    def _hand_over(self, failed: FailedItem, attempts: int, root: int, held: int, now_s: float) -> None:
        """All that leaves a node in one turn and descends from one batch will be one batch."""
        mark = RetryMark(root, held, 0, Entry(failed.task, Stage.FAILED))
        if mark not in self._handed:
            self._handed[mark] = []
            self._hold(root, held)
        self._handed[mark].append((failed, attempts))
        self._handed_s = now_s
        self._handled += 1
        self._head_moved = True

    def _wait(self, entry: FailureEntry) -> None:
        assert entry.due_s is not None
        self._waiting[entry.key] = entry
        heapq.heappush(self._due, (entry.due_s, entry.key))

    def _may_retry(self, failed: FailedItem, attempts: int) -> bool:
        if not self.limits.replays or not failed.retryable or failed.treatment.action is not Action.RETRY:
            return False
        retries = failed.treatment.retries
        return attempts <= (self.limits.retries if retries is None else retries)

    def _delay_s(self, failed: FailedItem, attempts: int) -> float:
        """Doubles each time, up to a bound; a first delay above that was asked for, and stays."""
        first_s = self.limits.retry_delay_s if failed.treatment.delay_s is None else failed.treatment.delay_s
        return min(max(LONGEST_RETRY_DELAY_S, first_s), first_s * 2.0 ** min(attempts - 1, 40))

    # -- what descends from one batch of the stream ----------------------------------------------

    def _open_root(self, seq: int, count: int, held: int) -> None:
        root = self._roots[seq] = _Root(count, held, applied=False, open=1)
        self._pending += root.pending

    def _hold(self, seq: int, held: int) -> None:
        """Something more that descends from the root is not over: an entry, or the batch it becomes."""
        if seq == NO_ROOT:
            return
        root = self._roots.setdefault(seq, _Root())
        self._pending -= root.pending
        root.held = held
        root.open += 1
        self._pending += root.pending

    def _close(self, seq: int, retry: RetryMark | None) -> None:
        """A batch is applied everywhere; tell when its root has nothing open any more."""
        root_seq = seq if retry is None else retry.root
        root = self._roots.get(root_seq)
        if root is None:
            return
        self._pending -= root.pending
        root.applied = root.applied or retry is None
        root.open -= 1
        if root.open:
            self._pending += root.pending
            return
        del self._roots[root_seq]
        self._turn.settled.append(Settled(root_seq, root.failed, confirmed=True, given_up=tuple(root.given_up)))

    # -- death and replay ------------------------------------------------------------------------

    def replay(self, now_s: float) -> int:
        """All undecided batches run again, under a new generation. Returns how many had run before.

        The first call sets the origin going. Only after every task has switched to the new wiring.
        """
        self._running = True
        self._repeat_gos(list(self._decided.values()), now_s)
        return self._run_again(list(self._batches.values()), now_s)

    def heard_of(self, now_s: float) -> None:
        """Somebody is known to be at work, on what is open perhaps: from now on each tree has its whole time again.

        That does not hold for ever (`LONGEST_TRUST`), for what is at work may have nothing to do with it.
        """
        self._at_work_s = now_s

    def expire(self, now_s: float) -> int:
        """Replay the trees that made no progress for too long; returns how many. Times double each time.

        As long as earlier ones make any, a tree waits behind these in some queue: it is no later than they are.
        ``go``s that were not confirmed for so long are repeated.
        """
        if not self._running or not self.limits.replays or now_s < self._no_expiry_before_s:
            return 0
        self._repeat_gos([d for d in self._decided.values() if self._repeat_s(d) <= now_s], now_s)
        late = [batch for batch, expiry_s in self._expiries() if expiry_s <= now_s]
        if late:
            self._run_again(late, now_s)
        # Acks and confirms only put an expiry off, so this stays a lower bound without looking at all of them again.
        undecided = min((expiry_s for _, expiry_s in self._expiries()), default=math.inf)
        self._no_expiry_before_s = min(map(self._repeat_s, self._decided.values()), default=undecided)
        self._no_expiry_before_s = min(self._no_expiry_before_s, undecided)
        return len(late)

    def _repeat_gos(self, unconfirmed: list[_Decided], now_s: float) -> None:
        """Tell those who have not confirmed once more; a participant takes a repeat as it takes the first."""
        for decided in unconfirmed:
            decided.repeats += 1
            decided.progress_s = now_s
            self._order_gos(decided.decision.seq, decided.decision.generation, decided.waiting.items())

    def _repeat_s(self, decided: _Decided) -> float:
        return decided.progress_s + self.limits.tree_timeout_s * 2.0 ** min(decided.repeats, 10)

    def _expiries(self) -> Iterator[tuple[_Batch, float]]:
        """Each open batch, and when it is late if nothing is heard of it nor of those before it."""
        heard_s = self._heard_s
        for batch in self._batches.values():
            heard_s = max(heard_s, batch.progress_s)
            if not batch.complete:
                patience_s = self._patience_s(batch)
                trusted_s = min(self._at_work_s, heard_s + LONGEST_TRUST * patience_s)
                yield batch, max(heard_s, trusted_s) + patience_s

    def _patience_s(self, batch: _Batch) -> float:
        return self.limits.tree_timeout_s * 2.0 ** min(batch.replays, 10)

    def _run_again(self, batches: list[_Batch], now_s: float) -> int:
        self.generation += 1
        self._head_moved = True
        self._heard.clear()  # What they have told was of what is done anew.
        again = {batch.record.seq for batch in batches}
        self._turn.launches = [launch for launch in self._turn.launches if launch.seq not in again]
        for batch in batches:
            batch.complete = False
            batch.replays += 1
            self._pending_bytes -= batch.produced_bytes
            batch.produced_bytes = 0
            self._launch(batch, now_s)
        self._replayed += len(batches)
        return len(batches)

    def abandon(self) -> int:
        """Without a journal a death closes all open trees as not confirmed. Returns how many items."""
        lost = self._pending
        self._pending_bytes -= sum(batch.size_bytes + batch.produced_bytes for batch in self._batches.values())
        self._turn.settled += [Settled(root, 0, confirmed=False) for root in self._roots]
        self._batches.clear()
        self._roots.clear()
        self._handed.clear()
        self._turn.launches.clear()
        self._pending = 0
        self._abandoned += lost
        self._running = True
        return lost

    # -- the shell's side ------------------------------------------------------------------------

    def take_turn(self) -> Turn:
        """Everything to be done since the last call: commit, launch, tell, in this order."""
        self._bear_handed()
        turn, self._turn = self._turn, Turn()
        if self._head_moved:
            self._head_moved = False
            turn.changes.append(HeadMoved(self._head()))
        if turn.changes or not self.open_count:
            turn.changes += self.take_forgotten()
        turn.low = self.low
        return turn

    def take_forgotten(self) -> list[BatchForgotten]:
        """What any commit may hold beside its own: that these batches are over."""
        forgotten, self._forgotten = self._forgotten, []
        return forgotten

    def _head(self) -> Head:
        return Head(
            self._next_seq,
            self._next_key,
            self.generation,
            self.position,
            self._emitted,
            self._failed,
            self.exhausted,
            self._handled,
        )


def _size_of(payload: Any) -> int:
    return 0 if payload is None or isinstance(payload, LIVE) else len(payload)
