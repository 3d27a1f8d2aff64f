"""Work that goes on although one of its workers is killed: who dies, who kills, and what came out.

Numbers come one by one, a step passes them on (`pass_on` notes the process it is in), and a sink appends each with the
moment to a file. Some time into it, that process is killed with SIGKILL. Output flows again with the first
number written that was due only after the kill: what was in flight behind the dead one does not count.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.task import Dated, Task, current

BEFORE = 500
"""So many numbers are written before the kill."""

PATIENCE_S = 45
POLL_S = 0.005


@functools.cache
def _note_victim() -> None:
    path = current().folder / "victim"
    partial = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    partial.write_text(str(os.getpid()))
    partial.rename(path)


def pass_on(item: Dated) -> Dated:
    """The step whose process is killed."""
    _note_victim()
    return item


@functools.cache
def _out() -> int:
    return os.open(current().folder / "out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def write(items: list[Dated]) -> None:
    """The sink."""
    now_s = time.time()
    os.write(_out(), "".join(f"{now_s!r} {number} {due_s!r}\n" for number, due_s in items).encode())


@dataclass(frozen=True, slots=True)
class Written:
    at_s: float
    number: int
    due_s: float


def written(folder: Path) -> list[Written]:
    """What is in the sink by now."""
    path = folder / "out"
    text = path.read_text() if path.exists() else ""
    rows = (line.split() for line in text[: text.rfind("\n") + 1].splitlines())
    return [Written(float(at), int(number), float(due)) for at, number, due in rows]


def wait_until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> bool:
    """False if it does not become true in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(POLL_S)
    return True


def strike() -> threading.Thread:
    """Kill the process of `pass_on`, in a thread, once enough was written."""

    def kill() -> None:
        folder = current().folder
        if wait_until(lambda: len(written(folder)) >= BEFORE):
            pid = int((folder / "victim").read_text())
            (folder / "killed").write_text(repr(time.time()))
            os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def all_written(task: Task) -> bool:
    """Every number has come out."""
    return len({row.number for row in written(task.folder)}) == task.size


def sum_up(task: Task) -> dict[str, Any]:
    """What the run shows. ``flows_again_s`` is None if nothing came out any more."""
    killed_s = float((task.folder / "killed").read_text())
    rows = written(task.folder)
    again_s = [row.at_s for row in rows if row.due_s > killed_s]
    times = Counter(row.number for row in rows)
    return {
        "flows_again_s": min(again_s) - killed_s if again_s else None,
        "lost": task.size - len(times),
        "doubled": sum(times.values()) - len(times),
    }
