"""The plain loop: what a person writes who needs no guarantee and one core. With two, each has half of the numbers."""

from __future__ import annotations

import os

from benchmarks.airports import Writer, distance, pairs
from benchmarks.cpu import burn
from benchmarks.identity import identity as same
from benchmarks.peers.task import Latencies, Task, Total, attach, begun
from benchmarks.wordcount import digest


def _told(answer: int) -> None:
    total = Total()
    total.add(answer)
    total.close()


def identity(task: Task) -> None:
    begun()
    total = 0
    for item in range(task.size):
        total += same(item)
    _told(total)


def words(task: Task) -> None:
    lines = task.lines()
    begun()
    counts: dict[str, int] = {}
    for line in lines:
        for word in line.split():
            counts[word] = counts.get(word, 0) + 1
    _told(digest(counts))


def cpu(task: Task) -> None:
    """Processes that have nothing to do with each other: more than that no tool can make of the machine's cores."""
    begun()
    children = []
    for share in range(1, task.workers):
        child = os.fork()
        if not child:
            _burn_share(task, share)
            os._exit(0)
        children.append(child)
    _burn_share(task, 0)
    for child in children:
        os.waitpid(child, 0)


def _burn_share(task: Task, share: int) -> None:
    total = 0
    for item in range(share, task.size, task.workers):
        total += burn(item)
    _told(total)


def airports(task: Task) -> None:
    given = task.airports()
    begun()
    writer = Writer(task.folder)
    for item in given:
        for pair in pairs(item):
            writer.add(distance(attach(pair)))
    writer.close()
    _told(0)


def latency(task: Task) -> None:
    sink = Latencies()
    begun()
    for item in task.paced():
        sink.take(same(item))
    sink.close()
