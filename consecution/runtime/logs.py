"""Everything workers print, log or crash with, in one stream, each line marked with its task and pid."""

from __future__ import annotations

import contextlib
import os
import selectors
import sys
import threading
from typing import Any

LONGEST_LINE_BYTES = 64 * 1024


class LogPump:
    """A thread that reads what the workers write and passes it on to standard error, line by line."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._readable, self._wake = os.pipe()
        self._selector.register(self._readable, selectors.EVENT_READ, None)
        self._new: list[tuple[int, str]] = []
        self._closing = False
        self._open: dict[int, tuple[str, bytes]] = {}
        self._thread = threading.Thread(target=self._run, name="consecution-logs", daemon=True)
        self._thread.start()

    def add(self, fd: int, mark: str) -> None:
        """Pass on what comes out of ``fd``, and close it at its end. Any thread may call."""
        self._new.append((fd, mark))
        os.write(self._wake, b".")

    def say(self, mark: str, text: str) -> None:
        """Put a line of our own into the stream."""
        _write(f"[{mark}] {text}\n")

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
                fd, mark = self._new.pop(0)
                self._open[fd] = (mark, b"")
                self._selector.register(fd, selectors.EVENT_READ, None)
        for fd in list(self._open):
            self._forget(fd)
        self._selector.close()
        os.close(self._readable)
        os.close(self._wake)

    def _pass_on(self, fd: int) -> None:
        mark, rest = self._open[fd]
        chunk = os.read(fd, 65536)
        if not chunk:
            self._forget(fd)
            return
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > LONGEST_LINE_BYTES:
            lines.append(rest)
            rest = b""
        self._open[fd] = (mark, rest)
        if lines:
            _write("".join(f"[{mark}] {line.decode(errors='backslashreplace')}\n" for line in lines))

    def _forget(self, fd: int) -> None:
        mark, rest = self._open.pop(fd)
        self._selector.unregister(fd)
        os.close(fd)
        if rest:
            _write(f"[{mark}] {rest.decode(errors='backslashreplace')}\n")


def _write(text: str) -> None:
    """Whatever standard error is and does (closed, a broken pipe, None), workers must not wait for it."""
    with contextlib.suppress(Exception):
        sys.stderr.write(text)
        sys.stderr.flush()
