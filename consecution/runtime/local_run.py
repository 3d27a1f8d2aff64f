"""What inline and thread runs share: hosts in one process, their state directory and their report."""

from __future__ import annotations

import functools
import gc
import time
import weakref
from bdb import BdbQuit
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from consecution.errors import (
    ConsecutionError,
    NotRunningError,
    StoppedByItemError,
    UsageError,
    WorkerError,
    add_note,
    text_of,
)
from consecution.plan import Plan
from consecution.protocol.origin import FailureEntry
from consecution.protocol.values import USER_ERRORS, TaskIndex
from consecution.report import Report, Status
from consecution.runtime import assembly
from consecution.runtime.books import Books, read_books
from consecution.runtime.main_module import know_script_by_all_names
from consecution.runtime.occupation import LastHook
from consecution.runtime.offspring import come_back_alone
from consecution.runtime.origin_host import OriginHost, Outbox, SourceHost, live_codec
from consecution.runtime.replicas import make_replicas
from consecution.runtime.state import StateDir, open_state_dir
from consecution.runtime.steering import Steered, Steering
from consecution.sink import Sink
from consecution.source import Source
from consecution.sources.manual import ManualSource, Receipt
from consecution.telling import tell


def open_run_state(plan: Plan) -> StateDir | None:
    """The state directory of a run; None where the robustness keeps nothing on disk."""
    if not plan.options.robust:
        return None
    know_script_by_all_names()
    return open_state_dir(plan.options.state_dir, plan, fresh=plan.options.fresh)


def finished_before(state: StateDir) -> Report | None:
    """The report of the run that finished in this state directory; None if there is work to do."""
    found = state.finished_report
    return None if found is None else Report.from_dict(found, already_finished=True)


def status_of(report: Report) -> Status:
    """The last status of a run whose report this is."""
    return Status(
        "stopped" if report.stopped else "finished",
        report.emitted,
        report.completed,
        report.failed,
        report.pending,
        report.replayed,
        report.restarts,
        report.seconds,
        report.nodes,
        report.pending_below,
        report.handled,
        report.sources,
        completed_before=report.completed_before,
    )


def push_into(
    plan: Plan, sources: Mapping[TaskIndex, Source], item: Any, timeout_s: float | None, wanted: str | None
) -> Receipt:
    """Push into the manual source, or the one of this name; UsageError where there is none, or nobody knows which."""
    manual = {plan.task(task).node: source for task, source in sources.items() if isinstance(source, ManualSource)}
    if not manual:
        read = ", ".join(map(repr, sources.values()))
        raise UsageError(f"push() goes with Producer('manual'); this run reads {read}")
    if wanted is None and len(manual) == 1:
        return next(iter(manual.values())).push(item, timeout_s)
    if wanted not in manual:
        what = "several manual producers" if wanted is None else f"no manual producer {wanted!r}"
        names = " or ".join(f"source={name!r}" for name in manual)
        raise UsageError(f"push(): the pipeline has {what}; say {names}")
    return manual[wanted].push(item, timeout_s)


def manual_sources(sources: Mapping[TaskIndex, Source]) -> list[ManualSource]:
    """Those that are pushed into."""
    return [source for source in sources.values() if isinstance(source, ManualSource)]


class LocalRun:
    """All hosts of a run that lives in one process.

    ``outbox_of`` gives each task its way to the others, ``wake_of`` what ends the waiting of its thread; ``stop`` is
    called where an item is to stop the run. The hosts are driven by an engine; this class opens and closes them and
    sums them up. A run ends in `finish`, `leave` or `abandon`, all three of which close everything; ``closed`` says so.
    """

    def __init__(
        self,
        plan: Plan,
        pipeline: Any,
        iterable: Any,
        outbox_of: Callable[[TaskIndex], Outbox],
        *,
        may_block: bool,
        stop: Callable[[], None],
        wake_of: Callable[[TaskIndex], Callable[[], None] | None] = lambda task: None,
    ) -> None:
        _check_not_running(pipeline)
        self.plan = plan
        self.pipeline = pipeline
        self.state = open_run_state(plan)
        self.report: Report | None = None
        self.closed = False
        self.steering: Steering | None = None
        self._end_hook = LastHook(pipeline._call_user_end)
        self._stop = stop
        self._wake_of = wake_of
        self._stop_cause: tuple[TaskIndex, FailureEntry] | None = None
        self.tasks: dict[TaskIndex, assembly.Host] = {}
        self._opened: list[TaskIndex] = []
        self._started_s = time.monotonic()
        self._last_status: Status | None = None
        try:
            self.sources = assembly.make_sources(plan, iterable)
            self._expected = assembly.expected_items(self.sources)
            for source in self.sources.values():
                source.may_block = may_block and len(self.sources) == 1
            self._make_hosts(outbox_of)
            self._completed_before = self._books().total.completed
        except BaseException:
            if self.state is not None:
                self.state.close(keep=False)
            raise
        _RUNS.add(self)

    def _make_hosts(self, outbox_of: Callable[[TaskIndex], Outbox]) -> None:
        plan = self.plan
        epoch = self.state.epoch if self.state is not None else "memory"
        codecs = live_codec(robust=plan.options.robust)
        for task, node in make_replicas(plan, self.pipeline).items():
            self.tasks[task] = assembly.make_host(
                plan,
                task,
                node,
                codecs,
                outbox_of(task),
                path=None if self.state is None else self.state.origin_path(plan.task(task).name),
                epoch=epoch,
                lets_through=(BdbQuit,),
                on_stop=self._stop_for,
                wake=self._wake_of(task),
            )
        self.source_hosts: dict[TaskIndex, SourceHost] = {
            task: assembly.make_source_host(
                plan,
                task,
                source,
                codecs,
                outbox_of(task),
                journal_path=None if self.state is None else self.state.origin_path(plan.sources[task]),
                epoch=epoch,
                now=time.time,
                on_stop=self._stop_for,
            )
            for task, source in self.sources.items()
        }

    def _stop_for(self, origin: TaskIndex, entry: FailureEntry) -> None:
        """An item is to stop the run; the first one is the reason. Any task's thread may call it."""
        if self._stop_cause is None:
            self._stop_cause = origin, entry
        self._stop()

    @property
    def stop_error(self) -> StoppedByItemError | None:
        """What the run, which is over, is to end with if it was stopped by an item."""
        if self._stop_cause is None or self.report is None:
            return None
        return assembly.stop_error(self.plan, *self._stop_cause, self.report)

    # -- life ------------------------------------------------------------------------------------

    def let_steer(self, run: Steered) -> None:
        """From now on the run may be watched and steered from outside, if it has a state directory of its own."""
        if self.state is not None and not self.state.temporary:
            self.steering = Steering(run, self.state.path, self.plan.options, _say)

    def begin(self) -> None:
        """Run all ``begin``s, parents first, then open the sources and let them go."""
        come_back_alone(self.pipeline._call_user_begin)
        for task in self.tasks:
            self.begin_task(task)
            self._opened.append(task)
        for host in self.tasks.values():
            host.replay()
        self.open_sources()

    def begin_task(self, task: TaskIndex) -> None:
        """Run one ``begin``; WorkerError says which task's it was that raised."""
        host = self.tasks[task]
        try:
            host.begin()
        except ConsecutionError:
            raise
        except USER_ERRORS as error:
            what = "open" if isinstance(host.node, Sink) else "begin"
            raise _user_error(host.name, what, error, "the run was not started") from error

    def close_task(self, task: TaskIndex) -> None:
        """Close one sink; WorkerError says which one's ``close`` raised."""
        host = self.tasks[task]
        try:
            host.close()
        except USER_ERRORS as error:
            raise _user_error(host.name, "close", error, "what it wrote may be incomplete") from error

    def open_sources(self) -> None:
        """Open all sources where their journals stand, then let the origins go."""
        for host in self._origin_hosts():
            host.at_work = self._is_at_work
        for source in self.source_hosts.values():
            source.open()
        for source in self.source_hosts.values():
            source.origin.replay(time.time())

    def _close(self, seen_as: str) -> None:
        """Close sources, journals and sinks, all of them; the first error is raised at the end.

        From now on the run's status is the one of this moment.
        """
        if self.closed:
            return
        self._last_status = self.status(seen_as)
        self.closed = True
        problem: BaseException | None = None
        closers: list[Callable[[], None]] = [source.close for source in self.source_hosts.values()]
        closers += [functools.partial(self.close_task, task) for task in self._opened]
        for close in closers:
            try:
                close()
            except BaseException as error:  # what is still open would stay locked
                problem = problem or error
        if problem is not None:
            raise problem

    def leave(self, report: Report) -> None:
        """The run was finished before: there is nothing to do."""
        self.report = report
        self._close("finished")
        self._last_status = status_of(report)
        assert self.state is not None
        self.state.close()

    def abandon(self, error: BaseException) -> None:
        """After ``error``: close what can be closed, keep what is open in the state directory."""
        try:
            self._close("failed")
        except Exception as second:
            add_note(error, f"and closing failed: {text_of(second)}")
        try:
            if self.steering is not None:
                self.steering.end("failed", self._last_status, error)
        finally:
            self._leave_state(error)

    def _leave_state(self, error: BaseException) -> None:
        if self.state is None:
            return
        pending = self._books().pending
        self.state.close(keep=bool(pending))
        if pending and self.state.temporary:
            add_note(error, f"what was open is kept: run again with state_dir={str(self.state.path)!r}")

    def finish(self, *, stopped: bool) -> Report:
        """Close everything and sum it up. ``stopped``: before the stream had ended.

        Raises what a source ended with, what a sink's ``close`` raises, and what the pipeline's ``end`` does.
        """
        plan, state = self.plan, self.state
        for source in self.source_hosts.values():
            source.raise_problem()
        failures = self._failures_in_memory() if state is None else []
        seen_as = "stopped" if stopped else "finished"
        self._close(seen_as)
        if state is not None:
            books, failures = read_books(state, plan, self._books().sources)
            self._last_status = self._status(seen_as, books)
        status = self.status(seen_as)
        result = None if stopped else self._end_hook.call()
        keep_state = bool(status.open) or self._stop_cause is not None or (state is not None and not state.temporary)
        report = assembly.make_report(
            plan,
            status,
            failures,
            confirmed=self._confirmed() and not stopped,
            stopped=stopped,
            state_dir=_shown_dir(state, keep_state),
            result=result,
        )
        if state is not None:
            if not stopped and not report.open:
                state.finish(report.to_dict())
            if self.steering is not None:
                self.steering.end(status.state, status)
            state.close(keep=keep_state)
        self.report = report
        return report

    def give_up(self, since_s: float) -> ConsecutionError | None:
        """What the run is to end with if user code hangs since before ``since_s`` in the thread that drives it.

        Where it is a source, that thread closes the run should it ever come back; after the pipeline's ``end`` nothing
        but the state directory is open, and that is closed here.
        """
        for source in self.source_hosts.values():
            if (hanging := source.hanging(since_s)) is not None:
                if self.state is not None and self.state.temporary:
                    hanging.add_note(f"what was open is kept: run again with state_dir={str(self.state.path)!r}")
                return hanging
        error = self._end_hook.give_up(since_s)
        if error is not None:
            self.abandon(error)
        return error

    @property
    def in_last_user_code(self) -> str:
        """Which user code runs just now while the run is closed; "" if none does."""
        for source in self.source_hosts.values():
            if source.in_source:
                return f"a method of the source {source.source!r}"
        for host in self.tasks.values():
            if host.occupied_with:
                return f"{host.name}: {host.occupied_with}()"
        return "" if self._end_hook.since_s is None else "the pipeline's end()"

    def _failures_in_memory(self) -> list[FailureEntry]:
        keep = self.plan.options.keep_failed
        return [entry for host in self._origin_hosts() for entry in host.store.failures(keep)]

    def _confirmed(self) -> bool:
        return all(host.confirmed for host in self._origin_hosts())

    def _is_at_work(self) -> bool:
        return any(host.occupied_with for host in self.tasks.values())

    def _origin_hosts(self) -> list[OriginHost]:
        below = [host.origin_host for host in self.tasks.values() if host.origin_host is not None]
        return [*(source.host for source in self.source_hosts.values()), *below]

    def status(self, state: str) -> Status:
        """What has been done so far; once the run is closed, how it was then."""
        if self._last_status is not None:
            return self._last_status
        return self._status(state, self._books())

    def _books(self) -> Books:
        below = [host.origin_host.origin.counts() for host in self.tasks.values() if host.origin_host is not None]
        return Books.of({task: source.origin.counts() for task, source in self.source_hosts.items()}, below)

    def _status(self, state: str, books: Books) -> Status:
        return assembly.make_status(
            self.plan,
            state,
            books,
            {task: assembly.counts_now(source) for task, source in self.source_hosts.items()}
            | {task: assembly.counts_now(host) for task, host in self.tasks.items()},
            seconds=time.monotonic() - self._started_s,
            expected=self._expected,
            completed_before=self._completed_before,
            store_bytes=self.state.store_bytes(self.plan) if self.state is not None else {},
        )

    def pause(self, *, paused: bool) -> None:
        """Read nothing from the next turn on, or read again. Any thread may call it."""
        for source in self.source_hosts.values():
            source.pause(paused=paused)

    @property
    def reading(self) -> str:
        """Whether the sources are read: running, pausing, or paused."""
        found = {source.reading for source in self.source_hosts.values()}
        return found.pop() if len(found) == 1 else "pausing"

    @property
    def settled(self) -> bool:
        """No origin has anything open. The hosts of one thread only: between threads messages may be on their way."""
        return self.sources_settled and all(host.settled for host in self.tasks.values())

    @property
    def sources_settled(self) -> bool:
        """No source has anything open."""
        return all(source.origin.settled for source in self.source_hosts.values())

    @property
    def sources_finished(self) -> bool:
        """All sources are exhausted, and everything they gave is completely processed."""
        return all(source.origin.finished for source in self.source_hosts.values())

    @property
    def sources_drained(self) -> bool:
        """All sources were stopped, and everything they gave is completely processed."""
        return all(source.drained for source in self.source_hosts.values())

    def stop_reading(self) -> None:
        """Take nothing more; what is open is finished. Any thread may call it."""
        for source in self.source_hosts.values():
            source.stop_reading()

    def finish_input(self) -> None:
        """No more items will be pushed."""
        for manual in manual_sources(self.sources):
            manual.finish()

    @property
    def readable_fds(self) -> list[int | None]:
        """What to wait for at the sources that may be read; None: that one cannot be waited for, only asked."""
        return [source.fileno() for source in self.source_hosts.values() if source.wants_to_read]

    def next_wake_s(self) -> float | None:
        """Seconds until something is due at a source or a task; None: not before a message."""
        waits = [self.next_source_wake_s(), *(host.next_wake_s() for host in self.tasks.values())]
        return min((wait for wait in waits if wait is not None), default=None)

    def next_source_wake_s(self) -> float | None:
        """Seconds until something is due at a source."""
        waits = [source.next_wake_s() for source in self.source_hosts.values()]
        return min((wait for wait in waits if wait is not None), default=None)

    def require_open(self, *, stopping: bool) -> None:
        """NotRunningError where nothing more will be taken."""
        if self.closed:
            raise NotRunningError("this run has ended; start another one")
        if stopping:
            raise NotRunningError("this run was stopped and takes no more items; start another one")


_RUNS: weakref.WeakSet[LocalRun] = weakref.WeakSet()


def _check_not_running(pipeline: Any) -> None:
    """One run at a time: all runs in this process use the pipeline's own nodes."""
    if not _is_running(pipeline):
        return
    gc.collect()  # a run that was dropped half way is no run any more
    if _is_running(pipeline):
        raise UsageError(
            "this pipeline is running already, and inline and thread runs share its nodes: wait() for that "
            "run or stop() it first, or make another pipeline of new nodes"
        )


def _say(text: str) -> None:
    tell(f"consecution: {text}")


def _is_running(pipeline: Any) -> bool:
    return any(run.pipeline is pipeline and not run.closed for run in list(_RUNS))


def _shown_dir(state: StateDir | None, keep: bool) -> Path | None:
    return state.path if state is not None and (keep or not state.temporary) else None


def _user_error(task: str, what: str, error: BaseException, so: str) -> WorkerError:
    made = WorkerError(f"{task}: {what}() raised {text_of(error)}; {so}", task=task)
    made.__cause__ = error
    return made


def end_error(task: str, error: BaseException) -> WorkerError:
    """What a run ends with when a node's ``end`` raises."""
    return _user_error(task, "end", error, "what the node had collected is not passed on")


def task_error(task: str, error: BaseException, what: str) -> BaseException:
    """What a run ends with when a task's thread does: our own errors as they are, the user's with the task's name.

    ``what`` is the step that raised.
    """
    if isinstance(error, (ConsecutionError, BdbQuit)):
        return error
    return _user_error(task, what, error, "that ends the run")
