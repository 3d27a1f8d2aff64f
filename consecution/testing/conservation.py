"""Nothing is lost between a node and its ways out: every item it made is in a frame on each way, or failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from consecution.protocol.dispatch import Sent
from consecution.testing.violation import Violation
from consecution.testing.world import Edge, Grouping, Item, NodeShape, World


def check_sent(
    world: World,
    node: NodeShape,
    items: Sequence[Item],
    sent: Iterable[Sent],
    unsent: Sequence[str],
    *,
    failed: bool = False,
) -> None:
    """Compare what a task sent with what it had. ``unsent`` are the failed items as they are shown.

    ``failed``: it was sent over the node's failed edge.
    """
    refused = Counter(int(shown) for shown in unsent)
    due = Counter(items) - refused
    by_edge: dict[int, list[Item]] = {}
    for _, frame in sent:
        by_edge.setdefault(frame.path[-1] % world.edge_count, []).extend(frame.payload)
    for way in node.failed_ways if failed else node.ways:
        edges = (way,) if isinstance(way, Edge) else way.edges
        found = Counter(item for edge in edges for item in by_edge.get(edge.index, ()))
        if found != due:
            raise Violation(
                f"node {node.index} had {list(items)}, failed {list(unsent)}, and sent {dict(found)} on {edges}"
            )


def check_targets(world: World, sent: Iterable[Sent]) -> None:
    """A key always meets the same replica."""
    for target, frame in sent:
        node = world.node_of[target]
        if node.grouping is Grouping.KEYED:
            wrong = [item for item in frame.payload if node.tasks[item % len(node.tasks)] != target]
            if wrong:
                raise Violation(f"items {wrong} reached task {target}, whose keys are others")
