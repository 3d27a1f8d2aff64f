"""ZeroMQ PUSH/PULL over ipc: one inbox per task, one outgoing socket per task it sends to.

Sockets live in a directory only their owner can enter, with a path short enough for the kernel (107
bytes). Every incarnation of a task binds a path of its own, so that nothing meant for the dead one ever
reaches the new one. Nothing here blocks: flow control is the origins' window, not high-water marks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import zmq

from consecution.protocol.values import Message, TaskIndex
from consecution.transport.frames import decode_message, encode_message

PREFIX = "consecution-"
LONGEST_BASE_BYTES = 60
"""Leaves room for the folder's own name, and for a task's number and incarnation."""


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


class SocketFolder:
    """A private folder for one run's sockets. Folders whose run is dead are swept away at the next start."""

    def __init__(self) -> None:
        base = base_folder()
        sweep(base)
        while not self._make(base):
            pass

    def _make(self, base: str) -> bool:
        """Make and lock a folder. False: another run has swept it away before it was locked."""
        self.path = tempfile.mkdtemp(prefix=PREFIX, dir=base)
        self._lock = os.open(os.path.join(self.path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        if os.fstat(self._lock).st_nlink:
            return True
        os.close(self._lock)
        return False

    def close(self) -> None:
        """Remove the folder and all that lies in it. Harmless when repeated."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def sweep(base: str) -> None:
    """Remove socket folders of this user that no living run holds."""
    for folder in Path(base).glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def remove_if_empty(folder: str) -> None:
    """The last worker of a dead supervisor takes the folder away."""
    with contextlib.suppress(OSError):
        if os.listdir(folder) == ["lock"]:
            shutil.rmtree(folder, ignore_errors=True)


def base_folder() -> str:
    """The folder for temporary files, or a shorter one: socket paths must stay under 107 bytes.

    Not ``XDG_RUNTIME_DIR``: it goes away when the user logs out, and a run may outlive that.
    """
    found = tempfile.gettempdir()
    return found if len(os.fsencode(found)) < LONGEST_BASE_BYTES else "/tmp"
