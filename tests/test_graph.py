"""What `|` makes of nodes, functions, lists and groups."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consecution.errors import GraphError
from consecution.graph import Broadcast, Group, Merge, Route, replace, sort_top_down, sort_topologically, walk
from consecution.nodes import Filter, FlatMap, Map, Node, RouterNode


def nodes(names: str) -> list[Node]:
    return [Node(name) for name in names]


def edges(node: Node) -> set[str]:
    """Every edge of the graph, as 'a>b'."""
    return {f"{up.name}>{down.name}" for up in node.all_nodes for down in up._downstream_nodes}


def upper(item: str) -> str:
    return item.upper()


def by_size(item: Any) -> int:
    return len(item) % 2


def letters(item: str) -> Any:
    yield from item


# -- lists ---------------------------------------------------------------------------------------


def test_a_list_gets_every_item_and_flows_together_again() -> None:
    a, b, c, d = nodes("abcd")
    assert (a | [b, c] | d) is a
    assert edges(a) == {"a>b", "a>c", "b>d", "c>d"}


def test_lists_nest_and_chains_stand_in_them() -> None:
    a, b, c, d, e, f, g = nodes("abcdefg")
    _ = a | [b, [c | [d, e], [f]]] | g
    assert edges(a) == {"a>b", "a>c", "a>f", "c>d", "c>e", "b>g", "d>g", "e>g", "f>g"}


def test_a_chain_that_begins_with_a_list_is_entered_at_all_its_beginnings() -> None:
    a, b, c, d = nodes("abcd")
    _ = a | ([b, c] | d)
    assert edges(a) == {"a>b", "a>c", "b>d", "c>d"}


def test_the_bare_function_in_a_list_routes_between_its_nodes() -> None:
    a, b, c, d = nodes("abcd")
    _ = a | [b, by_size, c] | d
    assert edges(a) == {"a>a.by_size", "a.by_size>b", "a.by_size>c", "b>d", "c>d"}
    (router,) = a._downstream_nodes
    assert isinstance(router, RouterNode)
    assert router.choose is by_size
    assert list(router._end_point_map) == ["b", "c"]


def test_every_end_left_of_a_route_gets_a_router_of_its_own() -> None:
    a, b, c, d, e = nodes("abcde")
    _ = a | [b, c] | [d, e, by_size]
    assert edges(a) >= {"b>b.by_size", "c>c.by_size", "b.by_size>d", "c.by_size>d"}


def test_a_node_that_can_be_called_is_a_node_and_no_router() -> None:
    class Callable_(Node):
        def __call__(self) -> None: ...

    a, b = nodes("ab")
    _ = a | [b, Callable_("c")]
    assert edges(a) == {"a>b", "a>c"}


def test_a_node_met_twice_in_nested_lists_is_connected_once() -> None:
    a, b, c = nodes("abc")
    _ = a | [b, [b, c]]
    assert [n.name for n in a._downstream_nodes] == ["b", "c"]


# -- groups --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("in_words", "as_list"),
    [
        (lambda a, b, c, d: a | Broadcast([b, c]) | d, lambda a, b, c, d: a | [b, c] | d),
        (lambda a, b, c, d: a | (Broadcast([b, c]) | d), lambda a, b, c, d: a | [b, c] | d),
        (lambda a, b, c, d: a | (Merge([b, c]) | d), lambda a, b, c, d: a | ([b, c] | d)),
        (lambda a, b, c, d: a | Route([b, c], by_size) | d, lambda a, b, c, d: a | [b, c, by_size] | d),
        (lambda a, b, c, d: a | (Route([b, c], by_size) | d), lambda a, b, c, d: a | [b, c, by_size] | d),
        (lambda a, b, c, d: a | Merge([b, [c, d]]), lambda a, b, c, d: a | [b, c, d]),
        (lambda a, b, c, d: a | Broadcast([b, Route([c, d], by_size)]), lambda a, b, c, d: a | [b, [c, d, by_size]]),
        (lambda a, b, c, d: a | ([b, c] | Broadcast([d])), lambda a, b, c, d: a | [b, c] | d),
        (lambda a, b, c, d: a | (b | Merge([c, d])), lambda a, b, c, d: a | b | [c, d]),
    ],
)
def test_groups_say_in_words_what_lists_say(in_words: Callable[..., Node], as_list: Callable[..., Node]) -> None:
    assert edges(in_words(*nodes("abcd"))) == edges(as_list(*nodes("abcd")))


def test_a_list_left_of_a_route_stays_the_beginning_of_the_chain() -> None:
    a, b, c, d, e = nodes("abcde")
    _ = a | ([b, c] | Route([d, e], by_size))
    assert edges(a) == {
        *("a>b", "a>c", "b>b.by_size", "c>c.by_size"),
        *("b.by_size>d", "b.by_size>e", "c.by_size>d", "c.by_size>e"),
    }


def test_without_a_function_a_route_goes_round_robin() -> None:
    a, b, c = nodes("abc")
    _ = a | Route([b, c])
    assert edges(a) == {"a>a.round_robin", "a.round_robin>b", "a.round_robin>c"}


def test_a_route_can_be_named() -> None:
    a, b, c, d = nodes("abcd")
    _ = a | [b, c] | Route([d], by_size, name="choice")
    assert {"b>choice", "c>choice_2"} <= edges(a)


def test_a_route_in_a_route_routes_once_more() -> None:
    a, b, c, d = nodes("abcd")
    _ = a | Route([b, Route([c, d])], by_size)
    assert edges(a) == {
        *("a>a.by_size", "a.by_size>b", "a.by_size>a.by_size.round_robin"),
        *("a.by_size.round_robin>c", "a.by_size.round_robin>d"),
    }


def test_a_broadcast_in_a_route_is_one_choice() -> None:
    a, b, c, d, e = nodes("abcde")
    _ = a | Route([b, Broadcast([c, d], name="both")], by_size) | e
    assert edges(a) == {"a>a.by_size", "a.by_size>b", "a.by_size>both", "both>c", "both>d", "b>e", "c>e", "d>e"}


@pytest.mark.parametrize("kind", [Merge, list])
def test_a_merge_or_list_in_a_route_offers_each_of_its_nodes(kind: Callable[[list[Node]], Any]) -> None:
    a, b, c, d = nodes("abcd")
    _ = a | Route([b, kind([c, d])], by_size)
    assert list(a._downstream_nodes[0]._end_point_map) == ["b", "c", "d"]  # type: ignore[attr-defined]


def test_a_route_of_chains_is_entered_at_their_beginnings() -> None:
    a, b, c, d = nodes("abcd")
    _ = a | Route([b | c, d], by_size)
    assert edges(a) == {"a>a.by_size", "a.by_size>b", "a.by_size>d", "b>c"}


# -- functions -----------------------------------------------------------------------------------


def test_a_function_is_a_map_and_a_generator_function_a_flat_map() -> None:
    a = Node("a")
    _ = a | upper | letters | str
    first, second, third = sort_topologically([a])[1:]
    assert (type(first), first.name) == (Map, "upper")
    assert (type(second), second.name) == (FlatMap, "letters")
    assert (type(third), third.name) == (Map, "str")


def test_a_function_may_stand_left() -> None:
    b = Node("b")
    assert (upper | b) is b
    assert edges(b) == {"upper>b"}


def test_a_function_left_of_a_group_begins_the_chain() -> None:
    b, c = nodes("bc")
    chain = upper | Broadcast([b, c])
    assert isinstance(chain, Map)
    assert edges(chain) == {"upper>b", "upper>c"}


def test_names_made_from_functions_are_numbered() -> None:
    a = Node("a")
    _ = a | (lambda item: item) | upper | Broadcast([upper, upper]) | (lambda item: item)
    assert {n.name for n in a.all_nodes} == {"a", "lambda", "upper", "upper_2", "upper_3", "lambda_2"}


def test_a_name_the_user_gave_stays() -> None:
    chain = Map(upper) | Map(upper) | Node("upper")
    first, second, last = sort_topologically([chain])
    assert last.name == "upper"
    assert {first.name, second.name} == {"upper_2", "upper_3"}


def test_graphs_grown_apart_are_numbered_when_they_meet() -> None:
    left, right = Map(upper) | Map(letters), Map(upper) | [Node("x"), Node("y"), by_size]
    _ = left | right
    assert edges(left) == {
        *("upper>letters", "letters>upper_2", "upper_2>upper_2.by_size"),
        *("upper_2.by_size>x", "upper_2.by_size>y"),
    }
    assert list(right._downstream_nodes[0]._end_point_map) == ["x", "y"]  # type: ignore[attr-defined]


def test_two_routes_by_one_function_have_different_names() -> None:
    a, b, c, d, e = nodes("abcde")
    _ = a | Broadcast([Route([b, c], by_size), Route([d, e], by_size)])
    assert {"a>a.by_size", "a>a.by_size_2"} <= edges(a)


def test_functions_of_all_kinds_give_names() -> None:
    class Doubler:
        def __call__(self, item: int) -> int:
            return 2 * item

    class Repeater:
        def __call__(self, item: int) -> Any:
            yield from (item, item)

    made = [Map(f).name for f in (len, str.strip, functools.partial(upper), Doubler(), "x".join)]
    assert made == ["len", "strip", "upper", "Doubler", "join"]
    assert [type(n).__name__ for n in sort_topologically([Node("a") | Repeater() | functools.partial(letters)])] == [
        *("Node", "FlatMap", "FlatMap"),
    ]


# -- failed edges --------------------------------------------------------------------------------


def test_handlers_stand_behind_the_failed_edge_and_not_behind_the_node() -> None:
    a, b, c, d = nodes("abcd")
    assert (a.failed | c) is a.failed
    _ = a | b
    _ = a.failed | d
    assert edges(a) == {"a>b", "a.failed>c", "c>d"}
    assert a.failed._upstream_nodes == [a]
    assert [node.name for node in sort_topologically([a])] == ["a", "b", "a.failed", "c", "d"]


def test_a_failed_edge_that_leads_nowhere_is_no_part_of_the_graph() -> None:
    a, b = nodes("ab")
    assert a.failed is a.failed
    _ = a | b
    assert a.all_nodes == {a, b}


def test_several_failed_edges_lead_to_one_handler_and_back_into_the_stream() -> None:
    a, b, c, d = nodes("abcd")
    _ = a | b
    _ = [a.failed, b.failed] | c
    _ = [b, c] | d
    assert edges(a) == {"a>b", "a.failed>c", "b.failed>c", "b>d", "c>d"}


def test_a_failed_edge_follows_the_name_and_the_place_of_its_node() -> None:
    a, b, c = nodes("abc")
    _ = a | b
    _ = b.failed | c
    b.rename("x")
    assert edges(a) == {"a>x", "x.failed>c"}
    other = Node("x")
    replace(b, other)
    assert edges(a) == {"a>x", "x.failed>c"}
    assert c._upstream_nodes == [other.failed]


def test_a_node_with_an_attribute_of_that_name_keeps_it() -> None:
    node = Node("a", failed=3)
    assert node.failed == 3


def test_a_cycle_through_a_failed_edge_is_refused() -> None:
    a, b, c = nodes("abc")
    _ = a | b
    _ = b.failed | c
    with pytest.raises(GraphError, match="not acyclic"):
        c.add_downstream(a)
    with pytest.raises(GraphError, match="not acyclic"):
        _ = a.failed | a
    assert edges(a) == {"a>b", "b.failed>c"}


# -- refusals ------------------------------------------------------------------------------------


async def coroutine(item: Any) -> None: ...


async def async_generator(item: Any) -> Any:
    yield item


class AsyncObject:
    async def __call__(self, item: Any) -> None: ...


@pytest.mark.parametrize(
    ("compose", "message"),
    [
        (lambda a, b: a | "b", "Don't know what to do with 'b'"),
        (lambda a, b: a | 7, "Don't know what to do with 7"),
        (lambda a, b: a | None, "Don't know what to do with None"),
        (lambda a, b: a | [7], "Don't know what to do with 7"),
        (lambda a, b: a | [b, "c"], "Don't know what to do with 'c'"),
        (lambda a, b: "b" | a, "Don't know what to do with 'b'"),
        (lambda a, b: a | [], "is empty; put at least one node into it"),
        (lambda a, b: [] | a, "is empty"),
        (lambda a, b: a | [b, []], "is empty"),
        (lambda a, b: Broadcast([]), "Broadcast: the list of nodes is empty"),
        (lambda a, b: Merge(b), "Merge: expected a list of nodes, found N"),
        (lambda a, b: Route("ab"), "Route: expected a list of nodes, found 'ab'"),
        (lambda a, b: a | Node, r"Node is a class of nodes, not a node: write Node\(...\)"),
        (lambda a, b: a | [upper], r"there are none; if it is a step, wrap it: Map\(function\)"),
        (lambda a, b: a | [b, upper, len], "one bare function may stand in it, its router; found upper, len"),
        (lambda a, b: [b, upper] | a, r"write Map\(upper\)"),
        (lambda a, b: a | [b] * 2, r"N\(b\) stands in it 2 times; for replicas multiply each node"),
        (lambda a, b: a | [b, b], r"stands in it 2 times.*other names, copy it: \[b, b\.copy\("),
        (lambda a, b: [b] * 2 | a, "2 times"),
        (lambda a, b: Broadcast([b]) * 2, r"only a node has replicas; write them at the nodes inside: \[a \* 2, b\]"),
        (lambda a, b: 2 * Merge([b]), "only a node has replicas"),
        (lambda a, b: Broadcast([b]).by(len), "only a node is grouped by key"),
        (
            lambda a, b: Route([b], by=3),  # type: ignore[arg-type]
            "by=3.*: expected a function that returns a member's name or index",
        ),
        (lambda a, b: a | Map(async_generator), "async_generator is async, and only a step of its own may be"),
        (lambda a, b: a | Map(AsyncObject()), "AsyncObject is async"),
        (lambda a, b: a | Filter(coroutine), "coroutine is async"),
        (lambda a, b: a | [b, coroutine], "coroutine is async"),
        (lambda a, b: a.by(coroutine), "coroutine is async"),
        (lambda a, b: a | Node("a"), r"names must be unique.  Duplicates \['a'\] found"),
        (lambda a, b: a | b | a, "not acyclic"),
        (lambda a, b: a | a, r"N\(a\) can't be downstream to itself"),
    ],
)
def test_what_makes_no_graph_is_refused_with_a_reason(compose: Callable[[Node, Node], Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        compose(*nodes("ab"))


def test_a_refused_edge_leaves_the_graph_as_it_was() -> None:
    a, b = nodes("ab")
    _ = a | b
    with pytest.raises(GraphError):
        b.add_downstream(Node("a"))
    assert edges(a) == {"a>b"}


def test_groups_print_as_they_are_written() -> None:
    assert repr(Broadcast([Node("a"), Merge([Node("b")])])) == "Broadcast([N(a), Merge([N(b)])])"
    assert isinstance(Route([Node("a")]), Group)


# -- walking and sorting -------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    """A graph below its first node: every other node has one or more parents before it."""
    made = [Node("0")]
    for number in range(1, draw(st.integers(1, 9))):
        node = Node(str(number))
        for parent in draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True)):
            parent.add_downstream(node)
        made.append(node)
    return made


@given(graphs(), st.sampled_from([sort_topologically, sort_top_down]))
def test_parents_are_sorted_before_their_children(made: list[Node], sort: Callable[[list[Node]], list[Node]]) -> None:
    ordered = sort(made[:1])
    assert set(ordered) == set(made)
    assert len(ordered) == len(made)
    place = {node: index for index, node in enumerate(ordered)}
    for node in made:
        assert all(place[node] < place[child] for child in node._downstream_nodes)


@given(graphs(), st.sampled_from(["breadth_first", "depth_first"]))
def test_every_walk_meets_each_node_once(made: list[Node], how: str) -> None:
    for node in made:
        assert sorted(walk(node, "both", how)) == sorted(made)
    assert set(walk(made[0], "down", how)) == set(made)


@pytest.mark.parametrize(
    ("direction", "how", "met"),
    [
        ("down", "breadth_first", "abcdef"),
        ("down", "depth_first", "acfebd"),
        ("up", "breadth_first", "a"),
        ("both", "breadth_first", "abcdef"),
    ],
)
def test_walks_go_in_the_order_of_0_2_0(direction: str, how: str, met: str) -> None:
    a, b, c, d, e, f = nodes("abcdef")
    for up, down in ((a, b), (a, c), (b, d), (c, e), (c, f)):
        up.add_downstream(down)
    assert "".join(n.name for n in a.walk(direction, how, as_ordered_list=True)) == met
    assert a.walk(direction, how) == set(a.walk(direction, how, as_ordered_list=True))


def test_top_down_order_takes_one_branch_after_the_other_and_joins_last() -> None:
    a, b, c, d, e = nodes("abcde")
    _ = a | [b | d, c] | e
    assert [n.name for n in sort_top_down([a])] == ["a", "b", "d", "c", "e"]
    assert [n.name for n in sort_topologically([a])] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("wrong", [{"direction": "left"}, {"how": "sideways"}])
def test_unknown_words_for_a_walk_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"found '{next(iter(wrong.values()))}'"):
        Node("a").walk(**wrong)  # type: ignore[arg-type]


def test_long_chains_are_walked_without_recursion() -> None:
    top = last = Node("0")
    for number in range(1, 1500):
        node = Node(str(number))
        last._downstream_nodes.append(node)
        node._upstream_nodes.append(last)
        last = node
    top.top_down_call("begin")
    assert len(top.all_nodes) == 1500
