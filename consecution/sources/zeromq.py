"""Messages that others push to a PULL socket of ZeroMQ.

The rules it keeps:

1. ZeroMQ acknowledges nothing: what a socket has received and nobody has taken goes with the process. ``max_waiting``
   bounds that, and with ``max_message_bytes`` the memory it takes.
2. A message is bytes until its format says what it holds. None of the formats can make Python run anything.
3. What does not begin as ZeroMQ's protocol does, libzmq takes for the first version of it, which has no greeting: a
   page in somebody's browser could post messages. It takes that version from nobody where a handler of ZAP is to be
   asked who may come in; so there is one, which lets everybody in.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import zmq

from consecution.errors import SourceError, UsageError
from consecution.source import Source
from consecution.sources.json_values import DECODER
from consecution.sources.listening import IN_USE_WAIT_S, check_reach, remove_left_over
from consecution.sources.records import reject

KIND = "zmq"
LONGEST_WAIT_S = 0.5
"""With ``may_block``: how long a read waits for a message before it lets the caller look at other things."""
ZAP_ENDPOINT = "inproc://zeromq.zap.01"
"""Where libzmq asks who may come in; each context has its own."""


def _load_json(message: bytes) -> Any:
    return DECODER.decode(message.decode())


def _load_msgpack(message: bytes) -> Any:
    return msgpack.unpackb(message, strict_map_key=False)


FORMATS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "text": bytes.decode,
    "json": _load_json,
    "msgpack": _load_msgpack,
}
"""Format → what makes an item of a message."""


class ZmqSource(Source):
    """The messages that PUSH sockets send, as bytes, text (UTF-8), or what they hold (``"json"``, ``"msgpack"``).

    It binds to ``endpoint`` (``tcp://127.0.0.1:5170``, ``ipc:///run/me/in``), or with ``bind=False`` connects to a PUSH
    socket that is bound there. In ``tcp://127.0.0.1:*`` any free port is taken; `address` tells which. A socket file is
    its owner's alone; to bind to another host than this machine is refused unless ``allow_anyone``.

    A message that is no such thing, or has several parts, is `Rejected`. ZeroMQ itself drops one of more than
    ``max_message_bytes``, and whoever sent it. ``max_waiting`` messages of each sender may wait here to be taken; then
    they wait at the sender. Those that wait here are lost with the process: see docs/sources.md.

    The position is the number of items. UsageError for options that make no sense; SourceError from ``open`` where the
    endpoint cannot be had.
    """

    rejects = True

    def __init__(
        self,
        endpoint: str,
        *,
        bind: bool = True,
        format: str = "bytes",
        allow_anyone: bool = False,
        max_message_bytes: int = 1 << 20,
        max_waiting: int = 1000,
    ) -> None:
        if format not in FORMATS:
            raise UsageError(f"Producer('zmq', format={format!r}): expected one of {', '.join(map(repr, FORMATS))}")
        if max_message_bytes < 1 or max_waiting < 1:
            raise UsageError("Producer('zmq'): max_message_bytes and max_waiting must be at least 1")
        self._path = _check_endpoint(endpoint, reaches_out=not bind or allow_anyone)
        self._endpoint = endpoint
        self._bind = bind
        self._format = format
        self._max_message_bytes = max_message_bytes
        self._max_waiting = max_waiting
        self._count = 0
        self._context: zmq.Context[Any] | None = None
        self._socket: Any = None
        self._door: Any = None
        self._selector: selectors.BaseSelector | None = None
        self.address = None
        """The endpoint, while it is open."""

    def __repr__(self) -> str:
        return f"ZmqSource({self._endpoint!r})"

    # -- the contract ----------------------------------------------------------------------------

    def open(self, position: Any) -> None:
        self._count = 0 if position is None else int(position)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._context.linger = 0
        self._socket.set(zmq.RCVHWM, self._max_waiting)
        self._socket.set(zmq.MAXMSGSIZE, self._max_message_bytes)
        self._socket.set(zmq.TCP_KEEPALIVE, 1)
        self._socket.set(zmq.IPV6, int("[" in self._endpoint))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket.get(zmq.FD), selectors.EVENT_READ)
        try:
            if self._bind:
                self._guard_door()
                self._take_address()
            else:
                self._socket.connect(self._endpoint)
        except zmq.ZMQError as error:
            self.close()
            doing = "bind to" if self._bind else "connect to"
            raise SourceError(f"zmq: cannot {doing} {self._endpoint}: {error}; free it, or give another") from error
        except BaseException:
            self.close()
            raise
        self.address = self._socket.get(zmq.LAST_ENDPOINT).decode().rstrip("\0")

    def _guard_door(self) -> None:
        assert self._context is not None
        assert self._selector is not None
        self._door = self._context.socket(zmq.REP)
        self._door.bind(ZAP_ENDPOINT)
        self._selector.register(self._door.get(zmq.FD), selectors.EVENT_READ)
        self._socket.set(zmq.ZAP_DOMAIN, b"consecution")

    def _let_in(self) -> None:
        """Answer those that ask to come in."""
        with contextlib.suppress(zmq.Again):
            while self._door is not None:
                version, request_id, *_ = self._door.recv_multipart(zmq.DONTWAIT)
                self._door.send_multipart([version, request_id, b"200", b"", b"", b""])

    def _take_address(self) -> None:
        if self._path is not None:
            remove_left_over(KIND, self._path)  # ZeroMQ would take the place of whoever listens there.
        deadline_s = time.monotonic() + IN_USE_WAIT_S
        before = os.umask(0o177)
        try:
            while True:
                try:
                    self._socket.bind(self._endpoint)
                    return
                except zmq.ZMQError as error:
                    if error.errno != errno.EADDRINUSE or time.monotonic() > deadline_s:
                        raise
                time.sleep(0.05)
        finally:
            os.umask(before)

    def read(self, max_items: int) -> list[Any]:
        assert self._socket is not None, "read before open"
        assert self._selector is not None
        items = self._receive(max_items)
        if not items and self.may_block:
            self._selector.select(LONGEST_WAIT_S)
            items = self._receive(max_items)
        self._count += len(items)
        return items

    def _receive(self, max_items: int) -> list[Any]:
        """What is there. The descriptor tells only of what comes after a look that found nothing."""
        self._let_in()
        items: list[Any] = []
        receive, make = self._socket.recv, FORMATS[self._format]
        with contextlib.suppress(zmq.Again):
            while len(items) < max_items:
                frame = receive(zmq.DONTWAIT, copy=False)
                message = frame.bytes
                if frame.more:
                    parts = [message, *self._socket.recv_multipart()]
                    items.append(reject(parts, KIND, f"expected a message of one part, found {len(parts)}"))
                    continue
                try:
                    items.append(make(message))
                except (ValueError, TypeError, RecursionError) as error:
                    items.append(reject(message, KIND, f"expected {self._format} ({error or 'nested too deeply'})"))
        return items

    def position(self) -> int:
        return self._count

    def fileno(self) -> int | None:
        return None if self._selector is None else self._selector.fileno()  # type: ignore[attr-defined]

    def close(self) -> None:
        if self._selector is not None:
            self._selector.close()
        if self._context is not None:
            self._context.destroy()
        self._socket = self._door = self._context = self._selector = self.address = None


def _check_endpoint(endpoint: str, *, reaches_out: bool) -> Path | None:
    """The path of a socket file, if it is one. UsageError for what is no endpoint, or not to be had by everybody."""
    scheme, _, place = endpoint.partition("://")
    if scheme == "tcp" and ":" in place:
        check_reach(
            KIND,
            place.rpartition(":")[0].strip("[]"),
            allowed=reaches_out,
            remedy="say that anybody may (allow_anyone=True)",
        )
        return None
    if scheme == "ipc" and place and not place.startswith("@"):
        return None if place == "*" else Path(place)
    raise UsageError(
        f"Producer('zmq', {endpoint!r}): expected an endpoint as 'tcp://127.0.0.1:5170' or 'ipc:///run/me/in' (a path)"
    )
