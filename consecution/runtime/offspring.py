"""The processes that user code starts in a worker: none works in the worker's name, and few outlive it.

The rules: a child of `os.fork` that comes back into our own code ends there, for it holds copies of our stores and
pipes. What multiprocessing has started (pools, executors, managers) ends with the worker, which leaves without the
clean-up of the interpreter that would see to it. Everything else (`subprocess`, a forked child that stays in user code)
was meant to be by whoever started it, and is left alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from consecution.kernel import end_with_parent

Returned = TypeVar("Returned")

EXIT_CAME_BACK = 70
KINDS = ("multiprocessing.process", "multiprocess.process")
FORKING = ("multiprocessing.popen_fork", "multiprocess.popen_fork")
CAME_BACK = (
    b"a child that user code forked has come back from it into the run, and ends here: let the child leave by "
    b"os._exit(0), or start it with subprocess or multiprocessing\n"
)


def end_if_forked(home: int) -> None:
    """Called in our own code after user code: returns in process ``home``, which made what it works with, alone.

    No lock is taken: another thread may have held it when the child was made.
    """
    if os.getpid() != home:
        with contextlib.suppress(OSError):
            os.write(2, CAME_BACK)
        os._exit(EXIT_CAME_BACK)


def come_back_alone(hook: Callable[[], Returned]) -> Returned:
    """Call user code; a child that it has forked and that comes back, too, ends here."""
    home = os.getpid()
    try:
        return hook()
    finally:
        end_if_forked(home)


class Offspring:
    """What multiprocessing starts in this process, a worker. Made once, by the main thread.

    Forked children of the main thread end with the worker however it dies, where the system is Linux; there the
    others, and all of them elsewhere, only with a worker that leaves by itself.
    """

    def __init__(self) -> None:
        self._home = os.getpid()
        self._main = threading.get_ident()
        self._leaving = False
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        """In every child, before it does anything."""
        if os.getppid() != self._home or not _is_forking(sys._getframe(1)):
            return
        if self._leaving:
            os._exit(0)  # a pool that misses one of its processes starts another
        # Not where another thread has forked, whose end the system would take for the worker's.
        if threading.get_ident() == self._main and end_with_parent() and os.getppid() != self._home:
            os._exit(0)

    def end(self) -> None:
        """Kill it; the worker leaves next. Not by SIGTERM, of which they may think otherwise."""
        self._leaving = True
        for kind in KINDS:
            if kind in sys.modules:
                with contextlib.suppress(Exception):
                    for child in sys.modules[kind].active_children():
                        child.kill()


def _is_forking(frame: FrameType | None) -> bool:
    """Whether it is multiprocessing that forks in this frame."""
    return frame is not None and frame.f_globals.get("__name__") in FORKING


__all__ = ["Offspring", "come_back_alone", "end_if_forked"]
