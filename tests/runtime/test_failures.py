from __future__ import annotations

import io
import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consecution import Chunk, GroupByNode, Join, KeyedNode, Map, Node, Pipeline, Producer, SqlSink
from consecution.errors import StateDirError, UsageError
from consecution.options import Options
from consecution.plan import make_plan
from consecution.protocol.origin import FailureEntry
from consecution.protocol.values import FailedItem, Stage, TaskIndex
from consecution.runtime.failures import Edited, Failed, FailureStore, Selection, look, read_edited
from consecution.runtime.journal import Journal
from consecution.runtime.journal_check import CheckResult, check_state_dir
from consecution.runtime.state import open_state_dir
from tests.engines.nodes import Collect, collected


class Weigh(Node):
    """Raises at items of which a file says that they are bad."""

    def process(self, item: Any) -> None:
        if _is_bad(self.bad, item):
            raise ValueError(f"{item} weighs nothing")
        self.push(item)


class Count(KeyedNode):
    """Counts, durably, and says at the end how many there were."""

    def key(self, item: Any) -> str:
        return "all"

    def process(self, item: Any) -> None:
        if _is_bad(self.uncounted, item):
            raise LookupError(f"{item} cannot be counted")
        self.state["count"] = self.state.get("count", 0) + 1
        self.push(item)

    def end(self) -> None:
        for _, state in self.states():
            self.push(f"{state['count']} counted")


def _is_bad(path: Path, item: Any) -> bool:
    return path.exists() and repr(item) in path.read_text().splitlines()


class Runs:
    """Runs of one pipeline over one state directory; what fails is written in files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        self.bad = folder / "bad"
        self.uncounted = folder / "uncounted"

    def chain(self) -> Node:
        weigh, count = Weigh("weigh", bad=self.bad), Count("count", uncounted=self.uncounted)
        return Producer(range(10), name="numbers") | weigh | count | self.sink()

    def sink(self) -> Node:
        return Collect("sink", self.folder / "out")

    def __call__(self, *, bad: Any = (), uncounted: Any = (), **options: Any) -> Any:
        self.bad.write_text("\n".join(map(repr, bad)))
        self.uncounted.write_text("\n".join(map(repr, uncounted)))
        given: dict[str, Any] = {"mode": "inline", "sync": "process", "retries": 0, "state_dir": self.state_dir}
        return Pipeline(self.chain()).run(**{**given, **options})

    def start_and_abort(self) -> Any:
        """The report of a run that is broken off before it does anything."""
        running = Pipeline(self.chain()).start(mode="inline", sync="process", state_dir=self.state_dir)
        running.abort()
        return running.join(None)

    @property
    def out(self) -> list[Any]:
        return collected(self.folder / "out")

    @property
    def failed(self) -> list[Failed]:
        return list(look(self.state_dir))

    def ids(self) -> list[str]:
        return [failed.id for failed in self.failed]

    def check(self) -> CheckResult:
        found = check_state_dir(self.state_dir)
        assert found.problems == ()
        return found

    def change(self, act: Callable[[FailureStore], list[str]]) -> list[str]:
        with FailureStore(self.state_dir) as store:
            ids = act(store)
        self.check()
        return ids


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def item_of(failed: Failed) -> Any:
    return failed.item()


# -- looking ---------------------------------------------------------------------------------------


def test_the_items_of_all_origins_are_read_as_one(runs: Runs) -> None:
    runs(bad=[2, 5], uncounted=[7])

    assert [(f.id, f.node, f.item(), f.given_up) for f in runs.failed] == [
        ("numbers:0", "weigh", 2, True),
        ("numbers:1", "weigh", 5, True),
        ("count.0:0", "count", 7, True),
    ]
    assert all(f.entry.failed_s > 1e9 for f in runs.failed)


def test_looking_is_possible_while_a_run_holds_the_directory_and_changing_is_not(runs: Runs) -> None:
    runs(bad=[2])
    held = open_state_dir(runs.state_dir, make_plan(runs.chain().top_node, Options.of()), fresh=False)

    try:
        assert runs.ids() == ["numbers:0"]
        with pytest.raises(StateDirError, match=r"in use by another run .*stop the run first .*kill -TERM"):
            FailureStore(runs.state_dir)
    finally:
        held.close()


def test_a_folder_that_is_no_state_directory_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    for use in (lambda: list(look(tmp_path)), lambda: FailureStore(tmp_path), lambda: list(look(tmp_path / "no"))):
        with pytest.raises(UsageError, match="is not a state directory"):
            use()

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("selection", "items"),
    [
        (Selection(), [2, 5, 7]),
        (Selection(nodes=("count",)), [7]),
        (Selection(nodes=("count", "weigh")), [2, 5, 7]),
        (Selection(error="5 weighs"), [5]),
        (Selection(error=r"[25] weighs"), [2, 5]),
        (Selection(error="LookupError: ("), []),
        (Selection(ids=("count.0:0", "numbers:1")), [5, 7]),
        (Selection(limit=2), [2, 5]),
        (Selection(nodes=("weigh",), limit=1), [2]),
        (Selection(since_s=0.0, until_s=1e12), [2, 5, 7]),
        (Selection(since_s=1e12), []),
        (Selection(until_s=1e9), []),
    ],
)
def test_filters_say_which(runs: Runs, selection: Selection, items: list[Any]) -> None:
    runs(bad=[2, 5], uncounted=[7])

    assert list(map(item_of, selection.of(look(runs.state_dir)))) == items


def test_an_id_that_is_not_there_is_named(runs: Runs) -> None:
    runs(bad=[2])

    with pytest.raises(UsageError, match="no failed item numbers:8, x"):
        list(Selection(ids=("numbers:0", "numbers:8", "x")).of(look(runs.state_dir)))


# -- items as JSON -----------------------------------------------------------------------------------


def failed_with(payload: bytes | None, shown: str = "shown") -> Failed:
    item = FailedItem(TaskIndex(1), Stage.PROCESS, payload, "ValueError: no", "Traceback", True, shown)
    return Failed("source", "node", FailureEntry(0, item, 1, 0, 0, None, 12.5))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
anything = st.recursive(
    plain | st.binary() | st.floats() | st.dates(),
    lambda inner: st.tuples(inner, inner) | st.lists(inner) | st.dictionaries(st.integers() | st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(item=anything)
def test_an_item_comes_back_from_its_line_as_it_was(item: Any) -> None:
    line = json.dumps(failed_with(pickle.dumps([item])).to_dict())

    (edited,) = read_edited(iter([line]), "file").values()

    assert values_of(pickle.loads(edited.payload)) == values_of([item])


def values_of(item: Any) -> bytes:
    """Its values and their types, NaN too; not which of them are one and the same object, which no line can say."""
    written = io.BytesIO()
    pickler = pickle.Pickler(written)
    pickler.fast = True
    pickler.dump(item)
    return written.getvalue()


@settings(max_examples=50, deadline=None)
@given(item=plain)
def test_what_json_can_hold_is_written_so_that_a_person_can_edit_it(item: Any) -> None:
    told = failed_with(pickle.dumps([item])).to_dict()

    assert told["item"] == item
    assert "pickle" not in told


def test_what_cannot_be_loaded_here_keeps_its_bytes(runs: Runs) -> None:
    broken = b"\x80\x05cnowhere\nThing\n."

    told = failed_with(broken, "<Thing>").to_dict()

    assert told["shown"] == "<Thing>"
    assert read_edited(iter([json.dumps(told)]), "file")["source:0"] == Edited(broken, "<Thing>")
    with pytest.raises(UsageError, match=r"source:0: the item cannot be loaded here .*nowhere"):
        failed_with(broken).item()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "file, line 2: expected JSON"),
        ("[1]", 'line 2: expected an object with an "id"'),
        ('{"id": 7, "item": 1}', 'line 2: expected an object with an "id"'),
        ('{"id": "a:1"}', "a:1: the line has neither an item nor a pickle: give it one, as `failed export`"),
        ('{"id": "a:1", "pickle": "?"}', "a:1: its pickle is no base64: .*; leave it as `failed export` writes it"),
        ('{"id": "a:1", "pickle": "gAWV"}', "a:1: its pickle is none: not enough data .*; leave it as `failed export`"),
        ('{"id": "a:1", "pickle": ""}', "a:1: its pickle is none: pickle exhausted before seeing STOP; leave it"),
        ('{"id": "a:0", "item": 2}', "line 2: the id a:0 was there before; keep one of the lines"),
    ],
)
def test_a_wrong_line_is_named(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_edited(iter(['{"id": "a:0", "item": 1}', line]), "file")


# -- retry -----------------------------------------------------------------------------------------


def test_a_finished_run_with_items_put_back_goes_on_with_just_these(runs: Runs) -> None:
    runs(bad=[2, 5], uncounted=[7])
    seen = len(runs.out)

    assert runs.change(lambda store: store.retry(Selection())) == ["numbers:0", "numbers:1", "count.0:0"]
    found = runs.check()
    again = runs(bad=[5])

    assert not found.finished
    assert [origin.waiting for origin in found.origins if origin.waiting] == [1, 2]
    assert not again.already_finished
    assert sorted(runs.out[seen:], key=str) == [2, 7, "9 counted"]
    assert (again.emitted, again.completed, again.pending, again.failed, again.open) == (10, 10, 0, 1, 0)
    assert [(f.item(), f.entry.attempts) for f in runs.failed] == [(5, 1)]
    assert runs.check().finished


def test_an_item_that_is_put_back_gets_all_its_tries_again(runs: Runs) -> None:
    runs(bad=[2], retries=2, retry_delay_s=0.001)
    runs.change(lambda store: store.retry(Selection()))

    runs(bad=[2], retries=1, retry_delay_s=0.001)

    assert [f.entry.attempts for f in runs.failed] == [2]


def test_while_it_waits_an_item_is_pending_and_not_failed(runs: Runs) -> None:
    runs(bad=[2, 5])
    runs.change(lambda store: store.retry(Selection(ids=("numbers:1",))))

    found = next(origin for origin in runs.check().origins if origin.name == "numbers")
    stopped = runs.start_and_abort()

    assert (found.given_up, found.waiting) == (1, 1)
    assert (stopped.emitted, stopped.completed, stopped.pending, stopped.failed) == (10, 9, 1, 1)
    assert [(f.id, f.given_up) for f in runs.failed] == [("numbers:0", True), ("numbers:1", False)]


def test_an_edited_item_takes_the_place_of_the_one_that_failed(runs: Runs) -> None:
    runs(bad=[2], uncounted=[7])
    seen = len(runs.out)
    edited = {"numbers:0": Edited.of({"id": "", "item": 20}), "count.0:0": Edited.of({"id": "", "item": [70]})}

    runs.change(lambda store: store.retry(Selection(ids=tuple(edited)), edited=edited))
    shown = [f.entry.failed.shown for f in runs.failed]
    runs(bad=[2], uncounted=[7])

    assert shown == ["20", "[70]"]
    assert sorted(runs.out[seen:], key=str) == ["10 counted", 20, [70]]
    assert runs.failed == []


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_what_cannot_be_loaded_when_it_is_put_back_has_failed_again_and_is_kept(runs: Runs, mode: str) -> None:
    runs(bad=[2, 5], uncounted=[7], mode=mode)
    broken = {"numbers:0": b".", "numbers:1": pickle.dumps(7), "count.0:0": b"\x80\x05cnowhere\nThing\n."}
    edited = {id_: Edited(payload, "broken") for id_, payload in broken.items()}
    runs.change(lambda store: store.retry(Selection(ids=("numbers:1",)), edited=edited, at_source=True))
    runs.change(lambda store: store.retry(Selection(), edited=edited))

    again = runs(mode=mode)

    assert (again.emitted, again.completed, again.failed, again.open) == (11, 11, 3, 0)
    kept = {failed.node: failed.entry.failed for failed in runs.failed}
    assert {node: failed.payload for node, failed in kept.items()} == {
        "weigh": b".",
        "numbers": pickle.dumps(7),
        "count": b"\x80\x05cnowhere\nThing\n.",
    }
    assert "expected the pickle of a list with just the item, found something of type int" in kept["numbers"].error
    assert len(runs.change(lambda store: store.drop(Selection()))) == 3


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_what_is_made_of_a_class_that_is_gone_fails_alone_at_the_source_too(runs: Runs, mode: str) -> None:
    runs(bad=[2, 5], uncounted=[7], mode=mode)
    gone = b"\x80\x05cnowhere\nThing\n."
    edited = {id_: Edited(gone, "gone") for id_ in ("numbers:0", "count.0:0")}
    runs.change(lambda store: store.retry(Selection(), edited=edited, at_source=True))

    again = runs(mode=mode)

    assert (again.emitted, again.completed, again.failed, again.open) == (13, 13, 2, 0)
    assert [(failed.node, failed.entry.failed.payload) for failed in runs.failed] == [("numbers", gone)] * 2
    assert all("No module named 'nowhere'" in failed.entry.failed.error for failed in runs.failed)
    assert 5 in runs.out


class Parting(Node):
    """Pushes fives to a name, and notes what it is given."""

    outputs = ("fives",)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.given: list[Any] = []

    def process(self, item: Any) -> None:
        self.given.append(item)
        if item == 5:
            self.push(item, to="fives")
        elif isinstance(item, int):
            self.push(item)


class Fours(GroupByNode):
    def key(self, item: int) -> int:
        return item // 4

    def process(self, batch: list[int]) -> None:
        if 9 in batch:
            raise ValueError("no nines")
        self.push(batch)


def _no_five(item: int) -> str:
    if item == 5:
        raise LookupError("no way for fives")
    return "one way"


def _no_seven(item: int) -> int:
    if item == 7:
        raise KeyError("no key for sevens")
    return abs(item)


def run_apart(folder: Path) -> tuple[Parting, dict[str, Any]]:
    """A run in which an item fails that was pushed to a name, one that is a batch, and one of a branch of a join."""
    source, parting, fours = Producer(range(12)), Parting("parting"), Fours("fours")
    parting["fives"] | [Map(int, "one way"), Map(int, "other way"), _no_five] | Collect("fives", folder / "fives")
    left, right = Map(int, "left"), Map(int.__neg__, "right")
    source | parting | [fours | Collect("batches", folder / "batches"), left, right]
    Join({"left": _no_seven, "right": abs}, name="join", left=left, right=right) | Collect("joined", folder / "joined")
    Pipeline(source).run(mode="inline", sync="process", retries=0, state_dir=folder / "state")
    written = {name: collected(folder / name) for name in ("fives", "batches", "joined")}
    return parting, {failed.node: failed for failed in look(folder / "state")} | written


def test_an_edited_item_goes_the_way_of_the_one_whose_place_it_takes(tmp_path: Path) -> None:
    _, before = run_apart(tmp_path)
    lines = {node: before[node].to_dict() for node in ("parting", "fours", "join")}
    shown = {node: line["item"] for node, line in lines.items()}
    lines["parting"]["item"], lines["fours"]["item"], lines["join"]["item"] = 6, [8, 10], 70

    with FailureStore(tmp_path / "state") as store:
        store.retry(Selection(), edited=read_edited(iter(map(json.dumps, lines.values())), "a file"))
    _, after = run_apart(tmp_path)

    assert shown == {"parting": 5, "fours": [8, 9, 10, 11], "join": 7}
    assert after["fives"] == [*before["fives"], 6]
    assert after["batches"] == [*before["batches"], [8, 10]]
    assert list(look(tmp_path / "state")) == []
    assert check_state_dir(tmp_path / "state").problems == ()


@pytest.mark.parametrize("as_exported", [False, True])
def test_the_source_is_given_the_items_and_not_which_way_they_went(tmp_path: Path, as_exported: bool) -> None:
    _, before = run_apart(tmp_path)
    lines = [json.dumps(before[node].to_dict()) for node in ("parting", "fours", "join")]

    with FailureStore(tmp_path / "state") as store:
        edited = read_edited(iter(lines), "an export") if as_exported else None
        store.retry(Selection(), edited=edited, at_source=True)
    parting, _ = run_apart(tmp_path)

    assert sorted(map(repr, parting.given)) == ["5", "7", "[8, 9, 10, 11]"]


def test_ids_that_may_be_gone_are_passed_over(runs: Runs) -> None:
    runs(bad=[2, 5])

    put_back = runs.change(
        lambda store: store.retry(Selection(ids=("numbers:0", "numbers:8"), some_may_be_gone=True), at_source=True)
    )

    assert put_back == ["numbers:0"]
    assert runs.ids() == ["numbers:1"]


def test_at_the_source_an_item_is_a_new_one_and_goes_all_the_way(runs: Runs) -> None:
    runs(bad=[2])
    edited = {"numbers:0": Edited.of({"id": "", "item": 5})}

    runs.change(lambda store: store.retry(Selection(), edited=edited, at_source=True))
    again = runs(bad=[5])

    assert (again.emitted, again.completed, again.failed) == (11, 11, 1)
    assert [f.item() for f in runs.failed] == [5]


def test_what_durable_tasks_keep_goes_to_the_source_too(runs: Runs) -> None:
    runs(bad=[2], uncounted=[7, 8])
    seen = len(runs.out)
    edited = {"count.0:0": Edited.of({"id": "", "item": 70})}

    runs.change(lambda store: store.retry(Selection(), edited=edited, at_source=True))
    put_back = runs.ids()
    again = runs(bad=[8])

    assert put_back == []
    assert (again.emitted, again.completed, again.failed) == (13, 13, 1)
    assert [(f.id, f.item()) for f in runs.failed] == [("numbers:1", 8)]
    assert sorted(runs.out[seen:], key=str) == [2, 70, "9 counted"]
    assert runs.check().finished


def test_what_waits_for_a_try_goes_to_the_source_too(runs: Runs) -> None:
    runs(uncounted=[7])
    runs.change(lambda store: store.retry(Selection()))
    assert [failed.given_up for failed in runs.failed] == [False]

    runs.change(lambda store: store.retry(Selection(), at_source=True))
    again = runs()

    assert (again.emitted, again.completed, again.failed, runs.ids()) == (11, 11, 0, [])
    assert "10 counted" in runs.out


def test_what_a_database_may_have_taken_in_meanwhile_stays_and_nothing_is_changed(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.sink = lambda: SqlSink("table", f"sqlite:///{tmp_path / 'out.db'}", "rows", columns=["n"])  # type: ignore[method-assign]
    runs.chain = lambda: Producer([(1,), 2], name="numbers") | runs.sink()  # type: ignore[method-assign]
    runs()
    runs.change(lambda store: store.retry(Selection()))

    edited = {"table.0:0": Edited.of({"id": "table.0:0", "item": 3})}
    for act in (
        lambda store: store.retry(Selection(), at_source=True),
        lambda store: store.retry(Selection(), edited=edited),
        lambda store: store.drop(Selection()),
    ):
        with pytest.raises(UsageError, match=r"table.0:0: it waits for another try, and the database of table.0 may"):
            runs.change(act)
    assert runs.change(lambda store: store.retry(Selection())) == ["table.0:0"]
    waiting = [(f.id, f.given_up) for f in runs.failed]
    runs()
    runs.change(lambda store: store.retry(Selection(), at_source=True))

    assert waiting == [("table.0:0", False)]
    assert runs.ids() == []
    assert runs().emitted == 3


def test_an_item_that_waits_for_a_try_when_the_stream_ends_makes_end_run_again_afterwards(runs: Runs) -> None:
    runs(uncounted=[7])
    seen = len(runs.out)
    runs.change(lambda store: store.retry(Selection(), now=lambda: time.time() + 0.3))

    again = runs()

    assert runs.out[seen:] == [7, "10 counted"]
    assert (again.failed, again.open) == (0, 0)


def test_a_chunk_that_gets_an_item_after_its_end_flushes_again(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.chain = lambda: (  # type: ignore[method-assign]
        Producer(range(10), name="numbers") | Weigh("weigh", bad=runs.bad) | Chunk(4) | runs.sink()
    )
    runs(bad=[3])
    runs.change(lambda store: store.retry(Selection()))

    runs()

    assert runs.out == [[0, 1, 2, 4], [5, 6, 7, 8], [9], [3]]


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_the_other_engines_go_on_with_them_too(runs: Runs, mode: str) -> None:
    runs(bad=[2], uncounted=[7], mode=mode)
    seen = len(runs.out)
    runs.change(lambda store: store.retry(Selection()))

    again = runs(mode=mode)

    assert sorted(runs.out[seen:], key=str) == ["10 counted", 2, 7]
    assert (again.failed, again.open, again.exit_code) == (0, 0, 0)


def test_a_crash_before_items_are_put_back_leaves_a_run_that_finishes_again(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(bad=[2], uncounted=[7])
    with monkeypatch.context() as crash:
        crash.setattr(Journal, "apply", lambda self, changes: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            runs.change(lambda store: store.retry(Selection()))

    before = runs.check()
    again = runs()

    assert not before.finished
    assert (again.completed, again.failed, again.open, again.already_finished) == (10, 2, 0, False)
    assert runs.check().finished


# -- drop ------------------------------------------------------------------------------------------


def test_what_is_dropped_is_gone_and_counted_no_more(runs: Runs) -> None:
    runs(bad=[2, 5], uncounted=[7])

    assert runs.change(lambda store: store.drop(Selection(nodes=("count",)))) == ["count.0:0"]
    assert runs.change(lambda store: store.drop(Selection(ids=("numbers:0",)))) == ["numbers:0"]

    assert runs.ids() == ["numbers:1"]
    assert runs.check().finished


def test_an_item_that_waits_may_be_dropped_too(runs: Runs) -> None:
    runs(bad=[2, 5])
    runs.change(lambda store: store.retry(Selection()))

    runs.change(lambda store: store.drop(Selection(ids=("numbers:0",))))
    again = runs()

    assert 2 not in runs.out
    assert 5 in runs.out
    assert (again.completed, again.failed, again.open) == (10, 0, 0)


@pytest.mark.parametrize("act", ["retry", "drop"])
def test_a_dry_run_changes_nothing(runs: Runs, act: str) -> None:
    runs(bad=[2, 5])
    before = [failed.to_dict() for failed in runs.failed]

    ids = runs.change(lambda store: getattr(store, act)(Selection(limit=1), dry_run=True))

    assert ids == ["numbers:0"]
    assert [failed.to_dict() for failed in runs.failed] == before
    assert runs.check().finished


def test_many_items_take_many_commits(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consecution.runtime.failures.ENTRIES_PER_COMMIT", 2)
    runs(bad=range(5))

    assert len(runs.change(lambda store: store.retry(Selection()))) == 5
    again = runs()

    assert (again.completed, again.failed) == (10, 0)
