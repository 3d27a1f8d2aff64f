"""Engines agree on random graphs, order aside: with a plain interpreter of the graph, and so with each other."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from consecution import BatchId, Pipeline, Report, Sink
from tests.engines import graphs
from tests.engines.graphs import Answer, Chain
from tests.engines.nodes import Collect, collected

MOST_ITEMS = 3000
"""More need not come out to find a mistake."""

LEVELS = ["none", "confirm", "track", "robust"]
slow = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


class Gather(Sink):
    """Keeps what it gets."""

    def open(self) -> None:
        self.items: list[Any] = []

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        self.items += items


@st.composite
def cases(draw: Any, deepest: int = 2, most_replicas: int = 3) -> tuple[Chain, list[int], str, Answer]:
    """A graph, a stream, a level at which it can run, and what should come of it."""
    level = draw(st.sampled_from(LEVELS))
    chain = draw(graphs.chains(ends=level != "robust", deepest=deepest, most_replicas=most_replicas))
    stream = draw(graphs.streams)
    answer = graphs.answer(chain, stream)
    assume(answer.items.total() <= MOST_ITEMS)
    return chain, stream, level, answer


def options(level: str, batch_size: int) -> Any:
    return {
        **{"robustness": level, "batch_size": batch_size, "max_pending": 3},
        **{"sync": "process", "retries": 1, "retry_delay_s": 0.0, "keep_failed": 10_000},
    }


def check(report: Report, found: Counter[Any], stream: list[int], expected: Answer) -> None:
    assert found == expected.items
    assert report.failed == expected.failed.total()
    assert report.emitted == report.completed == len(stream)
    if report.robustness in ("track", "robust"):
        assert Counter((failure.node, failure.item) for failure in report.failures) == expected.failed
        attempts = 2 if report.robustness == "robust" else 1
        assert {failure.attempts for failure in report.failures} <= {attempts}


@settings(slow, max_examples=80)
@given(cases(), st.sampled_from([1, 3, 1000]))
def test_inline_and_thread_runs_answer_as_the_graph_says(
    case: tuple[Chain, list[int], str, Answer], batch_size: int
) -> None:
    chain, stream, level, expected = case
    for mode in ("inline", "thread"):
        sink = Gather("sink")
        pipeline = Pipeline(graphs.build(chain, sink))

        report = pipeline.run(stream, mode=mode, **options(level, batch_size))  # type: ignore[arg-type]

        check(report, Counter(sink.items), stream, expected)


@settings(slow, max_examples=100)
@given(cases())
def test_consuming_item_by_item_answers_the_same(case: tuple[Chain, list[int], str, Answer]) -> None:
    chain, stream, _, expected = case
    assume(not expected.failed)
    sink = Gather("sink")

    Pipeline(graphs.build(chain, sink)).consume(stream)

    assert Counter(sink.items) == expected.items


@settings(slow, max_examples=5)
@given(cases(deepest=1, most_replicas=2))
def test_runs_in_processes_answer_as_the_graph_says(case: tuple[Chain, list[int], str, Answer]) -> None:
    chain, stream, level, expected = case
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        pipeline = Pipeline(graphs.build(chain, Collect("sink", out)))

        report = pipeline.run(stream, mode="process", **options(level, 1000))

        check(report, Counter(collected(out)), stream, expected)
