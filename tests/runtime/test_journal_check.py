from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import lmdb
import pytest

from consecution import KeyedNode, Producer
from consecution.errors import DamagedStoreError, UsageError
from consecution.options import Options
from consecution.plan import make_plan
from consecution.protocol.durable import FramesDropped, FrameStaged, LedgerMoved
from consecution.protocol.origin import BatchBorn, BatchDecided, Decision, FailureKept, Head, HeadMoved
from consecution.protocol.values import Frame, FrameId, Stage, TaskIndex
from consecution.runtime import journal_check
from consecution.runtime.durable_store import DurableStore
from consecution.runtime.journal import FailuresMoved, Journal, NotesTaken
from consecution.runtime.journal_check import CheckResult, check_state_dir
from consecution.runtime.state import open_state_dir
from tests.runtime import records
from tests.runtime.records import RawJournal, batch, entry, number, open_journal, open_state, seal

ROOT = Path(__file__).parents[2]
HEAD = Head(next_seq=6, next_key=2, generation=7, position=[1, "two\udce9"], emitted=9, failed=1)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A state directory with a record of every kind."""
    path = tmp_path / "state"
    state = open_state(path)
    journal = open_journal(state)
    batches = [batch(3, b"x" * 9000), records.retry(4, root=1), batch(5, born_failed=(records.failed("\ud800"),))]
    entries = [entry(0), entry(1, root=2, due_s=5.0)]
    notes = NotesTaken(((0, b"note"), (5, b"another")), 0)
    journal.apply([*map(BatchBorn, batches), *map(FailureKept, entries), notes, HeadMoved(HEAD)])
    journal.close()
    state.close()
    return path


@pytest.fixture
def raw(state_dir: Path) -> RawJournal:
    return RawJournal(state_dir / "origins" / "source")


def problem(path: Path) -> str:
    """The one problem, or several on a line each."""
    return "\n".join(check_state_dir(path).problems)


def change_manifest(path: Path, **fields: Any) -> None:
    """Write a manifest with these fields; None takes one away. Its checksum is right."""
    manifest = {**json.loads((path / "manifest.json").read_text()), **fields}
    manifest = {name: value for name, value in manifest.items() if value is not None or name == "finished"}
    manifest.pop("checksum", None)
    content = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    (path / "manifest.json").write_text(json.dumps({**manifest, "checksum": f"{zlib.crc32(content):08x}"}))


# -- sound -----------------------------------------------------------------------------------------


def test_a_sound_directory_is_summed_up(state_dir: Path) -> None:
    found = check_state_dir(state_dir)

    assert found.problems == ()
    assert not found.finished
    (origin,) = found.origins
    assert (origin.name, origin.next_seq, origin.generation) == ("source", 6, 7)
    assert (origin.position, origin.emitted, origin.exhausted) == ([1, "two\udce9"], 9, False)
    assert (origin.open_batches, origin.open_items, origin.waiting, origin.given_up) == (3, 2, 1, 1)


def test_a_directory_that_was_just_made_is_sound(tmp_path: Path) -> None:
    open_state(tmp_path / "state").close()

    assert check_state_dir(tmp_path / "state").problems == ()


def test_journals_that_are_being_made_are_no_problem(state_dir: Path) -> None:
    change_manifest(state_dir, origins={})
    (state_dir / "origins" / "source" / "data.mdb").write_bytes(b"")

    assert check_state_dir(state_dir) == CheckResult(check_state_dir(state_dir).epoch, False, (), ())


def test_it_changes_nothing(state_dir: Path) -> None:
    files = [path for path in sorted(state_dir.rglob("*")) if path.is_file() and path.name != "lock.mdb"]
    before = {path: path.read_bytes() for path in files}

    check_state_dir(state_dir)

    assert {path: path.read_bytes() for path in files} == before


def test_a_folder_without_a_manifest_is_no_state_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a state directory: .*; give the folder that a run was given"):
        check_state_dir(tmp_path)


def test_a_journal_open_in_this_process_has_to_be_looked_at_from_another(state_dir: Path) -> None:
    state = open_state(state_dir)
    journal = open_journal(state)

    with pytest.raises(UsageError, match="is open in this process; look at it from another"):
        check_state_dir(state_dir)

    journal.close()
    state.close()


WRITES_FOR_EVER = """
import sys
import zlib
from pathlib import Path
from consecution.protocol.origin import BatchBorn, BatchDecided, BatchRecord, Head, HeadMoved
from tests.runtime.records import open_journal, open_state

state = open_state(Path(sys.argv[1]))
journal = open_journal(state, sync="process")
seq = 0
while True:
    changes = [BatchBorn(BatchRecord(seq, 1, b"x" * (seq % 7 * 3000)))]
    changes += [BatchDecided(seq - 9)] if seq >= 9 else []
    seq += 1
    journal.apply([*changes, HeadMoved(Head(next_seq=seq, emitted=seq))])
    if seq == 100:
        print("there", flush=True)
"""


def test_it_may_look_while_a_run_goes_on(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITES_FOR_EVER, str(tmp_path / "state")], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"there\n"

    try:
        looks = [check_state_dir(tmp_path / "state") for _ in range(50)]
    finally:
        writer.kill()
        writer.stdout.close()
        writer.wait(timeout=10)

    assert [problem for look in looks for problem in look.problems] == []
    assert {look.origins[0].open_batches for look in looks} == {9}
    assert looks[-1].origins[0].next_seq > looks[0].origins[0].next_seq


# -- damaged ---------------------------------------------------------------------------------------


def test_every_flipped_byte_of_a_record_is_found(state_dir: Path, raw: RawJournal) -> None:
    for (table, key), value in raw.records().items():
        name = key.decode() if table == "meta" else str(int.from_bytes(key, "big"))
        for at in range(0, len(value), max(1, len(value) // 50)):
            raw.put(table, key, value[:at] + bytes([value[at] ^ 0x10]) + value[at + 1 :])

            assert f"{table}/{name}: the checksum is wrong" in problem(state_dir)
        raw.put(table, key, value)
    assert check_state_dir(state_dir).problems == ()


ITEM = [1, 0, b"item", "error", "traceback", True, "shown", [0, None, None]]
IDENTITY = [2, "source", "uuid", "epoch"]


@pytest.mark.parametrize(
    ("table", "key", "fields", "found"),
    [
        ("meta", b"identity", None, "meta/identity is missing"),
        ("meta", b"head", None, "meta/head is missing"),
        ("meta", b"other", [1], "meta/other: unknown key"),
        ("meta", b"\xff\xfe", [1], "unknown key"),
        ("meta", b"identity", [5, "source", "u", "e"], "format 5, expected 4"),
        ("meta", b"identity", [2, "source", "u", "e"], "belongs to epoch e, the manifest to"),
        ("meta", b"identity", [2, "source", 7, "e"], "meta/identity: not of the form"),
        ("meta", b"identity", [2, "source"], "meta/identity: not of the form"),
        ("meta", b"identity", "text", "meta/identity: not of the form"),
        ("meta", b"head", [6, 2, 7, None, 9, 1], "meta/head: not of the form"),
        ("meta", b"head", [6, 2, 7, None, "9", 1, False, 0], "meta/head: not of the form"),
        ("meta", b"head", [-6, 2, 7, None, 9, 1, False, 0], "meta/head: not of the form"),
        (
            "meta",
            b"head",
            [6, 2, 7, None, 9, 2, False, 0],
            "the head counts 2 items given up, the failure store holds 1",
        ),
        ("meta", b"head", [6, 2, 7, None, 3, 1, False, 0], "4 items are open, but only 3 were ever emitted"),
        ("meta", b"head", [5, 2, 7, None, 9, 1, False, 0], "batches/5: the head says that the next batch is 5"),
        ("meta", b"head", [7, 2, 7, None, 9, 1, False, 0], "batches/6 is missing"),
        ("meta", b"head", [2**62, 2, 7, None, 9, 1, False, 0], "batches/6 is missing"),
        ("meta", b"head", [6, 1, 7, None, 9, 1, False, 0], "failures/1: the head says that the next key is 1"),
        ("batches", number(4), None, "batches/4 is missing or damaged"),
        ("batches", b"short", [1, b"", None, []], "unknown key b'short'"),
        ("batches", number(5), [1, b"", None], "batches/5: not of the form"),
        ("batches", number(5), [1, None, None, []], "batches/5: not of the form"),
        ("batches", number(5), [1, b"", [1, 1, 1, 1], []], "batches/5: not of the form"),
        ("batches", number(5), [1, b"", [5, 1, 1, 1, 0], []], "retries an item of batch 5, which is not older"),
        ("batches", number(5), [1, b"", None, [ITEM, ITEM]], "has 1 items, of which 2 failed at birth"),
        ("batches", number(5), [1, b"", None, [ITEM[:6]]], "batches/5: not of the form"),
        ("failures", number(0), None, "the head counts 1 items given up, the failure store holds 0"),
        ("failures", number(0), [ITEM, 1, 6, 1, None, 9.5], "failures/0: belongs to batch 6, the next batch is 6"),
        ("failures", number(0), [ITEM, 1, 0, 1, "soon", 9.5], "failures/0: not of the form"),
        ("failures", number(0), [[1, 3, *ITEM[2:]], 1, 0, 1, None, 9.5], "failures/0: not of the form"),
        ("failures", number(0), [ITEM, 1, 0, 1, None, "today"], "failures/0: not of the form"),
        ("failures", number(0), [[*ITEM[:-1], [3, None, None]], 1, 0, 1, None, 9.5], "failures/0: not of the form"),
    ],
)
def test_every_inconsistency_is_found_though_its_checksum_is_right(
    state_dir: Path, raw: RawJournal, table: str, key: bytes, fields: Any, found: str
) -> None:
    raw.put(table, key, None if fields is None else seal(key, fields))

    assert found in problem(state_dir)


@pytest.mark.parametrize("value", [b"", b"abc", seal(b"head", [1])[:4] + b"\xc1"])
def test_a_value_that_is_no_record_is_found(state_dir: Path, raw: RawJournal, value: bytes) -> None:
    raw.put("meta", b"head", value)

    assert "meta/head: the checksum is wrong" in problem(state_dir)


def test_a_body_that_cannot_be_read_is_found(state_dir: Path, raw: RawJournal) -> None:
    raw.put("meta", b"head", zlib.crc32(b"head\xc1").to_bytes(4, "big") + b"\xc1")

    assert "meta/head: " in problem(state_dir)


def test_unknown_and_missing_databases_are_found(state_dir: Path) -> None:
    env = lmdb.open(str(state_dir / "origins" / "source"), max_dbs=8)
    with env.begin(write=True) as txn:
        env.open_db(b"other", txn=txn)
        txn.drop(env.open_db(b"failures", txn=txn))
    env.close()

    assert "unknown database 'other'" in problem(state_dir)
    assert "there is no database 'failures'" in problem(state_dir)


def test_a_name_that_is_no_database_is_found(state_dir: Path) -> None:
    env = lmdb.open(str(state_dir / "origins" / "source"), max_dbs=8)
    with env.begin(write=True) as txn:
        txn.put(b"plain", b"value")
    env.close()

    assert "unknown database 'plain'" in problem(state_dir)


CHECK_CUT_FILES = """
import json, os, sys
from pathlib import Path
from consecution.runtime.journal_check import check_state_dir

path = Path(sys.argv[1])
data = path / "origins" / "source" / "data.mdb"
whole = data.read_bytes()
found = []
for left in range(0, len(whole), 1365):
    data.write_bytes(whole[:left])
    found.append(repr(check_state_dir(path)))
data.write_bytes(whole)
print(json.dumps([found, repr(check_state_dir(path))]))
"""


def test_a_file_cut_off_anywhere_is_found_and_kills_nobody(state_dir: Path, tmp_path: Path) -> None:
    checker = subprocess.run(
        [sys.executable, "-c", CHECK_CUT_FILES, str(state_dir)],
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
        cwd=ROOT,
    )

    found, when_whole = json.loads(checker.stdout)
    assert "problems=()" in when_whole
    damaged = [text for text in found if "problems=()" not in text]
    # What is left differs only where nothing was cut off but pages that nobody uses.
    assert len(damaged) > len(found) / 2
    assert [text for text in found if text not in (when_whole, *damaged)] == []


def test_a_file_shorter_than_its_page_count_says_is_sound_where_nothing_is_missing(tmp_path: Path) -> None:
    state = open_state(tmp_path / "state")
    journal = open_journal(state)
    for seq in range(3):  # Pages that earlier commits have let go are taken first.
        journal.apply([BatchBorn(batch(seq)), HeadMoved(Head(next_seq=seq + 1, emitted=seq + 1))])
    journal.apply([BatchBorn(batch(3, b"x" * 100_000)), BatchDecided(3)])
    journal.close()
    state.close()
    assert records.missing_bytes(tmp_path / "state" / "origins" / "source") > 0

    assert check_state_dir(tmp_path / "state").problems == ()


def test_a_file_that_is_missing_is_found(state_dir: Path) -> None:
    (state_dir / "origins" / "source" / "data.mdb").unlink()

    assert "data.mdb is missing" in problem(state_dir)
    assert "lists the origin 'source', whose journal is missing or damaged" in problem(state_dir)


# -- the manifest ----------------------------------------------------------------------------------


def test_every_flipped_byte_of_the_manifest_is_found(state_dir: Path) -> None:
    whole = (state_dir / "manifest.json").read_bytes()
    for at in range(len(whole)):
        flipped = whole[:at] + bytes([whole[at] ^ 0x04]) + whole[at + 1 :]
        (state_dir / "manifest.json").write_bytes(flipped)

        assert check_state_dir(state_dir).problems, flipped


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"epoch": None}, "the field 'epoch' is missing"),
        ({"origins": None}, "the field 'origins' is missing"),
        ({"origins": ["source"]}, "the field 'origins' is ['source']"),
        ({"format": 5}, "the field 'format' is 5"),
        ({"finished": "yes"}, "the field 'finished' is 'yes'"),
        ({"origins": {"source": "other"}}, "origin 'source' has the uuid"),
        ({"origins": {"source": "u", "more": "v"}}, "lists the origin 'more', whose journal is missing"),
        ({"origins": {"more": "v"}}, "the journal of 'source', which the manifest does not list"),
        ({"epoch": "two"}, "the manifest to two"),
        ({"finished": {}}, "source: the run is recorded as finished, but has work open"),
        ({"finished": {}}, "source: the run is recorded as finished, but its source has not ended"),
    ],
)
def test_a_manifest_that_does_not_fit_is_found(state_dir: Path, fields: dict[str, Any], found: str) -> None:
    change_manifest(state_dir, **fields)

    assert found in problem(state_dir)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '"text"', "\xff"])
def test_a_manifest_that_is_none_is_found(state_dir: Path, text: str) -> None:
    (state_dir / "manifest.json").write_bytes(text.encode("latin-1"))

    assert f"{state_dir / 'manifest.json'}: " in problem(state_dir)


# -- both readers ----------------------------------------------------------------------------------


def test_it_finds_whatever_stops_a_run(state_dir: Path, raw: RawJournal) -> None:
    for (table, key), value in raw.records().items():
        for changed in (None, value[:-1], value + b"x"):
            raw.put(table, key, changed)
            try:
                open_state(state_dir).close()
                stopped = False
            except DamagedStoreError:
                stopped = True

            assert bool(check_state_dir(state_dir).problems) == stopped or (table, key) == ("batches", number(3))
            raw.put(table, key, value)


# -- between the stores ----------------------------------------------------------------------------


class Total(KeyedNode):
    def key(self, item: Any) -> Any:
        return item

    def process(self, item: Any) -> None: ...


def frame(frame_id: int, *, seq: int = 0, generation: int = 1) -> FrameStaged:
    source = TaskIndex(0)
    return FrameStaged(Frame(source, seq, generation, (0,), FrameId(frame_id), 0, source, Stage.PROCESS, False, b"x"))


def two_stores(path: Path, source: list[Any], task: list[Any]) -> str:
    """A source and one durable task with these changes in their stores; returns the problem that is found."""
    top = Producer([1], name="numbers") | Total("total")
    state = open_state_dir(path, make_plan(top.top_node, Options.of()), fresh=True)
    for name, kind, changes in (("numbers", Journal, source), ("total.0", DurableStore, task)):
        store = kind(state.origin_path(name), origin=name, epoch=state.epoch)
        store.apply(changes)
        store.close()
    state.close()
    return problem(path)


DECIDED = [
    BatchDecided(0, Decision(0, 1, 1, ((TaskIndex(1), 5 ^ 9),))),
    HeadMoved(Head(next_seq=1, generation=1, emitted=1)),
]


@pytest.mark.parametrize(
    "task",
    [
        [frame(5), frame(9)],
        [frame(5), frame(9), frame(7, generation=0)],
        [LedgerMoved(TaskIndex(0), 0)],
    ],
    ids=["staged", "staged beside an execution that was thrown away", "applied"],
)
def test_a_decided_batch_is_sound_where_it_is_staged_or_applied(tmp_path: Path, task: list[Any]) -> None:
    assert two_stores(tmp_path, DECIDED, task) == ""


@pytest.mark.parametrize(
    "task",
    [
        [],
        [frame(5)],
        [frame(5), frame(9, generation=0)],
        [frame(5), frame(9, generation=2)],
        [frame(5), frame(9), frame(3)],
    ],
    ids=["nothing", "a frame is missing", "an old generation", "a later one", "a frame too many"],
)
def test_a_decided_batch_that_is_neither_applied_nor_whole_is_found(tmp_path: Path, task: list[Any]) -> None:
    found = two_stores(tmp_path, DECIDED, task)

    assert "numbers: decided/0 is not applied by total.0, and the frames of generation 1 in its inbox have" in found
    assert "expected 000000000000000c" in found


def test_a_participant_that_keeps_nothing_is_found(tmp_path: Path) -> None:
    decided = BatchDecided(0, Decision(0, 1, 1, ((TaskIndex(7), 1),)))

    assert "decided/0 names task 7, which has no store" in two_stores(tmp_path, [decided, DECIDED[1]], [])


def test_a_ledger_ahead_of_its_origin_is_found(tmp_path: Path) -> None:
    born = HeadMoved(Head(next_seq=3))

    assert two_stores(tmp_path, [born], [LedgerMoved(TaskIndex(0), 2)]) == ""
    found = two_stores(tmp_path, [born], [LedgerMoved(TaskIndex(0), 3)])
    assert found == "total.0: has applied batch 3 of numbers, whose next batch is 3"


def test_what_only_seems_wrong_for_a_moment_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "decided/0 is not applied" in two_stores(tmp_path, DECIDED, [])
    looks = []
    real = journal_check._read_origins

    def read(path: Path, manifest: Any, problems: Any) -> Any:
        looks.append(path)
        found, tables = real(path, manifest, problems)
        if len(looks) == 2:
            tables["total.0"]["ledger"][0] = [0]
        return found, tables

    monkeypatch.setattr(journal_check, "_read_origins", read)

    assert problem(tmp_path) == ""


BORN = [BatchBorn(batch(0)), HeadMoved(Head(next_seq=1, emitted=1))]
KEPT = [FailureKept(entry(0, root=-1)), HeadMoved(Head(next_key=1, failed=1))]


def test_failed_items_on_their_way_to_the_source_are_counted_and_no_problem(tmp_path: Path) -> None:
    assert two_stores(tmp_path, [*BORN, FailuresMoved("total.0", (0,))], KEPT) == ""

    assert [origin.moved for origin in check_state_dir(tmp_path).origins] == [1, 0]


def test_a_move_that_nobody_can_have_made_is_found(tmp_path: Path) -> None:
    for n, (source, task, wrong) in enumerate(
        [
            ([*BORN, FailuresMoved("total.0", (1,))], KEPT, "names the entry 1 of total.0, whose next key is 1"),
            ([*BORN, FailuresMoved("numbers", (0,))], KEPT, "meta/moved says that failed items of 'numbers' have"),
            ([*BORN, FailuresMoved("total.7", (0,))], KEPT, "meta/moved says that failed items of 'total.7' have"),
            (BORN, [*KEPT, FailuresMoved("total.0", (0,))], "total.0: meta/moved says that failed items of"),
        ]
    ):
        assert wrong in two_stores(tmp_path / str(n), source, task)


def test_a_finished_run_moves_nothing(tmp_path: Path) -> None:
    two_stores(tmp_path, [HeadMoved(Head(exhausted=True)), FailuresMoved("total.0", (0,))], KEPT)
    change_manifest(tmp_path, finished={})

    assert problem(tmp_path) == "numbers: the run is recorded as finished, but has work open"


def test_a_durable_task_is_summed_up(tmp_path: Path) -> None:
    two_stores(tmp_path, DECIDED, [frame(5), frame(9), LedgerMoved(TaskIndex(0), 0), FramesDropped((frame(5).frame,))])

    (summary,) = [origin for origin in check_state_dir(tmp_path).origins if origin.durable]

    assert (summary.name, summary.staged, summary.ledger) == ("total.0", 1, (("numbers.0", 0),))


def test_notes_must_be_as_many_as_were_counted_and_of_batches_that_were_born(state_dir: Path, raw: RawJournal) -> None:
    raw.put("notes", number(0), None)
    raw.put("notes", number(6), seal(number(6), [b"note"]))
    raw.put("notes", number(7), seal(number(7), [b"note"]))

    assert problem(state_dir).splitlines() == [
        f"{state_dir / 'origins' / 'source'}: notes: holds 3 records, and meta/notes counts 2",
        f"{state_dir / 'origins' / 'source'}: notes/6: the next batch is 6",
        f"{state_dir / 'origins' / 'source'}: notes/7: the next batch is 6",
    ]
