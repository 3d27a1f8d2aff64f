"""What Linux lets a thread ask for. Other systems are left as they are."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable

PR_SET_PDEATHSIG = 1
PR_SET_TIMERSLACK = 29


def _find_prctl() -> Callable[..., int] | None:
    """Looked for in time: a forked child must not load libraries."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            found: Callable[..., int] = ctypes.CDLL(None).prctl
            return found
    return None


_prctl = _find_prctl()


def _ask(option: int, value: int) -> bool:
    """Whether there is somebody to ask."""
    if _prctl is None:
        return False
    _prctl(option, ctypes.c_ulong(value), 0, 0, 0)
    return True


def end_with_parent() -> bool:
    """Have this process killed when the thread that has started it ends. False: this system does not do that."""
    return _ask(PR_SET_PDEATHSIG, signal.SIGKILL)


def set_timer_slack(nanoseconds: int) -> None:
    """So much later than asked for may sleeps of the calling thread end, and those of threads that it starts."""
    _ask(PR_SET_TIMERSLACK, nanoseconds)


def cores_allowed(thread: int = 0) -> frozenset[int]:
    """The cores that a thread (0: the calling one) may run on; none where nobody says."""
    if sys.platform != "linux":
        return frozenset()
    try:
        return frozenset(os.sched_getaffinity(thread))
    except OSError:
        return frozenset()


def keep_to(cores: Iterable[int], thread: int = 0) -> bool:
    """Let a thread (0: the calling one) run on these cores only; False where that cannot be asked for."""
    if sys.platform != "linux":
        return False
    try:
        os.sched_setaffinity(thread, cores)
    except (OSError, ValueError):
        return False
    return True


def cores_to_go_back_to() -> Iterable[int]:
    """What the calling thread is to `keep_to` once it has been kept to less, so that all is as it was.

    Where it was limited by its container alone, that is all cores: Linux (since 6.2) remembers what a thread has asked
    for, and would not let it have those that the container is given later.
    """
    allowed = cores_allowed()
    every = range(max(os.cpu_count() or 1, *allowed, 1) + 1)
    if keep_to(every) and cores_allowed() == allowed:
        return every
    keep_to(allowed)
    return allowed


__all__ = ["cores_allowed", "cores_to_go_back_to", "end_with_parent", "keep_to", "set_timer_slack"]
