"""ZeroMQ PUSH/PULL over ipc: one inbox per task, one outgoing socket per task it sends to.

Every incarnation of a task binds a path of its own, so that nothing meant for the dead one ever
reaches the new one. Nothing here blocks: flow control is the origins' window, not high-water marks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import zmq

from consecution.protocol.values import Message, TaskIndex
from consecution.transport.frames import decode_message, encode_message


class Inbox:
    """The one socket at which a task receives. Used by one thread."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: str, name: str) -> None:
        self.path = os.path.join(folder, name)
        self.endpoint = f"ipc://{self.path}"
        self.socket = context.socket(zmq.PULL)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.bind(self.endpoint)

    def take(self, most: int) -> Iterator[Message]:
        """Up to ``most`` messages that are there now. FrameError for bytes that are none."""
        receive = self.socket.recv_multipart
        for _ in range(most):
            try:
                parts = receive(zmq.NOBLOCK)
            except zmq.Again:
                return
            yield decode_message(parts)

    def close(self) -> None:
        self.socket.close(0)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


class SocketOutbox:
    """Sends messages to the tasks it was wired to. Used by one thread."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._context = context
        self._endpoints: dict[TaskIndex, str] = {}
        self._sockets: dict[TaskIndex, zmq.Socket[bytes]] = {}

    def wire(self, endpoints: dict[TaskIndex, str]) -> list[TaskIndex]:
        """Switch to these endpoints; what waited for an old one is dropped. Returns the tasks that moved."""
        moved = [task for task, endpoint in self._endpoints.items() if endpoints.get(task) != endpoint]
        for task in moved:
            socket = self._sockets.pop(task, None)
            if socket is not None:
                socket.close(0)
        self._endpoints = dict(endpoints)
        return moved

    def send(self, target: TaskIndex, message: Message) -> None:
        """Hand the message to ZeroMQ; a task that is not wired just now is dead, and gets nothing."""
        socket = self._sockets.get(target)
        if socket is None:
            endpoint = self._endpoints.get(target)
            if endpoint is None:
                return
            socket = self._sockets[target] = self._connect(endpoint)
        parts = encode_message(message)
        socket.send_multipart(parts, zmq.NOBLOCK, copy=True)

    def _connect(self, endpoint: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.PUSH)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.connect(endpoint)
        return socket

    def close(self) -> None:
        for socket in self._sockets.values():
            socket.close(0)
        self._sockets.clear()
