"""A durable task's environment: the journal of its outputs, and beside it inbox, ledger and state.

All of it changes in one transaction. Four more named databases, sealed like the journal's::

    inbox   origin (4 bytes) seq (8) generation (8) frame id (8)   [path, low, sender, stage, payload]
    ledger  origin (4 bytes)                                       [seq]
    state, log                                                     see `state_table`
    meta    "ended"                                                [true], once the node's end() is part of it
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from consecution.protocol.durable import FramesDropped, FrameStaged, LedgerMoved
from consecution.protocol.values import Frame, FrameId, Stage, TaskIndex
from consecution.runtime.journal import Journal, _seal

_FRAME_KEY = struct.Struct(">IQQQ")
_ORIGIN_KEY = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class TableWrite:
    """Something of a node's own that is part of the commit."""

    write: Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class EndRecorded:
    """The node's ``end`` has run, and what it did is part of this commit."""


class DurableStore(Journal):
    """The open environment of one durable task. One thread uses it."""

    tables = (*Journal.tables, "inbox", "ledger", "state", "log")

    def restore_inbox(self) -> tuple[dict[TaskIndex, int], list[Frame]]:
        """The ledger and the staged frames."""
        ledger = {
            TaskIndex(_ORIGIN_KEY.unpack(key)[0]): self._unseal("ledger", key, value)[0]
            for key, value in self._records("ledger")
        }
        return ledger, [self._read_frame(key, value) for key, value in self._records("inbox")]

    def in_flight(self) -> int:
        """What waits in the inbox counts too: its origin may not know yet that it was decided."""
        return super().in_flight() + len(self._records("inbox"))

    @property
    def has_ended(self) -> bool:
        with self._explained("read"), self._env.begin(db=self._meta) as txn:
            return txn.get(b"ended") is not None

    def _records(self, table: str) -> list[tuple[bytes, bytes]]:
        with self._explained("read"), self._env.begin(db=self._handles[table]) as txn:
            return [(bytes(key), bytes(value)) for key, value in txn.cursor()]

    def _read_frame(self, key: bytes, value: bytes) -> Frame:
        origin, seq, generation, frame_id = _FRAME_KEY.unpack(key)
        path, low, sender, stage, payload = self._unseal("inbox", key, value)
        return Frame(
            TaskIndex(origin),
            seq,
            generation,
            tuple(path),
            FrameId(frame_id),
            low,
            TaskIndex(sender),
            Stage(stage),
            False,
            payload,
        )

    def _apply_one(self, txn: Any, change: Any) -> None:
        if isinstance(change, FrameStaged):
            frame = change.frame
            key = _frame_key(frame)
            fields = [frame.path, frame.low, frame.sender, int(frame.stage), frame.payload]
            txn.put(key, _seal(key, fields), db=self._handles["inbox"])
        elif isinstance(change, FramesDropped):
            for frame in change.frames:
                txn.delete(_frame_key(frame), db=self._handles["inbox"])
        elif isinstance(change, LedgerMoved):
            key = _ORIGIN_KEY.pack(change.origin)
            txn.put(key, _seal(key, [change.seq]), db=self._handles["ledger"])
        elif isinstance(change, TableWrite):
            change.write(txn)
        elif isinstance(change, EndRecorded):
            txn.put(b"ended", _seal(b"ended", [True]), db=self._meta)
        else:
            super()._apply_one(txn, change)

    # -- for a task's own tables (`state_table.Tables`) --------------------------------------------

    def handle(self, table: str) -> Any:
        return self._handles[table]

    def read(self, table: str, key: bytes) -> bytes | None:
        """The body of a record; None if there is none. DamagedStoreError if it is not sound."""
        with self._explained("read"), self._env.begin(db=self._handles[table]) as txn:
            value = txn.get(key)
        return None if value is None else self._body(table, key, value)

    def scan(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """All (key, body) of a table, as of now, by key."""
        with self._explained("read"), self._env.begin(db=self._handles[table]) as txn:
            for key, value in txn.cursor():
                yield bytes(key), self._body(table, key, value)


def _frame_key(frame: Frame) -> bytes:
    return _FRAME_KEY.pack(frame.origin, frame.seq, frame.generation, frame.frame_id)
