"""The shell around a task that lets through only so many items a second.

Nobody sleeps: frames wait in a queue, and at each turn as many items leave as may. So a frame is worked off in parts.
After each part the task acknowledges: in place of the frame there is what left, and a rest under an id of its own. The
checksum of the tree does not mind, and the origin sees that its batch gets on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from consecution.pacing import RateLimit
from consecution.protocol.step import Held
from consecution.protocol.values import Frame
from consecution.runtime.task_host import TaskHost


class PacedTaskHost(TaskHost):
    """The task of one `RateLimit` at work."""

    node: RateLimit

    def __init__(self, *args: Any, clock: Callable[[], float] = time.monotonic, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.node.paced_by_engine = True
        self._clock = clock
        self._waiting: deque[Held] = deque()
        self._bucket = self.node.make_bucket(clock())
        self._shown_s = clock()

    @property
    def sends_at_once(self) -> bool:
        return False

    def _step(self, frame: Frame) -> None:
        held = self.step.take(frame)
        if held is None:
            self._answer(frame, [], None)
            return
        self.node._log_input(held.items)
        if held.out is None:
            held.out = held.items
        self._put_in_line(held)
        self._pass_on()

    def _put_in_line(self, held: Held) -> None:
        """A frame of a batch that runs again takes the place of the one that is not needed any more."""
        new = held.frame
        for place, waiting in enumerate(self._waiting):
            old = waiting.frame
            if (old.origin, old.seq, old.path) == (new.origin, new.seq, new.path) and old.generation < new.generation:
                self._waiting[place] = held
                self._answer(old, [], None)
                return
        self._waiting.append(held)

    def turn(self) -> bool:
        """Let through what may pass."""
        self._show_that_they_wait()
        return self._pass_on() or super().turn()

    def _pass_on(self) -> bool:
        worked = False
        while self._waiting and (room := self._bucket.room(self._clock())):
            worked = True
            held = self._waiting[0]
            self._bucket.spend(min(room, len(held.out or ())))
            sent, ack = self.step.put_some(held, room, 1.0 / self.node.per_second)
            if not held.out:
                self._waiting.popleft()
                self._answer(held.frame, sent, ack)
            else:
                self._answer_part(held.frame, sent, ack)
        return worked

    def _show_that_they_wait(self) -> None:
        """So that nobody takes a batch for lost that only has to wait long."""
        now_s = self._clock()
        if now_s - self._shown_s >= self._options.timeout_s:
            self._shown_s = now_s
            for held in self._waiting:
                self._answer_part(held.frame, *self.step.put_some(held, 0, 0.0))

    def next_wake_s(self) -> float | None:
        """Seconds until the next may pass, where one waits."""
        if not self._waiting:
            return super().next_wake_s()
        return min(self._bucket.due_s(self._clock()), self._options.timeout_s)
