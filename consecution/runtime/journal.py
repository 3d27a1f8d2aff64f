"""An origin's journal: one LMDB environment with that origin as its only writer.

Layout (docs/formats.md draws it for other readers). Named databases; every value is a CRC-32 of
key and body, 4 bytes big-endian, followed by the body in msgpack::

    meta      "identity"  [format, origin name, uuid, epoch]
              "head"      [next_seq, next_key, generation, position, emitted, failed, exhausted]
    batches   seq  (8 bytes big-endian)   [count, payload, retry or nil, [failed...]]
    decided   seq  (8 bytes big-endian)   [generation, count, [[task, xor]...], retry or nil, held]
    failures  key  (8 bytes big-endian)   [failed, attempts, root, held, due_s or nil]

    retry     [root, held, attempts, task, stage]
    failed    as in the wire format

One call of `apply` is one transaction. With ``sync="power"`` it returns after an fsync; with
``sync="process"`` the operating system has the pages, which outlives the process but not the machine.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
import uuid
import zlib
from pathlib import Path
from typing import Any

import lmdb
import msgpack

from consecution.errors import DamagedStoreError, StateDirError, WorldError
from consecution.protocol.origin import (
    BatchBorn,
    BatchDecided,
    BatchForgotten,
    BatchRecord,
    Change,
    Decision,
    FailureEntry,
    FailureKept,
    FailureTaken,
    Head,
    HeadMoved,
    Restored,
    RetryMark,
)
from consecution.protocol.values import Entry, Stage, TaskIndex
from consecution.transport.frames import decode_failed

FORMAT = 1
MAP_SIZE_BYTES = 16 * 1024**3
"""Reserved, not used: the file is sparse and grows with what it holds."""
LOCK_WAIT_S = 10.0
_KEY = struct.Struct(">Q")
_CRC = struct.Struct(">I")


class Journal:
    """The open journal of one origin. One thread uses it, in the process that opened it."""

    tables: tuple[str, ...] = ("meta", "batches", "decided", "failures")

    def __init__(self, path: Path, *, origin: str, epoch: str, sync: str = "power") -> None:
        self.path = path
        self._origin = origin
        self._lock = _lock_environment(path)
        power = sync == "power"
        try:
            self._env = lmdb.open(
                str(path), map_size=MAP_SIZE_BYTES, max_dbs=len(self.tables), sync=power, metasync=power, max_readers=16
            )
            self._handles = {name: self._env.open_db(name.encode()) for name in self.tables}
            self._meta = self._handles["meta"]
            self._batches = self._handles["batches"]
            self._decided = self._handles["decided"]
            self._failures = self._handles["failures"]
        except lmdb.Error as error:
            os.close(self._lock)
            raise DamagedStoreError(
                f"the journal {path} cannot be opened: {error}; restore it from a backup, or start afresh "
                "(fresh=True), which forgets what was in flight",
                path=str(path),
            ) from error
        self.uuid = self._settle_identity(origin, epoch)

    def _settle_identity(self, origin: str, epoch: str) -> str:
        with self._env.begin(db=self._meta, write=True) as txn:
            found = txn.get(b"identity")
            if found is None:
                made = uuid.uuid4().hex
                txn.put(b"identity", _seal(b"identity", [FORMAT, origin, made, epoch]))
                return made
            fmt, name, unique, of_epoch = self._unseal("meta", b"identity", found)
        if fmt != FORMAT:
            raise StateDirError(
                f"the journal {self.path} has format {fmt}; this version reads format {FORMAT}: "
                "finish it with the version that wrote it"
            )
        if (name, of_epoch) != (origin, epoch):
            raise StateDirError(
                f"the journal {self.path} belongs to origin {name!r} of epoch {of_epoch}; expected "
                f"{origin!r} of epoch {epoch}: it was copied here from another state directory"
            )
        return str(unique)

    def restore(self) -> Restored:
        """Everything that is not over yet; DamagedStoreError names the first record that is not sound."""
        with self._env.begin() as txn:
            head = txn.get(b"head", db=self._meta)
            return Restored(
                head=Head() if head is None else Head(*self._unseal("meta", b"head", head)),
                batches=tuple(self._read_batch(k, v) for k, v in txn.cursor(db=self._batches)),
                waiting=tuple(entry for entry in self._entries(txn) if entry.due_s is not None),
                decided=tuple(self._read_decision(k, v) for k, v in txn.cursor(db=self._decided)),
            )

    def failures(self, limit: int) -> list[FailureEntry]:
        """The items given up, the latest ``limit`` of them, oldest first."""
        found: list[FailureEntry] = []
        with self._env.begin() as txn:
            cursor = txn.cursor(db=self._failures)
            for key, value in cursor.iterprev():
                entry = self._read_entry(key, value)
                if entry.due_s is None:
                    found.append(entry)
                if len(found) >= limit:
                    break
        return found[::-1]

    def apply(self, changes: list[Any]) -> None:
        """Apply the changes in order, as one transaction. A full disk raises and changes nothing."""
        try:
            with self._env.begin(write=True) as txn:
                for change in changes:
                    self._apply_one(txn, change)
        except (lmdb.MapFullError, lmdb.DiskError, OSError) as error:
            raise WorldError(
                f"the journal {self.path} cannot grow: {error}; nothing was lost: make room on the disk "
                "and run again with the same state directory"
            ) from error

    def _apply_one(self, txn: Any, change: Change) -> None:
        if isinstance(change, HeadMoved):
            txn.put(b"head", _seal(b"head", _head_fields(change.head)), db=self._meta)
        elif isinstance(change, BatchBorn):
            key = _KEY.pack(change.record.seq)
            txn.put(key, _seal(key, _batch_fields(change.record)), db=self._batches)
        elif isinstance(change, BatchDecided):
            key = _KEY.pack(change.seq)
            txn.delete(key, db=self._batches)
            if change.decision is not None:
                txn.put(key, _seal(key, _decision_fields(change.decision)), db=self._decided)
        elif isinstance(change, BatchForgotten):
            txn.delete(_KEY.pack(change.seq), db=self._decided)
        elif isinstance(change, FailureKept):
            key = _KEY.pack(change.entry.key)
            txn.put(key, _seal(key, _entry_fields(change.entry)), db=self._failures)
        elif isinstance(change, FailureTaken):
            txn.delete(_KEY.pack(change.key), db=self._failures)

    def close(self) -> None:
        """Release the environment and its lock. Harmless when repeated."""
        if self._lock >= 0:
            self._env.close()
            os.close(self._lock)
            self._lock = -1

    def _entries(self, txn: lmdb.Transaction) -> list[FailureEntry]:
        return [self._read_entry(key, value) for key, value in txn.cursor(db=self._failures)]

    def _read_batch(self, key: Any, value: Any) -> BatchRecord:
        count, payload, retry, failed = self._unseal("batches", key, value)
        born_failed = tuple(decode_failed(f) for f in failed)
        return BatchRecord(_KEY.unpack(key)[0], count, payload, _mark_of(retry), born_failed)

    def _read_decision(self, key: Any, value: Any) -> Decision:
        generation, count, participants, retry, held = self._unseal("decided", key, value)
        by_task = tuple((TaskIndex(task), xor) for task, xor in participants)
        return Decision(_KEY.unpack(key)[0], generation, count, by_task, _mark_of(retry), held)

    def _read_entry(self, key: Any, value: Any) -> FailureEntry:
        failed, attempts, root, held, due_s = self._unseal("failures", key, value)
        return FailureEntry(_KEY.unpack(key)[0], decode_failed(failed), attempts, root, held, due_s)

    def _unseal(self, db: str, key: bytes, value: bytes) -> list[Any]:
        fields: list[Any] = msgpack.unpackb(self._body(db, key, value), unicode_errors="surrogatepass")
        return fields

    def _body(self, db: str, key: bytes, value: bytes) -> bytes:
        """What lies under the seal, if that is whole."""
        name = key.decode() if db == "meta" else str(int.from_bytes(key, "big"))
        if len(value) < _CRC.size or zlib.crc32(value[4:], zlib.crc32(key)) != _CRC.unpack_from(value)[0]:
            raise DamagedStoreError(
                f"the journal {self.path} is damaged: record {name} of {db} fails its checksum; "
                "look at it with `consecution journal check`, and restore it from a backup",
                path=str(self.path),
                record=f"{db}/{name}",
            )
        return value[4:]


def seal(key: bytes, body: bytes) -> bytes:
    """A value as it is stored: the checksum of key and body, then the body."""
    return _CRC.pack(zlib.crc32(body, zlib.crc32(key))) + body


def _seal(key: bytes, fields: list[Any]) -> bytes:
    return seal(key, msgpack.packb(fields, unicode_errors="surrogatepass"))


def _head_fields(head: Head) -> list[Any]:
    return [
        head.next_seq,
        head.next_key,
        head.generation,
        head.position,
        head.emitted,
        head.failed,
        head.exhausted,
    ]


def _batch_fields(record: BatchRecord) -> list[Any]:
    return [record.count, record.payload, _mark_fields(record.retry), list(record.born_failed)]


def _decision_fields(decision: Decision) -> list[Any]:
    return [
        decision.generation,
        decision.count,
        list(decision.participants),
        _mark_fields(decision.retry),
        decision.held,
    ]


def _mark_fields(mark: RetryMark | None) -> list[Any] | None:
    if mark is None:
        return None
    return [mark.root, mark.held, mark.attempts, mark.entry.task, int(mark.entry.stage)]


def _mark_of(fields: list[Any] | None) -> RetryMark | None:
    if fields is None:
        return None
    root, held, attempts, task, stage = fields
    return RetryMark(root, held, attempts, Entry(TaskIndex(task), Stage(stage)))


def _entry_fields(entry: FailureEntry) -> list[Any]:
    return [entry.failed, entry.attempts, entry.root, entry.held, entry.due_s]


def _lock_environment(path: Path) -> int:
    """An flock on the environment, so that it never has two writers; a dying one is waited for."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path / "writer.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline_s = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError as error:
            if time.monotonic() > deadline_s:
                os.close(lock)
                raise StateDirError(
                    f"the journal {path} is in use by another process; wait until that run has ended, or stop it"
                ) from error
            time.sleep(0.005)
