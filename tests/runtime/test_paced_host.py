"""Frames are passed on in parts, as many items as may, and the checksum of their tree says when all have passed."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from consecution import Node, RateLimit
from consecution.protocol.values import Ack, Acks, CreditReturn, Frame, FrameId, Stage, TaskIndex
from consecution.runtime.paced_host import PacedTaskHost
from consecution.transport.codec import ReusingCodec
from tests.runtime.shells import Clock, Diary, WritingOutbox, plan_of


class Pass(Node):
    def process(self, item: Any) -> None:
        self.push(item)


class Task:
    def __init__(self, per_second: float, burst: int, **options: Any) -> None:
        plan = plan_of(RateLimit(per_second, burst, "limit"), Pass("next"), **options)
        self.clock, self.diary, self.codec = Clock(), Diary(), ReusingCodec()
        index = TaskIndex(plan.node("limit").tasks[0])
        self.host = PacedTaskHost(
            plan,
            index,
            plan.node("limit").node,
            self.codec,
            WritingOutbox(self.diary),
            origin_name=str,
            clock=self.clock,
        )
        self.host.begin()

    def give(self, items: list[Any], seq: int = 0, generation: int = 0, frame_id: int = 1) -> None:
        frame = Frame(
            TaskIndex(0), seq, generation, (0,), FrameId(frame_id), 0, TaskIndex(0), Stage.PROCESS, True,
            pickle.dumps(items),
        )  # fmt: skip
        self.host.receive(frame)

    def after(self, seconds: float) -> list[list[Any]]:
        """What leaves when so much time has passed."""
        self.clock.now_s += seconds
        before = len(self.sent)
        while self.host.turn():
            pass
        self.host.flush()
        return [self.codec.decode(frame.payload) for frame in self.sent[before:]]

    @property
    def sent(self) -> list[Frame]:
        return [message for _, message in self.diary.all("send") if isinstance(message, Frame)]

    @property
    def acks(self) -> list[Ack]:
        return [a for _, message in self.diary.all("send") if isinstance(message, Acks) for a in message.acks]

    def open(self, seq: int = 0, generation: int = 0, frame_id: int = 1) -> int:
        """What an origin has in its checksum when the frames that left are done."""
        xor = frame_id
        for frame in self.sent:
            xor ^= frame.frame_id if (frame.seq, frame.generation) == (seq, generation) else 0
        for ack in self.acks:
            xor ^= ack.xor if (ack.seq, ack.generation) == (seq, generation) else 0
        return xor


def test_each_item_is_said_to_hold_the_next_one_up_for_as_long_as_the_pace_has_it() -> None:
    task = Task(10.0, 2)
    task.give([1, 2, 3, 4])

    for _ in range(4):
        task.after(0.1)

    assert sum(ack.load_s for ack in task.acks) == pytest.approx(0.4)


def test_items_leave_as_they_may_and_the_tree_is_open_until_the_last_has_left() -> None:
    task = Task(10.0, 2)
    task.give([1, 2, 3, 4])
    assert task.after(0.0) == []
    assert [task.codec.decode(frame.payload) for frame in task.sent] == [[1, 2]]
    assert task.open() != 0
    assert task.host.next_wake_s() == 0.1

    assert task.after(0.05) == []
    assert task.after(0.051) == [[3]]
    assert task.open() != 0
    assert not any(isinstance(message, CreditReturn) for _, message in task.diary.all("send"))
    assert task.after(0.1) == [[4]]
    assert task.open() == 0
    assert task.host.next_wake_s() is None
    assert [m.count for _, m in task.diary.all("send") if isinstance(m, CreditReturn)] == [1]
    assert len({frame.path for frame in task.sent}) == 3
    assert [frame.path for frame in task.sent] == sorted(frame.path for frame in task.sent)
    assert len({ack.xor for ack in task.acks}) == len(task.acks)
    counts = task.host.counts
    assert (counts.frames, counts.items_in, counts.items_out) == (1, 4, 4)


def test_frames_leave_in_the_order_in_which_they_came() -> None:
    task = Task(1000.0, 3)
    task.give([1, 2], seq=0, frame_id=1)
    task.give([3, 4], seq=1, frame_id=2)

    assert task.after(0.003) == [[4]]
    assert [task.codec.decode(frame.payload) for frame in task.sent] == [[1, 2], [3], [4]]
    assert (task.open(0, 0, 1), task.open(1, 0, 2)) == (0, 0)


def test_a_batch_that_runs_again_takes_the_place_of_what_waits() -> None:
    task = Task(1.0, 1)
    for seq in range(3):
        task.give([f"first {seq}"], seq=seq, frame_id=seq + 1)
    task.give(["again 1"], seq=1, generation=1, frame_id=9)

    assert [task.after(1.0) for _ in range(4)] == [[["again 1"]], [["first 2"]], [], []]
    assert task.open(1, 1, 9) == 0


def test_who_waits_long_shows_that_it_waits() -> None:
    task = Task(0.001, 1, timeout_s=5.0)
    task.give([1, 2])
    told = len(task.acks)
    for _ in range(4):
        assert task.after(2.5) == []

    assert len(task.acks) == told + 2 + (told == 0)
    assert task.open() != 0
    assert len({ack.xor for ack in task.acks}) == len(task.acks)
    assert task.after(1000.0) == [[2]]
    assert task.open() == 0
