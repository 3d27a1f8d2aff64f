"""A chain in several places: copies under other names, and what is refused without them."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from consecution import Broadcast, Map, Merge, Node, Pipeline, Producer, Route, graph
from consecution.errors import GraphError


def small_or_large(item: int) -> str:
    return "small" if item < 10 else "large"


def sort_by_size() -> Any:
    """A chain with a route by name, a branch, an output and a failed edge."""
    splitting = Splitting("splitting")
    splitting["odd"] | Map(str, "odds")
    splitting.failed | Map(repr, "bad")
    return splitting | Route([Map(abs, "small"), Map(abs, "large")], by=small_or_large) | (Map(abs, "last") * 2)


class Splitting(Node):
    def __init__(self, name: str, seen: list[int] | None = None) -> None:
        super().__init__(name)
        self.seen = [] if seen is None else seen

    def process(self, item: int) -> None:
        self.seen.append(item)
        self.push(item, to="odd")
        self.push(item)


def test_a_copied_chain_has_the_same_shape_under_other_names() -> None:
    chain = sort_by_size()
    twin = chain.copy("b_")

    assert {node.name for node in chain.all_nodes} & {node.name for node in twin.all_nodes} == set()
    edges = {(above.name, below.name) for above in twin.all_nodes for below in graph.children_of(above)}
    assert edges == {
        ("b_splitting", "b_splitting.small_or_large"),
        ("b_splitting.small_or_large", "b_small"),
        ("b_splitting.small_or_large", "b_large"),
        ("b_small", "b_last"),
        ("b_large", "b_last"),
        ("b_splitting", "b_splitting[odd]"),
        ("b_splitting[odd]", "b_odds"),
        ("b_splitting", "b_splitting.failed"),
        ("b_splitting.failed", "b_bad"),
    }
    assert next(node.replicas for node in twin.all_nodes if node.name == "b_last") == 2


def test_a_copied_chain_works_like_the_first_and_shares_nothing_with_it() -> None:
    chain, made = sort_by_size(), []
    twin = chain.copy("b_").copy("c_")
    Pipeline(Map(abs, "top") | [chain, twin] | Map(made.append, "end")).consume([5, 12])

    assert sorted(made) == [5, 5, 12, 12]
    assert (chain.seen, twin.seen) == ([5, 12], [5, 12])


def test_groups_are_copied_with_their_routes_and_nest() -> None:
    inner = Route([Map(abs, "a"), Map(abs, "b")], name="inner")
    route = Route(
        [inner, Broadcast([Map(abs, "c"), Map(abs, "d")], name="both")], by=lambda item: ["inner", "both"][item % 2]
    )
    made: list[int] = []
    twin = Map(abs, "top") | route.copy("x_") | made.append
    Pipeline(twin).consume([1, 2, 4, 6])

    assert sorted(made) == [1, 1, 2, 4, 6]
    assert [node.name for node in graph.flatten(route)] == ["a", "b", "c", "d"]
    assert {"x_inner", "x_both", "x_a", "x_d"} <= {node.name for node in twin.all_nodes}


def test_a_group_at_the_beginning_of_a_chain_is_copied_with_what_follows() -> None:
    merged = Merge([Map(abs, "a"), Map(abs, "b")]) | Map(abs, "c")
    made: list[int] = []
    Pipeline(Map(abs, "top") | [merged.copy("x_"), merged.copy("y_")] | made.append).consume([7])

    assert made == [7] * 4


def test_names_of_copies_that_nobody_gave_are_numbered_apart_like_all_others() -> None:
    chain = Map(abs) | abs
    twin = Map(abs, "top") | chain.copy("x_") | abs

    assert [node.name for node in twin.walk(as_ordered_list=True)] == ["top", "x_abs", "x_abs_2", "abs"]


@pytest.mark.parametrize("use", [lambda a, c: a | c, lambda a, c: a | [c, Map(abs, "z")], lambda a, c: [a] | c])
def test_a_chain_in_a_second_place_is_refused_with_the_remedy(use: Any) -> None:
    chain = Map(abs, "a") | Map(abs, "b")
    _ = Map(abs, "first") | chain | Map(abs, "end")

    with pytest.raises(GraphError, match=r'N\(a\) stands in a graph already, behind N\(first\)\..*\.copy\("left_"\)'):
        use(Map(abs, "second"), chain)


def test_a_group_in_a_second_place_is_refused_too() -> None:
    route = Route([Map(abs, "a"), Map(abs, "b")])
    _ = Map(abs, "first") | route

    with pytest.raises(GraphError, match="stands in a graph already"):
        _ = Map(abs, "second") | route


def test_a_chain_may_be_drawn_in_any_order_and_put_elsewhere_when_it_is_free() -> None:
    end = Map(abs, "end")
    top = Map(abs, "top") | (Map(abs, "middle") | ([Map(abs, "a"), Map(abs, "b")] | end))
    assert len(top.all_nodes) == 5

    first, second = Map(abs, "first"), Map(abs, "second")
    _ = first | second
    first.remove_downstream(second)
    assert (Map(abs, "other") | second)._downstream_nodes == [second]


@pytest.mark.parametrize(
    ("copy", "message"),
    [
        (lambda: Map(abs).copy(""), "expected a text to put before the names"),
        (lambda: (Producer([1]) | Map(abs, "a")).copy("x_"), "begins with N\\(producer\\); keep a chain"),
        (lambda: Node("a", lock=threading.Lock()).copy("x_"), r"N\(a\)\.copy\('x_'\): what the node holds cannot be"),
    ],
)
def test_what_cannot_be_copied_says_why(copy: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        copy()
