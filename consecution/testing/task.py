"""The pieces of a simulated task: its node, its codec, its ways out. All state of its own dies with it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from consecution.nodes import Node
from consecution.protocol.dispatch import KeyedEdge, Outlet, RouteOutlet, ShuffleEdge, SingleEdge
from consecution.source import Source
from consecution.testing.world import Edge, Grouping, Item, ItemError, NodeShape, Route, Way, World

ITEM_BYTES = 8


class TupleCodec:
    """Payloads are tuples: nobody can change what another holds. Some items cannot be encoded."""

    def __init__(self, world: World, *, unencodable: bool) -> None:
        self._world = world
        self._unencodable = unencodable

    def encode(self, items: Sequence[Any]) -> tuple[Any, ...]:
        if self._unencodable and not all(map(self._world.encodable, items)):
            raise ItemError("cannot be encoded")
        return tuple(items)

    def decode(self, payload: Any) -> list[Any]:
        return list(payload)

    def size(self, payload: Any) -> int:
        return len(payload) * ITEM_BYTES

    def encode_failed(self, item: Any) -> tuple[Any, ...]:
        return self.encode([item])


class TrialNode(Node):
    """A node of the simulated world. ``taken``, ``made``, ``raised`` say what became of the frame in hand."""

    def __init__(self, world: World, shape: NodeShape) -> None:
        super().__init__(f"node {shape.index}")
        self._world = world
        self._shape = shape
        self.begin_frame()

    def begin_frame(self) -> None:
        self.taken = 0
        self.made: list[Item] = []
        self.raised: list[Item] = []

    def process(self, item: Item) -> None:
        """Push all outputs, or some of them and raise: those must be taken back."""
        outputs = self._world.outputs(self._shape, item)
        try:
            self._world.check(self._shape, item)
        except ItemError:
            self.raised.append(item)
            for made in outputs[:1]:
                self.push(made)
            raise
        self.taken += 1
        self.made += outputs
        for made in outputs:
            self.push(made)

    def write(self, items: list[Item]) -> None:
        """As a sink: take all of the items, or raise and take none."""
        for item in items:
            try:
                self._world.check(self._shape, item)
            except ItemError:
                if len(items) == 1:
                    self.raised.append(item)
                raise
        self.taken += len(items)


class NumberedSource(Source):
    """Gives the items of a list; sometimes it has nothing just now."""

    def __init__(self, items: list[Item], draw: Callable[[], float], settled: Callable[[int, int, bool], None]) -> None:
        self._items = items
        self._draw = draw
        self._settled = settled
        self._at = 0

    def open(self, position: Any) -> None:
        self._at = position or 0

    def read(self, max_items: int) -> list[Any] | None:
        if self._at >= len(self._items):
            return None
        count = int(self._draw() * (max_items + 1))
        found = self._items[self._at : self._at + count]
        self._at += len(found)
        return found

    def position(self) -> Any:
        return self._at

    def batch_settled(self, seq: int, failed: int, confirmed: bool) -> None:
        self._settled(seq, failed, confirmed)


class _ByKey:
    """Items by their value, the same replica for equal ones."""

    def __init__(self, ways: int) -> None:
        self.ways = ways

    def split(self, items: Sequence[Any]) -> list[list[Any]]:
        parts: list[list[Any]] = [[] for _ in range(self.ways)]
        for item in items:
            parts[item % self.ways].append(item)
        return parts


class _ByChoice:
    """Items by what the route chooses."""

    def __init__(self, world: World, route: Route) -> None:
        self.ways = len(route.edges)
        self._world = world
        self._route = route
        self._turns: Iterator[int] = itertools.cycle(range(self.ways))

    def _choose(self, item: Any) -> int:
        return next(self._turns) if self._route.salt is None else self._world.choose(self._route, item)

    def split(self, items: Sequence[Any]) -> list[list[Any]]:
        parts: list[list[Any]] = [[] for _ in range(self.ways)]
        for item in items:
            parts[self._choose(item)].append(item)
        return parts


def make_outlets(world: World, ways: tuple[Way, ...]) -> tuple[Outlet, ...]:
    """The dispatch's outlets of one task for these ways; every call has its own credits and turns."""
    return tuple(_make_outlet(world, way) for way in ways)


def _make_outlet(world: World, way: Way) -> Outlet:
    if isinstance(way, Edge):
        return _make_edge(world, way)
    return RouteOutlet(_ByChoice(world, way), tuple((_make_edge(world, edge),) for edge in way.edges))


def _make_edge(world: World, edge: Edge) -> SingleEdge | ShuffleEdge | KeyedEdge:
    target = world.nodes[edge.target]
    if target.grouping is Grouping.SINGLE:
        return SingleEdge(edge.index, target.tasks[0])
    if target.grouping is Grouping.SHUFFLE:
        return ShuffleEdge(edge.index, target.tasks)
    return KeyedEdge(edge.index, target.tasks, _ByKey(len(target.tasks)))
