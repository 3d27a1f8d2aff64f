"""Descriptors that a forked child of this process must not hold, whoever has made it.

A lock is held, and a pipe has not ended, as long as anybody has a copy of it: one child that user code has forked, and
that outlives a killed process, would keep everybody else out. So each child gives up its copies before anything else.
Their numbers stay taken, by the null device: what the child's copies of our objects close is nobody else's.
"""

from __future__ import annotations

import contextlib
import os

_ours: set[int] = set()


def keep_from_children(fd: int) -> int:
    """From now on no child that is forked keeps ``fd``. Returns it; `give_back` goes before its close."""
    _ours.add(fd)
    return fd


def give_back(fd: int) -> int:
    """The number may be another's soon. Returns it. Harmless when repeated."""
    _ours.discard(fd)
    return fd


def _give_up() -> None:
    """In the child, before it does anything. No lock is taken: another thread may have held it."""
    if not _ours:
        return
    with contextlib.suppress(OSError):
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in _ours:
            os.dup2(nothing, fd, inheritable=False)
        os.close(nothing)
    _ours.clear()


os.register_at_fork(after_in_child=_give_up)
