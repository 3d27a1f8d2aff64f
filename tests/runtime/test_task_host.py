from __future__ import annotations

import pickle
import time
from typing import Any

import pytest

from consecution import Node
from consecution.plan import Plan
from consecution.protocol.values import Ack, Acks, BatchId, CreditReturn, Frame, FrameId, Stage, TaskIndex
from consecution.runtime import task_host
from consecution.runtime.task_host import TaskHost
from consecution.sink import Sink
from consecution.transport.codec import ReusingCodec
from tests.runtime.shells import Diary, WritingOutbox, plan_of


class Doubles(Node):
    def begin(self) -> None:
        self.calls = ["begin"]

    def process(self, item: Any) -> None:
        if item == "bad":
            raise ValueError(item)
        self.push(item)
        self.push(item)


class Pass(Node):
    def process(self, item: Any) -> None:
        self.push(item)


class Summing(Node):
    def begin(self) -> None:
        self.sum = 0

    def process(self, item: Any) -> None:
        self.sum += item

    def end(self) -> None:
        self.push(self.sum)
        for number in range(self.sum):
            self.push(number)
        if self.sum == 13:
            raise ValueError("unlucky")


class Ticks(Node):
    def process(self, item: Any) -> None:
        pass

    def on_timer(self) -> None:
        self.push("tick")


class Keeps(Sink):
    def open(self) -> None:
        self.written: list[Any] = [("open", self.sync)]

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        self.written.append((batch_id, items))

    def close(self) -> None:
        self.written.append("close")


class Task:
    """A host of the first task of a node, with everything it sends written down."""

    def __init__(self, plan: Plan, name: str) -> None:
        self.codec = ReusingCodec()
        self.diary = Diary()
        self.index = TaskIndex(plan.node(name).tasks[0])
        self.node = plan.node(name).node
        assert self.node is not None
        self.host = TaskHost(
            plan,
            self.index,
            self.node,
            self.codec,
            WritingOutbox(self.diary),
            origin_name=lambda task: f"{plan.task(task).name}@one",
        )

    def frame(self, items: list[Any], seq: int = 0, frame_id: int = 1, **fields: Any) -> Frame:
        values = {
            "origin": TaskIndex(0),
            "generation": 3,
            "path": (0,),
            "low": 0,
            "sender": TaskIndex(0),
            "stage": Stage.PROCESS,
            "credited": False,
            **fields,
        }
        return Frame(seq=seq, frame_id=FrameId(frame_id), payload=pickle.dumps(items), **values)  # type: ignore[arg-type]

    def frames(self) -> list[tuple[TaskIndex, list[Any]]]:
        sent = self.diary.all("send")
        return [(target, self.codec.decode(m.payload)) for target, m in sent if isinstance(m, Frame)]

    def acks(self) -> list[tuple[TaskIndex, Acks]]:
        return [(target, m) for target, m in self.diary.all("send") if isinstance(m, Acks)]

    def begin_with(self, item: Any) -> None:
        """The first frame of an origin is always acknowledged."""
        self.host.receive(self.frame([item], seq=1, frame_id=1000, whole=True))
        self.host.flush()
        assert self.acks()
        self.diary.clear()


def two_steps(**options: Any) -> Plan:
    return plan_of(Doubles("double"), Pass("pass"), **options)


@pytest.mark.parametrize(("timeout_s", "acknowledged"), [(1.0, True), (30.0, False)])
def test_the_whole_of_a_batch_is_passed_on_in_silence_only_for_a_small_part_of_the_timeout(
    timeout_s: float, *, acknowledged: bool
) -> None:
    task = Task(plan_of(Pass("first"), Pass("second"), timeout_s=timeout_s), "first")
    task.begin_with(0)

    task.host.receive(task.frame([1], whole=True, sent_s=time.monotonic() - 0.2))
    task.host.flush()

    assert task.frames() == [(2, [1])]
    assert bool(task.acks()) is acknowledged


@pytest.mark.parametrize(("max_pending", "acknowledged"), [(2000, True), (64, False)])
def test_the_whole_of_a_batch_is_passed_on_in_silence_only_if_many_of_its_size_are_little_beside_the_window(
    max_pending: int, *, acknowledged: bool
) -> None:
    plan = plan_of(Pass("first"), Pass("second"), max_pending=max_pending, max_pending_bytes=1_000_000)
    task = Task(plan, "first")
    task.begin_with("x")

    task.host.receive(task.frame(["x" * 2000], whole=True))
    task.host.flush()

    assert task.frames() == [(2, ["x" * 2000])]
    assert bool(task.acks()) is acknowledged


# -- frames ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dear_s", "told"), [(0.0, [CreditReturn, Acks]), (1000.0, [])])
def test_a_dear_frame_is_answered_for_at_once(monkeypatch: pytest.MonkeyPatch, dear_s: float, told: list[type]) -> None:
    monkeypatch.setattr(task_host, "DEAR_S", dear_s)
    task = Task(two_steps(), "double")

    task.host.receive(task.frame(["x"], credited=True))

    assert [type(message) for _, message in task.diary.all("send")] == [Frame, *told]
    task.host.flush()
    assert [type(message) for _, message in task.diary.all("send")] == [Frame, CreditReturn, Acks]


def test_outputs_are_sent_at_once_and_acknowledged_at_the_flush() -> None:
    task = Task(two_steps(), "double")
    task.host.begin()

    task.host.receive(task.frame(["x"], frame_id=5))
    assert task.frames() == [(2, ["x", "x"])]
    assert task.acks() == []
    task.host.flush()

    ((target, acks),) = task.acks()
    ((_, sent), _) = task.diary.all("send")
    assert (target, acks.sender) == (0, 1)
    assert [(ack.seq, ack.generation, ack.xor) for ack in acks.acks] == [(0, 3, 5 ^ sent.frame_id)]
    assert acks.acks[0].produced_bytes == len(sent.payload)


def test_the_acks_of_a_loop_turn_are_one_message_per_origin() -> None:
    task = Task(two_steps(), "pass")
    for number, origin in enumerate([0, 1, 0, 1, 0]):
        task.host.receive(task.frame(["x"], seq=number, frame_id=number + 1, origin=TaskIndex(origin)))

    task.host.flush()
    task.host.flush()

    found = {target: [ack.seq for ack in acks.acks] for target, acks in task.acks()}
    assert found == {0: [0, 2, 4], 1: [1, 3]}
    assert len(task.acks()) == 2


def test_a_failing_item_travels_with_the_ack_and_its_neighbours_go_on() -> None:
    task = Task(two_steps(), "double")

    task.host.receive(task.frame(["a", "bad", "b"]))
    task.host.flush()

    assert task.frames() == [(2, ["a", "a", "b", "b"])]
    ((_, acks),) = task.acks()
    (failed,) = acks.acks[0].failed
    assert (failed.task, failed.stage, failed.shown) == (1, Stage.PROCESS, "'bad'")
    assert pickle.loads(failed.payload) == ["bad"]


def test_a_repeated_frame_is_neither_run_nor_acknowledged_but_owes_its_credit() -> None:
    task = Task(two_steps(), "double")
    for _ in range(2):
        task.host.receive(task.frame(["x"], credited=True))

    task.host.flush()

    assert len(task.frames()) == 1
    assert [len(acks.acks) for _, acks in task.acks()] == [1]
    assert task.diary.all("send")[1:-1] == [(0, CreditReturn(TaskIndex(1), 2))]


def test_credits_go_back_to_each_sender() -> None:
    task = Task(two_steps(), "pass")
    for number, sender in enumerate([0, 1, 1]):
        task.host.receive(task.frame(["x"], seq=number, frame_id=number + 1, sender=TaskIndex(sender), credited=True))

    task.host.flush()

    returned = [(target, m.count) for target, m in task.diary.all("send") if isinstance(m, CreditReturn)]
    assert sorted(returned) == [(0, 1), (1, 2)]
    assert all(m.replica == 2 for _, m in task.diary.all("send") if isinstance(m, CreditReturn))


def test_what_a_sender_sends_for_the_credit_it_gets_is_owed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that waited for the credit arrives while credits and acknowledgements are being sent."""
    task = Task(two_steps(), "double")
    waiting = [task.frame(["y"], seq=1, frame_id=2, sender=TaskIndex(5), credited=True)]
    write = WritingOutbox.send

    def send(self: WritingOutbox, target: TaskIndex, message: Any) -> None:
        write(self, target, message)
        if isinstance(message, CreditReturn) and waiting:
            task.host.receive(waiting.pop())

    monkeypatch.setattr(WritingOutbox, "send", send)
    task.host.receive(task.frame(["x"], credited=True))
    task.host.flush()
    task.host.flush()

    assert [target for target, m in task.diary.all("send") if isinstance(m, CreditReturn)] == [0, 5]
    assert [acks.acks[0].seq for _, acks in task.acks()] == [0, 1]


def test_credits_choose_the_replica_until_a_new_incarnation_owes_nothing() -> None:
    task = Task(plan_of(Pass("first"), Pass("many") * 2), "first")

    def send(*numbers: int) -> list[int]:
        task.diary.clear()
        for number in numbers:
            task.host.receive(task.frame(["x"], seq=number, frame_id=number + 1))
        return [target for target, _ in task.frames()]

    assert sorted(send(0, 1)) == [2, 3]
    task.host.receive(CreditReturn(TaskIndex(3), 1))
    assert send(2) == [3]
    task.host.replica_restarted(TaskIndex(2))
    assert send(3) == [2]


# -- sinks -----------------------------------------------------------------------------------------


def test_a_sink_is_opened_written_with_the_batch_and_closed() -> None:
    task = Task(plan_of(Keeps("keep"), sync="process"), "keep")
    assert isinstance(task.node, Keeps)

    task.host.begin()
    task.host.receive(task.frame(["a", "b"], seq=7))
    task.host.close()

    batch_id = BatchId("source.0@one", 7, 3, (0,))
    assert task.node.written == [("open", "process"), (batch_id, ["a", "b"]), "close"]


def test_other_nodes_begin_and_are_not_closed() -> None:
    task = Task(two_steps(), "double")
    assert isinstance(task.node, Doubles)

    task.host.begin()
    task.host.close()

    assert task.node.calls == ["begin"]


def test_who_watches_can_see_that_user_code_runs() -> None:
    seen: list[str] = []

    class Looks(Node):
        def begin(self) -> None:
            seen.append(task.host.occupied_with)

        def process(self, item: Any) -> None:
            seen.append(task.host.occupied_with)

        def end(self) -> None:
            seen.append(task.host.occupied_with)

    task = Task(plan_of(Looks("look"), robustness="track"), "look")
    task.host.begin()
    task.host.receive(task.frame(["x"]))
    task.host.end()

    assert seen == ["begin", "process", "end"]
    assert task.host.occupied_with == ""


# -- the end ---------------------------------------------------------------------------------------


def summing(**options: Any) -> Task:
    task = Task(plan_of(Summing("sum"), Pass("pass"), **{"robustness": "track", **options}), "sum")
    task.host.begin()
    return task


def finish(task: Task) -> list[Any]:
    """Acknowledge whatever the task has sent until it has ended. Returns all items it had sent."""
    found: list[Any] = []
    for _ in range(1000):
        task.host.turn()
        sent = [m for _, m in task.diary.all("send") if isinstance(m, Frame)]
        task.diary.clear()
        found += [item for frame in sent for item in task.codec.decode(frame.payload)]
        acks = [Ack(frame.seq, frame.generation, frame.frame_id, 0, ()) for frame in sent]
        task.host.receive(Acks(TaskIndex(2), acks))
        if task.host.ended:
            return found
    raise AssertionError("it never ended")


def test_what_end_pushes_is_sent_as_the_tasks_own_batches_within_the_window() -> None:
    task = summing(max_pending=2, batch_size=10)
    task.host.receive(task.frame([60, 40]))
    task.diary.clear()

    task.host.end()
    assert not task.host.ended
    task.host.turn()
    frames = [m for _, m in task.diary.all("send")]

    assert [frame.origin for frame in frames] == [1, 1]
    assert finish(task) == [100, *range(100)]
    assert not task.host.turn()


def test_a_node_that_pushes_nothing_has_ended_after_a_turn() -> None:
    task = Task(plan_of(Pass("pass"), robustness="track"), "pass")

    assert not task.host.ended
    assert not task.host.turn()
    task.host.end()
    task.host.turn()

    assert task.host.ended


def test_what_was_pushed_before_end_raises_is_sent_and_then_it_is_raised() -> None:
    task = summing()
    task.host.receive(task.frame([13]))
    task.diary.clear()

    with pytest.raises(ValueError, match="unlucky"):
        task.host.end()

    assert finish(task) == [13, *range(13)]


@pytest.mark.parametrize(("robustness", "kept"), [("none", 0), ("confirm", 0), ("track", 1)])
def test_an_item_of_end_that_failed_below_is_kept_at_track_only(robustness: str, kept: int) -> None:
    task = summing(robustness=robustness)
    task.host.end()
    task.host.turn()
    ((_, sent),) = task.diary.all("send")
    below = Task(plan_of(Doubles("double")), "double")
    below.host.receive(below.frame(["bad"]))
    below.host.flush()
    failed = below.acks()[0][1].acks[0].failed

    task.host.receive(Acks(TaskIndex(2), [Ack(sent.seq, sent.generation, sent.frame_id, 0, failed)]))
    task.host.turn()

    assert task.host.ended
    assert task.host.origin_host is not None
    assert task.host.origin_host.origin.counts().failed == 1
    assert len(task.host.origin_host.store.failures(10)) == kept


def test_a_death_closes_what_end_pushed_as_not_confirmed() -> None:
    task = summing()
    task.host.abandon()
    task.host.receive(task.frame([3]))
    task.host.end()
    task.host.turn()

    task.host.abandon()
    task.host.turn()

    assert task.host.ended
    assert task.host.origin_host is not None
    assert not task.host.origin_host.confirmed


def ticking() -> Task:
    return Task(plan_of(Ticks("ticks").every(0.001) | Pass("below"), robustness="confirm"), "ticks")


def turn_until_it_has_ticked(task: Task) -> Frame:
    deadline_s = time.monotonic() + 30
    while not task.diary.all("send"):
        assert time.monotonic() < deadline_s
        task.host.turn()
    ((_, sent),) = task.diary.all("send")
    assert isinstance(sent, Frame)
    return sent


@pytest.mark.parametrize("wired", ["replay", "abandon"])
def test_a_timer_does_not_tick_before_what_it_pushes_reaches_anybody(wired: str) -> None:
    task = ticking()
    task.host.begin()
    time.sleep(0.005)  # time that passes cannot fail this

    assert task.host.next_wake_s() is None
    assert not task.host.turn()
    getattr(task.host, wired)()

    assert turn_until_it_has_ticked(task).origin == task.index


def test_who_drains_waits_for_what_its_timer_has_pushed_and_pushes_nothing_more() -> None:
    task = ticking()
    task.host.begin()
    task.host.replay()
    sent = turn_until_it_has_ticked(task)

    task.host.drain()
    assert not task.host.ended
    task.host.receive(Acks(TaskIndex(2), [Ack(sent.seq, sent.generation, sent.frame_id, 0, ())]))
    task.host.turn()

    assert task.host.ended
    assert task.host.next_wake_s() is None
