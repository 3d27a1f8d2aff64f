"""Does a second replica halve the time of work that burns CPU, 200 µs an item?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.contest import Outcome, Question

BURN_LOOPS = 2600


def burn(item: int) -> int:
    """About 200 µs of pure Python."""
    total = item
    for step in range(BURN_LOOPS):
        total = (total * 31 + step) & 0xFFFFFFFF
    return total & 0xFF


def plain_loop(size: int) -> Outcome:
    started_s = time.perf_counter()
    total = sum(map(burn, range(size)))
    return Outcome(time.perf_counter() - started_s, total)


def old(size: int) -> Outcome:
    from consecution import Node, Pipeline

    class Burn(Node):  # type: ignore[misc]
        def process(self, item: int) -> None:
            self.push(burn(item))

    class Total(Node):  # type: ignore[misc]
        def begin(self) -> None:
            self.total = 0

        def process(self, item: int) -> None:
            self.total += item

    pipeline = Pipeline(Burn("burn") | Total("total"))
    started_s = time.perf_counter()
    pipeline.consume(range(size))
    return Outcome(time.perf_counter() - started_s, pipeline["total"].total)


def ours(size: int, replicas: int) -> Outcome:
    from benchmarks.stamps import StampedSink, run
    from consecution import Map, Pipeline

    def build(folder: Path) -> Pipeline:
        return Pipeline(Map(burn, "burn") * replicas | StampedSink("sink", folder, measure=sum))

    return run(build, range(size), mode="process", robustness="robust")[0]


def expected(size: int) -> Any:
    return sum(map(burn, range(size)))


QUESTION = Question(
    name="cpu",
    title="CPU-bound: 200 µs of Python an item, process mode, robust",
    unit="items",
    size=20_000,
    expected=expected,
    contestants={
        "plain loop": plain_loop,
        "0.2.0 consume": old,
        "ours, 1 replica": lambda size: ours(size, 1),
        "ours, 2 replicas": lambda size: ours(size, 2),
    },
    old=("0.2.0 consume",),
    beside="ours, 1 replica",
)
