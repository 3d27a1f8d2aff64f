"""A thread for each task, live objects between them.

The source's thread is also the director: it tells the others when to end and when to quit. Node code
runs only in its task's thread, ``begin`` and ``close`` included.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from consecution.engine import Running
from consecution.plan import Plan
from consecution.protocol.ending import Ending
from consecution.protocol.values import Message, TaskIndex
from consecution.report import Report, Status
from consecution.runtime.assembly import SOURCE_TASK
from consecution.runtime.local_run import LocalRun, end_error, finished_before, push_into
from consecution.runtime.task_host import TaskHost
from consecution.sources.manual import ManualSource, Receipt

MESSAGES_PER_TURN = 8
LONGEST_WAIT_S = 0.5


def start(plan: Plan, pipeline: Any, iterable: Any, options: Any) -> Running:
    """Start all threads; returns when every ``begin`` has returned."""
    return ThreadRunning(plan, pipeline, iterable)


@dataclass(frozen=True, slots=True)
class _End:
    """To a task: run ``end``."""


@dataclass(frozen=True, slots=True)
class _Quit:
    """To a task: close and leave."""


@dataclass(frozen=True, slots=True)
class _Told:
    """To the director: a task has begun, ended or closed, or could not."""

    task: TaskIndex
    what: str
    error: BaseException | None


class _Inbox:
    """The director's messages, with a descriptor to wait on together with the source's."""

    def __init__(self) -> None:
        self._waiting: deque[Message | _Told] = deque()
        self._readable, self._wake = os.pipe()
        self._sleeping = False

    def put(self, message: Message | _Told) -> None:
        self._waiting.append(message)
        if self._sleeping:
            self.wake()

    def wake(self) -> None:
        self._sleeping = False
        os.write(self._wake, b".")

    def take(self) -> Message | _Told | None:
        return self._waiting.popleft() if self._waiting else None

    def wait(self, also: int | None, timeout_s: float | None) -> None:
        """Wait until a message comes, ``also`` is readable, or the time is over."""
        self._sleeping = True
        if not self._waiting:
            fds = [self._readable] if also is None else [self._readable, also]
            ready = select.select(fds, [], [], timeout_s)[0]
            if self._readable in ready:
                os.read(self._readable, 4096)
        self._sleeping = False

    def close(self) -> None:
        os.close(self._readable)
        os.close(self._wake)


class _Outbox:
    """One for all tasks: queues are safe for any thread."""

    def __init__(self, inbox: _Inbox, queues: dict[TaskIndex, SimpleQueue[Any]]) -> None:
        self._inbox = inbox
        self._queues = queues

    def send(self, target: TaskIndex, message: Message) -> None:
        if target == SOURCE_TASK:
            self._inbox.put(message)
        else:
            self._queues[target].put(message)


def _take_some(queue: SimpleQueue[Any]) -> Iterator[Any]:
    """Wait for a message; then that, and a few more if they are there already."""
    yield queue.get()
    for _ in range(MESSAGES_PER_TURN - 1):
        try:
            yield queue.get_nowait()
        except Empty:
            return


class ThreadRunning(Running):
    """A run in threads of this process."""

    def __init__(self, plan: Plan, pipeline: Any, iterable: Any) -> None:
        self._inbox = _Inbox()
        self._queues: dict[TaskIndex, SimpleQueue[Any]] = {
            TaskIndex(task.index): SimpleQueue() for task in plan.tasks if task.index != SOURCE_TASK
        }
        outbox = _Outbox(self._inbox, self._queues)
        self._run = LocalRun(plan, pipeline, iterable, lambda task: outbox, may_block=False)
        self._ending = Ending(self._run.end_stages())
        self._stopping = False
        self._aborted = False
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._alive: set[TaskIndex] = set()
        self._closed_problem: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._director: threading.Thread | None = None
        state = self._run.state
        if state is not None and (report := finished_before(state)) is not None:
            self._run.close()
            state.close()
            self._run.report = report
            self._over.set()
            return
        self._begin()

    def _begin(self) -> None:
        try:
            self._run.pipeline._call_user_begin()
            for task in self._queues:
                thread = threading.Thread(
                    target=self._work, args=(task,), name=f"consecution-{self._run.plan.task(task).name}"
                )
                thread.daemon = True
                self._threads.append(thread)
                self._alive.add(task)
                thread.start()
            self._await_begun()
            self._run.open_source()
        except BaseException:
            self._quit_tasks(wait_s=5.0)
            self._run.abandon()
            raise
        self._director = threading.Thread(target=self._direct, name="consecution-source", daemon=True)
        self._director.start()

    def _await_begun(self) -> None:
        waiting, problem = set(self._queues), None
        while waiting:
            told = self._inbox.take()
            if not isinstance(told, _Told):
                self._inbox.wait(None, LONGEST_WAIT_S)
                continue
            waiting.discard(told.task)
            problem = problem or told.error
        if problem is not None:
            raise problem

    # -- a task's thread -------------------------------------------------------------------------

    def _work(self, task: TaskIndex) -> None:
        host = self._run.tasks[task]
        queue = self._queues[task]
        try:
            self._run.begin_task(task)
        except BaseException as error:
            self._inbox.put(_Told(task, "begun", error))
            self._await_quit(queue)
            self._inbox.put(_Told(task, "closed", None))
            return
        self._inbox.put(_Told(task, "begun", None))
        problem: BaseException | None = None
        try:
            self._serve(host, queue)
        except BaseException as error:
            self._inbox.put(_Told(task, "failed", error))
            self._await_quit(queue)
        try:
            host.close()
        except Exception as error:
            problem = error
        self._inbox.put(_Told(task, "closed", problem))

    @staticmethod
    def _await_quit(queue: SimpleQueue[Any]) -> None:
        while not isinstance(queue.get(), _Quit):
            pass

    def _serve(self, host: TaskHost, queue: SimpleQueue[Any]) -> None:
        ending = False
        while True:
            for message in _take_some(queue):
                if isinstance(message, _Quit):
                    return
                if isinstance(message, _End):
                    ending = True
                    self._end(host)
                else:
                    host.receive(message)
            host.turn()
            host.flush()
            if ending and host.ended:
                ending = False
                self._inbox.put(_Told(host.task, "ended", None))

    def _end(self, host: TaskHost) -> None:
        try:
            host.end()
        except Exception as error:
            self._inbox.put(_Told(host.task, "failed", end_error(host.name, error)))

    # -- the director's thread -------------------------------------------------------------------

    def _direct(self) -> None:
        try:
            while not self._is_over():
                self._turn()
            self._quit_tasks(wait_s=None if not self._aborted else 5.0)
            if self._closed_problem is not None:
                raise self._closed_problem
            self._run.finish(stopped=self._aborted or not self._ending.finished)
        except BaseException as error:
            self._error = error
            self._quit_tasks(wait_s=5.0)
            try:
                self._run.abandon()
            except Exception as second:
                error.add_note(f"and closing failed: {second}")
        finally:
            self._over.set()

    def _turn(self) -> None:
        source = self._run.source_host
        worked = False
        while (message := self._inbox.take()) is not None:
            worked = True
            if isinstance(message, _Told):
                self._hear(message)
            else:
                source.receive(message)
        worked = source.turn() or worked
        if source.origin.finished and not self._stopping:
            self._order_end(self._ending.source_finished())
        if not worked and not self._is_over():
            fd = self._run.source.fileno() if source.wants_to_read else None
            wake_s = source.next_wake_s()
            self._inbox.wait(fd, LONGEST_WAIT_S if wake_s is None else min(wake_s, LONGEST_WAIT_S))

    def _hear(self, told: _Told) -> None:
        if told.what == "closed":
            self._alive.discard(told.task)
            self._closed_problem = self._closed_problem or told.error
        elif told.error is not None:
            raise told.error
        elif told.what == "ended":
            self._order_end(self._ending.task_ended(told.task))

    def _order_end(self, tasks: list[TaskIndex]) -> None:
        for task in tasks:
            self._queues[task].put(_End())

    def _is_over(self) -> bool:
        if self._aborted or self._ending.finished:
            return True
        return self._stopping and self._run.source_host.origin.settled

    def _quit_tasks(self, wait_s: float | None) -> None:
        """Tell all tasks to quit; wait for them, but for a hanging one only so long."""
        for queue in self._queues.values():
            queue.put(_Quit())
        deadline_s = None if wait_s is None else time.monotonic() + wait_s
        while self._alive and (deadline_s is None or time.monotonic() < deadline_s):
            told = self._inbox.take()
            if isinstance(told, _Told) and told.what == "closed":
                self._alive.discard(told.task)
                self._closed_problem = self._closed_problem or told.error
            elif told is None:
                self._inbox.wait(None, 0.1)

    # -- the contract ----------------------------------------------------------------------------

    def push(self, item: Any, timeout_s: float | None = None) -> Receipt:
        self._run.require_open()
        return push_into(self._run.source, item, timeout_s)

    def status(self) -> Status:
        if self._over.is_set():
            return self._run.status("finished")
        return self._run.status("stopping" if self._stopping else "running")

    def request_stop(self) -> None:
        self._stopping = True
        self._run.source_host.stop_reading()
        self._wake()

    def abort(self) -> None:
        self._aborted = True
        self._wake()

    def _wake(self) -> None:
        if not self._over.is_set():
            self._inbox.wake()

    def finish_input(self) -> None:
        if isinstance(self._run.source, ManualSource):
            self._run.source.finish()

    def join(self, timeout_s: float | None) -> Report | None:
        if not self._over.wait(timeout_s):
            return None
        if self._director is not None:
            self._director.join()
        if self._error is not None:
            raise self._error
        return self._run.report
