"""streamz: streams in one thread, item by item; what burns CPU goes to Dask workers in batches.

`words` accumulates in place, since streamz's own ``frequencies()`` copies the whole table for every word.
"""

from __future__ import annotations

import threading
from typing import Any

from distributed import Client, LocalCluster
from streamz import Stream

from benchmarks import cpu as burning
from benchmarks.airports import Writer, distance, pairs
from benchmarks.identity import identity as same
from benchmarks.peers.task import Latencies, Task, Total, attach, begun
from benchmarks.wordcount import digest

BATCH = 100
AHEAD = 8
PATIENCE_S = 60


def _emit_all(source: Stream, items: Any) -> None:
    begun()
    for item in items:
        source.emit(item)


def _done(answer: int) -> None:
    total = Total()
    total.add(answer)
    total.close()


def identity(task: Task) -> None:
    total = Total()
    source = Stream()
    source.map(same).sink(total.add)
    _emit_all(source, range(task.size))
    total.close()


def words(task: Task) -> None:
    counts: dict[str, int] = {}

    def count(state: dict[str, int], word: str) -> dict[str, int]:
        state[word] = state.get(word, 0) + 1
        return state

    source = Stream()
    source.map(str.split).flatten().accumulate(count, start=counts).sink(
        lambda counted: None
    )  # without a sink it is collected
    _emit_all(source, task.lines())
    _done(digest(counts))


def airports(task: Task) -> None:
    writer = Writer(task.folder)
    source = Stream()
    source.map(pairs).map(list).flatten().map(attach).map(distance).sink(writer.add)
    _emit_all(source, task.airports())
    writer.close()
    _done(0)


def latency(task: Task) -> None:
    late = Latencies()
    source = Stream()
    source.map(same).sink(late.take)
    _emit_all(source, task.paced())
    late.close()


def _burn(items: tuple[int, ...]) -> int:
    return sum(map(burning.burn, items))


def cpu(task: Task) -> None:
    total, batches, all_in = Total(), -(-task.size // BATCH), threading.Event()
    came = 0

    def take(value: int) -> None:
        nonlocal came
        total.add(value)
        came += 1
        if came == batches:
            all_in.set()

    with (
        LocalCluster(n_workers=task.workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(task.workers)
        source = Stream()
        source.scatter().map(_burn).buffer(AHEAD).gather().sink(take)
        _emit_all(source, (tuple(range(n, min(n + BATCH, task.size))) for n in range(0, task.size, BATCH)))
        if not all_in.wait(PATIENCE_S):
            raise TimeoutError(f"{came} of {batches} batches came back")
        total.close()
