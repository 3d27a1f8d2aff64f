"""Several sources in one graph: each keeps its own order, position and books; the stream ends with the last of them."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from consecution import Chunk, Map, Node, Pipeline, Producer, Running
from consecution.errors import NotRunningError, SourceError, StateDirError, UsageError
from consecution.runtime.failures import FailureStore, Selection
from tests.engines import nodes
from tests.engines.durable_nodes import Balance, OnceFile, lines_of
from tests.engines.nodes import Collect, collected
from tests.engines.test_contract import Run, concurrent, concurrent_mode, every_engine, mode, run, wait_for

__all__ = ["concurrent", "concurrent_mode", "mode", "run"]

COUNT = 700


def tagged(tag: str, count: int = COUNT) -> list[tuple[str, int]]:
    return [(tag, number) for number in range(count)]


def tagged_later(tag: str) -> Callable[[], Iterator[tuple[str, int]]]:
    """A generator function: it is read in the process that started the run."""

    def items() -> Iterator[tuple[str, int]]:
        yield from tagged(tag)

    return items


def keep(item: Any) -> Any:
    return item


def of(tag: str, items: list[Any]) -> list[int]:
    return [number for found, number in items if found == tag]


@every_engine
def test_each_source_keeps_its_order_and_its_books(run: Run) -> None:
    lines = OnceFile("lines", run.out)
    chain: Any = [
        Producer(tagged("a"), name="a") | Map(keep, "near"),
        Producer(tagged_later("b"), name="b"),
        Producer(tagged_later("c"), name="c"),
    ] | Map(keep, "both")

    report = run(chain | [lines, Balance("balance") | Chunk(10_000, name="all") | Collect("totals", run.folder / "t")])

    found = lines_of(run.out)
    assert {tag: of(tag, found) for tag in "abc"} == {tag: list(range(COUNT)) for tag in "abc"}
    (balances,) = collected(run.folder / "t")
    assert dict(balances)["b at the end"] == sum(range(COUNT))
    assert (report.emitted, report.completed, report.pending) == (3 * COUNT, 3 * COUNT, 0)
    assert [(s.source, s.emitted, s.completed) for s in report.sources] == [(tag, COUNT, COUNT) for tag in "abc"]
    assert f"  b              {COUNT}        {COUNT}          0          0" in str(report)
    assert run(chain).already_finished


def slowly(tag: str, gate: Path) -> Callable[[], Iterator[tuple[str, int]]]:
    """Half of the items; the others once the gate is open."""

    def items() -> Iterator[tuple[str, int]]:
        yield from tagged(tag)[: COUNT // 2]
        nodes.wait_for_file(gate)
        yield from tagged(tag)[COUNT // 2 :]

    return items


def test_a_source_that_waits_does_not_hold_up_the_others(run: Run) -> None:
    gate = run.folder / "gate"
    chain: Any = [Producer(slowly("a", gate), name="a"), Producer(slowly("b", gate), name="b")] | run.sink

    with run.start(chain) as running:
        wait_for(running, lambda: {len(of(tag, run.items)) for tag in "ab"} == {COUNT // 2})
        gate.touch()

    assert {tag: of(tag, run.items) for tag in "ab"} == {tag: list(range(COUNT)) for tag in "ab"}


def test_a_run_that_was_stopped_goes_on_at_each_source(run: Run) -> None:
    gate = run.folder / "gate"

    def chain() -> Any:
        sources = [Producer(slowly("a", gate), name="a"), Producer(tagged("b", 10), name="b")]
        return [sources[0] | Map(keep, "near"), sources[1]] | OnceFile("lines", run.out)

    running = run.start(chain())
    wait_for(running, lambda: len(lines_of(run.out)) == COUNT // 2 + 10)
    stopped = threading.Thread(target=gate.touch)
    running.request_stop()
    stopped.start()
    first = running.join(None)
    stopped.join()
    assert first is not None
    assert first.stopped

    second = run(chain())

    found = lines_of(run.out)
    assert (of("a", found), of("b", found)) == (list(range(COUNT)), list(range(10)))
    assert [(s.source, s.emitted) for s in second.sources] == [("a", COUNT), ("b", 10)]
    assert not second.stopped


def test_the_end_comes_when_all_sources_have_ended(run: Run) -> None:
    gate = run.folder / "gate"
    chain: Any = [Producer(tagged("a", 5), name="a"), Producer(slowly("b", gate), name="b")] | Chunk(10_000, name="all")

    with run.start(chain | run.sink) as running:
        wait_for(running, lambda: running.status().sources[0].completed == 5)
        assert run.items == []
        gate.touch()

    (chunk,) = run.items
    assert len(chunk) == COUNT + 5


@pytest.mark.parametrize("workers", ["per-task", 2])
def test_whoever_is_killed_every_source_is_read_once(tmp_path: Path, workers: Any) -> None:
    run = Run("process", tmp_path)
    run.workers = workers
    gate = tmp_path / "gate"
    chain: Any = [Producer(tagged("a"), name="a") | Map(keep, "x"), Producer(slowly("b", gate), name="b")]

    with run.start(chain | OnceFile("lines", run.out)) as running:
        wait_for(running, lambda: len(of("b", lines_of(run.out))) == COUNT // 2)
        for task in ("a.0", "lines.0"):
            os.kill(running.pids()[task], signal.SIGKILL)  # type: ignore[attr-defined]
        gate.touch()

    found = lines_of(run.out)
    assert {tag: of(tag, found) for tag in "ab"} == {tag: list(range(COUNT)) for tag in "ab"}


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """Set after the test, so that no thread that reads a source waits for ever."""
    event = threading.Event()
    yield event
    event.set()


def test_a_source_that_is_gone_is_named_and_a_new_one_starts(tmp_path: Path, over: threading.Event) -> None:
    run = Run("inline", tmp_path)
    sink: Any = OnceFile("lines", run.out)

    def chain(*tags: str) -> Any:
        return [Producer(stopping(tag, over), name=tag) for tag in tags] | OnceFile("lines", run.out)

    stop_after(run.start(chain("a", "b")), lambda: len(lines_of(run.out)) == 6)
    with pytest.raises(StateDirError, match=r"how far the source 'b' was read \(3 items\).*--drop-state"):
        run.start(chain("a", "c"))
    stop_after(run.start(chain("a", "c"), drop_state=True), lambda: len(lines_of(run.out)) == 9)

    found = lines_of(sink.path)
    assert {tag: of(tag, found) for tag in "abc"} == {tag: [0, 1, 2] for tag in "abc"}


def stopping(tag: str, over: threading.Event) -> Callable[[], Iterator[tuple[str, int]]]:
    """Three items, and then none until it is over."""

    def items() -> Iterator[tuple[str, int]]:
        yield from tagged(tag, 3)
        over.wait()

    return items


def stop_after(running: Running, until: Callable[[], bool]) -> None:
    wait_for(running, until)
    running.stop()


class Refuses(Node):
    def process(self, item: Any) -> None:
        raise ValueError(f"no {item}")


class RefusesAll(Balance):
    """A durable node that takes nothing."""

    def process(self, item: Any) -> None:
        raise ValueError(f"no {item}")


def test_what_durable_nodes_keep_goes_to_the_source_that_is_named(tmp_path: Path) -> None:
    run = Run("inline", tmp_path)
    sources: Any = [Producer(tagged("a", 2), name="a"), Producer(tagged("b", 2), name="b") | Refuses("stateless")]
    chain = sources | RefusesAll("kept")
    report = run(chain, retries=0)
    assert report.failed == 4

    with FailureStore(run.state_dir) as store:
        with pytest.raises(UsageError, match=r"several sources: say to which one .* one of a, b \(--source NAME\)"):
            store.retry(Selection(), at_source=True)
        with pytest.raises(UsageError, match="no source of that name"):
            store.retry(Selection(), at_source=True, source="kept")
        assert len(store.retry(Selection(nodes=("stateless",)), at_source=True)) == 2
        assert len(store.retry(Selection(), at_source=True, source="a")) == 2

    again = run(chain, retries=0)
    assert [(s.source, s.emitted) for s in again.sources] == [("a", 4), ("b", 4)]
    assert again.failed == 4


def test_items_are_pushed_into_the_manual_source_that_is_named(concurrent: Run) -> None:
    chain: Any = [Producer("manual", name="left"), Producer("manual", name="right"), Producer([0], name="list")]

    with concurrent.start(chain | concurrent.sink) as running:
        with pytest.raises(UsageError, match="several manual producers; say source='left' or source='right'"):
            running.push(1)
        with pytest.raises(UsageError, match="no manual producer 'list'; say source='left' or"):
            running.push(1, source="list")
        assert running.push(1, source="left").wait(30)
        assert running.push(2, source="right").wait(30)

    assert sorted(concurrent.items) == [0, 1, 2]
    with pytest.raises(NotRunningError):
        running.push(3, source="left")


def test_a_source_that_raises_ends_the_run_when_its_items_are_done(concurrent: Run) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    chain: Any = [Producer(broken, name="broken"), Producer(itertools.count(10), name="endless")] | concurrent.sink

    with pytest.raises(SourceError, match="gone"):
        concurrent(chain)

    assert 1 in concurrent.items


def test_consume_takes_an_item_of_each_source_in_turn() -> None:
    heard: list[Any] = []
    chain: Any = [Producer(["a", "b"]) | str.upper, Producer([1, 2, 3]), Producer([])] | Map(heard.append, "heard")
    pipeline = Pipeline(chain)

    pipeline.consume()

    assert heard == ["A", 1, "B", 2, 3]
    assert [source.name for source in pipeline.sources] == ["producer", "producer_2", "producer_3"]
    assert pipeline.top_node is pipeline.sources[0]
    for refused in (pipeline.consume, pipeline.push, pipeline.run):
        with pytest.raises(UsageError, match=r"has N\(producer\), N\(producer_2\), N\(producer_3\): make it one more"):
            refused([7])
