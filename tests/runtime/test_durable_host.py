"""A durable task: what it applies together, what failing items leave behind, and the end of its stream."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from consecution import AppendSink, Pipeline, Producer, Sink, StatefulNode
from consecution.errors import WorkerError
from consecution.protocol.values import Acks, Confirms, Frame, FrameId, Go, Gos, Stage, TaskIndex
from consecution.runtime import durable_host
from consecution.runtime.durable_host import DurableHost
from consecution.runtime.durable_store import DurableStore
from consecution.runtime.origin_host import process_codec
from consecution.runtime.state import look_at_state_dir
from consecution.sinks.text import TextLines
from tests.runtime.shells import SOURCE, Clock, Diary, WritingOutbox, plan_of


class Sum(StatefulNode):
    """Adds up; an item is refused the first time it comes. ``folder`` remembers, whatever process it is."""

    def __init__(self, folder: Path, *, refused: tuple[int, ...] = (), end_raises: bool = False) -> None:
        super().__init__("sum")
        self.folder = folder
        self.refused = refused
        self.end_raises = end_raises

    def process(self, item: int) -> None:
        tried = self.folder / f"tried {item}"
        if item in self.refused and not tried.exists():
            tried.touch()
            raise ValueError(f"{item} comes again")
        self.state["sum"] = self.state.get("sum", 0) + item

    def end(self) -> None:
        if self.end_raises:
            raise ZeroDivisionError("no end")
        self.push(self.state["sum"])


def run(path: Path, mode: str, node: Sum, **options: Any) -> list[str]:
    """Sum up 1 to 5; returns the lines that come out."""
    lines = path / "out.txt"
    pipeline = Pipeline(Producer([1, 2, 3, 4, 5], name="numbers") | node | TextLines("lines", path=lines))
    pipeline.run(mode=mode, robustness="robust", state_dir=path / "state", retry_delay_s=0.05, **options)
    return lines.read_text().split()


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_end_waits_for_items_that_failed_in_its_node(mode: str, tmp_path: Path) -> None:
    node = Sum(tmp_path, refused=(2, 5))

    assert run(tmp_path, mode, node) == ["15"]


@pytest.mark.parametrize("refused", [(), (3,)], ids=["at once", "after a retry"])
@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_an_end_that_raises_is_named_whenever_it_runs(mode: str, refused: tuple[int, ...], tmp_path: Path) -> None:
    node = Sum(tmp_path, refused=refused, end_raises=True)

    with pytest.raises(WorkerError, match=r"sum.*: end\(\) raised ZeroDivisionError: no end"):
        run(tmp_path, mode, node)


class Ticker(StatefulNode):
    def process(self, item: int) -> None:
        self.state["seen"] = item

    def on_timer(self) -> None:
        self.push(self.state.get("seen"))


def test_a_node_with_a_timer_has_on_record_that_it_has_ended(tmp_path: Path) -> None:
    """Its next incarnation would tick until it is told so, when those behind it have ended."""
    node = Ticker("ticker").every(1000)
    pipeline = Pipeline(Producer([1, 2, 3], name="numbers") | node | TextLines("lines", path=tmp_path / "out.txt"))

    pipeline.run(robustness="robust", state_dir=tmp_path / "state")

    state = look_at_state_dir(tmp_path / "state")
    (name,) = (name for name in state.origins if name.startswith("ticker"))
    with closing(state.journal(name)) as store:
        assert isinstance(store, DurableStore)
        assert store.has_ended


# -- what is applied together ----------------------------------------------------------------------


class Patient(Sink):
    """Takes its time, on a clock of its own, for each frame."""

    is_open = False

    def __init__(self, clock: Clock, took_s: float) -> None:
        super().__init__("patient")
        self.clock = clock
        self.took_s = took_s
        self.items: list[int] = []

    def open(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open = False

    def write(self, batch_id: Any, items: list[int]) -> None:
        self.clock.now_s += self.took_s
        self.items += items


@contextmanager
def begun(path: Path, sink: Patient, diary: Diary, *, is_new: bool = True) -> Iterator[DurableHost]:
    """The host of a sink, begun; what it sends is written down."""
    plan = plan_of(sink, robustness="robust")
    task = TaskIndex(plan.node(sink.name).tasks[0])
    name = plan.task(task).name
    if is_new:
        DurableStore(path, origin=name, epoch="e").close()
    codecs = process_codec(robust=True)
    outbox = WritingOutbox(diary)
    host = DurableHost(plan, task, sink, codecs, outbox, origin_name=str, path=path, epoch="e", now=sink.clock)
    host.begin()
    host.replay()
    try:
        yield host
    finally:
        host.close()


def decide(host: DurableHost, batches: int, items: int) -> None:
    """Batches of so many items come in, and then they are decided."""
    for seq in range(batches):
        payload = pickle.dumps(list(range(seq * items, (seq + 1) * items)))
        frame = Frame(SOURCE, seq, 1, (0,), FrameId(seq + 1), 0, SOURCE, Stage.PROCESS, False, payload)
        host.receive(frame)
    host.turn()
    host.receive(Gos(SOURCE, [Go(seq, 1, -1, 0, seq + 1) for seq in range(batches)]))


def confirmed(diary: Diary) -> list[list[int]]:
    """What each message confirms."""
    sent = [message for _, message in diary.all("send") if isinstance(message, Confirms)]
    return [[confirm.seq for confirm in message.confirms] for message in sent]


def test_a_sink_is_closed_where_its_store_cannot_be_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Patient(Clock(), 0.0)
    monkeypatch.setattr(DurableStore, "restore_inbox", lambda self: (_ for _ in ()).throw(OSError("unreadable")))

    with pytest.raises(OSError, match="unreadable"), begun(tmp_path / "store", sink, Diary()):
        pass

    assert not sink.is_open


def test_batches_that_are_decided_share_a_commit(tmp_path: Path) -> None:
    diary, sink = Diary(), Patient(Clock(), 0.0)
    with begun(tmp_path, sink, diary) as host:
        decide(host, batches=5, items=3)
        host.turn()

    assert confirmed(diary) == [[0, 1, 2, 3, 4]]
    assert sink.items == list(range(15))


@pytest.mark.parametrize(("took_s", "most_items"), [(0.2, 1_000_000), (0.0, 5)], ids=["time", "items"])
def test_no_batch_is_begun_for_a_commit_that_has_enough(
    took_s: float, most_items: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(durable_host, "GROUP_ITEMS", most_items)
    diary, sink = Diary(), Patient(Clock(), took_s)
    with begun(tmp_path, sink, diary) as host:
        decide(host, batches=5, items=3)
        while host.turn():
            pass

    assert confirmed(diary) == [[0, 1], [2, 3], [4]]
    assert sink.items == list(range(15))
    assert host.counts.items_in == 15


def receive_whole(host: DurableHost, batches: int) -> None:
    """Batches of one item come in, each of which is the whole of it."""
    for seq in range(batches):
        payload = pickle.dumps([seq])
        host.receive(
            Frame(SOURCE, seq, 1, (0,), FrameId(seq + 1), 0, SOURCE, Stage.PROCESS, False, payload, whole=True)
        )


class Looking(Patient):
    """Looks, when it is given something, what its store has."""

    host: DurableHost
    staged: list[bool]

    def write(self, batch_id: Any, items: list[int]) -> None:
        store: Any = self.host.origin_host.store  # type: ignore[union-attr]
        self.staged = [frame.whole for frame in store.restore_inbox()[1]]
        super().write(batch_id, items)


def test_what_is_the_whole_of_a_batch_is_on_disk_before_it_is_written_and_then_at_once(tmp_path: Path) -> None:
    diary, sink = Diary(), Looking(Clock(), 0.0)
    with begun(tmp_path / "store", sink, diary) as sink.host:
        receive_whole(sink.host, 2)

        assert sink.host.turn()

        assert (sink.items, sink.staged, diary.all("send")) == ([0, 1], [True, True], [])
        sink.host.turn()
        assert confirmed(diary) == [[0, 1]]


class Cut(Looking, AppendSink):
    """Grows, and is cut back to what was committed."""

    def flush(self) -> int:
        return len(self.items)

    def cut_to(self, end: int | None) -> None:
        del self.items[end or 0 :]


def test_a_sink_that_is_cut_back_is_given_it_before_and_one_commit_does_it_all(tmp_path: Path) -> None:
    diary, sink = Diary(), Cut(Clock(), 0.0)
    with begun(tmp_path / "store", sink, diary) as sink.host:
        receive_whole(sink.host, 2)
        sink.host.turn()

        assert (sink.items, sink.staged, confirmed(diary)) == ([0, 1], [], [[0, 1]])


def test_what_such_a_sink_was_given_and_no_commit_has_is_gone_and_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Cut(Clock(), 0.0)
    with begun(tmp_path / "store", sink, Diary()) as sink.host:
        monkeypatch.setattr(sink.host.origin_host, "turn", lambda: False)
        receive_whole(sink.host, 2)
        sink.host.turn()
        assert sink.items == [0, 1]

    diary = Diary()
    with begun(tmp_path / "store", sink, diary, is_new=False) as sink.host:
        assert sink.items == []
        receive_whole(sink.host, 2)
        sink.host.turn()

        assert (sink.items, confirmed(diary)) == ([0, 1], [[0, 1]])


def test_what_waits_behind_a_slow_one_is_acknowledged_meanwhile(tmp_path: Path) -> None:
    diary, sink = Diary(), Patient(Clock(), 10.0)
    with begun(tmp_path / "store", sink, diary) as host:
        receive_whole(host, 3)
        host.turn()
        assert sink.items == [0]
        host.turn()

        acks = [ack.seq for _, message in diary.all("send") if isinstance(message, Acks) for ack in message.acks]
        assert (sink.items, confirmed(diary), acks) == ([0], [[0]], [1, 2])
        while host.turn():
            pass
        assert (sink.items, confirmed(diary)) == ([0, 1, 2], [[0], [1], [2]])


def test_a_sink_is_given_nothing_of_a_fence(tmp_path: Path) -> None:
    diary, sink = Diary(), Patient(Clock(), 10.0)
    with begun(tmp_path / "store", sink, diary) as host:
        host.receive(Frame(SOURCE, 0, 2, (), FrameId(1), 0, SOURCE, Stage.PROCESS, False, b""))
        host.turn()
        host.receive(Gos(SOURCE, [Go(0, 2, -1, 0, 1)]))
        host.turn()

        assert (sink.items, sink.clock.now_s, confirmed(diary)) == ([], Clock().now_s, [[0]])


class Marks(StatefulNode):
    """Writes on its items, and keeps them; refuses one of them."""

    def process(self, item: list[str]) -> None:
        item.append("seen")
        if item[0] == "bad":
            raise ValueError("bad")
        self.state[item[0]] = item

    def end(self) -> None:
        for key in sorted(self.state):
            self.push(" ".join(self.state[key]))


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_items_are_as_they_came_where_they_are_run_again_because_another_one_raised(mode: str, tmp_path: Path) -> None:
    lines = tmp_path / "out.txt"
    items = [["a"], ["bad"], ["b"]]
    pipeline = Pipeline(Producer(items, name="items") | Marks("marks") | TextLines("lines", path=lines))

    report = pipeline.run(mode=mode, robustness="robust", state_dir=tmp_path / "state", retries=0)

    assert report.failed == 1
    assert lines.read_text().splitlines() == ["a seen", "b seen"]
