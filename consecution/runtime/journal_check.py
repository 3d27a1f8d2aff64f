"""An independent reader of a state directory: it shares no code with the journal it checks.

It knows the layout from docs/formats.md, verifies every checksum, and checks what must hold between
the records. It changes nothing and may look while a run goes on.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import msgpack

from consecution.errors import UsageError

FORMAT = 1


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


@dataclass(frozen=True, slots=True)
class CheckResult:
    """``problems`` is empty where everything is sound."""

    epoch: str
    finished: bool
    origins: tuple[OriginSummary, ...]
    problems: tuple[str, ...]


def check_state_dir(path: Path) -> CheckResult:
    """Read everything under a state directory. UsageError where it is none."""
    manifest_path = path / "manifest.json"
    if not manifest_path.is_file():
        raise UsageError(f"{path} is not a state directory: it has no manifest.json")
    problems: list[str] = []
    manifest = _read_manifest(manifest_path, problems)
    found = []
    folders = sorted((path / "origins").glob("*")) if (path / "origins").is_dir() else []
    for folder in folders:
        checker = _OriginChecker(folder, str(manifest.get("epoch", "")), problems)
        summary = checker.check()
        if summary is not None:
            found.append(summary)
    finished = manifest.get("finished") is not None
    if finished:
        for origin in found:
            if origin.open_batches or origin.waiting:
                problems.append(f"{origin.name}: the run is recorded as finished, but has work open")
    return CheckResult(str(manifest.get("epoch", "")), finished, tuple(found), tuple(problems))


def _read_manifest(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        problems.append(f"{path}: {error}")
        return {}
    for field in ("format", "epoch", "signature", "source", "finished"):
        if field not in manifest:
            problems.append(f"{path}: the field {field!r} is missing")
    if manifest.get("format") != FORMAT:
        problems.append(f"{path}: format {manifest.get('format')!r}, expected {FORMAT}")
    return manifest


class _OriginChecker:
    def __init__(self, folder: Path, epoch: str, problems: list[str]) -> None:
        self._folder = folder
        self._epoch = epoch
        self._problems = problems

    def check(self) -> OriginSummary | None:
        if not (self._folder / "data.mdb").is_file():
            self._complain("data.mdb is missing")
            return None
        try:
            env = lmdb.open(str(self._folder), readonly=True, create=False, max_dbs=8, max_readers=16)
        except lmdb.Error as error:
            self._complain(f"cannot be opened: {error}")
            return None
        try:
            with env.begin() as txn:
                return self._check_records(env, txn)
        except lmdb.Error as error:
            self._complain(f"cannot be read: {error}")
            return None
        finally:
            env.close()

    def _complain(self, what: str) -> None:
        self._problems.append(f"{self._folder}: {what}")

    def _check_records(self, env: Any, txn: Any) -> OriginSummary | None:
        names = {bytes(key) for key, _ in txn.cursor()}
        for unknown in sorted(names - {b"meta", b"batches", b"failures"}):
            self._complain(f"unknown database {unknown!r}")
        tables = {name: dict(self._records(env, txn, name)) for name in sorted(names)}
        meta = tables.get(b"meta", {})
        identity, head = meta.get(b"identity"), meta.get(b"head")
        if identity is None:
            self._complain("meta/identity is missing or damaged")
            return None
        fmt, name, unique, epoch = identity
        if fmt != FORMAT:
            self._complain(f"format {fmt!r}, expected {FORMAT}")
        if epoch != self._epoch:
            self._complain(f"belongs to epoch {epoch}, the manifest to {self._epoch}")
        batches = {int.from_bytes(k, "big"): v for k, v in tables.get(b"batches", {}).items()}
        failures = {int.from_bytes(k, "big"): v for k, v in tables.get(b"failures", {}).items()}
        if head is None:
            if batches or failures:
                self._complain("meta/head is missing, but there are batches or failures")
            head = [0, 0, 0, None, 0, 0, False]
        self._check_head(head, batches, failures)
        first_time = [b for b in batches.values() if b[2] is None]
        return OriginSummary(
            name=name,
            uuid=unique,
            next_seq=head[0],
            generation=head[2],
            position=head[3],
            emitted=head[4],
            exhausted=head[6],
            open_batches=len(batches),
            open_items=sum(batch[0] for batch in first_time),
            waiting=sum(1 for failure in failures.values() if failure[4] is not None),
            given_up=sum(1 for failure in failures.values() if failure[4] is None),
        )

    def _check_head(self, head: list[Any], batches: dict[int, Any], failures: dict[int, Any]) -> None:
        next_seq, next_key, _, _, emitted, failed, _ = head
        for seq, batch in batches.items():
            if seq >= next_seq:
                self._complain(f"batches/{seq}: the head says that the next batch is {next_seq}")
            if batch[2] is not None and batch[2][0] >= seq:
                self._complain(f"batches/{seq}: retries an item of batch {batch[2][0]}, which is not older")
        for key, failure in failures.items():
            if key >= next_key:
                self._complain(f"failures/{key}: the head says that the next key is {next_key}")
            if failure[2] >= next_seq:
                self._complain(f"failures/{key}: belongs to batch {failure[2]}, the next batch is {next_seq}")
        given_up = sum(1 for failure in failures.values() if failure[4] is None)
        if given_up != failed:
            self._complain(f"the head counts {failed} items given up, the failure store holds {given_up}")
        if sum(batch[0] for batch in batches.values() if batch[2] is None) > emitted:
            self._complain(f"more items are open than were ever emitted ({emitted})")

    def _records(self, env: Any, txn: Any, name: bytes) -> Iterator[tuple[bytes, list[Any]]]:
        table = env.open_db(name, txn=txn, create=False)
        for key, value in txn.cursor(db=table):
            shown = key.decode() if name == b"meta" else str(int.from_bytes(key, "big"))
            where = f"{name.decode()}/{shown}"
            body = bytes(value[4:])
            if int.from_bytes(value[:4], "big") != zlib.crc32(bytes(key) + body):
                self._complain(f"{where}: the checksum is wrong")
                continue
            try:
                fields = msgpack.unpackb(body, unicode_errors="surrogatepass")
            except ValueError as error:
                self._complain(f"{where}: {error}")
                continue
            if len(fields) != _LENGTHS[(name, shown if name == b"meta" else "")]:
                self._complain(f"{where}: has {len(fields)} fields")
                continue
            yield bytes(key), fields


_LENGTHS = {
    (b"meta", "identity"): 4,
    (b"meta", "head"): 7,
    (b"batches", ""): 4,
    (b"failures", ""): 5,
}
