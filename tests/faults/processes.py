"""Looks in /proc for everything that belongs to a run: whatever it has started inherits a mark."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "CONSECUTION_FAULTS_RUN"


@dataclass(frozen=True, slots=True)
class Found:
    """A process of the run."""

    pid: int
    command: str
    parent: int = 0


def of_run(mark: str) -> list[Found]:
    """All processes of the run that still live."""
    wanted = f"{VARIABLE}={mark}".encode()
    return [
        Found(int(folder.name), _command(folder), _parent(folder))
        for folder in _folders()
        if wanted in _environment(folder)
    ]


def wait_until_gone(mark: str, within_s: float) -> list[Found]:
    """Wait for all processes of the run to end by themselves; the ones that did not."""
    deadline_s = time.monotonic() + within_s
    while (left := of_run(mark)) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return left


def _folders() -> Iterator[Path]:
    return (folder for folder in Path("/proc").iterdir() if folder.name.isdigit())


def _environment(folder: Path) -> list[bytes]:
    with contextlib.suppress(OSError):
        return (folder / "environ").read_bytes().split(b"\0")
    return []


def _command(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    return "?"


def _parent(folder: Path) -> int:
    """0 where it has just ended."""
    with contextlib.suppress(OSError):
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    return 0
