"""Reduce and Count: folding items by key, in parts where workers share the keys."""

from __future__ import annotations

import collections
import itertools
import math
import operator
import pickle
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consecution import Count, Map, Node, Pipeline, Producer, Reduce, reduction
from consecution.errors import UsageError
from consecution.plan import Grouping
from consecution.protocol.values import PartlyFailedError, failed_parts
from consecution.reduction import Parts, PartTable
from consecution.runtime.failures import FailureStore, Selection
from consecution.states import States

WORDS = ["to", "be", "or", "not", "to", "be"]
NAN_IN_TUPLE = ("a", (math.nan,))
NANS = [math.nan, NAN_IN_TUPLE]


@pytest.fixture(params=[reduction.JOINED_AT_ONCE, 2], ids="joined {} at once".format)
def _in_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "JOINED_AT_ONCE", request.param)


def first(item: Any) -> Any:
    return item[0]


def add_second(total: int, item: Any) -> int:
    if item[1] == "bad":
        raise ValueError("bad")
    return total + int(item[1])


def summing(name: str = "sums") -> Reduce:
    return Reduce(first, 0, add_second, name, combine=operator.add)


def run_parts(parts: Node, items: list[Any]) -> tuple[list[Any], list[Any]]:
    """What it pushes, and the items that raise, as a task runs it."""
    out: list[Any] = []
    failed: list[Any] = []
    cursor = iter(items)
    parts._push_into(out)
    while True:
        try:
            parts._process_frame(cursor, out)
        except Exception as error:
            item = items[len(items) - operator.length_hint(cursor) - 1]
            failed += [part for part, _ in failed_parts(item, error)]
        else:
            return out, failed


def joined(tables: list[PartTable]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for table in tables:
        for key, value in zip(*table.columns, strict=True):
            found[key] = found.get(key, 0) + value
    return found


class Kept(Node):
    def begin(self) -> None:
        self.found: list[Any] = []

    def process(self, item: Any) -> None:
        self.found.append(item)


def count_inline(items: list[Any], batch_size: int = 4) -> tuple[Any, dict[Any, int]]:
    """The report of a run that keeps its counts in memory, and the counts."""
    kept = Kept("kept")
    report = Pipeline(Producer(items) | Count() | kept).run(mode="inline", robustness="track", batch_size=batch_size)
    return report, dict(kept.found)


# -- in one place ------------------------------------------------------------------------------------


def test_count_pushes_each_key_with_its_count() -> None:
    found: list[Any] = []
    Pipeline(Count() | Map(found.append, "found")).consume(WORDS)

    assert sorted(found) == [("be", 2), ("not", 1), ("or", 1), ("to", 2)]


def test_count_takes_a_key() -> None:
    found: list[Any] = []
    Pipeline(Count(len, "lengths") | Map(found.append, "found")).consume(WORDS)

    assert sorted(found) == [(2, 5), (3, 1)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-9, 9))))
def test_folding_in_parts_gives_what_folding_item_by_item_gives(items: list[tuple[int, int]]) -> None:
    apart: list[Any] = []
    together: list[Any] = []
    Pipeline(summing() | Map(apart.append, "found")).consume(items)
    Pipeline(Reduce(first, 0, add_second, "sums") | Map(together.append, "found")).consume(items)

    assert apart == together


def test_an_initial_that_is_made_anew_is_not_shared_between_keys() -> None:
    found: list[Any] = []
    gather = Reduce(first, list, lambda got, item: [*got, item[1]], "gather", combine=operator.add)
    Pipeline(gather | Map(found.append, "found")).consume([("a", 1), ("b", 2), ("a", 3)])

    assert sorted(found) == [("a", [1, 3]), ("b", [2])]


def count_in_place(counts: collections.Counter[Any], item: tuple[str, Any]) -> collections.Counter[Any]:
    if item[1] == "bad":
        raise ValueError("bad")
    counts[item[1]] += 1
    return counts


def join_in_place(counts: collections.Counter[Any], other: collections.Counter[Any]) -> collections.Counter[Any]:
    counts.update(other)
    if "heavy" in other:
        raise ValueError("too heavy to be joined")
    return counts


@pytest.mark.parametrize("level", ["track", "robust"])
@pytest.mark.parametrize("bad", [[], [("q", "bad")], [(math.nan, 1), ("q", "bad")]])
def test_where_one_key_cannot_be_joined_the_others_are_not_joined_twice(level: Any, bad: list[Any]) -> None:
    items = [("p", 1), ("q", 2), ("r", 3), ("p", 1), ("p", 4), ("q", "heavy"), *bad, ("p", 1), ("r", 5), ("q", 2)]
    node = Reduce(first, collections.Counter, count_in_place, "counts", combine=join_in_place)
    kept = Kept("kept")

    report = Pipeline(Producer(items) | node | kept).run(
        mode="inline", robustness=level, batch_size=4, retries=0, sync="process"
    )

    found = dict(kept.found)
    assert (report.failed, found["p"], found["r"]) == (len(bad), {1: 3, 4: 1}, {3: 1, 5: 1})
    if level == "robust":
        assert found["q"] == {2: 2, "heavy": 1}


def test_combine_and_every_change_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="every_change wants each; leave one out"):
        Reduce(first, 0, add_second, every_change=True, combine=operator.add)


def test_a_key_that_is_no_function_is_told_of_count() -> None:
    with pytest.raises(UsageError, match=r"Count\(key=\.\.\.\): expected a function .*, found int"):
        Count(5)  # type: ignore[arg-type]


def test_a_subclass_with_its_own_process_is_not_folded() -> None:
    class Doubling(Count):
        def process(self, item: Any) -> None:
            self.state += 2

    found: list[Any] = []
    Pipeline(Doubling() | Map(found.append, "found")).consume(WORDS)

    assert dict(found)["to"] == 4


@pytest.mark.parametrize("bad", [[[]], [math.nan, []], [[], math.nan, math.nan], [NAN_IN_TUPLE]])
@pytest.mark.parametrize("at", [0, 3, 5, 9])
def test_counts_in_memory_are_right_beside_items_that_are_no_keys(bad: list[Any], at: int) -> None:
    items = [number % 3 for number in range(9)]
    report, counts = count_inline(items[:at] + bad + items[at:])

    assert report.failed == len(bad)
    assert counts == collections.Counter(items)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([1, "a", (1, 2), None, [], {}, *NANS]), max_size=30), st.integers(1, 12))
def test_every_item_is_counted_or_fails(items: list[Any], batch_size: int) -> None:
    good = [item for item in items if item not in ([], {}, *NANS)]
    report, counts = count_inline(items, batch_size)

    assert (report.failed, counts) == (len(items) - len(good), collections.Counter(good))


# -- parts -------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcde")), st.integers(1, 4))
def test_parts_make_one_table_of_each_frame(items: list[str], size: int) -> None:
    parts = Parts(Count(), "count.parts")
    frames = [items[at : at + size] for at in range(0, len(items), size)]

    made = [run_parts(parts, frame) for frame in frames]

    assert all(len(out) == 1 and not failed for out, failed in made)
    assert joined([out[0] for out, _ in made]) == collections.Counter(items)


def test_an_item_that_raises_fails_alone() -> None:
    out, failed = run_parts(Parts(summing(), "p"), [("a", 1), ("b", "bad"), ("a", 2), ("c", "bad"), ("b", 5)])

    assert failed == [("b", "bad"), ("c", "bad")]
    assert joined(out) == {"a": 3, "b": 5}


def stopping_at(bad: Any, otherwise: Any) -> Any:
    """A function that raises StopIteration at one item, as a bare ``next()`` does that finds nothing."""

    def stop(item: Any, *more: Any) -> Any:
        if item == bad or bad in more:
            raise StopIteration
        return otherwise(item, *more)

    return stop


def test_an_item_whose_key_raises_stop_iteration_fails_alone() -> None:
    out, failed = run_parts(Parts(Count(stopping_at(2, str)), "p"), [1, 2, 3, 2, 1])

    assert (joined(out), failed) == ({"1": 2, "3": 1}, [2, 2])


@pytest.mark.parametrize("robustness", ["track", "robust"])
@pytest.mark.parametrize("keyed", [Count, lambda key: Reduce(key, 0, lambda count, item: count + 1)])
def test_what_comes_after_an_item_whose_key_raises_stop_iteration_is_counted(keyed: Any, robustness: Any) -> None:
    kept = Kept("kept")
    report = Pipeline(Producer([1, 2, 3, 2, 1]) | keyed(stopping_at(2, str)) | kept).run(
        mode="inline", robustness=robustness, retries=0
    )

    assert (dict(kept.found), [failure.item for failure in report.failures]) == ({"1": 2, "3": 1}, [2, 2])


@pytest.mark.usefixtures("_in_pieces")
def test_values_that_combine_does_not_join_are_not_lost_in_silence() -> None:
    node = Reduce(str, 0, lambda total, item: total + item, combine=stopping_at(2, operator.add))
    node._open_states()
    node._join_table(PartTable(["1", "2", "3"], [1, 2, 3]))

    with pytest.raises(PartlyFailedError) as raised:
        node._join_table(PartTable(["1", "2", "3"], [1, 2, 3]))
    ((table, error),) = raised.value.failed
    assert table.columns == (["2"], [2])
    assert "StopIteration" in str(error)
    assert dict(node.states()) == {"1": 2, "2": 2, "3": 6}


def test_what_is_raised_where_counts_go_does_not_end_them_in_silence() -> None:
    with pytest.raises(StopIteration):
        Pipeline(Count() | Map(stopping_at(("b", 1), str), "told")).consume("abc")


def test_an_item_whose_key_finds_no_replica_fails_alone() -> None:
    out, failed = run_parts(Parts(Count(), "p"), ["a", object, "a", ("t", object()), []])

    assert len(failed) == 3
    assert joined(out) == {"a": 2}


@pytest.mark.parametrize("nan", [math.nan, Decimal("nan"), NAN_IN_TUPLE])
def test_a_key_that_is_not_equal_to_itself_fails_alone(nan: Any) -> None:
    out, failed = run_parts(Parts(Count(), "p"), ["a", nan, 1.5, "b", nan, "a"])

    assert failed == [nan, nan]
    assert [table.columns for table in out] == [(["a", 1.5, "b"], [2, 1, 1])]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", math.nan, [], object]), max_size=40))
def test_parts_hold_every_item_that_does_not_fail(items: list[Any]) -> None:
    out, failed = run_parts(Parts(Count(), "p"), items)

    assert len(out) <= 1
    assert joined(out) == collections.Counter(item for item in items if item in ("a", "b"))
    assert len(failed) == len(items) - sum(joined(out).values())


def test_items_that_go_alone_and_not_together_stay_apart() -> None:
    def step(total: int, item: Any) -> int:
        if total:
            raise OverflowError(total)
        return int(item[1])

    out, failed = run_parts(Parts(Reduce(first, 0, step, "p", combine=operator.add), "p"), [("a", 1), ("a", 2)])

    assert failed == []
    assert joined(out) == {"a": 3}


# -- their owner -------------------------------------------------------------------------------------


def extend(values: list[int], others: list[int]) -> list[int]:
    """Changes the first in place, also where it raises."""
    values.extend(others)
    if "bad" in values:
        raise ValueError("bad")
    return values


def owner(**states: Any) -> Reduce:
    """One that has these states."""
    node = Reduce(first, list, lambda values, item: [*values, item[1]], "lists", combine=extend)
    node._open_states().cached.update(states)
    return node


@pytest.mark.usefixtures("_in_pieces")
def test_a_part_that_cannot_be_joined_fails_as_a_table_of_its_own() -> None:
    node = owner(a=[1], b=[1], c=[1])
    tables = [PartTable(["a", "b", "new"], [[2], ["bad"], [2]]), PartTable(["c", "a"], [[3], [3]])]

    _, failed = run_parts(node, tables)

    assert [table.columns for table in failed] == [(["b"], [["bad"]])]
    assert {key: state for key, state in node.states() if key != "b"} == {"a": [1, 2, 3], "c": [1, 3], "new": [2]}


@pytest.mark.usefixtures("_in_pieces")
def test_a_key_that_finds_no_state_takes_no_other_down_at_its_owner() -> None:
    node = owner()

    _, failed = run_parts(node, [PartTable(["a", math.nan, "b"], [[1], [2], [3]])])

    assert [table.columns for table in failed] == [([math.nan], [[2]])]
    assert dict(node.states()) == {"a": [1], "b": [3]}


def counting() -> Reduce:
    return Reduce(lambda item: item, 0, lambda count, _: count + 1, "counting", combine=operator.add)


class Prickly:
    """A key that cannot be compared with any other."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Prickly) and "bad" in (self.name, other.name) and self is not other:
            raise ValueError("cannot be compared")
        return self is other


@pytest.mark.usefixtures("_in_pieces")
@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("make", [Count, counting], ids=["count", "reduce"])
def test_a_key_that_cannot_be_compared_has_no_other_counted_twice(make: Callable[[], Reduce], place: int) -> None:
    keys, last, node = [*map(Prickly, "abcde")], Prickly("last"), make()
    node._open_states().cached.update((key, 1) for key in (*keys[:place], last))
    last.name = "bad"  # Whoever is looked for behind it meets it.
    items = [key for key in keys for _ in range(2)]

    _, failed = run_parts(node, items)

    assert failed == [key for key in keys[place:] for _ in range(2)]
    assert [count for _, count in node.states()] == [3] * place + [1]


@pytest.mark.parametrize("make", [Count, counting], ids=["count", "reduce"])
@pytest.mark.parametrize("failing", range(3))
def test_where_states_are_stored_keys_that_were_joined_before_an_error_are_not_counted_twice(
    make: Callable[[], Reduce], failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch_all, calls, kept = States.touch_all, itertools.count(), Kept("kept")

    def touch_all_but_once(states: States, keys: Iterable[Any]) -> None:
        if next(calls) == failing:
            raise MemoryError
        touch_all(states, keys)

    monkeypatch.setattr(reduction, "JOINED_AT_ONCE", 2)
    monkeypatch.setattr(States, "touch_all", touch_all_but_once)
    report = Pipeline(Producer([*"abcde"]) | make() | kept).run(mode="inline", sync="process", batch_size=5, retries=0)

    assert (report.failed, dict(kept.found)) == (0, dict.fromkeys("abcde", 1))


@pytest.mark.usefixtures("_in_pieces")
def test_what_raises_leaves_its_state_as_it_was_while_items_are_remembered() -> None:
    node = owner(a=[1], b=[1])
    node._states.begin_item()

    run_parts(node, [PartTable(["a", "b", "c"], [[2], ["bad"], [2]])])
    node._states.keep_item()

    assert dict(node.states()) == {"a": [1, 2], "b": [1], "c": [2]}


def test_a_table_comes_back_as_it_was_sent() -> None:
    table = pickle.loads(pickle.dumps(PartTable(["a", 1], [2, [3]]), 5))

    assert table.columns == (["a", 1], [2, [3]])
    assert repr(table) == "PartTable('a': 2, 1: [3])"
    assert repr(PartTable(list(range(7)), list(range(7)))).endswith("4: 4, and 2 more)")


# -- the plan ----------------------------------------------------------------------------------------


def plan_of(workers: Any, node: Node, **options: Any) -> Any:
    return Pipeline(Producer(WORDS) | Map(str.upper, "upper") | node | Map(print, "out")).plan(
        workers=workers, **options
    )


def test_workers_that_share_the_keys_fold_first() -> None:
    plan = plan_of(3, Count())

    assert [(node.name, node.replicas) for node in plan.nodes] == [
        ("producer", 1),
        ("upper", 3),
        ("count.parts", 3),
        ("count", 3),
        ("out", 1),
    ]
    assert [edge.grouping for edge in plan.edges] == [
        Grouping.SHUFFLE,
        Grouping.LOCAL,
        Grouping.PARTS,
        Grouping.SINGLE,
    ]


@pytest.mark.parametrize(
    ("workers", "node", "options"),
    [
        ("per-task", Count(), {}),
        (1, Count(), {}),
        (2, Count(name="one") * 1, {}),
        (2, Reduce(first, 0, add_second, "plain"), {}),
        ("per-task", Count(name="local"), {"mode": "inline"}),
    ],
    ids=["per task", "one worker", "one replica", "without combine", "inline"],
)
def test_nothing_is_folded_first_where_it_saves_nothing(workers: Any, node: Node, options: Any) -> None:
    assert not [node.name for node in plan_of(workers, node, **options).nodes if "parts" in node.name]


def test_the_name_of_the_parts_is_one_that_is_free() -> None:
    pipeline = Pipeline(Producer(WORDS) | Map(str, "count.parts") | Count() | Map(print, "out"))

    assert "count.parts_2" in [node.name for node in pipeline.plan(workers=2).nodes]


# -- between processes -------------------------------------------------------------------------------


class Gather(Node):
    """Writes what it got to a file at the end: it lives in another process."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        self.path = path

    def begin(self) -> None:
        self.found: list[Any] = []

    def process(self, item: Any) -> None:
        self.found.append(item)

    def end(self) -> None:
        with open(self.path, "wb") as file:
            pickle.dump(sorted(self.found), file)


@pytest.mark.parametrize("robustness", ["track", "robust"])
def test_two_workers_count_what_one_loop_counts(robustness: Any, tmp_path: Any) -> None:
    items = [f"w{number * number % 97}" for number in range(3000)]
    path = tmp_path / "found"
    report = Pipeline(Producer(items) | Map(str.upper, "upper") | Count() | Gather("gather", str(path))).run(
        workers=2, robustness=robustness, batch_size=100
    )

    assert (report.completed, report.failed) == (3000, 0)
    assert pickle.loads(path.read_bytes()) == sorted(collections.Counter(map(str.upper, items)).items())


def test_items_that_raise_in_the_parts_are_given_up_and_the_rest_is_summed(tmp_path: Any) -> None:
    items = [(f"k{number % 7}", "bad" if number % 50 == 0 else number) for number in range(500)]
    path = tmp_path / "found"
    report = Pipeline(Producer(items) | Map(tuple, "tuple") | summing() | Gather("gather", str(path))).run(
        workers=2, batch_size=50, retries=1, retry_delay_s=0.0
    )

    expected: dict[str, int] = {}
    for key, value in items:
        if value != "bad":
            expected[key] = expected.get(key, 0) + int(value)
    assert report.failed == 10
    assert {failure.item[1] for failure in report.failures} == {"bad"}
    assert {failure.node for failure in report.failures} == {"sums.parts"}
    assert pickle.loads(path.read_bytes()) == sorted(expected.items())


@pytest.mark.parametrize("robustness", ["track", "robust"])
def test_one_key_that_is_none_takes_no_neighbour_down(robustness: Any, tmp_path: Any) -> None:
    items = [f"w{number % 7}" for number in range(1000)]
    path = tmp_path / "found"
    report = Pipeline(Producer([*items[:500], math.nan, *items[500:]]) | Count() | Gather("gather", str(path))).run(
        workers=2, robustness=robustness, retries=0
    )

    assert [(failure.node, str(failure.item)) for failure in report.failures] == [("count.parts", "nan")]
    assert dict(pickle.loads(path.read_bytes())) == collections.Counter(items)


def join_lists(values: list[Any], others: list[Any]) -> list[Any]:
    values.extend(others)
    if values[0] == "k0" and len(values) > 60:
        raise OverflowError("k0 is full")
    return values


def test_a_key_whose_values_cannot_be_joined_takes_no_other_down(tmp_path: Any) -> None:
    """And it loses nothing itself: what was not joined is listed, and can be put back where it failed."""
    items = [f"k{number % 7}" for number in range(700)]
    gather = Reduce(str, list, lambda values, item: [*values, item], "lists", combine=join_lists)
    chain = Producer(items) | gather | Gather("gather", str(tmp_path / "found"))
    report = Pipeline(chain).run(
        workers=2, robustness="robust", state_dir=tmp_path / "state", batch_size=50, retries=1, retry_delay_s=0.0
    )

    found = {key: len(values) for key, values in pickle.loads((tmp_path / "found").read_bytes())}
    given_up = [dict(zip(*failure.item.columns, strict=True)) for failure in report.failures]
    assert {failure.node for failure in report.failures} == {"lists"}
    assert {tuple(table) for table in given_up} == {("k0",)}
    assert found.pop("k0") + sum(len(table["k0"]) for table in given_up) == 100
    assert found == dict.fromkeys([f"k{number}" for number in range(1, 7)], 100)
    with FailureStore(tmp_path / "state") as store, pytest.raises(UsageError, match="put it back at the node that it"):
        store.retry(Selection(), at_source=True)
