"""A durable task's environment: the journal of its outputs, and beside it inbox, ledger and state.

All of it changes in one transaction. Four more named databases, sealed like the journal's::

    inbox   origin (4 bytes) seq (8) generation (8) frame id (8)   [path, low, sender, stage, payload, whole]
    ledger  origin (4 bytes)                                       [seq]
    state, log                                                     see `state_table`
    meta    "ended"                                                [true], once the node's end() is part of it
            "outside"                                              [number of the last commit elsewhere]

**A store elsewhere** (a sink's database) commits before this one can. Its transaction holds, beside the rows, a
number one higher than the last and the *redo* of the commit that follows here: what that puts and deletes, as
bytes. A crash between the two leaves it one ahead; at the next start the redo is carried out before
anything else. The two kinds of commit strictly alternate.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import msgpack

from consecution.protocol.durable import FramesDropped, FrameStaged, LedgerMoved
from consecution.protocol.origin import HeadMoved
from consecution.protocol.values import Frame, FrameId, Stage, TaskIndex
from consecution.runtime.journal import Journal, _seal

_FRAME_KEY = struct.Struct(">IQQQ")
_ORIGIN_KEY = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class TableWrite:
    """Something of a node's own that is part of the commit."""

    write: Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class CommittedOutside:
    """A store elsewhere has committed its transaction of this number; this commit follows it."""

    number: int


@dataclass(frozen=True, slots=True)
class EndRecorded:
    """The node's ``end`` has run, and what it did is part of this commit."""


@dataclass(frozen=True, slots=True)
class EndUndone:
    """Something was applied after the node's ``end``: it has to run again."""


class DurableStore(Journal):
    """The open environment of one durable task. One thread uses it."""

    tables = (*Journal.tables, "inbox", "ledger", "state", "log")

    def restore_inbox(self) -> tuple[dict[TaskIndex, int], list[Frame]]:
        """The ledger and the staged frames."""
        ledger = {}
        for key, value in self._records("ledger"):
            (seq,) = self._unseal("ledger", key, value)  # checks the key, too
            ledger[read_origin(key)] = seq
        return ledger, [self._read_frame(key, value) for key, value in self._records("inbox")]

    @property
    def has_ended(self) -> bool:
        return self.read("meta", b"ended") is not None

    def _read_frame(self, key: bytes, value: bytes) -> Frame:
        return read_frame(key, self._unseal("inbox", key, value))  # which checks the key, too

    def _apply_one(self, txn: Any, change: Any) -> None:
        if isinstance(change, FrameStaged):
            frame = change.frame
            key = _frame_key(frame)
            fields = [frame.path, frame.low, frame.sender, int(frame.stage), frame.payload, frame.whole]
            txn.put(key, _seal(key, fields), db=self._handles["inbox"])
        elif isinstance(change, FramesDropped):
            for frame in change.frames:
                txn.delete(_frame_key(frame), db=self._handles["inbox"])
        elif isinstance(change, LedgerMoved):
            key = _ORIGIN_KEY.pack(change.origin)
            txn.put(key, _seal(key, [change.seq]), db=self._handles["ledger"])
        elif isinstance(change, TableWrite):
            change.write(txn)
        elif isinstance(change, CommittedOutside):
            txn.put(b"outside", _seal(b"outside", [change.number]), db=self._meta)
        elif isinstance(change, EndRecorded):
            txn.put(b"ended", _seal(b"ended", [True]), db=self._meta)
        elif isinstance(change, EndUndone):
            txn.delete(b"ended", db=self._meta)
        else:
            super()._apply_one(txn, change)

    # -- a store elsewhere ------------------------------------------------------------------------

    @property
    def outside_number(self) -> int:
        """The number of the last commit elsewhere that this store knows of; 0 before the first."""
        body = self.read("meta", b"outside")
        return 0 if body is None else int(msgpack.unpackb(body)[0])

    def redo_of(self, changes: list[Any]) -> bytes:
        """What a commit of these changes does, as bytes; frames that are only just being staged are left out."""
        recorder = _Recorder({id(handle): name for name, handle in self._handles.items()})
        for change in changes:
            if not isinstance(change, FrameStaged):
                self._apply_one(recorder, change)
        redo: bytes = msgpack.packb(recorder.done)
        return redo

    def carry_out(self, redo: bytes) -> None:
        """The commit that a crash has prevented.

        It holds the head of that moment. A person may have dropped failed items, or put some back, since then.
        """
        with self._explained("written"), self._env.begin(write=True) as txn:
            for table, key, value in msgpack.unpackb(redo):
                if value is None:
                    txn.delete(key, db=self._handles[table])
                else:
                    txn.put(key, value, db=self._handles[table])
            given_up = sum(entry.due_s is None for entry in self._entries(txn))
            self._apply_one(txn, HeadMoved(replace(self._read_head(txn), failed=given_up)))

    # -- for a task's own tables (`state_table.Tables`) --------------------------------------------

    def handle(self, table: str) -> Any:
        return self._handles[table]

    def read(self, table: str, key: bytes) -> bytes | None:
        """The body of a record; None if there is none. DamagedStoreError if it is not sound."""
        with self._explained("read"), self._env.begin(db=self._handles[table]) as txn:
            value = txn.get(key)
        return None if value is None else self._body(table, key, value)

    def count(self, table: str) -> int:
        """How many records a table has."""
        with self._explained("read"), self._env.begin() as txn:
            return int(txn.stat(self._handles[table])["entries"])

    def scan(self, table: str, since: bytes = b"", until: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """All (key, body) of a table from ``since`` to before ``until``, as of now, by key."""
        with self._explained("read"), self._env.begin(db=self._handles[table]) as txn:
            cursor, found = txn.cursor(), 0
            if cursor.set_range(since) if since else cursor.first():
                for key, value in cursor:
                    found += 1
                    if until is not None and key >= until:
                        return
                    yield bytes(key), self._body(table, key, value)
            if not since:
                self._check_count(table, found, txn.stat(self._handles[table])["entries"])


class _Recorder:
    """Stands for a transaction, and notes what is done in it: (table, key, value), None for a deletion."""

    def __init__(self, names: dict[int, str]) -> None:
        self._names = names
        self.done: list[tuple[str, bytes, bytes | None]] = []

    def put(self, key: bytes, value: bytes, *, db: Any, **how: Any) -> None:
        self.done.append((self._names[id(db)], key, value))

    def delete(self, key: bytes, *, db: Any) -> None:
        self.done.append((self._names[id(db)], key, None))


def read_origin(key: bytes) -> TaskIndex:
    """Whose record of the ledger this is."""
    return TaskIndex(_ORIGIN_KEY.unpack(key)[0])


def read_frame(key: bytes, fields: list[Any]) -> Frame:
    """The frame of a record of the inbox."""
    path, low, sender, stage, payload, whole = fields
    origin, seq, generation, frame_id = _FRAME_KEY.unpack(key)
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
        whole=whole,
    )


def _frame_key(frame: Frame) -> bytes:
    return _FRAME_KEY.pack(frame.origin, frame.seq, frame.generation, frame.frame_id)
