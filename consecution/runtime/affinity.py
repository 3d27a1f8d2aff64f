"""Which core a worker's loop waits on.

Linux wakes a thread where it thinks best. With hardly more cores than busy threads that is often a core where another
of ours is at work, and there it may stay for a while. So a loop is bound to one core while it waits, for messages or
for the disk, and wakes up there.

User code never runs bound. Threads and processes that it starts would be bound as well, and libraries that look how
many cores they may use would find one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from consecution.kernel import cores_allowed, cores_to_go_back_to, keep_to

TRANSPORT_THREADS = "/ZMQbg"
"""What ZeroMQ calls those that it starts, behind the prefix of their context."""


class Affinity:
    """Binds the thread that calls it to a core, from `bind` to `free`. Used by one thread.

    ``helpers`` finds threads that run nothing of the user's: those stay bound. A thread whose cores somebody else
    changes is left alone from then on, a helper too.
    """

    def __init__(self, helpers: Callable[[], Iterable[int]] = tuple) -> None:
        self._allowed = cores_allowed()
        self._home: Iterable[int] = self._allowed
        self._helpers = helpers
        self._core: int | None = None

    @property
    def core(self) -> int | None:
        """Where it waits; None: wherever the system likes."""
        return self._core

    def wait_on(self, core: int | None) -> None:
        """Wait on this core from now on, and go there. None, or one that it may not use: wherever the system likes."""
        before, self._core = self._core, core if core in self._allowed and cores_allowed() == self._allowed else None
        if before is self._core is None:
            return
        if self._core is not None:
            self._home = cores_to_go_back_to()
        for helper in self._helpers():
            if cores_allowed(helper) == self._allowed or not (before is None or _was_moved(helper, before)):
                keep_to(self._home if self._core is None else (self._core,), helper)
        self.bind()
        self.free()

    def bind(self) -> None:
        """A wait begins."""
        core = self._core
        if core is not None and not (cores_allowed() == self._allowed and keep_to((core,))):
            self.wait_on(None)

    def free(self) -> None:
        """A wait is over: user code may come next."""
        core = self._core
        if core is None:
            return
        if _was_moved(0, core):
            self.wait_on(None)
        else:
            keep_to(self._home)


def _was_moved(thread: int, core: int) -> bool:
    """Whether somebody has chosen other cores for a thread that was bound to this one; it keeps those.

    Where the core is not to be had any more, it was the system.
    """
    cores = cores_allowed(thread)
    if cores == {core} or not keep_to((core,), thread):
        return False
    keep_to(cores, thread)
    return True


def transport_threads(prefix: int) -> frozenset[int]:
    """The threads of this process that serve the ZeroMQ context with this ``THREAD_NAME_PREFIX``.

    None where nobody says, and not before they have given themselves their name, which may be a while after the start.
    """
    found, begins = set(), f"{prefix}{TRANSPORT_THREADS}".encode()
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError):
                if Path("/proc/self/task", thread, "comm").read_bytes().startswith(begins):
                    found.add(int(thread))
    return frozenset(found)


__all__ = ["Affinity", "transport_threads"]
