"""Joins over every engine: each key's items come together once, and what stays alone is let go."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consecution import Filter, Join, Map, Node, Pipeline, Producer, Running, joining
from consecution.errors import GraphError
from consecution.plan import describe
from consecution.protocol.values import Labelled
from tests.engines.nodes import Collect, collected
from tests.engines.running import EngineRun
from tests.engines.test_contract import wait_for

MODES: list[tuple[Any, Any]] = [("inline", "per-task"), ("thread", "per-task"), ("process", "per-task"), ("process", 2)]
COUNT = 300
SEED = int(os.environ.get("CONSECUTION_SEED", random.randrange(10**6)))


def number(item: Any) -> int:
    return item if isinstance(item, int) else int(item[1])


def itself(item: Any) -> Any:
    return item


def price(item: int) -> tuple[str, int]:
    return "price", item


def rating(item: int) -> tuple[str, int]:
    return "rating", item


def is_rated(item: int) -> bool:
    return item % 3 != 0


def join_words(price: Any, rating: Any) -> str:
    if price[1] == 7:
        raise LookupError("no sevens")
    return f"{price[1]} {rating[1]}"


class Splitting(Node):
    def process(self, item: int) -> None:
        self.push(item, to="odd" if item % 2 else "even")
        self.push(item)


class Run(EngineRun):
    def sink(self, name: str) -> Collect:
        return Collect(name, self.folder / name)

    def items(self, name: str) -> list[Any]:
        return collected(self.folder / name)


@pytest.fixture(params=MODES, ids=lambda mode: f"{mode[0]}-{mode[1]}")
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    mode, workers = request.param
    return Run(mode, tmp_path, workers)


@pytest.mark.parametrize("level", ["none", "robust"])
def test_branches_of_an_item_are_joined_back_together(run: Run, level: str) -> None:
    prices, ratings = Map(price, "prices") * 2, Filter(is_rated) | Map(rating, "ratings")
    _ = Producer(list(range(COUNT))) | [prices, ratings]
    join = Join(number, prices=prices, ratings=ratings) * 2
    join["unmatched"] | run.sink("alone")

    report = run(join | run.sink("together"), robustness=level)

    rated = [item for item in range(COUNT) if is_rated(item)]
    assert sorted(run.items("together"), key=lambda made: made["prices"][1]) == [
        {"prices": ("price", item), "ratings": ("rating", item)} for item in rated
    ]
    assert sorted(made["prices"][1] for made in run.items("alone")) == list(range(0, COUNT, 3))
    assert (report.emitted, report.completed, report.failed) == (COUNT, COUNT, 0)


def test_two_streams_are_joined_and_a_failing_item_leaves_its_partner_waiting(run: Run) -> None:
    left = Producer([("l", item) for item in range(50)], name="left")
    right = Producer([("r", item) for item in range(49, -1, -1)], name="right")
    join = Join({"price": number, "rating": number}, "join", combine=join_words, price=left, rating=right)
    join["unmatched"] | run.sink("alone")

    report = run(join | run.sink("together"))

    assert Counter(run.items("together")) == Counter(f"{item} {item}" for item in range(50) if item != 7)
    (failure,) = report.failures
    assert (failure.item in [("l", 7), ("r", 7)], failure.error) == (True, "LookupError: no sevens")
    (alone,) = run.items("alone")
    assert {failure.item, *alone.values()} == {("l", 7), ("r", 7)}


def test_who_waits_too_long_is_let_go_while_the_stream_goes_on(run: Run) -> None:
    manual = Producer("manual")
    left, right = Filter(is_left, "is_left"), Filter(is_right, "is_right")
    _ = manual | [left, right]
    join = Join(number, left=left, right=right, timeout_s=0.2)
    join["unmatched"] | run.sink("alone")
    running = run.start(join | run.sink("together"))
    with running:
        running.push(("l", 1))
        wait_for(running, lambda: run.items("alone") == [{"left": ("l", 1)}])
        running.push(("r", 1))
        wait_for(running, lambda: len(run.items("alone")) == 2)

    assert run.items("alone") == [{"left": ("l", 1)}, {"right": ("r", 1)}]
    assert run.items("together") == []


def is_left(item: Any) -> bool:
    return bool(item[0] == "l")


def is_right(item: Any) -> bool:
    return bool(item[0] == "r")


class DiesOnce:
    """Makes a pair of two items, and takes its worker down at one of them, once."""

    def __init__(self, at: int, token: Path) -> None:
        self.at = at
        self.token = token

    def __call__(self, left: int, right: int) -> tuple[int, int]:
        if left == self.at and not self.token.exists():
            self.token.touch()
            os._exit(9)
        return left, right


def test_a_join_that_dies_has_joined_each_pair_once(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    print(f"CONSECUTION_SEED={SEED}")
    order = rng.sample(range(COUNT), COUNT)
    run = Run("process", tmp_path)
    left, right = Producer(list(range(COUNT)), name="left"), Producer(order, name="right")
    dies = DiesOnce(rng.randrange(COUNT), tmp_path / "token")

    report = run(Join(itself, left=left, right=right, combine=dies) | run.sink("together"))

    assert sorted(run.items("together")) == [(item, item) for item in range(COUNT)]
    assert (report.restarts, report.failed) == (1, 0)


@pytest.mark.parametrize("settings", [{}, {"limit": 2}, {"timeout_s": 60.0}], ids=str)
def test_what_waits_outlives_a_stop(settings: dict[str, Any], tmp_path: Path) -> None:
    def started() -> Running:
        left, right = Filter(is_left, "is_left"), Filter(is_right, "is_right")
        _ = (top := Producer("manual")) | [left, right]
        join = Join(number, left=left, right=right, **settings)
        join["unmatched"] | run.sink("alone")
        _ = join | run.sink("together")
        return run.start(top)

    run = Run("inline", tmp_path)
    running = started()
    for item in (1, 2):
        running.push(("l", item))
    running.stop()
    assert (run.items("together"), run.items("alone")) == ([], [])
    with started() as running:
        running.push(("r", 2))
        running.push(("l", 3))
        running.push(("l", 4))

    assert run.items("together") == [{"left": ("l", 2), "right": ("r", 2)}]
    assert sorted(made["left"][1] for made in run.items("alone")) == [1, 3, 4]


# -- item by item, and the graph -----------------------------------------------------------------


def joined(items: list[Any], **settings: Any) -> tuple[list[Any], list[Any]]:
    """What comes together, and what stays alone, of left and right items in this order."""
    together: list[Any] = []
    alone: list[Any] = []
    left, right = Filter(is_left, "is_left"), Filter(is_right, "is_right")
    _ = (top := Map(itself, "top")) | [left, right]
    join = Join(number, left=left, right=right, **settings)
    join["unmatched"] | alone.append
    _ = join | (lambda made: together.append((made["left"][1:], made["right"][1:])))
    Pipeline(top).consume(items)
    return together, alone


def test_items_of_one_key_are_joined_in_the_order_in_which_they_came() -> None:
    items = [("l", 1, "a"), ("l", 1, "b"), ("r", 1, "x"), ("r", 2, "y"), ("r", 1, "z"), ("r", 1, "w")]
    together, alone = joined(items)

    assert together == [((1, "a"), (1, "x")), ((1, "b"), (1, "z"))]
    assert sorted(made["right"] for made in alone) == [("r", 1, "w"), ("r", 2, "y")]


def test_a_key_is_let_go_when_so_many_have_begun_to_wait_after_it() -> None:
    together, alone = joined([("l", 1), ("l", 2), ("r", 2), ("l", 3), ("r", 1), ("l", 4), ("r", 3)], limit=2)

    # 2 and 3 began after 1; so did 1's partner, 4 after 3.
    assert together == [((2,), (2,))]
    assert alone[0] == {"left": ("l", 1)}
    assert sorted(number(next(iter(made.values()))) for made in alone) == [1, 1, 3, 3, 4]


def test_what_is_taken_back_waits_again_and_is_let_go_again() -> None:
    a, b = two()
    join = Join(number, a=a, b=b, limit=1)
    join["unmatched"] | Map(itself, "alone")
    states, out = join._open_states(), []
    join._push_into(out)
    join.begin()
    join._process_frame(iter([Labelled("a", 1)]), out)

    for _ in range(2):
        states.begin_item()
        join._process_frame(iter([Labelled("a", 2)]), out)
        assert out.pop() == Labelled("unmatched", {"a": 1})
        states.undo_item()

    assert dict(states.items()) == {1: states.get(1)}


class Bench:
    """A join by itself, with the clock in hand, whose memory can be taken away: all that is left are its states."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        monkeypatch.setattr(joining, "time", self)
        a, b = two()
        self.now_s = 1000.0
        self.join = Join(first, a=a, b=b, combine=lambda a, b: (a, b), **settings)
        self.join["unmatched"] | Map(itself, "alone")
        self.states = self.join._open_states()
        self.out: list[Any] = []
        self.join._push_into(self.out)
        self.join.begin()

    def time(self) -> float:
        return self.now_s

    def takes(self, *items: tuple[str, Any]) -> list[Any]:
        """What comes out at these items, of a branch and a text that begins with the key, and at a tick."""
        self.join._process_frame(iter([Labelled(*item) for item in items]), self.out)
        if self.join._has_timer():
            self.join.on_timer()
        out = [next(iter(made.item.values())) if type(made) is Labelled else made for made in self.out]
        self.out.clear()
        return out

    def forgets(self) -> None:
        self.join.begin()


def first(item: str) -> str:
    return item[0]


def test_nothing_waits_longer_or_shorter_for_what_else_of_its_key_comes_and_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(monkeypatch, timeout_s=10.0)
    seen = {}
    for second, items in enumerate([[("a", "x1")], [], [], [("a", "x2")], [("a", "x3")], [], [], [], [("b", "x")], []]):
        bench.now_s = 1000.0 + second
        seen[second] = bench.takes(*items)
    for second in range(10, 20):
        bench.now_s = 1000.0 + second
        seen[second] = bench.takes()

    assert {second: out for second, out in seen.items() if out} == {8: [("x1", "x")], 13: ["x2"], 14: ["x3"]}
    bench.takes(("a", "y1"))
    bench.now_s += 9
    bench.takes(("a", "y2"))
    bench.now_s += 1
    assert bench.takes() == ["y1"]


STEPS = st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.booleans())
"""A branch, a key, and whether something is taken back, and memory lost, before it comes."""


@settings(max_examples=100, deadline=None)
@given(st.lists(STEPS, max_size=20), st.integers(1, 3))
def test_what_a_limit_lets_go_of_does_not_depend_on_starts_and_roll_backs(steps: list[Any], limit: int) -> None:
    def outcome(*, disturbed: bool) -> list[Any]:
        with pytest.MonkeyPatch.context() as patched:
            bench, out = Bench(patched, limit=limit), []
            for second, (branch, key, disturbs) in enumerate(steps):
                bench.now_s = 1000.0 + second
                if disturbed and disturbs:
                    bench.states.begin_item()
                    bench.takes(("a", "other"), ("b", "other"), ("a", f"{key}-"))
                    bench.states.undo_item()
                    bench.forgets()
                out += bench.takes((branch, f"{key}{second}"))
            bench.join.end()
            return out + sorted(bench.takes())

    assert outcome(disturbed=True) == outcome(disturbed=False)


def test_a_stop_does_not_change_what_a_limit_lets_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for forgets in (False, True):
        bench = Bench(monkeypatch, limit=2)
        bench.takes(("a", "x"), ("a", "y"), ("b", "y"))
        if forgets:
            bench.forgets()

        assert bench.takes(("a", "z")) == ["x"]


@pytest.mark.parametrize("options", [{"limit": 2}, {"timeout_s": 10.0}, {}], ids=str)
def test_what_an_older_release_has_left_waiting_goes_on_waiting(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    bench = Bench(monkeypatch, **options)
    for key, since_s in (("x", 995.0), ("y", 994.0)):
        bench.states.put(key, {"since_s": since_s, "waiting": {"a": [f"{key}1", f"{key}2"]}})

    assert bench.takes(("b", "x")) == [("x1", "x")]
    bench.now_s = 1004.5
    assert bench.takes(("a", "z")) == ([] if not options else ["y1", "y2"])
    bench.join.end()
    assert sorted(made.item["a"] for made in bench.out) == (["x2", "z"] if options else ["x2", "y1", "y2", "z"])


def test_a_limit_of_one_still_joins_neighbours() -> None:
    items = [(side, item) for item in range(5) for side in "lr"]
    assert joined(items, limit=1) == ([((item,), (item,)) for item in range(5)], [])


def test_it_joins_outputs_and_copies_keep_their_branches() -> None:
    def chain() -> Node:
        splitting = Splitting("splitting")
        Join(half, odd=splitting["odd"], even=splitting["even"])
        return splitting

    top = chain()
    twin = top.copy("b_")
    made: list[Any] = []
    _ = next(node for node in twin.all_nodes if node.name == "b_join") | made.append
    Pipeline(twin).consume([2, 3, 4])

    assert made == [{"odd": 3, "even": 2}]
    assert "branch odd" in describe(Pipeline(top).plan([1]))


def half(item: int) -> int:
    return item // 2


def test_a_branch_that_is_replaced_stays_the_branch() -> None:
    made: list[Any] = []
    left, right = Map(itself, "left"), Map(itself, "right")
    _ = (top := Map(itself, "top")) | [left, right]
    _ = Join(itself, a=left, b=right) | made.append
    pipeline = Pipeline(top)
    pipeline["left"] = Map(itself, "left")
    pipeline.consume([5])

    assert made == [{"a": 5, "b": 5}]


def two() -> tuple[Node, Node]:
    a, b = Map(itself, "a"), Map(itself, "b")
    _ = Producer([1]) | [a, b]
    return a, b


def led_into_by_hand() -> Any:
    a, b = two()
    third = Map(itself, "third")
    join = Join(itself, a=a, b=b)
    a._upstream_nodes[0].add_downstream(third)
    third.add_downstream(join)
    return Pipeline(join).plan()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Join(itself, a=two()[0]), r"N\(join\): expected two branches or more: Join\(key, left=node"),
        (lambda: Join({"a": itself}, a=two()[0], b=two()[1]), r"keys for \['a'\], and branches \['a', 'b'\]"),
        (lambda: Join(3, a=two()[0], b=two()[1]), "the key of 'a': expected a function that returns an item's key"),
        (lambda: Join(itself, a=itself, b=two()[1]), "a=<function itself.*: expected a node of the graph, or a list"),
        (lambda: Join(itself, **dict.fromkeys("ab", two()[0])), r"the branches 'a' and 'b' both end at N\(a\)"),
        (lambda: Map(itself) | Join(itself, **dict(zip("ab", two(), strict=True))), "stands in a graph already"),
        (lambda: Join(itself, limit=0, **dict(zip("ab", two(), strict=True))), "limit=0: expected a whole number"),
        (lambda: Join(itself, timeout_s=0, **dict(zip("ab", two(), strict=True))), "timeout_s=0: expected a number"),
        (led_into_by_hand, r"N\(third\) leads into it and is no branch of it; name it: Join\(..., third=third\)"),
    ],
)
def test_what_cannot_be_joined_says_why(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        make()
