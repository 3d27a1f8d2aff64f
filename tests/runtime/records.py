"""Records of a journal, and state directories that hold them."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import lmdb
import msgpack
from hypothesis import strategies as st

from consecution import Map
from consecution.options import Options
from consecution.plan import Plan, make_plan
from consecution.protocol.origin import BatchRecord, FailureEntry, RetryMark
from consecution.protocol.values import Action, Entry, FailedItem, Stage, TaskIndex, Treatment
from consecution.runtime.journal import Journal
from consecution.runtime.state import StateDir, open_state_dir

ORIGIN = "source"

texts = st.text(st.characters(), max_size=20)
"""Any text, lone surrogates included: names of files that are no UTF-8 have them."""

numbers = st.integers(0, 2**64 - 1)

positions = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | texts | st.binary(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)

failed_items = st.builds(
    FailedItem,
    st.integers(0, 100).map(TaskIndex),
    st.sampled_from(Stage),
    st.binary(max_size=50),
    texts,
    texts,
    st.booleans(),
    texts,
    st.builds(Treatment, st.sampled_from(Action), st.none() | numbers, st.none() | st.floats(0, 1e9)),
)


def failed(text: str = "ValueError: no") -> FailedItem:
    return FailedItem(TaskIndex(1), Stage.PROCESS, b"item", text, "Traceback ...", True, "'item'")


def batch(seq: int, payload: bytes = b"payload", **fields: Any) -> BatchRecord:
    return BatchRecord(seq, 1, payload, **fields)


def retry(seq: int, root: int) -> BatchRecord:
    return batch(seq, retry=RetryMark(root, 1, 1, Entry(TaskIndex(1), Stage.ROUTE)))


def entry(key: int, root: int = 0, due_s: float | None = None, text: str = "ValueError: no") -> FailureEntry:
    return FailureEntry(key, failed(text), 1, root, 1, due_s)


def plan(*, name: str = "text", source: str | None = None) -> Plan:
    made = make_plan(Map(str, name=name), Options.of(robustness="robust"), has_iterable=True)
    assert source in (None, *made.sources)
    return made


def open_state(path: Path, **options: Any) -> StateDir:
    return open_state_dir(path, plan(), fresh=False, **options)


def open_journal(state: StateDir, **options: Any) -> Journal:
    return Journal(state.origin_path(ORIGIN), origin=ORIGIN, epoch=state.epoch, **options)


def seal(key: bytes, fields: Any) -> bytes:
    """A record as docs/formats.md has it."""
    body: bytes = msgpack.packb(fields, unicode_errors="surrogatepass")
    return zlib.crc32(key + body).to_bytes(4, "big") + body


class RawJournal:
    """The records on disk, read and written behind the journal's back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def records(self) -> dict[tuple[str, bytes], bytes]:
        env = lmdb.open(str(self._folder), max_dbs=8)
        found = {}
        with env.begin() as txn:
            for name in ("meta", "batches", "failures"):
                for key, value in txn.cursor(db=env.open_db(name.encode(), txn=txn, create=False)):
                    found[name, bytes(key)] = bytes(value)
        env.close()
        return found

    def put(self, table: str, key: bytes, value: bytes | None) -> None:
        """Write a record, or take it away (None)."""
        env = lmdb.open(str(self._folder), max_dbs=8, sync=False)
        with env.begin(db=env.open_db(table.encode()), write=True) as txn:
            if value is None:
                assert txn.delete(key)
            else:
                txn.put(key, value)
        env.close()


def number(of: int) -> bytes:
    return of.to_bytes(8, "big")


def missing_bytes(folder: Path) -> int:
    """How much shorter the file is than the pages it counts."""
    env = lmdb.open(str(folder), max_dbs=8)
    needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    env.close()
    return int(needed - (folder / "data.mdb").stat().st_size)
