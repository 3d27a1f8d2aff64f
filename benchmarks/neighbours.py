"""How much CPU others took while something of ours ran, and an end to whatever it left behind.

The system's own count of busy CPU time (``/proc/stat``, time stolen by a hypervisor included), less what this process
and everything it started used. While it watches, this process adopts its orphaned descendants, so that daemons are
counted with those who started them; they are killed when the watch ends. Linux only: elsewhere nothing is known.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BUSY_CORES = 0.3
"""A run beside which others took more than this is not to be believed."""

PR_SET_CHILD_SUBREAPER = 36
BUSY_FIELDS = (0, 1, 2, 5, 6, 7)
"""user, nice, system, irq, softirq, steal; not idle and waiting for disks, and guests are counted as users."""

END_TIMEOUT_S = 30


@dataclass(slots=True)
class Seen:
    """``others``: how many cores they took on the average; None where the system does not tell."""

    wall_s: float = 0.0
    others: float | None = None

    @property
    def busy(self) -> bool:
        return self.others is not None and self.others > BUSY_CORES


@contextlib.contextmanager
def watched() -> Iterator[Seen]:
    """Watch the machine during the block; what was seen is known after it. Everything started inside ends with it."""
    seen = Seen()
    children = set(_children())
    _adopt_orphans(True)
    busy_s, own_s, started_s = _busy_s(), _own_s(), time.perf_counter()
    try:
        yield seen
    finally:
        seen.wall_s = time.perf_counter() - started_s
        _end_children(keep=children)
        _adopt_orphans(False)
        if busy_s is not None:
            # The ending above belongs to ours as well as to the machine's time.
            took_s = (_busy_s() or 0.0) - busy_s - (_own_s() - own_s)
            seen.others = max(0.0, took_s) / (time.perf_counter() - started_s)


def _busy_s() -> float | None:
    try:
        fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    except OSError:
        return None
    return sum(int(fields[n]) for n in BUSY_FIELDS) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(of.ru_utime + of.ru_stime for of in used)


def _adopt_orphans(adopt: bool) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def _children() -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                yield int(path.parent.name)


def _end_children(keep: set[int]) -> None:
    """Kill and reap all children but those to keep, and the orphans that this makes ours."""
    deadline_s = time.monotonic() + END_TIMEOUT_S
    while left := set(_children()) - keep:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"processes {sorted(left)} did not end within {END_TIMEOUT_S} s of being killed")
        for pid in left:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
