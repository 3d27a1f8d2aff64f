"""Plays the service manager: the socket that NOTIFY_SOCKET names, and what has come over it."""

from __future__ import annotations

import os
import socket
import time
import uuid
from pathlib import Path

LONGEST_WAIT_S = 60.0


class NotifySocket:
    """Takes datagrams at an abstract name, or at ``path``. ``lines`` are all that have come, in order."""

    def __init__(self, path: Path | None = None) -> None:
        self.address = f"@consecution-{uuid.uuid4()}" if path is None else str(path)
        self.lines: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address.replace("@", "\0", 1) if path is None else self.address)

    def environment(self, watchdog_s: float | None = None) -> dict[str, str]:
        """That of a service which is to notify this one, and to send a sign of life within so many seconds."""
        usec = {} if watchdog_s is None else {"WATCHDOG_USEC": str(int(watchdog_s * 1e6))}
        return {**os.environ, "NOTIFY_SOCKET": self.address, **usec}

    def read(self, timeout_s: float) -> list[str]:
        """The lines of the next datagram; none where none comes in time."""
        self._socket.settimeout(timeout_s)
        try:
            came = self._socket.recv(65536).decode().split("\n")
        except (TimeoutError, BlockingIOError):
            return []
        self.lines += came
        return came

    def read_all(self) -> list[str]:
        """The lines that are there now."""
        found: list[str] = []
        while came := self.read(0.0):
            found += came
        return found

    def wait_for(self, start: str) -> list[str]:
        """The lines that come, up to the datagram that has one with this start."""
        found: list[str] = []
        deadline_s = time.monotonic() + LONGEST_WAIT_S
        while not any(line.startswith(start) for line in found):
            assert time.monotonic() < deadline_s, f"{start!r} has not come: {self.lines}"
            found += self.read(1.0)
        return found

    def close(self) -> None:
        self._socket.close()
        if self.address.startswith("/"):
            os.unlink(self.address)
