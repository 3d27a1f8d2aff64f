"""Graph and options become a plan: which tasks there are, and which edges lie between them.

Pure, frozen and printable; every engine starts from it. Whatever cannot work is refused here, before
anything starts.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from consecution.error_policy import ErrorPolicy
from consecution.errors import GraphError, UsageError
from consecution.graph import check_names, flows_into, is_async, sort_topologically
from consecution.joining import Join
from consecution.nodes import Node, OutputEdge, RouterNode, SideEdge
from consecution.options import Options
from consecution.producer import Producer, check_beginnings
from consecution.reduction import Parts, Reduce
from consecution.sink import Sink
from consecution.stateful import KeyedNode, StatefulNode


class Grouping(enum.Enum):
    """Which replica of the node behind an edge gets an item."""

    SINGLE = "single"
    """There is only one."""
    SHUFFLE = "shuffle"
    """Whichever is freest."""
    LOCAL = "local"
    """One in the worker of the sender: every worker has replicas of both nodes."""
    BY_KEY = "by key"
    """The one that owns the item's key."""
    PARTS = "by key, in parts"
    """The one that owns the key of what was folded before it was sent."""


@dataclass(frozen=True, slots=True)
class EdgePlan:
    """An edge between two nodes, by their names; routers are never among them."""

    index: int
    source: str
    target: str
    grouping: Grouping
    key_function: Callable[[Any], Any] | None
    failed: bool = False
    """It leads to those who want the items that are given up at its source."""
    output: str = ""
    """It leads to those who want the items that its source pushes to this name; empty: to no name."""
    branch: str = ""
    """Its target is a join, which knows by this name what comes over it."""
    target_asks: bool = False
    """Its target asks for the key of each item itself, and so it is there that an item fails which has none."""


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """A choice: ``choices[i]`` leads to all of ``outlets[i]``. ``choose`` None is round robin."""

    name: str
    choose: Callable[[Any], str | int] | None
    choices: tuple[str, ...]
    outlets: tuple[tuple[Outlet, ...], ...]
    by_output: bool = False
    """The node has chosen: ``choices`` are its outputs, and first, empty, where what is pushed to no name goes."""


Outlet = EdgePlan | RoutePlan


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """One replica of one node."""

    index: int
    node: str
    replica: int
    name: str


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """A process, and the tasks it hosts, in the order of the plan."""

    index: int
    name: str
    tasks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NodePlan:
    """A node with its tasks and its ways out. ``node`` is None for a source that is a plain iterable."""

    name: str
    node: Node | None
    is_source: bool
    is_sink: bool
    replicas: int
    key_function: Callable[[Any], Any] | None
    tasks: tuple[int, ...]
    outlets: tuple[Outlet, ...]
    parents: tuple[str, ...]
    wants_end: bool
    timer_s: float | None
    durable: bool
    """It stages what arrives and applies it after the decision (robust only)."""
    error_policy: ErrorPolicy
    """What becomes of an item that raises here; the run's default is in it."""
    failed_outlets: tuple[Outlet, ...] = ()
    """Where it goes when it is given up; nowhere: it is kept as failed."""
    replicas_given: bool = False
    """Somebody has said how many replicas it is to have."""
    is_async: bool = False
    """Its items wait beside each other."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Nodes in topological order, the sources first; tasks and edges are named by their index."""

    nodes: tuple[NodePlan, ...]
    edges: tuple[EdgePlan, ...]
    tasks: tuple[TaskPlan, ...]
    workers: tuple[WorkerPlan, ...]
    options: Options
    sources: tuple[str, ...]
    """The origins' names of the tasks that read; these tasks come first, in this order."""
    signature: str
    placement: str
    """Why there are so many workers, for people."""

    @property
    def source_tasks(self) -> range:
        """The tasks that read."""
        return range(len(self.sources))

    def origin_name(self, task: int) -> str | None:
        """The name of the origin that a task is; None for one that keeps nothing."""
        if task < len(self.sources):
            return self.sources[task]
        return self.task(task).name if self.node(self.task(task).node).durable else None

    def node(self, name: str) -> NodePlan:
        return next(node for node in self.nodes if node.name == name)

    def task(self, index: int) -> TaskPlan:
        return self.tasks[index]

    def worker_of(self, task: int) -> WorkerPlan:
        return next(worker for worker in self.workers if task in worker.tasks)

    def tasks_of(self, name: str) -> tuple[int, ...]:
        return self.node(name).tasks

    def sharers(self, task: int) -> int:
        """How many replicas may share the batches of a source or durable task; 1 where nothing runs beside another.

        Those of the widest node that its trees come to over a shuffle edge, down to the next durable ones. The task's
        own replicas have an equal part of these each.
        """
        if self.options.mode == "inline":
            return 1
        start = self.node(self.task(task).node)
        shared = [edge for edge in self._tree_edges(start) if edge.grouping is Grouping.SHUFFLE]
        widest = max((self.node(edge.target).replicas for edge in shared), default=1)
        return math.ceil(widest / start.replicas)

    def workers_below(self, task: int) -> int:
        """How many workers may be at a source's or durable task's trees at a time; the task's replicas share them.

        0 where that bounds nothing: durable nodes stage what comes, coroutines wait beside each other, and inline
        everything is done in turn. Nor where keys say which replica has an item: the next ones may all be for one.
        """
        start = self.node(self.task(task).node)
        edges = [edge for edge in self._tree_edges(start) if not self.node(edge.target).durable]
        nodes = [self.node(name) for name in {edge.target for edge in edges}]
        by_key = any(edge.grouping in (Grouping.BY_KEY, Grouping.PARTS) for edge in edges)
        if self.options.mode == "inline" or by_key or any(node.is_async for node in nodes):
            return 0
        at_it = {self.worker_of(task).index for node in nodes for task in node.tasks}
        return math.ceil(len(at_it) / start.replicas)

    def deciders(self, task: int) -> tuple[int, ...]:
        """The durable tasks at which trees of a source or durable task end; none if a sink sees executions before that.

        To such a sink the highest generation of a batch is the one that counts. So the origin has to decide.
        """
        edges = self._tree_edges(self.node(self.task(task).node))
        names = {edge.target for edge in edges} - {edge.source for edge in edges}
        ends = [node for node in self.nodes if node.name in names]
        if any(end.is_sink and not end.durable for end in ends):
            return ()
        return tuple(index for end in ends if end.durable for index in end.tasks)

    def _tree_edges(self, start: NodePlan) -> list[EdgePlan]:
        """The edges that the trees of a source or durable node go over, down to the next durable ones."""
        reached, found = {start.name}, list[EdgePlan]()
        for node in self.nodes:
            if node is start or (node.name in reached and not node.durable):
                edges = [edge for edge in self.edges if edge.source == node.name and not edge.failed]
                reached.update(edge.target for edge in edges)
                found += edges
        return found

    def edge(self, index: int) -> EdgePlan:
        return self.edges[index]


def make_plan(
    node: Node,
    options: Options,
    has_iterable: bool = False,
    *,
    cores: int | None = None,
    shares: Mapping[str, int] = MappingProxyType({}),
) -> Plan:
    """The plan of the graph that ``node`` is part of. GraphError or UsageError says what cannot work, and why.

    ``cores`` is what ``workers="auto"`` goes by; None: those that this process may use. ``shares``: in how many a
    source was read before, by its name; where nobody asks for another number it stays at that.
    """
    check_names(node)
    tops = node.root_nodes
    ordered = sort_topologically(tops)
    for found in ordered:
        _check_node(found, options)
    _check_tops(tops, has_iterable)
    return _Planner(ordered, tops, options, cores or available_cores(), shares).plan()


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_tops(tops: list[Node], has_iterable: bool) -> None:
    """Something must flow into each, and it must be clear what."""
    check_beginnings(tops)
    if has_iterable and len(tops) > 1:
        raise UsageError(
            f"an iterable takes the place of the one source; this pipeline has {', '.join(map(str, tops))}: make it "
            "one more of them, Producer(iterable), and give run() none"
        )
    if not has_iterable and not isinstance(tops[0], Producer):
        raise UsageError(
            f"{tops[0]}: the pipeline has no source; begin it with Producer(...), or give run() an iterable"
        )


def _check_node(node: Node, options: Options) -> None:
    if isinstance(node, Producer) and node._upstream_nodes:
        raise GraphError(f"{node}: a producer begins a pipeline; nothing may flow into it")
    if isinstance(node, Producer) and node.key_function is not None:
        raise GraphError(f"{node}: nothing flows into a producer, so it has no key; group at the node after it")
    if isinstance(node, Producer) and node.replicas > 1:
        node.make_shares(node.replicas)
    _check_error_policy(node)
    _check_side_edges(node)
    if isinstance(node, SideEdge):
        return
    if isinstance(node, RouterNode):
        _check_router(node)
        return
    if isinstance(node, Sink):
        _check_sink(node)
    _check_timer(node)
    if node.max_replicas is not None and node.replicas > node.max_replicas:
        raise GraphError(
            f"{node} * {node.replicas}: {type(node).__name__} can have {node.max_replicas} replica only"
            + ("; a KeyedNode shares its keys between replicas" if isinstance(node, StatefulNode) else "")
        )


def _check_error_policy(node: Node) -> None:
    """``Parse("parse", on_error="park")`` makes an attribute, as any keyword does, and would do nothing."""
    if "on_error" in vars(node):
        given = vars(node)["on_error"]
        raise GraphError(f"{node}: on_error={given!r} is only an attribute; write ....on_error({given!r})")
    if isinstance(node, (RouterNode, SideEdge)) and node.error_policy is not None:
        raise GraphError(f"{node}: {_part_name(node)} is part of the node before it; say on_error(...) there")


def _part_name(node: Node) -> str:
    return (
        "a router" if isinstance(node, RouterNode) else "an output" if isinstance(node, OutputEdge) else "a failed edge"
    )


def _check_side_edges(node: Node) -> None:
    if not isinstance(node, (RouterNode, SideEdge)):
        return
    if node._failed_edge is not None and node._failed_edge._downstream_nodes:
        raise GraphError(f"{node}.failed: {_part_name(node)} is part of the node before it; say .failed there")
    if isinstance(node, SideEdge) and (node.replicas > 1 or node.key_function is not None):
        raise GraphError(
            f"{node}: {_part_name(node)} is part of the node before it; give replicas to the node after it"
        )


def _check_router(node: RouterNode) -> None:
    if node.replicas > 1 or node.key_function is not None:
        raise GraphError(f"{node}: a router is part of the node before it; give replicas to that one")
    if set(node._end_point_map.values()) != set(node._downstream_nodes):
        raise GraphError(
            f"{node}: its routes {sorted(node._end_point_map)} and the nodes behind it "
            f"{sorted(n.name for n in node._downstream_nodes)} differ; connect routes with a | [b, c, function]"
        )


def _check_timer(node: Node) -> None:
    if node._has_timer() and node.timer_s is None:
        raise GraphError(
            f"{node}: {type(node).__name__} defines on_timer, but not how often: {node.name}.every(seconds)"
        )
    if node.timer_s is not None and not node._has_timer():
        raise GraphError(f"{node}.every({node.timer_s:g}): {type(node).__name__} does not define on_timer(self)")


def _check_sink(node: Sink) -> None:
    if is_async(type(node).write):
        raise GraphError(f"{node}: {type(node).__name__}.write is async; a sink writes a frame at a time, and waits")
    if node._downstream_nodes or node._leading_outputs():
        raise GraphError(f"{node}: a sink ends a pipeline; nothing flows out of it: use a | [{node.name}, b]")


class _Planner:
    def __init__(
        self, ordered: list[Node], tops: list[Node], options: Options, cores: int, shares: Mapping[str, int]
    ) -> None:
        parts = (RouterNode, SideEdge, Producer)
        self._ordered = [node for node in ordered if not isinstance(node, parts)]
        self._tops = tops
        self._options = options
        self._edges: list[EdgePlan] = []
        self._parents: dict[str, list[str]] = {node.name: [] for node in self._ordered}
        self._tasks: list[TaskPlan] = []
        self._count, self._placement = choose_workers(self._ordered, len(tops), options, cores)
        self._parts: dict[Node, Parts] = {}
        self._shares = {top: self._choose_shares(top, shares) for top in tops if isinstance(top, Producer)}
        self._add_parts()

    def plan(self) -> Plan:
        nodes = [self._source_plan(top) for top in self._tops]
        drawn = [(node, self._outlets(node, node.name), self._failed_outlets(node)) for node in self._ordered]
        nodes += [self._node_plan(node.name, node, below, failed, is_source=False) for node, below, failed in drawn]
        edges = tuple(self._edges)
        sources = tuple(
            self._tasks[task].name if n.replicas > 1 else n.name for n in nodes if n.is_source for task in n.tasks
        )
        self._check_origins(sources, nodes)
        return Plan(
            tuple(nodes),
            edges,
            tuple(self._tasks),
            place(nodes, self._tasks, self._count),
            self._options,
            sources,
            _sign(nodes, edges),
            self._placement,
        )

    def _source_plan(self, top: Node) -> NodePlan:
        """Of a producer; of what is given to a run, which comes before the top node."""
        if isinstance(top, Producer):
            failed = self._failed_outlets(top)
            return self._node_plan(top.name, top, self._outlets(top, top.name), failed, is_source=True)
        name = self._free("source")
        return self._node_plan(name, None, (self._outlet(top, None, name),), (), is_source=True)

    def _check_origins(self, sources: tuple[str, ...], nodes: list[NodePlan]) -> None:
        durable = {self._tasks[task].name: node.name for node in nodes if node.durable for task in node.tasks}
        for source in sources:
            if source in durable:
                raise GraphError(f"the source {source!r} has the name of a replica of N({durable[source]}): rename it")

    def _add_parts(self) -> None:
        """In front of each node whose values can be folded in parts, and whose keys several workers share."""
        if self._count is None:
            return
        for node in list(self._ordered):
            if isinstance(node, Reduce) and node.works_in_parts and self._replicas(node) > 1:
                parts = self._parts[node] = Parts(node, self._free(f"{node.name}.parts"))
                parts._downstream_nodes.append(node)
                parts.error_policy = node.error_policy
                parts._failed_edge = node._failed_edge
                self._ordered.insert(self._ordered.index(node), parts)
                self._parents[parts.name] = []

    def _choose_shares(self, source: Producer, kept: Mapping[str, int]) -> int:
        """In how many shares a source is read: as asked, as before, or one for each worker where nobody minds."""
        if source.replicas_given:
            return source.replicas
        if source.name in kept:
            return kept[source.name]
        if self._count is None or self._count == 1 or not source.is_worth_splitting(self._count):
            return 1
        minds = self._minds_order(source)
        if minds is not None:
            self._placement += (
                f"; {source.name} is read in one place, for the sake of {minds.name}, which takes items in order "
                f"(to split it: Producer(...) * {self._count})"
            )
            return 1
        if not source.splits_evenly(self._count):
            self._placement += (
                f"; {source.name} is read in one place, for one of {self._count} shares would have most of it "
                f"(to split it all the same: Producer(...) * {self._count})"
            )
            return 1
        self._placement += f"; {source.name} is read in {self._count} shares: nothing behind it takes items in order"
        return self._count

    def _minds_order(self, source: Producer) -> Node | None:
        """The first node behind a source that is promised its order; None: there is none.

        Without a journal there is no order once several replicas have shared the work (promise 5).
        """
        waiting, met = [(node, True) for node in flows_into(source)], set[tuple[Node, bool]]()
        while waiting:
            node, kept = waiting.pop(0)
            if (node, kept) in met or node.any_order:
                continue
            met.add((node, kept))
            if (kept or self._options.robust) and node._is_durable():
                return node
            if kept and self._replicas(node) == 1 and not isinstance(node, (RouterNode, SideEdge)):
                return node
            waiting += [(below, kept and self._replicas(node) == 1) for below in flows_into(node)]
        return None

    def _replicas(self, node: Node | None) -> int:
        if isinstance(node, Producer):
            return self._shares[node]
        if node is None:
            return 1
        if self._count is None or node.replicas_given or not node._may_be_spread():
            return node.replicas
        return self._count

    def _is_everywhere(self, node: Node | None) -> bool:
        """Whether every worker has a replica of it. A source that is read in one place may yet be set apart."""
        if self._count is None or node is None or (isinstance(node, Producer) and self._shares[node] == 1):
            return False
        return self._replicas(node) >= self._count

    def _free(self, wanted: str) -> str:
        """A name that no node has: this one, or this one with a number."""
        taken = {node.name for node in (*self._ordered, *self._tops)}
        name, number = wanted, 2
        while name in taken:
            name, number = f"{wanted}_{number}", number + 1
        return name

    def _outlets(self, node: Node, owner: str) -> tuple[Outlet, ...]:
        unnamed = tuple(self._outlet(child, node, owner, above=node) for child in node._downstream_nodes)
        outputs = node._leading_outputs()
        if not outputs:
            return unnamed
        named = [
            tuple(self._outlet(child, node, owner, above=edge, output=name) for child in edge._downstream_nodes)
            for name, edge in outputs
        ]
        names = ("", *(name for name, _ in outputs))
        return (RoutePlan(f"{owner}[...]", None, names, (unnamed, *named), by_output=True),)

    def _failed_outlets(self, node: Node | None) -> tuple[Outlet, ...]:
        """Whoever answers for a failed item sends it: a frame of these edges may come from any worker."""
        if node is None or node._failed_edge is None:
            return ()
        edge = node._failed_edge
        return tuple(self._outlet(child, None, node.name, above=edge, failed=True) for child in edge._downstream_nodes)

    def _outlet(
        self,
        child: Node,
        parent: Node | None,
        owner: str,
        *,
        above: Node | None = None,
        failed: bool = False,
        output: str = "",
    ) -> Outlet:
        """The way to ``child``; ``above`` is what stands right before it in the graph."""
        if isinstance(child, RouterNode):
            ends = child._end_point_map.values()
            ways = tuple((self._outlet(end, parent, owner, above=child, failed=failed, output=output),) for end in ends)
            return RoutePlan(child.name, child.choose, tuple(child._end_point_map), ways)
        in_parts = child in self._parts
        if in_parts and not isinstance(parent, Parts):
            child, in_parts = self._parts[child], False
        replicas = self._replicas(child)
        key_function = child._grouping_key() if replicas > 1 and not in_parts else None
        if in_parts:
            grouping = Grouping.PARTS
        elif replicas == 1:
            grouping = Grouping.SINGLE
        elif key_function is not None:
            grouping = Grouping.BY_KEY
        else:
            everywhere = self._is_everywhere(parent) and self._is_everywhere(child)
            grouping = Grouping.LOCAL if everywhere else Grouping.SHUFFLE
        branch = child._branch_from(above) if isinstance(child, Join) and above is not None else ""
        asks = isinstance(child, KeyedNode)
        edge = EdgePlan(len(self._edges), owner, child.name, grouping, key_function, failed, output, branch, asks)
        self._edges.append(edge)
        if owner not in self._parents[child.name]:
            self._parents[child.name].append(owner)
        return edge

    def _node_plan(
        self,
        name: str,
        node: Node | None,
        outlets: tuple[Outlet, ...],
        failed_outlets: tuple[Outlet, ...],
        *,
        is_source: bool,
    ) -> NodePlan:
        replicas = self._replicas(node)
        first = len(self._tasks)
        self._tasks += [TaskPlan(first + r, name, r, f"{name}.{r}") for r in range(replicas)]
        return NodePlan(
            name=name,
            node=node,
            is_source=is_source,
            is_sink=isinstance(node, Sink),
            replicas=replicas,
            key_function=None if node is None else node._grouping_key(),
            tasks=tuple(range(first, first + replicas)),
            outlets=outlets,
            parents=tuple(self._parents.get(name, ())),
            wants_end=node is not None and not is_source and node._wants_end(),
            timer_s=None if node is None else node.timer_s,
            durable=self._options.robust and node is not None and not is_source and node._is_durable(),
            error_policy=((node and node.error_policy) or ErrorPolicy()).with_default(self._options.on_error),
            failed_outlets=failed_outlets,
            replicas_given=node is not None and node.replicas_given,
            is_async=node is not None and node._is_async,
        )


def _sign(nodes: list[NodePlan], edges: tuple[EdgePlan, ...]) -> str:
    """A hash of the graph's shape (not of its code), the same in every run."""
    shape: list[Any] = [
        [[n.name, n.replicas, [_shape_of(outlet) for outlet in n.outlets]] for n in nodes],
        [[e.source, e.target, e.grouping.value, *([e.branch] if e.branch else ())] for e in edges],
    ]
    failed = [[n.name, [_shape_of(outlet) for outlet in n.failed_outlets]] for n in nodes if n.failed_outlets]
    if failed:
        shape.append(failed)
    return hashlib.blake2b(json.dumps(shape).encode(), digest_size=16).hexdigest()


def _shape_of(outlet: Outlet) -> Any:
    """An edge by its index, a route by its choices and what lies behind them."""
    if isinstance(outlet, EdgePlan):
        return outlet.index
    return [list(outlet.choices), [[_shape_of(inner) for inner in branch] for branch in outlet.outlets]]


# -- placement -----------------------------------------------------------------------------------


def choose_workers(nodes: list[Node], sources: int, options: Options, cores: int) -> tuple[int | None, str]:
    """How many workers share all tasks, and why; None: every task has one of its own."""
    asked = options.workers
    if options.mode != "process" or asked == "per-task":
        return None, "one worker for each task"
    if asked != "auto":
        return int(asked), f"as asked: workers={asked}"
    if cores == 1:
        return 1, "auto: there is one core, and one worker needs no sockets"
    spread = [node.name for node in nodes if not node.replicas_given and node._may_be_spread()]
    if spread:
        return cores, f"auto: one for each of {cores} cores, with replicas of {', '.join(spread)} in each"
    tasks = sources + sum(node.replicas for node in nodes)
    return min(cores, tasks), f"auto: {cores} cores, {tasks} tasks, and no node that may be spread over all workers"


def place(nodes: list[NodePlan], tasks: list[TaskPlan], count: int | None) -> tuple[WorkerPlan, ...]:
    """Which worker hosts which tasks: sources one after another; what has one replica the emptiest, from the end.

    So the replicas of neighbours lie side by side, and what everything flows into is not where everything is read.
    """
    if count is None:
        return tuple(WorkerPlan(task.index, task.name, (task.index,)) for task in tasks)
    hosted: list[list[int]] = [[] for _ in range(count)]
    alone = [0] * count
    reading = 0
    for node in nodes:
        for replica, task in enumerate(node.tasks):
            if node.is_source:
                at, reading = reading % count, reading + 1
            elif node.replicas > 1:
                at = replica % count
            else:
                at = min(reversed(range(count)), key=alone.__getitem__)
            alone[at] += node.replicas == 1
            hosted[at].append(task)
    crews = [tuple(crew) for crew in hosted if crew]
    return tuple(WorkerPlan(index, f"worker.{index}", crew) for index, crew in enumerate(crews))


def set_apart(plan: Plan, source: int) -> Plan:
    """The same plan, a source in a worker of its own: it can only be read in the process that started the run."""
    home = plan.worker_of(source)
    if home.tasks == (source,):
        return plan
    others = [replace(w, tasks=tuple(t for t in w.tasks if t != source)) for w in plan.workers]
    apart = WorkerPlan(len(others), plan.task(source).name, (source,))
    return replace(plan, workers=(*others, apart))


# -- pictures ------------------------------------------------------------------------------------


def _ways(outlets: tuple[Outlet, ...], label: str = "") -> Iterator[tuple[EdgePlan, str]]:
    """Every edge under these outlets, with the route it is part of."""
    for outlet in outlets:
        if isinstance(outlet, EdgePlan):
            yield outlet, label
            continue
        name = "" if outlet.by_output else outlet.name if outlet.choose is not None else "round robin"
        for branch in outlet.outlets:
            yield from _ways(branch, f"{label} {name}".strip())


def _edges_of(plan: Plan) -> list[tuple[EdgePlan, str]]:
    return [pair for node in plan.nodes for pair in _ways((*node.outlets, *node.failed_outlets))]


def describe(plan: Plan) -> str:
    """The plan for a terminal: tasks, workers, edges."""
    options = plan.options
    workers = {
        "inline": "everything in the calling thread",
        "thread": f"{len(plan.tasks)} threads",
        "process": f"{len(plan.workers)} workers and a supervisor",
    }
    width = max(len("node"), *(len(node.name) for node in plan.nodes))
    lines = [
        f"{len(plan.nodes)} nodes, {len(plan.tasks)} tasks, {len(plan.edges)} edges; {options.mode} mode: "
        f"{workers[options.mode]}; {options.robustness}",
        "",
        f"  {'node': <{width}}  replicas  kind           tasks",
    ]
    for node in plan.nodes:
        kind = ("durable " if node.durable else "") + _kind_of(node)
        names = ", ".join(plan.task(index).name for index in node.tasks[:4])
        more = f", ... {node.name}.{node.replicas - 1}" if node.replicas > 4 else ""
        lines.append(f"  {node.name: <{width}}  {node.replicas: >8}  {kind: <13}  {names}{more}")
    lines += ["", "  edges"]
    for edge, route in _edges_of(plan):
        via = "   failed items" if edge.failed else f"   output {edge.output}" if edge.output else ""
        via += f"   branch {edge.branch}" if edge.branch else ""
        via += f"   one of, by {route}" if route else ""
        lines.append(f"  {edge.source: >{width}} -> {edge.target: <{width}}  {edge.grouping.value}{via}")
    if options.mode == "process":
        lines += ["", f"  workers: {plan.placement}"]
    if len(plan.workers) < len(plan.tasks):
        for worker in plan.workers:
            lines.append(f"  {worker.name: >{width}}  {', '.join(plan.task(task).name for task in worker.tasks)}")
    return "\n".join(lines)


def to_dict(plan: Plan) -> dict[str, Any]:
    """The plan in plain values, for JSON."""
    return {
        "mode": plan.options.mode,
        "robustness": plan.options.robustness,
        "placement": plan.placement,
        "nodes": [
            {
                "node": node.name,
                "kind": _kind_of(node),
                "durable": node.durable,
                "replicas": node.replicas,
                "tasks": [plan.task(task).name for task in node.tasks],
            }
            for node in plan.nodes
        ],
        "edges": [
            {
                "from": edge.source,
                "to": edge.target,
                "grouping": edge.grouping.value,
                "failed": edge.failed,
                "output": edge.output or None,
                "branch": edge.branch or None,
                "route": route or None,
            }
            for edge, route in _edges_of(plan)
        ],
        "workers": [
            {"worker": worker.name, "tasks": [plan.task(task).name for task in worker.tasks]} for worker in plan.workers
        ],
    }


def _kind_of(node: NodePlan) -> str:
    return "source" if node.is_source else "sink" if node.is_sink else "node"


def to_mermaid(plan: Plan) -> str:
    """The plan as a mermaid flowchart."""
    ids = {node.name: f"n{index}" for index, node in enumerate(plan.nodes)}
    lines = ["flowchart LR"]
    for node in plan.nodes:
        label = _escape(node.name) + (f" x {node.replicas}" if node.replicas > 1 else "")
        opening, closing = ("([", "])") if node.is_source else ("[(", ")]") if node.is_sink else ("[", "]")
        lines.append(f'    {ids[node.name]}{opening}"{label}"{closing}')
    for edge, route in _edges_of(plan):
        words = [_escape(word) for word in _words_at(edge, route)]
        label = f'|"{", ".join(words)}"|' if words else ""
        arrow = "-.->" if edge.failed else "-->"
        lines.append(f"    {ids[edge.source]} {arrow}{label} {ids[edge.target]}")
    return "\n".join(lines)


def to_dot(plan: Plan) -> str:
    """The plan in Graphviz's language."""
    ids = {node.name: f"n{index}" for index, node in enumerate(plan.nodes)}
    lines = ["digraph plan {", "  rankdir=LR; node [shape=box];"]
    for node in plan.nodes:
        label = node.name + (f" × {node.replicas}" if node.replicas > 1 else "")
        shape = "oval" if node.is_source else "cylinder" if node.is_sink else "box"
        lines.append(f"  {ids[node.name]} [label={json.dumps(label, ensure_ascii=False)}, shape={shape}];")
    for edge, route in _edges_of(plan):
        label = json.dumps(", ".join(_words_at(edge, route)), ensure_ascii=False)
        style = ", style=dashed" if edge.failed else ""
        lines.append(f"  {ids[edge.source]} -> {ids[edge.target]} [label={label}{style}];")
    return "\n".join([*lines, "}"])


def _words_at(edge: EdgePlan, route: str) -> list[str]:
    """What a picture says at an edge."""
    grouping = "" if edge.grouping is Grouping.SINGLE else edge.grouping.value
    return [word for word in ("failed" if edge.failed else edge.output, route, edge.branch, grouping) if word]


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
