"""What is known of the latest run over a state directory: who it is, where it listens, and how it ended.

``run.json`` is written when a run starts and again when it ends. A run that was killed leaves the first of the two.
Nothing depends on it but those who watch: the journals alone say what is open.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "run.json"
LOCK = "supervisor.lock"
"""Held, with its process id in it, by whoever is at work in the state directory; see `state`."""
NEW_NAME = NAME + ".new"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run. Times are wall-clock seconds; ``ended_s`` None: it goes on, or was killed.

    ``outcome`` is finished, stopped or failed; ``status`` the last one, as plain values.
    """

    pid: int
    started_s: float
    mode: str
    control: str | None = None
    metrics_port: int | None = None
    ended_s: float | None = None
    outcome: str | None = None
    error: str | None = None
    status: dict[str, Any] | None = None

    def write(self, state_dir: Path) -> None:
        """Replace what was there before, at once."""
        path = state_dir / NEW_NAME
        with open(path, "w", opener=private) as file:
            json.dump(dataclasses.asdict(self), file, indent=1)
        os.replace(path, state_dir / NAME)


def private(path: str, flags: int) -> int:
    """An opener of files that only their owner can read."""
    return os.open(path, flags, 0o600)


def read_run_record(state_dir: Path) -> RunRecord | None:
    """The latest run's record; None where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return RunRecord(**json.loads((state_dir / NAME).read_bytes()))
    return None


def holder_of(state_dir: Path) -> int | None:
    """The process that holds the state directory just now, 0 where it has not said who it is; None: nobody does.

    Looking takes the lock for a moment: whoever wants it must try more than once.
    """
    try:
        lock = os.open(state_dir / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        told = os.pread(lock, 32, 0).decode(errors="replace").strip()
        return int(told) if told.isdecimal() else 0
    finally:
        os.close(lock)
