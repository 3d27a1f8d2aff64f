from __future__ import annotations

import json
import operator
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consecution.errors import DamagedStoreError, WorldError
from consecution.protocol.durable import FramesDropped, FrameStaged, LedgerMoved
from consecution.protocol.origin import BatchBorn, BatchDecided, Decision, FailureKept, Head, HeadMoved
from consecution.protocol.values import Frame, FrameId, Stage, TaskIndex
from consecution.runtime.durable_store import CommittedOutside, DurableStore, EndRecorded, TableWrite
from consecution.runtime.journal import seal
from tests.runtime.records import batch, entry

ROOT = Path(__file__).parents[2]
TABLES = ("meta", "batches", "decided", "failures", "inbox", "ledger", "state", "log")


def open_store(path: Path, *, create: bool = False) -> DurableStore:
    return DurableStore(path, origin="total.0", epoch="e", sync="process", create=create)


def frame(frame_id: int = 1, *, origin: int = 0, seq: int = 0, payload: bytes = b"items") -> Frame:
    source = TaskIndex(origin)
    return Frame(source, seq, 3, (0, 2), FrameId(frame_id), 0, source, Stage.PROCESS, False, payload)


def put(table: str, key: bytes, body: bytes) -> Callable[[DurableStore], TableWrite]:
    return lambda store: TableWrite(lambda txn: txn.put(key, seal(key, body), db=store.handle(table)))


def fill(path: Path) -> None:
    """A store with a record of every kind."""
    store = open_store(path, create=True)
    store.apply(
        [
            BatchBorn(batch(1)),
            BatchDecided(0, Decision(0, 1, 1, ((TaskIndex(2), 7),))),
            HeadMoved(Head(next_seq=2, generation=1, emitted=2)),
            FrameStaged(frame(5)),
            FrameStaged(frame(2**64 - 1, seq=1, payload=b"x" * 5000)),
            LedgerMoved(TaskIndex(3), 8),
            put("state", b"\0\1key", b"a state")(store),
            put("log", b"\0" * 8, b"changes")(store),
            CommittedOutside(4),
            EndRecorded(),
        ]
    )
    store.close()


def everything(path: Path) -> str:
    """All that a run reads of a store."""
    store = open_store(path)
    try:
        return repr(
            (
                store.restore(),
                store.restore_inbox(),
                [list(store.scan(table)) for table in ("state", "log")],
                store.outside_number,
                store.has_ended,
                store.failures(10),
            )
        )
    finally:
        store.close()


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = open_store(tmp_path / "store", create=True)
    yield made
    made.close()


# -- inbox and ledger --------------------------------------------------------------------------------

frames = st.builds(
    Frame,
    st.integers(0, 2**32 - 1).map(TaskIndex),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, 1000), max_size=4).map(tuple),
    st.integers(0, 2**64 - 1).map(FrameId),
    st.integers(0, 2**63),
    st.integers(0, 1000).map(TaskIndex),
    st.sampled_from(Stage),
    st.just(False),
    st.binary(max_size=100),
)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(frames, max_size=5, unique_by=operator.attrgetter("origin", "seq", "generation", "frame_id")),
    st.dictionaries(st.integers(0, 2**32 - 1), st.integers(0, 2**63)),
)
def test_frames_and_ledger_come_back_as_they_were_put(
    tmp_path_factory: pytest.TempPathFactory, staged: list[Frame], ledger: dict[int, int]
) -> None:
    path = tmp_path_factory.mktemp("store")
    store = open_store(path, create=True)
    store.apply([*map(FrameStaged, staged), *(LedgerMoved(TaskIndex(o), seq) for o, seq in ledger.items())])
    store.close()

    again = open_store(path)
    found_ledger, found = again.restore_inbox()
    again.close()

    assert found_ledger == ledger
    assert {repr(frame) for frame in found} == {repr(frame) for frame in staged}


def test_frames_that_are_dropped_are_gone(store: DurableStore) -> None:
    store.apply([FrameStaged(frame(1)), FrameStaged(frame(2)), FrameStaged(frame(3, seq=1))])

    store.apply([FramesDropped((frame(1), frame(2)))])

    _, left = store.restore_inbox()
    assert [kept.frame_id for kept in left] == [3]


def test_the_end_is_remembered(store: DurableStore) -> None:
    assert not store.has_ended

    store.apply([EndRecorded()])

    assert store.has_ended


def test_a_commit_that_fails_changes_nothing(store: DurableStore) -> None:
    def fail(txn: Any) -> None:
        raise lmdb.DiskError("no")

    with pytest.raises(WorldError, match=r"cannot grow.*nothing was lost"):
        store.apply([FrameStaged(frame()), LedgerMoved(TaskIndex(0), 1), TableWrite(fail)])

    assert store.restore_inbox() == ({}, [])


# -- tables ------------------------------------------------------------------------------------------


def test_a_range_of_a_table_is_scanned_in_order(store: DurableStore) -> None:
    for key in (b"a", b"b", b"ba", b"c"):
        store.apply([put("state", key, b"of " + key)(store)])

    assert [key for key, _ in store.scan("state")] == [b"a", b"b", b"ba", b"c"]
    assert list(store.scan("state", b"aa", b"c")) == [(b"b", b"of b"), (b"ba", b"of ba")]
    assert list(store.scan("state", b"d")) == []
    assert store.count("state") == 4


# -- a store elsewhere -------------------------------------------------------------------------------


def test_a_redo_carried_out_equals_the_commit_that_a_crash_prevented(tmp_path: Path) -> None:
    for name in ("committed", "redone"):
        fill(tmp_path / name)
    changes = [
        FramesDropped((frame(5),)),
        LedgerMoved(TaskIndex(0), 0),
        BatchBorn(batch(2)),
        HeadMoved(Head(next_seq=3, generation=1, emitted=3)),
        CommittedOutside(5),
    ]

    committed, redone = open_store(tmp_path / "committed"), open_store(tmp_path / "redone")
    redo = redone.redo_of(changes)
    committed.apply(changes)
    redone.carry_out(redo)
    redone.carry_out(redo)
    committed.close()
    redone.close()

    assert everything(tmp_path / "redone") == everything(tmp_path / "committed")


def test_a_redo_leaves_out_what_is_only_just_being_staged(store: DurableStore) -> None:
    store.carry_out(store.redo_of([FrameStaged(frame()), LedgerMoved(TaskIndex(0), 1)]))

    assert store.restore_inbox() == ({0: 1}, [])


def test_a_redo_after_failed_items_were_put_back_or_dropped_leaves_the_books_right(store: DurableStore) -> None:
    kept = [FailureKept(entry(0)), FailureKept(entry(1)), FailureKept(entry(2))]
    store.apply([*kept, HeadMoved(Head(next_key=3, failed=3))])
    redo = store.redo_of([FailureKept(entry(3)), HeadMoved(Head(next_key=4, failed=4))])

    store.drop_failures([0, 7])
    store.apply([FailureKept(entry(1, due_s=5.0)), HeadMoved(Head(next_key=3, failed=1))])
    store.carry_out(redo)

    assert store.restore().head == Head(next_key=4, failed=2)


# -- damage ------------------------------------------------------------------------------------------


def records(path: Path) -> list[tuple[str, bytes, bytes]]:
    with lmdb.open(str(path), max_dbs=8) as env, env.begin() as txn:
        return [
            (table, bytes(key), bytes(value))
            for table in TABLES
            for key, value in txn.cursor(db=env.open_db(table.encode(), txn=txn, create=False))
        ]


def write(path: Path, table: str, key: bytes, value: bytes) -> None:
    with lmdb.open(str(path), max_dbs=8, sync=False) as env, env.begin(write=True) as txn:
        txn.put(key, value, db=env.open_db(table.encode(), txn=txn))


def test_every_flipped_byte_of_every_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "store"
    fill(path)
    sound = everything(path)
    seen = set()
    for table, key, value in records(path):
        seen.add(table)
        for at in [*range(min(len(value), 200)), len(value) - 1]:
            write(path, table, key, value[:at] + bytes([value[at] ^ 0x10]) + value[at + 1 :])

            with pytest.raises(DamagedStoreError) as caught:
                everything(path)

            assert caught.value.record.startswith(f"{table}/")
        write(path, table, key, value)
    assert everything(path) == sound
    assert seen == {*TABLES} - {"failures"}


def test_every_record_cut_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "store"
    fill(path)
    for table, key, value in records(path):
        for left in (0, 1, 4, len(value) - 1):
            write(path, table, key, value[:left])

            with pytest.raises(DamagedStoreError, match="fails its checksum"):
                everything(path)
        write(path, table, key, value)


OPEN_CUT_FILES = """
import json, sys
from pathlib import Path
from consecution.errors import DamagedStoreError
from tests.runtime.test_durable_store import everything

folder = Path(sys.argv[1])
data = folder / "data.mdb"
whole, sound = data.read_bytes(), everything(folder)
damaged, wrong = 0, []
for left in range(0, len(whole), 509):
    data.write_bytes(whole[:left])
    try:
        if everything(folder) != sound:
            wrong.append(left)
    except DamagedStoreError:
        damaged += 1
    (folder / "lock.mdb").unlink(missing_ok=True)
print(json.dumps([damaged, wrong]))
"""


def test_a_store_cut_off_anywhere_is_damage_or_as_it_was_and_kills_nobody(tmp_path: Path) -> None:
    fill(tmp_path)

    opener = subprocess.run(
        [sys.executable, "-c", OPEN_CUT_FILES, str(tmp_path)], stdout=subprocess.PIPE, timeout=100, check=True, cwd=ROOT
    )

    damaged, wrong = json.loads(opener.stdout)
    assert wrong == []
    assert damaged > 20
