"""Which requests were taken before: by the keys that their senders gave them.

A key is remembered in the commit that holds the request's items, as part of the batch's note, and forgotten when it is
too old, or when there are too many. A request whose items were cut into several batches is noted with each: how many
of its items are taken so far. So a repeat takes exactly what is missing.

A note is, all big-endian, the time (8 bytes, a double), and for each request::

    hash of its key (16 bytes) | hash of its body (16) | items taken so far (4) | whether these are all (1)
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from consecution.source import Note

_TIME = struct.Struct(">d")
_ENTRY = struct.Struct(">16s16sIB")


def digest(content: bytes) -> bytes:
    """Sixteen bytes that stand for a key or a body."""
    return hashlib.blake2b(content, digest_size=16).digest()


@dataclass(slots=True)
class Taken:
    """What is known of a request. ``answer`` is what it was answered with once it was complete, in this life."""

    seq: int
    body: bytes
    count: int
    complete: bool
    answer: Any = None


class TakenKeys:
    """Remembers ``most`` keys, each for ``for_s`` seconds."""

    def __init__(self, most: int, for_s: float) -> None:
        self._most = most
        self._for_s = for_s
        self._known: dict[bytes, Taken] = {}
        self._notes: deque[tuple[int, float, list[bytes]]] = deque()

    def __len__(self) -> int:
        return len(self._known)

    def recall(self, notes: Sequence[tuple[int, bytes]]) -> None:
        """Take in what was noted in earlier lives, oldest first."""
        for seq, note in notes:
            (at_s,) = _TIME.unpack_from(note)
            self._add(seq, at_s, list(_ENTRY.iter_unpack(note[_TIME.size :])))

    def find(self, key: bytes) -> Taken | None:
        return self._known.get(key)

    def take(self, seq: int, at_s: float, entries: Iterable[tuple[bytes, bytes, int, bool]]) -> Note:
        """Requests of which batch ``seq`` holds items: key, body, items taken so far, whether these are all."""
        listed = list(entries)
        self._add(seq, at_s, listed)
        self._forget(at_s)
        body = b"".join([_TIME.pack(at_s), *(_ENTRY.pack(*entry) for entry in listed)])
        return Note(body, self._notes[0][0] if self._notes else seq + 1)

    def _add(self, seq: int, at_s: float, entries: Sequence[tuple[bytes, bytes, int, int | bool]]) -> None:
        self._notes.append((seq, at_s, [key for key, _, _, _ in entries]))
        for key, body, count, complete in entries:
            self._known[key] = Taken(seq, body, count, bool(complete))

    def _forget(self, now_s: float) -> None:
        notes = self._notes
        while notes and (len(self._known) > self._most or notes[0][1] < now_s - self._for_s):
            seq, _, keys = notes.popleft()
            for key in keys:
                if key in self._known and self._known[key].seq == seq:
                    del self._known[key]
