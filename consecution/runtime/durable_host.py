"""The shell around a durable task: stages frames, applies decided batches, and is the origin of what they push.

One commit carries everything that one turn has come to: frames that arrived, the state and ledger of batches
that were applied, their outputs as new batches, decisions and forgets of earlier outputs. Only then it answers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from consecution.errors import ConsecutionError, WorkerError, text_of
from consecution.nodes import Node
from consecution.options import Options
from consecution.plan import Plan
from consecution.protocol.durable import Durable, DurableTurn
from consecution.protocol.origin import Origin, RetryMark
from consecution.protocol.poison import Guard, LostItem, decode_apart
from consecution.protocol.step import Codec, Counts, describe_failure, encode_apart
from consecution.protocol.values import (
    LIVE,
    USER_ERRORS,
    Acks,
    Confirms,
    CreditReturn,
    FailedItem,
    Frame,
    Gos,
    Message,
    Stage,
    TaskIndex,
    listed,
)
from consecution.runtime import failpoints
from consecution.runtime.appliers import Applier, FailedInput, Group, Work, make_applier
from consecution.runtime.durable_store import DurableStore, EndRecorded, EndUndone
from consecution.runtime.failed_edges import PlannedFailedEdges
from consecution.runtime.occupation import Occupied
from consecution.runtime.origin_host import OnStop, OriginHost, Outbox, by_task, origin_limits
from consecution.runtime.task_host import ANSWER_S
from consecution.runtime.timer import Timer
from consecution.runtime.wiring import make_dispatch

GROUP_ITEMS = 1_000_000
"""Items of decided batches that become one commit, while there are so many: each changed key is written once. But none
is begun after `ANSWER_S`."""


class DurableHost(Occupied):
    """One replica of one durable node at work. Called by one thread. The same surface as `TaskHost`.

    ``codecs``: between tasks, and for what is stored.
    """

    def __init__(
        self,
        plan: Plan,
        task: TaskIndex,
        node: Node,
        codecs: tuple[Codec, Codec],
        outbox: Outbox,
        *,
        origin_name: Callable[[TaskIndex], str],
        path: Path,
        epoch: str,
        now: Callable[[], float] = time.time,
        on_stop: OnStop | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.task = task
        self.name = plan.task(task).name
        self.node = node
        self.counts = Counts()
        self._options: Options = plan.options
        self._codec, self._stored = codecs
        self._outbox = outbox
        self._now = now
        self._on_stop = on_stop
        self._guard = guard or Guard()
        self._judge = plan.node(plan.task(task).node).error_policy.judge
        self._credits: dict[TaskIndex, int] = {}
        self._answers = DurableTurn()
        self._applied = False
        self._ending = False
        self._end_done = False
        self._end_undone = False
        self._end_due = False
        self._end_asked = False
        self._stream_ended = False
        self._completed = False
        self._plan = plan
        self._origin_name = origin_name
        self._path = path
        self._epoch = epoch
        self._durable = Durable()
        self._timer = Timer(None)
        self._store: DurableStore | None = None
        self.origin_host: OriginHost | None = None

    def begin(self) -> None:
        """Restore what the store holds, and run the node's ``begin`` or open its sink; what that raises is raised."""
        store = self._open_store()
        try:
            self._applier = self._make_applier(store)
            with self._occupied("begin"):
                self._applier.open()
            self._restore_or_close(store)
        except BaseException:
            store.close()
            raise
        self._store = store
        self._timer = self._make_timer(None if self._end_done else self._timer_s)

    def _restore_or_close(self, store: DurableStore) -> None:
        try:
            self._restore(store)
        except BaseException:
            with contextlib.suppress(Exception):  # what the store says is what has to be mended
                self._applier.close()
            raise

    def _restore(self, store: DurableStore) -> None:
        self._durable = self._make_durable(store)
        self._end_done = store.has_ended
        self.origin_host = self._make_origin_host(store)
        self.origin_host.companion = self

    # -- the parts, which the simulator makes others of --------------------------------------------

    def _open_store(self) -> DurableStore:
        return DurableStore(self._path, origin=self.name, epoch=self._epoch, sync=self._options.sync, create=False)

    def _make_applier(self, store: DurableStore) -> Applier:
        applier = make_applier(self._plan, self.task, self.node, store, self._origin_name)
        applier.guard = self._guard
        return applier

    def _make_timer(self, every_s: float | None) -> Timer:
        return Timer(every_s)

    def _make_durable(self, store: DurableStore) -> Durable:
        return Durable(*store.restore_inbox(), applies_at_once=self._applier.is_atomic)

    def _make_origin_host(self, store: DurableStore) -> OriginHost:
        handlers = PlannedFailedEdges(self._plan, self.task, self._codec, self._stored)
        return OriginHost(
            self.task,
            Origin(origin_limits(self._options, self._plan.sharers(self.task)), store.restore(), self._now(), handlers),
            store,
            make_dispatch(self._plan, self.task, self._codec),
            self._codec,
            self._outbox,
            stored=self._stored,
            now=self._now,
            on_stop=self._on_stop,
            judge=self._judge,
            guard=self._guard,
            handlers=handlers,
            deciders=self._plan.deciders(self.task),
        )

    # -- what it is asked ------------------------------------------------------------------------

    sends_at_once = False
    """As `TaskHost` has it: all is sent by turns."""

    @property
    def staged_count(self) -> int:
        """Frames that lie in the inbox. Any thread may ask."""
        return self._durable.staged_count

    @property
    def _own(self) -> OriginHost:
        assert self.origin_host is not None, "begin comes first"
        return self.origin_host

    @property
    def origin(self) -> Origin:
        return self._own.origin

    def progress(self) -> tuple[int, ...]:
        """Changes whenever the task gets on with its work."""
        counts = self.counts
        return counts.frames, counts.items_in, counts.items_out, *self._guard.progress()

    # -- messages --------------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """Stage a frame, note a decision, or take in what others answer to what this task sent."""
        if isinstance(message, Frame):
            self._stage(message)
        elif isinstance(message, Gos):
            for go in message.gos:
                self._durable.go(message.origin, go)
        else:
            self._own.receive(message)

    def _stage(self, frame: Frame) -> None:
        if frame.credited:
            self._credits[frame.sender] = self._credits.get(frame.sender, 0) + 1
        failed: tuple[FailedItem, ...] = ()
        if isinstance(frame.payload, LIVE):
            failed = self._store_live(frame)
        if self._durable.stage(frame, failed):
            self.counts.frames += 1
            self.counts.took(frame.sent_s, time.monotonic())

    def _store_live(self, frame: Frame) -> tuple[FailedItem, ...]:
        """Live items become bytes: what lies in the inbox must not change under the hands of others."""
        frame.payload, _, refused = encode_apart(frame.payload, self._stored)
        return tuple(describe_failure(self.task, Stage.PROCESS, *found, self._stored, self._judge) for found in refused)

    def turn(self) -> bool:
        """Apply what is decided, commit, answer. Returns whether there was work."""
        worked = self._tick() or self._apply_ready() or self._run_late_end()
        self._durable.acknowledge_late()
        self._applied = self._applied or self._applier.commit_due_s() == 0.0
        worked = self._own.turn() or worked
        if self._durable.has_decided:
            worked = self._apply_ready() or worked  # at once; its commit comes with that of what has come meanwhile
        return self._complete() or worked

    def flush(self) -> None:
        """Give credits back; acknowledgements go out with the commits that make them true."""
        # What is sent may let a sender in this worker send more at once: those are the next credits.
        credits, self._credits = self._credits, {}
        for sender, count in credits.items():
            self._outbox.send(sender, CreditReturn(self.task, count))

    # -- application -----------------------------------------------------------------------------

    def _apply_ready(self) -> bool:
        """Not where something was applied already: whoever waits for that waits for its commit."""
        first = None if self._applied else self._next_work()
        if first is not None:
            self._apply(Group(self._ready(first)))
        return first is not None

    def _next_work(self) -> Work | None:
        # A full window holds back new work, but not this task's own retries: they are what fills it.
        application = self._durable.next_application(only=None if self.origin.room() else self.task)
        if application is None:
            return None
        self._durable.apply(application)
        return Work(application, self._decode)

    def _ready(self, first: Work) -> Iterator[Work]:
        """Decided batches, until that was enough for one commit."""
        work: Work | None = first
        items, began_s = 0, self._now()
        while work is not None:
            yield work
            items += work.count
            has_time = 0.0 <= self._now() - began_s < ANSWER_S
            work = self._next_work() if items < GROUP_ITEMS and has_time else None

    def _tick(self) -> bool:
        if not self.origin.room() or not self._timer.ticks():
            return False
        with self._occupied("on_timer"):
            pushed = self._applier.call(self.node.on_timer)
        self._take(pushed)
        return True

    def _take(self, pushed: list[Any]) -> None:
        """What the node has done by itself is part of the next commit, and so is what it pushed."""
        self.counts.items_out += len(pushed)
        self._applied = True
        self._give_birth(pushed)

    def _decode(self, frame: Frame) -> tuple[list[Any], list[LostItem]]:
        suspect = self._guard.take(frame.origin, frame.seq, frame.path)
        items, lost = decode_apart(frame.payload, self._codec.decode, suspect, alone=frame.is_retry)
        return listed(items), lost

    def _apply(self, group: Group) -> None:
        started_s = self.counts.since_s = time.monotonic()
        with self._occupied("process"):
            pushed, failed = self._applier.apply(group)
        failed = [*(lost for work in group.works for lost in work.lost), *failed]
        counts = self.counts
        counts.items_in += group.count
        counts.items_out += len(pushed)
        counts.failed += len(failed)
        counts.since_s = 0.0
        counts.busy_s += time.monotonic() - started_s
        self._applied = True
        self._completed = False
        self._undo_end()
        self._give_birth(pushed)
        for failure in failed:
            self._fail(failure)
        failpoints.passed("durable.applied")

    @property
    def _timer_s(self) -> float | None:
        return self._plan.node(self._plan.task(self.task).node).timer_s

    @property
    def _has_end(self) -> bool:
        """Whether that it has ended is to be on record; else a timer would tick again after a restart."""
        return self.node._wants_end() or (self._timer_s is not None and self._own.has_outlets)

    def _undo_end(self) -> None:
        """An item that was put back after the run had finished: ``end`` has to see what it has changed."""
        if self._end_done:
            self._end_done, self._end_undone = False, True
            self._end_due = self._stream_ended and self._has_end

    def _give_birth(self, pushed: list[Any]) -> None:
        if not self._own.has_outlets:
            return
        start = 0
        while start < len(pushed):
            size = self.origin.share_of(len(pushed) - start)
            self._own.born(pushed[start : start + size], None)
            start += size

    def _fail(self, failure: FailedInput) -> None:
        app = failure.application
        retry = self.origin.retry_of(app.seq) if app.origin == self.task else None
        self._keep_failed(failure.item, failure.error, retry)

    def _keep_failed(self, item: Any, error: BaseException, retry: RetryMark | None) -> None:
        described = describe_failure(self.task, Stage.PROCESS, item, error, self._stored, self._judge)
        self.origin.fail_here(described, retry, self._now())

    # -- the commit (`origin_host.Companion`) ------------------------------------------------------

    @property
    def owes(self) -> bool:
        """Something is to be committed, or answered."""
        return self._applied or self._ending or self._end_undone or self._durable.owes

    def take_changes(self) -> list[Any]:
        """What the commit holds beside the origin's own changes."""
        self._answers = self._durable.take_turn()
        changes: list[Any] = list(self._answers.changes)
        if self._applied:
            changes += self._applier.take_changes()
        if self._end_undone:
            self._end_undone = False
            changes.append(EndUndone())
        if self._ending:
            self._ending = False
            self._end_done = True
            changes.append(EndRecorded())
        return changes

    def prepare(self, changes: list[Any]) -> None:
        """What was applied to a store elsewhere is committed there first."""
        if self._applied:
            self._applier.prepare(changes)

    def committed(self) -> bool:
        """Acknowledge what is staged, confirm what is applied."""
        answers, self._answers = self._answers, DurableTurn()
        if self._applied:
            self._applied = False
            self._applier.committed()
        for origin, acks in by_task(answers.acks).items():
            self._outbox.send(origin, Acks(self.task, acks))
        if answers.acks:
            failpoints.passed("durable.acked")
        for origin, confirms in by_task(answers.confirms).items():
            self._outbox.send(origin, Confirms(self.task, confirms))
        if answers.confirms:
            failpoints.passed("durable.confirmed")
        return bool(answers.acks or answers.confirms)

    # -- the end of the stream -------------------------------------------------------------------

    def end(self) -> None:
        """Run the node's ``end``, unless it is part of the state already; then `turn` until `ended`."""
        self._timer.stop()
        self._end_asked = self._stream_ended = True
        self._durable.finish(self.task)
        self._end_due = self._has_end and not (self._end_done or self._ending)
        self._run_end()

    def _run_end(self) -> bool:
        """Items that failed here and wait for another try come first: the state would lack them."""
        if not self._end_due or self.origin.has_own_retries:
            return False
        self._hand_over_last()
        if self.origin.has_own_retries:
            return True
        self._end_due = False
        with self._occupied("end"):
            pushed = self._applier.end()
        self._take(pushed)
        self._ending = True
        return True

    def _hand_over_last(self) -> None:
        """What the node has gathered may fail by itself, and be tried again before the ``end``."""
        with self._occupied("end"):
            pushed, failed = self._applier.hand_over_last()
        if pushed or failed:
            self._take(pushed)
        self.counts.failed += len(failed)
        for item, error in failed:
            self._keep_failed(item, error, None)

    def _run_late_end(self) -> bool:
        """Nobody takes what it raises for the ``end``'s, who did not ask for that just now: so it says."""
        try:
            return self._run_end()
        except ConsecutionError:
            raise
        except USER_ERRORS as error:
            what = f"end() raised {text_of(error)}; what the node had collected is not passed on"
            raise WorkerError(f"{self.name}: {what}", task=self.name) from error

    def drain(self) -> None:
        """The run stops: `ended` once everything this task has pushed is processed."""
        self._timer.stop()
        self._end_asked = True

    def _complete(self) -> bool:
        """Nothing more comes in this run: what was written gets its final form, in a commit of its own."""
        if self._completed or not self._end_asked or self._ending or self._end_due or not self.settled:
            return False
        self._completed = True
        if self._applier.complete(ended=self._stream_ended):
            self._applied = True
            self._own.turn()
        return True

    @property
    def ended(self) -> bool:
        return self._end_asked and self._completed and not self._ending and self.settled

    @property
    def settled(self) -> bool:
        """Nothing this task has pushed is open, and nothing waits for a retry."""
        return self.origin.settled

    # -- death and replay ------------------------------------------------------------------------

    def replay(self) -> None:
        """Every task has switched: run again what is undecided, and repeat the ``go``s of the rest."""
        self.origin.replay(self._now())

    def abandon(self) -> None:
        """Never: a durable task keeps what is open."""

    def replica_restarted(self, task: TaskIndex) -> None:
        self._own.replica_restarted(task)

    def next_wake_s(self) -> float | None:
        """Seconds until a retry or the tree timeout is due; None: not before a message."""
        due_s = self.origin.next_due_s()
        waits = [self._timer.left_s() if self.origin.room() else None, self._applier.commit_due_s()]
        waits.append(None if due_s is None else max(0.0, due_s - self._now()))
        return min((wait for wait in waits if wait is not None), default=None)

    def close(self) -> None:
        """Close node and store. Harmless when repeated, and without `begin`."""
        store, self._store = self._store, None
        if store is None:
            return
        try:
            with self._occupied("close"):
                self._applier.close()
        finally:
            store.close()
