"""From items to frames: groupings, credits, routes, paths, and items that cannot go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import count
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consecution.protocol.dispatch import (
    Credits,
    Dispatch,
    KeyedEdge,
    LocalEdge,
    Outlet,
    RouteOutlet,
    Sent,
    ShuffleEdge,
    SingleEdge,
    Unsent,
)
from consecution.protocol.values import Frame, FrameId, Stage, TaskIndex

TASK = TaskIndex(0)
CAUSE = Frame(TaskIndex(9), 7, 4, (5,), FrameId(1), 3, TASK, Stage.PROCESS, True, None)


class AsTuple:
    """Encodes to a tuple; the item "stone" not at all."""

    def encode(self, items: Sequence[Any]) -> tuple[Any, ...]:
        if "stone" in items:
            raise TypeError("a stone cannot be encoded")
        return tuple(items)


class Modulo:
    """Numbers by their remainder; text has none and raises."""

    def __init__(self, ways: int) -> None:
        self.ways = ways

    def split(self, items: Sequence[Any]) -> list[list[Any]]:
        parts: list[list[Any]] = [[] for _ in range(self.ways)]
        for item in items:
            parts[item % self.ways].append(item)
        return parts


def tasks(*numbers: int) -> tuple[TaskIndex, ...]:
    return tuple(map(TaskIndex, numbers))


def make_dispatch(*outlets: Outlet, max_frame_items: int = 100, edge_count: int = 10) -> Dispatch:
    ids = (FrameId(place) for place in count(1))
    return Dispatch(TASK, outlets, AsTuple(), ids.__next__, edge_count=edge_count, max_frame_items=max_frame_items)


def targets(sent: list[Sent]) -> list[tuple[int, Any]]:
    return [(int(target), frame.payload) for target, frame in sent]


def test_a_broadcast_sends_everything_over_every_edge() -> None:
    dispatch = make_dispatch(SingleEdge(0, TaskIndex(1)), SingleEdge(1, TaskIndex(2)))

    sent, unsent = dispatch.send([1, 2], CAUSE)

    assert targets(sent) == [(1, (1, 2)), (2, (1, 2))]
    assert unsent == []
    assert len({frame.frame_id for _, frame in sent}) == 2


def test_a_frame_carries_what_its_cause_did() -> None:
    ((_, frame),) = make_dispatch(SingleEdge(3, TaskIndex(1))).send([1], CAUSE)[0]

    assert (frame.origin, frame.seq, frame.generation, frame.low) == (9, 7, 4, 3)
    assert (frame.path, frame.sender, frame.stage, frame.credited) == ((5, 3), TASK, Stage.PROCESS, False)


def test_nothing_is_sent_where_nothing_goes() -> None:
    assert make_dispatch(SingleEdge(0, TaskIndex(1))).send([], CAUSE) == ([], [])
    assert make_dispatch().send([1], CAUSE) == ([], [])


# -- groupings -----------------------------------------------------------------------------------


def test_by_key_the_same_key_goes_to_the_same_task_in_order() -> None:
    dispatch = make_dispatch(KeyedEdge(0, tasks(1, 2, 3), Modulo(3)))

    sent, _ = dispatch.send([5, 3, 2, 6, 8], CAUSE)

    assert targets(sent) == [(1, (3, 6)), (3, (5, 2, 8))]


def test_a_route_sends_each_item_one_way() -> None:
    route = RouteOutlet(
        Modulo(2), ((SingleEdge(0, TaskIndex(1)),), (SingleEdge(1, TaskIndex(2)), SingleEdge(2, TaskIndex(3))))
    )

    sent, _ = make_dispatch(route).send([1, 2, 3], CAUSE)

    assert targets(sent) == [(1, (2,)), (2, (1, 3)), (3, (1, 3))]


def test_shuffle_gives_the_next_frame_to_the_freest_replica() -> None:
    edge = ShuffleEdge(0, tasks(1, 2))
    dispatch = make_dispatch(edge)
    first = [dispatch.send([n], CAUSE)[0][0] for n in range(4)]
    assert Counter(int(sent.target) for sent in first) == {1: 2, 2: 2}
    assert all(sent.frame.credited for sent in first)

    edge.credits.give_back(TaskIndex(2), 2)

    assert [int(dispatch.send([n], CAUSE)[0][0].target) for n in range(2)] == [2, 2]


def test_the_freest_replica_is_the_one_with_the_fewest_items() -> None:
    edge = ShuffleEdge(0, tasks(1, 2))
    dispatch = make_dispatch(edge)

    def target_of(items: int) -> int:
        return int(dispatch.send(list(range(items)), CAUSE)[0][0].target)

    busy = target_of(50)
    other = target_of(20)
    assert other != busy
    assert target_of(40) == other  # which has two frames now, and 60 items

    edge.credits.give_back(TaskIndex(other), 1)  # for the 20, which came first

    assert [target_of(9), target_of(2), target_of(1)] == [other, other, busy]


def test_what_is_not_sent_costs_no_credit() -> None:
    edge = ShuffleEdge(0, tasks(1, 2))
    dispatch = make_dispatch(edge, max_frame_items=2)

    dispatch.rehearse(list(range(7)))
    assert len(dispatch.send(["stone", 1], CAUSE)[1]) == 1

    assert sorted(edge.credits._open.values()) == [0, 1]


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 4), st.lists(st.tuples(st.sampled_from(("spend", "back", "reset")), st.integers(0, 5)), max_size=40)
)
def test_credits_never_fall_below_zero_and_the_freest_is_chosen(replicas: int, acts: list[tuple[str, int]]) -> None:
    credits = Credits(tasks(*range(replicas)))
    for act, number in acts:
        if act == "spend":
            before = dict(credits._open)
            assert before[credits.spend(number, tasks(*range(replicas)))] == min(before.values())
        elif act == "back":
            credits.give_back(TaskIndex(number), number)
        else:
            credits.reset(TaskIndex(number))
        assert all(value >= 0 for value in credits._open.values())
        assert set(credits._open) == set(range(replicas))


def test_what_a_replica_will_have_done_of_the_frame_it_is_at_counts_as_done() -> None:
    now_s = 0.0
    credits = Credits(tasks(1, 2), lambda: now_s)
    both = tasks(1, 2)
    first, second = credits.spend(10, both), credits.spend(10, both)
    now_s = 1.0
    credits.give_back(first, 1)  # ten items a second
    credits.spend(10, (first,))

    now_s = 1.5

    assert {first, second} == set(both)
    assert credits.spend(1, both) == second, "it has been at its frame for longer than it takes: that is all but done"
    assert credits.spend(5, both) == second
    assert credits.spend(1, both) == first, "5 of its 10 are left, and 7 there"


def test_nobody_has_done_more_than_the_frame_he_is_at() -> None:
    now_s = 0.0
    credits = Credits(tasks(1, 2), lambda: now_s)
    hanging, quick = credits.spend(1, tasks(1, 2)), credits.spend(1, tasks(1, 2))
    now_s = 1.0
    credits.give_back(quick, 1)
    for _ in range(3):
        credits.spend(1, (hanging,))

    now_s = 1000.0

    assert [credits.spend(1, tasks(1, 2)) for _ in range(4)] == [quick] * 4


def test_who_hangs_at_a_single_item_is_not_as_free_as_who_has_nothing() -> None:
    now_s = 0.0
    credits = Credits(tasks(1, 2), lambda: now_s)
    hanging, quick = credits.spend(1, tasks(1, 2)), credits.spend(1, tasks(1, 2))

    chosen = []
    for _ in range(4):
        now_s += 1.0
        credits.give_back(quick, 1)
        chosen.append(credits.spend(1, tasks(1, 2)))

    assert chosen == [quick] * 4
    assert hanging != quick


def test_a_replica_begins_with_a_frame_when_it_is_sent_and_none_is_before_it() -> None:
    now_s = 0.0
    credits = Credits(tasks(1, 2), lambda: now_s)
    for target in tasks(1, 2):
        credits.spend(1, (target,))
    now_s = 1.0
    for target in tasks(1, 2):
        credits.give_back(target, 1)

    now_s = 500.0
    chosen = [credits.spend(10, tasks(1, 2)) for _ in range(4)]

    assert sorted(chosen[:2]) == sorted(chosen[2:]) == [1, 2], "nothing is done of what was sent just now"


def test_credits_of_all_shuffle_edges_are_found_in_routes_too() -> None:
    inner, outer = ShuffleEdge(0, tasks(1, 2)), ShuffleEdge(1, tasks(3, 4))
    dispatch = make_dispatch(RouteOutlet(Modulo(2), ((inner,), (SingleEdge(2, TaskIndex(5)),))), outer)

    assert dispatch.credits == (inner.credits, outer.credits)


# -- paths ---------------------------------------------------------------------------------------


def test_more_than_fits_one_frame_is_cut_in_order() -> None:
    dispatch = make_dispatch(SingleEdge(4, TaskIndex(1)), max_frame_items=2)

    sent, _ = dispatch.send([1, 2, 3, 4, 5], CAUSE)

    assert targets(sent) == [(1, (1, 2)), (1, (3, 4)), (1, (5,))]
    assert [frame.path for _, frame in sent] == [(5, 4), (5, 14), (5, 24)]


@pytest.mark.parametrize(
    ("items", "made_of", "sizes"),
    [
        (10, 1, [4, 4, 2]),
        (3, 1, [1, 1, 1]),
        (2, 1, [1, 1]),
        (10, 5, [5, 5]),  # no frame is smaller than the one it comes from
        (10, 10, [10]),
        (4, 10, [4]),
        (90, 1, [20, 20, 20, 20, 10]),
        (10, None, [10]),
    ],
)
def test_what_a_few_items_have_become_is_shared_by_all_replicas(
    items: int, made_of: int | None, sizes: list[int]
) -> None:
    dispatch = make_dispatch(ShuffleEdge(4, tasks(1, 2, 3)), max_frame_items=20)

    sent, _ = dispatch.send(list(range(items)), CAUSE, made_of=made_of)

    assert [len(frame.payload) for _, frame in sent] == sizes
    assert len({target for target, _ in sent}) == min(3, len(sent))
    in_order = sorted(sent, key=lambda each: each.frame.path)
    assert [item for _, frame in in_order for item in frame.payload] == list(range(items))
    assert in_order == sent


def next_door(near: tuple[TaskIndex, ...], *others: int) -> Dispatch:
    """What a dispatch with an edge to replicas in all workers is, where some of these are in its own."""
    edge = LocalEdge(4, near, (*near, *tasks(*others)))
    ids = map(FrameId, count(1)).__next__
    return Dispatch(TASK, (edge,), AsTuple(), ids, edge_count=10, max_frame_items=100, local=near)


@pytest.mark.parametrize(
    ("items", "made_of", "sizes"),
    [(6, 1, [2, 2, 2]), (6, 2, [2, 2, 2]), (5, 2, [2, 2, 1]), (6, 3, [6]), (6, None, [6]), (1, 1, [1]), (2, 1, [1, 1])],
)
def test_all_workers_share_what_fewer_items_than_replicas_have_become(
    items: int, made_of: int | None, sizes: list[int]
) -> None:
    dispatch = next_door(tasks(1), 2, 3)

    sent, _ = dispatch.send(list(range(items)), CAUSE, made_of=made_of)

    assert [len(frame.payload) for _, frame in sent] == sizes
    assert len({target for target, _ in sent}) == len(sizes)
    assert len(sizes) > 1 or sent[0].target == 1
    kinds = {type(frame.payload) for target, frame in sent if target != 1}
    assert kinds <= {tuple}
    assert [item for _, frame in sent for item in frame.payload] == list(range(items))


@pytest.mark.parametrize("near", [tasks(1), tasks(1, 2)])
def test_what_cannot_be_sent_to_other_workers_goes_next_door_whole(near: tuple[TaskIndex, ...]) -> None:
    dispatch = next_door(near, 3, 4)

    sent, unsent = dispatch.send([1, "stone", 3], CAUSE, made_of=1)

    ((target, payload),) = targets(sent)
    assert (payload, unsent) == ([1, "stone", 3], [])
    assert target in near


def test_replicas_next_door_have_one_account_with_those_of_other_workers() -> None:
    dispatch = next_door(tasks(1, 2), 3)
    (credits,) = dispatch.credits
    shared = [int(target) for target, _ in dispatch.send([0, 1, 2], CAUSE, made_of=1)[0]]

    near = [int(dispatch.send(list(range(size)), CAUSE)[0][0].target) for size in (5, 1, 1)]

    assert sorted(shared) == [1, 2, 3]
    assert near[1:] == [3 - near[0]] * 2
    assert credits._open == {near[0]: 6, 3 - near[0]: 3, 3: 1}
    for target in (*shared, *near):
        credits.give_back(TaskIndex(target), 1)
    assert set(credits._open.values()) == {0}


def test_where_no_replicas_share_it_nothing_is_cut_however_few_it_comes_from() -> None:
    dispatch = make_dispatch(SingleEdge(0, TaskIndex(1)), KeyedEdge(1, tasks(2, 3), Modulo(2)))

    sent, _ = dispatch.send([1, 2, 3, 4], CAUSE, made_of=1)

    assert targets(sent) == [(1, (1, 2, 3, 4)), (2, (2, 4)), (3, (1, 3))]


def test_a_range_goes_whole_or_cut_as_ranges_to_where_it_stays_in_its_worker() -> None:
    dispatch = Dispatch(
        TASK,
        (SingleEdge(0, TaskIndex(1)),),
        AsTuple(),
        map(FrameId, count(1)).__next__,
        edge_count=1,
        max_frame_items=4,
        local=tasks(1),
    )

    assert targets(dispatch.send(range(4), CAUSE)[0]) == [(1, range(4))]
    assert targets(dispatch.send(range(6), CAUSE)[0]) == [(1, range(4)), (1, range(4, 6))]


def test_frames_for_different_replicas_have_different_paths() -> None:
    """Where their ways join again, a sink took the frame of one replica for a repeat of the other's."""
    dispatch = make_dispatch(KeyedEdge(0, tasks(1, 2, 3), Modulo(3)), max_frame_items=2)

    sent, _ = dispatch.send([0, 3, 6, 1, 2], CAUSE)

    assert len({frame.path for _, frame in sent}) == len(sent) == 4
    again, _ = dispatch.send([2, 1], CAUSE)
    assert [frame.path for _, frame in again] == [(5, 10), (5, 20)], "the same key has the same path"


def random_outlet(rng: Random, edges: Any, depth: int = 2) -> Outlet:
    kind = rng.randrange(4 if depth else 3)
    ways = rng.randint(1, 3)
    if kind == 0:
        return SingleEdge(next(edges), TaskIndex(1))
    if kind == 1:
        return ShuffleEdge(next(edges), tasks(*range(1, 1 + ways)))
    if kind == 2:
        return KeyedEdge(next(edges), tasks(*range(1, 1 + ways)), Modulo(ways))
    branches = tuple((random_outlet(rng, edges, depth - 1),) for _ in range(ways))
    return RouteOutlet(Modulo(ways), branches)


@settings(deadline=None, max_examples=200)
@given(
    st.integers(0, 2**32),
    st.lists(st.one_of(st.integers(0, 20), st.sampled_from(("text", "stone"))), max_size=15),
    st.integers(1, 4),
)
def test_every_item_is_in_one_frame_of_every_outlet_or_unsent_and_no_path_comes_twice(
    seed: int, items: list[Any], size: int
) -> None:
    rng = Random(seed)
    edges = iter(range(1000))
    outlets = [random_outlet(rng, edges) for _ in range(rng.randint(1, 3))]
    dispatch = make_dispatch(*outlets, max_frame_items=size, edge_count=1000)
    singles = [make_dispatch(outlet, edge_count=1000) for outlet in outlets]

    sent, unsent = dispatch.send(items, CAUSE)

    due = Counter(items) - Counter(u.item for u in unsent)
    for single in singles:
        alone, _ = single.send(items, CAUSE)
        mine = {frame.path[-1] % 1000 for _, frame in alone}
        found = Counter(i for _, f in sent if f.path[-1] % 1000 in mine for i in f.payload)
        assert found == due
    assert len({frame.path for _, frame in sent}) == len(sent)
    assert all(0 < len(frame.payload) <= size for _, frame in sent)


# -- what cannot go ------------------------------------------------------------------------------


def test_an_item_that_one_outlet_refuses_reaches_none() -> None:
    dispatch = make_dispatch(SingleEdge(0, TaskIndex(1)), KeyedEdge(1, tasks(2, 3), Modulo(2)))

    sent, unsent = dispatch.send([1, "text", 2], CAUSE)

    assert targets(sent) == [(1, (1, 2)), (3, (1,)), (2, (2,))]
    assert [u.item for u in unsent] == ["text"]
    assert isinstance(unsent[0].error, TypeError)


def test_an_item_that_cannot_be_encoded_is_unsent_once() -> None:
    dispatch = make_dispatch(SingleEdge(0, TaskIndex(1)), SingleEdge(1, TaskIndex(2)))

    sent, unsent = dispatch.send(["leaf", "stone"], CAUSE)

    assert targets(sent) == [(1, ("leaf",)), (2, ("leaf",))]
    assert [u.item for u in unsent] == ["stone"]


def test_the_same_object_is_unsent_as_often_as_it_was_pushed() -> None:
    """An item that came again in a later frame was neither sent nor failed."""
    dispatch = make_dispatch(SingleEdge(0, TaskIndex(1)), SingleEdge(1, TaskIndex(2)), max_frame_items=1)

    sent, unsent = dispatch.send(["stone", "leaf", "stone"], CAUSE)

    assert targets(sent) == [(1, ("leaf",)), (2, ("leaf",))]
    assert [u.item for u in unsent] == ["stone", "stone"]


def test_an_item_that_cannot_be_sent_costs_no_credit() -> None:
    edge = ShuffleEdge(0, tasks(1, 2))
    make_dispatch(edge).send(["leaf", "stone"], CAUSE)

    assert sum(edge.credits._open.values()) == 1


def test_what_goes_over_several_edges_whole_is_given_to_the_codec_as_one_list() -> None:
    dispatch = make_dispatch(SingleEdge(0, TaskIndex(1)), SingleEdge(1, TaskIndex(2)))
    given_lists: list[Any] = []
    dispatch._codec.encode = given_lists.append  # type: ignore[method-assign]
    items = [1, 2]

    dispatch.send(items, CAUSE)

    assert [found is items for found in given_lists] == [True, True]


def test_a_frame_of_which_nothing_is_left_is_not_sent() -> None:
    sent, unsent = make_dispatch(SingleEdge(0, TaskIndex(1))).send(["stone"], CAUSE)

    assert sent == []
    assert len(unsent) == 1


class Moody:
    """A route that raises at every third question, whatever it is asked."""

    ways = 2

    def __init__(self, raised: type[BaseException]) -> None:
        self._raised = raised
        self._asked = 0

    def split(self, items: list[Any]) -> list[list[Any]]:
        parts: list[list[Any]] = [[], []]
        for item in items:
            self._asked += 1
            if self._asked % 3 == 0:
                raise self._raised("not now")
            parts[self._asked % 2].append(item)
        return parts


@pytest.mark.parametrize("raised", [ValueError, SystemExit])
def test_a_route_that_answers_differently_each_time_takes_nothing_down(raised: type[BaseException]) -> None:
    route = RouteOutlet(Moody(raised), ((SingleEdge(0, TaskIndex(1)),), (SingleEdge(1, TaskIndex(2)),)))
    dispatch = make_dispatch(SingleEdge(2, TaskIndex(3)), route)
    items = list(range(20))

    sent, unsent = dispatch.send(items, CAUSE)

    refused = {u.item for u in unsent}
    assert refused
    routed = [i for target, payload in targets(sent) if target < 3 for i in payload]
    assert Counter(routed) == Counter(set(items) - refused)
    assert [payload for target, payload in targets(sent) if target == 3] == [
        tuple(i for i in items if i not in refused)
    ]
    assert all(isinstance(u, Unsent) and isinstance(u.error, raised) for u in unsent)
