"""All stores of a state directory as they are at one instant, also while a run goes on.

The rules it keeps:

1. A transaction is begun in each store; then it is looked whether any store has had a commit since. If none has,
   there was an instant, after the last begin and before the first look, at which all of them were the last
   commits of their stores: what is read is what ``kill -9`` of everything would have left at that instant, and the
   protocol promises to go on from there. If one has, all of it is done again.
2. So nobody is held up and nothing need be paused. Copies made one after the other would not do: a store that is
   newer than its origin's has applied batches that are born again under another number or execution, one that is
   older lacks what its origin has forgotten.
3. The files of sinks are opened before that look. What is committed of them is only ever cut off or renamed by a
   later commit, and neither takes it from an open file; so it can be copied at leisure.
4. While a snapshot is open, the stores keep what it shows, and grow by what the run changes meanwhile.

Source: the double collect of Afek and others, "Atomic Snapshots of Shared Memory", 1993.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import msgpack

from consecution.errors import DamagedStoreError, StateDirError, UsageError, WorldError
from consecution.runtime.journal import DAMAGE, check_is_there, damaged_record, unseal
from consecution.runtime.journal_check import check_pages, open_environment, record_name
from consecution.runtime.state import MANIFEST, StateDir, look_at_state_dir
from consecution.runtime.state_table import END

AGREE_WITHIN_S = 60.0


class Moved(Exception):
    """Something has changed while it was looked at: look again."""


class StoreView:
    """One store in a snapshot. DamagedStoreError from whatever meets a record that is not sound."""

    def __init__(self, name: str, folder: Path, env: Any) -> None:
        self.name = name
        self.folder = folder
        self._env = env
        self._txn: Any = None
        with env.begin() as txn:
            names = [bytes(name) for name, _ in txn.cursor()]
        # Handles that a transaction of ours opened would go with it.
        self._tables = {name.decode(errors="replace"): env.open_db(name, create=False) for name in names}

    def begin(self) -> None:
        """Look at the last commit from here on."""
        self.close()
        self._txn = self._env.begin()

    def is_current(self) -> bool:
        """Whether there has been no commit since."""
        return bool(self._env.info()["last_txnid"] == self._txn.id())

    def records(self, table: str, since: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """(key, body) of each record, from ``since`` on, by key; none where there is no such table."""
        db = self._tables.get(table)
        if db is None:
            return
        cursor = self._txn.cursor(db=db)
        if cursor.set_range(since) if since else cursor.first():
            for key, value in cursor:
                yield bytes(key), self._body(table, bytes(key), bytes(value))

    def get(self, table: str, key: bytes) -> bytes | None:
        db = self._tables.get(table)
        value = None if db is None else self._txn.get(key, db=db)
        return None if value is None else self._body(table, key, bytes(value))

    def fields(self, table: str, key: bytes) -> Any:
        """The body of a record in msgpack; None where there is none."""
        body = self.get(table, key)
        return None if body is None else unpack(body)

    def _body(self, table: str, key: bytes, value: bytes) -> bytes:
        body = unseal(key, value)
        if body is None:
            raise damaged_record(self.folder, record_name(table, key), "fails its checksum")
        return body

    def copy_to(self, folder: Path) -> None:
        """Write all of it into a new folder, without the free pages in between. OSError where that has no room, say."""
        folder.mkdir(mode=0o700)
        try:
            self._env.copy(str(folder), compact=True, txn=self._txn)
        except TypeError as error:  # Built with the system's LMDB, which cannot copy what a transaction sees.
            raise WorldError(
                f"this build of lmdb cannot copy a store as of an instant ({error}): reinstall it from its wheel (pip "
                "install --force-reinstall lmdb)"
            ) from error
        except lmdb.Error as error:
            if isinstance(error, DAMAGE):
                raise
            # The copy's: what is read is mapped into memory.
            if isinstance(error, lmdb.DiskError):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise OSError(f"{folder}: {error}") from error
        (folder / "data.mdb").chmod(0o600)

    def close(self) -> None:
        if self._txn is not None:
            self._txn.abort()
            self._txn = None


def unpack(body: bytes) -> Any:
    return msgpack.unpackb(body, strict_map_key=False, unicode_errors="surrogatepass")


@dataclass(frozen=True, slots=True)
class SinkFile:
    """A file that a sink appends to: ``length`` bytes of it are committed."""

    sink: str
    path: Path
    length: int
    fd: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``manifest`` is the file as it is; ``unknown`` are the sinks that do not say which files are theirs."""

    state: StateDir
    manifest: bytes
    stores: dict[str, StoreView]
    files: tuple[SinkFile, ...] = ()
    unknown: tuple[str, ...] = ()


@contextmanager
def take_snapshot(path: Path, *, with_files: bool = False) -> Iterator[Snapshot]:
    """The state directory as it is just now. UsageError where it is none, StateDirError where it does not stand still.

    Not for a process that has one of the stores open itself.
    """
    deadline_s = time.monotonic() + AGREE_WITHIN_S
    while True:
        with ExitStack() as stack:
            try:
                snapshot = _look(path, stack, deadline_s, with_files=with_files)
            except Moved:
                if time.monotonic() > deadline_s:
                    raise _never_still(path) from None
                continue
            yield snapshot
            return


def _never_still(path: Path) -> StateDirError:
    return StateDirError(
        f"the state directory {path} did not stand still for an instant within {AGREE_WITHIN_S:g} s: try again, or "
        f"pause the run first (consecution pause {path})"
    )


def _look(path: Path, stack: ExitStack, deadline_s: float, *, with_files: bool) -> Snapshot:
    state = look_at_state_dir(path)
    manifest = _read(path / MANIFEST)
    if not state.origins:
        raise UsageError(f"{path} holds nothing yet: no run has begun in it; run its pipeline first")
    stores = {name: stack.enter_context(_opened(name, state.origin_path(name))) for name in state.origins}
    found = _Files()

    def look_beside() -> None:
        if _read(path / MANIFEST) != manifest:
            raise Moved
        found.close()
        if with_files:
            _open_files(state, stores, found)

    stack.callback(found.close)
    freeze(stores.values(), look_beside, deadline_s)
    if _read(path / MANIFEST) != manifest:
        raise Moved
    found.check_complete()
    return Snapshot(state, manifest, stores, tuple(found.opened), tuple(found.unknown))


def freeze(stores: Iterable[StoreView], look_beside: Callable[[], None], deadline_s: float) -> None:
    """Begin a transaction in each of them so that all of them show the same instant.

    ``look_beside`` is for what belongs to that instant, too; it may raise `Moved`, as this does after the deadline.
    """
    stores = list(stores)
    while True:
        for store in stores:
            store.begin()
        missed: Moved | None = None
        try:
            look_beside()
        except Moved as moved:
            missed = moved
        if missed is None and all(store.is_current() for store in stores):
            return
        if time.monotonic() > deadline_s:
            raise Moved


@contextmanager
def _opened(name: str, folder: Path) -> Iterator[StoreView]:
    check_is_there(folder)
    data = folder / "data.mdb"
    try:
        env = open_environment(folder)
    except (lmdb.Error, OSError) as error:
        raise _unreadable(folder, error) from error
    with closing(env):
        try:
            check_pages(env, data)
            env.reader_check()  # One that was killed would keep what it saw, and the file growing.
            with closing(StoreView(name, folder, env)) as view:
                yield view
        except lmdb.Error as error:
            raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: Exception) -> WorldError:
    if "already open in this process" in str(error):
        return StateDirError(f"the journal {folder} is open in this process; look at it from another one")
    if isinstance(error, OSError):
        return StateDirError(f"the journal {folder} cannot be read: {error}")
    return DamagedStoreError(
        f"the journal {folder} is damaged and cannot be read: {error}; look at it with "
        "`consecution journal check`, and restore it from a backup",
        path=str(folder),
        record="data.mdb",
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise Moved from None


# -- files of sinks ------------------------------------------------------------------------------


class _Files:
    """The files that were found at one look: ``missing`` in words, ``unknown`` are the sinks that name none."""

    def __init__(self) -> None:
        self.opened: list[SinkFile] = []
        self.missing: list[str] = []
        self.unknown: list[str] = []

    def check_complete(self) -> None:
        """Once nothing has moved: until then a file that is not there may only have got its final name."""
        if self.missing:
            raise StateDirError(
                f"{'; '.join(self.missing)}: put back what belongs to the state directory; a run over it would be "
                "refused, too, but for one that starts afresh (fresh=True)"
            )

    def close(self) -> None:
        for file in self.opened:
            os.close(file.fd)
        for names in (self.opened, self.missing, self.unknown):
            names.clear()


def _open_files(state: StateDir, stores: dict[str, StoreView], found: _Files) -> None:
    """Open what is committed of the files of all sinks."""
    for name, store in stores.items():
        if state.kinds.get(name.rpartition(".")[0]) != "file":
            continue
        end = store.fields("state", END)
        if not isinstance(end, dict) or "files" not in end:
            found.unknown.append(name)
            continue
        complete = end.get("complete")
        so_many = len(complete) if isinstance(complete, list) else 0
        for number, (path, length) in enumerate(end["files"]):
            _open_file(name, Path(path), length, found, may_be_gone=number < so_many)


def _open_file(sink: str, path: Path, length: int, found: _Files, *, may_be_gone: bool) -> None:
    """``may_be_gone``: it may have its final name already, and does not change any more. Or it was taken away."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        if not may_be_gone:
            found.missing.append(f"{sink}: its file {path} is missing; {length} bytes of it were committed")
        return
    except OSError as error:
        raise StateDirError(
            f"{sink}: its file {path} cannot be read: {error.strerror}; let this user read it, and try again"
        ) from error
    found.opened.append(SinkFile(sink, path, length, fd))
