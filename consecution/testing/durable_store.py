"""The simulated store of a durable task: what `runtime.durable_store` has in LMDB, as live objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from consecution.protocol.durable import FramesDropped, FrameStaged, LedgerMoved
from consecution.protocol.origin import Restored
from consecution.protocol.values import Frame, TaskIndex
from consecution.runtime.durable_store import CommittedOutside, EndRecorded, TableWrite
from consecution.testing.disk import Disk, Writer
from consecution.transport.codec import PickleCodec

CRC_BYTES = 4
FrameKey = tuple[TaskIndex, int, int, int]


class DurableDisk(Disk):
    """Beside the journal: inbox, ledger, the tables of the state, and the marks."""

    def __init__(self) -> None:
        super().__init__()
        self.inbox: dict[FrameKey, Frame] = {}
        self.ledger: dict[TaskIndex, int] = {}
        self.tables: dict[str, dict[bytes, bytes]] = {"state": {}, "log": {}}
        self.ended = False
        self.outside_number = 0

    def _commit_one(self, change: Any) -> None:
        if isinstance(change, FrameStaged):
            self.inbox[key_of(change.frame)] = change.frame
        elif isinstance(change, FramesDropped):
            for frame in change.frames:
                self.inbox.pop(key_of(frame), None)
        elif isinstance(change, LedgerMoved):
            self.ledger[change.origin] = change.seq
        elif isinstance(change, TableWrite):
            change.write(_Transaction(self.tables))
        elif isinstance(change, EndRecorded):
            self.ended = True
        elif isinstance(change, CommittedOutside):
            self.outside_number = change.number
        else:
            super()._commit_one(change)

    def states(self) -> dict[Any, Any]:
        """Every key with its state: the table, and the log over it. Reads by itself, as an auditor does."""
        decode = PickleCodec().decode
        found: dict[Any, Any] = {}
        for value in self.tables["state"].values():
            key, state = decode(value[CRC_BYTES:])
            found[key] = state
        for _, value in sorted(self.tables["log"].items()):
            keys, states, removed = decode(value[CRC_BYTES:])
            found.update(zip(keys, states, strict=True))
            for key in removed:
                found.pop(key, None)
        return found


class _Transaction:
    """What a node's own writes need of an LMDB transaction; a database is known by its name."""

    def __init__(self, tables: dict[str, dict[bytes, bytes]]) -> None:
        self._tables = tables

    def put(self, key: bytes, value: bytes, *, db: str, append: bool = False) -> None:
        self._tables[db][key] = value

    def delete(self, key: bytes, *, db: str) -> None:
        self._tables[db].pop(key, None)

    def drop(self, db: str, delete: bool = True) -> None:
        self._tables[db].clear()

    def cursor(self, *, db: str) -> _Cursor:
        return _Cursor(self._tables[db])


class _Cursor:
    def __init__(self, table: dict[bytes, bytes]) -> None:
        self._table = table

    def putmulti(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        self._table.update(items)


class DurableWriter(Writer):
    """The store that one incarnation of a durable task writes through."""

    _disk: DurableDisk
    path = Path("simulated")
    uuid = "simulated"

    def restore(self) -> Restored:
        return self._disk.restore()

    def restore_inbox(self) -> tuple[dict[TaskIndex, int], list[Frame]]:
        return dict(self._disk.ledger), list(self._disk.inbox.values())

    @property
    def has_ended(self) -> bool:
        return self._disk.ended

    @property
    def outside_number(self) -> int:
        return self._disk.outside_number

    def redo_of(self, changes: list[Any]) -> Any:
        return tuple(change for change in changes if not isinstance(change, FrameStaged))

    def carry_out(self, redo: Any) -> None:
        self._commit(redo)

    def power_lost(self) -> None:
        """Every commit was safe when it returned."""

    # -- for appliers ----------------------------------------------------------------------------

    def handle(self, table: str) -> str:
        return table

    def read(self, table: str, key: bytes) -> bytes | None:
        value = self._disk.tables[table].get(key)
        return None if value is None else value[CRC_BYTES:]

    def count(self, table: str) -> int:
        return len(self._disk.tables[table])

    def scan(self, table: str, since: bytes = b"", until: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        for key, value in sorted(self._disk.tables[table].items()):
            if since <= key and (until is None or key < until):
                yield key, value[CRC_BYTES:]


def key_of(frame: Frame) -> FrameKey:
    return frame.origin, frame.seq, frame.generation, frame.frame_id
