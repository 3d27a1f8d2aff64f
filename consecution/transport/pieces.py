"""A large payload in pieces: what pickle made of small things, and between them what is large, each by itself.

Put together the pieces are the pickle, byte for byte; so nobody who stores them, or reads what was stored, has to
know that there were any. They only spare copies: nothing large is copied to stand beside small things, neither
for a message (each piece is a part of its own) nor to be read from one.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any

LARGE_BYTES = 128 * 1024
"""From here on a part is worth a message part of its own. Pickle's own frames of small things stay below it."""


class Pieces:
    """Buffers that are one payload, in this order. Nobody changes them: they may be sent, stored and read at once."""

    __slots__ = ("_size", "pieces")

    def __init__(self, pieces: list[Any]) -> None:
        self.pieces = pieces
        self._size = sum(map(len, pieces))

    def __len__(self) -> int:
        """Bytes of the whole."""
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self.pieces)


def gather(written: Iterable[Any]) -> bytes | Pieces:
    """What a pickler has written, as bytes, or in pieces if some of it is large.

    Only bytes stay where they are. Any other buffer is copied: its owner may write to it as soon as this returns.
    """
    pieces: list[bytes] = []
    small: list[bytes] = []
    for part in written:
        piece = part if type(part) is bytes else bytes(pickle.PickleBuffer(part).raw())
        if len(piece) < LARGE_BYTES:
            small.append(piece)
        else:
            pieces += b"".join(small), piece
            small = []
    rest = b"".join(small)
    return Pieces([*pieces, rest]) if pieces else rest


def pieces_of(payload: Any) -> list[Any]:
    """The buffers that a payload consists of."""
    return payload.pieces if type(payload) is Pieces else [payload]


def load(payload: Pieces) -> Any:
    """`pickle.loads` of the whole, which copies what is large from its piece to where it will stay, and no more."""
    return pickle.load(_Reader(payload.pieces))


class _Reader:
    """Stands for a file that holds the pieces. Past their end it gives less than asked for, as a file does."""

    def __init__(self, pieces: list[Any]) -> None:
        self._left = [memoryview(piece) for piece in reversed(pieces)]

    def readinto(self, buffer: Any) -> int:
        room, filled = memoryview(buffer), 0
        while filled < len(room) and self._left:
            piece = self._left.pop()
            taken = min(len(room) - filled, len(piece))
            room[filled : filled + taken] = piece[:taken]
            filled += taken
            if taken < len(piece):
                self._left.append(piece[taken:])
        return filled

    def read(self, size: int) -> bytes:
        buffer = bytearray(size)
        return bytes(memoryview(buffer)[: self.readinto(buffer)])

    def readline(self) -> bytes:
        raise pickle.UnpicklingError("a pickle of protocol 5 has no lines")
