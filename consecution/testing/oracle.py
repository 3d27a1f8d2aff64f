"""The onlooker who knows everything, and compares what an origin says with what happened.

One oracle watches one origin through all its incarnations. It is told of every commit, launch, frame
and word, and raises `Violation` at the first one that breaks a promise. The promises:

- a frame leaves only after its batch, and the generation it runs under, are on disk;
- no (seq, generation) runs twice, no seq is born twice, and the source is read without gap or overlap;
- batches are decided once each, lowest first, and only when every frame of that execution was run;
- exactly the failures of the decided execution are kept, with as many attempts as failed tries that counted, and
  are tried again as their node says; before one is kept at which the run is to stop, that is told;
- a source that was stopped takes nothing new;
- an entry that waits becomes a batch in the commit that takes it away;
- what is given up at a node with a failed edge becomes a batch over that edge in the commit that would have kept it;
- the books balance, and nothing is told complete before it is;
- no sink ever sees a generation above the decided one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from consecution.protocol.durable import Application
from consecution.protocol.origin import (
    NO_ROOT,
    BatchBorn,
    BatchDecided,
    BatchForgotten,
    BatchRecord,
    Decision,
    FailureEntry,
    FailureKept,
    FailureTaken,
    Head,
    HeadMoved,
    OriginCounts,
    OriginLimits,
    RetryMark,
    Settled,
)
from consecution.protocol.values import BatchId, Entry, FailedItem, Frame, Go, Stage, TaskIndex
from consecution.testing.disk import Disk
from consecution.testing.durable_store import DurableDisk
from consecution.testing.execution import Execution
from consecution.testing.violation import Violation
from consecution.testing.world import Item, World

FailureKey = tuple[int, Stage, str, int, bool]
"""What identifies a kept failure: task, stage, item, attempts, whether it is to be tried again."""
OverKey = tuple[RetryMark, Item]
"""An item on its way over a failed edge, and on whose behalf."""


class Oracle:
    """Watches one origin. ``now`` is the simulated clock, ``durable`` has the disk of each durable task."""

    def __init__(
        self,
        disk: Disk,
        limits: OriginLimits,
        items: list[Item],
        now: Callable[[], float],
        durable: Mapping[TaskIndex, DurableDisk],
        task: TaskIndex,
        *,
        world: World,
    ) -> None:
        self.task = task
        self._world = world
        self._disk = disk
        self._durable = durable
        self._limits = limits
        self._items = items
        self._now = now
        self._executions: dict[tuple[int, int], Execution] = {}
        self._latest: dict[int, int] = {}
        self._born: dict[int, BatchRecord] = {}
        self._decided: dict[int, int | None] = {}
        self._decided_below: dict[int, int] = {}
        """Seq → generation of what a durable task has decided and applied before this origin has."""
        self._abandoned: dict[int, int] = {}
        self._over: Counter[OverKey] = Counter()
        self._over_due: Counter[OverKey] = Counter()
        self._over_count = 0
        self._held: dict[int, int] = {}
        self._told: set[int] = set()
        self._applied: dict[TaskIndex, set[int]] = {}
        self._read = 0
        self._stops_told: set[int] = set()
        self._forgotten: tuple[int, ...] = ()
        self.reading_stopped = False
        """This incarnation was told to take nothing new, and has had a turn since."""

    # -- commits ---------------------------------------------------------------------------------

    def committing(self, changes: Sequence[Any]) -> None:
        """Judge a transaction before it takes effect."""
        store = self._disk.failures | {c.entry.key: c.entry for c in changes if isinstance(c, FailureKept)}
        decided = self._disk.decided | {c.seq: c.decision for c in changes if isinstance(c, BatchDecided)}
        taken = [self._entry_taken(store.get(c.key), c.key) for c in changes if isinstance(c, FailureTaken)]
        for change in changes:
            if isinstance(change, BatchBorn):
                self._judge_birth(change.record, taken)
            elif isinstance(change, BatchForgotten):
                self._judge_forgetting(decided.get(change.seq), change.seq)
        if taken:
            raise Violation(f"{taken[0]} left the failure store, and no batch was born for it in that commit")
        self._judge_decisions(changes)
        self._judge_over()

    def committed(self) -> None:
        """Judge what is on disk now."""
        disk = self._disk
        head = disk.head
        if self._born and head.next_seq <= max(self._born):
            raise Violation(f"the head says next seq {head.next_seq}, but batch {max(self._born)} was born")
        if disk.failures and head.next_key <= max(disk.failures):
            raise Violation(f"the head says next key {head.next_key}, but entry {max(disk.failures)} was kept")
        if not self._position_is_right(head):
            raise Violation(f"{self._read} items were born; the head says {head}")
        if head.failed != len(disk.given_up):
            raise Violation(f"the head counts {head.failed} given up, the store holds {len(disk.given_up)}")

    def _position_is_right(self, head: Head) -> bool:
        return (head.position or 0, head.emitted) == (self._read, self._read)

    def _entry_taken(self, entry: FailureEntry | None, key: int) -> FailureEntry:
        if entry is None:
            raise Violation(f"failure entry {key} was taken, but is not in the store")
        if entry.due_s is None or entry.due_s > self._now():
            raise Violation(f"{entry} was taken before it was due")
        return entry

    def _judge_birth(self, record: BatchRecord, taken: list[FailureEntry]) -> None:
        if record.seq in self._born:
            raise Violation(f"batch {record.seq} was born a second time")
        self._born[record.seq] = record
        if record.retry is not None:
            self._judge_retry(record, taken)
            return
        if self.reading_stopped:
            raise Violation(f"batch {record.seq} was read after the source had been told to stop")
        self._judge_given(record)
        self._read += record.count

    def _judge_given(self, record: BatchRecord) -> None:
        given = [*(record.payload or ()), *(int(failed.shown) for failed in record.born_failed)]
        expected = self._items[self._read : self._read + record.count]
        if self._limits.replays and Counter(given) != Counter(expected):
            raise Violation(f"batch {record.seq} holds {given}; next in the source were {list(expected)}")

    def _judge_retry(self, record: BatchRecord, taken: list[FailureEntry]) -> None:
        mark = record.retry
        assert mark is not None
        for entry in taken:
            failed = entry.failed
            if (
                Entry(failed.task, failed.stage) == mark.entry
                and (failed.payload, entry.attempts, entry.root) == (record.payload, mark.attempts, mark.root)
                and entry.held == mark.held
            ):
                taken.remove(entry)
                return
        if mark.entry.stage is Stage.FAILED:
            self._over += Counter((mark, item) for item in record.payload or ())
            if len(record.payload) != record.count:
                raise Violation(f"batch {record.seq} counts {record.count} items, and holds {record.payload}")
            return
        raise Violation(f"batch {record.seq} retries {mark}, but that entry was not taken in the same commit")

    def _judge_over(self) -> None:
        """What went over failed edges in this commit is what was given up in it at their nodes."""
        if self._over != self._over_due:
            raise Violation(f"over failed edges went {dict(self._over)}; given up there were {dict(self._over_due)}")
        self._over_count += self._over.total()
        self._over.clear()
        self._over_due.clear()

    # -- decisions -------------------------------------------------------------------------------

    def _judge_decisions(self, changes: Sequence[Any]) -> None:
        """Decisions come in order, each followed by the failures of its execution."""
        expected: Counter[FailureKey] = Counter()
        kept: Counter[FailureKey] = Counter()
        open_seqs = sorted({*self._disk.batches, *(c.record.seq for c in changes if isinstance(c, BatchBorn))})
        for change in changes:
            if isinstance(change, BatchDecided):
                if not open_seqs or change.seq != open_seqs[0]:
                    raise Violation(f"batch {change.seq} was decided while the lowest open was {open_seqs[:1]}")
                open_seqs.pop(0)
                expected += self._judge_decision(change.seq, change.decision)
            elif isinstance(change, FailureKept):
                kept[_key_of(change.entry)] += 1
                self._judge_stop(change.entry)
            elif isinstance(change, HeadMoved) and change.head.generation < self._disk.head.generation:
                raise Violation(f"the generation fell from {self._disk.head.generation} to {change.head.generation}")
        expected += self._let_go(self._failures_beside(), NO_ROOT, 0)
        if kept != expected:
            raise Violation(f"failures kept {dict(kept - expected)}, and not kept {dict(expected - kept)}")

    def _judge_stop(self, entry: FailureEntry) -> None:
        failed = entry.failed
        if entry.due_s is None and self._world.node_of[failed.task].stops:
            if entry.key not in self._stops_told:
                raise Violation(f"{entry} is to stop the run, and is kept before that was told")
            self._stops_told.remove(entry.key)

    def told_stop(self, entry: FailureEntry) -> None:
        """The origin asks the run to stop because of an entry."""
        if not self._world.node_of[entry.failed.task].stops or entry.due_s is not None:
            raise Violation(f"the run was asked to stop because of {entry}")
        if entry.key in self._disk.failures:
            raise Violation(f"{entry} was kept before the run was asked to stop")
        self._stops_told.add(entry.key)

    def _failures_beside(self) -> Counter[FailureKey]:
        """Failures that a commit keeps which are no decided execution's."""
        return Counter()

    def _judge_forgetting(self, decision: Decision | None, seq: int) -> None:
        if decision is None:
            raise Violation(f"batch {seq} was forgotten, and no decision waited for confirms")
        for task, _ in decision.participants:
            if self._durable[task].ledger.get(self.task, -1) < seq:
                raise Violation(f"batch {seq} was forgotten, and task {task} has not applied it")

    def restarted(self) -> None:
        """A new incarnation. What the disk has open may be told to be over again."""
        self._forgotten = ()
        self._told -= self._open_roots().keys()

    def forgot(self, seqs: tuple[int, ...]) -> None:
        """These are over, says this incarnation, though the disk has them yet: a crash brings them back."""
        for seq in seqs:
            self._judge_forgetting(self._disk.decided.get(seq), seq)
        self._forgotten = seqs

    def _judge_decision(self, seq: int, decision: Decision | None) -> Counter[FailureKey]:
        """Check the execution that was decided; returns the failures it must leave."""
        if seq in self._decided:
            raise Violation(f"batch {seq} was decided a second time")
        generation = self._decided_below.get(seq, self._latest.get(seq))
        if generation is None:
            raise Violation(f"batch {seq} was decided before it was launched")
        execution = self._executions[seq, generation]
        execution.check_complete()
        self._decided[seq] = generation
        record = self._born[seq]
        failures = self._failures_of(record, execution)
        if record.retry is None:
            held = sum(n for key, n in failures.items() if key[4] or self._leaves(key))
            self._held[seq] = min(record.count, held)
        root = seq if record.retry is None else record.retry.root
        failures = self._let_go(failures, root, record.retry.held if record.retry is not None else self._held[seq])
        participants = execution.participants(self._durable)
        told = None if decision is None else (decision.generation, dict(decision.participants))
        if told is None and seq in self._decided_below:
            return failures
        if told != ((generation, participants) if participants else None):
            raise Violation(f"batch {seq} was decided as {told}; its execution was {generation, participants}")
        return failures

    def _failures_of(self, record: BatchRecord, execution: Execution) -> Counter[FailureKey]:
        found: Counter[FailureKey] = Counter()
        for failed in (*record.born_failed, *execution.failed):
            again = record.retry is not None and record.retry.entry == Entry(failed.task, failed.stage)
            attempts = 1 + (record.retry.attempts if again and record.retry is not None else 0)
            retries = self._world.retries_at(self._world.node_of[failed.task])
            retried = failed.retryable and attempts <= retries
            found[failed.task, failed.stage, failed.shown, attempts, retried] += 1
        return found

    def _leaves(self, key: FailureKey) -> bool:
        """Whether such a failure goes over a failed edge, and is not kept."""
        task, stage, _, _, retried = key
        node = self._world.node_of[TaskIndex(task)]
        return not retried and stage is not Stage.FAILED and not node.stops and bool(node.failed_ways)

    def _let_go(self, failures: Counter[FailureKey], root: int, held: int) -> Counter[FailureKey]:
        """Note those that leave; returns those that must be kept."""
        for key, count in failures.items():
            if self._leaves(key):
                task = TaskIndex(key[0])
                mark = RetryMark(root, held, 0, Entry(task, Stage.FAILED))
                self._over_due[mark, self._world.handed(self._world.node_of[task], int(key[2]))] += count
        return Counter({key: count for key, count in failures.items() if not self._leaves(key)})

    # -- travel ----------------------------------------------------------------------------------

    def launched(self, seq: int, generation: int) -> None:
        """The origin begins to send an execution."""
        disk = self._disk
        if seq not in disk.batches:
            raise Violation(f"batch {seq} was launched, and is not in the journal")
        if generation > disk.head.generation:
            raise Violation(f"generation {generation} was launched, the journal knows {disk.head.generation}")
        latest = self._latest.get(seq)
        if latest is not None and generation <= latest:
            raise Violation(f"batch {seq} was launched under generation {generation} after {latest}")
        self._latest[seq] = generation
        self._executions[seq, generation] = Execution(seq, generation)

    def launch_failed(self, seq: int, generation: int, failed: Sequence[FailedItem]) -> None:
        """The origin itself could not send some items of an execution."""
        self._executions[seq, generation].failed += failed

    def sent(self, frame: Frame, target: TaskIndex) -> None:
        """A frame came into being."""
        execution = self._executions.get((frame.seq, frame.generation))
        if execution is None:
            raise Violation(f"{frame} belongs to an execution that was never launched")
        execution.declare(frame, target)

    def staged(self, frame: Frame) -> None:
        """A durable task has committed a frame to its inbox."""
        self._executions[frame.seq, frame.generation].finish(frame, ())

    def stepped(self, frame: Frame, failed: Sequence[FailedItem]) -> None:
        """A task has run a frame."""
        self._executions[frame.seq, frame.generation].finish(frame, failed)

    def wrote(self, sink: int, frame: Frame, batch_id: BatchId, items: Sequence[Item]) -> None:
        """A sink has taken items in."""
        decided = self._decided.get(frame.seq)
        if decided is not None and frame.generation > decided:
            raise Violation(f"sink {sink} got {batch_id}, but generation {decided} was decided")
        if (batch_id.seq, batch_id.generation) != (frame.seq, frame.generation):
            raise Violation(f"sink {sink} got {batch_id} for {frame}")
        execution = self._executions[frame.seq, frame.generation]
        if decided is None and execution.has_done(frame):
            raise Violation(f"sink {sink} got the same frame twice, as {batch_id}")
        execution.write(sink, frame, batch_id, items)

    # -- application -----------------------------------------------------------------------------

    def judge_application(self, task: TaskIndex, application: Application) -> None:
        """A durable task is about to commit a batch of this origin."""
        seq, generation = application.seq, self._decided.get(application.seq)
        if seq in self._disk.batches:
            self._judge_decision_below(task, application)
            generation = application.generation
        elif seq not in self._disk.decided or generation is None:
            raise Violation(f"task {task} applies batch {seq}, and no decision of it is on disk")
        if generation != application.generation:
            raise Violation(f"task {task} applies generation {application.generation} of batch {seq}, not {generation}")
        bound = self._executions[seq, generation].bound_for(task)
        if list(map(id, bound)) != list(map(id, application.frames)):
            raise Violation(f"task {task} applies {application.frames} of batch {seq}; bound for it were {bound}")
        applied = self._applied.setdefault(task, set())
        if seq in applied:
            raise Violation(f"task {task} applies batch {seq} a second time")
        early = [other for other in self._bound_for(task) if other < seq and other not in applied]
        if early:
            raise Violation(f"task {task} applies batch {seq} before batches {early}")
        if applied and seq < max(applied):
            raise Violation(f"task {task} applies batch {seq} after batch {max(applied)}")
        applied.add(seq)

    def _judge_decision_below(self, task: TaskIndex, application: Application) -> None:
        """A durable task has decided the execution that it is about to commit."""
        seq, generation = application.seq, application.generation
        if seq in self._decided_below:
            raise Violation(f"task {task} decides batch {seq}, after generation {self._decided_below[seq]} of it")
        execution = self._executions[seq, generation]
        execution.check_complete()
        if execution.failed or list(execution.participants(self._durable)) != [task]:
            raise Violation(f"task {task} decides batch {seq}, of which it has a part: {execution.failed} failed")
        self._decided_below[seq] = generation

    def _bound_for(self, task: TaskIndex) -> list[int]:
        """Decided batches of which something is bound for a durable task."""
        decided = [(seq, generation) for seq, generation in self._decided.items() if generation is not None]
        return [seq for seq, generation in decided if self._executions[seq, generation].bound_for(task)]

    def judge_go(self, task: TaskIndex, go: Go) -> None:
        """The origin tells a participant to apply."""
        generation = self._decided.get(go.seq)
        execution = self._executions.get((go.seq, go.generation))
        if execution is None or generation != go.generation or go.xor != execution.participants((task,)).get(task):
            raise Violation(f"{go} was sent to task {task}; on disk is generation {generation}")

    # -- what the origin says --------------------------------------------------------------------

    def settled(self, settled: Settled) -> None:
        """The origin tells that a batch is completely processed (or abandoned)."""
        seq = settled.seq
        if seq in self._told:
            raise Violation(f"batch {seq} was told settled a second time")
        self._told.add(seq)
        if not settled.confirmed:
            self._abandoned[seq] = self._open_roots()[seq]
            for lost in [s for s, r in self._disk.batches.items() if r.retry is not None and r.retry.root == seq]:
                self._abandoned[lost] = 0
                del self._disk.batches[lost]
            self._disk.batches.pop(seq, None)
        elif seq in self._open_roots():
            raise Violation(f"batch {seq} was told settled, but is still open or waits for a retry")

    def count(self, counts: OriginCounts) -> None:
        """The origin's books, at a moment at which nothing is owed to the disk."""
        pending = sum(self._open_roots().values())
        abandoned = sum(self._abandoned.values())
        if counts.emitted != self._read:
            raise Violation(f"{self._read} items were born, the books say {counts.emitted} emitted")
        if counts.pending != pending + abandoned or counts.completed != self._read - pending - abandoned:
            raise Violation(
                f"{pending} of {self._read} items are pending, {abandoned} abandoned; the books say {counts}"
            )
        if counts.failed != len(self._disk.given_up):
            raise Violation(f"{len(self._disk.given_up)} items are given up; the books say {counts.failed}")
        if counts.handled != self._over_count:
            raise Violation(f"{self._over_count} items went over failed edges; the books say {counts.handled}")

    def _open_roots(self) -> dict[int, int]:
        """Batches of the source stream that are not over, and how many of their items are pending."""
        decided = [decision for seq, decision in self._disk.decided.items() if seq not in self._forgotten]
        unapplied: list[BatchRecord | Decision] = [*self._disk.batches.values(), *decided]
        found = {record.seq: record.count for record in unapplied if record.retry is None}
        marks = [record.retry.root for record in unapplied if record.retry is not None]
        for root in (*marks, *(entry.root for entry in self._disk.waiting)):
            if root != NO_ROOT:
                found.setdefault(root, self._held[root])
        return found

    # -- the end ---------------------------------------------------------------------------------

    def check_over(self, *, exhausted: bool) -> None:
        """Nothing may be left: the origin says that it is drained, or that the stream is finished."""
        disk = self._disk
        if disk.batches or disk.waiting or disk.decided:
            still_open = sorted({*disk.batches, *disk.decided})
            raise Violation(f"said to be over, but open are {still_open}, and waiting {disk.waiting}")
        if exhausted and self._read != len(self._items):
            raise Violation(f"the stream is said to be finished after {self._read} of {len(self._items)} items")
        undecided = self._born.keys() - self._decided.keys() - self._abandoned.keys()
        if undecided:
            raise Violation(f"batches {sorted(undecided)} were never decided")

    def writes(self) -> list[tuple[int, Item]]:
        """What the decided executions have brought to the sinks."""
        found: list[tuple[int, Item]] = []
        for seq, generation in self._decided.items():
            if generation is not None:
                found += self._executions[seq, generation].writes
        return found

    @property
    def next_seq(self) -> int:
        """The number of the next batch; every lower one is over where nothing is open."""
        return self._disk.head.next_seq

    @property
    def decided_count(self) -> int:
        return len(self._decided)

    @property
    def execution_count(self) -> int:
        return len(self._executions)


def _key_of(entry: FailureEntry) -> FailureKey:
    failed = entry.failed
    return failed.task, failed.stage, failed.shown, entry.attempts, entry.due_s is not None
