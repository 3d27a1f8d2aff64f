"""The engine with a thread for each task: who runs where, and what remains."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consecution import Chunk, FlatMap, IterableSource, Map, Node, Pipeline, Producer, TextLines
from consecution.engines import thread
from consecution.errors import StateDirError, WorkerError
from tests.engines import nodes
from tests.engines.nodes import Collect, Gate, collected, open_descriptors
from tests.engines.test_contract import wait_for

THREAD: Any = {"mode": "thread", "sync": "process"}


def our_threads() -> set[str]:
    return {found.name for found in threading.enumerate() if found.name.startswith("consecution-")}


@pytest.fixture(autouse=True)
def _nothing_remains() -> Iterator[None]:
    """After every test all threads of the engine are gone; one that reads a source may take a moment."""
    yield
    deadline_s = time.monotonic() + nodes.LONGEST_WAIT_S
    while our_threads() and time.monotonic() < deadline_s:
        time.sleep(0.001)
    assert our_threads() == set()


@pytest.fixture
def _linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads go on for a while after they have said that they are done."""
    put = thread._Inbox.put

    def put_and_linger(inbox: Any, message: Any) -> None:
        put(inbox, message)
        if getattr(message, "what", "") == "closed":
            time.sleep(0.05)

    monkeypatch.setattr(thread._Inbox, "put", put_and_linger)


class Where(Collect):
    """Notes which thread calls what."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name, path)
        self.called_in: dict[str, set[str]] = defaultdict(set)

    def note(self, what: str) -> None:
        self.called_in[what].add(threading.current_thread().name)

    def open(self) -> None:
        self.note("open")
        super().open()

    def check(self, items: list[Any]) -> None:
        self.note("write")

    def close(self) -> None:
        self.note("close")
        super().close()


def test_a_tasks_code_runs_in_its_own_thread_only(tmp_path: Path) -> None:
    seen = set()

    class Look(Node):
        def process(self, item: Any) -> None:
            seen.add(threading.current_thread().name)
            self.push(item)

    sink = Where("sink", tmp_path / "out")
    Pipeline((Look("look") * 2) | sink).run(range(1000), **THREAD, robustness="none", batch_size=10)

    assert seen == {"consecution-look.0", "consecution-look.1"}
    assert sink.called_in == {what: {"consecution-sink.0"} for what in ("open", "write", "close")}


ALL_FOUR = threading.Barrier(4, timeout=nodes.LONGEST_WAIT_S)


class NeedsAllReplicas(Node):
    """Gets on with an item when each of four replicas has one in hand."""

    def process(self, item: Any) -> None:
        ALL_FOUR.wait()
        self.push(item)


class FourAtTheEnd(Node):
    def process(self, item: Any) -> None:
        pass

    def end(self) -> None:
        for item in range(4):
            self.push(item)


@pytest.mark.parametrize(
    "before",
    [
        lambda: Producer([0, 1, 2, 3]),
        lambda: Producer(range(4)),
        lambda: Producer(lambda: iter(range(4))),
        lambda: Producer([4]) | FlatMap(range, "numbers"),
        lambda: Producer([4]) | FlatMap(range, "numbers") | Chunk(4, name="chunk") | FlatMap(list, "apart"),
        lambda: Producer([4]) | FourAtTheEnd("four"),
    ],
    ids=["list", "range", "function", "of one item", "of one chunk", "at the end"],
)
@pytest.mark.parametrize("robustness", ["none", "robust"])
def test_a_few_items_are_enough_for_all_replicas(before: Any, robustness: Any, tmp_path: Path) -> None:
    sink = Collect("sink", tmp_path / "out")
    keeps = {"state_dir": tmp_path / "state"} if robustness == "robust" else {}

    Pipeline(before() | NeedsAllReplicas("all") * 4 | sink).run(robustness=robustness, **THREAD, **keeps)

    assert sorted(collected(tmp_path / "out")) == [0, 1, 2, 3]


@pytest.mark.usefixtures("_linger")
@pytest.mark.parametrize("ask", ["wait", "stop", "abort"])
def test_no_thread_is_left_when_the_report_is_there(tmp_path: Path, ask: str) -> None:
    chain = Producer("manual") | Map(nodes.increase) * 3 | Collect("sink", tmp_path / "out")
    running = Pipeline(chain).start(**THREAD, state_dir=tmp_path / "state")
    running.push(1).wait(nodes.LONGEST_WAIT_S)
    assert len(our_threads()) == 6

    if ask == "abort":
        running.abort()
    (running.stop if ask == "stop" else running.wait)(nodes.LONGEST_WAIT_S)

    assert our_threads() == set()


@pytest.mark.usefixtures("_linger")
def test_a_begin_that_raises_ends_the_other_threads_and_closes_their_sinks(tmp_path: Path) -> None:
    closed = nodes.NotedClose("sink", tmp_path / "out")

    with pytest.raises(WorkerError, match=r"bad\.0: begin\(\) raised"):
        Pipeline(Map(nodes.identity) | [nodes.BadBegin("bad"), closed]).start([1], **THREAD, robustness="none")

    assert our_threads() == set()
    assert (tmp_path / "out.closed").exists()


@pytest.mark.usefixtures("_linger")
def test_an_end_that_raises_ends_the_other_threads(tmp_path: Path) -> None:
    closed = nodes.NotedClose("sink", tmp_path / "out")

    with pytest.raises(WorkerError, match=r"bad\.0: end\(\) raised"):
        Pipeline(nodes.BadEnd("bad") | Map(nodes.identity) | closed).run([1], **THREAD, robustness="none")

    assert our_threads() == set()
    assert (tmp_path / "out.closed").exists()


def test_a_task_that_ends_its_thread_ends_the_run_by_name(tmp_path: Path) -> None:
    class Dies(Node):
        def process(self, item: Any) -> None:
            raise KeyboardInterrupt("in a thread")

    running = Pipeline(Map(nodes.identity) | Dies("dies")).start([1], **THREAD, state_dir=tmp_path / "state")

    with pytest.raises(WorkerError, match=r"dies\.0: process\(\) raised KeyboardInterrupt: in a thread") as told:
        running.wait(nodes.LONGEST_WAIT_S)

    assert isinstance(told.value.__cause__, KeyboardInterrupt)
    assert (running.status().state, running.status().pending) == ("failed", 1)
    assert our_threads() == set()


def test_whichever_step_ends_a_tasks_thread_is_named(tmp_path: Path) -> None:
    class Tired(Node):
        def process(self, item: Any) -> None:
            self.push(item)

        def on_timer(self) -> None:
            raise KeyboardInterrupt("enough")

    pipeline = Pipeline(Producer("manual") | Tired("tired").every(0.01))
    with pytest.raises(WorkerError, match=r"tired\.0: on_timer\(\) raised KeyboardInterrupt: enough"):
        pipeline.start(**THREAD, state_dir=tmp_path / "state").join(nodes.LONGEST_WAIT_S)


def test_a_hanging_task_does_not_hold_up_a_stop_and_its_items_go_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread, "QUIT_WAIT_S", 0.05)
    gate, out, options = tmp_path / "gate", tmp_path / "out", {**THREAD, "state_dir": tmp_path / "state"}
    running = Pipeline(Gate("gate", gate) | Collect("sink", out)).start(range(5), **options)
    wait_for(running, lambda: running.status().emitted == 5)

    report = running.stop(timeout_s=0.05)

    assert (report.stopped, report.emitted, report.pending, report.exit_code) == (True, 5, 5, 3)
    assert our_threads() == {"consecution-gate.0"}
    gate.touch()
    assert Pipeline(Gate("gate", gate) | Collect("sink", out)).run(range(5), **options).completed == 5
    assert collected(out) == list(range(5))


class SlowClose(Collect):
    """Takes as long to close as a test wants."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name, path)
        self.may_close = threading.Event()
        self.closing = threading.Event()

    def close(self) -> None:
        self.closing.set()
        self.may_close.wait(nodes.LONGEST_WAIT_S)
        super().close()


def test_an_abort_leaves_what_waits_for_a_task(tmp_path: Path) -> None:
    """Only the frame in hand is finished: the others had been queued before the task was told to quit."""
    gate, taken = threading.Event(), []

    def take(item: int) -> None:
        taken.append(item)
        assert gate.wait(nodes.LONGEST_WAIT_S)

    running = Pipeline(Producer(range(50)) | take).start(**THREAD, state_dir=tmp_path / "state", batch_size=1)
    wait_for(running, lambda: bool(taken) and running.status().emitted == 4)
    running.abort()
    gate.set()
    report = running.wait(nodes.LONGEST_WAIT_S)

    assert taken == [0]
    assert (report.stopped, report.completed) == (True, 0)


def test_a_sink_that_hangs_in_close_does_not_hold_up_an_abort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread, "QUIT_WAIT_S", 0.05)
    sink = SlowClose("sink", tmp_path / "out")
    running = Pipeline(Map(nodes.increase) | sink).start([1], **THREAD, robustness="none")
    assert sink.closing.wait(nodes.LONGEST_WAIT_S)

    report = running.stop(timeout_s=0.05)

    sink.may_close.set()
    assert (report.completed, report.pending) == (1, 0)


def test_a_run_that_is_over_touches_nothing_any_more(tmp_path: Path) -> None:
    running = Pipeline(Map(nodes.increase) | Collect("sink", tmp_path / "out")).start([1], **THREAD, robustness="none")
    report = running.wait(nodes.LONGEST_WAIT_S)
    pipes = [os.pipe() for _ in range(5)]

    running.request_stop()
    running.abort()
    running.finish_input()
    assert running.stop() is report

    for readable, writable in pipes:
        os.close(writable)
        assert os.read(readable, 10) == b""
        os.close(readable)
    assert running.status() == running.status()
    assert running.status().state == "finished"


def test_a_run_leaves_no_descriptor_open_however_it_ends(tmp_path: Path) -> None:
    def pipeline() -> Pipeline:
        return Pipeline(Producer("manual") | Map(nodes.fail) | TextLines("lines", tmp_path / "lines"))

    options = {**THREAD, "state_dir": tmp_path / "state", "retries": 0}
    with pipeline().start(**options) as running:
        running.push(1)
    before = open_descriptors()

    assert pipeline().start(**options).wait().already_finished
    with pipeline().start(**options, fresh=True) as running:
        held = open_descriptors()
        with pytest.raises(StateDirError):
            pipeline().start(**options)
        assert open_descriptors() == held
    with pytest.raises(WorkerError):
        Pipeline(nodes.BadBegin("bad")).run([1], **{**options, "state_dir": tmp_path / "other"})
    aborted = pipeline().start(**options, fresh=True)
    aborted.abort()
    aborted.wait()

    assert open_descriptors() == before


def test_a_program_with_many_open_files_can_run(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1500:
        pytest.skip("no more than 1500 files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
    held = [os.dup(0) for _ in range(1100)]
    try:
        report = Pipeline(Map(nodes.increase)).run(nodes.fifty, **THREAD, robustness="none")
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert report.completed == 50


class CountedRange(IterableSource):
    """Counts what is read of it."""

    read_count = 0

    def read(self, max_items: int) -> Any:
        found = super().read(max_items)
        self.read_count += len(found or ())
        return found


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("robustness", ["none", "robust"])
def test_little_is_read_before_it_is_known_what_an_item_costs(tmp_path: Path, robustness: str, replicas: int) -> None:
    """So little is left to do at a stop, and what is read later goes to whoever is free then."""
    source, entered, leave = CountedRange(range(5000)), threading.Event(), threading.Event()

    def slowly(item: int) -> int:
        entered.set()
        assert leave.wait(nodes.LONGEST_WAIT_S)
        return item

    pipeline = Pipeline(Producer(source) | Map(slowly, "slow") * replicas | nodes.Collect("all", tmp_path / "all"))
    keeps = {"state_dir": tmp_path / "state"} if robustness == "robust" else {}
    running = pipeline.start(**THREAD, robustness=robustness, **keeps)
    try:
        assert entered.wait(nodes.LONGEST_WAIT_S)
        wait_for(running, lambda: source.read_count >= 4)
        time.sleep(0.2)
        read = source.read_count
    finally:
        leave.set()
        running.join(nodes.LONGEST_WAIT_S)

    tasks_below = replicas + (robustness == "none")  # else the sink stages what comes
    assert read == 4 * tasks_below * (16 if replicas == 1 else 1)
    assert sorted(collected(tmp_path / "all")) == list(range(5000))
