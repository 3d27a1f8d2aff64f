"""The state directory: one run's memory on disk, with one supervisor at a time.

::

    manifest.json      {format, epoch, signature, sources: [name], tasks: [name], nodes: {durable node: kind},
                        folder, origins: {name: uuid}, finished: null or the report,
                        checksum: CRC-32 of all that, as hex}
    supervisor.lock    an flock held while a supervisor runs
    run.json           the latest run, for those who watch it; see `run_record`
    control.sock       where it listens; see `control_socket`
    paused             there while its sources are not to be read
    <folder>/<name>/   the journal of each origin; the folder is origins, or since a move origins.<epoch>

The epoch names one life of the plan over this directory; every journal holds it. A journal that the
manifest lists must be there, with that uuid. A folder of journals that it does not name is what a crash has left of
a move from one plan to another (see `relocation`), and goes away. What has another name than ours is not ours.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from consecution.errors import ConsecutionError, DamagedStoreError, StateDirError, UsageError, reason_of
from consecution.own_descriptors import give_back, keep_from_children
from consecution.plan import Plan
from consecution.protocol.values import TaskIndex
from consecution.runtime import strays, takeover
from consecution.runtime.durable_store import DurableStore
from consecution.runtime.journal import MOVE_IT, Journal, check_is_utf_8, make_folder, sync_folder
from consecution.runtime.ownership import check_owner, deny
from consecution.runtime.relocation import Relocation, kinds_of, origins_of, origins_of_sources, takers_in
from consecution.runtime.run_record import LOCK, holder_of, private

FORMAT = 4
FOLDER = "origins"
FOLDER_NAME = re.compile(re.escape(FOLDER) + r"(\.[0-9a-f]{32})?")
"""As it is made here, and since a move with an epoch; a copy that a person makes beside it has another one."""
FIELDS = ("epoch", "signature", "sources", "tasks", "nodes", "folder", "origins", "finished")
MANIFEST = "manifest.json"
NEW_MANIFEST = MANIFEST + ".new"
LOOKERS_S = 0.2
PLAIN_NAME = re.compile(r"[a-z0-9_-]{1,64}")
"""Names of nodes that are names of folders, too; the same on every file system."""


class StateDir:
    """A locked state directory. Made by `open_state_dir`; `close` releases the lock."""

    def __init__(self, path: Path, lock: int, manifest: dict[str, Any], *, temporary: bool) -> None:
        self.path = path
        self.temporary = temporary
        self._lock = lock
        self._manifest = manifest

    @property
    def epoch(self) -> str:
        return str(self._manifest["epoch"])

    @property
    def sources(self) -> list[str]:
        """The names of the sources' origins, by the numbers of their tasks."""
        return list(self._manifest["sources"])

    @property
    def origins(self) -> list[str]:
        """The names of all origins, those of the sources first."""
        return list(self._manifest["origins"])

    @property
    def takers(self) -> list[str]:
        """The names of the origins that may have taken failed items over from others."""
        return takers_in(self._manifest)

    @property
    def tasks(self) -> list[str]:
        """The names of the plan's tasks, by their numbers."""
        return list(self._manifest["tasks"])

    @property
    def finished_report(self) -> dict[str, Any] | None:
        """The report of the run that finished here; None while there is something to do."""
        found: dict[str, Any] | None = self._manifest["finished"]
        return found

    @property
    def kinds(self) -> dict[str, str]:
        """What each durable node keeps in its store, by its name."""
        return dict(self._manifest["nodes"])

    def origin_path(self, name: str) -> Path:
        """Where the journal of an origin lies."""
        return _origin_path(self.path, self._manifest, name)

    def journal(self, name: str) -> Journal:
        """The journal of an origin, open."""
        return _open_origin(self.path, self._manifest, name, create=False)

    def journals(self, names: list[str]) -> Iterator[Journal]:
        """The journals of these origins, each open until the next is asked for."""
        for name in names:
            with closing(self.journal(name)) as journal:
                yield journal

    def store_bytes(self, plan: Plan) -> dict[TaskIndex, int]:
        """What the store of each task takes of the disk, as far as it has one."""
        found = {}
        for task in plan.tasks:
            name = plan.origin_name(TaskIndex(task.index))
            with contextlib.suppress(FileNotFoundError):
                if name is not None:
                    found[TaskIndex(task.index)] = (self.origin_path(name) / "data.mdb").stat().st_blocks * 512
        return found

    def finish(self, report: dict[str, Any]) -> None:
        """Record that the stream has ended and all of it is processed."""
        self._manifest["finished"] = report
        _write_manifest(self.path, self._manifest)

    def unfinish(self) -> None:
        """There is something to do again."""
        if self._manifest["finished"] is not None:
            self._manifest["finished"] = None
            _write_manifest(self.path, self._manifest)

    def close(self, *, keep: bool = True) -> None:
        """Release the lock; a temporary directory goes away unless it is to be kept."""
        if self._lock < 0:
            return
        if self.temporary and not keep:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(give_back(self._lock))
        self._lock = -1


def open_state_dir(path: Path | None, plan: Plan, *, fresh: bool) -> StateDir:
    """Lock and check a state directory, making it where there is none.

    ``path`` None gives a private temporary one. Raises StateDirError where another supervisor holds it,
    where it is no state directory or cannot be one, or where it belongs to another graph with work in flight.
    """
    if path is not None:
        path = path.absolute()
        check_is_utf_8(path, "give another folder as state_dir")
        return _open(path, plan, fresh=fresh, temporary=False)
    check_is_utf_8(Path(tempfile.gettempdir()), "set TMPDIR, or give a state_dir", "the folder of temporary files")
    made = Path(tempfile.mkdtemp(prefix="consecution-state-"))
    try:
        return _open(made, plan, fresh=fresh, temporary=True)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def look_at_state_dir(path: Path) -> StateDir:
    """A state directory that may belong to a run: not locked, only to be looked at.

    UsageError where it is none, StateDirError where it is another user's, or no journal of it can be opened.
    """
    check_is_utf_8(path, MOVE_IT)
    with _explained(path):
        try:
            manifest = _read_manifest(path) if path.is_dir() else None
        except PermissionError as error:
            deny(path, error)
        if manifest is None:
            raise UsageError(
                f"{path} is not a state directory: it has no {MANIFEST}; give the folder that a run was given as "
                "state_dir"
            )
        check_owner(path)
    return StateDir(path, -1, manifest, temporary=False)


def shares_before(path: Path) -> dict[str, int]:
    """In how many shares each source was read, in a run that is to go on; nothing where there is none."""
    try:
        manifest = _read_manifest(path)
    except (OSError, ConsecutionError):
        return {}  # whoever opens the directory will say what is wrong
    if manifest is None or manifest["finished"] is not None or not manifest["origins"]:
        return {}
    return {source: len(origins) for source, origins in origins_of_sources(manifest).items()}


def lock_state_dir(path: Path) -> StateDir:
    """A state directory of no run, locked and to be changed. StateDirError while a run holds it."""
    look_at_state_dir(path)
    with _explained(path):
        lock = _lock(
            path, "stop the run first (Ctrl-C, or kill -TERM to that process): it can go on afterwards where it stopped"
        )
    try:
        manifest = look_at_state_dir(path)._manifest
        _finish_takeover(path, manifest)
        return StateDir(path, lock, manifest, temporary=False)
    except BaseException:
        os.close(give_back(lock))
        raise


def _open(path: Path, plan: Plan, *, fresh: bool, temporary: bool) -> StateDir:
    with _explained(path):
        make_folder(path, 0o700)
        check_owner(path)
        check_is_ours(path)
        _keep_others_out(path)
        lock = _lock(path)
        try:
            manifest = None if fresh else _read_manifest(path)
            if manifest is None:
                manifest = _make_manifest(plan)
                _write_manifest(path, manifest)
            _settle(path, manifest, plan)
        except BaseException:
            os.close(give_back(lock))
            raise
    return StateDir(path, lock, manifest, temporary=temporary)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateDirError(
            f"the state directory {path} cannot be used: {reason_of(error)}; give a folder that can be written "
            "to as state_dir"
        ) from error


def _keep_others_out(path: Path) -> None:
    """Whoever can write here decides what this user's workers unpickle; whoever can read sees every item."""
    if path.stat().st_mode & 0o077:
        path.chmod(0o700)


def _settle(path: Path, manifest: dict[str, Any], plan: Plan) -> None:
    """Make the journals that are not there yet; check those that must be."""
    _sweep(path, manifest)
    if not manifest["origins"]:
        # The manifest may be that of a start with another plan, which was killed before it had made any.
        manifest.update(_shaped_like(manifest, plan))
        _make_origins(path, manifest, plan)
        return
    _finish_takeover(path, manifest)
    in_flight = sum(_check_origin(path, manifest, name) for name in manifest["origins"])
    if (manifest["signature"], manifest["nodes"]) != (plan.signature, kinds_of(plan)):
        _move_to(path, manifest, plan, in_flight)
    if manifest["finished"] is None:
        strays.bring_home(plan, lambda name: _open_origin(path, manifest, name, create=False))


def _sweep(path: Path, manifest: dict[str, Any]) -> None:
    """Remove the folders of journals that are no longer, or not yet, those of the manifest."""
    for folder in path.glob(FOLDER + "*"):
        if FOLDER_NAME.fullmatch(folder.name) and folder.name != manifest["folder"]:
            shutil.rmtree(folder)


def _make_origins(path: Path, manifest: dict[str, Any], plan: Plan) -> None:
    """What a run that never began, or one that is to be forgotten, has left goes away first."""
    if (path / manifest["folder"]).exists():
        shutil.rmtree(path / manifest["folder"])
    made = {name: _make_origin(path, manifest, name) for name in origins_of(plan)}
    for folder in (path / manifest["folder"], path):
        sync_folder(folder)
    manifest["origins"] = made
    _write_manifest(path, manifest)


def _open_origin(path: Path, manifest: dict[str, Any], name: str, *, create: bool) -> Journal:
    store = Journal if name in manifest["sources"] else DurableStore
    return store(_origin_path(path, manifest, name), origin=name, epoch=manifest["epoch"], create=create)


def _make_origin(path: Path, manifest: dict[str, Any], name: str) -> str:
    journal = _open_origin(path, manifest, name, create=True)
    journal.close()
    sync_folder(journal.path)
    return journal.uuid


def _finish_takeover(path: Path, manifest: dict[str, Any]) -> None:
    """What a command, or a start, that was killed has left half done (see `takeover`)."""
    for name in takers_in(manifest) if manifest["origins"] else ():
        with closing(_open_origin(path, manifest, name, create=False)) as source:
            takeover.finish(source, lambda name: _open_origin(path, manifest, name, create=False))


def _check_origin(path: Path, manifest: dict[str, Any], name: str) -> int:
    """Whether the journal is the one that was made here. Returns how many batches are in flight in it."""
    journal = _open_origin(path, manifest, name, create=False)
    try:
        if journal.uuid != manifest["origins"][name]:
            raise StateDirError(
                f"the journal {journal.path} has the uuid {journal.uuid}; expected {manifest['origins'][name]}, as "
                f"{path / MANIFEST} says: it was copied here from another state directory"
            )
        return journal.in_flight()
    finally:
        journal.close()


def _origin_path(path: Path, manifest: dict[str, Any], name: str) -> Path:
    """Names that cannot be used as they are get a hash, after a dot, which no plain name has."""
    folder = path / str(manifest["folder"])
    if PLAIN_NAME.fullmatch(name):
        return folder / name
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return folder / f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)[:40]}.{digest}"


def check_is_ours(path: Path) -> None:
    """StateDirError for a folder that is neither a state directory nor empty."""
    names = {entry.name for entry in path.iterdir()} - {LOCK, NEW_MANIFEST}
    if names and MANIFEST not in names:
        raise StateDirError(
            f"{path} is not a state directory: expected {MANIFEST}, found {', '.join(sorted(names)[:5])}; "
            "give an empty or a new directory as state_dir"
        )


def _lock(path: Path, remedy: str = "wait for it, stop it, or use another state_dir") -> int:
    lock = keep_from_children(os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    try:
        _insist_on(lock)
    except BlockingIOError as error:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(give_back(lock))
        raise StateDirError(
            f"the state directory {path} is in use by another run (process {owner}): {remedy}"
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _insist_on(lock: int) -> None:
    """Whoever only looks whether a run goes on holds the lock, too, for a moment."""
    deadline_s = time.monotonic() + LOOKERS_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(LOOKERS_S / 20)


def _make_manifest(plan: Plan) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "epoch": uuid.uuid4().hex,
        "signature": plan.signature,
        "sources": list(plan.sources),
        "tasks": [task.name for task in plan.tasks],
        "nodes": kinds_of(plan),
        "folder": FOLDER,
        "origins": {},
        "finished": None,
    }


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        content = (path / MANIFEST).read_bytes()
    except FileNotFoundError:
        return None
    try:
        manifest: dict[str, Any] = json.loads(content)
        if manifest["format"] != FORMAT:
            raise StateDirError(
                f"{path / MANIFEST} has format {manifest['format']}; this version reads {FORMAT}: "
                "finish the run with the version that began it"
            )
        checksum = manifest.pop("checksum")
        if checksum != _checksum(manifest):
            raise ValueError("its checksum is wrong")
        _ = [manifest[field] for field in FIELDS]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedStoreError(
            f"{path / MANIFEST} is damaged: {error}; restore it from a backup, or start afresh "
            "(fresh=True), which forgets what was in flight",
            path=str(path / MANIFEST),
            record="manifest",
        ) from error
    return manifest


def _write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Replace the manifest at once and for good: no reader ever sees half of it."""
    with open(path / NEW_MANIFEST, "w", opener=private) as file:
        json.dump({**manifest, "checksum": _checksum(manifest)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path / NEW_MANIFEST, path / MANIFEST)
    sync_folder(path)


def _checksum(manifest: dict[str, Any]) -> str:
    content = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return f"{zlib.crc32(content.encode()):08x}"


def _move_to(path: Path, manifest: dict[str, Any], plan: Plan, in_flight: int) -> None:
    """Let a changed graph go on over an old directory, if nothing is in flight in it."""
    if manifest["finished"] is not None:
        return
    _check_nothing_in_flight(path, in_flight)
    moved = _shaped_like(manifest, plan)
    if _stores_move(manifest, moved):
        _relocate(path, manifest, moved, plan)
    manifest.update(moved)
    _write_manifest(path, manifest)
    _sweep(path, manifest)


def _check_nothing_in_flight(path: Path, in_flight: int) -> None:
    if in_flight:
        raise StateDirError(
            f"the graph has changed, and the state directory {path} holds {in_flight} batches in flight "
            "for the old one: run the old pipeline once more and stop it, so that it drains; or use "
            "fresh=True to forget them"
        )


def _stores_move(manifest: dict[str, Any], moved: dict[str, Any]) -> bool:
    """Whether stores have to be written anew; else only edges have changed."""
    return any(moved[part] != manifest[part] for part in ("sources", "tasks", "nodes"))


def foresee(path: Path, plan: Plan) -> list[str]:
    """What a run of this plan would do with what is in the directory, in words. Changes nothing.

    StateDirError where the run would be refused: the folder is none for it, or another run goes on there, say.
    """
    with _explained(path):
        manifest = holder = None
        if _is_there(path):
            check_owner(path)
            check_is_ours(path)
            holder = holder_of(path)
            manifest = None if plan.options.fresh else _read_manifest(path)
    if holder is not None:
        raise StateDirError(
            f"the state directory {path} is in use by another run (process {holder or 'unknown'}): what it holds is in "
            f"flight; let it end first (consecution drain {path}), then ask again"
        )
    if plan.options.fresh:
        return ["it would be forgotten (fresh)"]
    if manifest is None or not manifest["origins"]:
        return ["there is nothing yet: it would begin"]
    if manifest["finished"] is not None:
        return ["the run in it has finished: nothing would be done without fresh=True (--fresh)"]
    return _foresee_going_on(path, manifest, plan)


def _is_there(path: Path) -> bool:
    """Whether anything has this name; OSError where nothing could."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _foresee_going_on(path: Path, manifest: dict[str, Any], plan: Plan) -> list[str]:
    in_flight = sum(_check_origin(path, manifest, name) for name in manifest["origins"])
    moved = _shaped_like(manifest, plan)
    if (manifest["signature"], manifest["nodes"]) == (moved["signature"], moved["nodes"]):
        again = f", and {in_flight} batches that are in flight are finished first" if in_flight else ""
        return [f"the graph is the same: it would go on where it was{again}"]
    _check_nothing_in_flight(path, in_flight)
    if not _stores_move(manifest, moved):
        return ["edges have changed: it would go on where it was"]
    return [
        "the graph has changed: it would go on where it was",
        *_relocation(path, manifest, moved, plan).foresee(str(path)),
    ]


def _shaped_like(manifest: dict[str, Any], plan: Plan) -> dict[str, Any]:
    tasks = [task.name for task in plan.tasks]
    shape = {"signature": plan.signature, "sources": list(plan.sources), "tasks": tasks, "nodes": kinds_of(plan)}
    return {**manifest, **shape}


def _relocation(path: Path, manifest: dict[str, Any], moved: dict[str, Any], plan: Plan) -> Relocation:
    return Relocation(
        manifest,
        plan,
        lambda name: _open_origin(path, manifest, name, create=False),
        lambda name: _open_origin(path, moved, name, create=True),
    )


def _relocate(path: Path, manifest: dict[str, Any], moved: dict[str, Any], plan: Plan) -> None:
    """Write the stores of a new life beside those of the old one, complete and safe on the disk."""
    moved["epoch"] = uuid.uuid4().hex
    moved["folder"] = f"{FOLDER}.{moved['epoch']}"
    relocation = _relocation(path, manifest, moved, plan)
    relocation.check(str(path))
    moved["origins"] = relocation.carry_out()
    for name in moved["origins"]:
        sync_folder(_origin_path(path, moved, name))
    for folder in (path / moved["folder"], path):
        sync_folder(folder)
