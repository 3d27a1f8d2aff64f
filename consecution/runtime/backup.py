"""Backups of a state directory, made while a run goes on, and put back.

::

    DEST/backup.json     format, version, when and of what it was made, and the files, sealed with a checksum
    DEST/state/          a state directory: the manifest, and each store, as of one instant (see `snapshot`)
    DEST/files/          of each file that a sink appends to, what was committed at that instant

Both are written beside their place, and moved there when all is on the disk: there is none that is half done.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from consecution.errors import DamagedStoreError, StateDirError, UsageError, lacks_room, reason_of
from consecution.runtime.journal import check_is_utf_8, make_folder, sync_folder
from consecution.runtime.journal_check import check_state_dir
from consecution.runtime.snapshot import SinkFile, Snapshot, take_snapshot
from consecution.runtime.state import MANIFEST

FORMAT = 1
ABOUT = "backup.json"
STATE = "state"
FILES = "files"
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A file of a sink in a backup: ``kept`` is its name there, ``crc`` a CRC-32 of it."""

    sink: str
    path: str
    length: int
    kept: str
    crc: int


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup holds, and what it does not: the files of ``unknown`` sinks, and the databases of ``databases``."""

    made_at: str
    state_dir: str
    epoch: str
    finished: bool
    files: tuple[KeptFile, ...]
    unknown: tuple[str, ...]
    databases: tuple[str, ...]


def back_up(state_dir: Path, target: Path) -> Backup:
    """Make a backup of a state directory, whether a run goes on in it or not. ``target`` must not exist.

    StateDirError where it cannot be made. What was written is read again and checked, as `check_state_dir` does.
    """
    with _made_beside(target) as making:
        with take_snapshot(state_dir, with_files=True) as snapshot:
            backup = _write(snapshot, state_dir, making)
        problems = check_state_dir(making / STATE, of_anyone=True).problems
        if problems:
            raise DamagedStoreError(
                f"the state directory {state_dir} is damaged, and so would be its backup: {problems[0]}; look at it "
                f"with `consecution journal check {state_dir}`",
                path=str(state_dir),
                record=problems[0],
            )
    return backup


def _write(snapshot: Snapshot, state_dir: Path, making: Path) -> Backup:
    state = making / STATE
    state.mkdir(mode=0o700)
    _write_file(state / MANIFEST, snapshot.manifest)
    for name, store in snapshot.stores.items():
        folder = state / snapshot.state.origin_path(name).relative_to(snapshot.state.path)
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        store.copy_to(folder)
    (making / FILES).mkdir(mode=0o700)
    files = tuple(_keep(file, number, making / FILES) for number, file in enumerate(snapshot.files, 1))
    kinds = snapshot.state.kinds
    backup = Backup(
        datetime.now(UTC).isoformat(timespec="milliseconds"),
        str(state_dir.absolute()),
        snapshot.state.epoch,
        snapshot.state.finished_report is not None,
        files,
        snapshot.unknown,
        tuple(sorted(node for node, kind in kinds.items() if kind == "database")),
    )
    about = {"format": FORMAT, **asdict(backup)}
    _write_file(making / ABOUT, json.dumps({**about, "checksum": _checksum(about)}, indent=1).encode())
    return backup


def _keep(file: SinkFile, number: int, folder: Path) -> KeptFile:
    kept = f"{number:04}-{file.path.name}"
    crc = _copy(file.fd, file.length, folder / kept)
    if crc is None:
        raise StateDirError(f"{file.sink}: {file.path} is shorter than the {file.length} bytes that were committed")
    return KeptFile(file.sink, str(file.path), file.length, kept, crc)


def _copy(fd: int, length: int, target: Path) -> int | None:
    """Copy so many bytes from the beginning, for the same eyes; their checksum, or None where there are fewer."""
    crc = at = 0
    with open(target, "xb") as file:
        os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(fd).st_mode) & 0o777)
        while at < length:
            chunk = os.pread(fd, min(CHUNK_BYTES, length - at), at)
            if not chunk:
                return None
            crc = zlib.crc32(chunk, crc)
            file.write(chunk)
            at += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return crc


def _write_file(path: Path, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _checksum(about: dict[str, Any]) -> str:
    content = json.dumps(about, sort_keys=True, separators=(",", ":"))
    return f"{zlib.crc32(content.encode()):08x}"


@contextmanager
def _made_beside(target: Path) -> Iterator[Path]:
    """A folder that becomes ``target`` in the end, all at once; or is gone."""
    target = target.absolute()
    check_is_utf_8(target, what="the folder")
    try:
        if target.exists() and not _is_empty(target):
            raise UsageError(f"{target} exists already: give a folder that is new, or empty")
        make_folder(target.parent)
        making = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise StateDirError(f"{target} cannot be made: {reason_of(error)}; {_another_place(error)}") from error
    try:
        yield making
        _sync_all(making)
        os.rename(making, target)
        sync_folder(target.parent)
    except OSError as error:
        raise StateDirError(
            f"{target} cannot be made: {reason_of(error)}; nothing is left of it: {_another_place(error)}"
        ) from error
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _another_place(error: OSError) -> str:
    if lacks_room(error):
        return "make room there, or give a folder on another disk"
    return "give a folder in a place where this user can make one"


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _sync_all(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    sync_folder(folder)


# -- putting it back -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Restored:
    """``put_back`` are the files that were written, ``as_they_are`` those that hold at least what the backup has."""

    backup: Backup
    put_back: tuple[str, ...]
    as_they_are: tuple[str, ...]


def read_backup(path: Path) -> Backup:
    """What a backup says of itself. UsageError where it is none, DamagedStoreError where it does not add up."""
    try:
        about: dict[str, Any] = json.loads((path / ABOUT).read_bytes())
        checksum = about.pop("checksum")
        if checksum != _checksum(about):
            raise ValueError("its checksum is wrong")
        if about.pop("format") != FORMAT:
            raise UsageError(f"{path} was made by another version of consecution: restore it with that one")
        files = tuple(KeptFile(**file) for file in about.pop("files"))
        lists: dict[str, Any] = {name: tuple(about.pop(name)) for name in ("unknown", "databases")}
        return Backup(files=files, **lists, **about)
    except FileNotFoundError:
        raise UsageError(
            f"{path} is no backup: it has no {ABOUT}; give a folder that `consecution backup` has made"
        ) from None
    except OSError as error:
        raise StateDirError(
            f"the backup {path} cannot be read: {reason_of(error)}; give a folder that `consecution backup` has made, "
            "and that this user can read"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UsageError):
            raise
        raise DamagedStoreError(
            f"{path / ABOUT} is damaged: {error}; take another backup", path=str(path), record=ABOUT
        ) from error


def restore(
    path: Path, state_dir: Path, *, files: bool = True, files_to: Path | None = None, force: bool = False
) -> Restored:
    """Put a backup back: its files first, then the state directory, which must be new or empty.

    A file goes where it was, or into ``files_to``. One that begins with what the backup has of it is left as it is: the
    sink cuts it. Another one is only written over with ``force``. UsageError where two would go to one place.
    """
    backup = read_backup(path)
    places = [(file, _place_of(file, files_to)) for file in backup.files] if files else []
    _check_each_has_its_own(path, places)
    problems = check_state_dir(path / STATE, of_anyone=True).problems
    if problems:
        raise DamagedStoreError(
            f"the backup {path} is damaged: {problems[0]}; take another one", path=str(path), record=problems[0]
        )
    with _made_beside(state_dir) as making:
        _copy_all(path / STATE, making)
        missing = [(file, place) for file, place in places if not _begins_with(place, file)]
        if not force:
            _check_nothing_is_lost(missing)
        for file, place in missing:
            _put_back(path / FILES / file.kept, file, place)
    put_back = tuple(str(place) for _, place in missing)
    return Restored(backup, put_back, tuple(str(place) for _, place in places if str(place) not in put_back))


def _copy_all(source: Path, target: Path) -> None:
    """What is in a folder. (`copytree` goes on after an error, and tells of all of them as one without a number.)"""
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(mode=0o700)
        else:
            shutil.copy(path, copy)


def _place_of(file: KeptFile, files_to: Path | None) -> Path:
    return Path(file.path) if files_to is None else files_to.absolute() / Path(file.path).name


def _check_each_has_its_own(backup: Path, places: list[tuple[KeptFile, Path]]) -> None:
    """The files of two sinks may have one name, in two folders."""
    first: dict[Path, KeptFile] = {}
    for file, place in places:
        other = first.setdefault(place, file)
        if other.path != file.path:
            raise UsageError(
                f"{other.path} of {other.sink} and {file.path} of {file.sink} would both be put back as {place}: leave "
                "out --files-to, which puts them where they were; or take --no-files, and copy "
                f"{backup / FILES / other.kept} and {backup / FILES / file.kept} to where you want them"
            )


def _begins_with(place: Path, file: KeptFile) -> bool:
    """Whether all that was committed is there, and perhaps more, which the sink cuts off."""
    crc = at = 0
    try:
        with open(place, "rb") as there:
            while at < file.length:
                chunk = there.read(min(CHUNK_BYTES, file.length - at))
                if not chunk:
                    return False
                crc = zlib.crc32(chunk, crc)
                at += len(chunk)
    except OSError:
        return False
    return crc == file.crc


def _check_nothing_is_lost(missing: list[tuple[KeptFile, Path]]) -> None:
    for file, place in missing:
        if place.exists():
            raise UsageError(
                f"{place} is there, and is not what {file.sink} had written: move it away, give another place "
                "(--files-to), or write over it (--force)"
            )


def _put_back(kept: Path, file: KeptFile, place: Path) -> None:
    making = place.with_name(f".{place.name}.restored")
    try:
        make_folder(place.parent)
        making.unlink(missing_ok=True)
        with open(kept, "rb") as source:
            crc = _copy(source.fileno(), file.length, making)
        if crc != file.crc:
            raise DamagedStoreError(
                f"the backup's file {kept} is damaged: its checksum is wrong; take another backup",
                path=str(kept),
                record="checksum",
            )
        os.replace(making, place)
        sync_folder(place.parent)
    except OSError as error:
        remedy = "make room there" if lacks_room(error) else "mend that"
        raise StateDirError(
            f"{place} of {file.sink} cannot be put back: {reason_of(error)}; no state directory was made: {remedy}, "
            "give another place (--files-to), or leave files out (--no-files)"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            making.unlink(missing_ok=True)
