"""multiprocessing.Pool: functions in processes, results back in the parent, in order."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.pool import Pool
from typing import Any

from benchmarks.airports import Distance, Writer, distance, pairs
from benchmarks.cpu import burn
from benchmarks.identity import identity as same
from benchmarks.peers import kill as killing
from benchmarks.peers.task import Latencies, Task, Total, attach, begun
from benchmarks.wordcount import digest

LINES = 1000
PATIENCE_S = 5


@contextlib.contextmanager
def _pool(task: Task) -> Iterator[Pool]:
    """A pool whose workers are there: their start is not part of the work."""
    with multiprocessing.Pool(task.workers) as pool:
        pool.map(time.sleep, [0.01] * task.workers, chunksize=1)
        begun()
        yield pool


def identity(task: Task) -> None:
    total = Total()
    with _pool(task) as pool:
        total.add(sum(pool.imap(same, range(task.size), chunksize=1000)))
    total.close()


def words(task: Task) -> None:
    total = Total()
    lines = task.lines()
    with _pool(task) as pool:
        counts: Counter[str] = Counter()
        for counted in pool.imap_unordered(_count, _slices(lines)):
            counts.update(counted)
        total.add(digest(counts))
    total.close()


def _slices(lines: list[str]) -> Iterator[list[str]]:
    return (lines[start : start + LINES] for start in range(0, len(lines), LINES))


def _count(lines: list[str]) -> Counter[str]:
    return Counter(itertools.chain.from_iterable(map(str.split, lines)))


def cpu(task: Task) -> None:
    total = Total()
    with _pool(task) as pool:
        total.add(sum(pool.imap_unordered(burn, range(task.size), chunksize=50)))
    total.close()


def airports(task: Task) -> None:
    total = Total()
    given = task.airports()
    with _pool(task) as pool:
        writer = Writer(task.folder)
        for measured in pool.imap(_measure, given, chunksize=50):
            for row in measured:
                writer.add(row)
        writer.close()
    total.add(0)
    total.close()


def _measure(item: Any) -> list[Distance]:
    return [distance(attach(pair)) for pair in pairs(item)]


def latency(task: Task) -> None:
    sink = Latencies()
    with _pool(task) as pool:
        for item in pool.imap(same, task.paced(), chunksize=1):
            sink.take(item)
    sink.close()


def kill(task: Task) -> None:
    """A chunk that dies with its worker never comes back; the rest may go on if nobody waits for it in order."""
    pool = multiprocessing.Pool(task.workers)  # and no `with`: its end can wait for ever after a kill
    begun()
    results = pool.imap_unordered(killing.pass_on, task.paced(), chunksize=1)
    striker = killing.strike()
    with contextlib.suppress(multiprocessing.TimeoutError, StopIteration):
        while True:
            killing.write([results.next(timeout=PATIENCE_S)])
    striker.join()
