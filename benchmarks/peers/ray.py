"""Ray: actors, and batches between them; a bounded number of batches is on the way."""

from __future__ import annotations

import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Any

import ray

from benchmarks import cpu as burning
from benchmarks.airports import Distance, Writer, distance, pairs
from benchmarks.identity import identity as same
from benchmarks.peers import kill as killing
from benchmarks.peers.task import Dated, Latencies, Task, Total, attach, begun
from benchmarks.wordcount import digest

IN_FLIGHT = 16
BATCH = 5000
LINES = 1000
BURNS = 50
AIRPORTS = 25


@ray.remote
class Stage:
    """Functions over batches."""

    def ready(self) -> None: ...

    def identity(self, items: Any) -> list[int]:
        return [same(item) for item in items]

    def burn(self, items: Any) -> int:
        return sum(map(burning.burn, items))

    def measure(self, items: Any) -> list[Distance]:
        return [distance(attach(pair)) for item in items for pair in pairs(item)]

    def pass_on(self, items: list[Dated]) -> list[Dated]:
        return [killing.pass_on(item) for item in items]

    def split(self, lines: list[str], owners: int) -> Any:
        """The words of each owner."""
        shares: list[list[str]] = [[] for _ in range(owners)]
        for line in lines:
            for word in line.split():
                shares[zlib.crc32(word.encode()) % owners].append(word)
        return shares if owners > 1 else shares[0]


@ray.remote
class Owner:
    """Counts the words that are its own."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def ready(self) -> None: ...

    def add(self, words: list[str]) -> None:
        self._counts.update(words)

    def digest(self) -> int:
        return digest(self._counts)


@ray.remote
class Sink:
    def __init__(self) -> None:
        self._late = Latencies()

    def ready(self) -> None: ...

    def take(self, items: list[Dated]) -> None:
        for item in items:
            self._late.take(item)

    def write(self, items: list[Dated]) -> None:
        killing.write(items)

    def close(self) -> None:
        self._late.close()


def _started(*actors: Any) -> None:
    """Wait until the actors are there: their start is not part of the work."""
    ray.get([actor.ready.remote() for actor in actors])
    begun()


def _stages(task: Task) -> list[Any]:
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, configure_logging=False)
    return [Stage.remote() for _ in range(task.workers)]


def _batches(items: Any, size: int) -> Iterator[Any]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _in_order(sent: Iterable[Any]) -> Iterator[Any]:
    """The results, while so many more are under way."""
    waiting: deque[Any] = deque()
    for ref in sent:
        waiting.append(ref)
        if len(waiting) >= IN_FLIGHT:
            yield ray.get(waiting.popleft())
    while waiting:
        yield ray.get(waiting.popleft())


def identity(task: Task) -> None:
    stages, total = _stages(task), Total()
    _started(*stages)
    sent = (stages[n % task.workers].identity.remote(list(b)) for n, b in enumerate(_batches(range(task.size), BATCH)))
    for batch in _in_order(sent):
        total.add(sum(batch))
    total.close()


def words(task: Task) -> None:
    lines, total = task.lines(), Total()
    stages = _stages(task)
    owners = [Owner.remote() for _ in range(task.workers)]
    _started(*stages, *owners)

    def sent() -> Iterator[Any]:
        for number, batch in enumerate(_batches(lines, LINES)):
            split = stages[number % task.workers].split.options(num_returns=len(owners))
            shares = split.remote(batch, len(owners))
            shares = shares if len(owners) > 1 else [shares]
            yield [owner.add.remote(share) for owner, share in zip(owners, shares, strict=True)]

    for _ in _in_order(sent()):
        pass
    total.add(sum(ray.get([owner.digest.remote() for owner in owners])))
    total.close()


def cpu(task: Task) -> None:
    stages, total = _stages(task), Total()
    _started(*stages)
    sent = (stages[n % task.workers].burn.remote(list(b)) for n, b in enumerate(_batches(range(task.size), BURNS)))
    for value in _in_order(sent):
        total.add(value)
    total.close()


def airports(task: Task) -> None:
    given, total = task.airports(), Total()
    stages = _stages(task)
    _started(*stages)
    writer = Writer(task.folder)
    sent = (stages[n % task.workers].measure.remote(b) for n, b in enumerate(_batches(given, AIRPORTS)))
    for rows in _in_order(sent):
        for row in rows:
            writer.add(row)
    writer.close()
    total.add(0)
    total.close()


def latency(task: Task) -> None:
    """Everything that is due goes in one batch."""
    (stage,) = _stages(task)
    sink = Sink.remote()
    _started(stage, sink)
    for _ in _in_order(sink.take.remote(stage.identity.remote(items)) for items in _due(task)):
        pass
    ray.get(sink.close.remote())


def kill(task: Task) -> None:
    """Ray starts the actor again and repeats what it was asked and had not answered."""
    _stages(task)
    stage = Stage.options(max_restarts=-1, max_task_retries=-1).remote()
    sink = Sink.remote()
    _started(stage, sink)
    striker = killing.strike()
    for _ in _in_order(sink.write.remote(stage.pass_on.remote(items)) for items in _due(task)):
        pass
    striker.join()


def _due(task: Task) -> Iterator[list[Dated]]:
    paced = task.paced()
    while (items := paced.take()) is not None:
        if items:
            yield items
        else:
            paced.wait()
