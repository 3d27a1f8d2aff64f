"""The control socket of a run: one request and one answer for each connection, each a line of JSON.

::

    request   {"command": "pause", ...}\\n
    answer    {"ok": true, ...}\\n  or  {"ok": false, "error": "..."}\\n

Only the owner of the folder it lies in can connect. Whatever comes is read as JSON and nothing else; a client that
sends too much, or is too slow, is left, and so the others are served. Nothing here waits for a client.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from consecution.errors import NotRunningError, WorldError, reason_of, text_of

LONGEST_PATH_BYTES = 107
"""Of a Unix socket, on Linux; macOS allows 103."""
LONGEST_REQUEST_BYTES = 64 * 1024
LONGEST_ANSWER_BYTES = 64 * 1024 * 1024
MOST_CLIENTS = 32
"""More of them wait in the system's queue until one is served."""
CLIENT_LIMIT_S = 5.0
"""So long may one connection take."""
CHUNK_BYTES = 64 * 1024

Answer = Callable[[dict[str, Any]], dict[str, Any]]
"""A request → what is answered beside "ok". What it raises is told the client."""


@dataclass(slots=True)
class _Client:
    until_s: float
    received: bytearray = field(default_factory=bytearray)
    to_send: bytes | None = None


class ControlServer:
    """Listens at a path. `turn` is called by one thread, `wake` by any; ``clock`` gives monotonic seconds.

    A socket that a dead run has left is replaced: the caller holds the state directory's lock.
    """

    def __init__(self, path: str, answer: Answer, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._answer = answer
        self._clock = clock
        self._clients: dict[socket.socket, _Client] = {}
        self._listener = _listen(path)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._listening = True

    def wake(self) -> None:
        """Let a `turn` that waits come back. Not after `close`."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b".")

    def turn(self, timeout_s: float | None) -> None:
        """Serve whoever is there; wait for somebody, not longer than that (None: until woken)."""
        for key, _ in self._selector.select(self._shortened(timeout_s)):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.fileobj, socket.socket):
                self._serve(key.fileobj)
            else:
                os.read(self._wake_read, 4096)
        self._leave_the_slow()

    def _shortened(self, timeout_s: float | None) -> float | None:
        waits = [client.until_s - self._clock() for client in self._clients.values()]
        waits += [] if timeout_s is None else [timeout_s]
        return max(0.0, min(waits)) if waits else None

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            client.setblocking(False)
            self._clients[client] = _Client(self._clock() + CLIENT_LIMIT_S)
            self._selector.register(client, selectors.EVENT_READ)
        self._listen_if_room()

    def _listen_if_room(self) -> None:
        room = len(self._clients) < MOST_CLIENTS
        if room and not self._listening:
            self._selector.register(self._listener, selectors.EVENT_READ)
        elif self._listening and not room:
            self._selector.unregister(self._listener)
        self._listening = room

    def _serve(self, connection: socket.socket) -> None:
        client = self._clients[connection]
        try:
            if client.to_send is None:
                self._receive(connection, client)
            if client.to_send is not None:
                self._send(connection, client)
        except BlockingIOError:
            pass
        except OSError:
            self._leave(connection)

    def _receive(self, connection: socket.socket, client: _Client) -> None:
        """Read on, and once the line is whole, answer it."""
        chunk = connection.recv(CHUNK_BYTES)
        client.received += chunk
        line, newline, _ = client.received.partition(b"\n")
        if newline:
            client.to_send = self._answer_to(bytes(line))
        elif not chunk:
            self._leave(connection)
        elif len(client.received) > LONGEST_REQUEST_BYTES:
            client.to_send = _refusal(f"the request is longer than {LONGEST_REQUEST_BYTES} bytes")

    def _answer_to(self, line: bytes) -> bytes:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError) as error:
            return _refusal(f"the request is not JSON: {error}")
        if not isinstance(request, dict):
            return _refusal(f"the request is a {type(request).__name__}; expected an object with the field 'command'")
        try:
            return _line({"ok": True, **self._answer(request)})
        except Exception as error:
            return _refusal(str(error) or type(error).__name__)

    def _send(self, connection: socket.socket, client: _Client) -> None:
        assert client.to_send is not None
        client.to_send = client.to_send[connection.send(client.to_send) :]
        if client.to_send:
            self._selector.modify(connection, selectors.EVENT_WRITE)
        else:
            self._leave(connection)

    def _leave(self, connection: socket.socket) -> None:
        del self._clients[connection]
        self._selector.unregister(connection)
        connection.close()
        self._listen_if_room()

    def _leave_the_slow(self) -> None:
        now_s = self._clock()
        for connection in [found for found, client in self._clients.items() if client.until_s <= now_s]:
            self._leave(connection)

    def close(self) -> None:
        """Listen no more, and take the socket off the disk."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        for connection in list(self._clients):
            self._leave(connection)
        self._selector.close()
        self._listener.close()
        os.close(self._wake_read)
        os.close(self._wake_write)


def _listen(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(path)
        os.chmod(path, 0o600)
        made.listen(MOST_CLIENTS)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def _refusal(error: str) -> bytes:
    return _line({"ok": False, "error": error})


def _line(told: dict[str, Any]) -> bytes:
    return json.dumps(told).encode() + b"\n"


def ask(path: str, request: dict[str, Any], timeout_s: float = 10.0) -> dict[str, Any]:
    """What the run that listens at ``path`` answers.

    NotRunningError where nobody listens, WorldError where the answer does not come, or is a refusal.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotRunningError(f"nobody listens at {path}: the run is over") from error
        except OSError as error:
            what = f"the control socket {path} cannot be used: {reason_of(error)}"
            raise WorldError(f"{what}; be the user whose run it is, and name its state directory") from error
        answer = _exchange(connection, path, _line(request), time.monotonic() + timeout_s)
    if not answer.get("ok"):
        raise WorldError(f"the run refuses {request.get('command')!r}: {answer.get('error')}")
    return answer


def _exchange(connection: socket.socket, path: str, line: bytes, deadline_s: float) -> dict[str, Any]:
    received = bytearray()
    try:
        connection.sendall(line)
        while not received.endswith(b"\n"):
            connection.settimeout(max(0.001, deadline_s - time.monotonic()))
            chunk = connection.recv(CHUNK_BYTES)
            received += chunk
            if not chunk or len(received) > LONGEST_ANSWER_BYTES:
                break
        answer = json.loads(received)
    except (OSError, ValueError) as error:
        raise WorldError(
            f"the run does not answer at {path}: {text_of(error)}; ask again, or look at its log"
        ) from error
    if not isinstance(answer, dict):
        raise WorldError(f"what answers at {path} is no run: {answer!r}")
    return answer


__all__ = ["ControlServer", "ask"]
