"""The worker's loop, run in a thread of this process, with this test as its supervisor and its peers."""

from __future__ import annotations

import io
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import multiprocess
import pytest
import zmq

from consecution import AsyncMap, Node, Pipeline, Producer, RateLimit, Sink
from consecution.errors import ConsecutionError, DamagedStoreError, ShippingError, SourceError, WorldError
from consecution.kernel import cores_allowed
from consecution.protocol.origin import BatchDecided, Change
from consecution.protocol.values import Ack, Acks, Frame, FrameId, Message, Stage, TaskIndex, WorkerIndex
from consecution.runtime import control, worker
from consecution.runtime.affinity import transport_threads
from consecution.runtime.journal import Journal
from consecution.runtime.local_run import open_run_state
from consecution.runtime.shipping import Shipment
from consecution.runtime.worker import Worker, WorkerSpec, _pickled, _report
from consecution.source import Source
from consecution.transport.codec import PickleCodec
from consecution.transport.socket_folder import SocketFolder
from consecution.transport.sockets import Inbox, SocketOutbox
from tests.engines.misbehaving import Copy, wait_for
from tests.runtime.shells import Endless

WAIT_S = 30.0
ME, PEER = TaskIndex(1), TaskIndex(2)


class Slow(Node):
    """Waits for this test in each of its steps."""

    def __init__(self, name: str, *, step: str) -> None:
        super().__init__(name)
        self.step = step
        self.entered, self.leave = threading.Event(), threading.Event()

    def begin(self) -> None:
        self._wait("begin")

    def process(self, item: Any) -> None:
        self._wait("process")
        self.push(item)

    def end(self) -> None:
        self._wait("end")
        self.push("last")

    def _wait(self, step: str) -> None:
        if step == self.step:
            self.entered.set()
            assert self.leave.wait(WAIT_S)


class Bench:
    """One worker, and everything around it."""

    def __init__(
        self,
        node: Node | None,
        *,
        source: Any = (),
        robustness: str = "confirm",
        timeout_s: float = 30.0,
        beside_source: bool = False,
    ) -> None:
        """Without a node it has the source, and both if they are ``beside`` each other."""
        self.folder = SocketFolder()
        given = source if isinstance(source, Source) else list(source)
        pipeline = Pipeline(Producer(given) | (node or Copy("node")) | Copy("peer"))
        plan = pipeline.plan(mode="process", robustness=robustness, batch_size=10, timeout_s=timeout_s)
        producer: Any = pipeline.top_node
        task = TaskIndex(0) if node is None else ME
        sources = {TaskIndex(0): producer.make_source()} if node is None or beside_source else {}
        shipment = Shipment(plan, {} if node is None else {node.name: node}, sources, None)
        self.home = WorkerIndex(task)
        tasks = (TaskIndex(0), task) if beside_source else (task,)
        spec = WorkerSpec(self.home, tasks, 1, "memory", {}, self.folder.path, "", {})
        self.pipe, theirs = multiprocess.Pipe()
        self.error: BaseException | None = None
        self.worker = Worker(spec, theirs, shipment, None)
        self._context: Any = zmq.Context()
        self.inbox = Inbox(self._context, self.folder.path, "test")
        self._outbox = SocketOutbox(self._context, [WorkerIndex(index) for index in range(3)])
        self._outbox.wire({self.home: self.worker._inbox.endpoint})
        self._task = task
        self._thread = threading.Thread(target=self._run, args=(theirs,))
        self._thread.start()

    def _run(self, theirs: Any) -> None:
        try:
            self.worker.run()
        except BaseException as error:
            self.error = error
            self.worker.close_after_error()
        finally:
            theirs.close()

    def tell(self, order: Any) -> None:
        self.pipe.send(order)

    def wire(self, version: int = 1) -> None:
        """All peers are this test."""
        others = {WorkerIndex(i): self.inbox.endpoint for i in range(3) if i != self.home}
        self.tell(control.Wire(version, {**others, self.home: self.worker._inbox.endpoint}))

    def hear(self, kind: type, *, unless: Callable[[Any], bool] = lambda word: False) -> Any:
        """The next word of this kind; others are passed over."""
        while self.pipe.poll(WAIT_S):
            word = self.pipe.recv()
            if isinstance(word, kind) and not unless(word):
                return word
        raise AssertionError(f"no {kind.__name__} came")

    def hear_beat(self, *, unless: Callable[[control.Beat], bool] = lambda beat: False) -> control.Beat:
        """The next beat of its one task."""
        beats: control.Beats = self.hear(control.Beats, unless=lambda word: unless(word.beats[0]))
        return beats.beats[0]

    def send(self, items: list[Any], seq: int = 1, origin: TaskIndex = TaskIndex(0)) -> None:
        payload = PickleCodec().encode(items)
        frame = Frame(origin, seq, 1, (0,), FrameId(seq + 1000), 0, origin, Stage.PROCESS, False, payload)
        self._outbox.send(self._task, frame)

    def receive(self, kind: type) -> Any:
        found: list[Message] = []

        def look() -> bool:
            found.extend(message for _, message in self.inbox.take(1) if isinstance(message, kind))
            return bool(found)

        wait_for(look, WAIT_S)
        return found[0]

    def quit(self) -> control.Closed:
        self.tell(control.Quit())
        closed: control.Closed = self.hear(control.Closed)
        return closed

    def close(self) -> None:
        self.pipe.close()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        self._outbox.close()
        self.inbox.close()
        self._context.destroy(0)
        self.folder.close()


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(node: Node | None = None, **options: Any) -> Bench:
        made.append(Bench(node, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


Make = Callable[..., Bench]


def test_it_says_hello_before_it_begins(bench: Make) -> None:
    node = Slow("node", step="begin")
    one = bench(node)

    hello = one.hear(control.Hello)

    assert (hello.worker, hello.pid) == (ME, os.getpid())
    assert os.path.exists(hello.endpoint.removeprefix("ipc://"))
    node.leave.set()
    assert one.hear(control.Began).worker == one.home


def test_it_has_switched_only_once_it_has_begun(bench: Make) -> None:
    node = Slow("node", step="begin")
    one = bench(node)
    one.wire(7)
    assert node.entered.wait(WAIT_S)

    node.leave.set()

    words = [one.hear(object, unless=lambda word: isinstance(word, control.Beats)) for _ in range(3)]
    assert [type(word) for word in words] == [control.Hello, control.Began, control.Switched]
    assert words[-1].version == 7


def test_a_frame_goes_on_and_is_acknowledged(bench: Make) -> None:
    one = bench(Copy("node"))
    one.wire()
    one.hear(control.Switched)

    one.send([1, 2, 3])

    frame = one.receive(Frame)
    assert PickleCodec().decode(frame.payload) == [1, 2, 3]
    acks = one.receive(Acks)
    assert [(ack.seq, ack.xor) for ack in acks.acks] == [(1, 1001 ^ frame.frame_id)]


class LongFrames(Copy):
    """Each frame takes longer than `ANSWER_S`; the first waits until the others have been sent."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.entered, self.leave = threading.Event(), threading.Event()

    def process(self, item: Any) -> None:
        self.entered.set()
        assert self.leave.wait(WAIT_S)
        time.sleep(0.002)
        super().process(item)


def test_it_answers_for_a_frame_that_has_taken_long_before_it_takes_the_next(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ANSWER_S", 0.001)
    node = LongFrames("node")
    one = bench(node)
    one.wire()
    one.hear(control.Switched)
    for seq in (1, 2, 3):
        one.send([seq], seq=seq)
    assert node.entered.wait(WAIT_S)

    node.leave.set()

    assert [[ack.seq for ack in one.receive(Acks).acks] for _ in range(3)] == [[1], [2], [3]]


class TwoKinds(Copy):
    """Waits for this test at items of its own worker; notes the others."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.has_met_others = False
        self.entered, self.leave = threading.Event(), threading.Event()

    def process(self, item: Any) -> None:
        if item == "own":
            self.entered.set()
            assert self.leave.wait(WAIT_S)
        else:
            self.has_met_others = True
        super().process(item)


class OnceOthersWereMet(Source):
    """Has something as soon as the node beside it was given something by others."""

    def __init__(self, node: TwoKinds) -> None:
        self._node = node
        self._given = False

    def read(self, max_items: int) -> list[Any]:
        if self._given or not self._node.has_met_others:
            return []
        self._given = True
        return ["own"]

    def position(self) -> None:
        return None


def test_it_answers_other_workers_before_it_goes_on_with_batches_of_its_own(bench: Make) -> None:
    node = TwoKinds("node")
    one = bench(node, source=OnceOthersWereMet(node), beside_source=True)
    one.wire()
    one.hear(control.Switched)
    one.tell(control.Replay(after_death=False))

    one.send(["theirs"], origin=PEER)
    acks = one.receive(Acks)

    assert [ack.seq for ack in acks.acks] == [1]
    assert node.entered.wait(WAIT_S), "its own item comes next"
    node.leave.set()


def test_nothing_is_sent_before_the_wiring(bench: Make) -> None:
    one = bench(Copy("node"))
    one.hear(control.Began)
    one.send([1], seq=1)
    wait_for(lambda: one.worker._hosts[ME].step.counts.frames == 1)

    one.wire()
    one.hear(control.Switched)
    one.send([2], seq=2)

    assert PickleCodec().decode(one.receive(Frame).payload) == [2]


def test_beats_tell_what_it_is_occupied_with_and_how_far_it_is(bench: Make) -> None:
    node = Slow("node", step="process")
    one = bench(node)
    one.wire()
    one.send([1, 2])
    assert node.entered.wait(WAIT_S)

    busy = one.hear_beat(unless=lambda beat: beat.occupied_with == "")
    node.leave.set()
    idle = one.hear_beat(unless=lambda beat: beat.occupied_with != "" or beat.items_in == 0)

    assert (busy.occupied_with, busy.items_in) == ("process", 0)
    assert (idle.items_in, idle.items_out) == (2, 2)
    assert idle.progress != busy.progress


def serving_threads() -> frozenset[int]:
    """Both of the ZeroMQ context of the worker that this thread has made, once they have their names."""
    mine = threading.get_native_id()
    wait_for(lambda: len(transport_threads(mine)) == 2, WAIT_S)
    return transport_threads(mine)


def loop_waiting_on(core: int, one: Bench) -> tuple[int, frozenset[int]]:
    """The thread of its loop, once that waits on this core, and those that serve it."""
    loop = one._thread.native_id
    assert loop is not None
    one.wire()
    serving = serving_threads()
    one.tell(control.WaitOn(core))
    wait_for(lambda: os.sched_getaffinity(loop) == {core}, WAIT_S)
    return loop, serving


@pytest.mark.skipif(len(cores_allowed()) < 2, reason="needs a choice of cores, which Linux gives")
def test_its_loop_waits_on_the_core_that_it_is_told_and_works_on_any(bench: Make) -> None:
    allowed, core = set(cores_allowed()), max(cores_allowed())
    node = Slow("node", step="process")
    one = bench(node)
    loop, serving = loop_waiting_on(core, one)
    beside_it = [os.sched_getaffinity(thread) for thread in serving]

    one.send([1])
    assert node.entered.wait(WAIT_S)
    at_work = os.sched_getaffinity(loop)
    node.leave.set()
    wait_for(lambda: os.sched_getaffinity(loop) == {core}, WAIT_S)
    one.tell(control.WaitOn(None))
    wait_for(lambda: all(os.sched_getaffinity(thread) == allowed for thread in (loop, *serving)), WAIT_S)

    assert at_work == allowed
    assert beside_it == [{core}, {core}]
    assert all(os.sched_getaffinity(thread) == allowed for thread in serving)


@pytest.mark.skipif(len(cores_allowed()) < 2, reason="needs a choice of cores, which Linux gives")
def test_zeromqs_threads_of_a_worker_that_only_reads_are_let_alone(bench: Make) -> None:
    allowed, core = set(cores_allowed()), max(cores_allowed())

    _, serving = loop_waiting_on(core, bench(source=[1]))

    assert [os.sched_getaffinity(thread) for thread in serving] == [allowed, allowed]


@pytest.mark.parametrize("step", ["begin", "end"])
def test_other_steps_are_named_too(bench: Make, step: str) -> None:
    node = Slow("node", step=step)
    one = bench(node)
    one.wire()
    one.tell(control.RunEnd(ME))

    beat = one.hear_beat(unless=lambda beat: beat.occupied_with == "")
    node.leave.set()

    assert beat.occupied_with == step


def test_it_has_ended_when_what_end_pushed_is_acknowledged(bench: Make) -> None:
    one = bench(Slow("node", step="never"))
    one.wire()
    one.hear(control.Switched)

    one.tell(control.RunEnd(ME))
    frame = one.receive(Frame)
    assert PickleCodec().decode(frame.payload) == ["last"]
    early = [word for word in words_until_a_beat(one) if isinstance(word, control.Ended)]
    one._outbox.send(ME, acknowledge(frame))

    assert early == []
    assert one.hear(control.Ended).confirmed


def words_until_a_beat(one: Bench) -> list[Any]:
    words: list[Any] = []
    while not words or not isinstance(words[-1], control.Beats):
        words.append(one.hear(object))
    return words


def acknowledge(frame: Frame) -> Acks:
    return Acks(PEER, [Ack(frame.seq, frame.generation, frame.frame_id, 0, ())])


def test_a_source_waits_until_all_have_switched(bench: Make) -> None:
    one = bench(source=range(5))
    one.wire()
    one.hear(control.Switched)
    held = one.hear_beat()

    one.tell(control.Replay(after_death=False))
    frame = one.receive(Frame)

    assert held.origin.emitted == 0
    assert PickleCodec().decode(frame.payload) == [0, 1, 2, 3, 4]


class Blocks(Source):
    """Waits for this test in its second `read`."""

    def __init__(self) -> None:
        self.reads = 0
        self.leave = threading.Event()

    def read(self, max_items: int) -> list[Any] | None:
        self.reads += 1
        if self.reads == 2:
            assert self.leave.wait(WAIT_S)
        return None if self.reads == 3 else ["item"]

    def position(self) -> int:
        return self.reads

    def __repr__(self) -> str:
        return "Blocks()"


def test_a_source_that_waits_in_read_is_warned_of_once(bench: Make, capfd: pytest.CaptureFixture[str]) -> None:
    blocks, warned = Blocks(), ""
    one = bench(source=blocks, timeout_s=0.05)
    one.wire()
    one.tell(control.Replay(after_death=False))

    def look() -> bool:
        nonlocal warned
        warned += capfd.readouterr().err
        return "has not come back" in warned

    try:
        wait_for(look, WAIT_S)
        for _ in range(3):
            one.hear(control.Beats)
    finally:
        blocks.leave.set()
    one.receive(Frame)
    warned += capfd.readouterr().err

    assert warned.count("the source Blocks() has not come back from read() for 0.05 s; meanwhile") == 1


class BlocksUnseen(Blocks):
    def __repr__(self) -> str:
        raise RuntimeError("no looking")


def test_it_goes_on_telling_that_it_lives_where_nobody_can_be_warned(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            tried.set()
            raise RuntimeError("no")

    tried = threading.Event()
    monkeypatch.setattr(sys, "stderr", Broken())
    blocks = BlocksUnseen()
    one = bench(source=blocks, timeout_s=0.05)
    one.wire()
    one.tell(control.Replay(after_death=False))
    try:
        assert tried.wait(WAIT_S)
        for _ in range(3):
            one.hear(control.Beats)
    finally:
        blocks.leave.set()


def test_a_source_tells_at_once_that_it_has_finished(bench: Make) -> None:
    one = bench(source=range(5))
    one.wire()
    one.tell(control.Replay(after_death=False))
    frame = one.receive(Frame)
    one._outbox.send(TaskIndex(0), acknowledge(frame))

    beat = one.hear_beat(unless=lambda beat: not beat.finished)

    assert (beat.origin.emitted, beat.origin.completed) == (5, 5)


def test_a_source_has_not_finished_while_the_last_decision_is_being_committed(bench: Make) -> None:
    """Killed in between, it would run the batch again, in a run that everybody takes for finished."""
    one = bench(source=range(5))
    store = one.worker._sources[TaskIndex(0)].host.store
    apply, committing, commit = store.apply, threading.Event(), threading.Event()

    def wait_and_apply(changes: list[Change]) -> None:
        if any(isinstance(change, BatchDecided) for change in changes):
            committing.set()
            assert commit.wait(WAIT_S)
        apply(changes)

    store.apply = wait_and_apply
    one.wire()
    one.tell(control.Replay(after_death=False))
    one._outbox.send(TaskIndex(0), acknowledge(one.receive(Frame)))
    assert committing.wait(WAIT_S)

    (beat,) = one.worker.beats()
    commit.set()

    assert not beat.finished
    assert one.hear_beat(unless=lambda beat: not beat.finished)


def test_a_source_that_is_told_to_stop_says_when_it_has_drained(bench: Make) -> None:
    one = bench(source=Endless())
    one.wire()
    one.tell(control.Replay(after_death=False))
    frame = one.receive(Frame)
    one.tell(control.StopReading())
    seen = {frame.seq}
    one._outbox.send(TaskIndex(0), acknowledge(frame))

    def answer_the_rest(beat: control.Beat) -> bool:
        for _, message in one.inbox.take(100):
            if isinstance(message, Frame) and message.seq not in seen:
                seen.add(message.seq)
                one._outbox.send(TaskIndex(0), acknowledge(message))
        return not beat.drained

    beat = one.hear_beat(unless=answer_the_rest)

    assert beat.origin.pending == 0
    assert not beat.finished


class Written(Sink):
    """Keeps what it is given."""

    def open(self) -> None:
        self.items: list[Any] = []

    def write(self, batch_id: Any, items: list[Any]) -> None:
        self.items += items


@contextmanager
def whole_pipeline(pipeline: Pipeline, path: Path, **options: Any) -> Iterator[tuple[Worker, dict[TaskIndex, str]]]:
    """A worker with all tasks of a pipeline, to be turned by hand; and where the stores of some of them are."""
    if options.get("robustness", "robust") == "robust":
        options["state_dir"] = path
    plan = pipeline.plan(mode="process", workers=1, sync="process", **options)
    state, sockets, pipe = open_run_state(plan), SocketFolder(), multiprocess.Pipe()
    producer: Any = pipeline.top_node
    nodes = {node.name: node.node for node in plan.nodes if not node.is_source}
    shipment = Shipment(plan, nodes, {TaskIndex(0): producer.make_source()}, None)
    tasks = tuple(TaskIndex(task.index) for task in plan.tasks)
    stores, epoch = {}, "memory"
    if state is not None:
        epoch = state.epoch
        stores = {task: str(state.origin_path(name)) for task in tasks if (name := plan.origin_name(task)) is not None}
    worker = Worker(
        WorkerSpec(WorkerIndex(0), tasks, 1, epoch, stores, sockets.path, "", {}),
        pipe[1],
        shipment,
        None,
    )
    try:
        worker._begin()
        worker._replay(control.Replay(after_death=False))
        yield worker, stores
    finally:
        worker._close()
        if state is not None:
            state.close(keep=False)
        sockets.close()


class Told(Node):
    """Passes on what it gets, and tells of each frame's first item."""

    def __init__(self, name: str, told: list[tuple[str, Any]]) -> None:
        super().__init__(name)
        self._told = told

    def process(self, item: Any) -> None:
        if item % 2 == 0:
            self._told.append((self.name, item))
        self.push(item)


def test_a_batch_goes_through_all_tasks_of_its_worker_before_the_next_is_begun(tmp_path: Path) -> None:
    told: list[tuple[str, Any]] = []
    sink = Written("sink")
    pipeline = Pipeline(Producer([0, 1, 2, 3, 4, 5]) | Told("one", told) | Told("two", told) | sink)
    with whole_pipeline(pipeline, tmp_path, batch_size=2) as (worker, _):
        worker._turn()

    assert told == [("one", 0), ("two", 0), ("one", 2), ("two", 2), ("one", 4), ("two", 4)]


def test_what_has_come_from_others_goes_through_all_tasks_too_before_the_next_is_begun(tmp_path: Path) -> None:
    told: list[tuple[str, Any]] = []
    pipeline = Pipeline(Producer([]) | Told("one", told) | Told("two", told) | Written("sink"))
    with whole_pipeline(pipeline, tmp_path) as (worker, _):
        for item in (0, 2):
            payload = PickleCodec().encode([item])
            frame = Frame(TaskIndex(0), item, 1, (0,), FrameId(7), 0, PEER, Stage.PROCESS, False, payload)
            worker._hand(ME, frame)

    assert told == [("one", 0), ("two", 0), ("one", 2), ("two", 2)]


class Forwards(Node):
    """Refuses an item that a greater one has overtaken."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._last = -1

    def process(self, item: int) -> None:
        if item < self._last:
            raise ValueError(f"{item} comes after {self._last}")
        self._last = item


def test_no_item_overtakes_another_behind_a_node_that_sends_when_it_has_its_turn() -> None:
    limits = RateLimit(6000, name="first") | RateLimit(5000, name="second")
    pipeline = Pipeline(Producer(range(3000)) | limits | Forwards("forwards"))

    report = pipeline.run(mode="process", robustness="confirm", workers=1, batch_size=50)

    assert (report.completed, report.failed) == (3000, 0)


class Ticks(Copy):
    def on_timer(self) -> None:
        self.push("tick")


async def later(item: int) -> int:
    return item


def test_only_tasks_that_send_at_once_have_it_handed_over_at_once(tmp_path: Path) -> None:
    """Others would overtake what they have sent when they had their turn."""
    nodes = RateLimit(5000, name="limit") | AsyncMap(later, "later") | Copy("copy") | Ticks("ticks").every(1000)
    with whole_pipeline(Pipeline(Producer([]) | nodes | Copy("end")), tmp_path, robustness="confirm") as (worker, _):
        at_once = {host.node.name for host in worker._hosts.values() if host.sends_at_once}

    assert at_once == {"copy", "end"}


def test_a_batch_that_stays_in_its_worker_costs_two_commits_at_both_ends_and_one_to_be_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[str] = []
    apply = Journal.apply

    def note_and_apply(journal: Journal, changes: list[Any]) -> None:
        commits.append(journal.path.name)
        apply(journal, changes)

    monkeypatch.setattr(Journal, "apply", note_and_apply)
    sink = Written("sink")
    pipeline = Pipeline(Producer([1, 2, 3]) | Copy("node") | sink)
    with whole_pipeline(pipeline, tmp_path) as (worker, stores):
        for _ in range(5):
            if not worker._sources[TaskIndex(0)].origin.finished:
                worker._turn()

    assert sink.items == [1, 2, 3]
    at_source, at_sink = (Path(path).name for path in stores.values())
    assert commits.pop(0) == at_sink, "the generation that the sink's own origin begins with"
    assert commits == [at_source, at_sink, at_source, at_sink, at_source]


def test_quit_closes_and_leaves_no_socket(bench: Make) -> None:
    one = bench(Copy("node"))
    path = one.hear(control.Hello).endpoint.removeprefix("ipc://")

    closed = one.quit()

    assert closed.confirmed
    wait_for(lambda: not os.path.exists(path))
    assert one.error is None


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats come once an hour, but for what is told at once."""
    monkeypatch.setattr(worker, "BEAT_EVERY_S", 3600.0)


class Listening(Endless):
    address = ("127.0.0.1", 80)


def test_where_a_source_listens_is_told_at_once(bench: Make, seldom: None) -> None:
    one = bench(source=Listening(), timeout_s=1e6)

    one.hear(control.Began)

    assert one.hear_beat().address == ("127.0.0.1", 80)


def test_a_pause_and_its_end_are_told_at_once(bench: Make, seldom: None) -> None:
    one = bench(source=Endless(), timeout_s=1e6)
    one.wire()
    one.tell(control.Replay(after_death=False))
    one.receive(Frame)

    one.tell(control.Pause(True))
    assert one.hear_beat(unless=lambda beat: not beat.resting)
    one.tell(control.Pause(False))

    assert one.hear_beat(unless=lambda beat: beat.resting)


def test_the_first_that_is_completed_after_a_death_is_told_at_once(bench: Make, seldom: None) -> None:
    """With the next death it would be too late: where nothing is completed between two, the run ends."""
    one = bench(source=Endless(), timeout_s=1e6)
    one.wire()
    one.tell(control.Replay(after_death=True))
    frame = one.receive(Frame)
    one.hear_beat()

    one._outbox.send(TaskIndex(0), acknowledge(frame))

    assert one.hear_beat(unless=lambda beat: not beat.origin.completed)


def test_it_says_how_far_it_is_when_it_is_asked_whatever_user_code_is_at(bench: Make, seldom: None) -> None:
    node = Slow("node", step="process")
    one = bench(node, timeout_s=1e6)
    one.wire()
    one.tell(control.Replay(after_death=False))
    one.send([1])
    assert node.entered.wait(WAIT_S)

    one.tell(control.TellBeats())
    busy = one.hear_beat(unless=lambda beat: not beat.occupied_with)
    node.leave.set()

    assert busy.occupied_with == "process"


def test_beats_come_often_enough_to_tell_progress_from_none(bench: Make, seldom: None) -> None:
    one = bench(Copy("node"), timeout_s=1.0)

    for _ in range(3):
        one.hear_beat()


def test_it_tells_no_more_how_far_it_is_when_it_is_told_so_whatever_user_code_is_at(bench: Make) -> None:
    node = Slow("node", step="process")
    one = bench(node, timeout_s=1.0)
    one.wire()
    one.tell(control.Replay(after_death=False))
    one.send([1])
    assert node.entered.wait(WAIT_S)
    assert any(thread.name == "consecution-beat" for thread in threading.enumerate())

    one.tell(control.EndBeats())
    wait_for(lambda: all(thread.name != "consecution-beat" for thread in threading.enumerate()))
    node.leave.set()


def test_without_a_supervisor_it_ends(bench: Make) -> None:
    one = bench(Copy("node"))
    path = one.hear(control.Hello).endpoint.removeprefix("ipc://")

    one.pipe.close()

    wait_for(lambda: not os.path.exists(path))


def test_its_last_words_do_not_come_in_the_middle_of_a_beat(bench: Make) -> None:
    one = bench(Copy("node"))
    one.hear(control.Hello)
    worker = one.worker
    last = threading.Thread(target=_report, args=(worker._pipe, worker._spec, worker, ValueError("no")))

    with worker._lock:  # a long word is written in several pieces
        last.start()
        last.join(0.2)
        waits = last.is_alive()
    last.join(WAIT_S)

    assert waits
    assert one.hear(control.Failed).message == "ValueError: no"


def test_waking_it_after_its_end_writes_nowhere(bench: Make, tmp_path: Path) -> None:
    one = bench(Copy("node"))
    one.quit()
    one._thread.join(WAIT_S)
    files = [open(tmp_path / str(i), "wb") for i in range(20)]

    one.worker._wake()

    for file in files:
        file.close()
    assert [path for path in tmp_path.iterdir() if path.stat().st_size] == []


@pytest.mark.parametrize(
    "error",
    [
        SourceError("the file is shorter"),
        ShippingError("no", node="a", attribute="b"),
        DamagedStoreError("bad", path="x", record="y"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_our_own_are_told_whole(error: ConsecutionError) -> None:
    blob = _pickled(error)

    assert blob is not None
    found = pickle.loads(blob)
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))


def test_errors_of_users_are_told_as_text() -> None:
    assert _pickled(ValueError("no")) is None


def test_an_error_that_cannot_be_pickled_is_told_as_the_world_s() -> None:
    error = SourceError("no")
    error.lock = threading.Lock()  # type: ignore[attr-defined]

    blob = _pickled(error)

    assert blob is not None
    assert type(pickle.loads(blob)) is WorldError
