"""Bytewax: a dataflow in as many processes as workers, started by its own command line.

Each worker has its share of the source. Recovery is on in `durable` and `kill` only, with a snapshot every second.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import bytewax.operators as op
from bytewax.dataflow import Dataflow, Stream
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.recovery import init_db_dir

from benchmarks.airports import Writer, distance, pairs
from benchmarks.cpu import burn
from benchmarks.identity import identity as same
from benchmarks.peers import kill as killing
from benchmarks.peers.task import Dated, Latencies, Task, Total, attach, begun, current
from benchmarks.wordcount import digest

BATCH = 1000
FLOW = "benchmarks.peers.bytewax:flow"
RECOVERY = ("-s", "1", "-b", "0")


class Part(StatefulSourcePartition):
    """A slice of the items, in batches."""

    def __init__(self, items: Any, batch: int, at: int | None) -> None:
        self._items = items
        self._batch = batch
        self._at = at or 0

    def next_batch(self) -> Any:
        begun()
        if self._at >= len(self._items):
            raise StopIteration
        found = self._items[self._at : self._at + self._batch]
        self._at += len(found)
        return found

    def snapshot(self) -> int:
        return self._at


class Sliced(FixedPartitionedSource):
    """As many slices as workers."""

    def __init__(self, items: Any, batch: int = BATCH) -> None:
        self._items = items
        self._batch = batch

    def list_parts(self) -> list[str]:
        return [str(number) for number in range(current().workers)]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> Part:
        return Part(self._items[int(for_part) :: current().workers], self._batch, resume_state)


class PacedPart(StatefulSourcePartition):
    def __init__(self, at: int | None) -> None:
        begun()
        self._paced = current().paced()
        self._paced.next = at or 0

    def next_batch(self) -> list[Dated]:
        found = self._paced.take()
        if found is None:
            raise StopIteration
        return found

    def next_awake(self) -> datetime:
        return datetime.fromtimestamp(self._paced.due_s(self._paced.next), UTC)

    def snapshot(self) -> int:
        return self._paced.next


class PacedSource(FixedPartitionedSource):
    def list_parts(self) -> list[str]:
        return ["all"]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> PacedPart:
        return PacedPart(resume_state)


class SinkPart(StatelessSinkPartition):
    """Hands batches on; ``close`` follows the last one."""

    def __init__(self, write: Callable[[list[Any]], None], close: Callable[[], None]) -> None:
        self._write = write
        self._close = close

    def write_batch(self, items: list[Any]) -> None:
        self._write(items)

    def close(self) -> None:
        self._close()


class Sink(DynamicSink):
    """``make`` builds the two functions of a worker's `SinkPart`, in that worker."""

    def __init__(self, make: Callable[[], tuple[Callable[[list[Any]], None], Callable[[], None]]]) -> None:
        self._make = make

    def build(self, step_id: str, worker_index: int, worker_count: int) -> SinkPart:
        return SinkPart(*self._make())


def flow() -> Dataflow:
    """The dataflow of this run's work."""
    task = current()
    found = Dataflow(task.work)
    _FLOWS[task.work](task, found)
    return found


def _summing(measure: Callable[[list[Any]], int]) -> Sink:
    def make() -> Any:
        total = Total()
        return (lambda items: total.add(measure(items))), total.close

    return Sink(make)


def _identity(task: Task, flow: Dataflow) -> None:
    items = op.map("identity", op.input("in", flow, Sliced(range(task.size))), same)
    op.output("out", items, _summing(sum))


def _words(task: Task, flow: Dataflow) -> None:
    lines = op.input("in", flow, Sliced(task.lines()))
    counted = _combined(lines) if task.options.get("combine") else _counted(lines)
    op.output("out", counted, _summing(lambda items: digest(dict(items))))


def _counted(lines: Stream[str]) -> Any:
    return op.count_final("count", op.flat_map("split", lines, str.split), lambda word: word)


def _combined(lines: Stream[str]) -> Any:
    """Count within each batch first, so that fewer items are exchanged."""

    def count(batch: list[str]) -> Any:
        return Counter(word for line in batch for word in line.split()).items()

    return op.reduce_final("count", op.flat_map_batch("split", lines, count), lambda one, other: one + other)


def _cpu(task: Task, flow: Dataflow) -> None:
    items = op.map("burn", op.input("in", flow, Sliced(range(task.size), batch=50)), burn)
    op.output("out", items, _summing(sum))


def _airports(task: Task, flow: Dataflow) -> None:
    def make() -> Any:
        writer, total = Writer(task.folder), Total()

        def write(items: list[Any]) -> None:
            for item in items:
                writer.add(item)

        def close() -> None:
            writer.close()
            total.add(0)
            total.close()

        return write, close

    paired = op.flat_map("pairs", op.input("in", flow, Sliced(task.airports(), batch=50)), pairs)
    measured = op.map("measure", op.map("attach", paired, attach), distance)
    op.output("out", measured, Sink(make))


def _latency(task: Task, flow: Dataflow) -> None:
    def make() -> Any:
        late = Latencies()
        return (lambda items: [late.take(item) for item in items]), late.close

    op.output("out", op.map("identity", op.input("in", flow, PacedSource()), same), Sink(make))


def _kill(task: Task, flow: Dataflow) -> None:
    items = op.map("identity", op.input("in", flow, PacedSource()), killing.pass_on)
    op.output("out", items, Sink(lambda: (killing.write, lambda: None)))


_FLOWS = {
    "identity": _identity,
    "words": _words,
    "durable": _words,
    "cpu": _cpu,
    "airports": _airports,
    "latency": _latency,
    "kill": _kill,
}


def _run(task: Task, *options: str) -> None:
    """The cluster, to its end. RuntimeError if a process of it fails."""
    command = [sys.executable, "-m", "bytewax.run", FLOW, *options]
    addresses = ";".join(f"localhost:{port}" for port in _free_ports(task.workers))
    each = [["-i", str(n), "-a", addresses] for n in range(task.workers)] if task.workers > 1 else [[]]
    processes = [subprocess.Popen(command + own) for own in each]
    if codes := [process.wait() for process in processes if process.wait()]:
        raise RuntimeError(f"bytewax.run ended with {codes}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


def _recovery(task: Task) -> tuple[str, ...]:
    folder = task.folder / "recovery"
    folder.mkdir()
    init_db_dir(folder, task.workers)
    return ("-r", str(folder), *RECOVERY)


identity = words = cpu = airports = latency = _run


def durable(task: Task) -> None:
    _run(task, *_recovery(task))


def kill(task: Task) -> None:
    """Bytewax leaves it to others to start it again, so it is done here, at once; it then resumes."""
    recovery = _recovery(task)
    striker = killing.strike()
    while not killing.all_written(task):
        try:
            _run(task, *recovery)
        except RuntimeError as error:
            print(error, "and is started again at", time.time())
    striker.join()
