"""The shell around a task that is not the source: steps frames, sends, acknowledges, ends."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any

from consecution.nodes import Node
from consecution.options import Options
from consecution.plan import NodePlan, Plan
from consecution.protocol.dispatch import Dispatch, Sent
from consecution.protocol.origin import Origin, OriginLimits
from consecution.protocol.poison import Guard
from consecution.protocol.step import QUIET_BYTES, QUIET_PART, QUIET_S, QUIET_SHARE, Codec, Counts, Step
from consecution.protocol.values import USER_ERRORS, Ack, Acks, CreditReturn, FailedItem, Frame, Message, TaskIndex
from consecution.runtime import failpoints
from consecution.runtime.attribute_watch import AttributeWatch
from consecution.runtime.failed_edges import PlannedFailedEdges
from consecution.runtime.occupation import Occupied
from consecution.runtime.origin_host import MemoryStore, OnStop, OriginHost, Outbox, failures_kept, origin_limits
from consecution.runtime.timer import Timer
from consecution.runtime.wiring import make_dispatch
from consecution.sink import Sink
from consecution.stateful import DurableNode
from consecution.telling import tell

ANSWER_S = 0.25
"""A task that has taken frames for so long answers for them before it takes more, for their batches wait for that. Not
sooner: what is answered for together is decided, applied and committed together."""
DEAR_S = 0.01
"""But for a frame that took so long it answers at once: origins learn from that what an item costs, and who is free."""


class TaskHost(Occupied):
    """One replica of one node at work. Called by one thread.

    ``receive`` takes messages in, ``flush`` sends the acknowledgements of everything received since.
    A task whose node overrides ``end`` is an origin, in memory, for what it pushes there.
    """

    def __init__(
        self,
        plan: Plan,
        task: TaskIndex,
        node: Node,
        codec: Codec,
        outbox: Outbox,
        *,
        origin_name: Callable[[TaskIndex], str],
        lets_through: tuple[type[BaseException], ...] = (),
        on_stop: OnStop | None = None,
        guard: Guard | None = None,
        dispatch: Dispatch | None = None,
    ) -> None:
        self.task = task
        self.name = plan.task(task).name
        self.node = node
        self._plan = plan
        self._node_plan: NodePlan = plan.node(plan.task(task).node)
        self._options = plan.options
        self._codec = codec
        self._outbox = outbox
        self._dispatch = dispatch or make_dispatch(plan, task, codec)
        self._acks: dict[TaskIndex, list[Ack]] = {}
        self._credits: dict[TaskIndex, int] = {}
        self._pushed: Iterator[Any] = iter(())
        self._end_asked = False
        self._timer = Timer(None)
        self._watch: AttributeWatch | None = None
        self._on_stop = on_stop
        self.origin_host: OriginHost | None = None
        self.step = Step(
            task,
            node,
            self._dispatch,
            codec,
            write=node._write_frame if isinstance(node, Sink) else None,
            origin_names=origin_name,
            lets_through=lets_through,
            skips_decided=plan.options.robust,
            judge=self._node_plan.error_policy.judge,
            guard=guard,
            quiet_bytes=_quiet_bytes(plan.options),
            quiet_s=min(QUIET_S, plan.options.timeout_s * QUIET_PART),
        )

    @property
    def counts(self) -> Counts:
        return self.step.counts

    def progress(self) -> tuple[int, ...]:
        """Changes whenever the task gets on with its work."""
        return self.step.progress()

    @property
    def sends_at_once(self) -> bool:
        """Whether all that it sends on follows at once from what it receives: its turns have nothing to send."""
        return self.origin_host is None

    def begin(self) -> None:
        """Run the node's ``begin``, or open its sink; whatever that raises is raised."""
        node = self.node
        if isinstance(node, DurableNode):
            node._open_states()
        with self._occupied("begin"):
            if isinstance(node, Sink):
                node.sync = self._options.sync
                node.open()
            else:
                node.begin()
        if self._is_watched():
            self._watch = AttributeWatch(node)

    def _is_watched(self) -> bool:
        """Whether attributes that change are worth a warning: in processes that may die, and of one replica."""
        options, node = self._options, self.node
        at_stake = options.robust and options.mode == "process" and not isinstance(node, Sink) and not node.stateless
        return at_stake and self.task == self._node_plan.tasks[0]

    def receive(self, message: Message) -> None:
        """Step a frame, or take in what others answer to what this task sent."""
        if isinstance(message, Frame):
            self._step(message)
        elif self.origin_host is not None:
            self.origin_host.receive(message)
        elif isinstance(message, CreditReturn):
            for credits in self._dispatch.credits:
                credits.give_back(message.replica, message.count)

    def _step(self, frame: Frame) -> None:
        failpoints.passed("task.before_step")
        with self._occupied("process"):
            sent, ack = self.step.run(frame)
        failpoints.passed("task.stepped")
        self._answer(frame, sent, ack)

    def _answer(self, frame: Frame, sent: list[Sent], ack: Ack | None) -> None:
        """The frame is done with: send on what it has become, and say so."""
        self._answer_part(frame, sent, ack)
        if frame.credited:
            self._credits[frame.sender] = self._credits.get(frame.sender, 0) + 1
        if ack is not None and ack.load_s >= DEAR_S:
            self.flush()

    def _answer_part(self, frame: Frame, sent: list[Sent], ack: Ack | None) -> None:
        for target, out in sent:
            self._outbox.send(target, out)
        failpoints.passed("task.sent")
        if self._watch is not None:
            self._look_at_attributes(self._watch)
        if ack is not None:
            self._acks.setdefault(frame.origin, []).append(ack)

    def _look_at_attributes(self, watch: AttributeWatch) -> None:
        """A warning is not worth a worker, whatever an attribute does when it is looked at."""
        try:
            warning = watch.look()
        except USER_ERRORS:
            self._watch = None
            return
        if warning is not None:
            tell(warning)

    def flush(self) -> None:
        """Acknowledge what has been received since the last flush, one message per origin.

        Credits go first: whom an acknowledgement has read on is to know by then who is free.
        What is sent may let a sender in this worker send more at once: that is for the next flush.
        """
        if not (self._acks or self._credits):
            return
        acks, self._acks = self._acks, {}
        credits, self._credits = self._credits, {}
        for sender, count in credits.items():
            self._outbox.send(sender, CreditReturn(self.task, count))
        for origin, each in acks.items():
            self._outbox.send(origin, Acks(self.task, each))
        if acks:
            failpoints.passed("task.acked")

    # -- the end of the stream -------------------------------------------------------------------

    def end(self) -> None:
        """Run the node's ``end``; what it pushes starts trees of this task's own.

        Afterwards `turn` until `ended`. Whatever ``end`` raises is raised, after what it had pushed
        before was sent on.
        """
        self._timer.stop()
        self._end_asked = True
        self._become_origin()
        self._hand_over_last()
        self._call("end", self.node.end)

    def _become_origin(self) -> None:
        """From here on this task answers, in memory, for what it pushes without an item at hand."""
        if self.origin_host is not None:
            return
        handlers = PlannedFailedEdges(self._plan, self.task, self._codec)
        limits = _endless(origin_limits(self._options, self._plan.sharers(self.task)))
        origin = Origin(limits, failed_edges=handlers)
        origin.replay(0.0)
        self.origin_host = OriginHost(
            self.task,
            origin,
            MemoryStore(failures_kept(self._options)),
            self._dispatch,
            self._codec,
            self._outbox,
            on_stop=self._on_stop,
            judge=self._node_plan.error_policy.judge,
            handlers=handlers,
        )

    def _hand_over_last(self) -> None:
        """What the node has gathered may fail by itself; its ``end`` runs all the same."""
        assert self.origin_host is not None
        failed: list[FailedItem] = []
        with self._occupied("end"):
            pushed = self.step.run_apart(self.node._before_end, failed)
        self._add_pushed(pushed)
        for failure in failed:
            self.origin_host.origin.fail_here(failure, None, self.origin_host.now())

    def _call(self, what: str, method: Callable[[], object]) -> None:
        """Run a method of the node, and take what it pushes, even where it then raises."""
        pushed: list[Any] = []
        self.node._push_into(pushed)
        try:
            with self._occupied(what):
                method()
        finally:
            self._add_pushed(pushed)

    def _add_pushed(self, pushed: list[Any]) -> None:
        self.step.counts.items_out += len(pushed)
        self._pushed = iter([*self._pushed, *pushed])

    def _has_pushed(self) -> bool:
        return bool(operator.length_hint(self._pushed))

    def turn(self) -> bool:
        """Send what ``end`` and ``on_timer`` pushed, as far as the window allows. Returns whether there was work."""
        host = self.origin_host
        if host is None:
            return False
        if not self._has_pushed() and self._timer.ticks():
            self._call("on_timer", self.node.on_timer)
        pushed = self._pushed
        while (left := operator.length_hint(pushed)) and (room := host.origin.room(left)):
            host.born(list(itertools.islice(pushed, room)), None)
        return host.turn()

    def drain(self) -> None:
        """Push nothing more by itself; `ended` once what the timer has pushed is processed."""
        self._timer.stop()
        self._end_asked = True

    @property
    def settled(self) -> bool:
        """Nothing this task is the origin of is open."""
        return self.origin_host is None or self.origin_host.origin.settled

    def next_wake_s(self) -> float | None:
        """Seconds until something is due; None: not before a message."""
        return self._timer.left_s()

    def replay(self) -> None:
        """Others replay; this task is no origin that could. From the first time on it reaches all others."""
        self._start_timer()

    def _start_timer(self) -> None:
        """Not before all tasks are wired: what ``on_timer`` pushed would be lost, and the end wait for it for ever."""
        if self._node_plan.timer_s is None or self.origin_host is not None:
            return
        self._timer = Timer(self._node_plan.timer_s)
        self._become_origin()

    @property
    def ended(self) -> bool:
        return self._end_asked and not self._has_pushed() and self.settled

    def abandon(self) -> None:
        """A task died: trees of this task's own are closed as not confirmed."""
        if self.origin_host is not None:
            self.origin_host.origin.abandon()
        self._start_timer()

    def replica_restarted(self, task: TaskIndex) -> None:
        if self.origin_host is not None:
            self.origin_host.replica_restarted(task)
            return
        for credits in self._dispatch.credits:
            credits.reset(task)

    def close(self) -> None:
        """Close a sink; other nodes hold nothing that needs it."""
        if isinstance(self.node, Sink):
            with self._occupied("close"):
                self.node._close_for_good()


def _quiet_bytes(options: Options) -> int:
    return min(QUIET_BYTES, int(options.max_pending_bytes * QUIET_SHARE / options.max_pending))


def _endless(limits: OriginLimits) -> OriginLimits:
    """What ``end`` pushes is already in memory: a window of bytes would only slow it down."""
    size, most = limits.batch_size, limits.max_pending
    return OriginLimits(batch_size=size, max_pending=most, retries=0, replays=False, parallel=limits.parallel)
