"""Everything workers print, log or crash with, in one stream, each line marked with its task and pid."""

from __future__ import annotations

import os
import selectors
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from consecution.runtime.log_file import LogFile, LogLine
from consecution.telling import write

LONGEST_LINE_BYTES = 64 * 1024
TAIL_LINES = 200
TAIL_WAIT_S = 1.0
CRASH_MARK = "Fatal Python error"
THREAD_MARK = "Current thread"


class Tail:
    """The last lines of one worker. ``ended`` is set when no more will come."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=TAIL_LINES)
        self.ended = threading.Event()

    def native_stack(self, timeout_s: float = TAIL_WAIT_S) -> str:
        """What the interpreter wrote of the thread that crashed, once all is read; "" if that was nothing."""
        self.ended.wait(timeout_s)
        found: list[str] = []
        for line in list(self.lines):
            if line.startswith(CRASH_MARK):
                found = [line]
            elif line.startswith(THREAD_MARK) and found:
                found = [found[0], line]
            elif line.startswith("  ") and len(found) > 1:
                found.append(line)
        return "\n".join(found)


@dataclass(slots=True)
class _Writer:
    """One worker, and what it has written since its last whole line."""

    mark: str
    pid: int | None
    rest: bytes = b""
    tail: Tail = field(default_factory=Tail)


class LogStream:
    """Where all lines come together: standard error, as text or JSON, and the file in the state directory."""

    def __init__(self, *, as_json: bool = False, file: LogFile | None = None) -> None:
        self.as_json = as_json
        self._file = file

    def write(self, mark: str, pid: int | None, texts: Sequence[str]) -> None:
        """Lines of one task or worker. Any thread may call; nobody waits."""
        lines = [LogLine.now(mark, pid, text) for text in texts]
        write("".join(f"{line.to_json() if self.as_json else line}\n" for line in lines))
        if self._file is not None:
            self._file.write(lines)

    def say(self, mark: str, text: str) -> None:
        """Put words of our own into the stream."""
        self.write(mark, None, text.splitlines())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class LogPump:
    """A thread that reads what the workers write and passes it on, line by line."""

    def __init__(self, stream: LogStream | None = None) -> None:
        self._stream = stream or LogStream()
        self._selector = selectors.DefaultSelector()
        self._readable, self._wake = os.pipe()
        self._selector.register(self._readable, selectors.EVENT_READ, None)
        self._new: list[tuple[int, _Writer]] = []
        self._closing = False
        self._open: dict[int, _Writer] = {}
        self._thread = threading.Thread(target=self._run, name="consecution-logs", daemon=True)
        self._thread.start()

    def add(self, fd: int, mark: str, pid: int | None = None) -> Tail:
        """Pass on what comes out of ``fd``, and close it at its end. Any thread may call."""
        writer = _Writer(mark, pid)
        self._new.append((fd, writer))
        os.write(self._wake, b".")
        return writer.tail

    def close(self, timeout_s: float = 2.0) -> None:
        """Pass on what is left; a pipe that a worker's own children hold open is not waited for."""
        self._closing = True
        os.write(self._wake, b".")
        self._thread.join(timeout_s)

    def _run(self) -> None:
        events: list[Any] = [None]
        while not self._closing or self._new or (self._open and events):
            events = self._selector.select(0.2 if self._closing else None)
            for key, _ in events:
                if key.fd == self._readable:
                    os.read(self._readable, 4096)
                else:
                    self._pass_on(key.fd)
            while self._new:
                fd, writer = self._new.pop(0)
                self._open[fd] = writer
                self._selector.register(fd, selectors.EVENT_READ, None)
        for fd in list(self._open):
            self._forget(fd)
        self._selector.close()
        os.close(self._readable)
        os.close(self._wake)

    def _pass_on(self, fd: int) -> None:
        writer = self._open[fd]
        chunk = os.read(fd, 65536)
        if not chunk:
            self._forget(fd)
            return
        *lines, writer.rest = (writer.rest + chunk).split(b"\n")
        if len(writer.rest) > LONGEST_LINE_BYTES:
            lines.append(writer.rest)
            writer.rest = b""
        if lines:
            texts = [line.decode(errors="backslashreplace") for line in lines]
            writer.tail.lines.extend(texts)
            self._stream.write(writer.mark, writer.pid, texts)

    def _forget(self, fd: int) -> None:
        writer = self._open.pop(fd)
        self._selector.unregister(fd)
        os.close(fd)
        writer.tail.ended.set()
        if writer.rest:
            self._stream.write(writer.mark, writer.pid, [writer.rest.decode(errors="backslashreplace")])
