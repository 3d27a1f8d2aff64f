"""Named places in the code where a test may kill the process.

``CONSECUTION_FAILPOINTS="origin.committed@3:/path/token,..."`` kills the process, as ``kill -9`` does,
when the place is passed for the third time; the token is a file that the kill removes first, so that a
restarted process passes. Where the token holds the word "group", the whole process group dies with it. Without
the variable a failpoint is one look at an empty dict.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "CONSECUTION_FAILPOINTS"
NAMES = (
    "origin.before_commit",
    "origin.committed",
    "origin.launched",
    "origin.told",
    "durable.applied",
    "durable.acked",
    "durable.confirmed",
    "outside.before_commit",
    "outside.committed",
    "task.before_step",
    "task.stepped",
    "task.sent",
    "task.acked",
    "worker.begun",
    "worker.switched",
    "worker.closing",
    "supervisor.started_worker",
    "supervisor.wired",
    "supervisor.replayed",
    "supervisor.mourned",
    "supervisor.finishing",
    "supervisor.finished",
    "failed.reopened",
    "failed.born",
    "failed.dropped",
    "failed.moved",
)
GROUP = "group"


@dataclass(slots=True)
class _Trap:
    passes_left: int
    token: str


_traps: dict[str, _Trap] = {}
_watchers: list[Callable[[str], None]] = []


@contextmanager
def watched(by: Callable[[str], None]) -> Iterator[None]:
    """Tell ``by`` of every place that is passed; what it raises is raised there. For simulations."""
    _watchers.append(by)
    try:
        yield
    finally:
        _watchers.remove(by)


def arm(text: str) -> None:
    """Set the traps that ``text`` describes, and no others."""
    _traps.clear()
    for part in filter(None, text.split(",")):
        name, _, rest = part.partition("@")
        count, _, token = rest.partition(":")
        if name not in NAMES:
            raise ValueError(f"{VARIABLE}: unknown failpoint {name!r}; known: {', '.join(NAMES)}")
        _traps[name] = _Trap(int(count), token)


def passed(name: str) -> None:
    """Die here if a trap is set, its count is reached and its token still lies there."""
    for watcher in _watchers:
        watcher(name)
    trap = _traps.get(name)
    if trap is None:
        return
    trap.passes_left -= 1
    if trap.passes_left > 0:
        return
    del _traps[name]
    try:
        whom = Path(trap.token).read_text()
        os.unlink(trap.token)
    except FileNotFoundError:
        return
    os.kill(0 if whom == GROUP else os.getpid(), signal.SIGKILL)
