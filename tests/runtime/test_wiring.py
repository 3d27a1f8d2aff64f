from __future__ import annotations

import os
from typing import Any

import pytest

from consecution import Node, Producer, Route
from consecution.options import Options
from consecution.plan import Plan, make_plan
from consecution.protocol.values import Frame, FrameId, Stage, TaskIndex
from consecution.runtime import wiring
from consecution.runtime.wiring import FRAME_STRETCH, make_dispatch, make_frame_ids
from consecution.transport.codec import LiveCodec

CAUSE = Frame(TaskIndex(0), 0, 1, (), FrameId(0), 0, TaskIndex(0), Stage.PROCESS, False, None)


class Pass(Node):
    def process(self, item: Any) -> None:
        self.push(item)


def odd_or_even(item: int) -> str:
    return "odd" if item % 2 else "even"


def plan_of(below: Any, **options: Any) -> Plan:
    top = Producer([], name="source") | below
    return make_plan(top.top_node, Options.of(**options))


def sent(plan: Plan, items: list[Any], *, times: int = 1) -> list[tuple[int, list[Any]]]:
    """(task, items) of the frames that the source's dispatch makes of these items."""
    dispatch = make_dispatch(plan, TaskIndex(0), LiveCodec(stores_bytes=False))
    found = []
    for _ in range(times):
        frames, unsent = dispatch.send(items, CAUSE)
        assert not unsent
        found += [(int(target), frame.payload) for target, frame in frames]
    return found


def test_a_single_edge_leads_to_the_one_task() -> None:
    assert sent(plan_of(Pass("a")), [1, 2]) == [(1, [1, 2])]


def test_a_broadcast_leads_to_all() -> None:
    assert sent(plan_of([Pass("a"), Pass("b")]), [1, 2]) == [(1, [1, 2]), (2, [1, 2])]


def test_a_shuffle_edge_leads_to_each_replica_in_turn() -> None:
    found = sent(plan_of(Pass("a") * 3), ["x"], times=6)

    assert sorted(target for target, _ in found) == [1, 1, 2, 2, 3, 3]


def from_first_of(plan: Plan, name: str, items: list[Any], made_of: int | None) -> list[tuple[str, int]]:
    """(task, number of items) of the frames that the first replica of this node makes of items."""
    dispatch = make_dispatch(plan, TaskIndex(plan.tasks_of(name)[0]), LiveCodec(stores_bytes=False))
    frames, _ = dispatch.send(items, CAUSE, made_of=made_of)
    return [(plan.task(target).name, len(frame.payload)) for target, frame in frames]


@pytest.mark.parametrize("made_of", [None, 2, 6])
def test_what_is_next_door_gets_all_that_many_items_have_become(made_of: int | None) -> None:
    plan = plan_of(Pass("a") | Pass("b") * 2, mode="process", workers=2)

    assert from_first_of(plan, "a", list(range(6)), made_of) == [("b.0", 6)]


def test_replicas_that_were_asked_for_share_what_few_items_have_become_in_all_workers() -> None:
    two = plan_of(Pass("a") | Pass("b") * 2, mode="process", workers=2)
    four = plan_of(Pass("a") | Pass("b") * 4, mode="process", workers=2)
    spread = plan_of(Pass("a") | Pass("b"), mode="process", workers=2)

    assert sorted(from_first_of(two, "a", list(range(6)), 1)) == [("b.0", 3), ("b.1", 3)]
    assert sorted(from_first_of(four, "a", list(range(8)), 1)) == [(f"b.{number}", 2) for number in range(4)]
    assert from_first_of(spread, "a", list(range(6)), 1) == [("b.0", 6)]
    assert from_first_of(two, "a", [1], 1) == [("b.0", 1)]


def test_replicas_that_were_asked_for_and_are_next_door_take_turns() -> None:
    plan = plan_of(Pass("a") | Pass("b") * 4, mode="process", workers=2)
    dispatch = make_dispatch(plan, TaskIndex(plan.tasks_of("a")[0]), LiveCodec(stores_bytes=False))
    mates = [plan.task(index).name for index in plan.worker_of(plan.tasks_of("a")[0]).tasks]

    found = [dispatch.send(["x"], CAUSE)[0][0] for _ in range(4)]

    assert sorted(plan.task(each.target).name for each in found) == sorted(2 * [n for n in mates if n.startswith("b")])
    for each in found:
        for credits in dispatch.credits:
            credits.give_back(each.target, 1)
    assert all(not any(credits._open.values()) for credits in dispatch.credits)


def test_a_keyed_edge_leads_each_key_to_one_replica_every_time() -> None:
    plan = plan_of((Pass("a") * 3).by(lambda item: item % 10))

    found = sent(plan, list(range(100)), times=2)

    owners: dict[int, set[int]] = {}
    for target, items in found:
        for item in items:
            owners.setdefault(item % 10, set()).add(target)
    assert [len(targets) for targets in owners.values()] == [1] * 10
    assert len({target for target, _ in found}) > 1


def test_a_route_leads_where_its_function_says() -> None:
    plan = plan_of([Pass("odd"), Pass("even"), odd_or_even])

    assert sent(plan, [1, 2, 3, 4, 6]) == [(1, [1, 3]), (2, [2, 4, 6])]


def test_a_route_into_replicas_shuffles_among_them() -> None:
    plan = plan_of([Pass("odd"), Pass("even") * 2, odd_or_even])

    found = sent(plan, [2], times=4)

    assert sorted(target for target, _ in found) == [2, 2, 3, 3]


def test_round_robin_deals_items_out() -> None:
    found = sent(plan_of(Route([Pass("a"), Pass("b")])), [1, 2, 3, 4])

    assert sorted(found) == [(1, [1, 3]), (2, [2, 4])]


def test_every_dispatch_has_credits_and_turns_of_its_own() -> None:
    plan = plan_of(Pass("a") * 2)

    first, second = (make_dispatch(plan, TaskIndex(0), LiveCodec(stores_bytes=False)) for _ in range(2))

    assert first.credits[0] is not second.credits[0]


def test_what_a_flat_map_makes_is_cut_into_frames() -> None:
    plan = plan_of(Pass("a"), batch_size=10)

    found = sent(plan, list(range(20 * FRAME_STRETCH + 15)))

    assert [len(items) for _, items in found] == [10 * FRAME_STRETCH, 10 * FRAME_STRETCH, 15]


def test_a_task_without_a_way_out_sends_nothing() -> None:
    plan = plan_of(Pass("a"))
    dispatch = make_dispatch(plan, TaskIndex(1), LiveCodec(stores_bytes=False))

    assert dispatch.send([1], CAUSE) == ([], [])


def test_frame_ids_are_64_random_bits_and_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = make_frame_ids()
    drawn = {draw() for _ in range(5000)}
    assert len(drawn) == 5000
    assert max(drawn).bit_length() == 64

    blocks = iter([bytes(8 * 512), bytes(8 * 511) + (7).to_bytes(8, "little"), os.urandom(8 * 512)])
    monkeypatch.setattr(wiring.os, "urandom", lambda count: next(blocks))

    assert make_frame_ids()() == 7


def test_ids_can_be_handed_in() -> None:
    ids = iter([FrameId(9)])
    dispatch = make_dispatch(plan_of(Pass("a")), TaskIndex(0), LiveCodec(stores_bytes=False), lambda: next(ids))

    assert dispatch.make_id() == 9
