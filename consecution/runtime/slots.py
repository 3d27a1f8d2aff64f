"""What a worker has in hand, in a few bytes of memory that outlive it.

A slot is a file without a name, mapped by the worker and read by the supervisor when the worker is dead::

    length (4 bytes, 0: nothing in hand) | length of the item's name (1) | name (16)
        | msgpack [task, origin, seq, [path...]]

A worker that is killed while it writes leaves something that cannot be read, or names no frame: then nobody
is blamed for that death. Writing costs about a microsecond per frame, and nothing per item but in suspect frames.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from typing import Any

import msgpack

from consecution.protocol.poison import FrameKey, InHand
from consecution.protocol.values import TaskIndex

SIZE_BYTES = 4096
PART_BYTES = SIZE_BYTES // 2
_HEAD = struct.Struct("<IB16s")
_NOTHING = bytes(_HEAD.size)
_LONGEST_BYTES = PART_BYTES - _HEAD.size


class SlotFile:
    """The supervisor's side of the slot of one worker, for all of its incarnations."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="consecution-")
        self._file.truncate(SIZE_BYTES)

    def fileno(self) -> int:
        return self._file.fileno()

    def take(self) -> InHand | None:
        """What the worker that has just died had in hand; the slot is empty afterwards."""
        beside, own = self._take_part(PART_BYTES), self._take_part(0)
        return beside or own  # a coroutine runs for moments only: it is not by chance that it did just then

    def _take_part(self, start: int) -> InHand | None:
        fd = self._file.fileno()
        length, name_length, name = _HEAD.unpack(os.pread(fd, _HEAD.size, start))
        record = os.pread(fd, min(length, _LONGEST_BYTES), start + _HEAD.size)
        os.pwrite(fd, _NOTHING, start)
        return _read(record, name[:name_length]) if length else None

    def close(self) -> None:
        self._file.close()


def _read(record: bytes, name: bytes) -> InHand | None:
    try:
        task, origin, seq, path = msgpack.unpackb(record)
        return InHand(TaskIndex(task), FrameKey(TaskIndex(origin), seq, tuple(path)), name)
    except (ValueError, TypeError, msgpack.UnpackException):
        return None


def map_slot(slot: Any) -> mmap.mmap:
    """The worker's view of its slot, which the notes of all its tasks share."""
    return mmap.mmap(slot.fileno(), SIZE_BYTES)


class SlotNote:
    """The worker's side, for one of its tasks: `poison.Note`. Used by one thread.

    ``beside``: for what coroutines run, in the other half of the slot.
    """

    def __init__(self, slot: mmap.mmap, task: TaskIndex, *, beside: bool = False) -> None:
        self._map = slot
        self._task = task
        self._start = PART_BYTES if beside else 0

    def frame(self, key: FrameKey) -> None:
        """A path too long for the slot is not noted: such a frame cannot become suspect."""
        record = msgpack.packb((self._task, *key))
        if len(record) > _LONGEST_BYTES:
            self.clear()
            return
        start = self._start
        self._map[start : start + _HEAD.size + len(record)] = _HEAD.pack(len(record), 0, b"") + record

    def item(self, name: bytes) -> None:
        start = self._start
        self._map[start + 4 : start + 21] = bytes((len(name),)) + name.ljust(16, b"\0")

    def clear(self) -> None:
        self._map[self._start : self._start + _HEAD.size] = _NOTHING
