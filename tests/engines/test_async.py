"""Async nodes over every engine: many items on their way at once, in order, and nobody fails for another."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from consecution import AsyncMap, BatchNode, KeyedNode, Map, Node, Pipeline, Producer, Sink, Source
from consecution.errors import GraphError, WorkerError
from tests.engines.nodes import Collect, Notes, collected
from tests.engines.running import EngineRun

MODES = ("inline", "thread", "process")
DEADLINE_S = 60.0


class Together(Node):
    """Lets an item go when ``wanted`` are on their way at once; pushes it with their number."""

    def __init__(self, name: str, wanted: int, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.wanted = wanted

    async def begin(self) -> None:
        self.now = self.most = 0
        self.enough = asyncio.Event()

    async def process(self, item: Any) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        if self.now >= self.wanted:
            self.enough.set()
        await asyncio.wait_for(self.enough.wait(), DEADLINE_S)
        await asyncio.sleep(0.001 * (item % 3))
        self.now -= 1
        self.push((item, self.most))


class Moody(Node):
    """Raises, hangs, cancels itself or pushes too late, as its item says; everything else goes on."""

    def __init__(self, name: str, token: Path, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.token = token

    async def process(self, item: Any) -> None:
        self.push(("before", item))
        await asyncio.sleep(0)
        if item == "raise":
            raise LookupError("not found")
        if item == "exit":
            raise SystemExit(3)
        if item == "hang":
            await asyncio.sleep(10 * DEADLINE_S)
        if item == "cancel":
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            await asyncio.sleep(0)
        if item == "stop the loop":
            asyncio.get_running_loop().stop()
        if item == "interrupt":
            raise KeyboardInterrupt
        if item == "die":
            os._exit(7)
        if str(item).endswith("once") and not self.token.exists():
            self.token.touch()
            if item == "die once":
                os._exit(7)
            if item == "block once":
                time.sleep(10 * DEADLINE_S)
        self.push(("after", item))


class Diary(Node):
    def __init__(self, name: str, notes: Notes) -> None:
        super().__init__(name)
        self.notes = notes

    async def begin(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.notes.add("begin")

    async def process(self, item: Any) -> None:
        assert asyncio.get_running_loop() is self.loop
        self.push(item)

    async def close(self) -> None:
        assert asyncio.get_running_loop() is self.loop
        self.notes.add("close")


class Sorting(Node):
    async def process(self, item: int) -> None:
        await asyncio.sleep(0)
        if item % 2:
            self.push(item, to="odd")
        else:
            self.push(item)


async def negate(item: int) -> int:
    await asyncio.sleep(0)
    return -item


async def count_up(item: int) -> AsyncIterator[int]:
    for number in range(item):
        await asyncio.sleep(0)
        yield number


class OneByOne(Source):
    """Gives one item at a time, so that each is a frame of its own, as long as there is room."""

    def __init__(self, count: int) -> None:
        self.count = count

    def open(self, position: Any) -> None:
        self.given = position or 0

    def read(self, max_items: int) -> list[Any] | None:
        if self.given == self.count:
            return None
        self.given += 1
        return [self.given - 1]

    def position(self) -> Any:
        return self.given


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Any:
    return request.param


class Run(EngineRun):
    @property
    def token(self) -> Path:
        return self.folder / "token"

    @property
    def sink(self) -> Collect:
        return Collect("sink", self.folder / "out")

    @property
    def items(self) -> list[Any]:
        return collected(self.folder / "out")


@pytest.fixture
def run(mode: str, tmp_path: Path) -> Run:
    return Run(mode, tmp_path)


@pytest.mark.parametrize("level", ["none", "robust"])
def test_many_items_are_on_their_way_at_once_and_keep_their_order(run: Run, level: str) -> None:
    chain = Producer(list(range(300))) | Together("together", 8, concurrency=8) | negate_first | run.sink
    report = run(chain, robustness=level)

    assert [item for item, _ in run.items] == [-item for item in range(300)]
    assert max(most for _, most in run.items) == 8
    assert (report.emitted, report.completed, report.pending, report.failed) == (300, 300, 0, 0)


async def negate_first(pair: tuple[int, int]) -> tuple[int, int]:
    return -pair[0], pair[1]


@pytest.mark.parametrize(("mode", "workers"), [("thread", "per-task"), ("process", "per-task"), ("process", 1)])
def test_items_of_several_frames_are_on_their_way_at_once(mode: Any, workers: Any, tmp_path: Path) -> None:
    """The first frames are answered only when the fifth has come."""
    run = Run(mode, tmp_path)
    report = run(Producer(OneByOne(12)) | Together("together", 5) | run.sink, workers=workers)

    assert [item for item, _ in run.items] == list(range(12))
    assert report.completed == 12


@pytest.mark.parametrize("level", ["track", "robust"])
def test_an_item_fails_alone_whatever_it_does(run: Run, level: str) -> None:
    items = ["a", "raise", "b", "hang", "exit", "c", "cancel"]
    moody = Moody("moody", run.token, timeout_s=0.3)
    report = run(Producer(items) | moody | run.sink, robustness=level)

    assert run.items == [(word, item) for item in "abc" for word in ("before", "after")]
    assert {failure.item: failure.error for failure in report.failures} == {
        "raise": "LookupError: not found",
        "hang": "TimeoutError: N(moody): it took longer than 0.3 s",
        "exit": "SystemExit: 3",
        "cancel": "RuntimeError: N(moody): its coroutine was cancelled",
    }
    assert 'raise LookupError("not found")' in next(f.traceback for f in report.failures if f.item == "raise")


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_coroutine_that_stops_the_loop_stops_nobody(mode: str, tmp_path: Path) -> None:
    run = Run(mode, tmp_path)
    running = run.start(Producer(["a", "stop the loop", "b"]) | Moody("moody", run.token) | run.sink)
    report = running.wait(DEADLINE_S)

    assert (report.completed, report.failed, report.restarts) == (3, 0, 0)
    assert len(run.items) == 6


def test_an_interrupt_in_a_coroutine_ends_the_run_by_name(tmp_path: Path) -> None:
    run = Run("thread", tmp_path)
    running = run.start(Producer(["a", "interrupt", "b"]) | Moody("moody", run.token) | run.sink)

    with pytest.raises(WorkerError, match=r"moody\.0: process\(\) raised KeyboardInterrupt"):
        running.wait(DEADLINE_S)


class LoopBreaker(Diary):
    """Leaves behind a loop that cannot turn."""

    async def begin(self) -> None:
        asyncio.get_running_loop().run_forever = self.refuse  # type: ignore[method-assign]

    def refuse(self) -> None:
        raise OSError("bad file descriptor")


def test_a_loop_that_cannot_turn_ends_the_run_and_no_item_is_given_up_for_it(tmp_path: Path) -> None:
    run = Run("thread", tmp_path)
    running = run.start(Producer(["a", "b"]) | LoopBreaker("breaker", Notes(run.folder / "notes")) | run.sink)

    with pytest.raises(WorkerError, match=r"breaker\.0: .*its event loop does not turn any more: OSError"):
        running.wait(DEADLINE_S)
    assert (running.status().failed, running.status().pending) == (0, 2)


def test_an_item_that_fails_is_tried_again(run: Run) -> None:
    report = run(Producer([1, 2]) | AsyncMap(ThirdTime(run.token), "third") | run.sink, retries=3, retry_delay_s=0.01)

    assert sorted(run.items) == [1, 2]
    assert report.failed == 0


class ThirdTime:
    def __init__(self, path: Path) -> None:
        self.path = path

    async def __call__(self, item: int) -> int:
        tries = Notes(self.path.with_name(f"tries-{item}"))
        tries.add("try")
        if len(tries.lines()) < 3:
            raise ConnectionError("not yet")
        return item


def test_what_runs_in_its_loop_begins_and_closes_there(run: Run) -> None:
    notes = Notes(run.folder / "notes")
    run(Producer([1, 2]) | Diary("diary", notes) | run.sink, robustness="none")

    assert (run.items, notes.lines()) == ([1, 2], ["begin", "close"])


@pytest.mark.parametrize("item", ["die once", "block once"])
def test_a_worker_that_dies_or_is_held_by_a_coroutine_is_replaced(item: str, tmp_path: Path) -> None:
    run = Run("process", tmp_path)
    items = ["a", item, "b"]
    report = run(Producer(items) | Moody("moody", run.token) | run.sink, timeout_s=1.5)

    assert run.items == [(word, it) for it in items for word in ("before", "after")]
    assert (report.restarts, report.completed, report.failed) == (1, 3, 0)


def test_an_item_that_takes_its_worker_down_again_and_again_is_left_out(tmp_path: Path) -> None:
    run = Run("process", tmp_path)
    report = run(Producer(["a", "b", "die", "c"]) | Moody("moody", run.token) | run.sink, max_restarts=3)

    assert run.items == [(word, item) for item in "abc" for word in ("before", "after")]
    assert [failure.item for failure in report.failures] == ["die"]


def test_who_waits_longer_than_a_worker_may_hang_is_left_alone(tmp_path: Path) -> None:
    run = Run("process", tmp_path)
    report = run(Producer([1]) | AsyncMap(wait_two, timeout_s=DEADLINE_S) | run.sink, timeout_s=0.8)

    assert (run.items, report.restarts) == ([1], 0)


async def wait_two(item: int) -> int:
    await asyncio.sleep(2.0)
    return item


def test_functions_generators_and_named_outputs(run: Run) -> None:
    sorting = Sorting("sorting")
    sorting["odd"] | Map(repr, "odd") | run.sink
    report = run(
        Producer([4, 3]) | count_up | sorting | negate | Map(int, "same") | Collect("even", run.folder / "even")
    )

    assert sorted(run.items) == ["1", "1", "3"]
    assert sorted(collected(run.folder / "even")) == [-2, -2, 0, 0]
    assert report.completed == 2


# -- item by item --------------------------------------------------------------------------------


def test_consume_waits_for_each_item(tmp_path: Path) -> None:
    made: list[Any] = []
    notes = Notes(tmp_path / "notes")
    sorting = Sorting("sorting")
    sorting["odd"] | Map(lambda item: made.append(("odd", item)), "odd")
    pipeline = Pipeline(count_up_node() | Diary("diary", notes) | sorting | negate | made.append)
    for _ in range(2):
        pipeline.consume([3])

    assert made == [0, ("odd", 1), -2] * 2
    assert notes.lines() == ["begin", "close"] * 2
    with pytest.raises(LookupError, match="not found"):
        Pipeline(Moody("moody", tmp_path / "token") | made.append).consume(["a", "raise"])
    assert made[-1] == ("after", "a")


def count_up_node() -> Node:
    return AsyncMap(count_up)


def test_it_works_where_a_loop_turns_already() -> None:
    """As in a notebook."""
    made: list[Any] = []

    async def cell() -> None:
        Pipeline(AsyncMap(negate) | made.append).consume([1, 2])
        Pipeline(AsyncMap(negate) | made.append).run([3], mode="inline", robustness="none")

    asyncio.run(cell())

    assert made == [-1, -2, -3]


def test_what_is_pushed_too_late_is_refused() -> None:
    class Late(Node):
        async def process(self, item: int) -> None:
            async def later() -> None:
                await asyncio.sleep(0)
                try:
                    self.push(item)
                except RuntimeError as error:
                    refused.append(str(error))

            self.waiting = asyncio.create_task(later())
            if item == 2:
                await asyncio.sleep(0.01)

    refused: list[str] = []
    made: list[int] = []
    Pipeline(Late("late") | made.append).run([1, 2], mode="inline", robustness="none", batch_size=2)

    assert made == [2]
    assert refused == ["push() belongs into process(item), and must come before that returns: await what you start"]


# -- what is refused -----------------------------------------------------------------------------


class Ending(Node):
    async def process(self, item: Any) -> None: ...

    def end(self) -> None: ...


class Keyed(KeyedNode):
    async def process(self, item: Any) -> None: ...


class Half(Node):
    async def begin(self) -> None: ...


class AsyncBatch(BatchNode):
    async def process_batch(self, items: list[Any]) -> None: ...


class AsyncSink(Sink):
    async def write(self, batch_id: Any, items: list[Any]) -> None: ...


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ending("it"), "it has an end, a timer or a state: let an async node push"),
        (lambda: Keyed("it"), "it has an end, a timer or a state"),
        (lambda: Half("it"), "Half.begin is async, and process is not"),
        (lambda: AsyncBatch("it"), "process_batch is async"),
        (lambda: Pipeline(Producer([1]) | AsyncSink("it")).plan(), "AsyncSink.write is async"),
        (lambda: AsyncMap(negate, concurrency=0), "concurrency=0: expected a whole number of 1 or more"),
        (lambda: AsyncMap(negate, timeout_s=0), "timeout_s=0: expected a number of seconds greater than 0"),
        (lambda: AsyncMap(abs), "expected an async function of an item; for others there is Map"),
        (lambda: Map(negate), r"negate is async, and only a step of its own may be: .* AsyncMap\(negate\)"),
        (lambda: Map(abs).by(negate), "negate is async, and only a step of its own may be"),
    ],
)
def test_what_cannot_be_async_says_so(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        make()
