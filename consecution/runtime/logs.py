"""Everything workers print, log or crash with, in one stream, each line marked with its task and pid."""

from __future__ import annotations

import contextlib
import os
import selectors
import sys
import threading
from collections import deque
from typing import Any

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


class LogPump:
    """A thread that reads what the workers write and passes it on to standard error, line by line."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._readable, self._wake = os.pipe()
        self._selector.register(self._readable, selectors.EVENT_READ, None)
        self._new: list[tuple[int, str, Tail]] = []
        self._closing = False
        self._open: dict[int, tuple[str, bytes, Tail]] = {}
        self._thread = threading.Thread(target=self._run, name="consecution-logs", daemon=True)
        self._thread.start()

    def add(self, fd: int, mark: str) -> Tail:
        """Pass on what comes out of ``fd``, and close it at its end. Any thread may call."""
        tail = Tail()
        self._new.append((fd, mark, tail))
        os.write(self._wake, b".")
        return tail

    def say(self, mark: str, text: str) -> None:
        """Put a line of our own into the stream."""
        say(mark, text)

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
                fd, mark, tail = self._new.pop(0)
                self._open[fd] = (mark, b"", tail)
                self._selector.register(fd, selectors.EVENT_READ, None)
        for fd in list(self._open):
            self._forget(fd)
        self._selector.close()
        os.close(self._readable)
        os.close(self._wake)

    def _pass_on(self, fd: int) -> None:
        mark, rest, tail = self._open[fd]
        chunk = os.read(fd, 65536)
        if not chunk:
            self._forget(fd)
            return
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > LONGEST_LINE_BYTES:
            lines.append(rest)
            rest = b""
        self._open[fd] = (mark, rest, tail)
        if lines:
            texts = [line.decode(errors="backslashreplace") for line in lines]
            tail.lines.extend(texts)
            _write("".join(f"[{mark}] {text}\n" for text in texts))

    def _forget(self, fd: int) -> None:
        mark, rest, tail = self._open.pop(fd)
        self._selector.unregister(fd)
        os.close(fd)
        tail.ended.set()
        if rest:
            _write(f"[{mark}] {rest.decode(errors='backslashreplace')}\n")


def say(mark: str, text: str) -> None:
    """A line of our own, where there is no pump yet."""
    _write(f"[{mark}] {text}\n")


def _write(text: str) -> None:
    """Whatever standard error is and does (closed, a broken pipe, None), workers must not wait for it."""
    with contextlib.suppress(Exception):
        sys.stderr.write(text)
        sys.stderr.flush()
