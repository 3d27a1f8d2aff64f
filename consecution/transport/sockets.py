"""ZeroMQ PUSH/PULL over ipc: one inbox per worker, one outgoing socket per worker it sends to.

Every incarnation of a worker binds a path of its own, so that nothing meant for the dead one ever
reaches the new one. Nothing here blocks: flow control is the origins' window, not high-water marks.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import zmq

from consecution.protocol.values import Frame, Message, TaskIndex, WorkerIndex
from consecution.transport.frames import decode_message, encode_message
from consecution.transport.pieces import LARGE_BYTES

LOOK_EVERY_S = 0.005
"""So often ZeroMQ is made to look who else sends. By itself it does so when nothing is left of those it knows of, or
after a hundred parts of messages: where each of them takes long, one sender would keep all others waiting."""


class Inbox:
    """The one socket at which a worker receives. Used by one thread."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: str, name: str) -> None:
        self.path = os.path.join(folder, name)
        self.endpoint = f"ipc://{self.path}"
        self.socket = context.socket(zmq.PULL)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.bind(self.endpoint)
        self._looked_s = time.monotonic()

    def take(self, most: int) -> Iterator[tuple[TaskIndex, Message]]:
        """Up to ``most`` messages that are there now, each with its task. FrameError for bytes that are none.

        Of all senders in turn, however long the reader is at each message.
        """
        now_s = time.monotonic()
        if now_s - self._looked_s > LOOK_EVERY_S:
            self._looked_s = now_s
            self.socket.get(zmq.EVENTS)
        for _ in range(most):
            try:
                parts = self._receive()
            except zmq.Again:
                return
            yield decode_message(parts)

    def _receive(self) -> list[Any]:
        """The parts of one message. What is large stays in ZeroMQ's memory, which is freed with the last view of it."""
        frame = self.socket.recv(zmq.NOBLOCK, copy=False)
        parts: list[Any] = [frame.bytes]
        while frame.more:
            frame = self.socket.recv(zmq.NOBLOCK, copy=False)
            parts.append(frame.bytes if len(frame) < LARGE_BYTES else frame.buffer)
        return parts

    def close(self) -> None:
        self.socket.close(0)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


class SocketOutbox:
    """Sends messages to the tasks of the workers it was wired to. Used by one thread.

    ``worker_of`` says where each task lives.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], worker_of: Sequence[WorkerIndex]) -> None:
        self._context = context
        self._worker_of = worker_of
        self._endpoints: dict[WorkerIndex, str] = {}
        self._sockets: dict[WorkerIndex, zmq.Socket[bytes]] = {}

    def wire(self, endpoints: dict[WorkerIndex, str]) -> list[WorkerIndex]:
        """Switch to these endpoints; what waited for an old one is dropped. Returns the workers that moved."""
        moved = [worker for worker, endpoint in self._endpoints.items() if endpoints.get(worker) != endpoint]
        for worker in moved:
            socket = self._sockets.pop(worker, None)
            if socket is not None:
                socket.close(0)
        self._endpoints = dict(endpoints)
        return moved

    def send(self, target: TaskIndex, message: Message) -> None:
        """Hand the message to ZeroMQ; a worker that is not wired just now is dead, and gets nothing."""
        worker = self._worker_of[target]
        socket = self._sockets.get(worker)
        if socket is None:
            endpoint = self._endpoints.get(worker)
            if endpoint is None:
                return
            socket = self._sockets[worker] = self._connect(endpoint)
        small = not isinstance(message, Frame) or len(message.payload) < LARGE_BYTES
        socket.send_multipart(encode_message(target, message), zmq.NOBLOCK, copy=small)

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
