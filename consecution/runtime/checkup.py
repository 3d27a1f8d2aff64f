"""Is this machine, this folder and this pipeline fit for a run? Each finding says what was found, and what to do."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consecution.errors import ConsecutionError, ShippingError, lacks_room, reason_of
from consecution.plan import Plan, available_cores
from consecution.protocol.values import TaskIndex
from consecution.runtime.assembly import make_sources
from consecution.runtime.control_socket import LONGEST_PATH_BYTES
from consecution.runtime.journal import MAP_SIZE_BYTES, NO_ROOM_BYTES, Journal, check_is_utf_8
from consecution.runtime.shipping import can_ship, ship
from consecution.runtime.state import check_is_ours
from consecution.runtime.steering import SOCKET
from consecution.transport.socket_folder import LONGEST_BASE_BYTES, base_folder

OK, NOTE, BAD = "ok", "note", "bad"
NEEDED = ("lmdb", "pyzmq", "msgpack", "multiprocess", "dill")
EXTRAS = {
    "postgres": ("psycopg",),
    "sql": ("sqlalchemy",),
    "parquet": ("pyarrow",),
    "http": ("uvicorn", "starlette"),
    "schedule": ("cronsim", "tzdata"),
    "metrics": ("prometheus-client",),
    "progress": ("rich",),
    "completion": ("shtab",),
    "plot": ("graphviz",),
    "zstd": ("zstandard",),
}
"""Extra → the distributions that it brings; it is there when all of them are."""
SYNCS = 20
SLOW_SYNC_S = 0.02
"""A commit waits for the disk as long: with one batch at a time, fewer than fifty a second."""
LEAST_FREE_BYTES = 1 << 30
FILES_OF_A_WORKER = 16
"""Sockets, pipes and stores; each worker has a socket to each other one beside them."""
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs", "fuse.glusterfs"}
"""Where LMDB's locks, or its shared memory, do not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """``level``: ok; note, where something will be slow or missing; bad, where a run would fail or a promise break."""

    what: str
    level: str
    found: str
    remedy: str = ""


def check_machine(folder: Path, version: str, *, is_state_dir: bool = True) -> Iterator[Finding]:
    """What any run needs; ``folder`` is its state directory, or one to be made; else only where that may be put."""
    yield _versions(version)
    yield from _extras()
    yield _cores()
    yield _open_files()
    yield _socket_folder()
    place = _nearest(folder)
    yield from _folder(folder, place, is_state_dir=is_state_dir)
    yield _file_system(place)
    yield _free(place)
    if os.access(place, os.W_OK):
        yield _syncs(place)
        yield _store(place)


def _versions(version: str) -> Finding:
    parts = [f"consecution {version}", f"Python {platform.python_version()} ({sys.executable})"]
    missing = []
    for name in NEEDED:
        found = _version_of(name)
        parts.append(f"{name} {found}")
        missing += [name] if found is None else []
    said = f"{', '.join(parts)}; {platform.system()} {platform.release()}"
    if missing:
        return Finding("versions", BAD, said, f"pip install {' '.join(missing)}")
    return Finding("versions", OK, said)


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extras() -> Iterator[Finding]:
    found = {extra: {name: _version_of(name) for name in names} for extra, names in EXTRAS.items()}
    there = {extra: versions for extra, versions in found.items() if all(versions.values())}
    said = ", ".join(f"{extra} ({_named(versions)})" for extra, versions in there.items()) or "none"
    missing = [extra for extra in EXTRAS if extra not in there]
    remedy = f"where they are wanted: pip install 'consecution[{','.join(missing)}]'" if missing else ""
    yield Finding("extras", OK, said, remedy)


def _named(versions: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _cores() -> Finding:
    return Finding("cores", OK, f"{available_cores()} may be used; workers='auto' takes as many")


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    workers = _workers_for(soft)
    said = f"{soft} for a process, {hard} at most; enough for about {workers:,} workers"
    if workers < FILES_OF_A_WORKER:
        return Finding("open files", BAD, said, "ulimit -n 4096, or LimitNOFILE= of the service")
    return Finding("open files", OK, said)


def _workers_for(files: int) -> int:
    return max(0, files - FILES_OF_A_WORKER)


def _socket_folder() -> Finding:
    given, base = tempfile.gettempdir(), base_folder()
    said = f"sockets lie in {base} ({len(os.fsencode(base))} bytes; a path may have {LONGEST_PATH_BYTES})"
    if not os.access(base, os.W_OK | os.X_OK):
        return Finding("sockets", BAD, f"{said}, which cannot be written to", "set TMPDIR to a folder of your own")
    if base != given:
        remedy = (
            f"{given} has more than {LONGEST_BASE_BYTES} bytes: set TMPDIR to a shorter path to have them elsewhere"
        )
        return Finding("sockets", NOTE, said, remedy)
    return Finding("sockets", OK, said)


# -- the folder ----------------------------------------------------------------------------------


def _nearest(folder: Path) -> Path:
    """The folder, or the one above it that is there."""
    folder = folder.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def _folder(folder: Path, place: Path, *, is_state_dir: bool) -> Iterator[Finding]:
    what = "state directory"
    refused = _refused(folder.absolute(), place) if is_state_dir else ""
    if not os.access(place, os.W_OK | os.X_OK):
        yield Finding(what, BAD, f"{place} cannot be written to", "give a folder that can be written to as state_dir")
    elif place == folder.absolute() and place.stat().st_uid != os.getuid():
        yield Finding(what, BAD, f"{folder} belongs to user {place.stat().st_uid}", "run as its owner, or use another")
    elif refused:
        yield Finding(what, BAD, refused)
    else:
        yield Finding(what, OK, f"{folder.absolute()}{'' if place == folder.absolute() else ', which is to be made'}")
    socket = len(os.fsencode(folder.absolute() / SOCKET))
    if socket > LONGEST_PATH_BYTES:
        yield Finding(
            "control socket",
            NOTE,
            f"its path would have {socket} bytes; {LONGEST_PATH_BYTES} are allowed: it lies in {base_folder()}",
            "a shorter state_dir has it in place",
        )


def _refused(folder: Path, place: Path) -> str:
    """Why a run would not take this folder, and what to do; nothing where it would."""
    try:
        check_is_utf_8(folder)
    except ConsecutionError as error:
        return str(error)
    if place != folder:
        in_the_way = next(path for path in (folder, *folder.parents) if path.parent == place)
        said = f"{in_the_way} is there, and is no folder; give another path as state_dir"
        return said if os.path.lexists(in_the_way) else ""
    try:
        check_is_ours(folder)
    except (ConsecutionError, OSError) as error:
        return str(error)
    return ""


def _file_system(place: Path) -> Finding:
    kind = _kind_of_file_system(place)
    if kind in NETWORK_FILE_SYSTEMS:
        remedy = "put the state directory on a local disk: LMDB does not work on network file systems"
        return Finding("file system", BAD, f"{kind} at {place}", remedy)
    if kind == "tmpfs":
        return Finding("file system", NOTE, f"tmpfs at {place}", "what lies there does not survive the machine")
    return Finding("file system", OK, f"{kind or 'unknown'} at {place}")


def _kind_of_file_system(place: Path) -> str | None:
    """As the system tells it: the mount with the longest path that the place is under."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return None
    best: tuple[int, str | None] = (-1, None)
    for mount in mounts:
        _, point, kind, *_ = mount.split(" ")
        at = point.replace("\\040", " ")
        if len(at) >= best[0] and (place == Path(at) or place.is_relative_to(at)):
            best = (len(at), kind)
    return best[1]


def _free(place: Path) -> Finding:
    free = shutil.disk_usage(place).free
    said = f"{free / 2**30:,.1f} GiB at {place}"
    if free < LEAST_FREE_BYTES:
        remedy = "make room: a full disk ends the run, and the same command goes on once there is some"
        return Finding("free disk", NOTE, said, remedy)
    return Finding("free disk", OK, said)


def _syncs(place: Path) -> Finding:
    """What ``sync="power"`` waits for in every commit."""
    try:
        taken = _time_syncs(place)
    except OSError as error:
        return Finding("fsync", BAD, f"a file at {place} cannot be written: {reason_of(error)}", _remedy_of(error))
    median_s, longest_s = sorted(taken)[SYNCS // 2], max(taken)
    said = f"{median_s * 1000:.2f} ms (the middle of {SYNCS}; the longest {longest_s * 1000:.2f} ms)"
    if median_s > SLOW_SYNC_S:
        remedy = "larger batches (linger_ms), a faster disk, or sync='process' if a power cut may cost the latest work"
        return Finding("fsync", NOTE, said, remedy)
    return Finding("fsync", OK, said)


def _time_syncs(place: Path) -> list[float]:
    taken = []
    with tempfile.NamedTemporaryFile(dir=place, prefix=".consecution-doctor-") as file:
        for _ in range(SYNCS):
            file.write(b"\1" * 4096)
            file.flush()
            started_s = time.perf_counter()
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - started_s)
    return taken


def _remedy_of(error: OSError) -> str:
    if lacks_room(error):
        return "make room on the disk, or give a state_dir on another one"
    return "mend that, or give a state_dir on another disk"


def _store(place: Path) -> Finding:
    """A store as a run makes it, with all the addresses that it reserves."""
    said = f"a store that reserves {MAP_SIZE_BYTES // 2**30} GiB of addresses"
    try:
        check_is_utf_8(place, what="the folder")
    except ConsecutionError as error:
        return Finding("store", BAD, str(error))
    try:
        with tempfile.TemporaryDirectory(
            dir=place, prefix=".consecution-doctor-", ignore_cleanup_errors=True
        ) as folder:
            started_s = time.perf_counter()
            Journal(Path(folder) / "journal", origin="doctor", epoch="doctor").close()
            return Finding("store", OK, f"{said} was made in {(time.perf_counter() - started_s) * 1000:.0f} ms")
    except OSError as error:
        return Finding("store", BAD, f"{said} cannot be made: {reason_of(error)}", _remedy_of(error))
    except (ConsecutionError, MemoryError) as error:
        remedy = "make room on the disk" if _is_full(place) else "raise the limit of addresses (ulimit -v)"
        return Finding("store", BAD, f"{said} cannot be made: {error}", remedy)


def _is_full(place: Path) -> bool:
    return shutil.disk_usage(place).free < NO_ROOM_BYTES


# -- the pipeline --------------------------------------------------------------------------------


def check_pipeline(plan: Plan, global_state: Any) -> Iterator[Finding]:
    """What of a pipeline can be sent to workers."""
    bad = False
    try:
        sources = make_sources(plan, None)
    except ConsecutionError as error:
        yield Finding("source", BAD, str(error))
        sources, bad = {}, True
    for task, source in sources.items():
        name = plan.task(task).node
        if source.in_parent or not can_ship(source):
            why = "it cannot be sent to a worker" if not source.in_parent else "it belongs to this process"
            yield Finding(f"node {name}", NOTE, f"is read in the program itself: {why}")
    for node in plan.nodes:
        if node.is_source or node.node is None:
            continue
        try:
            ship(plan, [TaskIndex(node.tasks[0])], global_state, {})
        except ShippingError as error:
            bad = True
            yield Finding(f"node {node.name}", BAD, str(error))
    if not bad:
        nodes, workers = len(plan.nodes), len(plan.workers)
        yield Finding("pipeline", OK, f"its {nodes} nodes can be sent to workers; a run would start {workers}")
