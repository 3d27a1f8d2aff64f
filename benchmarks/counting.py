"""A node that counts, for `benchmarks.wordcount`; apart from it, since 0.2.0 is imported there."""

from __future__ import annotations

from consecution import Node


class Count(Node):
    """Counts words; pushes one table at the end."""

    def begin(self) -> None:
        self.counts: dict[str, int] = {}

    def process(self, item: str) -> None:
        self.counts[item] = self.counts.get(item, 0) + 1

    def end(self) -> None:
        self.push(self.counts)
