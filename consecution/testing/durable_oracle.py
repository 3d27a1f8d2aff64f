"""The onlooker over one durable task: over what it applies, and over the origin that it is for its outputs.

Beside the promises of every origin:

- what is applied is the decided execution of a batch: all of its frames that were bound here, and no others;
- batches of an origin are applied in order, each once; what is applied is kept, and nothing else is;
- state, ledger, outputs, failed inputs and the mark of a store elsewhere are one commit;
- what a timer pushes is part of the commit with what it did to the state; it never ticks after the end;
- ``end`` runs once, after everything above has nothing open, and this task's own failed inputs are settled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from consecution.protocol.durable import Application, FrameStaged, LedgerMoved
from consecution.protocol.origin import NO_ROOT, BatchRecord, Head, OriginLimits
from consecution.protocol.values import Entry, Frame, Stage, TaskIndex
from consecution.runtime.appliers import FailedInput, Work
from consecution.runtime.appliers import Outcome as Applied
from consecution.runtime.durable_store import CommittedOutside, EndRecorded
from consecution.testing.durable_store import DurableDisk, key_of
from consecution.testing.oracle import FailureKey, Oracle
from consecution.testing.outside import Outside
from consecution.testing.violation import Violation
from consecution.testing.world import Item, Keeping, NodeShape, World

KEYS = 5
"""How many keys a durable node's state has."""


@dataclass(slots=True)
class Group:
    """What was applied and waits for its commit."""

    applications: list[Application] = field(default_factory=list)
    taken: list[Item] = field(default_factory=list)
    pushed: list[Item] = field(default_factory=list)
    failed: list[FailedInput] = field(default_factory=list)
    is_end: bool = False
    ticks: int = 0
    ticked: list[Item] = field(default_factory=list)


class DurableOracle(Oracle):
    """Watches one durable task through all its incarnations."""

    def __init__(
        self,
        world: World,
        task: TaskIndex,
        disk: DurableDisk,
        outside: Outside | None,
        oracles: Mapping[TaskIndex, Oracle],
        disks: Mapping[TaskIndex, DurableDisk],
        limits: OriginLimits,
        now: Callable[[], float],
    ) -> None:
        super().__init__(disk, limits, [], now, disks, task, world=world)
        self._shape: NodeShape = world.node_of[task]
        self._store = disk
        self._outside = outside
        self._oracles = oracles
        self._taken: list[Item] = []
        self._group: Group | None = None
        self._sealed: dict[int, Group] = {}
        self._ends = False
        self._ticks = 0
        self._is_over = False
        self.ticked_items: list[Item] = []
        """What timers have pushed, as far as it was committed."""
        self._told_low: dict[TaskIndex, int] = {}
        self._own_failures: Counter[FailureKey] = Counter()
        self._staged: set[tuple[TaskIndex, int, int, int]] = set()

    # -- what the task does ----------------------------------------------------------------------

    def begun(self) -> None:
        """A new incarnation opens the store; what the last one had not committed is gone."""
        self.restarted()
        self._group = None
        self._told_low.clear()

    def told_low(self, origin: TaskIndex, low: int) -> None:
        """A message from an origin says which of its batches are over."""
        self._told_low[origin] = max(low, self._told_low.get(origin, 0))

    def check_low(self) -> None:
        """Nothing of an execution that was thrown away stays once the task could know."""
        for frame in self._store.inbox.values():
            if frame.seq < self._told_low.get(frame.origin, 0):
                raise Violation(f"task {self.task} keeps {frame}, and was told low {self._told_low[frame.origin]}")

    def applied(self, works: list[Work], taken: list[tuple[Item, list[Item]]], outcome: Applied) -> None:
        """The application itself has run: ``taken`` says what the node took, and what it made of each."""
        items = Counter(item for work in works for _, items in work.parts() for item in items)
        kept = [item for item, _ in taken]
        if items - Counter(f.item for f in outcome.failed) != Counter(kept):
            raise Violation(f"task {self.task} was given {dict(items)}, took {kept}, and {outcome.failed} failed")
        made = [output for _, outputs in taken for output in outputs]
        if outcome.pushed != made:
            raise Violation(f"task {self.task} made {made}, and {outcome.pushed} are said to be pushed")
        group = self._open_group()
        group.applications += [work.application for work in works]
        group.taken += kept
        group.pushed += made
        group.failed += outcome.failed

    def ran_end(self, pushed: list[Item]) -> None:
        """The node's ``end`` has run."""
        expected = [made for item in self._taken for made in self._world.end_outputs(self._shape, item)]
        if Counter(pushed) != Counter(expected):
            raise Violation(f"the end of task {self.task} pushed {pushed}; its state gives {expected}")
        group = self._open_group()
        group.pushed += pushed
        group.is_end = True

    def ticked(self, pushed: list[Item]) -> None:
        """The node's timer has ticked."""
        if self._is_over or self._store.ended:
            raise Violation(f"the timer of task {self.task} ticks after its end, and pushes {pushed}")
        group = self._open_group()
        group.ticks += 1
        group.pushed += pushed
        group.ticked += pushed

    def said_ended(self) -> None:
        """The stream has ended, and nothing more comes from this task."""
        self._is_over = True

    def _open_group(self) -> Group:
        if self._group is None:
            self._group = Group()
        return self._group

    def committed_outside(self, number: int) -> None:
        """A store elsewhere has committed, and with it what was applied."""
        self._sealed[number] = self._open_group()

    # -- commits ---------------------------------------------------------------------------------

    def committing(self, changes: Sequence[Any]) -> None:
        for change in changes:
            if isinstance(change, CommittedOutside):
                self._group = self._sealed.pop(change.number, self._group)
            elif isinstance(change, FrameStaged):
                self._judge_staging(change.frame)
        group, self._group = self._group, None
        self._judge_ledger(changes, group or Group())
        if group is not None:
            self._take_over(group)
        super().committing(changes)
        self._own_failures.clear()

    def committed(self) -> None:
        super().committed()
        if self._read != len(self._items):
            raise Violation(
                f"task {self.task} has committed what made {self._items[self._read :]}, without the batches of these"
            )
        if self._ends and self._has_own_retries():
            raise Violation(f"task {self.task} ran its end while items that had failed there waited for another try")
        self._ends = False

    def _take_over(self, group: Group) -> None:
        self._taken += group.taken
        self._ticks += group.ticks
        if self._shape.ways:
            self._items += group.pushed
            self.ticked_items += group.ticked
        for failed in group.failed:
            self._own_failures[self._failure_of(failed)] += 1

    def _failure_of(self, failed: FailedInput) -> FailureKey:
        application = failed.application
        mark = self._born[application.seq].retry if application.origin == self.task else None
        again = mark is not None and mark.entry == Entry(self.task, Stage.PROCESS)
        attempts = 1 + (mark.attempts if mark is not None and again else 0)
        return self.task, Stage.PROCESS, repr(failed.item), attempts, attempts <= self._world.retries_at(self._shape)

    def _failures_beside(self) -> Counter[FailureKey]:
        return self._own_failures

    def _judge_staging(self, frame: Frame) -> None:
        self._staged.add(key_of(frame))
        self._oracles[frame.origin].staged(frame)

    def _judge_ledger(self, changes: Sequence[Any], group: Group) -> None:
        moves = [(change.origin, change.seq) for change in changes if isinstance(change, LedgerMoved)]
        applied = [(application.origin, application.seq) for application in group.applications]
        if moves != applied:
            raise Violation(
                f"the ledger of task {self.task} moves to {moves}, in one commit with the state of {applied}"
            )
        for application in group.applications:
            for frame in application.frames:
                if key_of(frame) not in self._staged:
                    self._judge_staging(frame)  # it never lies in the inbox: this commit decides it, too
            self._oracles[application.origin].judge_application(self.task, application)
        if group.is_end != any(isinstance(change, EndRecorded) for change in changes):
            raise Violation(f"task {self.task}: what its end did, and the record of it, are not one commit")
        if group.is_end:
            self._ends = True
            self._judge_end()

    def _judge_end(self) -> None:
        if self._store.ended:
            raise Violation(f"task {self.task} has run its end twice")
        for task, oracle in self._oracles.items():
            if self._world.node_of[task].index < self._shape.index:
                oracle.check_over(exhausted=task in self._world.sources)

    def _has_own_retries(self) -> bool:
        disk = self._disk
        open_batches: list[Any] = [*disk.batches.values(), *disk.decided.values()]
        roots = [batch.retry.root for batch in open_batches if batch.retry is not None]
        return NO_ROOT in roots or any(entry.root == NO_ROOT for entry in disk.waiting)

    @property
    def own_retry_count(self) -> int:
        """How many batches were retries of this task's own failed inputs."""
        return sum(record.retry is not None and record.retry.root == NO_ROOT for record in self._born.values())

    def _position_is_right(self, head: Head) -> bool:
        return head.emitted == self._read

    def _judge_given(self, record: BatchRecord) -> None:
        given = [*(record.payload or ()), *(int(failed.shown) for failed in record.born_failed)]
        expected = list(self._items[self._read : self._read + record.count])
        if Counter(given) != Counter(expected):
            raise Violation(f"batch {record.seq} of task {self.task} holds {given}; it pushed {expected} next")

    # -- what it says ----------------------------------------------------------------------------

    def judge_staged(self, origin: TaskIndex, seq: int, generation: int, frame_id: int) -> None:
        if (origin, seq, generation, frame_id) not in self._staged:
            raise Violation(f"task {self.task} acknowledged a frame of batch {seq} that is not in its inbox")

    def judge_confirm(self, origin: TaskIndex, seq: int) -> None:
        if self._store.ledger.get(origin, -1) < seq:
            raise Violation(f"task {self.task} confirmed batch {seq} of origin {origin}, and has not committed it")

    # -- what is kept ----------------------------------------------------------------------------

    def check_kept(self) -> None:
        """What is kept is what the applied executions make in the ledger's order."""
        if self._outside is not None:
            self._outside.check(self._taken)
            return
        states = self._store.states()
        if self._shape.keeping is Keeping.ATTRIBUTES:
            kept: dict[Any, Any] = {"seen": self._taken, "ticks": self._ticks}
            found = {"seen": states.get("seen", []), "ticks": states.get("ticks", 0)}
            if found != kept:
                raise Violation(f"the attributes of task {self.task} are {found}; what it took in makes {kept}")
            return
        expected: dict[Any, list[Item]] = {}
        for item in self._taken:
            expected.setdefault(item % KEYS, []).append(item)
        found = {key: state["items"] for key, state in states.items() if state}
        if found != expected:
            raise Violation(f"the state of task {self.task} is {found}; what it took in makes {expected}")

    def check_inbox(self, *, ended: bool) -> None:
        """Empty at the end of the stream; before that, what was thrown away may wait to be noticed."""
        low = {task: oracle.next_seq for task, oracle in self._oracles.items()}
        left = [frame for frame in self._store.inbox.values() if ended or frame.seq >= low[frame.origin]]
        if left:
            raise Violation(f"nothing is open, and frames lie in the inbox of task {self.task}: {left}")

    def writes(self) -> list[tuple[int, Item]]:
        return [*super().writes(), *((self._shape.index, item) for item in self._taken)]
