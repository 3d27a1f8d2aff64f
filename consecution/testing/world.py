"""A small random pipeline: its shape, what its nodes do to items, and where they raise.

Items are whole numbers: the place in the source in the upper bits, a value that every node changes in
the lower 32. Whatever a node does is a function of (node, item), unless the world is fickle: then nodes
answer differently each time, and what reaches the sinks cannot be foretold.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from consecution.error_policy import ErrorPolicy
from consecution.protocol.values import TaskIndex

VALUE_BITS = 32
VALUE_MASK = (1 << VALUE_BITS) - 1

TICKED = 1 << 20
"""The place of the first item that a timer pushes: behind all those of any source."""
MOST_TICKS = 12
"""After so many no timer ticks any more: where one does, time cannot leap to a timeout, and no schedule would end."""

Item = int


def number_of(item: Item) -> int:
    """The item's place in the source, or that of the item it descends from."""
    return item >> VALUE_BITS


def mix(item: Item, salt: int) -> int:
    """A value that looks random, the same every time."""
    mixed = ((item ^ salt * 0x9E3779B1) * 0x85EBCA6B) & VALUE_MASK
    return mixed ^ mixed >> 15


def change(item: Item, salt: int) -> Item:
    """Another item that descends from the same source item."""
    return (item & ~VALUE_MASK) | mix(item, salt)


class Kind(enum.Enum):
    """What a node makes of an item."""

    MAP = "map"
    FLAT_MAP = "flat map"
    FILTER = "filter"
    SINK = "sink"


class Trouble(enum.Enum):
    """How often a troubled item raises."""

    ALWAYS = "always"
    TIMES = "some times"
    AT_RANDOM = "at random"


class Grouping(enum.Enum):
    """How an edge picks one of the replicas behind it."""

    SINGLE = "single"
    SHUFFLE = "shuffle"
    KEYED = "keyed"


class Pace(enum.Enum):
    """When a stateless node is done with a frame."""

    AT_ONCE = "at once"
    HOLDS = "holds"
    """Much later, while others come: as an async node."""
    IN_PARTS = "in parts"
    """Item by item, unchanged: as a rate limit."""


class Keeping(enum.Enum):
    """What makes a node durable: where that goes which it makes of decided batches."""

    STATE = "state"
    """A state per key, in its own store."""
    ATTRIBUTES = "attributes"
    """A plain node with an end: what it keeps in its attributes."""
    WRITES = "writes"
    """A sink that can neither be cut back nor commit: it may be given a frame again."""
    APPENDS = "appends"
    """A file, which is cut back to what was committed."""
    TRANSACTS = "transacts"
    """A database, which commits before the task's own store."""


INNER_KEEPINGS = (Keeping.STATE, Keeping.STATE, Keeping.STATE, Keeping.ATTRIBUTES)
SINK_KEEPINGS = (Keeping.TRANSACTS, Keeping.TRANSACTS, Keeping.APPENDS, Keeping.APPENDS, Keeping.WRITES, Keeping.STATE)


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge to node ``target``."""

    index: int
    target: int


@dataclass(frozen=True, slots=True)
class Route:
    """A choice between edges; ``salt`` None: round robin, else by the item's value."""

    edges: tuple[Edge, ...]
    salt: int | None
    troubled: bool


Way = Edge | Route
DEFAULT_POLICY = ErrorPolicy()


@dataclass(frozen=True, slots=True)
class NodeShape:
    """One node: its tasks, what it does, where it raises, and its ways out."""

    index: int
    kind: Kind
    grouping: Grouping
    tasks: tuple[TaskIndex, ...]
    troubled: bool
    wants_end: bool
    ways: tuple[Way, ...] = ()
    keeping: Keeping | None = None
    """None: the node is stateless."""
    failed_ways: tuple[Way, ...] = ()
    """Where items go that are given up here; nowhere: they are kept."""
    policy: ErrorPolicy = DEFAULT_POLICY
    timer_s: float | None = None
    reads: bool = False
    """It is a source."""
    pace: Pace = Pace.AT_ONCE
    per_second: float | None = None
    """So many items a rate limit lets through."""

    @property
    def durable(self) -> bool:
        return self.keeping is not None

    @property
    def stops(self) -> bool:
        """Whether an item that raises here is to stop the run."""
        return self.policy.on_error == "stop"

    def edges(self) -> Iterator[Edge]:
        for way in (*self.ways, *self.failed_ways):
            yield from way.edges if isinstance(way, Route) else (way,)

    def targets(self) -> Iterator[int]:
        """The nodes behind it, but for those over a failed edge."""
        for way in self.ways:
            yield from (edge.target for edge in (way.edges if isinstance(way, Route) else (way,)))


class ItemError(ValueError):
    """What a node of this world raises at an item. It has no traceback: to print one takes longer than the rest."""

    @property
    def __traceback__(self) -> None:  # type: ignore[override]
        return None


class World:
    """The pipeline of one schedule. It outlives every crash; workers only look at it."""

    def __init__(self, nodes: tuple[NodeShape, ...], rng: Random, *, fickle: bool, retries: int) -> None:
        self.nodes = nodes
        self.fickle = fickle
        self.edge_count = sum(1 for node in nodes for _ in node.edges())
        self.node_of = {task: node for node in nodes for task in node.tasks}
        self.tasks = tuple(self.node_of)
        self.sources = tuple(task for node in nodes if node.reads for task in node.tasks)
        self.durable_tasks = frozenset(task for task, node in self.node_of.items() if node.durable)
        self._rng = rng
        self._retries = retries
        self._raised: dict[tuple[int, Item], int] = {}
        self._ticks = 0
        self._ticks_left = MOST_TICKS

    def deciders(self, task: TaskIndex) -> tuple[TaskIndex, ...]:
        """The durable tasks at which trees of this one end; none if a sink sees executions before that."""
        ends = self._ends(self.node_of[task])
        if any(end.kind is Kind.SINK and not end.durable for end in ends):
            return ()
        return tuple(reached for end in ends if end.durable for reached in end.tasks)

    def _ends(self, start: NodeShape) -> list[NodeShape]:
        ends: list[NodeShape] = []
        waiting = [*start.targets()]
        while waiting:
            node = self.nodes[waiting.pop()]
            if node.durable or not node.ways:
                ends += [] if node in ends else [node]
            else:
                waiting += node.targets()
        return ends

    # -- what nodes do ---------------------------------------------------------------------------

    def outputs(self, node: NodeShape, item: Item) -> list[Item]:
        """What the node makes of an item."""
        if node.pace is Pace.IN_PARTS:
            return [item]
        salt = node.index + 1
        if self.fickle and self._rng.random() < 0.3:
            salt += 100 * self._rng.randrange(1, 1000)
        if node.kind is Kind.MAP:
            return [change(item, salt)]
        if node.kind is Kind.FLAT_MAP:
            return [change(item, salt + 7 * copy) for copy in range(mix(item, salt) % 4)]
        return [item] if node.kind is Kind.FILTER and mix(item, salt) % 3 else []

    def end_outputs(self, node: NodeShape, item: Item) -> list[Item]:
        """What a durable node pushes at its end for an item of its state; nothing if it has no end of its own."""
        if not node.wants_end:
            return []
        return [change(item, node.index + 500)] if mix(item, node.index + 70) % 2 else []

    @property
    def may_tick(self) -> bool:
        return self._ticks_left > 0

    def tick_again(self) -> None:
        """Let timers tick a little longer: something is to be seen now."""
        self._ticks_left = max(self._ticks_left, 4)

    def timer_outputs(self, node: NodeShape) -> list[Item]:
        """What a durable node pushes when its timer ticks: something else each time."""
        self._ticks += 1
        self._ticks_left -= 1
        item = TICKED + self._ticks << VALUE_BITS
        return [change(item, node.index + 300 + copy) for copy in range(1 + self._ticks % 3)]

    def handed(self, node: NodeShape, item: Item) -> Item:
        """What goes over the failed edge of a node for an item that is given up there."""
        return change(item, node.index + 900)

    def retries_at(self, node: NodeShape) -> int:
        """How many times an item that raises at a node is tried again."""
        if node.policy.on_error in ("park", "stop"):
            return 0
        return self._retries if node.policy.retries is None else node.policy.retries

    def trouble(self, node: NodeShape, item: Item) -> Trouble | None:
        """Whether, and how, the node raises at an item."""
        if not node.troubled:
            return None
        drawn = mix(item, node.index + 50) % 12
        if drawn == 0:
            return Trouble.ALWAYS
        if drawn < 3:
            return Trouble.TIMES if self.retries_at(node) else Trouble.ALWAYS
        return Trouble.AT_RANDOM if self.fickle and drawn == 3 else None

    def check(self, node: NodeShape, item: Item) -> None:
        """Raise ItemError if the node is to raise at this item, this time."""
        trouble = self.trouble(node, item)
        if trouble is None:
            return
        if trouble is Trouble.TIMES:
            raised = self._raised.get((node.index, item), 0)
            if raised >= 1 + mix(item, 3) % self.retries_at(node):
                return
            self._raised[node.index, item] = raised + 1
        elif trouble is Trouble.AT_RANDOM and self._rng.random() < 0.5:
            return
        raise ItemError(f"node {node.index} raises {trouble.value}")

    def choose(self, route: Route, item: Item) -> int:
        """The place of the edge that a route chooses by an item's value."""
        assert route.salt is not None
        if route.troubled:
            drawn = mix(item, route.salt + 9) % 10
            if drawn == 0 or (self.fickle and drawn < 4 and self._rng.random() < 0.5):
                raise ItemError("the route raises")
        return mix(item, route.salt) % len(route.edges)

    # -- what cannot be encoded ------------------------------------------------------------------

    def encodable(self, item: Item) -> bool:
        return mix(item, 77) % 29 != 0

    # -- names -----------------------------------------------------------------------------------

    @property
    def end_stages(self) -> list[list[TaskIndex]]:
        return [list(node.tasks) for node in self.nodes if node.wants_end or node.durable]

    @property
    def drain_stages(self) -> list[list[TaskIndex]]:
        return [list(node.tasks) for node in self.nodes if node.durable]


def make_world(rng: Random, *, fickle: bool, retries: int) -> World:
    """A source, one to four nodes and one or two sinks, joined at random; always one connected DAG."""
    inner, sinks = rng.choice((1, 1, 2, 2, 3, 4)), rng.choice((1, 1, 2))
    children = _join(rng, inner, sinks)
    kinds = [Kind.MAP, *(_draw_kind(rng) for _ in range(inner)), *[Kind.SINK] * sinks]
    nodes: list[NodeShape] = []
    task, edge = 0, 0
    for index, kind in enumerate(kinds):
        replicas = rng.choice((1, 1, 1, 2, 3)) if index else 1
        tasks = tuple(TaskIndex(task + replica) for replica in range(replicas))
        task += replicas
        grouping = rng.choice((Grouping.SHUFFLE, Grouping.KEYED)) if replicas > 1 else Grouping.SINGLE
        edges = tuple(Edge(edge + place, child) for place, child in enumerate(children[index]))
        edge += len(edges)
        troubled, wants_end = bool(index) and rng.random() < 0.4, bool(index) and rng.random() < 0.2
        ways = _draw_ways(rng, edges, fickle)
        nodes.append(NodeShape(index, kind, grouping, tasks, troubled, wants_end, ways, reads=not index))
    return World(tuple(nodes), rng, fickle=fickle, retries=retries)


def make_durable_world(rng: Random, *, fickle: bool, retries: int) -> World:
    """Like `make_world`, with at least one durable node; stateless nodes have no end, as in a plan that is robust."""
    plain = make_world(rng, fickle=fickle, retries=retries)
    chosen = {node.index for node in plain.nodes[1:] if rng.random() < 0.6} or {rng.randrange(1, len(plain.nodes))}
    nodes = tuple(
        _make_durable(rng, node) if node.index in chosen else replace(node, wants_end=False) for node in plain.nodes
    )
    return World(nodes, rng, fickle=fickle, retries=retries)


def _make_durable(rng: Random, node: NodeShape) -> NodeShape:
    keeping = rng.choice(SINK_KEEPINGS if node.kind is Kind.SINK else INNER_KEEPINGS)
    grouping = Grouping.KEYED if keeping is Keeping.STATE and len(node.tasks) > 1 else node.grouping
    inner = node.kind is not Kind.SINK
    wants_end = keeping is Keeping.ATTRIBUTES or (inner and rng.random() < 0.5)
    return replace(node, grouping=grouping, wants_end=wants_end, keeping=keeping)


def with_sources(world: World, rng: Random) -> World:
    """Now and then there are two or three sources; the others are joined to the graph at random."""
    more = rng.choice((0, 0, 0, 1, 1, 2))
    if not more:
        return world
    edge = world.edge_count
    nodes = [_moved(world.nodes[0], more)]
    for index in range(1, 1 + more):
        targets = rng.sample(range(1, len(world.nodes)), min(len(world.nodes) - 1, rng.choice((1, 1, 2))))
        edges = tuple(Edge(edge + place, target + more) for place, target in enumerate(sorted(targets)))
        edge += len(edges)
        ways, tasks = _draw_ways(rng, edges, world.fickle), (TaskIndex(index),)
        nodes.append(NodeShape(index, Kind.MAP, Grouping.SINGLE, tasks, False, False, ways, reads=True))
    nodes += [_moved(node, more) for node in world.nodes[1:]]
    return World(tuple(nodes), world._rng, fickle=world.fickle, retries=world._retries)


def _moved(node: NodeShape, by: int) -> NodeShape:
    """The same node after so many more sources."""
    ways = tuple(_moved_way(way, by) for way in node.ways)
    if node.reads:
        return replace(node, ways=ways)
    return replace(node, index=node.index + by, tasks=tuple(TaskIndex(task + by) for task in node.tasks), ways=ways)


def _moved_way(way: Way, by: int) -> Way:
    if isinstance(way, Route):
        return replace(way, edges=tuple(Edge(edge.index, edge.target + by) for edge in way.edges))
    return Edge(way.index, way.target + by)


def with_paces(world: World, rng: Random) -> World:
    """Now and then stateless nodes are not done with a frame at once."""
    if rng.random() < 0.5:
        return world
    nodes = tuple(_with_pace(rng, node) if _may_wait(node) else node for node in world.nodes)
    return World(nodes, world._rng, fickle=world.fickle, retries=world._retries)


def _may_wait(node: NodeShape) -> bool:
    return not (node.reads or node.durable or node.wants_end or node.kind is Kind.SINK)


def _with_pace(rng: Random, node: NodeShape) -> NodeShape:
    pace = rng.choice((Pace.AT_ONCE, Pace.HOLDS, Pace.IN_PARTS))
    if pace is Pace.IN_PARTS and len(node.tasks) == 1:
        return replace(node, pace=pace, troubled=False, per_second=rng.choice((0.7, 20.0, 100.0, 300.0)))
    return replace(node, pace=Pace.HOLDS if pace is Pace.HOLDS else Pace.AT_ONCE)


def with_failed_edges(world: World, rng: Random) -> World:
    """Now and then some nodes have failed edges, which lead to nodes further down."""
    if rng.random() < 0.5:
        return world
    edge = world.edge_count
    nodes: list[NodeShape] = []
    for node in world.nodes:
        below = [other.index for other in world.nodes if other.index > node.index and not other.reads]
        targets = rng.sample(below, min(len(below), rng.choice((1, 1, 2)))) if rng.random() < 0.8 else []
        edges = tuple(Edge(edge + place, target) for place, target in enumerate(sorted(targets)))
        edge += len(edges)
        nodes.append(replace(node, failed_ways=_draw_ways(rng, edges, world.fickle)))
    return World(tuple(nodes), world._rng, fickle=world.fickle, retries=world._retries)


def with_policies(world: World, rng: Random) -> World:
    """Now and then nodes say themselves what is to become of items that raise."""
    if rng.random() < 0.5:
        return world
    nodes = tuple(replace(node, policy=_draw_policy(rng)) for node in world.nodes)
    return World(nodes, world._rng, fickle=world.fickle, retries=world._retries)


def with_timers(world: World, rng: Random) -> World:
    """Now and then durable nodes have a timer."""
    if rng.random() < 0.5:
        return world
    nodes = tuple(replace(node, timer_s=_draw_timer(rng)) if _may_tick(node) else node for node in world.nodes)
    return World(nodes, world._rng, fickle=world.fickle, retries=world._retries)


def _may_tick(node: NodeShape) -> bool:
    return node.durable and node.kind is not Kind.SINK


def _draw_timer(rng: Random) -> float | None:
    return rng.choice((None, 0.01, 0.03, 0.1, 1.0))


def _draw_policy(rng: Random) -> ErrorPolicy:
    on_error = rng.choice((None, None, "retry", "park", "park", "stop"))
    return ErrorPolicy(on_error, rng.choice((None, None, 0, 1, 2, 4)), rng.choice((None, None, 0.0, 0.3)))


def _join(rng: Random, inner: int, sinks: int) -> list[list[int]]:
    """The children of every node: each node but the source has a parent, each but a sink has a child."""
    children: list[list[int]] = [[] for _ in range(1 + inner + sinks)]
    for child in range(1, 1 + inner + sinks):
        parents = range(min(child, 1 + inner))
        for parent in rng.sample(parents, min(len(parents), 2 if rng.random() < 0.3 else 1)):
            children[parent].append(child)
    for parent in range(1 + inner):
        if not children[parent]:
            children[parent].append(1 + inner + rng.randrange(sinks))
    return children


def _draw_kind(rng: Random) -> Kind:
    return rng.choice((Kind.MAP, Kind.MAP, Kind.FLAT_MAP, Kind.FILTER))


def _draw_ways(rng: Random, edges: tuple[Edge, ...], fickle: bool) -> tuple[Way, ...]:
    if len(edges) < 2 or rng.random() < 0.5:
        return edges
    salt = None if fickle and rng.random() < 0.3 else rng.randrange(1, 100)
    return (Route(edges, salt, salt is not None and rng.random() < 0.4),)
