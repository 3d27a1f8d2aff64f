"""The fork server, as its parent sees it. It has imported everything a worker needs, and opened nothing.

Its own socket lies in a folder that any later run sweeps away; what the server itself does is in `nursery`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import multiprocess
import multiprocess.forkserver
import multiprocess.process
import multiprocess.resource_tracker
import multiprocess.util
from multiprocess import spawn

from consecution.errors import UsageError
from consecution.transport.socket_folder import SocketFolder

START_WITHIN_S = 5.0
ASK_AGAIN_S = 0.01
EXIT_UNGUARDED = 71
PROCESS_NAME = "consecution worker "
MAIN_KEYS = ("init_main_from_name", "init_main_from_path")
"""Where multiprocess tells a new process of the main module."""
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Those that a terminal or a service manager sends to all processes of a program."""
NURSERY = "consecution.runtime.nursery"

Started = TypeVar("Started")

_starting = threading.Lock()
_folder: tuple[int | None, str | None] = None, None
"""The process that made the swept folder, and where that is."""


def prepare() -> None:
    """Let the server import what workers need, while this process imports what the run needs. Returns at once."""
    refuse_in_worker_start()
    _refuse_in_worker()
    context()
    with contextlib.suppress(OSError), without_tracker():
        ensure_running()


def refuse_in_worker_start() -> None:
    """An unguarded script would start the run again in every worker that imports it."""
    process = multiprocess.process.current_process()
    if not getattr(process, "_inheriting", False):
        return
    if process.name.startswith(PROCESS_NAME):
        os._exit(EXIT_UNGUARDED)
    raise unguarded()


def _refuse_in_worker() -> None:
    """No daemon may have children: they would outlive it when it is killed."""
    if multiprocess.process.current_process().daemon:
        raise UsageError(
            "a worker, as any daemon of multiprocess, cannot start processes: give the run inside it mode='thread' or "
            "mode='inline'"
        )


def unguarded() -> UsageError:
    """What is wrong with a script that would start the run again in every worker."""
    return UsageError(
        "run() was called while a worker imports your script: put the call under `if __name__ == '__main__':`"
    )


def context() -> Any:
    """The context that starts processes by the fork server."""
    _use_swept_folder()
    made = multiprocess.get_context("forkserver")
    made.set_forkserver_preload([*_imported(), NURSERY])
    return made


def _imported() -> list[str]:
    """Our own modules that are imported here: every worker imports the main module, and with it most of these."""
    return sorted(name for name in sys.modules if name.startswith("consecution.") and not name.endswith("__main__"))


@contextlib.contextmanager
def without_tracker() -> Iterator[None]:
    """Start neither server nor worker with a resource tracker beside it.

    It is one more interpreter, which imports as much as the server does, just when that is waited for. Its work
    is to remove semaphores and shared memory of multiprocess, and ours has none of these. Whoever uses them starts it.
    """
    tracker = multiprocess.resource_tracker._resource_tracker
    with _starting:
        if tracker._fd is not None:
            yield
            return
        tracker._fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield
        finally:
            os.close(tracker._fd)
            tracker._fd = None


@contextlib.contextmanager
def without_main(*, unless: bool) -> Iterator[None]:
    """Let the workers that are started meanwhile import no main module. Within `without_tracker`, whose lock it needs.

    What is told to them is changed, not the main module: others work with that at the same time, a source that is
    read in this process, say. Nor does it concern processes that others start just now: these have another name.
    """
    if unless:
        yield
        return
    describe = spawn.get_preparation_data

    def describe_without_main(name: str) -> dict[str, Any]:
        found: dict[str, Any] = describe(name)
        if name.startswith(PROCESS_NAME):
            for key in MAIN_KEYS:
                found.pop(key, None)
        return found

    spawn.get_preparation_data = describe_without_main
    try:
        yield
    finally:
        spawn.get_preparation_data = describe


def ensure_running() -> None:
    """Start the server, unless it runs. Within `without_tracker`.

    One that died, and was reaped by somebody else (a program that waits for all its children), is forgotten.
    """
    with _signals_held_back():
        try:
            multiprocess.forkserver.ensure_running()
        except ChildProcessError:
            _forget_server()
            multiprocess.forkserver.ensure_running()


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """The server inherits this: Ctrl-C, which the whole group gets, must not end it while it imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _forget_server() -> None:
    server = multiprocess.forkserver._forkserver
    server._lock = threading.Lock()
    if server._forkserver_pid is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = server._forkserver_address = server._forkserver_pid = None


def _begin_anew_in_child() -> None:
    """A forked child has a server of its own, if any: its parent's ends with the parent, as does what lies there.

    No lock is taken, for another thread may have held it when the child was made.
    """
    global _starting
    _starting = threading.Lock()
    leave_tracker()
    _forget_server()


def leave_tracker() -> None:
    """In a worker: forget the tracker that `without_tracker` has put there; the first who needs one gets it."""
    tracker = multiprocess.resource_tracker._resource_tracker
    if tracker._fd is not None and os.path.samestat(os.fstat(tracker._fd), os.stat(os.devnull)):
        os.close(tracker._fd)
        tracker._fd = None


def server_pid() -> int | None:
    """The process id of the server that starts workers just now; None: it is not running yet."""
    found: int | None = multiprocess.forkserver._forkserver._forkserver_pid
    return found


def is_gone(server: int) -> bool:
    """Whether this server of ours is dead; it is left to whoever starts the next one to reap it.

    False where the system does not say (macOS).
    """
    if not hasattr(os, "waitid"):
        return False
    try:
        return os.waitid(os.P_PID, server, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def insist(start: Callable[[], Started]) -> Started:
    """Start a process by the server. One that dies under it is replaced, which takes a moment to be noticed.

    Whatever ``start`` opened it must have closed when it raises: a half-started process ends by that.
    """
    deadline_s = time.monotonic() + START_WITHIN_S
    while True:
        try:
            return start()
        except (EOFError, ConnectionError):
            if time.monotonic() > deadline_s:
                raise
            time.sleep(ASK_AGAIN_S)


def _use_swept_folder() -> None:
    """What multiprocess puts into its temporary folder would stay there for ever if this process is killed."""
    global _folder
    config = multiprocess.process.current_process()._config
    if config.get("tempdir") in (None, _folder_of_parent()):
        folder = SocketFolder()
        _folder = os.getpid(), folder.path
        config["tempdir"] = folder.path
        multiprocess.util.Finalize(None, folder.close, exitpriority=-100)


def _folder_of_parent() -> str | None:
    """The one that this process has of the process that forked it."""
    owner, path = _folder
    return None if owner == os.getpid() else path


os.register_at_fork(after_in_child=_begin_anew_in_child)
