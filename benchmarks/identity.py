"""How many items a second pass through source, identity and null sink?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.contest import Outcome, Question


def identity(item: Any) -> Any:
    return item


def plain_loop(size: int) -> Outcome:
    started_s = time.perf_counter()
    total = 0
    for item in range(size):
        total += identity(item)
    return Outcome(time.perf_counter() - started_s, total)


def old(size: int) -> Outcome:
    from consecution import Node, Pipeline

    class Identity(Node):  # type: ignore[misc]
        def process(self, item: Any) -> None:
            self.push(item)

    class Total(Node):  # type: ignore[misc]
        def begin(self) -> None:
            self.total = 0

        def process(self, item: Any) -> None:
            self.total += item

    pipeline = Pipeline(Identity("identity") | Total("total"))
    started_s = time.perf_counter()
    pipeline.consume(range(size))
    return Outcome(time.perf_counter() - started_s, pipeline["total"].total)


def ours(size: int, *, on_the_way: bool = False, sinks: int = 1, **options: Any) -> Outcome:
    from benchmarks.stamps import StampedSink, run
    from consecution import Map, Pipeline

    def build(folder: Path) -> Pipeline:
        sink = StampedSink("sink", folder, measure=sum, on_the_way=on_the_way) * sinks
        return Pipeline(Map(identity, "identity") | sink)

    return run(build, range(size), **options)[0]


def expected(size: int) -> int:
    return size * (size - 1) // 2


QUESTION = Question(
    name="identity",
    title="identity: source, identity, null; one worker per node",
    unit="items",
    size=4_000_000,
    expected=expected,
    contestants={
        "plain loop": plain_loop,
        "0.2.0 consume": old,
        "ours consume": old,
        "ours inline none": lambda size: ours(size, mode="inline", robustness="none"),
        "ours thread robust": lambda size: ours(size, mode="thread", robustness="robust"),
        "ours process none": lambda size: ours(size, mode="process", robustness="none"),
        "ours process track": lambda size: ours(size, mode="process", robustness="track"),
        "ours process robust": lambda size: ours(size, mode="process", robustness="robust"),
        "ours process robust, workers=2": lambda size: ours(size, mode="process", workers=2),
        "ours process robust, workers=2, split": lambda size: ours(size, shares=2, mode="process", workers=2),
        "ours process robust, workers=2, split, a sink in each": lambda size: ours(
            size, sinks=2, shares=2, mode="process", workers=2
        ),
        "ours process robust, sink on the way": lambda size: ours(size, mode="process", on_the_way=True),
    },
    old=("0.2.0 consume",),
)
