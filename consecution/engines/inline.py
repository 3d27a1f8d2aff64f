"""Everything in the calling thread: no processes, no threads, so that a debugger sees it all.

A turn reads a few batches and carries every message through the graph until none is left; the run
advances inside `join`, `push`, and whatever waits for it.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from consecution.engine import Running
from consecution.plan import Plan
from consecution.protocol.ending import Ending
from consecution.protocol.values import Message, TaskIndex
from consecution.report import Report, Status
from consecution.runtime.assembly import SOURCE_TASK
from consecution.runtime.local_run import LocalRun, end_error, finished_before, push_into
from consecution.sources.manual import ManualSource, Receipt

IDLE_WAIT_S = 0.05


def start(plan: Plan, pipeline: Any, iterable: Any, options: Any) -> Running:
    """Begin all nodes; the stream moves when the caller waits or pushes."""
    return InlineRunning(plan, pipeline, iterable)


class _Queue:
    """The outbox of every task: one queue for all messages."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[TaskIndex, Message]] = deque()

    def send(self, target: TaskIndex, message: Message) -> None:
        self.waiting.append((target, message))


class InlineRunning(Running):
    """A run that moves only while its caller waits for it."""

    def __init__(self, plan: Plan, pipeline: Any, iterable: Any) -> None:
        self._queue = _Queue()
        self._run = LocalRun(plan, pipeline, iterable, lambda task: self._queue, may_block=True)
        self._ending = Ending(self._run.end_stages())
        self._stopping = False
        self._aborted = False
        state = self._run.state
        if state is not None and (report := finished_before(state)) is not None:
            self._run.close()
            state.close()
            self._run.report = report
            return
        try:
            self._run.begin()
        except BaseException:
            self._run.abandon()
            raise

    # -- the contract ----------------------------------------------------------------------------

    def push(self, item: Any, timeout_s: float | None = None) -> Receipt:
        """Push and process the item at once: the receipt is done, unless the item waits for a retry."""
        self._run.require_open()
        receipt = push_into(self._run.source, item, timeout_s)
        self._guarded_turns()
        return receipt

    def status(self) -> Status:
        if self._run.report is not None:
            return self._run.status("finished")
        return self._run.status("stopping" if self._stopping else "running")

    def request_stop(self) -> None:
        self._stopping = True
        self._run.source_host.stop_reading()

    def abort(self) -> None:
        self._aborted = True

    def finish_input(self) -> None:
        if isinstance(self._run.source, ManualSource):
            self._run.source.finish()

    def join(self, timeout_s: float | None) -> Report | None:
        """Run until the end, or until the time is over."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while self._run.report is None:
            worked = self._guarded_turns()
            if self._is_over():
                stopped = self._aborted or not self._ending.finished
                return self._run.finish(stopped=stopped)
            if deadline_s is not None and time.monotonic() >= deadline_s:
                return None
            if not worked:
                self._wait(deadline_s)
        return self._run.report

    # -- driving ---------------------------------------------------------------------------------

    def _guarded_turns(self) -> bool:
        try:
            return self._turn()
        except BaseException:
            self._run.abandon()
            raise

    def _turn(self) -> bool:
        """Read a little, and carry all messages through; whether anything was done."""
        if self._aborted:
            return True
        worked = self._run.source_host.turn()
        while self._queue.waiting and not self._aborted:
            worked = True
            self._deliver()
        self._end_what_is_due()
        return worked

    def _deliver(self) -> None:
        """Deliver every waiting message, then let each task acknowledge what it got."""
        waiting, tasks, source = self._queue.waiting, self._run.tasks, self._run.source_host
        while waiting:
            target, message = waiting.popleft()
            if target == SOURCE_TASK:
                source.receive(message)
            else:
                tasks[target].receive(message)
        for host in tasks.values():
            host.turn()
            host.flush()
        if not waiting:
            source.host.turn()

    def _end_what_is_due(self) -> None:
        if self._stopping or not self._run.source_host.origin.finished or self._ending.started:
            return
        due = self._ending.source_finished()
        while due:
            for task in due:
                self._end(task)
            due = [next_task for task in due for next_task in self._ending.task_ended(task)]

    def _end(self, task: TaskIndex) -> None:
        host = self._run.tasks[task]
        problem: BaseException | None = None
        try:
            host.end()
        except Exception as error:
            problem = error
        while not host.ended:
            host.turn()
            if self._queue.waiting:
                self._deliver()
        if problem is not None:
            raise end_error(host.name, problem)

    def _is_over(self) -> bool:
        if self._aborted or self._ending.finished:
            return True
        return self._stopping and self._run.source_host.origin.settled

    def _wait(self, deadline_s: float | None) -> None:
        """Nothing to do just now: a retry is not yet due."""
        due_s = self._run.source_host.next_wake_s()
        wait_s = IDLE_WAIT_S if due_s is None else min(due_s, IDLE_WAIT_S)
        if deadline_s is not None:
            wait_s = min(wait_s, max(0.0, deadline_s - time.monotonic()))
        time.sleep(wait_s)
