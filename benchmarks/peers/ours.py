"""consecution as it is in this checkout; the options of the run come with the task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.airports import as_line, distance, pairs
from benchmarks.cpu import burn
from benchmarks.identity import identity as same
from benchmarks.peers import kill as killing
from benchmarks.peers.task import Dated, Latencies, Task, Total, attach, begun
from benchmarks.wordcount import digest_pairs
from consecution import Count, FlatMap, IterableSource, Map, Node, Pipeline, Producer, Sink, SqlSink, TextLines


class MarkedSource(IterableSource):
    """A list or a range; marks its first read."""

    _marked = False

    def read(self, max_items: int) -> list[Any] | None:
        if not self._marked:
            self._marked = True
            begun()
        return super().read(max_items)


class TotalSink(Sink):
    """Adds up what ``measure`` makes of each frame."""

    def __init__(self, name: str, measure: Callable[[list[Any]], int]) -> None:
        super().__init__(name)
        self._measure = measure

    def open(self) -> None:
        self._total = Total()

    def write(self, batch_id: Any, items: list[Any]) -> None:
        self._total.add(self._measure(items))

    def close(self) -> None:
        self._total.close()


class LatencySink(Sink):
    def open(self) -> None:
        self._late = Latencies()

    def write(self, batch_id: Any, items: list[Dated]) -> None:
        for item in items:
            self._late.take(item)

    def close(self) -> None:
        self._late.close()


class WrittenSink(Sink):
    def write(self, batch_id: Any, items: list[Dated]) -> None:
        killing.write(items)


def _run(task: Task, node: Node, items: Any) -> None:
    robust = task.options.get("robustness", "robust") == "robust"
    kept: dict[str, Any] = {"state_dir": task.folder / "state"} if robust else {}
    if isinstance(items, MarkedSource):
        # As Bytewax's: read by all workers. Nothing in these works depends on the order of items.
        node = Producer(items) * task.options.get("workers", 1) | node.top_node
        items = None
    report = Pipeline(node).run(items, **task.options, **kept)
    if report.exit_code:
        raise RuntimeError(str(report))


def _replicated(node: Node, task: Task) -> Node:
    """So many replicas; a node that is not multiplied gets as many as the option ``workers`` gives it."""
    return node * task.workers if task.workers > 1 else node


def identity(task: Task) -> None:
    """The sum of each worker's items, as Bytewax makes it: a sum does not mind who adds it up."""
    sink = TotalSink("sink", sum) * task.options.get("workers", 1)
    _run(task, _replicated(Map(same, "identity"), task) | sink, MarkedSource(range(task.size)))


def words(task: Task) -> None:
    """Counts that are kept in the way of the level that is asked for."""
    count = _replicated(Count(), task)
    _run(task, FlatMap(str.split, "split") | count | TotalSink("sink", digest_pairs), MarkedSource(task.lines()))


durable = words


def cpu(task: Task) -> None:
    _run(task, _replicated(Map(burn, "burn"), task) | TotalSink("sink", sum), MarkedSource(range(task.size)))


def airports(task: Task) -> None:
    table = SqlSink("table", f"sqlite:///{task.folder}/out.db", table="distances", columns=("a", "b", "km"))
    file = TextLines("file", task.folder / "out.txt", format=as_line)
    total = Total()
    _run(
        task,
        FlatMap(pairs, "pairs") | Map(attach, "attach") | Map(distance, "measure") | [table, file],
        MarkedSource(task.airports()),
    )
    total.last_s = max(path.stat().st_mtime for path in task.folder.glob("out.*"))
    total.close()


def latency(task: Task) -> None:
    _run(task, Map(same, "middle") | LatencySink("sink"), lambda: _paced(task))


def kill(task: Task) -> None:
    striker = killing.strike()
    _run(task, Map(killing.pass_on, "middle") | WrittenSink("sink"), lambda: _paced(task))
    striker.join()


def _paced(task: Task) -> Iterator[Dated]:
    begun()
    yield from task.paced()
