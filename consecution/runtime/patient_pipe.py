"""The supervisor's end of a worker's pipe, which waits for no worker: one may be stopped in the middle of a message."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Any

from multiprocess.reduction import ForkingPickler

from consecution.own_descriptors import give_back, keep_from_children

CHUNK_BYTES = 1 << 20
_LENGTH = struct.Struct("!i")
_LONG_LENGTH = struct.Struct("!Q")
"""Follows a length of -1."""


class PatientPipe:
    """Like the `multiprocess` connection it is made of, which it owns; but `poll` says whether a message is whole."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        for end in (connection, self._socket):
            keep_from_children(end.fileno())  # whose end tells a worker that we are dead
        self._read = bytearray()
        self._ended = False
        self.fileno = connection.fileno
        self.send = connection.send

    @property
    def closed(self) -> bool:
        return bool(self._connection.closed)

    def poll(self) -> bool:
        """Whether `recv` returns a message, or raises EOFError, at once. Takes in what has come."""
        with contextlib.suppress(BlockingIOError):
            while not self._ended:
                some = self._receive()
                self._read += some
                self._ended = not some
        return self._ended or self._message() is not None

    def _receive(self) -> bytes:
        """b"" at the end, which is a reset where the other end closed before it had read all that it was told."""
        try:
            return self._socket.recv(CHUNK_BYTES, socket.MSG_DONTWAIT)
        except ConnectionResetError:
            return b""

    def recv(self) -> Any:
        """The next message, after `poll` has said that there is one."""
        found = self._message()
        if found is None:
            raise EOFError
        start, end = found
        message = bytes(self._read[start:end])
        del self._read[:end]
        return ForkingPickler.loads(message)

    def _message(self) -> tuple[int, int] | None:
        """Where the first message lies, if it is whole."""
        start = _LENGTH.size
        if len(self._read) < start:
            return None
        (length,) = _LENGTH.unpack_from(self._read)
        if length == -1:
            start += _LONG_LENGTH.size
            if len(self._read) < start:
                return None
            (length,) = _LONG_LENGTH.unpack_from(self._read, _LENGTH.size)
        return (start, start + length) if len(self._read) >= start + length else None

    def close(self) -> None:
        if not self.closed:
            for end in (self._socket, self._connection):
                give_back(end.fileno())
                end.close()
