"""Nodes that count, for `benchmarks.wordcount` and `benchmarks.durable`; apart, since 0.2.0 is imported there."""

from __future__ import annotations

from consecution import KeyedNode, Node


class Count(Node):
    """Counts words; pushes one table at the end."""

    def begin(self) -> None:
        self.counts: dict[str, int] = {}

    def process(self, item: str) -> None:
        self.counts[item] = self.counts.get(item, 0) + 1

    def end(self) -> None:
        self.push(self.counts)


class DurableCount(KeyedNode):
    """Counts words, each a state of its own that survives; pushes one table at the end."""

    def initial_state(self) -> int:
        return 0

    def key(self, item: str) -> str:
        return item

    def process(self, item: str) -> None:
        self.state += 1

    def end(self) -> None:
        self.push(dict(self.states()))
