"""What only the fork server imports: all that workers need, and how the server lives and dies.

The rules it keeps: a signal to the whole process group is the supervisor's to answer, so the server, and with it
the workers, outlive it. The server ends when its parent and all workers have let go of it, and so is the last
who can clean up behind a supervisor that was killed.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import select
import signal
import time

import multiprocess.popen_forkserver

from consecution.runtime import worker
from consecution.runtime.fork_server import GROUP_SIGNALS
from consecution.transport.socket_folder import base_folder, sweep

PARENT_EXIT_WAIT_S = 0.5
LOOK_EVERY_S = 0.005


def _outlive_signals() -> None:
    """Whoever starts the server holds them back from its first moment on; so it is, even where somebody else did."""
    signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    os.register_at_fork(after_in_child=_mind_signals)


def _mind_signals() -> None:
    """In workers, and in what they fork: pools end their processes by SIGTERM."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _clean_up_after(parent: int, server: int) -> None:
    """Only in the server itself. A dying parent lets go of its pipes before its locks: wait until it is gone."""
    if os.getpid() != server:
        return
    try:
        _wait_for_all_threads(parent)
    except (AttributeError, OSError):
        deadline_s = time.monotonic() + PARENT_EXIT_WAIT_S
        while os.getppid() == parent and time.monotonic() < deadline_s:
            time.sleep(LOOK_EVERY_S)
    with contextlib.suppress(OSError):
        sweep(base_folder())


def _wait_for_all_threads(process: int) -> None:
    """`os.getppid` tells of a death when the last thread begins to die, and that one may hold the locks still.

    AttributeError or OSError where the system cannot say more, or where the process is gone altogether.
    """
    found, poller = os.pidfd_open(process), select.poll()
    try:
        poller.register(found, select.POLLIN)
        poller.poll(PARENT_EXIT_WAIT_S * 1000)
    finally:
        os.close(found)


_outlive_signals()
atexit.register(_clean_up_after, os.getppid(), os.getpid())

gc.freeze()  # What is here stays: no worker's collector looks at it, and so copies it.

__all__ = ["multiprocess", "worker"]
