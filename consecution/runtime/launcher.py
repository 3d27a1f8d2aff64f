"""Starts worker processes, and the thread that reads a source which cannot be shipped."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from typing import Any, Protocol

import multiprocess
import multiprocess.connection

from consecution.errors import ConsecutionError
from consecution.protocol.poison import InHand
from consecution.runtime import fork_server
from consecution.runtime.logs import LogPump
from consecution.runtime.offspring import end_if_forked
from consecution.runtime.patient_pipe import PatientPipe
from consecution.runtime.shipping import Parcel, Shipment, main_travels
from consecution.runtime.slots import SlotFile
from consecution.runtime.worker import Worker, WorkerSpec, _report, run_worker

LOOK_EVERY_S = 0.01
EXIT_UNKNOWN = 255
"""What multiprocess says of a process whose fork server died first, and that it cannot know more of."""


class WorkerProcess(Protocol):
    """A worker as the supervisor holds it; tests put fakes in its place."""

    pipe: Any
    pid: int

    @property
    def sentinel(self) -> int | None:
        """Readable when the worker is dead; None for a thread, which cannot die."""

    def death(self) -> str:
        """How it died, for people."""

    def start_error(self) -> ConsecutionError | None:
        """What it died of, if no restart can mend that."""

    def in_hand(self) -> InHand | None:
        """What it was at when it died; asked once. None: nothing, or nobody knows."""

    def native_stack(self) -> str:
        """What the interpreter wrote as it crashed; "" if it wrote nothing."""

    def signal(self, number: int) -> None: ...

    def join(self, timeout_s: float) -> bool:
        """Whether it is gone for certain."""


class ProcessWorker:
    """A worker in a process of its own. OSError or EOFError if it cannot be started just now.

    ``slot`` outlives it and says what it had in hand; None where nobody asks.
    """

    def __init__(
        self, spec: WorkerSpec, parcel: Parcel, mark: str, logs: LogPump, slot: SlotFile | None = None
    ) -> None:
        ours, log_read, self._process = fork_server.insist(lambda: _start_process(spec, parcel, mark, slot))
        self.pipe = PatientPipe(ours)
        self.pid: int = self._process.pid
        self._server = fork_server.server_pid()
        self._slot = slot
        self._tail = logs.add(log_read, mark, self.pid)

    @property
    def sentinel(self) -> int:
        found: int = self._process.sentinel
        return found

    def death(self) -> str:
        code = self._process.exitcode
        if self._died_with_server():
            return f"the fork server (process {self._server}) was killed, and its workers with it"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"

    def _died_with_server(self) -> bool:
        """Workers go with their server: the system kills them then, whatever they are at."""
        is_unknown = self._process.exitcode == EXIT_UNKNOWN
        return is_unknown and self._server is not None and fork_server.is_gone(self._server)

    def start_error(self) -> ConsecutionError | None:
        return fork_server.unguarded() if self._process.exitcode == fork_server.EXIT_UNGUARDED else None

    def in_hand(self) -> InHand | None:
        """What it was at when its fork server died is not to blame."""
        taken = None if self._slot is None else self._slot.take()
        return None if self._died_with_server() else taken

    def native_stack(self) -> str:
        return self._tail.native_stack()

    def signal(self, number: int) -> None:
        """Only while it is not reaped: its pid may belong to somebody else afterwards."""
        if self._process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def join(self, timeout_s: float) -> bool:
        """Wait for its death; where its fork server died first, nobody says whether it is dead: make sure."""
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            return False
        return self._process.exitcode != EXIT_UNKNOWN or self._make_sure(timeout_s)

    def _make_sure(self, timeout_s: float) -> bool:
        """Gone is whose process id is free, or whose pipe has ended (where nobody reaps it)."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return True
            if self._pipe_ended():
                return True
            time.sleep(LOOK_EVERY_S)
        return False

    def _pipe_ended(self) -> bool:
        try:
            while self.pipe.poll():
                self.pipe.recv()
        except (EOFError, OSError):
            return True
        return False


def _start_process(spec: WorkerSpec, parcel: Parcel, mark: str, slot: SlotFile | None) -> tuple[Any, int, Any]:
    """The supervisor's end of the worker's pipe, where to read what it writes, and its process."""
    made = fork_server.context()
    ours, theirs = made.Pipe()
    log_read, log_write = os.pipe()
    log = multiprocess.connection.Connection(log_write, readable=False)
    sent = multiprocess.connection.Connection(os.dup(parcel.fileno()), writable=False)
    lent = None if slot is None else multiprocess.connection.Connection(os.dup(slot.fileno()))
    args = (spec, theirs, log, sent, lent)
    process = made.Process(target=run_worker, args=args, name=fork_server.PROCESS_NAME + mark, daemon=True)
    try:
        with fork_server.without_tracker(), fork_server.without_main(unless=_main_is_needed()):
            fork_server.ensure_running()
            process.start()
    except BaseException:
        os.close(log_read)
        ours.close()
        raise
    finally:
        for end in (theirs, log, sent, lent):
            if end is not None:
                end.close()
    return ours, log_read, process


class ThreadWorker:
    """The worker of a source that is read in this process: the same loop, in a thread."""

    sentinel = None

    def __init__(self, spec: WorkerSpec, mark: str, shipment: Shipment) -> None:
        self.pipe, theirs = multiprocess.Pipe()
        self.pid = os.getpid()
        self.tasks = spec.tasks
        self._spec = spec
        self._shipment = shipment
        self._worker: Worker | None = None
        self._thread = threading.Thread(target=self._run, args=(theirs,), name=f"consecution-{mark}", daemon=True)
        self._thread.start()

    def _run(self, pipe: Any) -> None:
        worker: Worker | None = None
        try:
            worker = self._worker = Worker(self._spec, pipe, self._shipment, None)
            worker.run()
        except BaseException as error:
            end_if_forked(self.pid)
            if worker is not None:
                worker.close_after_error()
            _report(pipe, self._spec, worker, error)
        finally:
            pipe.close()

    def death(self) -> str:
        return "ended"

    def start_error(self) -> ConsecutionError | None:
        return None

    def in_hand(self) -> InHand | None:
        return None

    def native_stack(self) -> str:
        return ""

    def signal(self, number: int) -> None:
        """A thread cannot be killed: its pipe's end tells it to stop."""
        with contextlib.suppress(OSError):
            self.pipe.close()

    def join(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def hanging_source(self) -> ConsecutionError | None:
        """What to raise if it has not ended, as its source has not come back from a call."""
        return self._worker.hanging_source() if self._worker is not None and self._thread.is_alive() else None


def _main_is_needed() -> bool:
    """Not a main module that is no file, or defines nothing that workers could need."""
    return not main_travels() and any(_is_of_main(value) for value in list(vars(sys.modules["__main__"]).values()))


def _is_of_main(value: Any) -> bool:
    """Whatever a value does when it is asked, as a proxy of something missing may."""
    with contextlib.suppress(Exception):
        return bool(value.__module__ == "__main__")
    return False
