"""A thread for each task, live objects between them.

The sources' thread is also the director: it tells the others when to end and when to quit. Node code
runs only in its task's thread, ``begin`` and ``close`` included.
"""

from __future__ import annotations

import functools
import os
import select
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from consecution.engine import Running
from consecution.plan import Plan
from consecution.protocol.ending import Ending
from consecution.protocol.values import USER_ERRORS, Frame, Message, TaskIndex
from consecution.report import Report, Status
from consecution.runtime.assembly import Host, drain_stages, end_stages
from consecution.runtime.local_run import LocalRun, end_error, finished_before, push_into, task_error
from consecution.runtime.occupation import wait_looking
from consecution.runtime.offspring import come_back_alone, end_if_forked
from consecution.runtime.task_host import ANSWER_S
from consecution.sources.manual import Receipt

MESSAGES_PER_TURN = 8
LONGEST_WAIT_S = 0.5
ASK_EVERY_S = 0.005
"""How often a source without a descriptor is asked, while it has nothing."""
QUIT_WAIT_S = 5.0
"""How long a hanging task is waited for when a run is aborted; a thread cannot be killed."""


def start(plan: Plan, pipeline: Any, iterable: Any, options: Any) -> Running:
    """Start all threads; returns when every ``begin`` has returned."""
    return ThreadRunning(plan, pipeline, iterable)


@dataclass(frozen=True, slots=True)
class _End:
    """To a task: run ``end``; or, ``draining``, only say when all it has pushed is processed."""

    draining: bool = False


@dataclass(frozen=True, slots=True)
class _Woken:
    """To a task: what runs beside it has something for it."""


@dataclass(frozen=True, slots=True)
class _Quit:
    """To a task: close and leave."""


@dataclass(frozen=True, slots=True)
class _Told:
    """To the director: a task has begun, ended or closed, or could not."""

    task: TaskIndex
    what: str
    error: BaseException | None


class _Letter(NamedTuple):
    """A message to a source's task."""

    target: TaskIndex
    message: Message


class _Inbox:
    """The director's messages, with a descriptor to wait on together with those of the sources.

    ``put`` and ``wake`` may be called by any thread, also by a signal handler (so the lock is one that its
    holder may take again), and also after ``close``, when nobody listens any more.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Letter | _Told] = deque()
        self._lock = threading.RLock()
        self._readable, self._wake = os.pipe()
        self._sleeping = False

    def put(self, message: _Letter | _Told) -> None:
        self._waiting.append(message)
        if self._sleeping:
            self.wake()

    def wake(self) -> None:
        with self._lock:
            self._sleeping = False
            if self._wake >= 0:
                os.write(self._wake, b".")

    def take(self) -> _Letter | _Told | None:
        return self._waiting.popleft() if self._waiting else None

    def wait(self, also: Iterable[int | None], timeout_s: float) -> None:
        """Wait until a message comes, one of ``also`` is readable, or the time is over."""
        self._sleeping = True
        if not self._waiting:
            poll = select.poll()
            for fd in (self._readable, *also):
                if fd is not None:
                    poll.register(fd, select.POLLIN)
            if any(fd == self._readable for fd, _ in poll.poll(timeout_s * 1000)):
                os.read(self._readable, 4096)
        self._sleeping = False

    def close(self) -> None:
        with self._lock:
            if self._wake >= 0:
                os.close(self._readable)
                os.close(self._wake)
                self._readable = self._wake = -1


class _Outbox:
    """One for all tasks: queues are safe for any thread."""

    def __init__(self, inbox: _Inbox, queues: dict[TaskIndex, SimpleQueue[Any]]) -> None:
        self._inbox = inbox
        self._queues = queues

    def send(self, target: TaskIndex, message: Message) -> None:
        if type(message) is Frame:
            message.sent_s = time.monotonic()
        queue = self._queues.get(target)
        if queue is None:
            self._inbox.put(_Letter(target, message))
        else:
            queue.put(message)


def _take_some(queue: SimpleQueue[Any], timeout_s: float | None) -> Iterator[Any]:
    """Wait for a message, not longer than that; then it, and a few more if they are there, unless it took long."""
    try:
        first = queue.get(timeout=timeout_s)
    except Empty:
        return
    until_s = time.monotonic() + ANSWER_S
    yield first
    for _ in range(MESSAGES_PER_TURN - 1):
        if time.monotonic() > until_s:
            return
        try:
            yield queue.get_nowait()
        except Empty:
            return


class ThreadRunning(Running):
    """A run in threads of this process."""

    def __init__(self, plan: Plan, pipeline: Any, iterable: Any) -> None:
        self._queues: dict[TaskIndex, SimpleQueue[Any]] = {
            TaskIndex(task.index): SimpleQueue() for task in plan.tasks if task.index not in plan.source_tasks
        }
        self._home = os.getpid()
        self._stopping = False
        self._aborted = False
        self._aborted_s = 0.0
        self._given_up = False
        self._opened = threading.Event()
        self._over = threading.Event()
        self._open_error: BaseException | None = None
        self._error: BaseException | None = None
        self._closed_problem: BaseException | None = None
        self._threads: dict[TaskIndex, threading.Thread] = {}
        self._alive: set[TaskIndex] = set()
        self._director: threading.Thread | None = None
        self._inbox = _Inbox()
        try:
            outbox = _Outbox(self._inbox, self._queues)
            self._run = LocalRun(
                plan,
                pipeline,
                iterable,
                lambda task: outbox,
                may_block=False,
                stop=self.request_stop,
                wake_of=lambda task: functools.partial(self._queues[task].put, _Woken()),
            )
        except BaseException:
            self._inbox.close()
            raise
        self._ending = Ending(end_stages(plan))
        self._drain = Ending(drain_stages(plan))
        if self._run.state is not None and (report := finished_before(self._run.state)) is not None:
            self._run.leave(report)
            self._inbox.close()
            self._over.set()
            return
        self._let_steer()
        self._begin_tasks()
        self._start_director()

    def _let_steer(self) -> None:
        try:
            self._run.let_steer(self)
        except BaseException as error:
            self._end_with(error)
            raise
        if self._run.steering is not None:
            self._run.steering.serve()

    def _begin_tasks(self) -> None:
        try:
            come_back_alone(self._run.pipeline._call_user_begin)
            for task in self._queues:
                name = f"consecution-{self._run.plan.task(task).name}"
                self._threads[task] = threading.Thread(target=self._work, args=(task,), name=name, daemon=True)
                self._alive.add(task)
                self._threads[task].start()
            self._await_begun()
        except BaseException as error:
            self._end_with(error)
            self._join_threads()
            raise

    def _await_begun(self) -> None:
        waiting, problem = set(self._queues), None
        while waiting:
            told = self._inbox.take()
            if not isinstance(told, _Told):
                self._inbox.wait((), LONGEST_WAIT_S)
                continue
            waiting.discard(told.task)
            problem = problem or told.error
        if problem is not None:
            raise problem

    def _start_director(self) -> None:
        """The sources are opened by the thread that reads them; what that raises is raised here."""
        self._director = threading.Thread(target=self._direct, name="consecution-source", daemon=True)
        self._director.start()
        try:
            self._opened.wait()
        except BaseException:
            self.abort()
            raise
        if self._open_error is not None:
            self._join_threads()
            raise self._open_error

    # -- a task's thread -------------------------------------------------------------------------

    def _work(self, task: TaskIndex) -> None:
        """Whatever happens here, the director is told: it waits for every task to have begun, and to be closed."""
        problem: BaseException | None = None
        try:
            if self._begin(task):
                self._serve_to_the_end(self._run.tasks[task], self._queues[task])
                self._run.close_task(task)
        except BaseException as error:
            problem = error
        finally:
            self._inbox.put(_Told(task, "closed", problem))

    def _begin(self, task: TaskIndex) -> bool:
        try:
            self._run.begin_task(task)
        except BaseException as error:
            self._inbox.put(_Told(task, "begun", error))
            self._await_quit(self._queues[task])
            return False
        self._inbox.put(_Told(task, "begun", None))
        return True

    def _serve_to_the_end(self, host: Host, queue: SimpleQueue[Any]) -> None:
        try:
            self._serve(host, queue)
        except BaseException as error:
            end_if_forked(self._home)
            self._inbox.put(_Told(host.task, "failed", task_error(host.name, error, host.raised_in or "process")))
            self._await_quit(queue)

    @staticmethod
    def _await_quit(queue: SimpleQueue[Any]) -> None:
        while not isinstance(queue.get(), _Quit):
            pass

    def _serve(self, host: Host, queue: SimpleQueue[Any]) -> None:
        ending, worked = False, True
        host.replay()
        while True:
            for message in _take_some(queue, 0.0 if worked else host.next_wake_s()):
                if isinstance(message, _Quit) or self._aborted:
                    return
                if isinstance(message, _End):
                    ending = True
                    self._end(host, message)
                elif not isinstance(message, _Woken):
                    host.receive(message)
                    end_if_forked(self._home)
            worked = host.turn()
            end_if_forked(self._home)
            host.flush()
            if ending and host.ended:
                ending = False
                self._inbox.put(_Told(host.task, "ended", None))

    def _end(self, host: Host, order: _End) -> None:
        try:
            if order.draining:
                host.drain()
            else:
                host.end()
        except USER_ERRORS as error:
            self._inbox.put(_Told(host.task, "failed", end_error(host.name, error)))

    # -- the director's thread -------------------------------------------------------------------

    def _direct(self) -> None:
        try:
            self._open_sources()
            while not self._is_over():
                self._turn()
            self._quit_tasks(wait_s=None)
            if self._closed_problem is not None:
                raise self._closed_problem
            self._run.finish(stopped=self._aborted or not self._ending.finished)
            self._error = self._error or self._run.stop_error
        except BaseException as error:
            self._end_with(error)
        finally:
            try:
                self._inbox.close()
            finally:
                self._over.set()

    def _open_sources(self) -> None:
        try:
            self._run.open_sources()
        except BaseException as error:
            self._open_error = error
            raise
        finally:
            self._opened.set()

    def _end_with(self, error: BaseException) -> None:
        self._error = self._error or error
        self._quit_tasks(wait_s=QUIT_WAIT_S)
        self._run.abandon(error)
        self._inbox.close()

    def _turn(self) -> None:
        run, worked = self._run, False
        while (message := self._inbox.take()) is not None:
            worked = True
            if isinstance(message, _Told):
                self._hear(message)
            else:
                run.source_hosts[message.target].receive(message.message)
        for source in run.source_hosts.values():
            worked = source.turn() or worked
            end_if_forked(self._home)
        if not self._stopping and run.sources_finished:
            self._order_end(self._ending.source_finished())
        elif self._stopping and not self._ending.started and run.sources_drained:
            self._order_end(self._drain.source_finished())
        if not worked and not self._is_over():
            self._wait()

    def _wait(self) -> None:
        """Wait for a message, a source, or the next thing that is due."""
        fds = self._run.readable_fds
        wait_s = ASK_EVERY_S if None in fds else LONGEST_WAIT_S
        wake_s = self._run.next_source_wake_s()
        self._inbox.wait(fds, wait_s if wake_s is None else min(wake_s, wait_s))

    def _hear(self, told: _Told) -> None:
        if told.what == "closed":
            self._alive.discard(told.task)
        if told.error is not None:
            raise told.error
        if told.what == "ended":
            self._order_end((self._drain if self._drain.started else self._ending).task_ended(told.task))

    def _order_end(self, tasks: list[TaskIndex]) -> None:
        for task in tasks:
            self._queues[task].put(_End(draining=self._drain.started))

    def _is_over(self) -> bool:
        if self._aborted or self._ending.finished:
            return True
        return self._drain.finished

    def _quit_tasks(self, wait_s: float | None) -> None:
        """Tell all tasks to quit, and wait for them; in an abort for a hanging one only so long."""
        for queue in self._queues.values():
            queue.put(_Quit())
        deadline_s = None if wait_s is None else time.monotonic() + wait_s
        while self._alive and (deadline_s is None or time.monotonic() < deadline_s):
            if deadline_s is None and self._aborted:
                deadline_s = time.monotonic() + QUIT_WAIT_S
            told = self._inbox.take()
            if isinstance(told, _Told) and told.what == "closed":
                self._alive.discard(told.task)
                self._closed_problem = self._closed_problem or told.error
            elif told is None:
                self._inbox.wait((), 0.1)

    # -- the contract ----------------------------------------------------------------------------

    def push(self, item: Any, timeout_s: float | None = None, *, source: str | None = None) -> Receipt:
        self._run.require_open(stopping=self._stopping or self._aborted)
        return push_into(self._run.plan, self._run.sources, item, timeout_s, source)

    def status(self) -> Status:
        return self._run.status("stopping" if self._stopping else self._run.reading)

    def request_stop(self) -> None:
        self._stopping = True
        self._run.stop_reading()
        self._inbox.wake()

    def abort(self) -> None:
        self._aborted_s = self._aborted_s or time.monotonic()
        self._aborted = True
        self._inbox.wake()

    def pause(self) -> None:
        self._run.pause(paused=True)
        self._inbox.wake()

    def resume(self) -> None:
        self._run.pause(paused=False)
        self._inbox.wake()

    def finish_input(self) -> None:
        self._run.finish_input()

    def join(self, timeout_s: float | None) -> Report | None:
        if not wait_looking(self._over, timeout_s, self._give_up_what_hangs):
            return None
        self._join_threads()
        if self._error is not None:
            raise self._error
        return self._run.report

    def _give_up_what_hangs(self) -> None:
        """After an abort: do not wait for a director that hangs in user code; the tasks need not wait for it either."""
        since_s = time.monotonic() - QUIT_WAIT_S
        if not self._aborted or self._aborted_s > since_s or (error := self._run.give_up(since_s)) is None:
            return
        self._error, self._given_up = error, True
        for queue in self._queues.values():
            queue.put(_Quit())
        self._over.set()

    def _join_threads(self) -> None:
        """No thread is left behind, but for one that hangs in user code."""
        if self._director is not None and not self._given_up:
            self._director.join()
        for task, thread in self._threads.items():
            if task not in self._alive:
                thread.join()
