"""An origin's journal: one LMDB environment with that origin as its only writer.

Layout (docs/formats.md draws it for other readers). Named databases; every value is a CRC-32 of
key and body, 4 bytes big-endian, followed by the body in msgpack::

    meta      "identity"  [format, origin name, uuid, epoch]
              "head"      [next_seq, next_key, generation, position, emitted, failed, exhausted, handled]
              "moved"     [origin name, [key...]], while it holds; see `takeover`
              "notes"     [count], once there are notes
    batches   seq  (8 bytes big-endian)   [count, payload, retry or nil, [failed...]]
    decided   seq  (8 bytes big-endian)   [generation, count, [[task, xor]...], retry or nil, held]
    failures  key  (8 bytes big-endian)   [failed, attempts, root, held, due_s or nil, failed_s]
    notes     seq  (8 bytes big-endian)   [bytes], made with the first one

    retry     [root, held, attempts, task, stage]
    failed    as in the wire format

Identity and head are there from the making on. Batches are decided in order, so those that are there have
consecutive numbers, and the last one is the head's next_seq - 1.

One call of `apply` is one transaction. With ``sync="power"`` it returns after an fsync; with
``sync="process"`` the operating system has the pages, which outlives the process but not the machine.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lmdb
import msgpack

from consecution.errors import DamagedStoreError, StateDirError, UsageError, WorldError
from consecution.own_descriptors import give_back, keep_from_children
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
from consecution.runtime.pages import PageError, check_file
from consecution.transport.frames import decode_failed
from consecution.transport.pieces import LARGE_BYTES, Pieces, pieces_of

FORMAT = 4
MAP_SIZE_BYTES = 16 * 1024**3
"""Reserved, not used: the file grows with what it holds. Twice its size, where that is more."""
MOVE_IT = "move it to where no folder has such a name"
LOCK_WAIT_S = 10.0
META_RECORDS = (b"head", b"identity", b"moved", b"notes", b"ended", b"outside")
"""The last two are a durable task's."""
NOTES = "notes"
"""The table of what a source keeps beside its position. Most need none."""
NO_ROOM_BYTES = 1 << 20
"""With less than that LMDB's "Input/output error" means a full disk: it cannot tell the one from the other."""
DAMAGE = (
    lmdb.BadTxnError,
    lmdb.CorruptedError,
    lmdb.IncompatibleError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
)
"""What of LMDB's errors says that a file is not sound."""
_KEY = struct.Struct(">Q")
_CRC = struct.Struct(">I")
_LARGE_CODE, _LARGE_HEADER = 0xC6, struct.Struct(">BI")
"""Before 64 KiB of bytes or more, msgpack has this, and their number."""
_COMMIT = struct.Struct("=Q")
_COMMIT_AT = 144
"""Where LMDB has a commit's number, in the page that it ends with: behind 16 bytes of header and 128 of others."""


@dataclass(frozen=True, slots=True)
class FailuresMoved:
    """Failed items of another origin are batches of this journal since the same commit; their entries are void."""

    origin: str
    keys: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MoveFinished:
    """Those entries are gone."""


@dataclass(frozen=True, slots=True)
class NotesTaken:
    """What the source keeps with these batches; notes of batches before ``needed_since`` go."""

    notes: tuple[tuple[int, bytes], ...]
    needed_since: int


class Journal:
    """The open journal of one origin. One thread uses it, in the process that opened it.

    ``create`` makes it where there is none. Without, DamagedStoreError says that it is missing: what it held
    must not be started over. StateDirError where another process holds it, or it is another origin's.
    """

    tables: tuple[str, ...] = ("meta", "batches", "decided", "failures")

    def __init__(self, path: Path, *, origin: str, epoch: str, sync: str = "power", create: bool = True) -> None:
        self.path = path
        self._env: Any = None
        if not create:
            check_is_there(path)
        with self._explained("locked"):
            self._lock = _lock_environment(path)
        try:
            self._open(power=sync == "power", create=create)
            self.uuid = self._settle_identity(origin, epoch, create)
        except BaseException:
            self.close()
            raise

    def _open(self, *, power: bool, create: bool) -> None:
        data = self.path / "data.mdb"
        size_bytes = data.stat().st_size if data.exists() else 0
        with self._explained("opened"):
            self._env = lmdb.open(
                str(self.path),
                map_size=max(MAP_SIZE_BYTES, 2 * size_bytes),
                max_dbs=len(self.tables) + 1,
                sync=power,
                metasync=power,
                max_readers=16,
                mode=0o600,
            )
            self._check_commits(data)
            self._check_pages(data)
            _cover_map(self._env, data)
            # A reader that was killed would keep its snapshot, and the file growing, for good.
            self._env.reader_check()
            self._handles = self._open_tables(create=create)
            self._meta = self._handles["meta"]
            self._batches = self._handles["batches"]
            self._decided = self._handles["decided"]
            self._failures = self._handles["failures"]

    def _open_tables(self, *, create: bool) -> dict[str, Any]:
        """All are made in one commit; made later, an empty one would hide that its name has been damaged."""
        with self._env.begin(write=True) as txn:  # handles outlive only such a one
            found = {name: self._find_table(txn, name) for name in self.tables}
            missing = [name for name, handle in found.items() if handle is None]
            if create and len(missing) == len(found):
                return {name: self._env.open_db(name.encode(), txn=txn) for name in self.tables}
            notes = self._find_table(txn, NOTES)
        if "meta" in missing:
            raise self._damaged("meta/identity", "is missing")
        if missing:
            raise self._damaged(missing[0], "is missing: the whole table")
        return found if notes is None else {**found, NOTES: notes}

    def _find_table(self, txn: Any, name: str) -> Any:
        try:
            return self._env.open_db(name.encode(), txn=txn, create=False)
        except lmdb.NotFoundError:
            return None

    def _check_commits(self, data: Path) -> None:
        """The last two commits stand in the first two pages, in turn. LMDB takes the later: it must be the last."""
        size_bytes = self._env.stat()["psize"]
        with open(data, "rb") as file:
            numbers = [_COMMIT.unpack(os.pread(file.fileno(), 8, page * size_bytes + _COMMIT_AT))[0] for page in (0, 1)]
        if numbers != [0, 0] and (abs(numbers[0] - numbers[1]) != 1 or numbers[0] % 2):
            raise self._damaged(
                "data.mdb", f"says that its last commits are {numbers[0]} and {numbers[1]}: one must follow the other"
            )

    def _check_pages(self, data: Path) -> None:
        try:
            check_file(data, self._env.stat()["psize"])
        except PageError as error:
            raise self._damaged(f"data.mdb/{error.where}", error.what) from error

    def _check_meta(self) -> None:
        """What is missed by nobody must not be lost by a damaged name: each of these records is a known one."""
        for key, value in self._records("meta"):
            if key not in META_RECORDS:
                raise self._damaged(f"meta/{key.decode(errors='replace')}", "is none that belongs there")
            self._body("meta", key, value)

    def _records(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """All that a table holds."""
        with self._explained("read"), self._env.begin() as txn:
            yield from self._records_in(txn, table)

    def _records_in(self, txn: Any, table: str) -> Iterator[tuple[bytes, bytes]]:
        """DamagedStoreError in the end if that was not as much as the table counts.

        Each is to be looked at before the next is asked for: behind one that is damaged LMDB may abort.
        """
        db, found = self._handles[table], 0
        for key, value in txn.cursor(db=db):
            found += 1
            yield bytes(key), bytes(value)
        self._check_count(table, found, txn.stat(db)["entries"])

    def _check_count(self, table: str, found: int, counted: int) -> None:
        if found != counted:
            raise self._damaged(table, f"gives {found} records, and counts {counted}")

    def _settle_identity(self, origin: str, epoch: str, create: bool) -> str:
        self._check_meta()
        with self._explained("read"), self._env.begin(db=self._meta) as txn:
            found = txn.get(b"identity")
        if found is None:
            if not create or self._holds_anything():
                raise self._damaged("meta/identity", "is missing")
            return self._make_identity(origin, epoch)
        fmt, *fields = self._unseal("meta", b"identity", found)
        if fmt != FORMAT:
            raise StateDirError(
                f"the journal {self.path} has format {fmt}; this version reads format {FORMAT}: "
                "finish it with the version that wrote it"
            )
        name, unique, of_epoch = fields
        if (name, of_epoch) != (origin, epoch):
            raise StateDirError(
                f"the journal {self.path} belongs to origin {name!r} of epoch {of_epoch}; expected "
                f"{origin!r} of epoch {epoch}: it was copied here from another state directory"
            )
        return str(unique)

    def _holds_anything(self) -> bool:
        with self._explained("read"), self._env.begin() as txn:
            return any(txn.stat(db)["entries"] for db in self._handles.values())

    def _make_identity(self, origin: str, epoch: str) -> str:
        made = uuid.uuid4().hex
        with self._explained("written"), self._env.begin(db=self._meta, write=True) as txn:
            txn.put(b"identity", _seal(b"identity", [FORMAT, origin, made, epoch]))
            txn.put(b"head", _seal(b"head", _head_fields(Head())))
        return made

    def restore(self) -> Restored:
        """Everything that is not over yet; DamagedStoreError names the first record that is not sound."""
        with self._explained("read"), self._env.begin() as txn:
            head = self._read_head(txn)
            batches = tuple(self._read_batch(k, v) for k, v in self._records_in(txn, "batches"))
            decided = tuple(self._read_decision(k, v) for k, v in self._records_in(txn, "decided"))
            entries = self._entries(txn)
            self._check_notes(txn)
        self._check_complete(head, batches, entries)
        waiting = tuple(entry for entry in entries if entry.due_s is not None)
        given_up = tuple(entry.root for entry in entries if entry.due_s is None)
        return Restored(head, batches, waiting, decided, given_up)

    def _read_head(self, txn: lmdb.Transaction) -> Head:
        found = txn.get(b"head", db=self._meta)
        if found is None:
            raise self._damaged("meta/head", "is missing")
        return Head(*self._unseal("meta", b"head", bytes(found)))

    def _check_complete(self, head: Head, batches: tuple[BatchRecord, ...], entries: list[FailureEntry]) -> None:
        """A record that is gone leaves no checksum behind: what must hold between the others shows it."""
        due = batches[0].seq if batches else head.next_seq
        for record in batches:
            if record.seq != due:
                raise self._damaged(f"batches/{due}", "is missing")
            due += 1
        if due != head.next_seq:
            raise self._damaged(
                f"batches/{due}", f"is missing, or the head, whose next batch is {head.next_seq}, is old"
            )
        given_up = sum(1 for entry in entries if entry.due_s is None)
        if given_up != head.failed:
            raise self._damaged("failures", f"has {given_up} items given up, the head counts {head.failed}")

    def notes(self) -> list[tuple[int, bytes]]:
        """What the source has noted, each with its batch, oldest first."""
        with self._explained("read"), self._env.begin() as txn:
            self._check_notes(txn)
            found = self._records_in(txn, NOTES) if NOTES in self._handles else ()
            return [(_KEY.unpack(key)[0], self._unseal(NOTES, key, value)[0]) for key, value in found]

    def _check_notes(self, txn: Any) -> None:
        counted = txn.get(b"notes", db=self._meta)
        expected = 0 if counted is None else self._unseal("meta", b"notes", bytes(counted))[0]
        found = txn.stat(self._handles[NOTES])["entries"] if NOTES in self._handles else 0
        if found != expected:
            raise self._damaged(NOTES, f"has {found} records, meta/notes counts {expected}")

    def in_flight(self) -> int:
        """How many batches and failed items are not over yet."""
        restored = self.restore()
        return len(restored.batches) + len(restored.decided) + len(restored.waiting)

    def failures(self, limit: int) -> list[FailureEntry]:
        """The items given up, the latest ``limit`` of them, oldest first."""
        found: list[FailureEntry] = []
        with self._explained("read"), self._env.begin() as txn:
            cursor = txn.cursor(db=self._failures)
            for key, value in cursor.iterprev():
                if len(found) >= limit:
                    break
                entry = self._read_entry(key, value)
                if entry.due_s is None:
                    found.append(entry)
        return found[::-1]

    def failed_entries(self) -> Iterator[FailureEntry]:
        """Every entry of the failure store, oldest first, those that wait for another try included."""
        with self._explained("read"), self._env.begin() as txn:
            for key, value in txn.cursor(db=self._failures):
                yield self._read_entry(key, value)

    @property
    def moved(self) -> FailuresMoved | None:
        """What this journal has taken over from another origin, whose entries may still be there."""
        with self._explained("read"), self._env.begin(db=self._meta) as txn:
            found = txn.get(b"moved")
        if found is None:
            return None
        origin, keys = self._unseal("meta", b"moved", found)
        return FailuresMoved(origin, tuple(keys))

    def drop_failures(self, keys: Iterable[int]) -> None:
        """Remove those of these entries that are there; the head does not count them any more. One transaction."""
        with self._explained("written"), self._env.begin(write=True) as txn:
            head = self._read_head(txn)
            for key in map(_KEY.pack, keys):
                value = txn.get(key, db=self._failures)
                if value is not None:
                    given_up = self._read_entry(key, value).due_s is None
                    head = replace(head, failed=head.failed - given_up)
                    txn.delete(key, db=self._failures)
            txn.put(b"head", _seal_head(head), db=self._meta)

    def apply(self, changes: list[Any]) -> None:
        """Apply the changes in order, as one transaction. A full disk raises and changes nothing.

        UsageError for a position of the source that cannot be kept.
        """
        if NOTES not in self._handles and any(isinstance(change, NotesTaken) for change in changes):
            self._make_notes()
        with self._explained("written"), self._env.begin(write=True) as txn:
            for change in changes:
                self._apply_one(txn, change)

    def _make_notes(self) -> None:
        """In a commit of its own: a handle that was made in one that fails is none."""
        with self._explained("written"), self._env.begin(write=True) as txn:
            made = self._env.open_db(NOTES.encode(), txn=txn)
        self._handles[NOTES] = made

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Errors of the store become ours: no room, damage, or whatever the system says."""
        try:
            yield
        except (lmdb.MapFullError, lmdb.DiskError, lmdb.TxnFullError) as error:
            raise self._no_room(error) from error
        except DAMAGE as error:
            raise DamagedStoreError(
                f"the journal {self.path} is damaged and cannot be {what}: {error}; restore {self.path / 'data.mdb'} "
                "from a backup, or start afresh (fresh=True), which forgets what was in flight",
                path=str(self.path),
                record="data.mdb",
            ) from error
        except (lmdb.Error, OSError) as error:
            if self._has_no_room():
                raise self._no_room(error) from error
            raise WorldError(
                f"the journal {self.path} cannot be {what}: {error}; nothing was lost: mend that, and run again with "
                "the same state directory"
            ) from error

    def _has_no_room(self) -> bool:
        try:
            return shutil.disk_usage(self.path).free < NO_ROOM_BYTES
        except OSError:
            return False

    def _no_room(self, error: Exception) -> WorldError:
        return WorldError(
            f"the journal {self.path} cannot grow: {error}; nothing was lost: make room on the disk "
            "and run again with the same state directory"
        )

    def _damaged(self, record: str, what: str) -> DamagedStoreError:
        return damaged_record(self.path, record, what)

    def _apply_one(self, txn: Any, change: Change | FailuresMoved | MoveFinished | NotesTaken) -> None:
        if isinstance(change, HeadMoved):
            txn.put(b"head", _seal_head(change.head), db=self._meta)
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
        elif isinstance(change, FailuresMoved):
            txn.put(b"moved", _seal(b"moved", [change.origin, change.keys]), db=self._meta)
        elif isinstance(change, MoveFinished):
            txn.delete(b"moved", db=self._meta)
        elif isinstance(change, NotesTaken):
            self._take_notes(txn, change)

    def _take_notes(self, txn: Any, change: NotesTaken) -> None:
        table = self._handles[NOTES]
        for seq, body in change.notes:
            key = _KEY.pack(seq)
            txn.put(key, _seal(key, [body]), db=table)
        cursor = txn.cursor(db=table)
        while cursor.first() and _KEY.unpack(cursor.key())[0] < change.needed_since:
            cursor.delete()
        txn.put(b"notes", _seal(b"notes", [txn.stat(table)["entries"]]), db=self._meta)

    def close(self) -> None:
        """Release the environment and its lock. Harmless when repeated."""
        if self._lock >= 0:
            if self._env is not None:
                self._env.close()
            os.close(give_back(self._lock))
            self._lock = -1

    def _entries(self, txn: lmdb.Transaction) -> list[FailureEntry]:
        return [self._read_entry(key, value) for key, value in self._records_in(txn, "failures")]

    def _read_batch(self, key: Any, value: Any) -> BatchRecord:
        count, payload, retry, failed = self._unseal("batches", key, value)
        born_failed = tuple(decode_failed(f) for f in failed)
        return BatchRecord(_KEY.unpack(key)[0], count, payload, _mark_of(retry), born_failed)

    def _read_decision(self, key: Any, value: Any) -> Decision:
        generation, count, participants, retry, held = self._unseal("decided", key, value)
        by_task = tuple((TaskIndex(task), xor) for task, xor in participants)
        return Decision(_KEY.unpack(key)[0], generation, count, by_task, _mark_of(retry), held)

    def _read_entry(self, key: Any, value: Any) -> FailureEntry:
        failed, *fields = self._unseal("failures", key, value)
        return FailureEntry(_KEY.unpack(key)[0], decode_failed(failed), *fields)

    def _unseal(self, db: str, key: bytes, value: bytes) -> list[Any]:
        fields: list[Any] = msgpack.unpackb(self._body(db, key, value), unicode_errors="surrogatepass")
        return fields

    def _body(self, db: str, key: bytes, value: bytes) -> bytes:
        """What lies under the seal, if that is whole."""
        body = unseal(key, value)
        if body is None:
            name = key.decode(errors="replace") if db == "meta" else str(int.from_bytes(key, "big"))
            raise self._damaged(f"{db}/{name}", "fails its checksum")
        return body


def seal(key: bytes, *body: Any) -> bytes:
    """A value as it is stored: the checksum of key and body, then the body, which may be given in pieces."""
    checksum = zlib.crc32(key)
    for piece in body:
        checksum = zlib.crc32(piece, checksum)
    return b"".join((_CRC.pack(checksum), *body))


def unseal(key: bytes, value: bytes) -> bytes | None:
    """The body of a stored value; None where it fails its checksum."""
    body = value[_CRC.size :]
    if len(value) < _CRC.size or zlib.crc32(body, zlib.crc32(key)) != _CRC.unpack_from(value)[0]:
        return None
    return body


def damaged_record(path: Path, record: str, what: str) -> DamagedStoreError:
    """The error for a record of the journal at ``path`` that is not as it was written."""
    return DamagedStoreError(
        f"the journal {path} is damaged: record {record} {what}; look at it with "
        "`consecution journal check`, and restore it from a backup",
        path=str(path),
        record=record,
    )


def _seal(key: bytes, fields: list[Any]) -> bytes:
    return seal(key, *_packed(fields))


def _packed(fields: list[Any]) -> list[Any]:
    """The msgpack of these fields, in pieces: what is large is not copied to stand beside the others."""
    if not any(map(_is_large, fields)):
        return [msgpack.packb(fields, unicode_errors="surrogatepass")]
    pieces: list[Any] = [msgpack.Packer().pack_array_header(len(fields))]
    for field in fields:
        if _is_large(field):
            pieces += _LARGE_HEADER.pack(_LARGE_CODE, len(field)), *pieces_of(field)
        else:
            pieces.append(msgpack.packb(field, unicode_errors="surrogatepass"))
    return pieces


def _is_large(field: Any) -> bool:
    return isinstance(field, (Pieces, bytes, memoryview)) and len(field) >= LARGE_BYTES


def _seal_head(head: Head) -> bytes:
    try:
        _check_position(head.position)
        return _seal(b"head", _head_fields(head))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(
            f"the position of the source, {head.position!r}, cannot be kept in the journal ({error}): expected "
            "numbers of at most 64 bits, text, bytes, None, or lists of these"
        ) from error


def _check_position(position: Any) -> None:
    """Other kinds would come back as something else, or not at all."""
    if isinstance(position, list):
        for part in position:
            _check_position(part)
    elif position is not None and not isinstance(position, (int, float, str, bytes)):
        raise TypeError(f"found a {type(position).__name__}")


def _head_fields(head: Head) -> list[Any]:
    return [
        head.next_seq,
        head.next_key,
        head.generation,
        head.position,
        head.emitted,
        head.failed,
        head.exhausted,
        head.handled,
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
    return [entry.failed, entry.attempts, entry.root, entry.held, entry.due_s, entry.failed_s]


def sync_folder(path: Path) -> None:
    """Let the names in a folder survive a power cut."""
    folder = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder, and those above it that are not there; the names of all of them survive a power cut."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def check_is_utf_8(path: Path, remedy: str = "give another folder", what: str = "the state directory") -> None:
    """StateDirError for a folder that no journal can lie in: LMDB takes its path as text, and opens it as UTF-8."""
    found = os.fsencode(path)
    if str(path).encode(errors="replace") != found:
        raise StateDirError(
            f"{what} {str(path)!r} cannot be used: expected a path whose bytes are UTF-8, as LMDB needs it; found "
            f"{found!r}: {remedy}"
        )


def check_is_there(path: Path) -> None:
    """DamagedStoreError where the journal that was made here is gone."""
    data = path / "data.mdb"
    if not data.is_file() or not data.stat().st_size:
        what = "is empty" if data.is_file() else "is missing"
        raise DamagedStoreError(
            f"the journal {path} was made before, but its file data.mdb {what}: restore it from a backup, or start "
            "afresh (fresh=True), which forgets what was in flight",
            path=str(path),
            record="data.mdb",
        )


def _cover_map(env: Any, data: Path) -> None:
    """Make the file as long as the pages it says it has: zeros are noticed, a page beyond the end kills."""
    needed_bytes = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if data.stat().st_size < needed_bytes:
        os.truncate(data, needed_bytes)


def _lock_environment(path: Path) -> int:
    """An flock on the environment, so that it never has two writers; a dying one is waited for."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = keep_from_children(os.open(path / "writer.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    try:
        _wait_for_lock(lock, path)
    except BaseException:
        os.close(give_back(lock))
        raise
    return lock


def _wait_for_lock(lock: int, path: Path) -> None:
    deadline_s = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline_s:
                holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
                raise StateDirError(
                    f"the journal {path} is in use by another process ({holder}); wait until that run has ended, or "
                    f"stop it; if it is a worker that its run has left behind: kill -9 {holder}"
                ) from error
            time.sleep(0.005)
