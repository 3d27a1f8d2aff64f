from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from consecution.errors import DamagedStoreError, KeyEncodingError, MisplacedKeyError
from consecution.routing import SLOTS, replica_of_slot, slot_of
from consecution.runtime import state_table
from consecution.runtime.durable_store import DurableStore, TableWrite
from consecution.runtime.state_table import LONGEST_KEY_BYTES, Owner, StateTable, by_place, place_of
from consecution.states import MISSING, States
from consecution.transport.codec import PickleCodec

HUGE = 2**40


class Task:
    """States over a store, committed as an applier does it."""

    def __init__(self, path: Path, *, cache_bytes: int = HUGE, initial: Any = dict, owner: Owner | None = None) -> None:
        self.path = path
        self.store = DurableStore(path, origin="task.0", epoch="e", sync="process")
        codec = PickleCodec()
        self.table = StateTable(self.store, codec.encode, codec.decode, cache_bytes, owner)
        self.states = States(initial, self.table)
        self.table.restore(self.states)

    def commit(self, *, merge_all: bool = False) -> None:
        changes = self.states.take_changes()
        self.store.apply([TableWrite(lambda txn: self._write(txn, changes, merge_all))])
        self.table.evict(self.states)

    def _write(self, txn: Any, changes: Any, merge_all: bool) -> None:
        self.table.write(txn, *changes)
        self.table.merge_oldest(txn, self.states, len(changes[0]))
        while merge_all and self.table._records:
            self.table._merge_some(txn, self.states, HUGE)

    def counts(self) -> tuple[int, int]:
        """Records of (table, log)."""
        return self.store.count("state"), self.store.count("log")

    def reopened(self, **given: Any) -> Task:
        self.store.close()
        return Task(self.path, **given)


@pytest.fixture
def task(tmp_path: Path) -> Iterator[Task]:
    made = Task(tmp_path / "store")
    yield made
    made.store.close()


def test_what_one_state_holds_twice_is_one_thing_after_a_restart(task: Task) -> None:
    shared = [1]
    for key in ("merged", "logged"):
        task.states.put(key, {"all": [shared], "current": shared})
        task.commit(merge_all=key == "merged")

    again = task.reopened()

    for _, state in again.states.items():
        assert state["current"] is state["all"][0]
    again.store.close()


# -- places ------------------------------------------------------------------------------------------


@given(
    st.sets(st.text(max_size=8), max_size=30)
    | st.sets(st.text("a\udcff\U0001f600", max_size=3), min_size=3, max_size=30)
    | st.sets(st.text("aä\U0001f600", min_size=90, max_size=410), min_size=1, max_size=10)
    | st.sets(st.one_of(st.text(max_size=3), st.integers(), st.none(), st.binary(max_size=3)), max_size=30)
)
def test_many_keys_have_the_places_that_each_has_alone(keys: set[Any]) -> None:
    places, found = by_place(keys)

    assert set(found) == keys
    assert places == sorted(places) == list(map(place_of, found))


# -- the log -----------------------------------------------------------------------------------------


def test_a_commit_appends_one_record_whatever_it_changes(task: Task) -> None:
    for key in range(50):
        task.states.put(key, key)
    task.commit()
    task.states.put(0, "again")
    task.commit()

    assert task.counts() == (0, 2)


def test_a_commit_without_changes_writes_nothing(task: Task) -> None:
    task.commit()

    assert task.counts() == (0, 0)


def test_a_restart_reads_the_log_and_leaves_the_table(task: Task) -> None:
    task.states.put("merged", 1)
    task.states.put("gone", 1)
    task.commit(merge_all=True)
    task.states.put("logged", 2)
    task.states.remove("gone")
    task.commit()

    again = task.reopened()

    assert again.states.cached == {"logged": 2, "gone": MISSING}
    assert dict(again.states.items()) == {"merged": 1, "logged": 2}
    assert again.counts() == (2, 1)
    again.store.close()


def test_a_restart_that_takes_long_says_how_much_there_is(
    task: Task, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in range(1200):
        task.states.put(key, key)
    task.commit(merge_all=True)
    task.reopened().store.close()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(state_table, "SLOW_RESTORE_S", 0.0)

    task.reopened().store.close()

    assert "1,200 states, log of 0 MiB read in" in capsys.readouterr().err


# -- merging -----------------------------------------------------------------------------------------


def test_a_log_that_is_too_long_loses_its_oldest_records_only(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_table, "LOG_LIMIT_KEYS", 10)
    for number in range(20):
        for key in range(4):
            task.states.put((number, key), number)
        task.commit()

        assert task.counts()[1] <= 3

    assert task.counts() == (72, 2)
    assert len(dict(task.states.items())) == 80


def test_a_log_of_small_records_is_not_let_grow(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a few hundred bytes of memory, though it has but one key."""
    monkeypatch.setattr(state_table, "LOG_LIMIT_RECORDS", 10)
    for number in range(50):
        task.states.put(number % 3, number)
        task.commit()

    assert task.counts() == (0, 9), "all keys are in later records"
    again = task.reopened()
    assert dict(again.states.items()) == {0: 48, 1: 49, 2: 47}
    again.store.close()


def test_a_commit_merges_about_as_much_as_it_writes(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_table, "LOG_LIMIT_KEYS", 100)
    puts = []
    for number in range(100):
        for key in range(5):
            task.states.put((number, key), number)
        before = task.store.count("state")
        task.commit()
        puts.append(task.store.count("state") - before)

    assert max(puts) <= 10


def test_of_a_record_of_many_keys_a_small_commit_merges_few(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_table, "LOG_LIMIT_KEYS", 100)
    monkeypatch.setattr(task.table, "least_merged_keys", 10)
    for key in range(95):
        task.states.put(key, key)
    task.commit()
    puts = []
    for key in range(90, 150):
        task.states.put(key, "again")
        before = task.store.count("state")
        task.commit()
        puts.append(task.store.count("state") - before)

    assert max(puts) == 10
    assert sum(puts) > 40
    assert task.store.count("log") > 60, "the first one is still there"
    again = task.reopened()
    assert dict(again.states.items()) == {**{key: key for key in range(90)}, **dict.fromkeys(range(90, 150), "again")}
    again.store.close()


def test_keys_that_change_again_and_again_are_merged_last(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_table, "LOG_LIMIT_KEYS", 10)
    for number in range(50):
        task.states.put("hot", number)
        task.states.put(number, number)
        task.commit()

    assert task.store.read("state", place_of("hot")) is None
    assert task.store.read("state", place_of(0)) is not None
    assert dict(task.reopened().states.items())["hot"] == 49


def test_what_was_removed_leaves_the_table(task: Task) -> None:
    task.states.put("a", 1)
    task.commit(merge_all=True)
    task.states.remove("a")
    task.commit(merge_all=True)

    assert task.counts() == (0, 0)
    assert task.states.get("a") == {}


def test_a_merge_takes_what_was_rolled_back_from_the_log(task: Task) -> None:
    task.states.put("a", [1])
    task.commit()
    task.states.get("a").append(2)
    task.states.roll_back()

    task.commit(merge_all=True)

    assert task.states.get("a") == [1]
    assert dict(task.reopened().states.items()) == {"a": [1]}


def test_two_roll_backs_in_a_row_find_the_committed_state(task: Task) -> None:
    task.states.put("a", [1])
    task.states.put("b", [1])
    task.commit()
    for _ in range(3):
        task.states.get("a").append(2)
        task.states.roll_back()

    assert task.states.get("a") == [1]
    assert task.states.get("b") == [1]


# -- keys --------------------------------------------------------------------------------------------


def test_long_keys_are_kept_apart_and_whole(task: Task) -> None:
    keys = ["x" * LONGEST_KEY_BYTES + end for end in ("", "a", "b")] + ["y" * 100_000, ("t" * 600, 1)]
    for number, key in enumerate(keys):
        task.states.put(key, number)
    task.commit(merge_all=True)

    again = task.reopened()

    assert {key: again.states.find(key) for key in keys} == {key: number for number, key in enumerate(keys)}
    assert {key for key, _ in again.states.items()} == set(keys)
    again.store.close()


def test_keys_lie_by_slot(task: Task) -> None:
    keys = [*map(str, range(200)), *range(200), datetime.date(2020, 1, 1), None, b"bytes", (1, ("a",))]
    for key in keys:
        task.states.put(key, 1)
    task.commit(merge_all=True)

    slots = [slot_of(key) for key, _ in task.states.items()]

    assert slots == sorted(slots)
    assert {int.from_bytes(place_of(key)[:2], "big") for key in keys} <= set(range(SLOTS))


def test_equal_numbers_are_one_key(task: Task) -> None:
    task.states.put(1, "one")
    task.commit(merge_all=True)

    again = task.reopened()

    assert (again.states.find(1.0), again.states.find(True)) == ("one", "one")
    again.store.close()


@pytest.mark.parametrize("merged", [True, False])
def test_a_key_without_an_encoding_is_refused_with_its_item(task: Task, merged: bool) -> None:
    if merged:
        task.states.put("a", 1)
        task.commit(merge_all=True)
        task.table.left_memory()

    with pytest.raises(KeyEncodingError, match="a key must be one of"):
        task.states.get(frozenset())

    task.states.roll_back()
    task.states.put("b", 1)
    task.commit(merge_all=True)


def test_new_keys_are_told_at_once_until_states_have_left_memory(task: Task) -> None:
    task.states.put("a", 1)
    task.commit(merge_all=True)

    assert task.states.are_new(["b", 2, b"c"])
    assert not task.states.are_new([("t", 1)]), "a tuple may hold what is no key"
    task.table.left_memory()
    assert not task.states.are_new(["b"])


def test_keys_of_another_replica_are_not_taken_for_new_ones(tmp_path: Path) -> None:
    task = Task(tmp_path / "store", owner=Owner("total", 1, 3))
    own, *others = [
        [key for key in map(str, range(60)) if replica_of_slot(slot_of(key), 3) == replica] for replica in (1, 0, 2)
    ]

    assert task.states.are_new(own)
    for other in others:
        assert not task.states.are_new([*own, other[0]])
        assert not task.states.are_new([other[0], *own])
    task.store.close()


@pytest.mark.parametrize("merged", [True, False])
def test_a_key_of_another_replica_is_refused_and_leaves_no_state(tmp_path: Path, merged: bool) -> None:
    task = Task(tmp_path / "store", owner=Owner("total", 1, 3))
    keys = [f"key {number}" for number in range(30)]
    own = [key for key in keys if replica_of_slot(slot_of(key), 3) == 1]
    for key in own:
        task.states.put(key, 1)
    task.commit(merge_all=merged)
    task.table.left_memory()

    for key in set(keys) - set(own):
        with pytest.raises(MisplacedKeyError, match=rf"the key '{key}' belongs to total\.[02], .* come to total\.1: "):
            task.states.get(key)

    task.commit()
    assert sorted(key for key, _ in task.states.items()) == sorted(own)
    task.store.close()


# -- the cache ---------------------------------------------------------------------------------------


def test_states_leave_memory_and_are_found_again(tmp_path: Path) -> None:
    task = Task(tmp_path / "store", cache_bytes=50_000)
    for key in range(5000):
        task.states.get(key)["n"] = key
        if key % 100 == 99:
            task.commit()
            assert len(task.states.cached) <= 400

    assert [task.states.find(key) for key in range(0, 5000, 501)] == [{"n": key} for key in range(0, 5000, 501)]
    assert dict(task.states.items()) == {key: {"n": key} for key in range(5000)}
    task.store.close()


def test_no_change_is_evicted_before_it_is_merged(tmp_path: Path) -> None:
    task = Task(tmp_path / "store", cache_bytes=1)
    for key in range(10):
        task.states.put(key, key)
    task.commit()
    for key in range(10, 20):
        task.states.put(key, key)
    task.table.evict(task.states)

    task.commit()

    assert dict(task.reopened().states.items()) == {key: key for key in range(20)}


# -- damage ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["state", "log"])
def test_a_damaged_record_is_named(task: Task, table: str) -> None:
    task.states.put("a", 1)
    task.commit(merge_all=table == "state")
    key, value = next(task.store._records(table))
    task.store.apply([TableWrite(lambda txn: txn.put(key, value[:-1] + b"!", db=task.store.handle(table)))])

    with pytest.raises(DamagedStoreError, match=f"record {table}/.* fails its checksum"):
        dict(task.reopened().states.items())


# -- as a dict, with crashes ---------------------------------------------------------------------------

KEYS = st.integers(0, 30) | st.text(max_size=3) | st.integers(0, 3).map(lambda n: "long" * 200 + str(n))


class StatesLikeADict(RuleBasedStateMachine):
    """A store under a small log and a small cache equals a dict under commits, roll backs, crashes and restarts."""

    @initialize(
        cache_bytes=st.sampled_from([1, 5_000, HUGE]),
        limit=st.sampled_from([1, 5, 20]),
        least=st.sampled_from([1, 1000]),
        folder=st.uuids(),
    )
    def open(self, cache_bytes: int, limit: int, least: int, folder: Any) -> None:
        self.root = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp") / f"states-{folder}"
        self.cache_bytes, self.lives = cache_bytes, 0
        self.kept_limits = state_table.LOG_LIMIT_KEYS, StateTable.least_merged_keys
        state_table.LOG_LIMIT_KEYS, StateTable.least_merged_keys = limit, least
        self.task = Task(self.root / "0", cache_bytes=cache_bytes, initial=list)
        self.now: dict[Any, list[int]] = {}
        self.committed: dict[Any, list[int]] = {}
        self.next = 0

    @rule(key=KEYS)
    def append(self, key: Any) -> None:
        self.next += 1
        self.task.states.get(key).append(self.next)
        self.now[key] = [*self.now.get(key, []), self.next]

    @rule(keys=st.lists(KEYS, min_size=5, max_size=20))
    def replace(self, keys: list[Any]) -> None:
        for key in keys:
            self.task.states.put(key, [0])
            self.now[key] = [0]

    @rule(key=KEYS)
    def remove(self, key: Any) -> None:
        self.task.states.remove(key)
        self.now.pop(key, None)

    @rule(key=KEYS)
    def look(self, key: Any) -> None:
        assert self.task.states.find(key) == self.now.get(key)

    @rule(keys=st.lists(KEYS, max_size=5))
    def look_at_once(self, keys: list[Any]) -> None:
        states = self.task.states
        unknown = [key for key in keys if states.cached.get(key, MISSING) is MISSING]
        if unknown and states.are_new(unknown):
            assert set(unknown).isdisjoint(self.now)

    @rule(merge_all=st.booleans())
    def commit(self, merge_all: bool) -> None:
        self.task.commit(merge_all=merge_all)
        self.committed = dict(self.now)

    @rule()
    def roll_back(self) -> None:
        self.task.states.roll_back()
        self.now = dict(self.committed)

    @rule()
    def crash(self) -> None:
        """What lies on the disk at any moment is what was committed: a copy is opened while the task goes on."""
        self.lives += 1
        copied = self.root / str(self.lives)
        shutil.copytree(self.task.path, copied)
        self.task.store.close()
        self.task = Task(copied, cache_bytes=self.cache_bytes, initial=list)
        self.now = dict(self.committed)

    @invariant()
    def equals_the_dict(self) -> None:
        if hasattr(self, "task"):
            assert dict(self.task.states.items()) == self.now

    def teardown(self) -> None:
        if hasattr(self, "task"):
            state_table.LOG_LIMIT_KEYS, StateTable.least_merged_keys = self.kept_limits
            self.task.store.close()
            shutil.rmtree(self.root)


TestStatesLikeADict = StatesLikeADict.TestCase
TestStatesLikeADict.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
