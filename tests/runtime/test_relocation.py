from __future__ import annotations

import json
import os
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consecution import KeyedNode, Map, Node, Pipeline, Producer, StatefulNode
from consecution.errors import DamagedStoreError, StateDirError
from consecution.protocol.durable import FrameStaged
from consecution.protocol.origin import NO_ROOT, FailureEntry, FailureKept, HeadMoved
from consecution.protocol.values import FailedItem, Frame, FrameId, Stage, TaskIndex
from consecution.reduction import PartTable
from consecution.routing import replica_of_slot, slot_of
from consecution.runtime import failpoints, state_table
from consecution.runtime import relocation as relocation_module
from consecution.runtime import state as state_module
from consecution.runtime.durable_store import DurableStore, TableWrite
from consecution.runtime.failures import Edited, FailureStore, Selection, look
from consecution.runtime.journal import NotesTaken, seal
from consecution.runtime.journal_check import CheckResult, check_state_dir
from consecution.runtime.relocation import _first_slot
from consecution.runtime.state import look_at_state_dir
from consecution.runtime.state_table import place_of
from consecution.sinks.text import TextLines
from consecution.transport.codec import PickleCodec


class Total(KeyedNode):
    """Sums up per key; every input is answered with the new total."""

    def key(self, item: Any) -> Any:
        return item[0]

    def process(self, item: Any) -> None:
        if item[1] is None:
            raise ValueError("no amount")
        self.state["total"] = self.state.get("total", 0) + item[1]
        self.push((item[0], self.state["total"]))


class Count(StatefulNode):
    def process(self, item: Any) -> None:
        self.state["count"] = self.state.get("count", 0) + 1
        self.push(item)


class Gather(Node):
    """Plain, with an end: its attributes are its state."""

    def begin(self) -> None:
        self.seen = 0

    def process(self, item: Any) -> None:
        self.seen += 1
        self.push((item, self.seen))

    def end(self) -> None:
        self.push("end")


class Heard(Node):
    """Remembers, for the test, what reached it."""

    def __init__(self) -> None:
        super().__init__("heard")
        self.items: list[Any] = []

    def process(self, item: Any) -> None:
        self.items.append(item)


def run(path: Path, items: list[Any], *nodes: Any, **options: Any) -> list[Any]:
    """Run the nodes over these items and stop; returns what reached the end of them."""
    heard = Heard()
    top: Any = Producer("manual", name="pushed")
    for node in (*nodes, heard):
        top = top | node
    given = {"mode": "inline", "state_dir": path, "sync": "process", "retries": 0, **options}
    running = Pipeline(top).start(**given)
    for receipt in [running.push(item) for item in items]:
        receipt.wait(30.0)
    running.stop()
    return heard.items


def amounts(count: int, keys: int) -> list[tuple[str, int]]:
    return [(f"key {number % keys}", number) for number in range(count)]


def totals(items: list[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for key, amount in items:
        found[key] = found.get(key, 0) + amount
    return found


def sound(path: Path) -> CheckResult:
    result = check_state_dir(path)
    assert result.problems == ()
    return result


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


# -- keyed state moves by slots ----------------------------------------------------------------------


@given(st.integers(1, 1024), st.integers(0, 4095))
def test_the_first_slot_of_a_replica_is_where_its_range_begins(replicas: int, slot: int) -> None:
    replica = replica_of_slot(slot, replicas)

    assert _first_slot(replica, replicas) <= slot < _first_slot(replica + 1, replicas)


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "in the log"])
@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 5), (3, 2), (7, 7)])
def test_keyed_state_follows_its_keys_to_other_replicas(
    path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int, merged: bool
) -> None:
    monkeypatch.setattr(state_table, "LOG_LIMIT_BYTES", 0 if merged else 2**30)
    items = amounts(200, 40)
    run(path, items, Total("total") * before)

    found = run(path, [(key, 0) for key in totals(items)], Total("total") * after)

    assert dict(found) == totals(items)
    result = sound(path)
    assert {origin.name for origin in result.origins} == {"pushed", *(f"total.{n}" for n in range(after))}


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "in the log"])
def test_every_replica_holds_exactly_the_keys_it_owns(
    path: Path, monkeypatch: pytest.MonkeyPatch, merged: bool
) -> None:
    monkeypatch.setattr(state_table, "LOG_LIMIT_BYTES", 0 if merged else 2**30)
    items = amounts(300, 100)
    run(path, items, Total("total") * 2)

    run(path, [], Total("total") * 5)

    held = {origin.name: origin.keys for origin in sound(path).origins if origin.name != "pushed"}
    owners = [f"total.{replica_of_slot(slot_of(key), 5)}" for key in totals(items)]
    assert held == {name: owners.count(name) for name in held}


def test_a_state_at_another_replica_than_its_own_is_found(path: Path) -> None:
    run(path, amounts(40, 40), Total("total") * 3)
    state = look_at_state_dir(path)
    key = next(key for key in totals(amounts(40, 40)) if replica_of_slot(slot_of(key), 3) == 2)
    place = state_table.place_of(key)
    with closing(DurableStore(state.origin_path("total.1"), origin="total.1", epoch=state.epoch)) as store:
        record = seal(place, PickleCodec().encode([key, {"total": 1}]))
        store.apply([TableWrite(lambda txn: txn.put(place, record, db=store.handle("state")))])

    (problem,) = check_state_dir(path).problems

    assert problem == f"total.1: state has keys of slot {slot_of(key)}, which total.2 owns; foreign slots: 1"


def test_state_of_workers_moves_to_others(path: Path) -> None:
    items = amounts(100, 30)
    run(path, items, Total("total") * 2, mode="process")
    run(path, items, Total("total") * 3, mode="process")

    found = run(path, [(key, 0) for key in totals(items)], Total("total"))

    assert dict(found) == totals(items + items)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.lists(st.integers(0, 20), max_size=15)), min_size=1, max_size=4))
def test_totals_are_those_of_a_dict_whatever_the_replicas_were(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, list[int]]]
) -> None:
    path = tmp_path_factory.mktemp("runs") / "state"
    expected: dict[int, int] = {}
    for replicas, keys in runs:
        found = run(path, [(key, 1) for key in keys], Total("total") * replicas)

        for key in keys:
            expected[key] = expected.get(key, 0) + 1
        assert dict(found).items() <= expected.items()
        assert {key: dict(found)[key] for key in keys} == {key: expected[key] for key in keys}


def test_keys_removed_since_the_last_merge_stay_removed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Once(StatefulNode):
        def process(self, item: Any) -> None:
            if item in self.state:
                del self.state[item]
            else:
                self.state[item] = True
            self.push(sorted(self.state))

    monkeypatch.setattr(state_table, "LOG_LIMIT_BYTES", 0)
    run(path, ["a", "b"], Once("once"))
    monkeypatch.setattr(state_table, "LOG_LIMIT_BYTES", 2**30)
    run(path, ["a"], Once("once"))

    assert run(path, ["c"], Map(str, "more"), Once("once")) == [["b", "c"]]


# -- states that lie with a replica that does not own their key ------------------------------------


def put_state(path: Path, origin: str, key: str, total: int) -> None:
    """As an earlier version did, which gave a failed item back to whichever replica it had failed at."""
    place, body = place_of(key), PickleCodec().encode([key, {"total": total}])
    with closing(look_at_state_dir(path).journal(origin)) as store:
        assert isinstance(store, DurableStore)
        table = store.handle("state")
        store.apply([TableWrite(lambda txn: txn.put(place, seal(place, body), db=table))])


def keys_of(replica: int, replicas: int) -> list[str]:
    return [key for key in map("key {}".format, range(40)) if replica_of_slot(slot_of(key), replicas) == replica]


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "in the log"])
@pytest.mark.parametrize("after", [1, 2, 5])
def test_states_move_to_the_owners_of_their_keys_wherever_they_lie(
    path: Path, monkeypatch: pytest.MonkeyPatch, after: int, merged: bool
) -> None:
    monkeypatch.setattr(state_table, "LOG_LIMIT_BYTES", 0 if merged else 2**30)
    first, last = keys_of(0, 3), keys_of(2, 3)
    run(path, [(key, 1) for key in first[1:] + last[1:]], Total("total") * 3)
    put_state(path, "total.0", last[0], 1)
    put_state(path, "total.2", first[0], 1)

    found = run(path, [(key, 1) for key in first + last], Total("total") * after)

    assert found == [(key, 2) for key, _ in found]
    assert sorted(key for key, _ in found) == sorted(first + last)
    assert sum(origin.keys for origin in sound(path).origins) == len(first + last)


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "in the log"])
def test_of_two_states_of_one_key_none_is_dropped_unless_asked(
    path: Path, monkeypatch: pytest.MonkeyPatch, merged: bool
) -> None:
    monkeypatch.setattr(state_table, "LOG_LIMIT_BYTES", 0 if merged else 2**30)
    key = keys_of(1, 2)[0]
    run(path, [(key, 100)], Total("total") * 2)
    put_state(path, "total.0", key, -30)

    for _ in range(2):
        with pytest.raises(
            StateDirError, match=rf"the state of 'total\.0' under '{key}', for 'total\.1' has one, too.*--drop-state"
        ):
            run(path, [], Total("total") * 3)

    assert len(list(path.glob("origins*"))) == 1
    assert run(path, [(key, 1)], Total("total") * 2) == [(key, 101)]
    assert run(path, [(key, 1)], Total("total"), drop_state=True) == [(key, 102)]
    sound(path)


def test_what_cannot_be_added_to_a_store_is_never_passed_over(path: Path) -> None:
    run(path, [("a", 1)], Total("total"))
    records = [(place, seal(place, b"body")) for place in (b"\x00\x02", b"\x00\x01")]
    with closing(look_at_state_dir(path).journal("total.0")) as store:
        assert isinstance(store, DurableStore)
        with pytest.raises(DamagedStoreError, match=r"1 of 2 states could not be added .* nothing has changed"):
            store.apply([TableWrite(lambda txn: relocation_module._add_all(store, records, txn))])

        assert store.count("state") == 0


# -- everything else moves by name -------------------------------------------------------------------


def test_other_state_stays_with_its_name_where_the_graph_changes(path: Path) -> None:
    run(path, [1, 2, 3], Count("count"), Gather("gather"))

    found = run(path, [4], Map(int, "new") * 2, Gather("gather"), Count("count"))

    assert found == [(4, 4)]
    running = Pipeline(Producer("manual", name="pushed") | Count("count") | Heard()).start(
        mode="inline", state_dir=path, drop_state=True
    )
    running.stop()
    assert {origin.name for origin in sound(path).origins} == {"pushed", "count.0"}


def test_new_durable_nodes_begin_with_nothing(path: Path) -> None:
    run(path, [("a", 1)], Total("total"))

    assert run(path, [("a", 1)], Total("total"), Total("again")) == [("a", 2)]
    assert run(path, [("a", 1)], Total("total"), Total("again")) == [("a", 5)]


def test_a_source_goes_on_where_it_stood(path: Path, tmp_path: Path) -> None:
    def build(*nodes: Node) -> Pipeline:
        top: Any = Producer(range(10), name="numbers")
        for node in (*nodes, TextLines("out", path=tmp_path / "out")):
            top = top | node
        return Pipeline(top)

    given: Any = {"mode": "inline", "state_dir": path, "batch_size": 3, "sync": "process"}
    running = build().start(**given)
    running.join(0)
    running.stop()

    report = build(Map(str, "text")).run(**given)

    assert report.emitted == 10
    assert (tmp_path / "out").read_text().split() == [str(number) for number in range(10)]


def test_what_a_source_has_noted_moves_with_it(path: Path) -> None:
    run(path, [("a", 1)], Total("total"))
    with closing(look_at_state_dir(path).journal("pushed")) as journal:
        journal.apply([NotesTaken(((0, b"note"),), 0)])

    run(path, [("a", 1)], Total("total") * 2)

    state = look_at_state_dir(path)
    with closing(state.journal("pushed")) as journal:
        assert journal.notes() == [(0, b"note")]
    sound(path)


def test_where_only_edges_change_no_store_is_rewritten(path: Path) -> None:
    run(path, [1], Count("first"), Count("second"))
    before = json.loads((path / "manifest.json").read_text())
    first, second = Count("first"), Count("second")
    top = Producer("manual", name="pushed") | [first, second]

    Pipeline(top | Heard()).start(mode="inline", state_dir=path).stop()

    after = json.loads((path / "manifest.json").read_text())
    assert (after["epoch"], after["origins"]) == (before["epoch"], before["origins"])
    assert after["signature"] != before["signature"]


# -- failed items ------------------------------------------------------------------------------------


def raise_at_odd(item: int) -> int:
    if item % 2:
        raise ValueError("odd")
    return item


def test_failed_items_are_found_under_their_node_after_a_move(path: Path) -> None:
    run(path, [1, 2], Map(raise_at_odd, "even"))
    heard = Heard()
    top = Producer("manual", name="pushed") | Map(int, "new") | Map(raise_at_odd, "even") | Count("count") | heard

    running = Pipeline(top).start(mode="inline", state_dir=path, retries=0)
    running.push(3)
    report = running.stop()

    assert [(failure.node, failure.item) for failure in report.failures] == [("even", 1), ("even", 3)]
    assert (report.emitted, report.failed) == (3, 2)
    sound(path)


def test_failed_inputs_of_a_keyed_node_survive_other_replicas(path: Path) -> None:
    broken = [(f"key {number}", None) for number in range(6)]
    run(path, broken, Total("total") * 3)

    for replicas in (2, 4):
        running = Pipeline(Producer("manual", name="pushed") | Total("total") * replicas | Heard()).start(
            mode="inline", state_dir=path, retries=0
        )
        report = running.stop()

        assert sorted(failure.item for failure in report.failures) == broken
        assert {failure.node for failure in report.failures} == {"total"}
        sound(path)


def refuse(item: Any) -> Any:
    raise LookupError("nowhere to go")


def test_a_failed_item_is_of_the_replica_that_keeps_it_after_a_move(path: Path) -> None:
    items = [(f"key {number}", amount) for number in range(6) for amount in (None, number)]
    for replicas, pushed in ((3, items), (2, [])):
        run(path, pushed, Total("total") * replicas, Map(str, "after").by(refuse) * 2)

    tasks = look_at_state_dir(path).tasks
    stages = [failed.entry.failed.stage for failed in look(path)]
    assert all(tasks[failed.entry.failed.task] == failed.origin for failed in look(path))
    assert (stages.count(Stage.PROCESS), stages.count(Stage.ROUTE)) == (6, 6)


# -- failed items go to the replica that owns their key ----------------------------------------------


class Mended(Total):
    """Takes blanks off the key, and what has no amount for 7."""

    def key(self, item: Any) -> Any:
        return item[0].strip()

    def process(self, item: Any) -> None:
        super().process((self.key(item), item[1] or 7))


KEYS = [f"key {number}" for number in range(20)]


def put_back(path: Path, edited: dict[str, Edited] | None = None) -> None:
    with FailureStore(path) as store:
        store.retry(Selection(), edited=edited)


@pytest.mark.parametrize(
    ("before", "after", "blank"), [(3, 5, ""), (5, 2, ""), (3, 1, ""), (1, 3, ""), (3, 3, " "), (2, 3, " ")]
)
def test_an_item_that_is_put_back_meets_the_state_of_its_key(path: Path, before: int, after: int, blank: str) -> None:
    run(path, [*((key, 1) for key in KEYS), *((key + blank, None) for key in KEYS)], Total("total") * before)
    run(path, [], Total("total") * after)
    put_back(path)

    found = run(path, [], Mended("total") * after)

    assert dict(found) == dict.fromkeys(KEYS, 8)
    assert list(look(path)) == []
    sound(path)


def test_an_item_that_gets_another_key_meets_the_state_of_that(path: Path) -> None:
    run(path, [*((key, 1) for key in KEYS), ("wrong", None)], Total("total") * 4)
    failed = next(look(path))
    right = next(key for key in KEYS if f"total.{replica_of_slot(slot_of(key), 4)}" != failed.origin)
    put_back(path, {failed.id: Edited.of({"id": failed.id, "item": [right, 4]})})

    assert run(path, [], Total("total") * 4) == [(right, 5)]
    sound(path)


@pytest.mark.parametrize("gap", ["failed.born", "failed.dropped", "failed.moved"])
def test_a_crash_while_items_go_to_others_leaves_each_in_one_place(path: Path, gap: str) -> None:
    broken = [(f"{key} ", None) for key in KEYS]
    run(path, [*((key, 1) for key in KEYS), *broken], Total("total") * 2)
    put_back(path)

    def crash(name: str) -> None:
        if name == gap:
            raise Crash

    with failpoints.watched(crash), pytest.raises(Crash):
        state_module.open_state_dir(path, _plan_of(Mended("total") * 2), fresh=False)
    assert sorted(failed.item() for failed in look(path)) == sorted(broken)
    sound(path)
    found = run(path, [], Mended("total") * 2)

    assert dict(found) == dict.fromkeys(KEYS, 8)
    sound(path)


def test_of_what_was_folded_in_parts_each_replica_gets_what_it_owns(path: Path) -> None:
    run(path, [], Total("total") * 3)
    keep_waiting(path, "total.0", PartTable(KEYS, [1] * len(KEYS)))

    state_module.open_state_dir(path, _plan_of(Total("total") * 3), fresh=False).close()

    owned = {f"total.{n}": [key for key in KEYS if replica_of_slot(slot_of(key), 3) == n] for n in range(3)}
    assert {failed.origin: failed.item().keys for failed in look(path)} == owned
    sound(path)


def test_what_has_taken_a_process_down_is_not_even_loaded(path: Path, tmp_path: Path) -> None:
    run(path, [], Total("total") * 3)
    keep_waiting(path, "total.0", MakesFolder(tmp_path / "loaded"), retryable=False)

    state_module.open_state_dir(path, _plan_of(Total("total") * 3), fresh=False).close()

    assert [failed.origin for failed in look(path)] == ["total.0"]
    assert not (tmp_path / "loaded").exists()


class MakesFolder:
    """Leaves a trace where it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def keep_waiting(path: Path, origin: str, item: Any, *, retryable: bool = True) -> None:
    """Let the item wait for a try in this store."""
    state = look_at_state_dir(path)
    task, payload = TaskIndex(state.tasks.index(origin)), PickleCodec().encode([item])
    failed = FailedItem(task, Stage.PROCESS, payload, "ValueError: no", "", retryable, "the item")
    with closing(DurableStore(state.origin_path(origin), origin=origin, epoch=state.epoch)) as store:
        head = replace(store.restore().head, next_key=1)
        store.apply([FailureKept(FailureEntry(0, failed, 1, NO_ROOT, 0, due_s=0.0)), HeadMoved(head)])


def test_failed_items_of_a_node_that_is_gone_are_dropped_only_when_asked(path: Path) -> None:
    run(path, [1, 2, 3], Map(raise_at_odd, "even"))

    with pytest.raises(StateDirError, match=r"2 failed items of 'even'\. Give the nodes their old names.*drop_state"):
        run(path, [], Map(int, "other"))

    assert run(path, [4], Map(int, "other"), drop_state=True) == [4]
    assert [origin.given_up for origin in sound(path).origins] == [0]


# -- what is refused ---------------------------------------------------------------------------------


def test_state_without_a_place_is_named_and_dropped_only_when_asked(path: Path) -> None:
    run(path, [("a", 1), ("b", 1)], Total("total"))

    for _ in range(2):
        with pytest.raises(StateDirError, match=r"the state of 'total\.0' \(2 entries\).*--drop-state"):
            run(path, [], Total("other"))

    assert run(path, [("a", 1)], Total("total")) == [("a", 2)]
    assert run(path, [("a", 1)], Total("other"), drop_state=True) == [("a", 1)]
    assert run(path, [("a", 1)], Total("total"), drop_state=True) == [("a", 1)]


def test_state_of_another_kind_of_node_is_not_taken_for_its_own(path: Path) -> None:
    class Typed(StatefulNode):
        def initial_state(self) -> Any:
            return 0

        def process(self, item: Any) -> None:
            self.state += 1
            self.push(self.state)

    run(path, [1], Count("node"))

    with pytest.raises(StateDirError, match=r"the state of 'node\.0' \(1 entry\)"):
        run(path, [], Typed("node"))

    assert run(path, [1], Typed("node"), drop_state=True) == [1]


def test_an_empty_store_may_go_without_asking(path: Path) -> None:
    run(path, [], Total("total"))

    assert run(path, [1], Map(int, "other")) == [1]


def test_what_is_in_flight_in_a_durable_task_refuses_the_move(path: Path) -> None:
    running = Pipeline(Producer("manual", name="pushed") | Total("total") | Heard()).start(
        mode="inline", state_dir=path, retries=9, retry_delay_s=1000.0
    )
    running.push(("a", None))
    running.stop(timeout_s=0)

    with pytest.raises(StateDirError, match=r"holds 1 batches in flight .*: run the old pipeline once more and stop"):
        run(path, [], Total("total") * 2)


def test_frames_of_a_thrown_away_execution_are_not_in_flight(path: Path) -> None:
    """No later batch told the task that they are over; but their origin has nothing open."""
    run(path, [("a", 1)], Total("total"))
    manifest = json.loads((path / "manifest.json").read_text())
    left = Frame(TaskIndex(0), 0, 1, (0,), FrameId(7), 0, TaskIndex(0), Stage.PROCESS, False, b"")
    store = DurableStore(path / manifest["folder"] / "total", origin="total", epoch=manifest["epoch"], sync="process")
    store.apply([FrameStaged(left)])
    store.close()

    assert run(path, [("a", 1)], Total("total") * 2) == [("a", 2)]


def test_a_finished_run_stays_finished_whatever_the_graph(path: Path, tmp_path: Path) -> None:
    top = Producer([1], name="numbers") | Map(int, "a") | Count("count")
    Pipeline(top).run(mode="inline", state_dir=path)

    report = Pipeline(Producer([1], name="numbers") | Map(int, "b")).run(mode="inline", state_dir=path)

    assert report.already_finished


# -- crashes -----------------------------------------------------------------------------------------


class Crash(BaseException):
    pass


STEPS = [
    (os, "replace"),
    (os, "fsync"),
    (shutil, "rmtree"),
    (state_module, "_open_origin"),
    (state_module, "sync_folder"),
    (relocation_module, "_copy_states"),
    (relocation_module.DurableStore, "apply"),
]


@pytest.mark.parametrize(("module", "call"), STEPS, ids=[call for _, call in STEPS])
def test_a_crash_at_any_step_of_a_move_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, call: str
) -> None:
    items = amounts(60, 20)
    run(tmp_path / "made", items, Total("total") * 2)
    real = getattr(module, call)
    survived = False
    for step in range(100):
        path = tmp_path / str(step)
        shutil.copytree(tmp_path / "made", path)
        calls = iter(range(step))

        def crash(*given: Any, calls: Any = calls, **more: Any) -> Any:
            if next(calls, None) is None:
                raise Crash
            return real(*given, **more)

        with monkeypatch.context() as patched:
            patched.setattr(module, call, crash)
            try:
                state_module.open_state_dir(path, _plan_of(Total("total") * 3), fresh=False).close()
                survived = True
            except Crash:
                pass

        assert sorted(check_state_dir(path).problems) == []
        # Whether it was moved or not, either plan may go on: the other one moves it back.
        assert dict(run(path, [(key, 0) for key in totals(items)], Total("total") * 3)) == totals(items)
        assert len(list(path.glob("origins*"))) == 1
        sound(path)
        if survived:
            break
    assert survived
    assert step > 0


def _plan_of(node: Node) -> Any:
    from consecution.options import Options
    from consecution.plan import make_plan

    return make_plan((Producer("manual", name="pushed") | node | Heard()).top_node, Options.of())
