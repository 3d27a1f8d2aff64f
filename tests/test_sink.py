from __future__ import annotations

from typing import Any

import pytest

from consecution import Csv, JsonLines, Node, Pipeline, SqlSink, TextLines
from consecution.errors import UsageError
from consecution.protocol.values import BatchId
from consecution.sink import CONSUME_BUFFER, Sink

BATCH = BatchId("source.0@one", 1, 1, (0,))


class Keeps(Sink):
    """Keeps what is written; a frame with an item "bad" is refused as a whole."""

    def __init__(self, name: str = "keep", **options: Any) -> None:
        super().__init__(name, **options)
        self.kept: list[Any] = []
        self.calls: list[Any] = []

    def open(self) -> None:
        self.calls.append("open")

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        self.calls.append((batch_id, len(items)))
        if "bad" in items:
            raise ValueError("bad")
        self.kept += items

    def close(self) -> None:
        self.calls.append("close")


class Raises(Node):
    def process(self, item: Any) -> None:
        if item == "raise":
            raise KeyError(item)
        self.push(item)


def test_item_by_item_it_is_opened_written_in_frames_and_closed() -> None:
    sink = Keeps()

    Pipeline(sink).consume(range(2 * CONSUME_BUFFER + 1))

    assert sink.calls == ["open", (None, CONSUME_BUFFER), (None, CONSUME_BUFFER), (None, 1), "close"]
    assert sink.kept == list(range(2 * CONSUME_BUFFER + 1))


def test_item_by_item_what_came_before_an_item_at_fault_is_written_and_its_error_raised() -> None:
    sink = Keeps()

    with pytest.raises(ValueError, match="bad"):
        Pipeline(sink).consume(["a", "b", "bad", "c"])

    assert sink.kept == ["a", "b"]
    assert sink.calls[-1] == "close"


def test_item_by_item_what_has_reached_it_is_written_when_the_stream_breaks_off() -> None:
    sink = Keeps()
    pipeline = Pipeline(Raises("first") | sink)

    with pytest.raises(KeyError):
        pipeline.consume(["a", "b", "raise", "c"])

    assert sink.kept == ["a", "b"]
    pipeline.consume(["d"])
    assert sink.kept == ["a", "b", "d"]


def test_in_a_run_frames_come_with_their_batch() -> None:
    sink = Keeps()

    Pipeline(sink).run(range(5), mode="inline")

    assert sink.kept == list(range(5))
    batch_ids = [call[0] for call in sink.calls if isinstance(call, tuple)]
    assert [(batch_id.origin.split("@")[0], batch_id.seq) for batch_id in batch_ids] == [("source.0", 0)]
    assert (sink.calls[0], sink.calls[-1]) == ("open", "close")


def test_in_a_run_the_items_at_fault_are_found_one_by_one() -> None:
    sink = Keeps()

    report = Pipeline(sink).run(["a", "bad", "b", "bad", "c"], mode="inline", robustness="track")

    assert sink.kept == ["a", "b", "c"]
    assert [failure.item for failure in report.failures] == ["bad", "bad"]


@pytest.mark.parametrize("robustness", ["track", "robust"])
def test_in_a_run_one_item_at_fault_among_many_costs_few_calls(robustness: str) -> None:
    sink = Keeps()
    items: list[Any] = [*range(600), "bad", *range(600, 1000)]

    report = Pipeline(sink).run(items, mode="inline", robustness=robustness, retries=0)

    assert (report.failed, sink.kept) == (1, [*range(1000)])
    batches = len({call[0] for call in sink.calls if isinstance(call, tuple)})
    assert len(sink.calls) < batches + 2 * 11 + len(["open", "close"])


def test_item_by_item_one_item_at_fault_costs_few_calls() -> None:
    sink = Keeps()

    with pytest.raises(ValueError, match="bad"):
        Pipeline(sink).consume([*range(600), "bad", *range(600, 900)])

    assert sink.kept == [*range(600)]
    assert len(sink.calls) < 2 * 11


def test_a_sink_without_write_says_what_to_define() -> None:
    with pytest.raises(NotImplementedError, match=r"Sink 'plain' must define write\(self, batch_id, items\)"):
        Sink("plain").write(BATCH, [1])


def test_opening_and_closing_are_optional() -> None:
    class Only(Sink):
        def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
            kept.extend(items)

    kept: list[Any] = []
    Pipeline(Only("only")).consume([1, 2])

    assert kept == [1, 2]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: TextLines("file", "x.txt", rotate_byte=5), "unknown option 'rotate_byte'; it takes .*rotate_bytes"),
        (lambda: Csv("file", "x.csv", delim=";"), "unknown option 'delim'; it takes .*delimiter"),
        (lambda: SqlSink("table", "sqlite:///x.db", table="t", keys="a"), "unknown option 'keys'; it takes .*key, "),
    ],
)
def test_a_misspelt_option_of_a_bundled_sink_is_refused(make: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        make()


def test_keywords_of_a_users_subclass_become_attributes_as_those_of_any_node() -> None:
    class Named(JsonLines):
        colour = "red"

    named: Any = Named("file", "x.jsonl", colour="blue", size=3, after_decision=False)

    assert (named.colour, named.size, named.after_decision) == ("blue", 3, False)
