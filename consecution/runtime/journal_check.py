"""An independent reader of a state directory: it shares no code with the journal it checks.

It has only `pages`, of LMDB, and `ownership` in common with it.

It knows the layout from docs/formats.md, verifies every checksum, the kind of every field, and what must
hold between the records. It changes nothing and may look while a run goes on in another process.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lmdb
import msgpack

from consecution.errors import UsageError
from consecution.runtime.journal import MOVE_IT, check_is_utf_8
from consecution.runtime.ownership import check_owner, deny
from consecution.runtime.pages import LEAF_LIMIT, PageError, check_file

FORMAT = 4
SLOTS = 4096
"""Hashes of keys; each replica owns a range of them."""
ROOM_BYTES = 16 * 1024**3
"""So much may a store grow to while it is looked at. Reserved addresses, and nothing else."""


@dataclass(frozen=True, slots=True)
class OriginSummary:
    """What one origin's journal holds."""

    name: str
    uuid: str
    next_seq: int
    generation: int
    position: Any
    emitted: int
    exhausted: bool
    open_batches: int
    open_items: int
    waiting: int
    given_up: int
    decided: int = 0
    """Batches that are decided and not yet applied by all of their participants."""
    staged: int = 0
    """Frames in a durable task's inbox."""
    keys: int = 0
    """States in a durable task's table; those in its log may be more."""
    logged: int = 0
    """Records in a durable task's log of changes."""
    moved: int = 0
    """Entries of another store that are void, for they are batches here, and that may still be there."""
    durable: bool = False
    """The store of a durable task, and not of a source."""
    ledger: tuple[tuple[str, int], ...] = ()
    """The last batch a durable task has applied, by the task it came from."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """``problems`` is empty where everything is sound."""

    epoch: str
    finished: bool
    origins: tuple[OriginSummary, ...]
    problems: tuple[str, ...]


def check_state_dir(path: Path, *, of_anyone: bool = False) -> CheckResult:
    """Read everything under a state directory. Nothing is unpickled.

    UsageError where it is none, or where this very process has one of its journals open; StateDirError where it is
    another user's, unless it may be ``of_anyone``, as what a backup holds may, or where its path is not UTF-8.
    """
    check_is_utf_8(path, MOVE_IT)
    manifest_path = path / "manifest.json"
    try:
        there = manifest_path.is_file()
    except PermissionError as error:
        deny(path, error)
    if not there:
        raise UsageError(
            f"{path} is not a state directory: it has no manifest.json; give the folder that a run was given as "
            "state_dir"
        )
    if not of_anyone:
        check_owner(path)
    problems: list[str] = []
    manifest = _read_manifest(manifest_path, problems)
    epoch, finished = str(manifest.get("epoch", "")), manifest.get("finished") is not None
    found, tables = _read_origins(path, manifest, problems)
    problems += _check_across(path, manifest, tables)
    _check_origins(manifest, manifest_path, found, problems)
    if finished:
        problems.extend(_unfinished(found.values(), _sources_of(manifest)))
    return CheckResult(epoch, finished, tuple(found.values()), tuple(problems))


Tables = dict[str, dict[Any, Any]]
"""The sound records of one store, by table."""


def _read_origins(
    path: Path, manifest: dict[str, Any], problems: list[str]
) -> tuple[dict[Path, OriginSummary], dict[str, Tables]]:
    """What every store holds, summed up by folder, and its records by the origin's name."""
    found, tables = {}, {}
    tasks = manifest.get("tasks")
    for folder in _origin_folders(path, manifest):
        checker = _OriginChecker(folder, str(manifest.get("epoch", "")), problems)
        summary = checker.check()
        if summary is not None:
            found[folder] = summary = _with_names(summary, checker.tables, tasks if isinstance(tasks, list) else [])
            tables[summary.name] = checker.tables
    return found, tables


def _with_names(summary: OriginSummary, tables: Tables, tasks: list[Any]) -> OriginSummary:
    ledger = tables.get("ledger", {}).items()
    return replace(summary, ledger=tuple((_name_of(task, tasks), fields[0]) for task, fields in ledger))


def _name_of(task: int, tasks: list[Any]) -> str:
    return str(tasks[task]) if task < len(tasks) else f"task {task}"


# -- between the stores --------------------------------------------------------------------------


def _check_across(path: Path, manifest: dict[str, Any], tables: dict[str, Tables]) -> list[str]:
    """What must hold between the stores. Where a run goes on they are of different moments: look twice.

    What only seemed wrong because one store was read earlier than the other is right at a second look.
    """
    problems = list(_disagreements(manifest, tables))
    if not problems:
        return []
    _, again = _read_origins(path, manifest, [])
    return [problem for problem in _disagreements(manifest, again) if problem in problems]


def _disagreements(manifest: dict[str, Any], tables: dict[str, Tables]) -> Iterator[str]:
    tasks = manifest.get("tasks")
    if not isinstance(tasks, list) or not tasks:
        return
    sources = _sources_of(manifest)
    names = dict(enumerate([*sources, *tasks[len(sources) :]]))
    for index, name in names.items():
        if name in tables:
            yield from _unstaged(index, name, names, tables)
            yield from _ahead(name, names, tables)
            yield from _moved_from(name, name in sources, tables)
    yield from _misplaced(manifest, tasks[len(sources) :], tables)


def _sources_of(manifest: dict[str, Any]) -> list[Any]:
    sources = manifest.get("sources")
    return sources if isinstance(sources, list) else []


def _unstaged(index: int, name: str, names: dict[int, Any], tables: dict[str, Tables]) -> Iterator[str]:
    """A decided batch is applied by each participant, or lies in its inbox, complete."""
    for seq, (generation, _, participants, *_) in tables[name].get("decided", {}).items():
        for task, xor in participants:
            theirs = tables.get(str(names.get(task)))
            if theirs is None:
                yield f"{name}: decided/{seq} names task {task}, which has no store"
                continue
            if theirs.get("ledger", {}).get(index, [-1])[0] >= seq:
                continue
            staged = 0
            for frame in theirs.get("inbox", {}):
                if frame[:3] == (index, seq, generation):
                    staged ^= frame[3]
            if staged != xor:
                yield (
                    f"{name}: decided/{seq} is not applied by {names[task]}, and the frames of generation {generation} "
                    f"in its inbox have the checksum {staged:016x}, expected {xor:016x}"
                )


def _ahead(name: str, names: dict[int, Any], tables: dict[str, Tables]) -> Iterator[str]:
    """A ledger knows only batches that were born."""
    for origin, (seq,) in tables[name].get("ledger", {}).items():
        theirs = tables.get(str(names.get(origin)))
        if theirs is None:
            yield f"{name}: ledger/{origin} is of a task that has no store"
        elif seq >= theirs["meta"]["head"][0]:
            born = theirs["meta"]["head"][0]
            yield f"{name}: has applied batch {seq} of {names[origin]}, whose next batch is {born}"


def _moved_from(name: str, is_source: bool, tables: dict[str, Tables]) -> Iterator[str]:
    """Only a source takes failed items over, or another replica of their node, from stores that had them."""
    origin, keys = tables[name]["meta"].get("moved", (None, ()))
    if origin is None:
        return
    theirs = tables.get(origin)
    if not (is_source or _node_of(origin) == _node_of(name)) or origin == name or theirs is None:
        yield f"{name}: meta/moved says that failed items of {origin!r} have become batches here"
    elif keys and max(keys) >= theirs["meta"]["head"][1]:
        next_key = theirs["meta"]["head"][1]
        yield f"{name}: meta/moved names the entry {max(keys)} of {origin}, whose next key is {next_key}"


def _misplaced(manifest: dict[str, Any], tasks: list[Any], tables: dict[str, Tables]) -> Iterator[str]:
    """Each replica of a keyed node has states in its own range of slots only."""
    kinds = manifest.get("nodes")
    for node, kind in kinds.items() if isinstance(kinds, dict) else ():
        replicas = [str(task) for task in tasks if _node_of(task) == node] if kind == "keyed" else []
        for replica, name in enumerate(replicas):
            places = tables.get(name, {}).get("state", {})
            slots = {int.from_bytes(place[:2], "big") for place in places}
            foreign = sorted(slot for slot in slots if slot * len(replicas) // SLOTS != replica)
            if foreign:
                owner = replicas[foreign[0] * len(replicas) // SLOTS]
                yield f"{name}: state has keys of slot {foreign[0]}, which {owner} owns; foreign slots: {len(foreign)}"


def _node_of(task: Any) -> str:
    return str(task).rpartition(".")[0]


# -- the manifest --------------------------------------------------------------------------------

_MANIFEST_FIELDS: dict[str, Callable[[Any], bool]] = {
    "format": lambda value: value == FORMAT,
    "epoch": lambda value: isinstance(value, str),
    "signature": lambda value: isinstance(value, str),
    "sources": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "origins": lambda value: isinstance(value, dict),
    "tasks": lambda value: isinstance(value, list),
    "nodes": lambda value: isinstance(value, dict),
    "folder": lambda value: isinstance(value, str),
    "finished": lambda value: value is None or isinstance(value, dict),
}


def _read_manifest(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        checksum = manifest.pop("checksum", None)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        problems.append(f"{path}: {error}")
        return {}
    for field, is_right in _MANIFEST_FIELDS.items():
        if field not in manifest:
            problems.append(f"{path}: the field {field!r} is missing")
        elif not is_right(manifest[field]):
            problems.append(f"{path}: the field {field!r} is {manifest[field]!r}")
    content = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    if checksum != f"{zlib.crc32(content):08x}":
        problems.append(f"{path}: the checksum is wrong")
    return manifest


def _origin_folders(path: Path, manifest: dict[str, Any]) -> list[Path]:
    """The folders of journals; none while the manifest lists none: they are just being made."""
    folder = path / str(manifest.get("folder", "origins"))
    if manifest.get("origins") == {} or not folder.is_dir():
        return []
    return sorted(folder.glob("*"))


def _check_origins(manifest: dict[str, Any], path: Path, found: dict[Path, OriginSummary], problems: list[str]) -> None:
    """The journals that are there must be those that the manifest lists."""
    listed = manifest.get("origins")
    if not isinstance(listed, dict):
        return
    uuids = {summary.name: summary.uuid for summary in found.values()}
    for name, unique in listed.items():
        if name not in uuids:
            problems.append(f"{path}: lists the origin {name!r}, whose journal is missing or damaged")
        elif uuids[name] != unique:
            problems.append(f"{path}: origin {name!r} has the uuid {uuids[name]}, expected {unique}")
    for folder, summary in found.items():
        if summary.name not in listed:
            problems.append(f"{folder}: the journal of {summary.name!r}, which the manifest does not list")


def _unfinished(origins: Any, sources: list[Any]) -> Iterator[str]:
    for origin in origins:
        if origin.open_batches or origin.waiting or origin.decided or origin.staged or origin.moved:
            yield f"{origin.name}: the run is recorded as finished, but has work open"
        if origin.name in sources and not origin.exhausted:
            yield f"{origin.name}: the run is recorded as finished, but its source has not ended"


# -- one journal ---------------------------------------------------------------------------------


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_list(*kinds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def is_right(value: Any) -> bool:
        if type(value) is not list or len(value) != len(kinds):
            return False
        return all(is_kind(field) for is_kind, field in zip(kinds, value, strict=True))

    return is_right


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _is_stage(value: Any) -> bool:
    return value in (0, 1)


def _is_entry_stage(value: Any) -> bool:
    """2: on the way over a failed edge, which no frame has."""
    return value in (0, 1, 2)


def _is_payload(value: Any) -> bool:
    return type(value) is bytes


def _is_payload_or_nil(value: Any) -> bool:
    return value is None or type(value) is bytes


def _is_due(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def _is_anything(value: Any) -> bool:
    return True


def _is_root(value: Any) -> bool:
    """-1: a failed input of a durable task, which descends from no batch of its own origin."""
    return type(value) is int and value >= -1


def _is_counts(value: Any) -> bool:
    return type(value) is list and all(map(_is_count, value))


def _is_action(value: Any) -> bool:
    return value in (0, 1, 2)


def _is_count_or_nil(value: Any) -> bool:
    return value is None or _is_count(value)


def _is_seconds(value: Any) -> bool:
    return type(value) in (int, float)


_is_treatment = _is_list(_is_action, _is_count_or_nil, _is_due)
_is_failed = _is_list(
    _is_count, _is_entry_stage, _is_payload_or_nil, _is_text, _is_text, _is_flag, _is_text, _is_treatment
)
_is_retry = _is_list(_is_root, _is_count, _is_count, _is_count, _is_entry_stage)
_is_participant = _is_list(_is_count, _is_count)


def _is_retry_or_nil(value: Any) -> bool:
    return value is None or _is_retry(value)


def _is_failed_list(value: Any) -> bool:
    return type(value) is list and all(map(_is_failed, value))


def _is_participants(value: Any) -> bool:
    return type(value) is list and bool(value) and all(map(_is_participant, value))


_RECORDS: dict[str, Callable[[Any], bool]] = {
    "meta/identity": _is_list(_is_count, _is_text, _is_text, _is_text),
    "meta/head": _is_list(_is_count, _is_count, _is_count, _is_anything, _is_count, _is_count, _is_flag, _is_count),
    "meta/moved": _is_list(_is_text, _is_counts),
    "meta/notes": _is_list(_is_count),
    "meta/ended": _is_list(_is_flag),
    "meta/outside": _is_list(_is_count),
    "batches": _is_list(_is_count, _is_payload, _is_retry_or_nil, _is_failed_list),
    "decided": _is_list(_is_count, _is_count, _is_participants, _is_retry_or_nil, _is_count),
    "failures": _is_list(_is_failed, _is_count, _is_root, _is_count, _is_due, _is_seconds),
    "inbox": _is_list(_is_counts, _is_count, _is_count, _is_stage, _is_payload, _is_flag),
    "ledger": _is_list(_is_count),
    "notes": _is_list(_is_payload),
}
_KEY_BYTES = {"batches": (8,), "decided": (8,), "failures": (8,), "notes": (8,), "ledger": (4,), "inbox": (4, 8, 8, 8)}
"""The numbers that a key is made of, in bytes, big-endian."""
_TABLES = ("meta", "batches", "decided", "failures")
_DURABLE_TABLES = (*_TABLES, "inbox", "ledger", "state", "log")
_MADE_LATER = ("notes",)
"""Only where a source has something to note; meta/notes counts them."""
_PICKLED = ("state", "log")
"""Tables whose bodies are pickles, which are not loaded here."""


def open_environment(folder: Path) -> Any:
    """The environment of a journal, to be read only, with room for what a run adds meanwhile."""
    room_bytes = max(ROOM_BYTES, 2 * (folder / "data.mdb").stat().st_size)
    return lmdb.open(str(folder), map_size=room_bytes, readonly=True, create=False, max_dbs=8, max_readers=16)


@contextlib.contextmanager
def open_to_read(folder: Path, *, leaf_limit: int | None = LEAF_LIMIT) -> Iterator[Any]:
    """The environment of a journal, its pages looked at (see `pages`); lmdb.CorruptedError where they are damaged.

    A longer copy of it, where the file is shorter than the pages it says it has.

    That need not be damage: a page that was given back before it was written is counted, too. But reading
    a page behind the end would kill this process; in the copy it is zeros, which are noticed.
    """
    data = folder / "data.mdb"
    env = open_environment(folder)
    with contextlib.ExitStack() as stack:
        stack.callback(env.close)
        check_pages(env, data, leaf_limit)
        needed_bytes = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        if data.stat().st_size < needed_bytes:
            copy = stack.enter_context(tempfile.TemporaryDirectory(prefix="consecution-check-"))
            copied = Path(shutil.copy(data, copy))
            with open(copied, "r+b") as file:
                file.truncate(needed_bytes)
            env = lmdb.open(copy, readonly=True, create=False, lock=False, max_dbs=8)
            stack.callback(env.close)
        yield env


def check_pages(env: Any, data: Path, leaf_limit: int | None = LEAF_LIMIT) -> None:
    """Those of one commit, which stay as they are as long as it is being read."""
    with env.begin() as txn:
        try:
            check_file(data, env.stat()["psize"], txn.id(), leaf_limit=leaf_limit)
        except PageError as error:
            raise lmdb.CorruptedError(str(error)) from error


class _OriginChecker:
    def __init__(self, folder: Path, epoch: str, problems: list[str]) -> None:
        self._folder = folder
        self._epoch = epoch
        self._problems = problems
        self.tables: Tables = {}

    def check(self) -> OriginSummary | None:
        if not (self._folder / "data.mdb").is_file():
            self._complain("data.mdb is missing")
            return None
        try:
            with open_to_read(self._folder, leaf_limit=None) as env, env.begin() as txn:
                return self._check_records(env, txn)
        except lmdb.Error as error:
            if "already open in this process" in str(error):
                raise UsageError(
                    f"{self._folder} is open in this process; look at it from another one: consecution journal check"
                ) from error
            self._complain(f"data.mdb cannot be read: {error}")
            return None

    def _complain(self, what: str) -> None:
        self._problems.append(f"{self._folder}: {what}")

    def _check_records(self, env: Any, txn: Any) -> OriginSummary | None:
        names = {bytes(key).decode(errors="replace") for key, _ in txn.cursor()}
        expected = _DURABLE_TABLES if "inbox" in names else _TABLES
        for name in sorted(names.symmetric_difference(expected) - set(_MADE_LATER)):
            self._complain(f"{'unknown database' if name in names else 'there is no database'} {name!r}")
        tables = {name: dict(self._records(env, txn, name)) for name in (*expected, *_MADE_LATER) if name in names}
        self.tables = tables
        meta = tables.get("meta", {})
        identity, head = meta.get("identity"), meta.get("head")
        if identity is None or head is None:
            missing = "meta/identity" if identity is None else "meta/head"
            self._complain(f"{missing} is missing or damaged")
            return None
        self._check_identity(identity)
        batches, failures = tables.get("batches", {}), tables.get("failures", {})
        self._check_batches(head, batches)
        self._check_decided(batches, tables.get("decided", {}))
        self._check_failures(head, failures)
        self._check_books(head, batches, tables.get("decided", {}), failures)
        self._check_inbox(tables.get("inbox", {}), tables.get("ledger", {}))
        self._check_notes(head, meta.get("notes", [0])[0], tables.get("notes", {}))
        return _summarize(identity, head, tables)

    def _records(self, env: Any, txn: Any, table: str) -> Iterator[tuple[Any, list[Any]]]:
        """The sound records of a table, by their name (meta) or number."""
        for key, value in txn.cursor(db=env.open_db(table.encode(), txn=txn, create=False)):
            named = table == "meta"
            shown = _name_or_number(table, bytes(key))
            where = _record_name(table, shown)
            if table in _PICKLED:
                self._check_seal(where, bytes(key), bytes(value))
                yield bytes(key), []
                continue
            is_right = _RECORDS.get(where if named else table)
            if is_right is None or (not named and len(key) != sum(_KEY_BYTES[table])):
                self._complain(f"{where}: unknown key {bytes(key)!r}")
                continue
            fields = self._read(where, bytes(key), bytes(value))
            if fields is not None and not is_right(fields):
                self._complain(f"{where}: not of the form that formats.md describes")
            elif fields is not None:
                yield shown, fields

    def _check_seal(self, where: str, key: bytes, value: bytes) -> bool:
        if len(value) < 4 or int.from_bytes(value[:4], "big") != zlib.crc32(key + value[4:]):
            self._complain(f"{where}: the checksum is wrong")
            return False
        return True

    def _read(self, where: str, key: bytes, value: bytes) -> Any:
        if not self._check_seal(where, key, value):
            return None
        try:
            return msgpack.unpackb(value[4:], unicode_errors="surrogatepass")
        except ValueError as error:
            self._complain(f"{where}: {error}")
            return None

    def _check_identity(self, identity: list[Any]) -> None:
        fmt, _, _, epoch = identity
        if fmt != FORMAT:
            self._complain(f"format {fmt!r}, expected {FORMAT}")
        if epoch != self._epoch:
            self._complain(f"belongs to epoch {epoch}, the manifest to {self._epoch}")

    def _check_batches(self, head: list[Any], batches: dict[int, Any]) -> None:
        next_seq = head[0]
        low = min(batches, default=next_seq)
        missing = next((seq for seq in range(low, next_seq) if seq not in batches), None)
        if missing is not None:
            self._complain(f"batches/{missing} is missing or damaged: batches are decided in order")
        for seq, (count, _, retry, failed) in batches.items():
            if seq >= next_seq:
                self._complain(f"batches/{seq}: the head says that the next batch is {next_seq}")
            if retry is not None and retry[0] >= seq:
                self._complain(f"batches/{seq}: retries an item of batch {retry[0]}, which is not older")
            if len(failed) > count:
                self._complain(f"batches/{seq}: has {count} items, of which {len(failed)} failed at birth")

    def _check_decided(self, batches: dict[int, Any], decided: dict[int, Any]) -> None:
        low = min(batches, default=None)
        for seq in decided:
            if low is not None and seq >= low:
                self._complain(f"decided/{seq}: batch {low} is not decided; batches are decided in order")

    def _check_inbox(self, inbox: dict[tuple[int, ...], Any], ledger: dict[int, Any]) -> None:
        for origin, seq, generation, frame_id in inbox:
            applied = ledger.get(origin, [-1])[0]
            if seq <= applied:
                self._complain(
                    f"inbox/{origin}.{seq}.{generation}.{frame_id}: batch {applied} of this origin was applied, so "
                    "nothing of this one may be left"
                )

    def _check_failures(self, head: list[Any], failures: dict[int, Any]) -> None:
        next_seq, next_key = head[0], head[1]
        for key, (_, _, root, *_) in failures.items():
            if key >= next_key:
                self._complain(f"failures/{key}: the head says that the next key is {next_key}")
            if root >= next_seq:
                self._complain(f"failures/{key}: belongs to batch {root}, the next batch is {next_seq}")

    def _check_notes(self, head: list[Any], counted: int, notes: dict[int, Any]) -> None:
        if len(notes) != counted:
            self._complain(f"notes: holds {len(notes)} records, and meta/notes counts {counted}")
        for seq in notes:
            if seq >= head[0]:
                self._complain(f"notes/{seq}: the next batch is {head[0]}")

    def _check_books(
        self, head: list[Any], batches: dict[int, Any], decided: dict[int, Any], failures: dict[int, Any]
    ) -> None:
        emitted, failed = head[4], head[5]
        given_up = sum(1 for failure in failures.values() if failure[4] is None)
        if given_up != failed:
            self._complain(f"the head counts {failed} items given up, the failure store holds {given_up}")
        held = {failure[2]: failure[3] for failure in failures.values() if failure[4] is not None}
        held.update({retry[0]: retry[1] for _, _, retry, _ in batches.values() if retry is not None})
        held.update({retry[0]: retry[1] for _, _, _, retry, _ in decided.values() if retry is not None})
        whole = {seq: batch[0] for seq, batch in batches.items() if batch[2] is None}
        whole.update({seq: batch[1] for seq, batch in decided.items() if batch[3] is None})
        pending = sum({**held, **whole}.values())
        if pending > emitted:
            self._complain(f"{pending} items are open, but only {emitted} were ever emitted")


def _number(table: str, key: bytes) -> Any:
    """A key as the number it is, or as the tuple of them."""
    sizes = _KEY_BYTES.get(table)
    if sizes is None or len(sizes) == 1 or len(key) != sum(sizes):
        return int.from_bytes(key, "big")
    ends = itertools.accumulate(sizes)
    return tuple(int.from_bytes(key[end - size : end], "big") for size, end in zip(sizes, ends, strict=True))


def record_name(table: str, key: bytes) -> str:
    """Which record it is, for people: ``meta/head``, ``batches/7``, ``inbox/0.1.2.3``."""
    return _record_name(table, _name_or_number(table, key))


def _record_name(table: str, shown: Any) -> str:
    return f"{table}/{'.'.join(map(str, shown)) if isinstance(shown, tuple) else shown}"


def _name_or_number(table: str, key: bytes) -> Any:
    return key.decode(errors="replace") if table == "meta" else _number(table, key)


def _summarize(identity: list[Any], head: list[Any], tables: dict[str, dict[Any, Any]]) -> OriginSummary:
    batches, failures = tables.get("batches", {}), tables.get("failures", {})
    return OriginSummary(
        name=identity[1],
        uuid=identity[2],
        next_seq=head[0],
        generation=head[2],
        position=head[3],
        emitted=head[4],
        exhausted=head[6],
        open_batches=len(batches),
        open_items=sum(batch[0] for batch in batches.values() if batch[2] is None),
        waiting=sum(1 for failure in failures.values() if failure[4] is not None),
        given_up=sum(1 for failure in failures.values() if failure[4] is None),
        decided=len(tables.get("decided", {})),
        staged=len(tables.get("inbox", {})),
        keys=len(tables.get("state", {})),
        logged=len(tables.get("log", {})),
        moved=len(tables["meta"].get("moved", (None, ()))[1]),
        durable="inbox" in tables,
    )
