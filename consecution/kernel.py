"""What Linux lets a thread ask for, by ``prctl``. Other systems are left as they are."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
from collections.abc import Callable

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


__all__ = ["end_with_parent", "set_timer_slack"]
