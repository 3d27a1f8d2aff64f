from __future__ import annotations

import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from consecution.errors import DamagedStoreError, StateDirError, UsageError, WorldError
from consecution.protocol.origin import (
    BatchBorn,
    BatchDecided,
    BatchRecord,
    Change,
    FailureEntry,
    FailureKept,
    FailureTaken,
    Head,
    HeadMoved,
    Restored,
    RetryMark,
)
from consecution.protocol.values import Entry, FailedItem, Stage, TaskIndex
from consecution.runtime import journal as journal_module
from consecution.runtime.journal import Journal, NotesTaken
from consecution.runtime.journal_check import check_state_dir
from consecution.transport.pieces import LARGE_BYTES, Pieces
from tests.runtime import records
from tests.runtime.records import RawJournal, batch, entry, number, open_journal, open_state, seal


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def make(path: Path, **options: Any) -> Journal:
    return Journal(path, origin="source", epoch="one", sync="process", **options)


def born(*batches: BatchRecord, **head: Any) -> list[Change]:
    """The changes of a turn in which these batches are born."""
    moved = Head(next_seq=batches[-1].seq + 1, emitted=sum(b.count for b in batches), **head)
    return [*map(BatchBorn, batches), HeadMoved(moved)]


# -- a journal is a dict that outlives its process --------------------------------------------------


class JournalAgainstDict(RuleBasedStateMachine):
    """Whatever is put, removed, broken off and opened again: the journal holds what a dict would."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name) / "state"
        self.state = open_state(self.path)
        self.journal = open_journal(self.state, sync="process", create=False)
        self.head = Head()
        self.batches: dict[int, BatchRecord] = {}
        self.failures: dict[int, FailureEntry] = {}

    def teardown(self) -> None:
        self.journal.close()
        self.state.close()
        self._folder.cleanup()

    def apply(self, changes: list[Change], **head: Any) -> None:
        self.head = dataclasses.replace(self.head, **head)
        self.journal.apply([*changes, HeadMoved(self.head)])

    @rule(payloads=st.lists(st.binary(max_size=5000), min_size=1, max_size=4), position=records.positions)
    def bear(self, payloads: list[bytes], position: Any) -> None:
        first = self.head.next_seq
        made = [BatchRecord(first + n, 1, payload) for n, payload in enumerate(payloads)]
        self.batches.update((record.seq, record) for record in made)
        emitted = self.head.emitted + len(made)
        self.apply(list(map(BatchBorn, made)), next_seq=first + len(made), position=position, emitted=emitted)

    @precondition(lambda self: self.batches)
    @rule(failed=st.lists(st.tuples(records.failed_items, st.none() | st.floats(0, 1e10)), max_size=3))
    def decide(self, failed: list[tuple[FailedItem, float | None]]) -> None:
        seq = min(self.batches)
        root = self.batches.pop(seq)
        of = seq if root.retry is None else root.retry.root
        first = self.head.next_key
        kept = [FailureEntry(first + n, item, 1, of, 0, due_s) for n, (item, due_s) in enumerate(failed)]
        self.failures.update((made.key, made) for made in kept)
        given_up = self.head.failed + sum(1 for made in kept if made.due_s is None)
        self.apply([BatchDecided(seq), *map(FailureKept, kept)], next_key=first + len(kept), failed=given_up)

    @precondition(lambda self: any(found.due_s is not None for found in self.failures.values()))
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        due = sorted(key for key, found in self.failures.items() if found.due_s is not None)
        taken = self.failures.pop(data.draw(st.sampled_from(due)))
        seq = self.head.next_seq
        mark = RetryMark(taken.root, taken.held, 1, Entry(taken.failed.task, taken.failed.stage))
        self.batches[seq] = BatchRecord(seq, 1, taken.failed.payload, mark)
        self.apply([FailureTaken(taken.key), BatchBorn(self.batches[seq])], next_seq=seq + 1)

    @rule()
    def break_off(self) -> None:
        """A commit that cannot be finished changes nothing, the part before the trouble neither."""
        next_seq = self.head.next_seq
        moved = HeadMoved(dataclasses.replace(self.head, position={"no": "position"}))
        changes = [*map(BatchDecided, self.batches), BatchBorn(batch(next_seq)), moved]

        with pytest.raises(UsageError, match="position of the source"):
            self.journal.apply(changes)

    @rule()
    def reopen(self) -> None:
        self.journal.close()
        found = check_state_dir(self.path)
        self.journal = open_journal(self.state, sync="process", create=False)

        assert found.problems == ()
        (origin,) = found.origins
        assert origin.open_batches == len(self.batches)
        assert origin.position == self.head.position
        assert origin.waiting + origin.given_up == len(self.failures)

    @invariant()
    def agrees(self) -> None:
        by_key = [found for _, found in sorted(self.failures.items())]
        waiting = tuple(found for found in by_key if found.due_s is not None)
        given_up = [found for found in by_key if found.due_s is None]

        roots = tuple(found.root for found in given_up)
        assert self.journal.restore() == Restored(self.head, tuple(self.batches.values()), waiting, (), roots)
        for limit in (0, 1, len(given_up), len(given_up) + 1):
            assert self.journal.failures(limit) == (given_up[-limit:] if limit else [])


TestJournalAgainstDict = JournalAgainstDict.TestCase
TestJournalAgainstDict.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


@settings(max_examples=60, deadline=None)
@given(
    head=st.builds(
        Head,
        generation=records.numbers,
        position=records.positions,
        emitted=records.numbers,
        next_key=records.numbers,
        exhausted=st.booleans(),
    ),
    seq=st.integers(0, 2**64 - 2),
    count=records.numbers,
    payload=st.binary(max_size=20_000),
    mark=st.none()
    | st.builds(
        RetryMark,
        records.numbers,
        records.numbers,
        records.numbers,
        st.builds(Entry, st.integers(0, 2**63).map(TaskIndex), st.sampled_from(Stage)),
    ),
    born_failed=st.lists(records.failed_items, max_size=2),
    waiting=st.builds(
        FailureEntry,
        records.numbers,
        records.failed_items,
        records.numbers,
        records.numbers,
        records.numbers,
        st.just(1.5),
    ),
)
def test_every_record_comes_back_as_it_was_put(
    head: Head,
    seq: int,
    count: int,
    payload: bytes,
    mark: RetryMark | None,
    born_failed: list[FailedItem],
    waiting: FailureEntry,
) -> None:
    head = dataclasses.replace(head, next_seq=seq + 1)
    record = BatchRecord(seq, count, payload, mark, tuple(born_failed))

    with tempfile.TemporaryDirectory() as folder:
        journal = make(Path(folder))
        journal.apply([BatchBorn(record), FailureKept(waiting), HeadMoved(head)])
        journal.close()
        journal = make(Path(folder), create=False)
        restored = journal.restore()
        journal.close()

    assert restored == Restored(head, (record,), (waiting,))


@pytest.mark.parametrize("position", [2**64, -(2**63) - 1, {"a": 1}, (1, 2), object(), [[2**70]]])
def test_a_position_that_cannot_be_kept_is_refused_and_changes_nothing(tmp_path: Path, position: Any) -> None:
    journal = make(tmp_path)
    journal.apply(born(batch(0)))
    before = journal.restore()

    with pytest.raises(UsageError, match=r"the position of the source, .*expected\s+numbers of at most 64 bits"):
        journal.apply(born(batch(1), position=position))

    assert journal.restore() == before
    journal.close()


@pytest.mark.parametrize("size", [LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1])
def test_a_large_payload_in_pieces_lies_there_as_a_whole(tmp_path: Path, size: int) -> None:
    pieces = [b"head", memoryview(b"x" * size), b""]
    journal = make(tmp_path)
    journal.apply(born(batch(0, Pieces(pieces)), batch(1, b"".join(pieces))))  # type: ignore[arg-type]
    journal.close()

    raw = RawJournal(tmp_path).records()

    whole = [1, b"".join(pieces), None, []]
    assert [raw["batches", number(seq)] for seq in (0, 1)] == [seal(number(seq), whole) for seq in (0, 1)]


def test_a_new_journal_holds_nothing_and_closes_twice(tmp_path: Path) -> None:
    journal = make(tmp_path / "made" / "here")

    assert journal.restore() == Restored()
    assert journal.failures(10) == []
    journal.close()
    journal.close()


def test_the_latest_failures_come_oldest_first_and_without_those_that_wait(tmp_path: Path) -> None:
    journal = make(tmp_path)
    kept = [entry(key, due_s=1.0 if key % 2 else None) for key in range(6)]
    journal.apply([*map(FailureKept, kept), HeadMoved(Head(next_key=6, failed=3))])

    assert [found.key for found in journal.failures(2)] == [2, 4]
    assert [found.key for found in journal.failures(100)] == [0, 2, 4]
    assert journal.failures(0) == []
    journal.close()


# -- killed ----------------------------------------------------------------------------------------

COMMITS_FOR_EVER = """
import sys
from pathlib import Path
from consecution.protocol.origin import BatchBorn, BatchDecided, BatchRecord, Head, HeadMoved
from consecution.runtime.journal import Journal

journal = Journal(Path(sys.argv[1]), origin="source", epoch="one", create=True)
seq = journal.restore().head.next_seq
while True:
    changes = [BatchBorn(BatchRecord(n, 1, bytes([n % 256]) * 9000)) for n in range(seq, seq + 3)]
    changes += [BatchDecided(n) for n in range(seq - 9, seq - 6) if n >= 0]
    journal.apply([*changes, HeadMoved(Head(next_seq=seq + 3, emitted=seq + 3, position=seq + 3))])
    seq += 3
    sys.stdout.write(f"{seq}\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("seed", range(4))
def test_what_was_acknowledged_before_a_kill_9_is_there_afterwards(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    told = 0
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", COMMITS_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(chance.randrange(1, 30))]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.read().splitlines(keepends=True)
        writer.stdout.close()
        assert writer.wait(timeout=10) == -signal.SIGKILL
        told = max([told, *(int(line) for line in lines if line.endswith(b"\n"))])

        journal = make(tmp_path, create=False)
        restored = journal.restore()
        journal.close()

        assert restored.head.next_seq in (told, told + 3), f"seed {seed}"
        assert [record.payload[0] for record in restored.batches] == [r.seq % 256 for r in restored.batches]
        assert restored.batches[-1].seq == restored.head.next_seq - 1
        assert len(restored.batches) == min(restored.head.next_seq, 9)


# -- locked ----------------------------------------------------------------------------------------


def test_a_locked_journal_is_waited_for(tmp_path: Path) -> None:
    dying = make(tmp_path)
    dying.apply(born(batch(0)))
    opened: list[Journal] = []
    waiter = threading.Thread(target=lambda: opened.append(make(tmp_path, create=False)))

    waiter.start()
    assert not opened
    dying.close()
    waiter.join(timeout=10)

    assert [record.seq for record in opened[0].restore().batches] == [0]
    opened[0].close()


def test_a_journal_that_stays_locked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "LOCK_WAIT_S", 0.02)
    holder = make(tmp_path)

    with pytest.raises(StateDirError, match=rf"in use by another process \({os.getpid()}\); .* kill -9 {os.getpid()}$"):
        make(tmp_path)

    holder.close()
    make(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")

    with pytest.raises(WorldError, match=r"journal .*file/journal cannot be locked: .*mend that"):
        make(tmp_path / "file" / "journal")


# -- damaged ---------------------------------------------------------------------------------------


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A journal with a record of every kind."""
    journal = make(tmp_path)
    batches = [batch(3, b"x" * 20), records.retry(4, root=1), batch(5, born_failed=(records.failed(),))]
    entries = [entry(0), entry(1, root=2, due_s=5.0)]
    head = Head(next_seq=6, next_key=2, generation=7, position=[1, "two"], emitted=9, failed=1)
    journal.apply([*map(BatchBorn, batches), *map(FailureKept, entries), HeadMoved(head)])
    journal.close()
    return tmp_path


def restore(path: Path) -> Restored:
    journal = make(path, create=False)
    try:
        return journal.restore()
    finally:
        journal.close()


def test_a_flipped_byte_of_any_record_is_named(filled: Path) -> None:
    raw = RawJournal(filled)
    for (table, key), value in raw.records().items():
        name = key.decode() if table == "meta" else str(int.from_bytes(key, "big"))
        for at in range(len(value)):
            raw.put(table, key, value[:at] + bytes([value[at] ^ 0x41]) + value[at + 1 :])

            with pytest.raises(DamagedStoreError, match=f"record {table}/{name} fails its checksum") as caught:
                restore(filled)

            assert caught.value.path == str(filled)
            assert caught.value.record == f"{table}/{name}"
        raw.put(table, key, value)
    assert len(restore(filled).batches) == 3


def test_a_record_cut_short_is_named(filled: Path) -> None:
    for cut in (b"", b"abc"):
        RawJournal(filled).put("batches", number(4), cut)

        with pytest.raises(DamagedStoreError, match="record batches/4 fails its checksum"):
            restore(filled)


@pytest.mark.parametrize(
    ("table", "key", "named"),
    [
        ("meta", b"identity", "meta/identity is missing"),
        ("meta", b"head", "meta/head is missing"),
        ("batches", number(4), "batches/4 is missing"),
        ("batches", number(5), "batches/5 is missing"),
        ("failures", number(0), "failures has 0 items given up, the head counts 1"),
    ],
)
def test_a_record_that_is_gone_is_missed(filled: Path, table: str, key: bytes, named: str) -> None:
    RawJournal(filled).put(table, key, None)

    with pytest.raises(DamagedStoreError, match=named):
        restore(filled)


@pytest.mark.parametrize("table", ["batches", "decided", "failures"])
def test_a_table_whose_name_is_damaged_is_missed(filled: Path, table: str) -> None:
    """It is not made anew: an empty table would hide what was in it."""
    content = (filled / "data.mdb").read_bytes()
    (filled / "data.mdb").write_bytes(content.replace(table.encode(), table.encode()[:-1] + b"_"))

    with pytest.raises(DamagedStoreError, match=f"record {table} is missing: the whole table"):
        restore(filled)


@pytest.mark.parametrize("place", [144, 145, 151, 4096 + 144, 4096 + 145, 4096 + 151])
def test_a_file_that_would_go_back_to_an_earlier_commit_is_damage(filled: Path, place: int) -> None:
    """LMDB takes the later of the two commits that its first pages hold, by their numbers alone."""
    content = (filled / "data.mdb").read_bytes()
    (filled / "data.mdb").write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])

    with pytest.raises(DamagedStoreError, match=r"record data\.mdb says that its last commits are \d+ and \d+"):
        restore(filled)


def test_a_record_whose_name_is_damaged_is_noticed(filled: Path) -> None:
    raw = RawJournal(filled)
    raw.put("meta", b"hea_", raw.records()["meta", b"head"])

    with pytest.raises(DamagedStoreError, match="record meta/hea_ is none that belongs there"):
        restore(filled)


def test_a_table_that_gives_fewer_records_than_it_counts_is_damage(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB keeps the count 32 bytes into what it knows of the table, behind the name of that."""
    content = (filled / "data.mdb").read_bytes()
    place = content.rindex(b"decided") + len(b"decided") + 32
    (filled / "data.mdb").write_bytes(content[:place] + b"\5" + content[place + 1 :])

    with pytest.raises(DamagedStoreError, match=r"record data\.mdb/table 'decided' begins .* and counts 5 entries"):
        restore(filled)
    monkeypatch.setattr("consecution.runtime.journal.check_file", lambda *_: None)  # as where there is too much of it
    with pytest.raises(DamagedStoreError, match="record decided gives 0 records, and counts 5"):
        restore(filled)


@pytest.mark.parametrize("flag", [2, 8, 0xFF])
def test_a_table_whose_flags_are_damaged_is_damage(filled: Path, flag: int) -> None:
    """They say how its keys are compared: what it has would not be found. They lie 4 bytes behind its name."""
    content = (filled / "data.mdb").read_bytes()
    place = content.rindex(b"meta\0") + len(b"meta") + 4
    (filled / "data.mdb").write_bytes(content[:place] + bytes([flag]) + content[place + 1 :])

    with pytest.raises(DamagedStoreError, match=rf"record data\.mdb/table 'meta' has flags {flag}; expected 0"):
        restore(filled)


def test_a_batch_that_the_head_does_not_know_is_damage(filled: Path) -> None:
    RawJournal(filled).put("batches", number(6), seal(number(6), [1, b"", None, []]))

    with pytest.raises(DamagedStoreError, match="the head, whose next batch is 6, is old"):
        restore(filled)


def test_a_record_from_another_place_is_noticed(filled: Path) -> None:
    raw = RawJournal(filled)
    raw.put("batches", number(5), raw.records()["batches", number(3)])

    with pytest.raises(DamagedStoreError, match="record batches/5 fails its checksum"):
        restore(filled)


@pytest.mark.parametrize("left", [0, 1, 4096, 8191])
def test_a_file_that_lost_nearly_everything_is_no_new_journal(filled: Path, left: int) -> None:
    os.truncate(filled / "data.mdb", left)

    with pytest.raises(DamagedStoreError, match=r"data\.mdb"):
        restore(filled)


def test_a_file_that_is_gone_is_no_new_journal(filled: Path) -> None:
    (filled / "data.mdb").unlink()

    with pytest.raises(DamagedStoreError, match=r"its file data\.mdb is missing"):
        restore(filled)
    assert not (filled / "data.mdb").exists()


OPEN_CUT_FILES = """
import json, os, shutil, sys
from pathlib import Path
from consecution.errors import DamagedStoreError
from consecution.runtime.journal import Journal

whole, folder = Path(sys.argv[1]), Path(sys.argv[2])
found = []
for left in range(2 * 4096, (whole / "data.mdb").stat().st_size, 1365):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    os.truncate(folder / "data.mdb", left)
    journal = None
    try:
        journal = Journal(folder, origin="source", epoch="one", create=False)
        found.append([len(b.payload) for b in journal.restore().batches])
    except DamagedStoreError as error:
        found.append(error.record)
    if journal is not None:
        journal.close()
print(json.dumps(found))
"""


def test_a_file_cut_off_anywhere_is_damage_and_kills_nobody(tmp_path: Path) -> None:
    journal = make(tmp_path / "whole")
    for seq in range(4):
        journal.apply(born(batch(seq, b"x" * 10_000)))
    journal.close()

    reader = subprocess.run(
        [sys.executable, "-c", OPEN_CUT_FILES, str(tmp_path / "whole"), str(tmp_path / "cut")],
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )

    found = json.loads(reader.stdout)
    assert len(found) > 20
    assert all(isinstance(record, str) or record == [10_000] * 4 for record in found)
    assert sum(isinstance(record, str) for record in found) > len(found) / 2


def test_a_file_shorter_than_its_page_count_says_is_sound_where_nothing_is_missing(tmp_path: Path) -> None:
    # Pages that were taken and given back in one transaction are counted, but never written.
    journal = make(tmp_path)
    journal.apply(born(batch(0, b"x")))
    journal.apply([BatchBorn(batch(1, b"x" * 100_000)), BatchDecided(1), *born(batch(1, b"y"))])
    journal.close()
    assert records.missing_bytes(tmp_path) > 0

    assert [record.payload for record in restore(tmp_path).batches] == [b"x", b"y"]


def test_a_file_of_something_else_is_refused(filled: Path) -> None:
    (filled / "data.mdb").write_bytes(b"no journal at all" * 1000)

    with pytest.raises(DamagedStoreError, match=r"is damaged and cannot be opened: .*not an LMDB file"):
        restore(filled)


def test_an_environment_of_something_else_is_refused(tmp_path: Path) -> None:
    env = lmdb.open(str(tmp_path), max_dbs=2)
    with env.begin(write=True) as txn:
        txn.put(b"some", b"thing")
    env.close()

    with pytest.raises(DamagedStoreError, match="record meta/identity is missing"):
        restore(tmp_path)


@pytest.mark.parametrize(("origin", "epoch"), [("other", "one"), ("source", "two")])
def test_a_journal_of_another_origin_or_epoch_is_refused(filled: Path, origin: str, epoch: str) -> None:
    with pytest.raises(
        StateDirError, match=f"belongs to origin 'source' of epoch one; expected '{origin}' of {'epoch'}"
    ):
        Journal(filled, origin=origin, epoch=epoch)

    assert len(restore(filled).batches) == 3


@pytest.mark.parametrize("fields", [[1, "source", "uuid", "one"], [99, "quite", "another", "form", "of", "fields"]])
def test_another_format_is_refused(filled: Path, fields: list[Any]) -> None:
    RawJournal(filled).put("meta", b"identity", seal(b"identity", fields))

    with pytest.raises(StateDirError, match=rf"has format {fields[0]}; this version reads format 4"):
        restore(filled)


# -- full ------------------------------------------------------------------------------------------


def test_a_full_journal_loses_nothing_and_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "MAP_SIZE_BYTES", 1 << 20)
    journal = make(tmp_path)
    taken = 0

    def fill() -> None:
        nonlocal taken
        while True:
            journal.apply(born(batch(taken, b"x" * 50_000)))
            taken += 1

    with pytest.raises(WorldError, match=r"cannot grow: .*nothing was lost: make room"):
        fill()

    assert len(journal.restore().batches) == taken > 5
    journal.close()
    # The map is twice the file, where that is more than what is reserved.
    journal = make(tmp_path, create=False)
    journal.apply(born(batch(taken, b"x" * 50_000)))
    assert len(journal.restore().batches) == taken + 1
    journal.close()


def test_a_full_disk_is_told_from_a_broken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = make(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    usage = shutil.disk_usage(tmp_path)

    def write_too_much(free_bytes: int, message: str) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free_bytes))
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        try:
            with pytest.raises(WorldError, match=message):
                journal.apply(born(batch(0, b"x" * 400_000)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    write_too_much(0, r"cannot grow: .*nothing was lost: make room")
    write_too_much(1 << 30, r"cannot be written: .*nothing was lost: mend that")

    journal.apply(born(batch(0, b"x" * 400_000)))
    assert len(journal.restore().batches) == 1
    journal.close()


@pytest.mark.parametrize(
    ("free", "message"), [(1000, "cannot grow: .*make room"), (1 << 30, "cannot be written: .*mend")]
)
def test_an_input_output_error_on_a_full_disk_is_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, message: str
) -> None:
    journal = make(tmp_path)

    def fail(*arguments: Any) -> None:
        raise lmdb.Error("Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(journal_module.shutil, "disk_usage", lambda path: Usage(0, 0, free))
        patched.setattr(journal, "_apply_one", fail)
        with pytest.raises(WorldError, match=message):
            journal.apply(born(batch(0)))

    assert journal.restore() == Restored()
    journal.close()


@pytest.mark.parametrize(("sync", "synced"), [("power", True), ("process", False)])
def test_only_power_waits_for_the_disk(tmp_path: Path, sync: str, synced: bool) -> None:
    journal = Journal(tmp_path, origin="source", epoch="one", sync=sync)

    flags = journal._env.flags()
    journal.close()

    assert (flags["sync"], flags["metasync"]) == (synced, synced)


# -- what a source notes -----------------------------------------------------------------------------


def note(journal: Journal, *seqs: int, needed_since: int = 0) -> None:
    journal.apply([NotesTaken(tuple((seq, b"note %d" % seq) for seq in seqs), needed_since)])


def notes_of(path: Path) -> list[tuple[int, bytes]]:
    journal = make(path, create=False)
    try:
        return journal.notes()
    finally:
        journal.close()


def test_notes_outlive_their_batches_until_they_are_not_needed(tmp_path: Path) -> None:
    journal = make(tmp_path)
    assert journal.notes() == []
    journal.apply([*born(batch(0)), NotesTaken(((0, b"note 0"),), 0)])
    journal.apply([BatchDecided(0)])
    note(journal, 7, 256)
    assert journal.notes() == [(0, b"note 0"), (7, b"note 7"), (256, b"note 256")]

    note(journal, 300, needed_since=256)
    journal.close()

    assert notes_of(tmp_path) == [(256, b"note 256"), (300, b"note 300")]


def test_a_note_is_part_of_the_commit_or_not_there(tmp_path: Path) -> None:
    journal = make(tmp_path)

    with pytest.raises(UsageError, match="cannot be kept in the journal"):
        journal.apply([NotesTaken(((0, b"note"),), 0), HeadMoved(Head(position={"a": 1}))])

    assert journal.notes() == []
    note(journal, 1)
    journal.close()
    assert notes_of(tmp_path) == [(1, b"note 1")]


def test_damage_to_notes_is_noticed(tmp_path: Path) -> None:
    journal = make(tmp_path)
    note(journal, 1, 2)
    journal.close()
    raw, content = RawJournal(tmp_path), (tmp_path / "data.mdb").read_bytes()

    raw.put("notes", number(2), None)
    with pytest.raises(DamagedStoreError, match="record notes has 1 records, meta/notes counts 2"):
        notes_of(tmp_path)

    raw.put("notes", number(2), seal(number(3), [b"note 2"]))
    with pytest.raises(DamagedStoreError, match="record notes/2 fails its checksum"):
        notes_of(tmp_path)

    (tmp_path / "data.mdb").write_bytes(content.replace(b"notes\0", b"note_\0"))
    with pytest.raises(DamagedStoreError, match="damaged"):
        notes_of(tmp_path)
