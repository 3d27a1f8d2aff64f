from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consecution import (
    AsyncMap,
    Broadcast,
    Chunk,
    GroupByNode,
    IterableSource,
    KeyedNode,
    Node,
    Pipeline,
    Producer,
    Reduce,
    Route,
    Sink,
    StatefulNode,
    TextLines,
)
from consecution.errors import GraphError, UsageError
from consecution.options import Options
from consecution.plan import (
    EdgePlan,
    Grouping,
    Plan,
    RoutePlan,
    available_cores,
    describe,
    make_plan,
    set_apart,
    to_dot,
    to_mermaid,
)

ANY_LEVEL = Options.of(robustness="none")


class Pass(Node):
    def process(self, item: Any) -> None:
        self.push(item)


class SavingSink(Sink):
    """Given its items after the decision."""


class TellingSink(Sink):
    """Given its items while they travel."""

    after_decision = False


class CountsUp(Pass):
    def end(self) -> None:
        self.push("the end")


def by_first(item: Any) -> Any:
    return item[0]


def plan_of(top: Node, *, has_iterable: bool = True, options: Options = ANY_LEVEL) -> Plan:
    return make_plan(top, options, has_iterable=has_iterable)


def arrows(plan: Plan) -> list[tuple[str, str, Grouping]]:
    return [(edge.source, edge.target, edge.grouping) for edge in plan.edges]


def test_an_iterable_is_a_source_before_the_top_node() -> None:
    plan = plan_of(Pass("a") | Pass("b"))

    assert plan.sources == ("source",)
    assert arrows(plan) == [("source", "a", Grouping.SINGLE), ("a", "b", Grouping.SINGLE)]
    assert [(node.name, node.is_source, node.parents) for node in plan.nodes] == [
        ("source", True, ()),
        ("a", False, ("source",)),
        ("b", False, ("a",)),
    ]


def test_the_source_avoids_names_that_are_taken() -> None:
    assert plan_of(Pass("source") | Pass("source_2")).sources == ("source_3",)


@pytest.mark.parametrize("has_iterable", [False, True])
def test_a_producer_keeps_its_place_and_name_whoever_gives_the_items(has_iterable: bool) -> None:
    plan = plan_of(Producer(range(3), name="numbers") | Pass("a"), has_iterable=has_iterable)

    assert plan.sources == ("numbers",)
    assert arrows(plan) == [("numbers", "a", Grouping.SINGLE)]


def test_tasks_are_numbered_through_with_the_source_first() -> None:
    plan = plan_of(Pass("a") * 2 | Pass("b"))

    assert [task.name for task in plan.tasks] == ["source.0", "a.0", "a.1", "b.0"]
    assert [task.index for task in plan.tasks] == [0, 1, 2, 3]
    assert plan.tasks_of("a") == (1, 2)
    assert plan.task(2).replica == 1


def test_edges_are_found_by_their_index() -> None:
    plan = plan_of(Pass("a") | [Pass("b"), Pass("c")])

    assert all(plan.edge(edge.index) is edge for edge in plan.edges)


def test_parents_come_before_children_however_the_graph_is_drawn() -> None:
    plan = plan_of(Pass("a") | [Pass("b") | Pass("c"), Pass("d")] | Pass("e"))

    order = {node.name: place for place, node in enumerate(plan.nodes)}
    assert all(order[edge.source] < order[edge.target] for edge in plan.edges)
    assert set(plan.node("e").parents) == {"c", "d"}


@pytest.mark.parametrize(
    ("target", "grouping", "keyed"),
    [
        (lambda: Pass("b"), Grouping.SINGLE, False),
        (lambda: Pass("b").by(by_first), Grouping.SINGLE, False),
        (lambda: Pass("b") * 3, Grouping.SHUFFLE, False),
        (lambda: (Pass("b") * 3).by(by_first), Grouping.BY_KEY, True),
    ],
)
def test_replicas_and_key_decide_the_grouping(target: Callable[[], Node], grouping: Grouping, keyed: bool) -> None:
    edge = plan_of(Pass("a") | target()).edges[1]

    assert edge.grouping is grouping
    assert edge.key_function is (by_first if keyed else None)


@pytest.mark.parametrize(
    ("top", "sharers"),
    [
        (lambda: Pass("a") | Pass("b"), {"source": 1}),
        (lambda: Pass("a") * 3, {"source": 3}),
        (lambda: Pass("a") | (Pass("b") * 2 | (Pass("c") * 4)), {"source": 4}),
        (lambda: Pass("a") | [Pass("b") * 2, Pass("c") * 4], {"source": 4}),
        (lambda: Pass("a") | [Pass("b"), Pass("c") * 4, lambda item: "b"], {"source": 4}),
        (lambda: (Pass("a") * 4).by(by_first), {"source": 1}),  # each takes its part of every batch
        (lambda: Chunk(3, name="chunk") | (Pass("a") * 4), {"source": 1, "chunk": 4}),
        (lambda: Pass("a") * 2 | Chunk(3, name="chunk") | (Pass("b") * 4), {"source": 2, "chunk": 4}),
    ],
)
def test_the_replicas_of_the_widest_node_share_what_comes_to_them(
    top: Callable[[], Node], sharers: dict[str, int]
) -> None:
    plan = plan_of(top(), options=Options.of(mode="process"))

    assert {name: plan.sharers(plan.tasks_of(name)[0]) for name in sharers} == sharers


def test_the_shares_of_a_source_have_an_equal_part_of_the_replicas_each() -> None:
    plan = plan_of(Producer(range(10)) * 2 | (Pass("a") * 5), has_iterable=False, options=Options.of(mode="process"))

    assert [plan.sharers(task) for task in plan.source_tasks] == [3, 3]


def test_nothing_is_shared_where_everything_runs_in_one_thread() -> None:
    assert plan_of(Pass("a") * 3, options=Options.of(mode="inline")).sharers(0) == 1


async def _look_up(item: Any) -> Any:
    return item


@pytest.mark.parametrize(
    ("top", "workers"),
    [
        (lambda: Pass("a") | Pass("b"), 2),
        (lambda: Pass("a") | (Pass("b") * 4), 5),
        (lambda: Pass("a") * 4 | Chunk(3, name="chunk") | Pass("c"), 4),  # what is staged waits there
        (lambda: Pass("a") | (Pass("b") * 4).by(by_first), 0),
        (lambda: Chunk(3, name="chunk") | Pass("c"), 0),
        (lambda: Pass("a") | AsyncMap(_look_up), 0),
    ],
)
def test_so_many_workers_are_at_the_trees_of_a_source_until_they_are_staged(
    top: Callable[[], Node], workers: int
) -> None:
    def workers_below(**options: Any) -> int:
        return plan_of(top(), options=Options.of(**options)).workers_below(0)

    assert workers_below(mode="process") == workers
    assert workers_below(mode="process", workers=2) == min(2, workers)
    assert workers_below(mode="inline") == 0


def test_shares_of_a_source_share_the_workers_too() -> None:
    plan = plan_of(
        Producer(range(10)) * 2 | Pass("a"), has_iterable=False, options=Options.of(mode="process", workers=2)
    )

    assert [plan.workers_below(task) for task in plan.source_tasks] == [1, 1]


@pytest.mark.parametrize(
    ("top", "deciders"),
    [
        (lambda: Pass("a") | SavingSink("s"), {"source": ["s.0"]}),
        (lambda: Pass("a") * 3 | SavingSink("s") * 2, {"source": ["s.0", "s.1"]}),
        (lambda: Chunk(3, name="chunk") | Pass("a") | SavingSink("s"), {"source": ["chunk.0"], "chunk": ["s.0"]}),
        (lambda: Pass("a") | [SavingSink("s"), Chunk(3, name="chunk")], {"source": ["s.0", "chunk.0"], "chunk": []}),
        (lambda: Pass("a") | [SavingSink("s"), Pass("b")], {"source": ["s.0"]}),
        (lambda: Pass("a") | Pass("b"), {"source": []}),
        # To such a sink the highest generation is the one that counts: it may not be that of another.
        (lambda: Pass("a") | [SavingSink("s"), TellingSink("t")], {"source": []}),
    ],
)
def test_the_durable_nodes_at_the_end_of_its_trees_may_decide_for_an_origin(
    top: Callable[[], Node], deciders: dict[str, list[str]]
) -> None:
    plan = plan_of(top(), options=Options.of(robustness="robust"))

    found = {name: plan.deciders(plan.tasks_of(name)[0]) for name in deciders}

    assert {name: [plan.task(task).name for task in tasks] for name, tasks in found.items()} == deciders


def test_without_a_journal_nobody_decides() -> None:
    plan = plan_of(Pass("a") | SavingSink("s"), options=Options.of(robustness="track"))

    assert plan.deciders(0) == ()


def test_a_router_becomes_part_of_the_node_before_it() -> None:
    plan = plan_of(Pass("a") | [Pass("b"), Pass("c") * 2, by_first])

    assert [node.name for node in plan.nodes] == ["source", "a", "b", "c"]
    (route,) = plan.node("a").outlets
    assert isinstance(route, RoutePlan)
    assert (route.choose, route.choices) == (by_first, ("b", "c"))
    assert [branch[0] for branch in route.outlets] == list(plan.edges[1:])
    assert arrows(plan)[1:] == [("a", "b", Grouping.SINGLE), ("a", "c", Grouping.SHUFFLE)]


def test_a_route_without_a_function_chooses_round_robin() -> None:
    (route,) = plan_of(Pass("a") | Route([Pass("b"), Pass("c")])).node("a").outlets

    assert isinstance(route, RoutePlan)
    assert route.choose is None


def test_a_broadcast_has_an_outlet_for_each_way() -> None:
    outlets = plan_of(Pass("a") | Broadcast([Pass("b"), Pass("c")])).node("a").outlets

    assert [outlet.target for outlet in outlets if isinstance(outlet, EdgePlan)] == ["b", "c"]


def test_sinks_are_known_as_sinks(tmp_path: Any) -> None:
    plan = plan_of(Pass("a") | TextLines("file", tmp_path / "out.txt"))

    assert [node.name for node in plan.nodes if node.is_sink] == ["file"]


def test_a_pipeline_without_a_source_is_refused_with_the_remedy() -> None:
    with pytest.raises(UsageError, match=r"begin it with Producer\(\.\.\.\), or give run\(\) an iterable"):
        plan_of(Pass("a"), has_iterable=False)


@pytest.mark.parametrize(
    "node",
    [lambda: CountsUp("n"), lambda: Chunk(3, name="n"), lambda: GroupByNode("n")],
    ids=["overrides end", "Chunk", "GroupByNode"],
)
def test_nodes_that_collect_until_the_end_are_durable_in_robust(node: Callable[[], Node]) -> None:
    plan = plan_of(Pass("a") | node(), options=Options())

    assert [planned.name for planned in plan.nodes if planned.durable] == ["n"]


def test_the_description_says_which_nodes_are_durable() -> None:
    text = describe(plan_of(Pass("a") | CountsUp("n"), options=Options()))

    kinds = {line.split()[0]: line.split()[2:4] for line in text.splitlines()[3:6]}
    assert (kinds["a"][0], kinds["n"]) == ("node", ["durable", "node"])


@pytest.mark.parametrize("level", ["none", "confirm", "track"])
def test_other_levels_take_nodes_that_collect_until_the_end(level: str) -> None:
    plan = plan_of(Pass("a") | CountsUp("n"), options=Options.of(robustness=level))

    assert [node.name for node in plan.nodes if node.wants_end] == ["n"]
    assert not any(node.durable for node in plan.nodes)


def test_a_producer_below_another_node_is_refused() -> None:
    top = Pass("a")
    top.add_downstream(Producer(range(3), name="late"))

    with pytest.raises(GraphError, match="a producer begins a pipeline"):
        plan_of(top)


def test_a_producer_has_no_key_and_only_one_that_can_be_split_has_replicas() -> None:
    with pytest.raises(GraphError, match="nothing flows into a producer, so it has no key"):
        plan_of(Producer(range(3)).by(by_first) | Pass("a"))
    with pytest.raises(UsageError, match=r"N\(producer\) \* 2: IterableSource\(dict\) is read in one place; give repl"):
        plan_of(Producer({1: 2}) * 2 | Pass("a"))

    plan = make_plan(Producer(range(3), name="numbers") * 2 | Pass("a"), ANY_LEVEL)

    assert plan.sources == ("numbers.0", "numbers.1")
    assert [task.name for task in plan.tasks] == ["numbers.0", "numbers.1", "a.0"]


def test_a_second_top_node_is_refused_unless_all_are_producers() -> None:
    with pytest.raises(GraphError, match=r"not with N\(first\), N\(second\)"):
        plan_of([Pass("first"), Pass("second")] | Pass("below"))
    with pytest.raises(GraphError, match=r"not with N\(one\)"):
        plan_of([Producer([1], name="numbers"), Pass("one")] | Pass("end"))


def test_several_sources_come_first_each_with_its_tasks_and_parents() -> None:
    last = Pass("last")
    _ = [Producer([1], name="a") | Pass("x"), Producer([2], name="b")] | last

    plan = make_plan(last, Options.of())

    assert plan.sources == ("a", "b")
    assert [task.name for task in plan.tasks] == ["a.0", "b.0", "x.0", "last.0"]
    assert [(node.name, node.is_source, node.parents) for node in plan.nodes] == [
        ("a", True, ()),
        ("b", True, ()),
        ("x", False, ("a",)),
        ("last", False, ("b", "x")),
    ]


def test_an_iterable_takes_the_place_of_one_source_only() -> None:
    top: Any = [Producer([1]), Producer([2])] | Pass("last")

    with pytest.raises(UsageError, match=r"has N\(producer\), N\(producer_2\): make it one more of them, Producer"):
        make_plan(top, Options.of(), has_iterable=True)


def test_a_source_may_not_be_called_like_a_durable_replica() -> None:
    with pytest.raises(GraphError, match=r"the source 'sum\.0' has the name of a replica of N\(sum\): rename it"):
        make_plan(Producer([1], name="sum.0") | CountsUp("sum"), Options.of())


def test_sources_are_dealt_out_to_the_workers() -> None:
    sources: Any = [Producer([1], name=name) for name in "abc"]

    plan = make_plan(sources | Pass("last"), Options.of(mode="process", workers=2))

    assert [plan.worker_of(task).index for task in plan.source_tasks] == [0, 1, 0]


def test_two_nodes_of_one_name_are_refused() -> None:
    top, twin = Pass("a"), Pass("b")
    _ = top | [twin, Pass("c")]
    twin.rename("c")

    with pytest.raises(GraphError, match="c"):
        plan_of(top)


def test_a_loop_is_refused() -> None:
    top, below = Pass("a"), Pass("b")
    _ = top | below
    below._downstream_nodes.append(below)

    with pytest.raises(GraphError, match="acyclic"):
        plan_of(top)


def test_a_sink_with_something_behind_it_is_refused(tmp_path: Any) -> None:
    with pytest.raises(GraphError, match="a sink ends a pipeline"):
        plan_of(Pass("a") | TextLines("file", tmp_path / "out.txt") | Pass("b"))


def test_a_sink_with_more_replicas_than_it_can_have_is_refused(tmp_path: Any) -> None:
    with pytest.raises(GraphError, match="1 replica only"):
        plan_of(Pass("a") | TextLines("file", tmp_path / "out.txt") * 2)


def test_routes_that_lead_elsewhere_than_their_nodes_are_refused() -> None:
    top, lost = Pass("a"), Pass("b")
    _ = top | [lost, Pass("c"), by_first]
    (router,) = top._downstream_nodes
    router.remove_downstream(lost)

    with pytest.raises(GraphError, match="routes"):
        plan_of(top)


def test_the_signature_stays_when_the_same_graph_is_drawn_again() -> None:
    assert plan_of(Pass("a") | Pass("b") * 2).signature == plan_of(Pass("a") | Pass("b") * 2).signature


def test_the_signature_ignores_code_and_options() -> None:
    one = plan_of(Pass("a") | Pass("b"))
    other = plan_of(CountsUp("a") | Pass("b"), options=Options.of(robustness="track", retries=7))

    assert one.signature == other.signature


@pytest.mark.parametrize(
    "changed",
    [
        lambda: Pass("a") | Pass("b") * 3,
        lambda: Pass("a") | Pass("renamed") * 2,
        lambda: Pass("a") | (Pass("b") * 2).by(by_first),
        lambda: Pass("a") | [Pass("b") * 2, Pass("c")],
        lambda: Pass("a"),
    ],
    ids=["replicas", "name", "grouping", "one more", "one less"],
)
def test_the_signature_changes_with_the_shape(changed: Callable[[], Node]) -> None:
    assert plan_of(changed()).signature != plan_of(Pass("a") | Pass("b") * 2).signature


def test_the_signature_tells_a_route_from_a_broadcast() -> None:
    routed = plan_of(Pass("a") | Route([Pass("b"), Pass("c")], by_first))
    broadcast = plan_of(Pass("a") | Broadcast([Pass("b"), Pass("c")]))

    assert routed.signature != broadcast.signature


def test_a_pipeline_plans_without_starting() -> None:
    plan = Pipeline(Pass("a")).plan([1, 2], robustness="track")

    assert plan.options == Options.of(robustness="track")


def test_the_description_names_tasks_edges_and_routes() -> None:
    text = describe(plan_of(Pass("a") * 9 | [Pass("b"), Pass("c"), by_first]))

    assert "12 tasks" in text
    assert "a.0, a.1, a.2, a.3, ... a.8" in text
    assert "one of, by a.by_first" in text


def with_failed_edge() -> tuple[Node, Node]:
    """A node, and the top of the graph: what fails there goes to two handlers."""
    a = Pass("a") * 2
    a.failed | [Pass("mend") * 2, Pass("bad")]
    return a, a | Pass("good")


def test_a_failed_edge_leads_from_its_node_to_the_handlers() -> None:
    plan = plan_of(with_failed_edge()[1])

    assert [(e.source, e.target, e.grouping, e.failed) for e in plan.edges] == [
        ("source", "a", Grouping.SHUFFLE, False),
        ("a", "good", Grouping.SINGLE, False),
        ("a", "mend", Grouping.SHUFFLE, True),
        ("a", "bad", Grouping.SINGLE, True),
    ]
    assert plan.node("a").outlets == (plan.edge(1),)
    assert plan.node("a").failed_outlets == (plan.edge(2), plan.edge(3))
    assert plan.node("mend").parents == ("a",)
    assert [node.name for node in plan.nodes] == ["source", "a", "good", "mend", "bad"]


def test_a_failed_edge_may_route_and_the_sources_own_is_one_too() -> None:
    source = Producer([1])
    source.failed | [Pass("b"), Pass("c"), by_first]

    plan = plan_of(source | Pass("a"), has_iterable=False)

    (route,) = plan.node("producer").failed_outlets
    assert isinstance(route, RoutePlan)
    assert (route.name, route.choices) == ("producer.failed.by_first", ("b", "c"))
    assert all(edge.failed for branch in route.outlets for edge in branch if isinstance(edge, EdgePlan))


def test_a_failed_edge_changes_the_signature_once_it_leads_somewhere() -> None:
    plain, looked_at, handled, broadcast = Pass("a"), Pass("a"), Pass("a"), Pass("a")
    assert looked_at.failed
    handled.failed | Pass("bad")
    broadcast | Pass("bad")

    signatures = [plan_of(top | Pass("good")).signature for top in (plain, looked_at, handled)]

    assert signatures[0] == signatures[1] != signatures[2]
    assert plan_of(handled).signature != plan_of(broadcast).signature


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.failed * 2, "give replicas to the node after it"),
        (lambda a: a.failed.by(by_first), "give replicas to the node after it"),
        (lambda a: a.failed.on_error("park"), r"part of the node before it; say on_error\(...\) there"),
        (lambda a: a.failed.failed | Pass("x"), "part of the node before it; say .failed there"),
        (lambda a: a._downstream_nodes[0].failed | Pass("x"), "a router is part of the node before it; say .failed"),
    ],
)
def test_a_failed_edge_is_no_node_of_its_own(change: Callable[[Node], Any], message: str) -> None:
    a = Pass("a")
    a | [Pass("b"), Pass("c"), by_first]
    a.failed | Pass("bad")
    change(a)

    with pytest.raises(GraphError, match=message):
        plan_of(a)


def test_pictures_draw_failed_edges_apart() -> None:
    plan = plan_of(with_failed_edge()[1])

    assert "a -> mend    shuffle   failed items" in describe(plan)
    assert '    n1 -.->|"failed, shuffle"| n3' in to_mermaid(plan).splitlines()
    assert '  n1 -> n4 [label="failed", style=dashed];' in to_dot(plan).splitlines()


def test_a_mermaid_picture_shows_every_node_and_edge() -> None:
    text = to_mermaid(plan_of(Pass('a "b" <c>') | Pass("d") * 2))

    assert text.splitlines() == [
        "flowchart LR",
        '    n0(["source"])',
        '    n1["a &quot;b&quot; &lt;c&gt;"]',
        '    n2["d x 2"]',
        "    n0 --> n1",
        '    n1 -->|"shuffle"| n2',
    ]


def test_a_dot_picture_quotes_names() -> None:
    text = to_dot(plan_of(Pass('a "b"')))

    assert 'n1 [label="a \\"b\\"", shape=box];' in text
    assert text.endswith("}")


# -- workers -------------------------------------------------------------------------------------


class Sums(KeyedNode):
    def key(self, item: Any) -> Any:
        return item

    def process(self, item: Any) -> None:
        self.push(item)


class Watches(StatefulNode):
    def process(self, item: Any) -> None:
        self.push(item)


class Ticks(Pass):
    def on_timer(self) -> None:
        self.push("tick")


def placed(below: Node, workers: Any, *, cores: int | None = None, **options: Any) -> Plan:
    return make_plan(Producer([], name="in") | below, Options.of(workers=workers, **options), cores=cores)


def crews(plan: Plan) -> list[list[str]]:
    """The names of the tasks of each worker."""
    return [[plan.task(task).name for task in worker.tasks] for worker in plan.workers]


def replicas(plan: Plan) -> dict[str, int]:
    return {node.name: node.replicas for node in plan.nodes}


def test_without_more_words_every_task_has_a_worker_of_its_name() -> None:
    plan = plan_of(Pass("a") * 2 | Pass("b"), options=Options())

    assert [worker.name for worker in plan.workers] == [task.name for task in plan.tasks]
    assert [worker.tasks for worker in plan.workers] == [(0,), (1,), (2,), (3,)]
    assert arrows(plan)[1:] == [("a", "b", Grouping.SINGLE)]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_what_keeps_nothing_is_spread_over_all_workers_and_nothing_else_is(count: int, tmp_path: Path) -> None:
    below = Pass("plain") | Sums("keyed") | Watches("stateful") | CountsUp("ends") | (Ticks("timed").every(1.0))
    below |= Pass("by key").by(by_first)
    plan = placed(below | TextLines("file", tmp_path / "out"), count)

    spread = dict.fromkeys(("plain", "keyed", "by key"), count)
    assert replicas(plan) == {"in": 1, "stateful": 1, "ends": 1, "timed": 1, "file": 1} | spread
    assert len(plan.workers) == count
    assert sorted(task for worker in plan.workers for task in worker.tasks) == list(range(len(plan.tasks)))
    for crew in crews(plan):
        assert {"plain", "keyed", "by key"} <= {name.partition(".")[0] for name in crew}


def test_a_plain_node_at_the_end_of_the_graph_is_not_spread() -> None:
    """It may be a sink of a user's own making."""
    assert replicas(placed(Pass("a") | Pass("last"), 3)) == {"in": 1, "a": 3, "last": 1}


@pytest.mark.parametrize("given", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_replicas_that_are_given_are_exactly_those(given: int, count: int) -> None:
    plan = placed(Pass("a") * given | Sums("k") * given | Pass("b") | Pass("c"), count)

    assert (replicas(plan)["a"], replicas(plan)["k"], replicas(plan)["b"]) == (given, given, count)
    homes = [plan.worker_of(task).index for task in plan.tasks_of("a")]
    assert given == 1 or homes == [replica % count for replica in range(given)]


def test_neighbours_that_are_everywhere_call_each_other() -> None:
    plan = placed(Pass("a") | Pass("b") | Sums("k") | Pass("c") | Pass("d") * 2 | Pass("e"), 3)

    groupings = {(source, target): grouping for source, target, grouping in arrows(plan)}
    assert groupings == {
        ("in", "a"): Grouping.SHUFFLE,
        ("a", "b"): Grouping.LOCAL,
        ("b", "k"): Grouping.BY_KEY,
        ("k", "c"): Grouping.LOCAL,
        ("c", "d"): Grouping.SHUFFLE,
        ("d", "e"): Grouping.SINGLE,
    }


def test_with_one_worker_everything_is_in_it_and_single() -> None:
    plan = placed(Pass("a") | Sums("k") | Pass("b"), 1)

    assert crews(plan) == [["in.0", "a.0", "k.0", "b.0"]]
    assert {grouping for _, _, grouping in arrows(plan)} == {Grouping.SINGLE}


@pytest.mark.parametrize("has_iterable", [True, False])
def test_a_source_does_not_count_on_being_in_the_worker_of_its_neighbours(has_iterable: bool) -> None:
    top: Node = Pass("a") * 2 | Pass("b")
    plan = plan_of(
        top if has_iterable else Producer([]) | top, options=Options.of(workers=1), has_iterable=has_iterable
    )

    assert plan.edges[0].grouping is Grouping.SHUFFLE


def test_more_workers_than_tasks_are_not_started() -> None:
    plan = placed(Watches("a") | Watches("b"), 7)

    assert len(plan.workers) == 3
    assert [worker.index for worker in plan.workers] == [0, 1, 2]


def test_the_source_is_in_the_first_worker_and_single_tasks_are_dealt_from_the_last(tmp_path: Path) -> None:
    files = [TextLines(name, tmp_path / name) for name in ("x", "y", "z")]
    plan = placed(Pass("a") | [files[0], files[1], files[2]], 2)

    first, second = crews(plan)
    assert first[0] == "in.0"
    assert "x.0" in second
    singles = [[name for name in crew if name in ("in.0", "x.0", "y.0", "z.0")] for crew in (first, second)]
    assert sorted(map(len, singles)) == [2, 2]


@pytest.mark.parametrize(("workers", "moves"), [("per-task", False), (1, True), (3, True)])
def test_a_source_that_is_read_by_the_caller_gets_a_worker_of_its_own(workers: Any, moves: bool) -> None:
    plan = placed(Pass("a") | Watches("b"), workers)

    apart = set_apart(plan, 0)

    assert apart.worker_of(0).tasks == (0,)
    assert (apart is not plan) == moves
    assert [worker.index for worker in apart.workers] == list(range(len(apart.workers)))
    assert sorted(t for worker in apart.workers for t in worker.tasks) == list(range(len(plan.tasks)))
    assert (apart.tasks, apart.edges, apart.signature) == (plan.tasks, plan.edges, plan.signature)
    assert set_apart(apart, 0) is apart


def test_no_worker_is_left_without_a_task() -> None:
    apart = set_apart(placed(Watches("a"), 7), 0)

    assert all(worker.tasks for worker in apart.workers)


def summed(below: Node | None = None) -> Node:
    folded = Reduce(by_first, 0, operator.add, "sum", combine=operator.add)
    return folded if below is None else folded | below


class Costly(IterableSource):
    worth_splitting = True


class Lopsided(Costly):
    def splits_evenly(self, shares: int) -> bool:
        return shares == 3


def split(below: Any, *, source: Any = None, workers: Any = 2, shares: Any = (), **options: Any) -> Plan:
    given = source or Producer(Costly(range(9)), name="numbers")
    return make_plan(given | below, Options.of(workers=workers, **options), shares=dict(shares))


@pytest.mark.parametrize(
    ("plan", "sources"),
    [
        (split(Pass("a") | summed(Watches("w"))), 2),
        (split(Pass("a") | summed(), workers=1), 1),
        (split(Pass("a") | summed(), workers="per-task"), 1),
        (split(Pass("a") | [summed(), Sums("k")]), 1),
        (split(Pass("a") | Sums("k")), 1),
        (split(Pass("a") | Sums("k"), robustness="confirm"), 2),
        (split(Sums("k"), robustness="confirm"), 1),
        (split(Pass("a") * 1 | Pass("b"), robustness="confirm"), 1),
        (split(Pass("a") | Pass("b", any_order=True)), 2),
        (split(summed(), source=Producer(range(9), name="numbers")), 1),
        (split(summed(), source=Producer(Costly(range(9)), name="numbers") * 1), 1),
        (split(summed(), source=Producer(Costly({}), name="numbers")), 1),
        (split(summed(), source=Producer(Lopsided(range(9)), name="numbers")), 1),
        (split(summed(), source=Producer(Lopsided(range(9)), name="numbers"), workers=3), 3),
        (split(summed(), source=Producer(Lopsided(range(9)), name="numbers") * 2), 2),
        (split(summed(), source=Producer(Lopsided(range(9)), name="numbers"), shares={"numbers": 2}), 2),
        (split(Sums("k"), source=Producer(range(9), name="numbers") * 3), 3),
        (split(Sums("k"), shares={"numbers": 4}), 4),
        (split(summed(), shares={"numbers": 1}), 1),
        (split(summed(), source=Producer(range(9), name="numbers") * 3, shares={"numbers": 4}), 3),
    ],
)
def test_workers_split_a_source_where_nobody_is_promised_its_order(plan: Plan, sources: int) -> None:
    assert len(plan.sources) == sources
    assert [task.node for task in plan.tasks[:sources]] == ["numbers"] * sources


def test_the_plan_says_why_a_source_is_split_or_not() -> None:
    assert split(summed()).placement.endswith("; numbers is read in 2 shares: nothing behind it takes items in order")
    assert split(Pass("a") | Sums("k")).placement.endswith(
        "; numbers is read in one place, for the sake of k, which takes items in order (to split it: Producer(...) * 2)"
    )


def test_the_plan_says_that_a_source_would_not_be_shared_evenly() -> None:
    plan = split(summed(), source=Producer(Lopsided(range(9)), name="numbers"))

    assert plan.placement.endswith(
        "; numbers is read in one place, for one of 2 shares would have most of it (to split it all the same: "
        "Producer(...) * 2)"
    )


def test_each_worker_reads_a_share_for_its_own_replicas() -> None:
    plan = split(Pass("a") | summed())

    assert crews(plan) == [["numbers.0", "a.0", "sum.parts.0", "sum.0"], ["numbers.1", "a.1", "sum.parts.1", "sum.1"]]
    assert plan.edge(0).grouping is Grouping.LOCAL


@pytest.mark.parametrize(
    ("cores", "count", "why"),
    [
        (1, 1, "auto: there is one core, and one worker needs no sockets"),
        (2, 2, "auto: one for each of 2 cores, with replicas of a, k in each"),
        (16, 16, "auto: one for each of 16 cores, with replicas of a, k in each"),
    ],
)
def test_auto_goes_by_the_cores_and_says_why(cores: int, count: int, why: str) -> None:
    plan = placed(Pass("a") | Sums("k") | Watches("w"), "auto", cores=cores)

    assert (len(plan.workers), plan.placement) == (count, why)
    assert f"workers: {why}" in describe(plan)


@pytest.mark.parametrize(("cores", "count"), [(1, 1), (2, 2), (16, 3)])
def test_where_nothing_may_be_spread_auto_takes_no_more_workers_than_tasks(cores: int, count: int) -> None:
    plan = placed(Watches("a") | Watches("b"), "auto", cores=cores)

    assert len(plan.workers) == count
    if cores > 1:
        assert plan.placement == f"auto: {cores} cores, 3 tasks, and no node that may be spread over all workers"


def test_auto_knows_the_cores_of_this_machine() -> None:
    assert len(placed(Pass("a") | Pass("b"), "auto").workers) == available_cores() >= 1


@pytest.mark.parametrize("mode", ["inline", "thread"])
def test_only_the_process_mode_has_workers(mode: str) -> None:
    plan = placed(Pass("a") | Pass("b"), 3, mode=mode)

    assert replicas(plan) == {"in": 1, "a": 1, "b": 1}
    assert "workers:" not in describe(plan)


def test_the_description_says_who_hosts_what_and_why() -> None:
    text = describe(placed(Pass("a") | Pass("b"), 2))

    assert "process mode: 2 workers and a supervisor" in text
    assert "  workers: as asked: workers=2" in text.splitlines()
    assert [line.split(maxsplit=1) for line in text.splitlines()[-2:]] == [
        ["worker.0", "in.0, a.0"],
        ["worker.1", "a.1, b.0"],
    ]


def test_pictures_show_the_replicas_that_workers_bring() -> None:
    plan = placed(Pass("a") | Pass("b") | Pass("c"), 2)

    assert 'n1["a x 2"]' in to_mermaid(plan)
    assert '    n1 -->|"local"| n2' in to_mermaid(plan)
    assert 'n1 -> n2 [label="local"];' in to_dot(plan)


def test_the_signature_goes_by_the_replicas_that_workers_bring() -> None:
    """State directories of another number of workers are another graph's, and are moved or refused as such."""
    signatures = {placed(Pass("a") | Sums("k") | Pass("b"), workers).signature for workers in ("per-task", 2, 3)}

    assert len(signatures) == 3
