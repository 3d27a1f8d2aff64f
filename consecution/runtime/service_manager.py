"""Tells the service manager (systemd, or whoever plays it) how a run is doing, by the protocol of ``sd_notify``.

::

    a datagram   READY=1 \\n STATUS=running: 1,204 done \\n WATCHDOG=1
    sent to      the Unix socket that NOTIFY_SOCKET names: a path, or with "@" in front an abstract name

The supervisor's loop calls it, and nobody else: a loop that hangs sends no WATCHDOG=1, and the service manager ends it.

Source: the manual pages sd_notify(3) and sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping

SOCKET = "NOTIFY_SOCKET"
WATCHDOG_USEC = "WATCHDOG_USEC"
WATCHDOG_PID = "WATCHDOG_PID"
VARIABLES = frozenset({SOCKET, WATCHDOG_USEC, WATCHDOG_PID})
"""They are meant for this process: workers do not get them."""
STATUS_EVERY_S = 5.0
LONGER_S = 30
"""What takes its time (a start, a stop) asks for so much more of it, again and again: the run's own limits end it."""


class ServiceManager:
    """The service manager of this process. One thread uses it; nothing here waits.

    ``watchdog_s`` is how long it waits for a sign of life; None: it waits for none. What cannot be sent just now is
    sent at the next turn. ``clock`` gives monotonic seconds.
    """

    def __init__(
        self, address: str, watchdog_s: float | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_s = watchdog_s
        self._clock = clock
        self._told: set[str] = set()
        self._state = ""
        self._said_s = 0.0
        self._alive_s = float("-inf")

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> ServiceManager | None:
        """The one that these variables name; None: there is none, or it is no socket of this machine's."""
        address = environment.get(SOCKET, "")
        return cls(address, _watchdog_s(environment)) if address.startswith(("/", "@")) else None

    def turn(self, state: str, *, ready: bool, describe: Callable[[], str]) -> None:
        """The loop has come round. ``state`` is that of `Status`, which ``describe`` tells in a line."""
        now_s, stopping = self._clock(), state == "stopping"
        once = {line for line, is_so in (("READY=1", ready), ("STOPPING=1", stopping)) if is_so} - self._told
        lines = sorted(once)
        if say := state != self._state or now_s - self._said_s >= STATUS_EVERY_S:
            lines.append(f"STATUS={_one_line(describe())}")
            if stopping or not ready:
                lines.append(f"EXTEND_TIMEOUT_USEC={LONGER_S * 1_000_000}")
        if alive := self._watchdog_s is not None and now_s - self._alive_s >= self._watchdog_s / 2:
            lines.append("WATCHDOG=1")
        if lines and self._send(lines):
            self._told |= once
            self._state, self._said_s = (state, now_s) if say else (self._state, self._said_s)
            self._alive_s = now_s if alive else self._alive_s

    def end(self, said: str, *, failed: bool) -> None:
        """The run is over. One that was over before all workers were up has started well all the same."""
        ready = [] if failed or "READY=1" in self._told else ["READY=1"]
        self._send([*ready, f"STATUS={_one_line(said)}"])

    def _send(self, lines: list[str]) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(), self._address)
            return True
        return False


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    if environment.get(WATCHDOG_PID, str(os.getpid())) != str(os.getpid()):
        return None
    usec = environment.get(WATCHDOG_USEC, "")
    return int(usec) / 1e6 if usec.isdecimal() and int(usec) else None


__all__ = ["VARIABLES", "ServiceManager"]
