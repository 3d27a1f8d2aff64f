"""Starts worker processes, and the thread that reads a source which cannot be shipped."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any, Protocol

import multiprocess
import multiprocess.process

from consecution.errors import UsageError
from consecution.runtime.logs import LogPump
from consecution.runtime.shipping import Shipment
from consecution.runtime.worker import Worker, WorkerSpec, _report, run_worker

GONE_WAIT_S = 10.0


class WorkerProcess(Protocol):
    """A worker as the supervisor holds it; tests put fakes in its place."""

    pipe: Any
    pid: int

    @property
    def sentinel(self) -> int | None:
        """Readable when the worker is dead; None for a thread, which cannot die."""

    def death(self) -> str:
        """How it died, for people."""

    def signal(self, number: int) -> None: ...

    def join(self, timeout_s: float) -> bool:
        """Whether it is gone for certain."""


def context() -> Any:
    """Workers are forked from a server that has imported everything, but opened nothing."""
    made = multiprocess.get_context("forkserver")
    made.set_forkserver_preload(["consecution.runtime.worker"])
    return made


def refuse_in_worker_start() -> None:
    """An unguarded script would start the run again in every worker that imports it."""
    if getattr(multiprocess.process.current_process(), "_inheriting", False):
        raise UsageError(
            "run() was called while a worker imports your script: put the call under `if __name__ == '__main__':`"
        )


class ProcessWorker:
    """A worker in a process of its own."""

    def __init__(self, spec: WorkerSpec, mark: str, logs: LogPump) -> None:
        made = context()
        self.pipe, theirs = made.Pipe()
        log_read, log_write = os.pipe()
        log = multiprocess.connection.Connection(log_write, readable=False)
        self._process = made.Process(target=run_worker, args=(spec, theirs, log), name=mark, daemon=True)
        try:
            with _main_if_needed():
                self._process.start()
        except BaseException:
            os.close(log_read)
            raise
        finally:
            theirs.close()
            log.close()
        self.pid: int = self._process.pid
        logs.add(log_read, f"{mark} {self.pid}")

    @property
    def sentinel(self) -> int:
        found: int = self._process.sentinel
        return found

    def death(self) -> str:
        code = self._process.exitcode
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"

    def signal(self, number: int) -> None:
        """Only while it is not reaped: its pid may belong to somebody else afterwards."""
        if self._process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def join(self, timeout_s: float) -> bool:
        """Wait for its death; where its fork server died first, make sure of it by its pipe's end."""
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            return False
        if self._process.exitcode == 255 and not self._pipe_ended(0):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            return self._pipe_ended(timeout_s)
        return True

    def _pipe_ended(self, timeout_s: float) -> bool:
        try:
            while self.pipe.poll(timeout_s):
                self.pipe.recv()
        except (EOFError, OSError):
            return True
        return False


class ThreadWorker:
    """The task of a source that is read in this process: the same loop, in a thread."""

    sentinel = None

    def __init__(self, spec: WorkerSpec, mark: str, shipment: Shipment) -> None:
        self.pipe, theirs = multiprocess.Pipe()
        self.pid = os.getpid()
        self._spec = spec
        self._shipment = shipment
        self._thread = threading.Thread(target=self._run, args=(theirs,), name=f"consecution-{mark}", daemon=True)
        self._thread.start()

    def _run(self, pipe: Any) -> None:
        worker: Worker | None = None
        try:
            worker = Worker(self._spec, pipe, self._shipment, in_process=False)
            worker.run()
        except BaseException as error:
            if worker is not None:
                worker.close_after_error()
            _report(pipe, self._spec.task, "start" if worker is None else worker.doing, error)
        finally:
            pipe.close()

    def death(self) -> str:
        return "ended"

    def signal(self, number: int) -> None:
        """A thread cannot be killed: its pipe's end tells it to stop."""
        with contextlib.suppress(OSError):
            self.pipe.close()

    def join(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()


@contextlib.contextmanager
def _main_if_needed() -> Iterator[None]:
    """Keep workers from importing a main module that defines nothing they could need."""
    main = sys.modules["__main__"]
    if any(getattr(value, "__module__", None) == "__main__" for value in list(vars(main).values())):
        yield
        return
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
