"""What must come out in the end, worked out from the pipeline's shape alone: no batches, no crashes.

Holds for worlds that are not fickle. Items that raise a few times get through in the end; those that
always raise, or cannot be encoded, are given up, and what would have descended from them never is; at a node
with a failed edge something else goes over that instead, unless the run is to stop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from consecution.protocol.values import Stage, TaskIndex
from consecution.testing.world import Item, ItemError, Kind, NodeShape, Route, Trouble, Way, World

GivenUp = tuple[int, Stage, Item]


class Expected:
    """``written`` counts (sink or durable node, item), ``given_up`` (node, stage, item)."""

    def __init__(self, world: World, items: Mapping[TaskIndex, Iterable[Item]], *, unencodable: bool) -> None:
        self._world = world
        self._unencodable = unencodable
        self.written: Counter[tuple[int, Item]] = Counter()
        self.given_up: Counter[GivenUp] = Counter()
        self.handed = 0
        for source, given in items.items():
            self.push(world.node_of[source], given)

    def push(self, node: NodeShape, items: Iterable[Item]) -> None:
        """A node has pushed items of its own accord; nobody could foretell which."""
        for item in items:
            self._dispatch(node, item)

    def _reach(self, node: NodeShape, item: Item) -> None:
        if self._world.trouble(node, item) is Trouble.ALWAYS:
            self._give_up(node, Stage.PROCESS, item)
            return
        if node.kind is Kind.SINK or node.durable:
            self.written[node.index, item] += 1
        if node.kind is not Kind.SINK:
            for made in self._world.outputs(node, item):
                self._dispatch(node, made)
        if node.wants_end and node.durable:
            for made in self._world.end_outputs(node, item):
                self._dispatch(node, made)

    def _give_up(self, node: NodeShape, stage: Stage, item: Item) -> None:
        if node.failed_ways and stage is not Stage.FAILED and not node.stops:
            self.handed += 1
            self._send(node, node.failed_ways, Stage.FAILED, self._world.handed(node, item))
        else:
            self.given_up[node.index, stage, item] += 1

    def _dispatch(self, node: NodeShape, item: Item) -> None:
        self._send(node, node.ways, Stage.ROUTE, item)

    def _send(self, node: NodeShape, ways: tuple[Way, ...], stage: Stage, item: Item) -> None:
        try:
            edges = [way.edges[self._world.choose(way, item)] if isinstance(way, Route) else way for way in ways]
        except ItemError:
            self._give_up(node, stage, item)
            return
        if self._unencodable and not self._world.encodable(item):
            self._give_up(node, stage, item)
            return
        for edge in edges:
            self._reach(self._world.nodes[edge.target], item)
