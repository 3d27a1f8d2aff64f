"""consecution 0.2.0 as it was published: one process, item by item."""

from __future__ import annotations

from typing import Any

from benchmarks.airports import Writer, distance, pairs
from benchmarks.cpu import burn
from benchmarks.identity import identity as same
from benchmarks.peers.task import Dated, Latencies, Task, Total, attach, begun
from benchmarks.wordcount import digest
from consecution import Node, Pipeline


class Apply(Node):  # type: ignore[misc]
    """Pushes what its ``function`` makes of an item."""

    def process(self, item: Any) -> None:
        self.push(self.function(item))


class Spread(Node):  # type: ignore[misc]
    """Pushes each of the things that its ``function`` makes of an item."""

    def process(self, item: Any) -> None:
        for one in self.function(item):
            self.push(one)


class Sum(Node):  # type: ignore[misc]
    def begin(self) -> None:
        self.sum = 0

    def process(self, item: int) -> None:
        self.sum += item

    def end(self) -> None:
        total = Total()
        total.add(self.sum)
        total.close()


class Count(Node):  # type: ignore[misc]
    def begin(self) -> None:
        self.counts: dict[str, int] = {}

    def process(self, item: str) -> None:
        self.counts[item] = self.counts.get(item, 0) + 1

    def end(self) -> None:
        total = Total()
        total.add(digest(self.counts))
        total.close()


class Write(Node):  # type: ignore[misc]
    def process(self, item: Any) -> None:
        self.writer.add(item)

    def end(self) -> None:
        self.writer.close()
        total = Total()
        total.add(0)
        total.close()


class Late(Node):  # type: ignore[misc]
    def begin(self) -> None:
        self.late = Latencies()

    def process(self, item: Dated) -> None:
        self.late.take(item)

    def end(self) -> None:
        self.late.close()


def _consume(nodes: Any, items: Any) -> None:
    pipeline = Pipeline(nodes)
    begun()
    pipeline.consume(items)


def identity(task: Task) -> None:
    _consume(Apply("identity", function=same) | Sum("sum"), range(task.size))


def words(task: Task) -> None:
    _consume(Spread("split", function=str.split) | Count("count"), task.lines())


def cpu(task: Task) -> None:
    _consume(Apply("burn", function=burn) | Sum("sum"), range(task.size))


def airports(task: Task) -> None:
    write = Write("write", writer=Writer(task.folder))
    nodes = Spread("pairs", function=pairs) | Apply("attach", function=attach) | Apply("measure", function=distance)
    _consume(nodes | write, task.airports())


def latency(task: Task) -> None:
    _consume(Apply("identity", function=same) | Late("late"), task.paced())
