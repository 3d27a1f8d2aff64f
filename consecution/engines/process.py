"""A supervisor and a worker process for each task, wired by ZeroMQ."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from consecution.engine import Running
from consecution.errors import ConsecutionError, NotRunningError, add_note, text_of
from consecution.plan import Plan, set_apart
from consecution.protocol.origin import FailureEntry
from consecution.protocol.values import TaskIndex, WorkerIndex
from consecution.report import Report, Status
from consecution.runtime import assembly, failpoints
from consecution.runtime.affinities import Affinities
from consecution.runtime.books import Books, completed_before, read_books
from consecution.runtime.launcher import ProcessWorker, ThreadWorker
from consecution.runtime.local_run import finished_before, manual_sources, open_run_state, push_into, status_of
from consecution.runtime.log_file import LogFile
from consecution.runtime.logs import LogPump, LogStream
from consecution.runtime.memory import can_limit_memory
from consecution.runtime.occupation import GivenUp, LastHook, wait_looking
from consecution.runtime.offspring import come_back_alone
from consecution.runtime.service_manager import VARIABLES, ServiceManager
from consecution.runtime.shipping import Parcel, Shipment, can_ship, ship
from consecution.runtime.slots import SlotFile
from consecution.runtime.steering import Steering
from consecution.runtime.supervisor import Supervisor
from consecution.runtime.worker import WorkerSpec
from consecution.source import Source
from consecution.sources.manual import Receipt
from consecution.transport.socket_folder import SocketFolder, base_folder, sweep

if TYPE_CHECKING:
    from consecution.runtime.endpoint import Endpoint

HOOK_WAIT_S = 5.0
"""How long a pipeline's end() is waited for when a run is aborted; a thread cannot be killed."""
LIVE_WITHIN_S = 30.0
"""More than the loop ever waits for one thing: a worker's start, or a dead one to be gone."""


def start(plan: Plan, pipeline: Any, iterable: Any, options: Any) -> Running:
    """Check that everything can be shipped, lock the state directory, start the supervisor."""
    return ProcessRunning(plan, pipeline, iterable)


class ProcessRunning(Running):
    """A run in worker processes; its supervisor is a thread of this one."""

    def __init__(self, plan: Plan, pipeline: Any, iterable: Any) -> None:
        self._plan = plan
        self._pipeline = pipeline
        self._started_s = time.monotonic()
        self._last_status: Status | None = None
        self._stopping = False
        self._aborted_s: float | None = None
        self._given_up = False
        self._end_hook = LastHook(pipeline._call_user_end)
        self._threads: list[ThreadWorker] = []
        self._over = threading.Event()
        self._first = threading.Lock()
        """Taken by the supervisor's thread as it begins, or by whoever breaks the start off before."""
        self._report: Report | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._steering: Steering | None = None
        self._endpoint: Endpoint | None = None
        self._stream = LogStream(as_json=plan.options.log_format == "json")
        self._sources = assembly.make_sources(plan, iterable)
        self._expected = assembly.expected_items(self._sources)
        self._completed_before = 0
        self._parcels: dict[WorkerIndex, Parcel] = {}
        self._slots: dict[WorkerIndex, SlotFile] = {}
        self._read_here = {task for task, source in self._sources.items() if source.in_parent or not can_ship(source)}
        for task in sorted(self._read_here):
            plan = set_apart(plan, task)
        self._plan = plan
        self._service_manager = ServiceManager.of(os.environ)
        self._supervisor = Supervisor(
            plan, self._launch, self._say, on_turn=self._on_turn, affinities=Affinities.of(plan, time.monotonic())
        )
        failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
        self._state = open_run_state(plan)
        self._epoch = self._state.epoch if self._state is not None else "memory"
        try:
            if self._state is not None and (report := finished_before(self._state)) is not None:
                self._end_before_start(report)
            else:
                self._start()
        except BaseException as error:
            if not self._first.acquire(blocking=False):
                self._break_off()
                raise
            self._close_parcels()
            self._close_endpoint()
            if self._steering is not None:
                self._steering.end("failed", None, error)
            self._error = error
            self._tell_service_manager_the_end()
            self._stream.close()
            if self._state is not None:
                self._state.close(keep=False)
            raise

    def _break_off(self) -> None:
        """An impatient signal came when the supervisor had begun already, which closes everything itself."""
        assert self._thread is not None
        self.abort()
        self._thread.join()

    def _end_before_start(self, report: Report) -> None:
        """Nothing is left to do, but perhaps to clean up: the run that finished may have been killed after that."""
        assert self._state is not None
        sweep(base_folder())
        self._state.close()
        self._report, self._last_status = report, status_of(report)
        self._tell_service_manager_the_end()
        self._over.set()

    def _start(self) -> None:
        options = self._plan.options
        if options.metrics_port is not None:
            from consecution.runtime.endpoint import Endpoint  # a web server, which most runs do without

            self._endpoint = Endpoint(self, options.metrics_host, options.metrics_port)
        port = self._endpoint.port if self._endpoint is not None else None
        if self._state is not None and not self._state.temporary:
            self._completed_before = completed_before(self._state, self._plan)
            self._stream = LogStream(as_json=self._stream.as_json, file=LogFile(self._state.path))
            self._steering = Steering(self, self._state.path, options, self._say_ourselves, metrics_port=port)
            self._steering.serve()
        if port is not None:
            self._say_ourselves(f"/metrics, /livez and /readyz are at port {port} of {options.metrics_host}")
        come_back_alone(self._pipeline._call_user_begin)
        self._ship()
        self._folder = SocketFolder()
        self._logs = LogPump(self._stream)
        if options.memory_limit_bytes and not can_limit_memory():
            self._say("supervisor", f"memory_limit_bytes is not kept: {sys.platform} cannot limit a process's data")
        self._thread = threading.Thread(target=self._run, name="consecution-supervisor", daemon=True)
        self._thread.start()

    def _ship(self) -> None:
        """One parcel for each worker; one for all those that have replicas of the same nodes, and read nothing."""
        plan, state = self._plan, self._pipeline.global_state
        parcels: dict[tuple[str, ...], Parcel] = {}
        for worker in plan.workers:
            index = WorkerIndex(worker.index)
            tasks = [TaskIndex(task) for task in worker.tasks]
            if plan.options.robust:
                self._slots[index] = SlotFile()
            sources = self._sources_of(tasks)
            names = tuple(plan.task(task).name if task in sources else plan.task(task).node for task in tasks)
            if names not in parcels:
                shipped = {task: source for task, source in sources.items() if task not in self._read_here}
                parcels[names] = Parcel(ship(plan, tasks, state, shipped))
            self._parcels[index] = parcels[names]

    def _sources_of(self, tasks: Sequence[TaskIndex]) -> dict[TaskIndex, Source]:
        return {task: self._sources[task] for task in tasks if task in self._sources}

    def _close_parcels(self) -> None:
        for parcel in self._parcels.values():
            parcel.close()
        for slot in self._slots.values():
            slot.close()

    def _close_endpoint(self) -> None:
        if self._endpoint is not None:
            self._endpoint.close()

    def _store_paths(self, tasks: tuple[TaskIndex, ...]) -> dict[TaskIndex, str]:
        """Where the stores lie of those tasks that answer for batches."""
        if self._state is None:
            return {}
        names = {task: self._plan.origin_name(task) for task in tasks}
        return {task: str(self._state.origin_path(name)) for task, name in names.items() if name is not None}

    def _launch(self, worker: WorkerIndex, incarnation: int) -> ProcessWorker | ThreadWorker:
        plan, planned = self._plan, self._plan.workers[worker]
        tasks = tuple(TaskIndex(task) for task in planned.tasks)
        spec = WorkerSpec(
            worker=worker,
            tasks=tasks,
            incarnation=incarnation,
            epoch=self._epoch,
            store_paths=self._store_paths(tasks),
            socket_folder=self._folder.path,
            failpoints=os.environ.get(failpoints.VARIABLE, ""),
            environment={name: value for name, value in os.environ.items() if name not in VARIABLES},
            verdicts={name: self._supervisor.verdicts(name) for name in {plan.task(task).node for task in tasks}},
            memory_limit_bytes=plan.options.memory_limit_bytes,
            core=self._supervisor.core_of(worker),
        )
        if not self._read_here.isdisjoint(tasks):
            started = ThreadWorker(spec, planned.name, Shipment(plan, {}, self._sources_of(tasks), None))
            self._threads.append(started)
            return started
        return ProcessWorker(spec, self._parcels[worker], planned.name, self._logs, self._slots.get(worker))

    def _say(self, mark: str, text: str) -> None:
        self._stream.say(mark, text)

    def _say_ourselves(self, text: str) -> None:
        self._say("supervisor", text)

    # -- the supervisor's thread -----------------------------------------------------------------

    def _run(self) -> None:
        if not self._first.acquire(blocking=False):
            return
        try:
            self._supervisor.run()
            self._look_for_hanging_sources()
            self._finish()
        except GivenUp:
            return
        except BaseException as error:
            try:
                self._abandon(error)
            finally:
                self._leave()
            return
        self._leave()

    def _leave(self) -> None:
        try:
            self._close()
            self._tell_service_manager_the_end()
        finally:
            self._over.set()

    def _look_for_hanging_sources(self) -> None:
        """One that is read in this process is read by a thread, which nobody can kill."""
        for hanging in self._hanging_sources().values():
            raise hanging

    def _hanging_sources(self) -> dict[TaskIndex, ConsecutionError]:
        found = ((worker, worker.hanging_source()) for worker in self._threads)
        return {task: hanging for worker, hanging in found if hanging is not None for task in worker.tasks}

    def _abandon(self, error: BaseException) -> None:
        """After ``error``: keep what is open in the state directory."""
        self._error = error
        try:
            self._look_for_hanging_sources()  # whose journals cannot be read
            books, _ = self._final_books()
            keep = bool(books.pending)
        except ConsecutionError:
            books, keep = self._supervisor.books(), True
        self._last_status = self._status("failed", books)
        if self._state is None:
            return
        try:
            if self._steering is not None:
                self._steering.end("failed", self._last_status, error)
        finally:
            self._state.close(keep=keep)
        if keep and self._state.temporary:
            add_note(error, f"what was open is kept: run again with state_dir={str(self._state.path)!r}")

    def _close(self) -> None:
        """Close everything, whatever a user's source does when it is closed; one that hangs closes itself, if ever."""
        hanging = self._hanging_sources()
        sources = [source.close for task, source in self._sources.items() if task not in hanging]
        ours = (self._close_endpoint, self._close_parcels, self._folder.close, self._logs.close, self._stream.close)
        for close in (*sources, *ours):
            try:
                close()
            except BaseException as error:
                self._error = self._error or error

    def _finish(self) -> None:
        supervisor, state = self._supervisor, self._state
        books, failures = self._final_books()
        status = self._last_status = self._status("stopped" if supervisor.stopped else "finished", books)
        result = None if supervisor.stopped else self._end_hook.call()
        cause = supervisor.stop_cause
        keep = state is not None and (not state.temporary or bool(status.open) or cause is not None)
        report = assembly.make_report(
            self._plan,
            status,
            failures,
            confirmed=supervisor.confirmed and not supervisor.stopped,
            stopped=supervisor.stopped,
            state_dir=state.path if state is not None and keep else None,
            result=result,
        )
        if state is not None:
            if not supervisor.stopped and not report.open:
                failpoints.passed("supervisor.finishing")
                state.finish(report.to_dict())
                failpoints.passed("supervisor.finished")
            if self._steering is not None:
                self._steering.end(status.state, status)
            state.close(keep=keep)
        self._report = report
        if cause is not None:
            self._error = assembly.stop_error(self._plan, cause.task, cause.entry, report)

    def _final_books(self) -> tuple[Books, list[FailureEntry]]:
        """What the journals say, where there are any."""
        supervisor = self._supervisor
        if self._state is None:
            return supervisor.books(), supervisor.failures()
        return read_books(self._state, self._plan, supervisor.origin_counts())

    def _status(self, state: str, books: Books) -> Status:
        return assembly.make_status(
            self._plan,
            state,
            books,
            self._supervisor.counts(),
            seconds=time.monotonic() - self._started_s,
            restarts=self._supervisor.restarts,
            pids=self._supervisor.pids(),
            expected=self._expected,
            completed_before=self._completed_before,
            store_bytes=self._state.store_bytes(self._plan) if self._state is not None else {},
        )

    def _on_turn(self) -> None:
        self._tell_service_manager()
        self._tell_addresses()

    def _tell_addresses(self) -> None:
        """Whoever made a source may ask it where it listens; it does so in a worker."""
        for task, address in self._supervisor.addresses().items():
            source = self._sources[task]
            with contextlib.suppress(Exception):  # a user's own class may have anything under that name
                if task not in self._read_here and source.address != address:
                    source.address = address

    def _tell_service_manager(self) -> None:
        if self._service_manager is not None:
            supervisor = self._supervisor
            self._service_manager.turn(
                supervisor.state, ready=supervisor.ready, describe=lambda: str(self._status_as_told())
            )

    def _tell_service_manager_the_end(self) -> None:
        if self._service_manager is not None:
            error = self._error
            said = str(self._last_status) if error is None else f"failed: {text_of(error)}"
            self._service_manager.end(said, failed=error is not None)

    # -- who watches ---------------------------------------------------------------------------------

    def why_not_ready(self) -> str:
        """For those who would send it work: "" if there is no reason not to."""
        if self._supervisor.state == "stopping":
            return "the run is stopping"
        return "" if self._supervisor.ready else "not all workers are up"

    def why_not_live(self) -> str:
        """For those who would start it again: "" if there is no reason to."""
        stood_s = self._supervisor.stood_s
        return f"the supervisor's loop has not come round for {stood_s:.0f} s" if stood_s > LIVE_WITHIN_S else ""

    # -- the contract ----------------------------------------------------------------------------

    def push(self, item: Any, timeout_s: float | None = None, *, source: str | None = None) -> Receipt:
        if self._over.is_set():
            raise NotRunningError("this run has ended; start another one")
        if self._stopping or self._supervisor.stop_cause is not None:
            raise NotRunningError("this run was stopped and takes no more items; start another one")
        return push_into(self._plan, self._sources, item, timeout_s, source)

    def status(self) -> Status:
        self._supervisor.freshen()
        return self._status_as_told()

    def _status_as_told(self) -> Status:
        """That of the last beats. The supervisor's own thread cannot wait for newer ones."""
        if self._last_status is not None:
            return self._last_status
        return self._status(self._supervisor.state, self._supervisor.books())

    def pids(self) -> dict[str, int]:
        """Task name → process id of its worker, for those who want to look (or kill)."""
        return self._supervisor.pids()

    def request_stop(self) -> None:
        self._stopping = True
        self._supervisor.stop()

    def abort(self) -> None:
        self._stopping = True
        self._aborted_s = self._aborted_s or time.monotonic()
        self._supervisor.freshen()  # what is told after that is lost
        self._supervisor.abort()

    def pause(self) -> None:
        self._supervisor.pause(paused=True)

    def resume(self) -> None:
        self._supervisor.pause(paused=False)

    def finish_input(self) -> None:
        for manual in manual_sources(self._sources):
            manual.finish()

    def join(self, timeout_s: float | None) -> Report | None:
        if not wait_looking(self._over, timeout_s, self._give_up_what_hangs):
            return None
        if self._thread is not None and not self._given_up:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._report

    def _give_up_what_hangs(self) -> None:
        """After an abort: what the supervisor's thread would have done after a hook that hangs is done here."""
        since_s = time.monotonic() - HOOK_WAIT_S
        if self._aborted_s is None or self._aborted_s > since_s or (error := self._end_hook.give_up(since_s)) is None:
            return
        self._given_up = True
        self._abandon(error)
        self._leave()
