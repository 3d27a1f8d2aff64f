"""Sockets that others may connect to: who may, and how they are made."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
import time
from pathlib import Path

from consecution.errors import SourceError, UsageError, reason_of
from consecution.own_descriptors import give_back, keep_from_children

IN_USE_WAIT_S = 5.0
"""So long an address that is in use is asked for again: a worker that was killed may not be quite gone."""
BACKLOG = 512


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it. A name other than localhost may be anything."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_reach(kind: str, host: str, *, allowed: bool, remedy: str) -> None:
    """UsageError where anybody on the network could put items in, and nobody has said that this is meant."""
    if not allowed and not is_loopback(host):
        raise UsageError(
            f"Producer({kind!r}, host={host!r}): everybody who reaches this address could put items in; {remedy}, or "
            "keep to host='127.0.0.1'"
        )


def check_port(kind: str, port: object) -> None:
    """UsageError for what no port can be."""
    if not isinstance(port, int) or not 0 <= port <= 65535:
        raise UsageError(f"Producer({kind!r}, port={port!r}): expected a number from 0 (any that is free) to 65535")


class _Listener(socket.socket):
    """Not held by forked children: one that outlives a killed worker would keep the address from the next."""

    def __init__(self, *kind: int) -> None:
        super().__init__(*kind)
        keep_from_children(self.fileno())

    def close(self) -> None:
        if self.fileno() >= 0:
            give_back(self.fileno())
        super().close()


def listen_tcp(kind: str, host: str, port: int) -> socket.socket:
    """A listening socket. SourceError, naming the address, where it cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        what = f"the address {host}:{port} is none: {reason_of(error)}"
        raise SourceError(f"{kind}: {what}; mend host and port") from error
    # asyncio sends small answers at once only where it sees that this is TCP; else each waits 40 ms for the client.
    listener = _Listener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(listener, address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise SourceError(
            f"{kind}: cannot listen at {host}:{port}: {error.strerror or error}; free that address, or give another"
        ) from error
    return listener


def _bind(listener: socket.socket, address: object) -> None:
    deadline_s = time.monotonic() + IN_USE_WAIT_S
    while True:
        try:
            listener.bind(address)  # type: ignore[arg-type]
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)


def listen_unix(kind: str, path: Path) -> socket.socket:
    """A listening socket in the file system, for its owner only. One that a dead process has left is replaced."""
    listener = _Listener(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        remove_left_over(kind, path)
        before = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise SourceError(
            f"{kind}: cannot listen at {path}: {error.strerror or error}; give a short path in a folder that is yours"
        ) from error
    except BaseException:
        listener.close()
        raise
    return listener


def remove_left_over(kind: str, path: Path) -> None:
    """Make way for a socket at this path. SourceError where somebody listens there, or something else is there."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SourceError(f"{kind}: {path} is there, and no socket: give another path, or remove it")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return
    raise SourceError(f"{kind}: somebody listens at {path} already: stop that, or give another path")
