"""What does each level of guarantee cost a word count whose counts are a state per word?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.contest import Outcome, Question
from benchmarks.wordcount import WORDS_PER_LINE, digest_frame, digest_pairs, expected, lines, plain_loop


def ours(size: int, *, replicas: int | None = None, ready_made: bool = False, **options: Any) -> Outcome:
    """``ready_made``: with the library's `Count`, which folds before it sends, not with a class of one's own."""
    from benchmarks.counting import DurableCount
    from benchmarks.stamps import StampedSink, run
    from consecution import Count, FlatMap, Pipeline

    def build(folder: Path) -> Pipeline:
        count = Count() if ready_made else DurableCount("count")
        sink = StampedSink("sink", folder, measure=digest_pairs if ready_made else digest_frame)
        return Pipeline(FlatMap(str.split, "split") | (count if replicas is None else count * replicas) | sink)

    return run(build, lines(size), **options)[0]


QUESTION = Question(
    name="durable",
    title=f"durable word count: lines of {WORDS_PER_LINE} Zipf words, a keyed state per word, process mode",
    unit="lines",
    size=200_000,
    expected=expected,
    contestants={
        "plain loop": plain_loop,
        "none, in memory": lambda size: ours(size, mode="process", robustness="none"),
        "confirm, in memory": lambda size: ours(size, mode="process", robustness="confirm"),
        "track, in memory": lambda size: ours(size, mode="process", robustness="track"),
        "robust, sync=process": lambda size: ours(size, mode="process", sync="process"),
        "robust": lambda size: ours(size, mode="process"),
        "robust, count * 2": lambda size: ours(size, replicas=2, mode="process"),
        "robust, workers=2": lambda size: ours(size, mode="process", workers=2),
        "robust, Count, workers=2": lambda size: ours(size, ready_made=True, mode="process", workers=2),
        "robust, Count, workers=2, split": lambda size: ours(
            size, ready_made=True, shares=2, mode="process", workers=2
        ),
        "robust, inline": lambda size: ours(size, mode="inline"),
    },
    beside="track, in memory",
)
