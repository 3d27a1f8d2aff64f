from __future__ import annotations

import io
import operator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from consecution import Chunk, GroupByNode, KeyedNode, Map, Node, Pipeline, Producer, Reduce, StatefulNode
from consecution.errors import GraphError

MODES = ("inline", "thread")


class Heard(Node):
    """Remembers, for the test, what reached it."""

    stateless = True

    def __init__(self) -> None:
        super().__init__("heard")
        self.items: list[Any] = []

    def process(self, item: Any) -> None:
        self.items.append(item)


class Run:
    """Runs of one node over one state directory: each takes items and stops, or comes to the end."""

    def __init__(self, path: Path, make: Any, mode: str) -> None:
        self._path, self._make, self._mode = path, make, mode
        self.failed: list[Any] = []

    def __call__(self, items: list[Any], *, end: bool = False, mode: str | None = None) -> list[Any]:
        heard = Heard()
        running = Pipeline(Producer("manual", name="pushed") | self._make() | heard).start(
            mode=mode or self._mode, state_dir=self._path, sync="process", retries=0
        )
        for item in items:
            running.push(item).wait(30.0)
        report = running.wait(30.0) if end else running.stop()
        self.failed = [failure.item for failure in report.failures]
        return heard.items


@pytest.fixture(params=MODES)
def runs(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return lambda make: Run(tmp_path / "state", make, request.param)


def consume(node: Node, items: list[Any]) -> list[Any]:
    heard = Heard()
    Pipeline(node | heard).consume(items)
    return heard.items


# -- nodes to be tested --------------------------------------------------------------------------------
#
# Each is given numbers, pushes what it knows after each, and refuses negative ones after changing its state.


class Refuses(Node):
    def refuse(self, item: int) -> None:
        if item < 0:
            raise ValueError("negative")


class Mapping(StatefulNode, Refuses):
    def process(self, item: int) -> None:
        self.state["sum"] = self.state.get("sum", 0) + item
        self.state.setdefault("seen", []).append(item)
        self.state[f"last of {item % 2}"] = item
        self.refuse(item)
        self.push((self.state["sum"], list(self.state["seen"])))


class Value(StatefulNode, Refuses):
    """A value that cannot change, and is replaced."""

    def initial_state(self) -> Any:
        return (0, ())

    def process(self, item: int) -> None:
        total, seen = self.state
        self.state = (total + item, (*seen, item))
        self.refuse(item)
        self.push((self.state[0], list(self.state[1])))


@dataclass
class Account:
    total: int = 0
    seen: list[int] = field(default_factory=list)


class Typed(StatefulNode, Refuses):
    """A value that changes in place."""

    def initial_state(self) -> Any:
        return Account()

    def process(self, item: int) -> None:
        self.state.total += item
        self.state.seen.append(item)
        self.refuse(item)
        self.push((self.state.total, list(self.state.seen)))


class Keyed(KeyedNode, Refuses):
    def key(self, item: int) -> str:
        return "all"

    def process(self, item: int) -> None:
        self.state["sum"] = self.state.get("sum", 0) + item
        self.state.setdefault("seen", []).append(item)
        self.refuse(item)
        self.push((self.state["sum"], list(self.state["seen"])))


class KeyedTyped(KeyedNode, Refuses):
    key = Keyed.key

    def initial_state(self) -> Any:
        return Account()

    process = Typed.process


class KeyedReplaced(KeyedNode, Refuses):
    key = Keyed.key

    def initial_state(self) -> Any:
        return (0, ())

    process = Value.process


class Attributes(Refuses):
    """Plain, durable for its end."""

    def begin(self) -> None:
        self.sum, self.seen = 0, list[int]()

    def process(self, item: int) -> None:
        self.sum += item
        self.seen.append(item)
        self.last = item
        self.refuse(item)
        self.push((self.sum, list(self.seen)))

    def end(self) -> None:
        self.push("end")


NODES = [Mapping, Value, Typed, Keyed, KeyedTyped, KeyedReplaced, Attributes]


@pytest.fixture(params=NODES, ids=[node.__name__ for node in NODES])
def node(request: pytest.FixtureRequest) -> Any:
    return lambda: request.param("node")


def test_state_goes_from_item_to_item_without_a_run(node: Any) -> None:
    assert consume(node(), [1, 2, 3])[:3] == [(1, [1]), (3, [1, 2]), (6, [1, 2, 3])]


def test_every_stream_of_consume_begins_anew(node: Any) -> None:
    heard = Heard()
    pipeline = Pipeline(node() | heard)

    for _ in range(2):
        heard.items.clear()
        pipeline.consume([1])

        assert heard.items[0] == (1, [1])


def test_state_goes_on_in_the_next_run(node: Any, runs: Any) -> None:
    run = runs(node)

    assert run([1, 2]) == [(1, [1]), (3, [1, 2])]
    assert run([]) == []
    assert run([3]) == [(6, [1, 2, 3])]


class Balances(KeyedNode):
    """Changes nothing before it knows that it can; at the end each state has a total."""

    def key(self, item: Any) -> str:
        return str(item[0])

    def process(self, item: Any) -> None:
        self.state["total"] = self.state.get("total", 0) + int(item[1])

    def end(self) -> None:
        for key, state in self.states():
            self.push((key, state["total"]))


def test_an_item_that_raises_leaves_state_as_before_it(node: Any, runs: Any) -> None:
    run = runs(node)

    assert run([1, -2, 3]) == [(1, [1]), (4, [1, 3])]
    assert run.failed == [-2]
    assert run([-5]) == []
    assert run([4]) == [(8, [1, 3, 4])]
    assert run.failed == [-2, -5]


def test_a_run_whose_first_item_raises_has_no_state(node: Any, runs: Any) -> None:
    run = runs(node)

    assert run([-1]) == []
    assert run([1]) == [(1, [1])]


def test_state_in_processes_is_the_same(node: Any, tmp_path: Path) -> None:
    run = Run(tmp_path / "state", node, "inline")
    run([1, -7], mode="process")

    assert run([2]) == [(3, [1, 2])]
    assert run.failed == [-7]


# -- a state for the node ----------------------------------------------------------------------------


def test_a_state_without_a_run_of_its_own_is_there_at_the_end(runs: Any) -> None:
    class Summing(Typed):
        def process(self, item: int) -> None:
            self.state.total += item

        def end(self) -> None:
            self.push(self.state.total)

    run = runs(lambda: Summing("node"))
    run([1, 2])

    assert run([], end=True) == [3]


def test_entries_that_are_deleted_stay_deleted(runs: Any) -> None:
    class Toggles(StatefulNode):
        def process(self, item: str) -> None:
            if item in self.state:
                del self.state[item]
            else:
                self.state[item] = True
            self.push(sorted(self.state))

    run = runs(lambda: Toggles("node"))

    assert run(["a", "b", "a"]) == [["a"], ["a", "b"], ["b"]]
    assert run(["b", "c"]) == [[], ["c"]]
    assert run(["d"]) == [["c", "d"]]


def test_a_mapping_that_is_assigned_replaces_all_entries(runs: Any) -> None:
    class Replaces(StatefulNode):
        def process(self, item: dict[str, int]) -> None:
            self.state = item
            self.push(dict(self.state))

    run = runs(lambda: Replaces("node"))

    assert run([{"a": 1, "b": 2}, {"b": 3}]) == [{"a": 1, "b": 2}, {"b": 3}]
    assert run([{}]) == [{}]


def test_a_state_has_one_replica() -> None:
    with pytest.raises(GraphError, match="can have 1 replica only; a KeyedNode shares its keys"):
        Pipeline(Map(int, "in") | Mapping("node") * 2).run([1], mode="inline")


# -- a state for each key ----------------------------------------------------------------------------


class PerKey(KeyedNode):
    def key(self, item: tuple[Any, int]) -> Any:
        return item[0]

    def process(self, item: tuple[Any, int]) -> None:
        self.state["sum"] = self.state.get("sum", 0) + item[1]

    def end(self) -> None:
        for key, state in self.states():
            self.push((key, state["sum"]))


def test_end_sees_the_states_of_all_keys_of_all_runs(runs: Any) -> None:
    run = runs(lambda: PerKey("node") * 3)
    run([("a", 1), ("b", 2), (3, 3)])

    assert sorted(run([("a", 10), ("c", 4)], end=True), key=str) == [("a", 11), ("b", 2), ("c", 4), (3, 3)]


def test_states_come_in_one_order_whatever_order_the_items_had(tmp_path: Path) -> None:
    items = [(f"key {number}", 1) for number in range(50)]
    found = [
        Run(tmp_path / str(number), lambda: PerKey("node"), "inline")(order, end=True)
        for number, order in enumerate([items, items[::-1]])
    ]

    assert found[0] == found[1]
    assert len(found[0]) == 50


@pytest.mark.parametrize("robustness", ["none", "confirm", "track", "robust"])
@pytest.mark.parametrize("logged", [False, True])
def test_a_key_of_which_every_item_raises_has_no_state_at_the_end(logged: bool, robustness: Any) -> None:
    def keyed() -> KeyedNode:
        return Balances("balances")

    def reduced() -> KeyedNode:
        return Reduce(operator.itemgetter(0), 0, lambda total, item: total + int(item[1]), "sums")

    for make in (keyed, reduced):
        heard, node = Heard(), make()
        if logged:
            node.log("input")
        items = [("a", "x"), ("b", "1"), ("a", "y"), ("c", "2"), ("b", "z"), ("c", "3"), ("d", "w")]

        report = Pipeline(node | heard).run(items, mode="inline", robustness=robustness, sync="process", retries=0)

        assert sorted(heard.items) == [("b", 1), ("c", 5)]
        assert report.failed == 4


def test_a_key_that_has_no_encoding_fails_alone(runs: Any) -> None:
    run = runs(lambda: PerKey("node"))

    nan = float("nan")
    found = run([("a", 1), (frozenset("b"), 2), (["c"], 3), ("d", 4), (nan, 5), (("e", (nan,)), 6)], end=True)

    assert sorted(found) == [("a", 1), ("d", 4)]
    assert [amount for _, amount in run.failed] == [2, 3, 5, 6]


@pytest.mark.parametrize("raised", [StopIteration, SystemExit, GeneratorExit])
@pytest.mark.parametrize("robustness", ["track", "robust"])
@pytest.mark.parametrize("mode", MODES)
def test_a_key_function_takes_no_neighbour_along_whatever_it_raises(mode: Any, robustness: Any, raised: Any) -> None:
    class Refusing(PerKey):
        def key(self, item: tuple[Any, int]) -> Any:
            if item[1] == 2:
                raise raised
            return item[0]

    heard = Heard()
    items = [("a", 1), ("b", 2), ("c", 3), ("b", 2), ("a", 4)]
    report = Pipeline(Refusing("node") | heard).run(items, mode=mode, robustness=robustness, retries=0)

    assert sorted(heard.items) == [("a", 5), ("c", 3)]
    assert [failure.item for failure in report.failures] == [("b", 2), ("b", 2)]
    assert not report.confirmed


def test_a_keyed_node_must_say_its_key() -> None:
    class Keyless(KeyedNode):
        def process(self, item: Any) -> None: ...

    with pytest.raises(NotImplementedError, match=r"You must define a \.key\(self, item\) method"):
        consume(Keyless("node"), [1])


def test_a_keyed_node_takes_no_other_key() -> None:
    with pytest.raises(GraphError, match="a KeyedNode groups by its own key"):
        Keyed("node").by(str)


# -- reduce ------------------------------------------------------------------------------------------


def test_reduce_tells_every_key_at_the_end_or_at_every_change(runs: Any) -> None:
    def make() -> Node:
        return Reduce(lambda item: item % 2, list, lambda found, item: [*found, item], "odd")

    run = runs(make)
    run([1, 2])

    assert sorted(run([3], end=True)) == [(0, [2]), (1, [1, 3])]
    assert consume(Reduce(len, 0, lambda n, _: n + 1, "n", every_change=True), ["a", "b", "cc"]) == [
        (1, 1),
        (1, 2),
        (2, 1),
    ]


# -- nodes whose attributes are their state ------------------------------------------------------------


def test_a_chunk_goes_on_in_the_next_run(runs: Any) -> None:
    run = runs(lambda: Chunk(3, "chunk"))

    assert run([1, 2]) == []
    assert run([3, 4]) == [[1, 2, 3]]
    assert run([], end=True) == [[4]]


def test_consecutive_items_of_one_key_are_collected_over_runs(runs: Any) -> None:
    class Words(GroupByNode):
        def key(self, item: str) -> str:
            return item[0]

        def process(self, batch: list[str]) -> None:
            self.push(batch)

    run = runs(lambda: Words("words"))

    assert run(["a1", "a2"]) == []
    assert run(["a3", "b1"]) == [["a1", "a2", "a3"]]
    assert run(["b2"], end=True) == [["b1", "b2"]]


def test_a_batch_that_fails_takes_no_other_along_in_this_run_or_the_next(runs: Any) -> None:
    class Words(GroupByNode):
        def key(self, item: str) -> str:
            return item[0]

        def process(self, batch: list[str]) -> None:
            self.push(batch)
            if batch[0] == "bad":
                raise ValueError("no such word")

    run = runs(lambda: Words("words"))

    assert run(["a1", "bad"]) == [["a1"]]
    assert run(["c1", "c2"]) == []
    assert run.failed == [["bad"]]
    assert run(["c3", "d1", "bad"], end=True) == [["c1", "c2", "c3"], ["d1"]]
    assert run.failed == [["bad"], ["bad"]]


def test_what_the_constructor_set_is_the_next_runs_own(runs: Any) -> None:
    size = [3]
    run = runs(lambda: Chunk(size[0], "chunk"))
    assert run([1, 2]) == []

    size[0] = 4

    assert run([3]) == []
    assert run([4]) == [[1, 2, 3, 4]]


def test_attributes_that_were_deleted_do_not_come_back(runs: Any) -> None:
    class Deletes(Node):
        def process(self, item: int) -> None:
            if hasattr(self, "kept"):
                del self.kept
            else:
                self.kept = item
            self.push(hasattr(self, "kept"))

        def end(self) -> None: ...

    run = runs(lambda: Deletes("node"))

    assert run([1, 2, 3, 4]) == [True, False, True, False]
    assert run([5]) == [True]


def test_attributes_that_cannot_be_kept_are_made_anew(runs: Any) -> None:
    class Opens(Node):
        def begin(self) -> None:
            self.file = io.StringIO("first second")
            self.numbers = (number for number in range(9))
            self.count = 0

        def process(self, item: int) -> None:
            self.count += 1
            self.push((self.count, self.file.read(5), next(self.numbers)))

        def end(self) -> None: ...

    run = runs(lambda: Opens("node"))

    assert run([1]) == [(1, "first", 0)]
    assert run([2]) == [(2, "first", 0)]


@pytest.mark.parametrize("robustness", ["track", "robust"])
def test_a_key_that_cannot_be_hashed_says_what_a_key_may_be(robustness: str) -> None:
    class Counts(KeyedNode):
        def key(self, item: Any) -> Any:
            return item

        def process(self, item: Any) -> None:
            self.state["count"] = 1

    report = Pipeline(Counts("counts")).run([["a"], "b"], mode="inline", robustness=robustness, retries=0)

    assert [failure.error.split(";")[1] for failure in report.failures] == [
        " found list ['a']: let the key function return, say, a tuple of its fields"
    ]
