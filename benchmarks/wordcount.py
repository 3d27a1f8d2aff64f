"""How many lines a second are split into words and the words counted?"""

from __future__ import annotations

import bisect
import itertools
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.contest import Outcome, Question

WORDS_PER_LINE = 10
VOCABULARY = 50_000


def lines(size: int) -> list[str]:
    """Lines of ten words whose frequencies follow Zipf's law; the same for everybody."""
    random.seed(7)
    weights = list(itertools.accumulate(1 / rank for rank in range(1, VOCABULARY + 1)))
    total = weights[-1]
    return [
        " ".join(f"w{bisect.bisect(weights, random.random() * total)}" for _ in range(WORDS_PER_LINE))
        for _ in range(size)
    ]


def digest(counts: Any) -> int:
    """One number for a table of counts."""
    return sum(count * int(word[1:]) for word, count in counts.items())


def expected(size: int) -> int:
    return digest(Counter(word for line in lines(size) for word in line.split()))


def plain_loop(size: int) -> Outcome:
    given = lines(size)
    started_s = time.perf_counter()
    counts: dict[str, int] = {}
    for line in given:
        for word in line.split():
            counts[word] = counts.get(word, 0) + 1
    return Outcome(time.perf_counter() - started_s, digest(counts))


def item_by_item(size: int) -> Outcome:
    from consecution import Node, Pipeline

    class Split(Node):  # type: ignore[misc]
        def process(self, item: str) -> None:
            for word in item.split():
                self.push(word)

    class Count(Node):  # type: ignore[misc]
        def begin(self) -> None:
            self.counts: dict[str, int] = {}

        def process(self, item: str) -> None:
            self.counts[item] = self.counts.get(item, 0) + 1

    pipeline = Pipeline(Split("split") | Count("count"))
    given = lines(size)
    started_s = time.perf_counter()
    pipeline.consume(given)
    return Outcome(time.perf_counter() - started_s, digest(pipeline["count"].counts))


def itself(word: str) -> str:
    return word


def digest_frame(counted: list[dict[str, int]]) -> int:
    return sum(map(digest, counted))


def digest_pairs(counted: list[tuple[str, int]]) -> int:
    return digest(dict(counted))


def ours(size: int, *, replicas: int = 1, **options: Any) -> Outcome:
    from benchmarks.counting import Count
    from benchmarks.stamps import StampedSink, run
    from consecution import FlatMap, Pipeline

    def build(folder: Path) -> Pipeline:
        count = (Count("count") * replicas).by(itself)
        return Pipeline(FlatMap(str.split, "split") | count | StampedSink("sink", folder, measure=digest_frame))

    return run(build, lines(size), **options)[0]


QUESTION = Question(
    name="wordcount",
    title=f"word count: lines of {WORDS_PER_LINE} Zipf words, split, counted by word in memory",
    unit="lines",
    size=200_000,
    expected=expected,
    contestants={
        "plain loop": plain_loop,
        "0.2.0 consume": item_by_item,
        "ours consume": item_by_item,
        "ours inline none": lambda size: ours(size, mode="inline", robustness="none"),
        "ours process track": lambda size: ours(size, mode="process", robustness="track"),
        "ours process track, count * 2": lambda size: ours(size, replicas=2, mode="process", robustness="track"),
    },
    old=("0.2.0 consume",),
)
