"""Everything in the calling thread: no processes, no threads, so that a debugger sees it all.

A turn reads a few batches and carries every message through the graph until none is left; the run
advances inside `join`, `push`, `Receipt.wait`, and whatever else waits for it.
"""

from __future__ import annotations

import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from consecution.engine import Running
from consecution.errors import WorkerError
from consecution.plan import Plan
from consecution.protocol.ending import Ending
from consecution.protocol.values import USER_ERRORS, Message, TaskIndex
from consecution.report import Report, Status
from consecution.runtime.assembly import end_stages
from consecution.runtime.local_run import LocalRun, end_error, finished_before, manual_sources, push_into
from consecution.sources.manual import Receipt

IDLE_WAIT_S = 0.05
ASK_EVERY_S = 0.005
"""How often a source without a descriptor is asked, while it has nothing."""


def start(plan: Plan, pipeline: Any, iterable: Any, options: Any) -> Running:
    """Begin all nodes; the stream moves when the caller waits or pushes."""
    return InlineRunning(plan, pipeline, iterable)


class _BrokenOff(BaseException):
    """Raised by a signal handler into user code, which may not take it for an error of its own, nor may another run."""

    def __init__(self, run: InlineRunning, what: str) -> None:
        super().__init__(what)
        self.run = run


class _Queue:
    """The outbox of every task: one queue for all messages."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[TaskIndex, Message]] = deque()

    def send(self, target: TaskIndex, message: Message) -> None:
        self.waiting.append((target, message))


class InlineRunning(Running):
    """A run that moves only while its caller waits for it.

    Several threads may push and wait; one of them at a time takes a turn. A node that pushes into
    its own run only hands the item over: the turn it is part of goes on first.
    """

    def __init__(self, plan: Plan, pipeline: Any, iterable: Any) -> None:
        self._queue = _Queue()
        self._lock = threading.RLock()
        self._turning: int | None = None
        self._finishing: int | None = None
        self._error: BaseException | None = None
        self._end_problems: dict[TaskIndex, BaseException] = {}
        self._stopping = False
        self._aborted = False
        self._run = LocalRun(plan, pipeline, iterable, lambda task: self._queue, may_block=True, stop=self.request_stop)
        self._ending = Ending(end_stages(plan))
        for manual in manual_sources(self._run.sources):
            manual.advance = self._advance_until
        if self._run.state is not None and (report := finished_before(self._run.state)) is not None:
            self._run.leave(report)
            return
        try:
            self._run.let_steer(self)
            self._run.begin()
        except BaseException as error:
            self._run.abandon(error)
            raise

    # -- the contract ----------------------------------------------------------------------------

    def push(self, item: Any, timeout_s: float | None = None, *, source: str | None = None) -> Receipt:
        """Push and process the item at once: the receipt is done, unless the item waits for a retry."""
        self._run.require_open(stopping=self._stopping or self._aborted)
        receipt = push_into(self._run.plan, self._run.sources, item, timeout_s, source)
        self._advance()
        return receipt

    def status(self) -> Status:
        return self._run.status("stopping" if self._stopping else self._run.reading)

    def request_stop(self) -> None:
        self._stopping = True
        self._run.stop_reading()

    def abort(self) -> None:
        self._aborted = True

    def interrupt(self) -> None:
        """Abort; user code that runs in this thread just now is broken off, or a hanging item would hang us."""
        self._aborted = True
        if self._turning == threading.get_ident():
            raise _BrokenOff(self, "a turn")
        if self._finishing == threading.get_ident() and (hook := self._run.in_last_user_code):
            raise _BrokenOff(self, hook)

    def pause(self) -> None:
        self._run.pause(paused=True)

    def resume(self) -> None:
        self._run.pause(paused=False)

    def finish_input(self) -> None:
        self._run.finish_input()

    def join(self, timeout_s: float | None) -> Report | None:
        """Run until the end, or until the time is over."""
        self._advance_until(lambda: False, timeout_s)
        if self._error is not None:
            raise self._error
        return self._run.report

    # -- driving ---------------------------------------------------------------------------------

    def _advance_until(self, done: Callable[[], bool], timeout_s: float | None) -> None:
        """Take turns until ``done``, the end of the run, or the end of the time."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not done() and not self._run.closed:
            self._look_who_steers()
            worked = self._advance()
            self._finish_if_over()
            if deadline_s is not None and time.monotonic() >= deadline_s:
                return
            if not worked and not done() and not self._run.closed:
                self._wait(deadline_s)

    def _look_who_steers(self) -> None:
        """No thread does so: everything happens in the caller's, between two turns."""
        with self._lock:
            if self._run.steering is not None and self._turning is None:
                self._run.steering.look()

    def _advance(self) -> bool:
        """Take a turn; whether anything was done. What breaks it ends the run."""
        with self._lock:
            if self._turning is not None or self._run.closed:
                return False
            try:
                self._turning = threading.get_ident()
                return self._turn()
            except BaseException as error:
                if self._is_broken_off(error):
                    return True
                self._break(error)
                raise
            finally:
                self._turning = None

    def _finish_if_over(self) -> None:
        with self._lock:
            if self._run.closed or self._turning is not None or not self._is_over():
                return
            try:
                self._finishing = threading.get_ident()
                self._drain()
                self._run.finish(stopped=self._aborted or not self._ending.finished)
                self._error = self._run.stop_error
            except BaseException as error:
                if not self._is_broken_off(error):
                    self._break(error)
                    raise
                what = WorkerError(f"{error} was broken off by the stop: what it had to do may be missing")
                self._break(what)
                raise what from None
            finally:
                self._finishing = None

    def _is_broken_off(self, error: BaseException) -> bool:
        return isinstance(error, _BrokenOff) and error.run is self

    def _drain(self) -> None:
        """Nothing is open any more: each task gives what it wrote its final form."""
        if self._stopping and not self._aborted and not self._ending.started:
            for host in self._run.tasks.values():
                host.drain()
            self._turn_tasks()

    def _break(self, error: BaseException) -> None:
        self._error = error
        self._run.abandon(error)

    def _turn(self) -> bool:
        """Read a little, and carry all messages through; whether anything was done."""
        if self._aborted:
            return True
        worked = self._turn_sources()
        worked = self._turn_tasks() or worked
        while self._queue.waiting and not self._aborted:
            worked = True
            self._deliver()
        self._end_what_is_due()
        return worked

    def _deliver(self) -> None:
        """Deliver every waiting message, then let each task acknowledge what it got."""
        waiting, tasks, sources = self._queue.waiting, self._run.tasks, self._run.source_hosts
        while waiting:
            target, message = waiting.popleft()
            if target in sources:
                sources[target].receive(message)
            else:
                tasks[target].receive(message)
        self._turn_tasks()
        if not waiting:
            for source in sources.values():
                source.host.turn()

    def _turn_sources(self) -> bool:
        """Each source in turn reads what it may; whether any had anything to do."""
        worked = False
        for source in self._run.source_hosts.values():
            worked = source.turn() or worked
        return worked

    def _turn_tasks(self) -> bool:
        """Let each task apply, commit and acknowledge what it got; whether any had anything to do."""
        worked = False
        for host in self._run.tasks.values():
            worked = host.turn() or worked
            host.flush()
        return worked

    def _end_what_is_due(self) -> None:
        """Node by node, parents first; the next ends when nothing of the one before is open."""
        if not self._ending.started and (self._stopping or not self._run.sources_finished):
            return
        self._end(self._ending.source_finished())
        for task in self._ending.due:
            if self._run.tasks[task].ended:
                self._raise_end_problem(task)
                self._end(self._ending.task_ended(task))

    def _end(self, tasks: list[TaskIndex]) -> None:
        for task in tasks:
            try:
                self._run.tasks[task].end()
            except USER_ERRORS as error:
                self._end_problems[task] = error
            self._turn_tasks()

    def _raise_end_problem(self, task: TaskIndex) -> None:
        """What ``end`` had pushed before it raised is processed first."""
        problem = self._end_problems.get(task)
        if problem is not None:
            raise end_error(self._run.tasks[task].name, problem)

    def _is_over(self) -> bool:
        if self._aborted or self._ending.finished:
            return True
        if not self._stopping or self._ending.started or self._queue.waiting:
            return False
        return self._run.sources_drained and self._run.settled

    def _wait(self, deadline_s: float | None) -> None:
        """Nothing to do just now: a retry is not yet due, or nothing is there to read."""
        due_s = self._run.next_wake_s()
        wait_s = IDLE_WAIT_S if due_s is None else min(due_s, IDLE_WAIT_S)
        if deadline_s is not None:
            wait_s = min(wait_s, max(0.0, deadline_s - time.monotonic()))
        fds = self._run.readable_fds
        if None in fds:
            wait_s = min(wait_s, ASK_EVERY_S)
        poll = select.poll()
        for fd in fds:
            if fd is not None:
                poll.register(fd, select.POLLIN)
        poll.poll(wait_s * 1000)
