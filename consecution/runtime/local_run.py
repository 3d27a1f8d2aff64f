"""What inline and thread runs share: hosts in one process, their state directory and their report."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from consecution.errors import ConsecutionError, NotRunningError, UsageError, WorkerError
from consecution.plan import Plan
from consecution.protocol.origin import FailureEntry
from consecution.protocol.values import TaskIndex
from consecution.report import Report, Status
from consecution.runtime import assembly
from consecution.runtime.origin_host import Outbox, SourceHost, live_codec
from consecution.runtime.replicas import make_replicas
from consecution.runtime.state import StateDir, open_state_dir
from consecution.runtime.task_host import TaskHost
from consecution.source import Source
from consecution.sources.manual import ManualSource, Receipt


def open_run_state(plan: Plan) -> StateDir | None:
    """The state directory of a run; None where the robustness keeps nothing on disk."""
    if not plan.options.robust:
        return None
    return open_state_dir(plan.options.state_dir, plan, fresh=plan.options.fresh)


def finished_before(state: StateDir) -> Report | None:
    """The report of the run that finished in this state directory; None if there is work to do."""
    found = state.finished_report
    return None if found is None else Report.from_dict(found, already_finished=True)


def push_into(source: Source, item: Any, timeout_s: float | None) -> Receipt:
    """Push into a manual source; UsageError where the source is another one."""
    if not isinstance(source, ManualSource):
        raise UsageError(f"push() goes with Producer('manual'); this run reads {source!r}")
    return source.push(item, timeout_s)


class LocalRun:
    """All hosts of a run that lives in one process.

    ``outbox_of`` gives each task its way to the others. The hosts are driven by an engine; this
    class opens and closes them and sums them up.
    """

    def __init__(
        self,
        plan: Plan,
        pipeline: Any,
        iterable: Any,
        outbox_of: Callable[[TaskIndex], Outbox],
        *,
        may_block: bool,
    ) -> None:
        self.plan = plan
        self.pipeline = pipeline
        self.state = open_run_state(plan)
        self.report: Report | None = None
        self.started_s = time.monotonic()
        self.source = assembly.make_source(plan, iterable)
        self.source.may_block = may_block
        self.tasks: dict[TaskIndex, TaskHost] = {}
        self._opened: list[TaskHost] = []
        self._closed = False
        try:
            self._make_hosts(outbox_of)
        except BaseException:
            if self.state is not None:
                self.state.close(keep=False)
            raise

    def _make_hosts(self, outbox_of: Callable[[TaskIndex], Outbox]) -> None:
        plan = self.plan
        epoch = self.state.epoch if self.state is not None else "memory"
        codecs = live_codec(robust=plan.options.robust)
        namer = assembly.origin_namer(plan, epoch)
        for task, node in make_replicas(plan, self.pipeline).items():
            self.tasks[task] = TaskHost(plan, task, node, codecs[0], outbox_of(task), origin_name=namer)
        self.source_host: SourceHost = assembly.make_source_host(
            plan,
            self.source,
            codecs,
            outbox_of(assembly.SOURCE_TASK),
            journal_path=None if self.state is None else self.state.origin_path(plan.source_name),
            epoch=epoch,
            now=time.time,
        )

    # -- life ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Run all ``begin``s, parents first, then open the source and let it go."""
        self.pipeline._call_user_begin()
        for task in self.tasks:
            self.begin_task(task)
            self._opened.append(self.tasks[task])
        self.open_source()

    def begin_task(self, task: TaskIndex) -> None:
        """Run one ``begin``; WorkerError says which task's it was that raised."""
        name = self.plan.task(task).name
        try:
            self.tasks[task].begin()
        except ConsecutionError:
            raise
        except Exception as error:
            raise WorkerError(
                f"{name}: begin() raised {type(error).__name__}: {error}; the run was not started", task=name
            ) from error

    def open_source(self) -> None:
        """Open the source where the journal stands, and let the origin go."""
        self.source_host.open()
        self.source_host.origin.replay(time.time())

    def close(self) -> None:
        """Close source, journal and sinks. Harmless when repeated; the first error is raised at the end."""
        if self._closed:
            return
        self._closed = True
        problem: BaseException | None = None
        for close in (self.source_host.close, *(host.close for host in self._opened)):
            try:
                close()
            except Exception as error:
                problem = problem or error
        if problem is not None:
            raise problem

    def abandon(self) -> None:
        """After an error: close what can be closed, keep the state."""
        self.report_counts = self.status("failed")
        try:
            self.close()
        finally:
            if self.state is not None:
                self.state.close(keep=bool(self.source_host.origin.counts().pending))

    def finish(self, *, stopped: bool) -> Report:
        """Close everything and sum it up. ``stopped``: before the stream had ended."""
        plan, state = self.plan, self.state
        keep = plan.options.keep_failed
        failures = self.source_host.host.store.failures(keep)
        failures += self._failed_at_end(keep)
        status = self.status("stopped" if stopped else "finished")
        self.close()
        result = None if stopped else self.pipeline._call_user_end()
        keep_state = bool(status.pending) or (state is not None and not state.temporary)
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
            if not stopped and not report.pending:
                state.finish(report.to_dict())
            state.close(keep=keep_state)
        self.report = report
        return report

    def _failed_at_end(self, keep: int) -> list[FailureEntry]:
        hosts = [host.origin_host for host in self.tasks.values() if host.origin_host is not None]
        return [entry for host in hosts for entry in host.store.failures(keep)]

    def _confirmed(self) -> bool:
        hosts = [host.origin_host for host in self.tasks.values() if host.origin_host is not None]
        return self.source_host.host.confirmed and all(host.confirmed for host in hosts)

    def status(self, state: str) -> Status:
        """What has been done so far."""
        ended = [host.origin_host for host in self.tasks.values() if host.origin_host is not None]
        return assembly.make_status(
            self.plan,
            state,
            self.source_host.origin.counts(),
            {task: host.step.counts for task, host in self.tasks.items()},
            seconds=time.monotonic() - self.started_s,
            failed_elsewhere=sum(host.origin.counts().failed for host in ended),
        )

    def end_stages(self) -> list[list[TaskIndex]]:
        """The tasks that run ``end``, node by node, parents first."""
        return [[TaskIndex(t) for t in node.tasks] for node in self.plan.nodes if node.wants_end]

    def require_open(self) -> None:
        if self.report is not None or self._closed:
            raise NotRunningError("this run has ended; start another one")


def _shown_dir(state: StateDir | None, keep: bool) -> Path | None:
    return state.path if state is not None and (keep or not state.temporary) else None


def end_error(name: str, error: BaseException) -> WorkerError:
    """What a run ends with when a node's ``end`` raises."""
    made = WorkerError(
        f"{name}: end() raised {type(error).__name__}: {error}; what the node had collected is not passed on",
        task=name,
    )
    made.__cause__ = error
    return made
