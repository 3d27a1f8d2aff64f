"""The life of one frame in one task: what is sent, what is acknowledged, what fails."""

from __future__ import annotations

import dataclasses
import functools
import operator
import os
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consecution.errors import OutageError
from consecution.nodes import Filter, FlatMap, Map, Node
from consecution.protocol.dispatch import Dispatch, RouteOutlet, SingleEdge
from consecution.protocol.step import QUIET_BYTES, QUIET_S, Step, describe_failure, shorten_repr
from consecution.protocol.values import QUIET_LOAD_S, BatchId, Frame, FrameId, Stage, TaskIndex

SOURCE, TASK, NEXT = TaskIndex(0), TaskIndex(1), TaskIndex(2)


class PlainCodec:
    """Lists as they are; the item "stone" cannot be encoded."""

    def encode(self, items: Sequence[Any]) -> list[Any]:
        if "stone" in items:
            raise TypeError("a stone cannot be encoded")
        return list(items)

    def decode(self, payload: Any) -> Any:
        return payload if isinstance(payload, range) else list(payload)

    def size(self, payload: Any) -> int:
        return 10 * len(payload)

    def encode_failed(self, item: Any) -> list[Any]:
        return self.encode([item])


class Inverse(Node):
    """Pushes the item twice, then divides by it, then pushes the result."""

    def process(self, item: Any) -> None:
        self.push(item)
        self.push(item)
        self.push(12 / item)


def make_step(
    node: Node | None = None,
    *,
    write: Callable[[BatchId, list[Any]], None] | None = None,
    outlets: Any = None,
    skips_decided: bool = False,
    lets_through: tuple[type[BaseException], ...] = (),
    clock: Callable[[], float] = time.monotonic,
    quiet_bytes: int = QUIET_BYTES,
    quiet_s: float = QUIET_S,
) -> Step:
    ids = (FrameId(1 << place) for place in count(8))
    found = (SingleEdge(0, NEXT),) if outlets is None else outlets
    codec = PlainCodec()
    dispatch = Dispatch(TASK, found, codec, ids.__next__, edge_count=3, max_frame_items=100)
    return Step(
        TASK,
        node or Map(lambda item: item),
        dispatch,
        codec,
        write=write,
        origin_names=lambda task: f"origin {task}",
        skips_decided=skips_decided,
        lets_through=lets_through,
        clock=clock,
        quiet_bytes=quiet_bytes,
        quiet_s=quiet_s,
    )


def frame(
    *items: Any, seq: int = 0, frame_id: int = 1, low: int = 0, stage: Stage = Stage.PROCESS, whole: bool = False
) -> Frame:
    return Frame(SOURCE, seq, 4, (5,), FrameId(frame_id), low, SOURCE, stage, False, list(items), whole=whole)


# -- what is sent --------------------------------------------------------------------------------


def test_what_the_node_pushed_is_sent_on_as_part_of_the_same_execution() -> None:
    step = make_step(Map(str))

    sent, ack = step.run(frame(1, 2, seq=7, low=3))

    ((target, out),) = sent
    assert target == NEXT
    assert (out.origin, out.seq, out.generation, out.low, out.payload) == (SOURCE, 7, 4, 3, ["1", "2"])
    assert (out.path, out.sender, out.stage) == ((5, 0), TASK, Stage.PROCESS)
    assert ack is not None
    assert (ack.seq, ack.generation, ack.xor, ack.produced_bytes) == (7, 4, 1 ^ out.frame_id, 20)


@pytest.mark.parametrize(
    ("outlets", "items", "whole"),
    [
        (1, [3, 4], True),
        (2, [3, 4], False),
        (1, [3, 0], False),
        (1, [3, "stone"], False),
    ],
    ids=["one frame", "two frames", "an item raised", "an item was not sent"],
)
def test_the_whole_of_a_batch_stays_it_if_one_frame_is_all_it_becomes(
    outlets: int, items: list[Any], whole: bool
) -> None:
    node = Map(lambda item: item if item == "stone" else 12 / item)
    step = make_step(node, outlets=tuple(SingleEdge(index, NEXT) for index in range(outlets)))

    whole_sent, _ = step.run(frame(*items, whole=True))
    part_sent, _ = step.run(frame(*items, frame_id=2))

    assert [message.frame.whole for message in whole_sent] == [whole] * outlets
    assert not any(message.frame.whole for message in part_sent)


def test_the_whole_of_a_batch_hands_its_id_on_to_the_one_frame_that_it_becomes_and_nobody_is_told() -> None:
    step = make_step(quiet_bytes=20)
    assert step.run(frame(3, seq=1, frame_id=8, whole=True))[1] is not None, "the first tells what an item costs"

    small_sent, small_ack = step.run(frame(3, 4, frame_id=9, whole=True))
    large_sent, large_ack = step.run(frame(3, 4, 5, frame_id=10, whole=True))
    part_sent, part_ack = step.run(frame(3, 4, frame_id=11))

    assert [message.frame.frame_id for message in small_sent] == [9]
    assert small_ack is None
    for ident, sent, ack in ((10, large_sent, large_ack), (11, part_sent, part_ack)):
        assert ack is not None
        assert ack.xor == ident ^ sent[0].frame.frame_id != 0
    assert large_ack is not None
    assert large_ack.produced_bytes == 30


def test_the_whole_of_a_batch_takes_along_how_long_tasks_were_at_it_whether_they_have_said_so_or_not() -> None:
    times_s = iter((1.0, 1.5, 2.0, 2.001, 3.0, 3.5))
    step = make_step(clock=times_s.__next__)
    arriving, following, part = (frame(3, frame_id=ident, whole=ident < 11) for ident in (9, 10, 11))
    arriving.load_s = 0.25

    sent, acks = zip(*(step.run(each) for each in (arriving, following, part)), strict=True)

    assert [made.frame.load_s for (made,) in sent] == [0.75, pytest.approx(0.001), 0.0]
    assert [ack and ack.load_s for ack in acks] == [0.5, None, 0.5], "each task says what it was at it itself"


def test_the_whole_of_a_batch_that_took_long_is_acknowledged() -> None:
    times_s = iter((0.0, QUIET_LOAD_S, 2.0, 2.0 + QUIET_LOAD_S / 2))
    step = make_step(clock=times_s.__next__)

    (long_sent,), long_ack = step.run(frame(3, frame_id=9, whole=True))
    (short_sent,), short_ack = step.run(frame(3, frame_id=10, whole=True))

    assert long_ack is not None
    assert long_ack.xor == 9 ^ long_sent.frame.frame_id != 0
    assert long_ack.load_s == QUIET_LOAD_S
    assert (short_sent.frame.frame_id, short_ack) == (10, None)


def test_the_whole_of_a_batch_that_waited_long_is_acknowledged() -> None:
    step = make_step(clock=lambda: 7.0, quiet_s=0.5)
    late, early = frame(3, frame_id=9, whole=True), frame(3, frame_id=10, whole=True)
    late.sent_s, early.sent_s = 6.5, 6.6

    (late_sent,), late_ack = step.run(late)
    (early_sent,), early_ack = step.run(early)

    assert late_ack is not None
    assert late_ack.xor == 9 ^ late_sent.frame.frame_id != 0
    assert (early_sent.frame.frame_id, early_ack) == (10, None)


def test_the_whole_of_a_batch_that_was_held_long_is_acknowledged_though_others_kept_the_node_busy_meanwhile() -> None:
    times_s = iter((7.0, 7.0, 7.0 + QUIET_S, 7.0 + QUIET_S, 9.0, 9.0, 9.0))
    step = make_step(clock=times_s.__next__)
    held = step.take(frame(3, frame_id=9, whole=True))
    other = step.take(frame(3, frame_id=10, whole=True))
    assert held is not None
    assert other is not None
    other.since_s = 8.5

    (long_sent,), long_ack = step.put(held, [3], [], busy_s=0.0)
    (short_sent,), short_ack = step.put(other, [3], [], busy_s=0.0)

    assert long_ack is not None
    assert long_ack.xor == 9 ^ long_sent.frame.frame_id != 0
    assert long_ack.load_s == 0.0, "no other frame had to wait for it"
    assert (short_sent.frame.frame_id, short_ack) == (10, None)


@pytest.mark.parametrize(
    ("outlets", "items"),
    [(2, [3]), (1, [0]), (1, ["stone"]), (0, [3])],
    ids=["two frames", "raised", "not sent", "none"],
)
def test_the_whole_of_a_batch_that_becomes_anything_else_is_acknowledged(outlets: int, items: list[Any]) -> None:
    node = Map(lambda item: item if item == "stone" else 12 / item)
    step = make_step(node, outlets=tuple(SingleEdge(index, NEXT) for index in range(outlets)))

    sent, ack = step.run(frame(*items, frame_id=9, whole=True))

    assert ack is not None
    assert ack.xor == functools.reduce(operator.xor, (message.frame.frame_id for message in sent), 9) != 0


def test_a_frame_that_becomes_nothing_is_acknowledged_with_its_own_id() -> None:
    sent, ack = make_step(Filter(bool)).run(frame(0, None, frame_id=99))

    assert sent == []
    assert ack is not None
    assert (ack.xor, ack.failed) == (99, ())


def test_a_frame_that_enters_behind_the_node_is_only_routed() -> None:
    sent, _ = make_step(Map(str)).run(frame(1, stage=Stage.ROUTE))

    assert sent[0].frame.payload == [1]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(-3, 3), max_size=12))
def test_a_failing_item_takes_no_neighbour_down_and_leaves_nothing_behind(items: list[int]) -> None:
    sent, ack = make_step(Inverse("inverse")).run(frame(*items))

    assert [out for message in sent for out in message.frame.payload] == [
        out for item in items if item for out in (item, item, 12 / item)
    ]
    assert ack is not None
    assert [failed.payload for failed in ack.failed] == [[item] for item in items if not item]


@pytest.mark.parametrize("node", [Map(lambda i: 12 / i), FlatMap(lambda i: [12 / i]), Filter(lambda i: 12 / i)])
def test_nodes_with_loops_of_their_own_name_the_right_item_too(node: Node) -> None:
    _, ack = make_step(node).run(frame(1, 0, 2, 0))

    assert ack is not None
    assert [failed.shown for failed in ack.failed] == ["0", "0"]
    assert {failed.error for failed in ack.failed} == {"ZeroDivisionError: division by zero"}


def test_a_traceback_shows_the_users_part_alone() -> None:
    _, ack = make_step(Inverse("inverse")).run(frame(0))

    assert ack is not None
    (failed,) = ack.failed
    assert "in process" in failed.traceback
    assert f"{os.sep}step.py" not in failed.traceback
    assert (failed.task, failed.stage, failed.retryable) == (TASK, Stage.PROCESS, True)


@pytest.mark.parametrize("raised", [SystemExit(3), GeneratorExit(), RuntimeError("no")])
def test_user_code_cannot_take_the_task_down(raised: BaseException) -> None:
    def raise_it(item: Any) -> None:
        raise raised

    _, ack = make_step(Map(raise_it)).run(frame(1))

    assert ack is not None
    assert ack.failed[0].error.startswith(type(raised).__name__)


def test_an_interrupt_does_and_so_do_errors_that_are_let_through() -> None:
    def raise_it(error: BaseException) -> None:
        raise error

    with pytest.raises(KeyboardInterrupt):
        make_step(Map(raise_it)).run(frame(KeyboardInterrupt()))
    with pytest.raises(LookupError):
        make_step(Map(raise_it), lets_through=(LookupError,)).run(frame(LookupError()))


class Stubborn(Node):
    """Raises before it takes an item; or returns without one."""

    raises = True

    def _process_frame(self, cursor: Iterator[Any], out: list[Any]) -> None:
        if self.raises:
            raise ValueError("not my day")


def test_an_error_that_is_no_items_fault_is_raised_instead_of_going_round_for_ever() -> None:
    with pytest.raises(ValueError, match="not my day"):
        make_step(Stubborn("stubborn")).run(frame(1, 2))
    with pytest.raises(RuntimeError, match="without taking an item"):
        make_step(Stubborn("stubborn", raises=False)).run(frame(1, 2))


# -- what cannot be sent -------------------------------------------------------------------------


class Picky:
    """A route that knows even numbers and odd ones, and nothing else."""

    ways = 2

    def split(self, items: list[Any]) -> list[list[Any]]:
        parts: list[list[Any]] = [[], []]
        for item in items:
            parts[item % 2].append(item)
        return parts


def test_an_item_without_a_way_fails_behind_the_node_and_its_neighbours_go_on() -> None:
    outlets = (RouteOutlet(Picky(), ((SingleEdge(0, NEXT),), (SingleEdge(1, NEXT),))),)
    step = make_step(outlets=outlets)

    sent, ack = step.run(frame(1, None, 2))

    assert [message.frame.payload for message in sent] == [[1], [2]]
    assert ack is not None
    (failed,) = ack.failed
    assert (failed.stage, failed.payload, failed.retryable) == (Stage.ROUTE, [None], True)
    assert step.counts.failed == 1


def test_an_item_that_cannot_be_encoded_is_not_tried_again() -> None:
    sent, ack = make_step().run(frame("leaf", "stone"))

    assert [message.frame.payload for message in sent] == [["leaf"]]
    assert ack is not None
    (failed,) = ack.failed
    assert (failed.stage, failed.payload, failed.retryable, failed.shown) == (Stage.ROUTE, None, False, "'stone'")
    assert "cannot be kept for another try" in failed.traceback


# -- repeats -------------------------------------------------------------------------------------


def test_a_repeated_frame_is_neither_run_nor_acknowledged_again() -> None:
    step = make_step()
    step.run(frame(1, frame_id=5))

    assert step.run(frame(1, frame_id=5)) == ([], None)
    assert step.run(frame(1, frame_id=6))[1] is not None
    assert step.counts.items_in == 2


def test_of_batches_that_are_decided_nothing_is_remembered() -> None:
    step = make_step()
    for seq in range(100):
        step.run(frame(seq, seq=seq, frame_id=seq + 1, low=seq - 3))

    (known,) = step._known.values()
    assert sorted(known.frames) == [96, 97, 98, 99]


def test_what_is_left_over_of_a_decided_batch_is_not_run_where_there_is_a_journal() -> None:
    """A late frame of an execution that was thrown away reached sinks after the decision."""
    step = make_step(skips_decided=True)
    step.run(frame(1, seq=9, frame_id=5, low=8))

    assert step.run(frame(1, seq=7, frame_id=6)) == ([], None)
    assert step.run(frame(1, seq=8, frame_id=7))[1] is not None


def test_without_a_journal_items_of_a_batch_that_was_given_up_go_on() -> None:
    step = make_step()
    step.run(frame(1, seq=9, frame_id=5, low=8))

    assert step.run(frame(1, seq=7, frame_id=6))[1] is not None


# -- sinks ---------------------------------------------------------------------------------------


class Collector:
    """A sink's write: refuses negative numbers, and then takes none of the call's items."""

    def __init__(self) -> None:
        self.calls: list[tuple[BatchId, list[Any]]] = []

    def __call__(self, batch_id: BatchId, items: list[Any]) -> None:
        if any(item < 0 for item in items):
            raise ValueError("negative")
        self.calls.append((batch_id, list(items)))


def test_a_sink_gets_the_whole_frame_with_its_identity() -> None:
    write = Collector()

    sent, ack = make_step(write=write).run(frame(1, 2, seq=7))

    assert write.calls == [(BatchId("origin 0", 7, 4, (5,)), [1, 2])]
    assert sent == []
    assert ack is not None
    assert (ack.xor, ack.failed) == (1, ())


def test_a_sink_that_raises_is_offered_the_items_half_by_half() -> None:
    write = Collector()

    _, ack = make_step(write=write).run(frame(1, -2, 3))

    assert [items for _, items in write.calls] == [[1], [3]]
    assert ack is not None
    assert [failed.payload for failed in ack.failed] == [[-2]]


def test_one_item_at_fault_among_many_is_found_in_few_calls_and_order_is_kept() -> None:
    write, calls = Collector(), []

    def counting(batch_id: BatchId, items: list[Any]) -> None:
        calls.append(len(items))
        write(batch_id, items)

    _, ack = make_step(write=counting).run(frame(*range(1, 500), -7, *range(500, 1024)))

    assert [item for _, items in write.calls for item in items] == list(range(1, 1024))
    assert ack is not None
    assert [failed.payload for failed in ack.failed] == [[-7]]
    assert len(calls) == 1 + 2 * 10


def test_a_range_is_gone_through_as_a_list_of_its_numbers_is() -> None:
    of_range, of_list = (dataclasses.replace(frame(), payload=payload) for payload in (range(-2, 3), [*range(-2, 3)]))

    (sent, ack), (sent_of_list, ack_of_list) = (
        make_step(Inverse("inverse"), clock=lambda: 0.0).run(each) for each in (of_range, of_list)
    )

    assert sent == sent_of_list
    assert ack == ack_of_list
    assert ack is not None
    assert [failed.payload for failed in ack.failed] == [[0]]


def test_a_sink_is_given_a_range_as_a_list_which_it_may_change() -> None:
    taken = []

    def take(batch_id: BatchId, items: list[Any]) -> None:
        while items:
            taken.append(items.pop())

    make_step(write=take).run(dataclasses.replace(frame(), payload=range(5)))

    assert taken == [4, 3, 2, 1, 0]


def test_an_outage_fails_all_items_of_its_call_which_is_not_repeated() -> None:
    offered = []

    def write(batch_id: BatchId, items: list[Any]) -> None:
        offered.append(items)
        raise OutageError("away")

    _, ack = make_step(write=write).run(frame(1, 2, 3))

    assert offered == [[1, 2, 3]]
    assert ack is not None
    assert [failed.payload for failed in ack.failed] == [[1], [2], [3]]


def test_one_item_is_not_offered_twice() -> None:
    offered = []

    def write(batch_id: BatchId, items: list[Any]) -> None:
        offered.append(items)
        raise ValueError

    make_step(write=write).run(frame(1))

    assert offered == [[1]]


# -- failures described --------------------------------------------------------------------------


class Rude:
    """Whatever is asked of it raises."""

    def __repr__(self) -> str:
        raise ValueError("no repr")

    def __reduce__(self) -> Any:
        raise ValueError("no pickle")


class RudeError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def test_a_failure_can_be_described_whatever_the_item_does() -> None:
    failed = describe_failure(TASK, Stage.PROCESS, Rude(), RudeError(), PlainCodec())

    assert failed.error == "RudeError"
    assert failed.shown == "<Rude, whose repr raises ValueError>"


def test_a_long_item_is_shown_shortened() -> None:
    assert shorten_repr("x" * 1000) == "'" + "x" * 196 + "..."
    assert len(shorten_repr(list(range(1000)))) == 200


# -- counts --------------------------------------------------------------------------------------


def test_counts_are_of_items_and_progress_changes_within_a_frame() -> None:
    seen = []
    node = Map(lambda item: seen.append(step.progress()))
    step = make_step(node)

    step.run(frame(1, 2, 3))

    assert len(set(seen)) == 3
    assert (step.counts.frames, step.counts.items_in, step.counts.items_out, step.counts.failed) == (1, 3, 3, 0)
