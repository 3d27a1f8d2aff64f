"""The shell around a task whose items take long: coroutines, many of them on their way at once.

Frames are held until all of their items are done, and answered in the order in which they came: so items keep their
order on each path. A frame that is answered late holds nobody up but those behind it, for the acker does not
ask when an acknowledgement comes, and batches are decided in their order anyway.
"""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from consecution.item_loop import ItemLoop, Job
from consecution.protocol.poison import FrameKey, Guard, Note
from consecution.protocol.step import Held
from consecution.protocol.values import Frame
from consecution.runtime import failpoints
from consecution.runtime.task_host import TaskHost

TURN_S = 0.005
"""So long the coroutines have the only thread, if nothing is done before."""
Wake = Callable[[], None]
"""Ends the waiting of whoever runs the host; any thread may call it."""


class _Touch:
    """Notes the frame whose coroutine runs."""

    def __init__(self, note: Note, frame: Frame) -> None:
        self._note = note
        self._key = FrameKey(frame.origin, frame.seq, frame.path)

    def begins(self) -> None:
        self._note.frame(self._key)

    def pauses(self) -> None:
        self._note.clear()


@dataclass(slots=True)
class _Flight:
    """A frame that has come and is not answered; ``job`` is None where there is nothing to wait for."""

    held: Held
    job: Job | None

    @property
    def landed(self) -> bool:
        return self.job is None or self.job.done

    def results(self) -> tuple[list[Any], list[tuple[Any, BaseException]]]:
        if self.job is None:
            return self.held.out or [], []
        job = self.job
        out = [made for outs in job.outs if outs is not None for made in outs]
        return out, [(item, error) for item, error in zip(job.items, job.errors, strict=True) if error is not None]


class AsyncTaskHost(TaskHost):
    """One replica of one async node at work.

    With ``wake`` the coroutines run in a thread of their own, and `turn` answers what is done. Without it there is
    one thread for all, and they run in `turn`, for moments.
    """

    def __init__(self, *args: Any, wake: Wake | None, guard: Guard | None = None, **kwargs: Any) -> None:
        super().__init__(*args, guard=guard, **kwargs)
        run_s = self._options.timeout_s
        timeout_s = run_s if self.node.timeout_s is None else self.node.timeout_s
        self._note = None if guard is None else guard.beside
        self._wake = wake
        self._woken = False
        self._flights: deque[_Flight] = deque()
        self._busy_since_s = 0.0
        self._items = ItemLoop(self.node, timeout_s, patience_s=run_s)
        self.node._close_loop()
        self.node._item_loop = self._items

    def begin(self) -> None:
        """Run the node's ``begin`` in its loop, and let that turn."""
        with self._occupied("begin"):
            self._items.call(self.node.begin)
        self.node._push_from_hand()
        if self._wake is not None:
            self._items.start()

    def progress(self) -> tuple[int, ...]:
        return *super().progress(), *self._items.progress()

    @property
    def sends_at_once(self) -> bool:
        return False

    def _step(self, frame: Frame) -> None:
        failpoints.passed("task.before_step")
        with self._occupied("process"):
            held = self.step.take(frame)
        if held is None:
            self._answer(frame, [], None)
            return
        if not self._flights:
            self._busy_since_s = time.perf_counter()
        job = None
        if held.out is None:
            touch = None if self._note is None else _Touch(self._note, frame)
            job = Job(held.items, self._finished, touch)
        self._flights.append(_Flight(held, job))
        self.occupied_with = "process"
        if job is not None:
            self.node._log_input(job.items)
            self._items.submit(job)
        self._land()

    def _finished(self) -> None:
        """In the loop's thread: somebody has to look, if nobody is about to."""
        if not self._woken and self._wake is not None:
            self._woken = True
            self._wake()

    def turn(self) -> bool:
        """Answer the frames that are done, in the order in which they came."""
        self._woken = False
        if self._wake is None and self._flights and not self._flights[0].landed:
            self._items.turn(TURN_S)
        return self._land() or super().turn()

    def next_wake_s(self) -> float | None:
        """Where nobody is woken, it wants its turn again at once."""
        return 0.0 if self._wake is None and self._flights else super().next_wake_s()

    def _land(self) -> bool:
        flights = self._flights
        landed = False
        while flights and flights[0].landed:
            landed = True
            flight = flights.popleft()
            now_s = time.perf_counter()
            busy_s, self._busy_since_s = now_s - self._busy_since_s, now_s
            sent, ack = self.step.put(flight.held, *flight.results(), busy_s)
            failpoints.passed("task.stepped")
            self._answer(flight.held.frame, sent, ack)
        if not flights:
            self.occupied_with = ""
        return landed

    def close(self) -> None:
        """Cancel what is on its way, and close the node and its loop."""
        close = getattr(self.node, "close", None)
        with self._occupied("close"):
            self._items.close(close if inspect.iscoroutinefunction(close) else None)
