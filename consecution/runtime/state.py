"""The state directory: one run's memory on disk, with one supervisor at a time.

::

    manifest.json      {format, epoch, signature, source, finished: null or the report}
    supervisor.lock    an flock held while a supervisor runs
    origins/<name>/    the journal of each origin

The epoch names one life of the plan over this directory; every journal holds it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

from consecution.errors import DamagedStoreError, StateDirError
from consecution.plan import Plan
from consecution.runtime.journal import Journal

FORMAT = 1
MANIFEST = "manifest.json"


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
    def finished_report(self) -> dict[str, Any] | None:
        """The report of the run that finished here; None while there is something to do."""
        found: dict[str, Any] | None = self._manifest["finished"]
        return found

    def origin_path(self, name: str) -> Path:
        """Where the journal of an origin lies."""
        return _origin_path(self.path, name)

    def finish(self, report: dict[str, Any]) -> None:
        """Record that the stream has ended and all of it is processed."""
        self._manifest["finished"] = report
        _write_manifest(self.path, self._manifest)

    def close(self, *, keep: bool = True) -> None:
        """Release the lock; a temporary directory goes away unless it is to be kept."""
        if self._lock < 0:
            return
        if self.temporary and not keep:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._lock = -1


def open_state_dir(path: Path | None, plan: Plan, *, fresh: bool) -> StateDir:
    """Lock and check a state directory, making it where there is none.

    ``path`` None gives a private temporary one. Raises StateDirError where another supervisor holds it,
    where it is no state directory, or where it belongs to another graph with work in flight.
    """
    temporary = path is None
    if path is None:
        path = Path(tempfile.mkdtemp(prefix="consecution-state-"))
    path = path.absolute()
    _check_owner(path)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_is_ours(path)
    lock = _lock(path)
    try:
        if fresh:
            _clear(path)
        manifest = _read_manifest(path)
        if manifest is None:
            manifest = _make_manifest(plan)
            _write_manifest(path, manifest)
        elif manifest["signature"] != plan.signature:
            _move_to(path, manifest, plan)
    except BaseException:
        os.close(lock)
        raise
    return StateDir(path, lock, manifest, temporary=temporary)


def _origin_path(path: Path, name: str) -> Path:
    return path / "origins" / (re.sub(r"[^\w-]", "_", name) or "_")


def _check_owner(path: Path) -> None:
    if path.exists() and path.stat().st_uid != os.getuid():
        raise StateDirError(
            f"the state directory {path} belongs to user {path.stat().st_uid}, this process runs as "
            f"{os.getuid()}: run as its owner, or use another directory"
        )


def _check_is_ours(path: Path) -> None:
    names = {entry.name for entry in path.iterdir()} - {"supervisor.lock"}
    if names and MANIFEST not in names:
        raise StateDirError(
            f"{path} is not a state directory: expected {MANIFEST}, found {', '.join(sorted(names)[:5])}; "
            "give an empty or a new directory as state_dir"
        )


def _lock(path: Path) -> int:
    lock = os.open(path / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise StateDirError(
            f"the state directory {path} is in use by another run (process {owner}): "
            "wait for it, stop it, or use another state_dir"
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _clear(path: Path) -> None:
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path / "origins", ignore_errors=True)


def _make_manifest(plan: Plan) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "epoch": uuid.uuid4().hex,
        "signature": plan.signature,
        "source": plan.source_name,
        "finished": None,
    }


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        text = (path / MANIFEST).read_text()
    except FileNotFoundError:
        return None
    try:
        manifest: dict[str, Any] = json.loads(text)
        if manifest["format"] != FORMAT:
            raise StateDirError(
                f"{path / MANIFEST} has format {manifest['format']}; this version reads {FORMAT}: "
                "finish the run with the version that began it"
            )
        _ = manifest["epoch"], manifest["signature"], manifest["source"], manifest["finished"]
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
    new = path / (MANIFEST + ".new")
    with open(new, "w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path / MANIFEST)
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _move_to(path: Path, manifest: dict[str, Any], plan: Plan) -> None:
    """Let a changed graph go on over an old directory, if nothing is in flight in it."""
    if manifest["source"] != plan.source_name:
        raise StateDirError(
            f"the state directory {path} belongs to a pipeline whose source is {manifest['source']!r}; this "
            f"one's is {plan.source_name!r}: use another state_dir, or fresh=True to forget the old one"
        )
    origin = _origin_path(path, manifest["source"])
    if origin.exists():
        journal = Journal(origin, origin=manifest["source"], epoch=manifest["epoch"])
        try:
            restored = journal.restore()
        finally:
            journal.close()
        in_flight = len(restored.batches) + len(restored.waiting)
        if in_flight:
            raise StateDirError(
                f"the graph has changed, and the state directory {path} holds {in_flight} batches in flight "
                "for the old one: run the old pipeline once more and stop it, so that it drains; or use "
                "fresh=True to forget them"
            )
    manifest["signature"] = plan.signature
    _write_manifest(path, manifest)
