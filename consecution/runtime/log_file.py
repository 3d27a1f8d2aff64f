"""The log of a run in its state directory: JSON lines, in files that are renamed when they have grown.

::

    log/run.jsonl      {"time": "2026-11-24T23:23:58.123456+00:00", "task": "balance.0", "pid": 23453, "text": "ready"}
    log/run.jsonl.1    what came before, up to .4, the oldest

Whatever goes wrong in writing (a full disk, say) costs lines and nothing else: no worker waits for its log.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from consecution.runtime.run_record import private

FOLDER = "log"
NAME = "run.jsonl"
LARGEST_BYTES = 16 * 1024 * 1024
KEPT = 4
"""Older files beside the one that is written to."""
LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line; ``task`` is the task or worker that wrote it, or "supervisor". ``pid`` None: it is our own."""

    time: str
    task: str
    pid: int | None
    text: str

    @classmethod
    def now(cls, task: str, pid: int | None, text: str) -> LogLine:
        return cls(datetime.now(UTC).isoformat(timespec="microseconds"), task, pid, text)

    def to_json(self) -> str:
        return json.dumps({"time": self.time, "task": self.task, "pid": self.pid, "text": self.text})

    def __str__(self) -> str:
        return f"[{self.task}] {self.text}" if self.pid is None else f"[{self.task} {self.pid}] {self.text}"

    def is_of(self, names: Iterable[str]) -> bool:
        """Whether one of these names is that of its task, or of the node of its task."""
        node, _, replica = self.task.rpartition(".")
        return any(name == self.task or (replica.isdecimal() and name == node) for name in names)


class LogFile:
    """The file that a run writes to. Any thread may write."""

    def __init__(self, state_dir: Path, *, largest_bytes: int = LARGEST_BYTES) -> None:
        self._path = state_dir / FOLDER / NAME
        self._largest_bytes = largest_bytes
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None

    def write(self, lines: Iterable[LogLine]) -> None:
        """Append these lines."""
        written = "".join(f"{line.to_json()}\n" for line in lines).encode()
        with self._lock, contextlib.suppress(OSError, ValueError):
            file = self._file if self._file is not None else self._open()
            if file.tell() and file.tell() + len(written) > self._largest_bytes:
                file = self._rotate()
            file.write(written)
            file.flush()

    def _open(self) -> BinaryIO:
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        self._file = open(self._path, "ab", opener=private)
        self._end_torn_line(self._file)
        return self._file

    def _end_torn_line(self, file: BinaryIO) -> None:
        """A run that was killed may have left half a line."""
        with open(self._path, "rb") as found:
            if file.tell() and (found.seek(-1, os.SEEK_END), found.read(1))[1] != b"\n":
                file.write(b"\n")

    def _rotate(self) -> BinaryIO:
        self.close()
        names = [self._path, *(_older(self._path, number) for number in range(1, KEPT + 1))]
        for newer, older in reversed(list(itertools.pairwise(names))):
            with contextlib.suppress(FileNotFoundError):
                os.replace(newer, older)
        return self._open()

    def close(self) -> None:
        """A later `write` opens it again."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _older(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def read_log(state_dir: Path) -> Iterator[LogLine]:
    """All lines that are kept, the oldest first."""
    with _opened(state_dir / FOLDER / NAME) as files:
        for file in files:
            yield from _parsed(file)


def follow_log(state_dir: Path) -> Iterator[LogLine | None]:
    """All lines that are kept, then those that come, for ever; None now and then, while there is nothing new."""
    path = state_dir / FOLDER / NAME
    with contextlib.ExitStack() as kept:
        seen: BinaryIO | None = None  # open until the next one is found: no other file gets its number meanwhile
        while True:
            with _opened(path) as files:
                new = _behind(seen, files)
                for file in new[:-1]:
                    yield from _parsed(file)
                for newest in new[-1:]:
                    yield from _grown(path, newest)
                    kept.close()
                    seen = kept.enter_context(os.fdopen(os.dup(newest.fileno()), "rb"))
            if not new:
                yield None
                time.sleep(LOOK_EVERY_S)


def _behind(seen: BinaryIO | None, files: list[BinaryIO]) -> list[BinaryIO]:
    """Those that came after one; all, where that is there no more. Who reads slowly may be several behind."""
    for number, file in enumerate(files):
        if seen is not None and os.path.sameopenfile(file.fileno(), seen.fileno()):
            return files[number + 1 :]
    return files


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[list[BinaryIO]]:
    """All files of a log, the oldest first, before any is read: until then a run may rename them, and others come.

    From the newest on, so that one that is renamed meanwhile is not missed, but met twice.
    """
    files: list[BinaryIO] = []
    with contextlib.ExitStack() as stack:
        for name in (path, *(_older(path, number) for number in range(1, KEPT + 1))):
            with contextlib.suppress(FileNotFoundError):
                file = stack.enter_context(open(name, "rb"))
                if not any(os.path.sameopenfile(file.fileno(), other.fileno()) for other in files):
                    files.insert(0, file)
        yield files


def _grown(path: Path, file: BinaryIO) -> Iterator[LogLine | None]:
    """The lines of one file, until another one has its name."""
    rest = b""
    while True:
        replaced = not _is_still(path, file)
        while chunk := file.read(1 << 20):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from _parsed(lines)
        if replaced:  # looked before the last read: what was written before the renaming is here
            return
        yield None
        time.sleep(LOOK_EVERY_S)


def _is_still(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _parsed(lines: Iterable[bytes]) -> Iterator[LogLine]:
    """What is no line of ours, as a crash may leave it, is passed over."""
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found: dict[str, Any] = json.loads(line)
            yield LogLine(str(found["time"]), str(found["task"]), found["pid"], str(found["text"]))
