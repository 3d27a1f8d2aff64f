"""The origin: births, trees, decisions, retries, replays, books; unit by unit and under any order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consecution.protocol.origin import (
    LONGEST_RETRY_DELAY_S,
    NO_ROOT,
    BatchBorn,
    BatchDecided,
    BatchForgotten,
    BatchRecord,
    FailureEntry,
    FailureKept,
    FailureTaken,
    Head,
    HeadMoved,
    Launch,
    Origin,
    OriginLimits,
    Restored,
    Settled,
    Turn,
)
from consecution.protocol.values import Ack, Action, Confirm, FailedItem, Go, Stage, TaskIndex, Treatment
from consecution.testing.disk import Disk
from tests.strategies import Tree, failed_item, trees

LIMITS = OriginLimits(batch_size=10, max_pending=4, retries=2, retry_delay_s=1.0, tree_timeout_s=60.0)


def running(limits: OriginLimits = LIMITS, **changed: Any) -> Origin:
    """An origin that has been set going, with nothing to do."""
    origin = Origin(replace(limits, **changed))
    origin.replay(0.0)
    origin.take_turn()
    return origin


class Edges:
    """Task 3 has a failed edge."""

    def leads_from(self, task: TaskIndex) -> bool:
        return task == 3

    def payload_of(self, given_up: list[tuple[FailedItem, int]]) -> Any:
        return tuple((failed.payload, attempts) for failed, attempts in given_up)


EDGES = Edges()


def running_with_edges(**changed: Any) -> Origin:
    origin = Origin(replace(LIMITS, **changed), failed_edges=EDGES)
    origin.replay(0.0)
    origin.take_turn()
    return origin


def birth(origin: Origin, count: int = 1, now_s: float = 0.0) -> int:
    return origin.born(count, (f"payload of {count}",), origin.counts().emitted + count, now_s)


def ack(
    seq: int, xor: int, generation: int = 1, *failed: FailedItem, produced_bytes: int = 0, load_s: float = 0.0
) -> Ack:
    return Ack(seq, generation, xor, produced_bytes, failed, load_s=load_s)


def complete(origin: Origin, seq: int, now_s: float = 0.0, *failed: FailedItem, load_s: float = 0.0) -> Turn:
    """Let the batch's current execution be one frame, which some items failed in."""
    generation = origin.generation
    origin.launched(seq, generation, 7, now_s)
    origin.acked(ack(seq, 7, generation, *failed, load_s=load_s), now_s)
    return origin.take_turn()


def kept(turn: Turn) -> list[FailureEntry]:
    return [change.entry for change in turn.changes if isinstance(change, FailureKept)]


def decided(turn: Turn) -> list[int]:
    return [change.seq for change in turn.changes if isinstance(change, BatchDecided)]


# -- birth ---------------------------------------------------------------------------------------


def test_nothing_is_taken_before_the_first_replay() -> None:
    origin = Origin(LIMITS)

    assert origin.room() == 0
    assert origin.next_due_s() is None

    origin.replay(0.0)
    assert origin.room() == 10


def test_a_birth_journals_batch_and_head_and_then_launches() -> None:
    origin = running()

    seq = origin.born(3, b"abc", {"line": 3}, 0.0)

    turn = origin.take_turn()
    (born, moved) = turn.changes
    assert isinstance(born, BatchBorn)
    assert (born.record.seq, born.record.count, born.record.payload) == (seq, 3, b"abc")
    assert isinstance(moved, HeadMoved)
    assert (moved.head.next_seq, moved.head.position, moved.head.emitted) == (1, {"line": 3}, 3)
    assert turn.launches == [Launch(seq, 1, b"abc", None)]
    assert not origin.take_turn()


def test_the_window_counts_batches_and_bytes() -> None:
    origin = running(max_pending=2, max_pending_bytes=100)

    origin.born(1, b"x" * 10, 1, 0.0)
    assert origin.room() > 0
    origin.born(1, b"x" * 10, 2, 0.0)
    assert origin.room() == 0, "two batches are open"

    complete(origin, 0)
    assert origin.room() > 0
    origin.launched(1, 1, 7, 0.0, produced_bytes=95)
    assert origin.room() == 0, "what became of the batch is too large"
    origin.acked(ack(1, 7), 0.0)
    assert origin.room() > 0


def test_a_batch_larger_than_the_window_is_taken_when_nothing_else_is_open() -> None:
    origin = running(max_pending_bytes=5)

    origin.born(1, b"x" * 10, 1, 0.0)

    assert origin.room() == 0
    complete(origin, 0)
    assert origin.room() > 0


def test_batches_grow_while_they_are_quick_and_shrink_when_they_are_slow() -> None:
    origin = running(batch_size=1000, max_pending=1)
    sizes = []
    for now_s, took_s in ((0.0, 0.1), (1.0, 0.1), (2.0, 5.0), (8.0, 0.5)):
        sizes.append(origin.room())
        seq = origin.born(origin.room(), b"", 0, now_s)
        complete(origin, seq, now_s + took_s)

    assert [*sizes, origin.room()] == [16, 40, 100, 50, 50]


def test_the_quicker_a_batch_was_the_larger_is_the_next_by_one_and_a_half_to_32_times() -> None:
    origin = running(batch_size=100_000, max_pending=1)
    sizes = []
    for number, took_s in enumerate((0.125, 0.0, 0.49, 0.001)):
        assert origin.growing
        sizes.append(origin.room())
        complete(origin, origin.born(origin.room(), b"", 0, float(number)), number + took_s)

    assert [*sizes, origin.room()] == [16, 32, 1024, 1536, 49_152]
    assert origin.growing


def test_batches_have_found_their_size_when_they_are_the_largest() -> None:
    origin = running(batch_size=100)
    small = origin.growing

    complete(origin, origin.born(16, b"", 0, 0.0), 0.0)

    assert (small, origin.growing) == (True, False)
    assert not running(batch_size=16).growing


def test_batches_have_found_their_size_when_a_full_one_is_not_quick() -> None:
    origin = running(batch_size=100)

    complete(origin, origin.born(1, b"", 0, 0.0), 0.3)
    not_full = origin.growing
    complete(origin, origin.born(16, b"", 0, 1.0), 1.3)

    assert (not_full, origin.growing) == (True, False)


@pytest.mark.parametrize(("parallel", "size", "batches"), [(1, 16, 4), (2, 1, 4), (5, 1, 10)])
def test_so_many_full_batches_are_enough_to_try_a_size(parallel: int, size: int, batches: int) -> None:
    origin = running(batch_size=100_000, max_pending=100, parallel=parallel)
    tried = []
    for _ in range(batches):
        tried.append(origin.is_trying())
        birth(origin, size)

    assert tried == [False] * batches
    assert origin.is_trying()
    complete(origin, 0, 0.1)
    assert not origin.is_trying(), "there is a larger size to be tried"
    assert origin.room() > size


def test_batches_that_are_not_full_try_no_size() -> None:
    origin = running(batch_size=100_000, max_pending=100)
    for _ in range(50):
        birth(origin, 15)

    assert origin.growing
    assert not origin.is_trying()


def test_nothing_is_tried_where_all_that_is_left_may_be_open_at_once() -> None:
    """A few items may be dear: in larger batches fewer nodes would be at work at a time."""
    origin = running(batch_size=100_000, max_pending=100)
    for _ in range(4):
        birth(origin, 16)

    assert [origin.is_trying(left) for left in (0, 1600, 1601)] == [False, False, True]


def test_nothing_is_tried_any_more_when_batches_have_found_their_size() -> None:
    origin = running(batch_size=100_000, max_pending=100)
    for _ in range(8):
        birth(origin, 16)
    complete(origin, 0, 0.3)

    assert (origin.growing, origin.is_trying()) == (False, False)


def test_the_first_batches_have_one_item_where_replicas_share_them() -> None:
    assert [running(batch_size=100, parallel=parallel).room() for parallel in (1, 2, 5)] == [16, 1, 1]


def rooms_until_the_end(origin: Origin, left: int) -> list[int]:
    """The sizes of the batches of a stream that says how much is left."""
    sizes = []
    while left:
        sizes.append(min(left, origin.room(left)))
        birth(origin, sizes[-1])
        left -= sizes[-1]
    return sizes


def test_a_stream_ends_with_smaller_and_smaller_batches_where_replicas_share_them() -> None:
    origin = grown(batch_size=100, max_pending=1000, parallel=2)
    origin._least_share = 1

    sizes = rooms_until_the_end(origin, 1000)

    assert sum(sizes) == 1000
    assert sizes[:6] == [100] * 6
    assert sizes[6:10] == [100, 75, 57, 42]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-4:] == [1] * 4


def test_few_items_are_shared_out_among_the_replicas_at_once() -> None:
    assert rooms_until_the_end(running(batch_size=100, max_pending=100, parallel=4), 4) == [1, 1, 1, 1]
    assert rooms_until_the_end(running(batch_size=100, max_pending=100), 4) == [4]


def test_the_last_batches_are_not_smaller_than_what_goes_through_in_five_milliseconds() -> None:
    origin = running(batch_size=1000, max_pending=1000, parallel=2)
    seq = origin.born(1000, b"", 0, 10.0)
    complete(origin, seq, 10.1)

    assert [origin.share_of(left) for left in (10, 200, 201, 400, 5000)] == [50, 50, 51, 100, 1000]


def test_what_goes_through_is_counted_while_something_is_open() -> None:
    origin = running(batch_size=1000, max_pending=1000, parallel=2)
    for now_s in (10.0, 5000.0, 90_000.0):
        complete(origin, origin.born(1000, b"", 0, now_s), now_s + 0.125)

    assert origin.share_of(10) == 40


def test_where_nobody_knows_how_much_is_left_no_batch_is_smaller_for_it() -> None:
    origin = grown(batch_size=100, parallel=8)

    assert origin.room() == 100


def grown(**limits: Any) -> Origin:
    """An origin whose batches have become as large as they may."""
    origin = running(**limits)
    while (room := origin.room()) < origin.limits.batch_size:
        complete(origin, origin.born(room, b"", 0, 0.0), 0.1)
    return origin


def fill(origin: Origin, now_s: float) -> list[int]:
    """Open as many batches as may be open."""
    born = []
    while room := origin.room():
        born.append(origin.born(room, b"", 0, now_s))
    return born


def test_however_many_batches_are_slow_together_the_next_are_half_as_large() -> None:
    origin = grown(batch_size=64, max_pending=8)

    for seq in fill(origin, 1.0):
        complete(origin, seq, 6.0)

    assert origin.room() == 32


def test_where_large_batches_wait_for_each_other_fewer_are_open_and_none_is_smaller() -> None:
    origin = grown(batch_size=4000, max_pending=64)

    for number, seq in enumerate(fill(origin, 1.0), start=1):
        complete(origin, seq, 1.0 + number * 0.025)

    assert origin.room() == 4000
    fewer = fill(origin, 10.0)
    assert 16 <= len(fewer) < 40
    for seq in fewer:
        complete(origin, seq, 10.1)
    assert len(fill(origin, 20.0)) == 64, "once they are quick there is room for more"


def test_a_batch_that_was_just_quick_makes_none_that_is_slow() -> None:
    origin = running(batch_size=100_000, max_pending=1)
    sizes = []
    for number in range(10):
        sizes.append(room := origin.room())
        complete(origin, origin.born(room, b"", 0, number * 10.0), number * 10.0 + room * 0.24 / 16)

    assert sizes == [16, *[24] * 9]


def test_batches_that_wait_for_the_disk_and_not_for_each_other_grow() -> None:
    origin = running(batch_size=4000, max_pending=64)

    for now_s in range(10):
        for seq in fill(origin, now_s * 10.0):
            complete(origin, seq, now_s * 10.0 + 0.6)

    assert origin.room() > 500


def test_batches_of_large_items_are_small_whatever_their_speed() -> None:
    origin = running(batch_size=1000, max_pending_bytes=400, max_pending=1)
    sizes = []
    for size_bytes in (50, 50, 50, 1, 1, 1000):
        sizes.append(room := origin.room())
        complete(origin, origin.born(room, b"x" * room * size_bytes, 0, 0.0), 0.1)

    assert [*sizes, origin.room()] == [16, 2, 2, 2, 40, 100, 1]


def test_batches_whose_items_become_large_on_the_way_are_small() -> None:
    origin = running(batch_size=1000, max_pending_bytes=400)

    seq = origin.born(10, b"x" * 10, 0, 0.0)
    assert origin.room() == 16
    origin.launched(seq, 1, 7, 0.0)
    origin.acked(ack(seq, 7, produced_bytes=490), 0.0)

    assert origin.room() == 2
    complete(origin, origin.born(2, b"xx", 0, 0.0))
    assert origin.room() > 2, "items that stay small"


def test_without_a_journal_the_size_of_items_is_known_when_they_have_left() -> None:
    origin = running(batch_size=1000, max_pending_bytes=400)

    seq = origin.born(10, None, 0, 0.0)
    origin.launched(seq, 1, 7, 0.0, produced_bytes=500)
    origin.acked(ack(seq, 7), 0.0)

    assert origin.room() == 2


def test_retries_say_nothing_about_the_size_of_batches() -> None:
    origin = running(batch_size=1000)
    size = origin.room()
    complete(origin, birth(origin), 0.3, failed_item())
    origin.start_retries(1.4)

    complete(origin, 1, 99.0)

    assert origin.room() == size


# -- how far it is ahead -------------------------------------------------------------------------


def births_until_ahead(origin: Origin, count: int = 1, commit_s: float = 0.0) -> int:
    """So many batches of so many items are born until it is ahead of its workers."""
    for born in range(origin.limits.max_pending):
        if origin.is_ahead(commit_s):
            return born
        birth(origin, count)
    return origin.limits.max_pending


@pytest.mark.parametrize(("workers", "batches"), [(1, 4), (2, 8), (3, 12), (0, 64)])
def test_a_few_batches_for_each_worker_are_under_way_before_the_first_is_through(workers: int, batches: int) -> None:
    assert births_until_ahead(running(max_pending=64, workers=workers)) == batches


def test_every_worker_has_to_be_heard_of_before_the_first_is_through() -> None:
    origin = running(max_pending=64, workers=2)
    assert births_until_ahead(origin, 10) == 8
    origin.launched(0, 1, 7 ^ 9 ^ 11, 0.0)

    origin.acked(ack(0, 7, load_s=0.01), 0.0, TaskIndex(1))
    ahead = origin.is_ahead()
    origin.acked(ack(0, 9, load_s=0.011), 0.0, TaskIndex(2))

    assert (ahead, origin.is_ahead()) == (True, False)
    assert births_until_ahead(origin, 10) == 13, "20 times 21 ms are more than 0.4 s, and one batch is done"


def test_nothing_holds_it_back_once_something_is_through_that_nobody_finds_dear() -> None:
    origin = running(max_pending=64, workers=1)

    complete(origin, birth(origin))

    assert births_until_ahead(origin, 1000) == 64


@pytest.mark.parametrize(("workers", "batches"), [(1, 7), (2, 14), (20, 64)])
def test_a_fifth_of_a_second_of_work_is_under_way_for_each_worker(workers: int, batches: int) -> None:
    origin = running(max_pending=64, workers=workers)

    complete(origin, birth(origin, 10), load_s=0.03)

    assert births_until_ahead(origin, 10) == batches


def test_however_dear_items_are_each_worker_has_one_batch_and_the_next() -> None:
    origin = running(max_pending=64, workers=5)

    complete(origin, birth(origin), load_s=60.0)

    assert births_until_ahead(origin) == 10


def test_what_tasks_have_done_of_a_batch_they_do_not_have_to_do() -> None:
    origin = running(max_pending=64, workers=1)
    complete(origin, birth(origin, 10), load_s=0.08)
    assert births_until_ahead(origin, 10) == 3

    for seq in (1, 2):
        origin.launched(seq, 1, 7 ^ 9 ^ 11, 0.0)
    origin.acked(ack(1, 7, load_s=0.08), 0.0)
    ahead = origin.is_ahead()
    origin.acked(ack(2, 9, load_s=0.08), 0.0)  # and there is more to come of both

    assert (ahead, origin.is_ahead()) == (True, False), "of 0.24 s first 0.16 are left, and then less than 0.1"
    birth(origin, 10)
    assert not origin.is_ahead()
    birth(origin, 10)
    assert origin.is_ahead()


def test_it_is_learnt_again_and_again_what_an_item_costs() -> None:
    origin = running(max_pending=64, workers=1)
    for load_s in (1.0, *[0.002] * 30):
        complete(origin, birth(origin), load_s=load_s)

    assert births_until_ahead(origin) == 64


def decided_below(origin: Origin, count: int, load_s: float, *told_s: float) -> None:
    """A batch that a sink has decided. Of what it has cost some was told before."""
    seq = birth(origin, count)
    origin.launched(seq, 1, 7 ^ 9 ^ 11, 0.0)
    for xor, part_s in zip((7, 9), told_s, strict=False):
        origin.acked(ack(seq, xor, load_s=part_s), 0.1)
    origin.confirmed(STORE, [Confirm(seq, load_s)], 0.1)
    origin.take_turn()


@pytest.mark.parametrize("told_s", [(), (0.02,), (0.02, 0.04)])
def test_who_has_decided_a_batch_tells_what_it_has_cost_and_counts_what_others_have_told_of_it(
    told_s: tuple[float, ...],
) -> None:
    origin = running(max_pending=64, workers=1)

    decided_below(origin, 1, 0.06, *told_s)

    assert births_until_ahead(origin) == 4


def test_what_is_told_of_a_batch_after_a_sink_has_decided_it_is_known_already() -> None:
    origin = running(max_pending=64, workers=1)
    decided_below(origin, 1, 0.06)

    origin.acked(ack(0, 7, load_s=50.0), 0.2)

    assert births_until_ahead(origin) == 4


def test_a_frame_that_is_staged_brings_along_what_others_were_at_it() -> None:
    origin = running(max_pending=64, workers=1)
    seq = birth(origin)
    origin.launched(seq, 1, 7, 0.0)

    origin.acked(replace(ack(seq, 7, load_s=0.06), staged=True), 0.1, STORE)
    origin.take_turn()
    origin.confirmed(STORE, [Confirm(seq)], 0.2)

    assert births_until_ahead(origin) == 4


def test_what_the_first_item_loads_is_soon_forgotten_where_the_others_take_no_time() -> None:
    origin = running(max_pending=64, workers=1)
    complete(origin, birth(origin), load_s=0.3)

    for _ in range(8):
        decided_below(origin, 1000, 0.0001)

    assert births_until_ahead(origin, 1000) == 64


@pytest.mark.parametrize("in_this_life", [True, False])
def test_what_was_decided_before_it_was_to_run_again_shows_nothing_of_what_items_cost(in_this_life: bool) -> None:
    """Or a source that is started anew reads all that `max_pending` allows, however dear its items are."""
    limits = replace(LIMITS, max_pending=64, workers=1)
    origin = Origin(limits, Restored(Head(next_seq=1), (BatchRecord(0, 16, ("old",)),)))
    if in_this_life:
        origin.replay(0.0)
        origin.launched(0, origin.generation, 7, 0.0)

    origin.confirmed(STORE, [Confirm(0)], 0.1)
    origin.replay(0.2)
    origin.take_turn()

    assert births_until_ahead(origin, 16) == 4
    complete(origin, 1, load_s=0.3)
    assert births_until_ahead(origin, 16) == 0


def test_more_is_under_way_where_commits_are_slow() -> None:
    origin = running(max_pending=64, workers=1)
    complete(origin, birth(origin), load_s=0.03)

    assert births_until_ahead(origin, commit_s=0.2) == 27, "that is 0.8 s, four times a commit"


def test_a_retry_is_no_work_to_be_ahead_with() -> None:
    origin = running(max_pending=64, workers=1)
    complete(origin, birth(origin, 4), 0.0, *[failed_item()] * 4, load_s=4.0)
    origin.start_retries(100.0)
    assert origin.open_count == 4

    assert births_until_ahead(origin) == 2


def test_a_batch_that_runs_again_is_to_be_done_as_a_whole() -> None:
    origin = running(max_pending=64, workers=1)
    complete(origin, birth(origin, 10), load_s=1.0)
    assert births_until_ahead(origin, 10) == 2
    for seq in (1, 2):
        origin.launched(seq, 1, 7 ^ 9, 0.0)
        origin.acked(ack(seq, 7, load_s=1.0), 0.0)
    before = origin.is_ahead()

    origin.replay(1.0)

    assert (before, origin.is_ahead()) == (False, True)


def test_what_was_told_of_the_first_batch_is_forgotten_when_it_runs_again() -> None:
    origin = running(max_pending=64, workers=1)
    assert births_until_ahead(origin, 16) == 4
    origin.launched(0, 1, 7 ^ 9, 0.0)
    origin.acked(ack(0, 7, load_s=0.3), 0.3)

    origin.replay(0.4)

    assert births_until_ahead(origin, 16) == 0


# -- trees ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(trees(), st.randoms(use_true_random=False))
def test_a_tree_completes_once_and_never_early_under_any_order(tree: Tree, rng: Any) -> None:
    origin = running()
    seq = birth(origin)
    origin.take_turn()
    events: list[Any] = [None, *tree.all()]
    rng.shuffle(events)

    for place, event in enumerate(events):
        assert not decided(origin.take_turn()), f"after {place} of {len(events)} events"
        if event is None:
            origin.launched(seq, 1, tree.xor, 0.0)
        else:
            origin.acked(ack(seq, event.xor), 0.0)

    turn = origin.take_turn()
    assert decided(turn) == [seq]
    assert turn.settled == [Settled(seq, 0, confirmed=True)]
    assert origin.settled


@settings(deadline=None, max_examples=200)
@given(trees(), trees(), st.randoms(use_true_random=False))
def test_repeated_and_outdated_acks_change_nothing(tree: Tree, older: Tree, rng: Any) -> None:
    origin = running(retries=0)
    seq = birth(origin)
    origin.take_turn()
    origin.launched(seq, 1, older.xor ^ 99, 0.0)
    origin.replay(0.0)
    origin.take_turn()
    outdated = [ack(seq, frame.xor, 1, *[failed_item()] * frame.fails) for frame in older.all()]
    current = [ack(seq, frame.xor, 2, *[failed_item(n) for n in range(frame.fails)]) for frame in tree.all()]
    first = [*outdated, *current]
    rng.shuffle(first)
    events: list[Any] = [None]
    for event in first:
        events.insert(rng.randrange(len(events) + 1), event)
        events.insert(rng.randrange(len(events) + 1), event)

    turns = []
    for event in events:
        if event is None:
            origin.launched(seq, 2, tree.xor, 0.0)
        else:
            origin.acked(event, 0.0)
        turns.append(origin.take_turn())

    assert [seq for turn in turns for seq in decided(turn)] == [seq]
    assert sum(len(kept(turn)) for turn in turns) == sum(frame.fails for frame in tree.all())
    assert origin.settled
    assert origin.counts().pending == 0
    assert origin.room() > 0


def test_zero_means_nothing_before_the_origins_own_step() -> None:
    origin = running()
    seq = birth(origin)

    origin.acked(ack(seq, 7), 0.0)
    origin.acked(ack(seq, 7 ^ 9), 0.0)
    origin.acked(ack(seq, 9), 0.0)
    assert origin.open_count == 1, "the checksum is zero now, but the origin may still be sending"

    origin.launched(seq, 1, 0, 0.0)
    assert origin.open_count == 0


def test_a_batch_that_becomes_nothing_is_complete_at_once() -> None:
    origin = running()
    seq = birth(origin)

    origin.launched(seq, 1, 0, 0.0)

    assert decided(origin.take_turn()) == [0]
    assert seq == 0


def test_acks_of_unknown_batches_are_ignored() -> None:
    origin = running()

    origin.acked(ack(0, 7), 0.0)
    origin.launched(5, 1, 7, 0.0)

    assert not origin.take_turn()


# -- decision ------------------------------------------------------------------------------------


def test_decisions_are_in_order_whatever_the_order_of_completion() -> None:
    origin = running()
    for _ in range(3):
        birth(origin)

    assert decided(complete(origin, 2)) == []
    assert decided(complete(origin, 1)) == []
    assert decided(complete(origin, 0)) == [0, 1, 2]


def test_low_is_the_lowest_batch_not_decided() -> None:
    origin = running()
    lows = [origin.low]
    for _ in range(3):
        birth(origin)
    lows.append(origin.low)
    complete(origin, 0)
    lows.append(origin.low)
    complete(origin, 1)
    complete(origin, 2)

    assert [*lows, origin.low] == [0, 0, 1, 3]


def test_a_decision_and_its_failures_are_one_turn() -> None:
    origin = running()
    birth(origin, 2)

    turn = complete(origin, 0, 5.0, failed_item(1), failed_item(2, retryable=False))

    assert decided(turn) == [0]
    assert [(e.key, e.attempts, e.root, e.due_s) for e in kept(turn)] == [(0, 1, 0, 6.0), (1, 1, 0, None)]
    assert isinstance(turn.changes[-1], HeadMoved)
    assert (turn.changes[-1].head.next_key, turn.changes[-1].head.failed) == (2, 1)
    assert turn.settled == [], "an item waits for another try"


def test_what_could_not_be_encoded_fails_with_the_batch_whatever_its_execution() -> None:
    origin = running()
    lost = failed_item(9, task=0, stage=Stage.ROUTE, retryable=False)
    origin.born(2, (1,), 2, 0.0, born_failed=(lost,))
    origin.replay(0.0)

    turn = complete(origin, 0)

    assert [entry.failed for entry in kept(turn)] == [lost]
    assert turn.settled == [Settled(0, 1, confirmed=True)]


# -- retries -------------------------------------------------------------------------------------


def test_a_retry_is_a_batch_of_its_own_born_as_its_entry_is_taken() -> None:
    origin = running()
    birth(origin, 5)
    (entry,) = kept(complete(origin, 0, 0.0, failed_item(3, task=2)))

    origin.start_retries(0.9)
    assert not origin.take_turn(), "it is not due"
    origin.start_retries(1.0)

    turn = origin.take_turn()
    taken, born, _ = turn.changes
    assert taken == FailureTaken(entry.key)
    assert isinstance(born, BatchBorn)
    assert born.record.retry is not None
    assert (born.record.retry.root, born.record.retry.attempts, born.record.retry.entry) == (0, 1, (2, Stage.PROCESS))
    assert turn.launches == [Launch(1, 1, (3,), born.record.retry.entry)]
    assert origin.counts().emitted == 5, "a retry is not a new item"


def test_an_item_is_tried_so_many_times_again_with_longer_and_longer_waits() -> None:
    origin = running(retries=3)
    birth(origin)
    seq, now_s, waits = 0, 0.0, []
    while True:
        (entry,) = kept(complete(origin, seq, now_s, failed_item()))
        if entry.due_s is None:
            break
        waits.append(entry.due_s - now_s)
        now_s = entry.due_s
        origin.start_retries(now_s)
        seq += 1

    assert waits == [1.0, 2.0, 4.0]
    assert entry.attempts == 4
    assert origin.counts().failed == 1
    assert origin.settled


def test_a_wait_has_a_longest_time() -> None:
    origin = running(retries=100)
    birth(origin)
    now_s = 0.0
    for seq in range(80):
        (entry,) = kept(complete(origin, seq, now_s, failed_item()))
        assert entry.due_s is not None
        wait_s, now_s = entry.due_s - now_s, entry.due_s
        origin.start_retries(now_s)

    assert wait_s == LONGEST_RETRY_DELAY_S


def treated(action: Action = Action.RETRY, retries: int | None = None, delay_s: float | None = None) -> FailedItem:
    return failed_item()._replace(treatment=Treatment(action, retries, delay_s))


@pytest.mark.parametrize("action", [Action.PARK, Action.STOP])
def test_an_item_that_is_not_to_be_retried_is_given_up_at_once(action: Action) -> None:
    origin = running()
    birth(origin)

    turn = complete(origin, 0, 5.0, treated(action))

    (entry,) = kept(turn)
    assert (entry.due_s, entry.attempts, entry.failed_s) == (None, 1, 5.0)
    assert turn.stops == ([entry] if action is Action.STOP else [])
    assert turn.settled == [Settled(0, 1, True)]
    assert (origin.counts().failed, origin.counts().pending) == (1, 0)
    assert origin.take_turn().stops == []


def test_an_execution_that_is_thrown_away_stops_nothing() -> None:
    origin = running()
    birth(origin)
    origin.launched(0, 1, 7 ^ 8, 0.0)
    origin.acked(ack(0, 7, 1, treated(Action.STOP)), 0.0)

    origin.replay(1.0)
    turn = complete(origin, 0, 2.0)

    assert turn.stops == []
    assert kept(turn) == []


def test_a_node_may_have_retries_and_a_delay_of_its_own() -> None:
    origin = running()
    birth(origin)

    turn, waits = complete(origin, 0, 0.0, treated(retries=3, delay_s=60.0)), []
    while (due_s := kept(turn)[0].due_s) is not None:
        waits.append(due_s - kept(turn)[0].failed_s)
        origin.start_retries(due_s)
        turn = complete(origin, len(waits), due_s, treated(retries=3, delay_s=60.0))

    assert waits == [60.0] * 3  # doubled, up to the longest delay or the one that was asked for
    assert kept(turn)[0].attempts == 4


def test_a_node_may_have_no_retries_at_all() -> None:
    origin = running()
    birth(origin)

    assert kept(complete(origin, 0, 0.0, treated(retries=0)))[0].due_s is None


def test_without_a_journal_nothing_is_retried_whatever_a_node_says() -> None:
    origin = running(replays=False)
    birth(origin)

    assert kept(complete(origin, 0, 0.0, treated(retries=5)))[0].due_s is None
    assert origin.counts().pending == 0


def test_what_descends_from_a_retry_has_attempts_of_its_own() -> None:
    origin = running()
    birth(origin)
    complete(origin, 0, 0.0, failed_item(1, task=1))
    origin.start_retries(1.0)

    (below,) = kept(complete(origin, 1, 1.0, failed_item(2, task=5)))

    assert (below.attempts, below.root, below.held) == (1, 0, 1)


def test_a_batch_is_settled_when_the_last_of_its_retries_is() -> None:
    origin = running()
    birth(origin, 3)
    complete(origin, 0, 0.0, failed_item(1), failed_item(2))
    assert (origin.counts().completed, origin.counts().pending) == (1, 2)
    origin.start_retries(1.0)

    first = complete(origin, 1, 1.0)
    second = complete(origin, 2, 1.0)

    assert first.settled == []
    assert second.settled == [Settled(0, 0, confirmed=True)]
    assert (origin.counts().completed, origin.counts().pending) == (3, 0)


def test_nothing_is_settled_or_finished_while_an_item_waits() -> None:
    origin = running()
    birth(origin)
    origin.exhaust(1)

    complete(origin, 0, 0.0, failed_item())
    assert (origin.settled, origin.finished) == (False, False)

    origin.start_retries(1.0)
    complete(origin, 1, 1.0)
    assert (origin.settled, origin.finished) == (True, True)


def test_no_retry_starts_without_room_and_the_longest_waiting_comes_first() -> None:
    origin = running(max_pending=2)
    birth(origin, 3)
    complete(origin, 0, 0.0, failed_item(1), failed_item(2), failed_item(3))
    birth(origin)
    origin.take_turn()

    origin.start_retries(5.0)

    turn = origin.take_turn()
    assert [launch.payload for launch in turn.launches] == [(1,)]
    assert origin.next_due_s() == 60.0, "the due ones wait for room, not for a time"
    complete(origin, 1, 5.0)
    assert origin.next_due_s() == 1.0


def test_a_stopped_origin_takes_nothing_new_but_finishes_its_retries() -> None:
    origin = running()
    birth(origin)
    complete(origin, 0, 0.0, failed_item())
    origin.stopped = True

    assert origin.room() == 0
    origin.start_retries(1.0)
    complete(origin, 1)
    assert origin.settled


# -- death and replay ----------------------------------------------------------------------------


def test_a_replay_launches_what_is_undecided_again_under_a_new_generation() -> None:
    origin = running()
    for _ in range(3):
        birth(origin)
    origin.take_turn()
    complete(origin, 0)
    complete(origin, 2)

    replayed = origin.replay(0.0)

    turn = origin.take_turn()
    assert replayed == 2
    assert [(launch.seq, launch.generation) for launch in turn.launches] == [(1, 2), (2, 2)]
    assert isinstance(turn.changes[-1], HeadMoved)
    assert turn.changes[-1].head.generation == 2


def test_an_execution_that_is_thrown_away_leaves_no_trace() -> None:
    origin = running()
    seq = birth(origin)
    origin.take_turn()
    origin.launched(seq, 1, 7, 0.0)
    origin.acked(ack(seq, 9, 1, failed_item(), produced_bytes=1000), 0.0)

    origin.replay(0.0)
    origin.take_turn()

    turn = complete(origin, seq)
    assert kept(turn) == []
    assert decided(turn) == [seq]
    assert origin._pending_bytes == 0


def test_a_launch_that_was_not_carried_out_yet_is_replaced_by_a_replay() -> None:
    origin = running()
    birth(origin)

    origin.replay(0.0)

    assert [launch.generation for launch in origin.take_turn().launches] == [2]


def test_deaths_are_no_attempts() -> None:
    origin = running(retries=1)
    birth(origin)
    complete(origin, 0, 0.0, failed_item())
    origin.start_retries(1.0)
    for _ in range(10):
        origin.replay(1.0)

    (entry,) = kept(complete(origin, 1, 1.0, failed_item()))

    assert entry.attempts == 2


def test_a_tree_without_progress_is_replayed_later_and_later() -> None:
    origin = running(tree_timeout_s=10.0)
    birth(origin, now_s=0.0)
    origin.take_turn()
    replayed_s = []
    for now_s in range(200):
        due_s = origin.next_due_s()
        assert due_s is not None
        if due_s <= now_s and origin.expire(float(now_s)):
            replayed_s.append(now_s)

    assert replayed_s == [10, 30, 70, 150]


def test_every_ack_is_progress() -> None:
    origin = running(tree_timeout_s=10.0)
    seq = birth(origin)
    origin.acked(ack(seq, 7), 9.0)

    assert origin.expire(10.0) == 0
    assert origin.next_due_s() == 19.0
    assert origin.expire(19.0) == 1


def test_a_tree_is_not_late_while_its_origin_hears_of_earlier_ones_for_it_waits_behind_them() -> None:
    origin = running(tree_timeout_s=10.0)
    first = birth(origin)
    birth(origin)
    origin.take_turn()
    origin.acked(ack(first, 7), 9.0)

    assert origin.expire(12.0) == 0
    assert origin.expire(19.0) == 2


def test_an_earlier_tree_that_is_decided_counts_as_heard_of() -> None:
    origin = running(tree_timeout_s=10.0)
    complete(origin, birth(origin), 9.0)
    birth(origin, now_s=1.0)
    origin.take_turn()

    assert origin.expire(12.0) == 0
    assert origin.expire(19.0) == 1


def test_no_tree_is_late_while_somebody_is_known_to_be_at_work() -> None:
    origin = running(tree_timeout_s=10.0)
    birth(origin, now_s=0.0)
    birth(origin, now_s=5.0)
    origin.take_turn()

    for now_s in (10.0, 19.0, 28.0):
        origin.heard_of(now_s)
        assert origin.expire(now_s) == 0

    assert origin.next_due_s() == 38.0
    assert origin.expire(38.0) == 2


def test_a_lost_tree_is_not_waited_for_for_ever_whoever_is_at_work() -> None:
    origin = running(tree_timeout_s=10.0)
    birth(origin, now_s=0.0)
    origin.take_turn()
    replayed_s = []
    for now_s in map(float, range(1, 1500)):
        origin.heard_of(now_s)
        if origin.expire(now_s):
            replayed_s.append(now_s)

    assert replayed_s == [310.0, 930.0]


def test_what_is_heard_of_later_trees_does_not_help_one_that_is_lost() -> None:
    origin = running(tree_timeout_s=10.0)
    birth(origin)
    later = birth(origin)
    origin.take_turn()
    origin.acked(ack(later, 7), 9.0)

    assert origin.expire(10.0) == 1


def test_only_late_trees_are_replayed_and_the_others_keep_their_generation() -> None:
    origin = running(tree_timeout_s=10.0)
    late, fresh = birth(origin, now_s=0.0), birth(origin, now_s=5.0)
    origin.take_turn()

    origin.expire(12.0)

    assert [(launch.seq, launch.generation) for launch in origin.take_turn().launches] == [(late, 2)]
    origin.launched(fresh, 1, 7, 12.0)
    origin.acked(ack(fresh, 7, 1), 12.0)
    origin.launched(late, 2, 8, 12.0)
    origin.acked(ack(late, 8, 2), 12.0)
    assert origin.settled is False
    assert decided(origin.take_turn()) == [late, fresh]


def test_a_complete_tree_that_waits_for_an_earlier_one_does_not_expire() -> None:
    origin = running(tree_timeout_s=10.0)
    birth(origin, now_s=0.0)
    birth(origin, now_s=0.0)
    complete(origin, 1)
    origin.acked(ack(0, 5), 9.0)

    assert origin.expire(15.0) == 0


class Closed(dict[int, Any]):
    """A dict that lets nobody look through it."""

    def __iter__(self) -> Any:
        raise AssertionError("it was looked through")

    values = items = keys = __iter__


def test_what_is_due_is_known_without_looking_through_what_is_open_or_waits() -> None:
    """The loop asks at every turn; a look at each of thousands of waiting items took most of its time."""
    origin = running(retries=1)
    birth(origin, 3)
    complete(origin, 0, 0.0, *(failed_item(n) for n in range(3)))
    birth(origin, now_s=0.5)
    origin._waiting, origin._batches = Closed(origin._waiting), Closed(origin._batches)

    origin.start_retries(0.9)
    origin.expire(0.9)

    assert origin.next_due_s() == 1.0


# -- without a journal ---------------------------------------------------------------------------


def test_without_a_journal_a_death_abandons_what_is_open() -> None:
    origin = running(replays=False, retries=0)
    for count in (2, 3, 4):
        birth(origin, count)
    complete(origin, 0)

    lost = origin.abandon()

    turn = origin.take_turn()
    assert lost == 7
    assert [(s.seq, s.confirmed) for s in turn.settled] == [(1, False), (2, False)]
    assert turn.launches == []
    counts = origin.counts()
    assert (counts.emitted, counts.completed, counts.pending, counts.abandoned) == (9, 2, 7, 7)
    assert origin.settled


def test_late_acks_of_abandoned_batches_leave_nothing_behind() -> None:
    origin = running(replays=False, retries=0)
    seq = birth(origin)
    origin.take_turn()
    origin.abandon()
    origin.take_turn()

    origin.launched(seq, 1, 7, 0.0)
    origin.acked(ack(seq, 7), 0.0)

    assert not origin.take_turn()
    assert origin.counts().completed == 0


def test_without_a_journal_payloads_are_not_kept() -> None:
    origin = running(replays=False, retries=0)

    origin.born(1, ["live"], None, 0.0)

    assert origin.take_turn().launches[0].payload == ["live"]
    assert [batch.record.payload for batch in origin._batches.values()] == [None]
    assert origin.next_due_s() is None


# -- restart -------------------------------------------------------------------------------------


def commit(origin: Origin, disk: Disk) -> Turn:
    turn = origin.take_turn()
    disk.commit(turn.changes)
    return turn


def test_a_restarted_origin_goes_on_where_its_journal_stands() -> None:
    disk = Disk()
    origin = running()
    birth(origin, 2)
    birth(origin, 3)
    commit(origin, disk)
    origin.launched(0, 1, 7, 0.0)
    origin.acked(ack(0, 7, 1, failed_item()), 0.0)
    commit(origin, disk)
    before = origin.counts()

    again = Origin(LIMITS, disk.restore(), 100.0)

    assert again.counts() == before
    assert (again.position, again.low, again.generation) == (5, 1, 1)
    assert again.replay(100.0) == 1
    turn = again.take_turn()
    assert [(launch.seq, launch.generation) for launch in turn.launches] == [(1, 2)]
    again.start_retries(100.0)
    assert again.take_turn().launches[0].seq == 2


def test_acks_of_the_last_life_do_not_count() -> None:
    disk = Disk()
    origin = running()
    seq = birth(origin)
    commit(origin, disk)
    again = Origin(LIMITS, disk.restore(), 0.0)

    again.acked(ack(seq, 7, 1, failed_item(), produced_bytes=50), 0.0)
    again.replay(0.0)
    again.take_turn()

    assert kept(complete(again, seq)) == []
    assert again._pending_bytes == 0


def test_roots_with_open_retries_are_pending_after_a_restart() -> None:
    disk = Disk()
    origin = running()
    birth(origin, 4)
    commit(origin, disk)
    origin.launched(0, 1, 7, 0.0)
    origin.acked(ack(0, 7, 1, failed_item(1), failed_item(2)), 0.0)
    commit(origin, disk)
    origin.start_retries(1.0)
    commit(origin, disk)

    again = Origin(LIMITS, disk.restore(), 2.0)
    assert (again.counts().completed, again.counts().pending) == (2, 2)
    again.replay(2.0)
    again.take_turn()

    assert complete(again, 1).settled == []
    assert complete(again, 2).settled == [Settled(0, 0, confirmed=True)]
    assert again.counts().pending == 0


def test_what_was_given_up_before_a_restart_counts_when_the_batch_is_settled() -> None:
    disk = Disk()
    origin = running()
    birth(origin, 4)
    commit(origin, disk)
    origin.launched(0, 1, 7, 0.0)
    never = failed_item(2)._replace(retryable=False)
    origin.acked(ack(0, 7, 1, failed_item(1), never), 0.0)
    commit(origin, disk)

    again = Origin(LIMITS, disk.restore(), 2.0)
    again.replay(2.0)
    again.start_retries(2.0)
    again.take_turn()

    assert complete(again, 1).settled == [Settled(0, 1, confirmed=True)]
    assert again.counts().failed == 1


def test_a_finished_origin_is_finished_after_a_restart() -> None:
    disk = Disk()
    origin = running()
    origin.exhaust(0)
    commit(origin, disk)

    assert Origin(LIMITS, disk.restore(), 0.0).finished
    assert not Origin(LIMITS, Restored(), 0.0).finished


# -- failed edges --------------------------------------------------------------------------------


def test_an_item_given_up_at_a_node_with_a_failed_edge_is_born_in_the_commit_that_would_keep_it() -> None:
    origin = running_with_edges(retries=0)
    seq = birth(origin, 3)
    origin.take_turn()

    turn = complete(origin, seq, 0.0, failed_item(1, task=3), failed_item(2, task=3), failed_item(4, task=2))

    ((decided, born),) = [
        (c, b) for c in turn.changes for b in turn.changes if _is(c, BatchDecided) and _is(b, BatchBorn)
    ]
    assert decided.seq == seq
    assert (born.record.seq, born.record.count) == (1, 2)
    assert born.record.payload == (((1,), 1), ((2,), 1))
    assert [(launch.seq, launch.entry) for launch in turn.launches] == [(1, (3, Stage.FAILED))]
    assert [entry.failed.shown for entry in kept(turn)] == ["4"]
    assert turn.settled == []
    counts = origin.counts()
    assert (counts.emitted, counts.completed, counts.pending, counts.failed, counts.handled) == (3, 1, 2, 1, 2)

    turn = complete(origin, 1)

    assert turn.settled == [Settled(seq, 1, confirmed=True)]
    assert origin.counts().pending == 0
    assert origin.settled


def _is(change: Any, kind: type) -> bool:
    return isinstance(change, kind)


def test_it_leaves_after_its_last_try_with_the_number_of_tries() -> None:
    origin = running_with_edges(retries=1)
    seq = birth(origin)
    origin.take_turn()
    assert [entry.attempts for entry in kept(complete(origin, seq, 0.0, failed_item(1, task=3)))] == [1]
    origin.start_retries(10.0)
    origin.take_turn()

    turn = complete(origin, 1, 10.0, failed_item(1, task=3))

    (born,) = [change.record for change in turn.changes if isinstance(change, BatchBorn)]
    assert (born.payload, born.retry and born.retry.root) == ((((1,), 2),), seq)
    assert kept(turn) == []
    assert origin.counts().pending == 1


def test_what_fails_on_the_edge_itself_or_stops_the_run_is_kept() -> None:
    origin = running_with_edges(retries=0)
    seq = birth(origin, 2)
    origin.take_turn()
    stopping = failed_item(2, task=3)._replace(treatment=Treatment(Action.STOP))
    turn = complete(origin, seq, 0.0, failed_item(1, task=3), stopping)
    assert [entry.failed.shown for entry in turn.stops] == ["2"]

    turn = complete(origin, 1, 0.0, failed_item(1, task=3, stage=Stage.FAILED))

    assert [(entry.failed.shown, entry.attempts, entry.due_s) for entry in kept(turn)] == [("1", 1, None)]
    assert turn.launches == []
    assert (origin.counts().failed, origin.counts().handled) == (2, 1)
    assert origin.settled


def test_a_batch_over_a_failed_edge_outlives_a_restart_and_runs_again() -> None:
    origin = running_with_edges(retries=0)
    seq = birth(origin, 2)
    turns = [origin.take_turn(), complete(origin, seq, 0.0, failed_item(1, task=3))]

    again = Origin(replace(LIMITS, retries=0), restored(turns), 0.0, EDGES)
    again.replay(0.0)

    counts = again.counts()
    assert (counts.pending, counts.handled) == (1, 1)
    (launch,) = again.take_turn().launches
    assert (launch.seq, launch.payload, launch.entry) == (1, (((1,), 1),), (3, Stage.FAILED))
    assert complete(again, 1).settled == [Settled(seq, 0, confirmed=True)]


def test_failed_inputs_of_a_durable_task_leave_in_its_next_commit() -> None:
    origin = running_with_edges(retries=0)
    origin.fail_here(failed_item(1, task=3), None, 0.0)
    origin.fail_here(failed_item(2, task=3), None, 0.0)
    assert not origin.settled
    assert origin.has_own_retries, "no end() before it is born"

    turn = origin.take_turn()

    (born,) = [change.record for change in turn.changes if isinstance(change, BatchBorn)]
    assert (born.count, born.retry and born.retry.root) == (2, NO_ROOT)
    assert (origin.counts().own_retries, origin.counts().pending) == (2, 0)
    assert complete(origin, 0).settled == []
    assert origin.settled


def test_without_a_journal_a_death_abandons_what_is_on_its_way_over_the_edge() -> None:
    origin = running_with_edges(retries=0, replays=False)
    seq = birth(origin, 5)
    origin.take_turn()
    complete(origin, seq, 0.0, failed_item(1, task=3))

    assert origin.abandon() == 1

    assert origin.take_turn().settled == [Settled(seq, 0, confirmed=False)]
    counts = origin.counts()
    assert (counts.completed, counts.pending, counts.abandoned) == (4, 1, 1)
    assert origin.settled


# -- any history ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(st.randoms(use_true_random=False), st.integers(0, 3), st.integers(1, 4))
def test_books_balance_and_a_restart_changes_nothing_under_any_history(rng: Any, retries: int, pending: int) -> None:
    limits = replace(LIMITS, retries=retries, max_pending=pending, max_pending_bytes=50, retry_delay_s=0.5)
    disk, now_s = Disk(), 0.0
    origin = Origin(limits, failed_edges=EDGES)
    open_frames: dict[tuple[int, int], list[int]] = {}
    for _ in range(120):
        now_s += rng.random()
        act = rng.randrange(6)
        if act == 0 and origin.room():
            birth(origin, rng.randint(1, origin.room()), now_s)
        elif act == 1:
            origin.start_retries(now_s)
            origin.expire(now_s)
        elif act == 2 and rng.random() < 0.3:
            origin.replay(now_s)
        elif act == 3 and rng.random() < 0.2:
            origin = Origin(limits, disk.restore(), now_s, EDGES)
            open_frames.clear()
            continue
        elif open_frames:
            key = rng.choice(list(open_frames))
            frames = open_frames[key]
            failed = [failed_item(rng.randrange(9), task=rng.randint(1, 3)) for _ in range(rng.choice((0, 0, 1, 2)))]
            origin.acked(Ack(*key, frames.pop(), rng.randrange(30), tuple(failed)), now_s)
            if not frames:
                del open_frames[key]
        turn = commit(origin, disk)
        for launch in turn.launches:
            frames = [rng.getrandbits(64) | 1 for _ in range(rng.randrange(3))]
            if frames:
                open_frames[launch.seq, launch.generation] = frames
            xor = 0
            for frame in frames:
                xor ^= frame
            origin.launched(launch.seq, launch.generation, xor, now_s)
        commit(origin, disk)

        counts = origin.counts()
        assert counts.emitted == counts.completed + counts.pending
        assert 0 <= counts.pending <= counts.emitted
        assert origin._pending_bytes >= 0
        again = Origin(limits, disk.restore(), now_s).counts()
        assert (again.emitted, again.completed, again.failed) == (counts.emitted, counts.completed, counts.failed)
        assert again.handled == counts.handled
        assert origin.settled == (not disk.batches and not disk.waiting)
        if origin.settled:
            assert (counts.pending, origin._pending_bytes, origin._roots) == (0, 0, {})


@pytest.mark.parametrize("limits", [OriginLimits(), LIMITS])
def test_the_books_of_an_origin_that_did_nothing_are_empty(limits: OriginLimits) -> None:
    counts = Origin(limits).counts()

    assert (counts.emitted, counts.completed, counts.failed, counts.pending) == (0, 0, 0, 0)


# -- participants, gos and confirms --------------------------------------------------------------

STORE, OTHER_STORE = TaskIndex(5), TaskIndex(6)


def stage(origin: Origin, seq: int, *tasks: TaskIndex, now_s: float = 0.0) -> Turn:
    """Let the batch's current execution be one frame for each of these durable tasks, and complete."""
    generation = origin.generation
    ids = {task: 1 << (8 * seq + int(task)) for task in tasks}
    origin.launched(seq, generation, sum(ids.values()), now_s)
    for task, frame_id in ids.items():
        origin.acked(Ack(seq, generation, frame_id, 0, (), staged=True), now_s, task)
    return origin.take_turn()


def restored(turns: list[Turn]) -> Restored:
    """What the journal holds after these turns."""
    disk = Disk()
    for turn in turns:
        disk.commit(turn.changes)
    return disk.restore()


def test_a_decision_is_kept_with_its_participants_and_each_is_told_to_go() -> None:
    origin = running()
    seq = birth(origin)
    origin.take_turn()

    turn = stage(origin, seq, STORE, OTHER_STORE)

    (change,) = [c for c in turn.changes if isinstance(c, BatchDecided)]
    xors = {STORE: 1 << 5, OTHER_STORE: 1 << 6}
    assert change.decision is not None
    assert (change.decision.seq, change.decision.generation) == (seq, 1)
    assert dict(change.decision.participants) == xors
    assert turn.gos == [(task, Go(seq, 1, -1, 0, xor)) for task, xor in xors.items()]
    assert turn.settled == []
    assert origin.counts().pending == 1, "it is not applied yet"


def test_the_ids_that_one_task_staged_are_folded() -> None:
    origin = running()
    seq = birth(origin)
    origin.launched(seq, 1, 3 ^ 12, 0.0)

    origin.acked(Ack(seq, 1, 3, 0, (), staged=True), 0.0, STORE)
    origin.acked(Ack(seq, 1, 12, 0, (), staged=True), 0.0, STORE)

    assert [(task, go.xor) for task, go in origin.take_turn().gos] == [(STORE, 3 ^ 12)]


def test_a_batch_is_forgotten_at_the_last_confirm() -> None:
    origin = running()
    seq = birth(origin)
    stage(origin, seq, STORE, OTHER_STORE)

    origin.confirmed(STORE, [Confirm(seq)], 0.0)
    origin.confirmed(STORE, [Confirm(seq)], 0.0)
    origin.confirmed(TaskIndex(9), [Confirm(seq)], 0.0)
    assert not origin.take_turn()
    assert not origin.settled

    origin.confirmed(OTHER_STORE, [Confirm(seq)], 0.0)
    turn = origin.take_turn()
    assert turn.changes == [BatchForgotten(seq)]
    assert turn.settled == [Settled(seq, 0, confirmed=True)]
    assert origin.settled
    assert origin.counts().pending == 0


def test_a_batch_that_was_decided_below_is_over() -> None:
    origin = running()
    seq = birth(origin)
    origin.take_turn()
    origin.launched(seq, 1, 7, 0.0)

    origin.confirmed(STORE, [Confirm(seq)], 0.0)

    turn = origin.take_turn()
    assert turn.changes == [BatchDecided(seq, None)]
    assert (turn.gos, turn.settled) == ([], [Settled(seq, 0, confirmed=True)])
    assert origin.settled
    origin.confirmed(STORE, [Confirm(seq)], 0.0)
    assert not origin.take_turn()


def test_batches_that_were_decided_below_are_over_in_their_order() -> None:
    origin = running()
    first, second = birth(origin), birth(origin)
    origin.take_turn()
    for seq in (first, second):
        origin.launched(seq, 1, 7, 0.0)

    origin.confirmed(STORE, [Confirm(second)], 0.0)
    assert not origin.take_turn()
    origin.confirmed(STORE, [Confirm(first)], 0.0)

    assert decided(origin.take_turn()) == [first, second]


def test_of_later_executions_of_what_was_decided_below_nothing_counts() -> None:
    origin = running()
    seq = birth(origin)
    origin.take_turn()
    origin.replay(0.0)
    origin.take_turn()
    origin.launched(seq, 2, 3 ^ 7, 0.0, [failed_item()])
    origin.acked(Ack(seq, 2, 3, 0, (failed_item(),), staged=True), 0.0, OTHER_STORE)

    origin.confirmed(STORE, [Confirm(seq)], 0.0)

    turn = origin.take_turn()
    assert turn.changes == [BatchDecided(seq, None)]
    assert (turn.gos, kept(turn)) == ([], [])


def test_what_failed_at_its_birth_has_failed_whoever_decides() -> None:
    origin = running()
    seq = origin.born(2, ("one",), 2, 0.0, born_failed=(failed_item(),))
    origin.take_turn()
    origin.launched(seq, 1, 7, 0.0)

    origin.confirmed(STORE, [Confirm(seq)], 0.0)

    assert len(kept(origin.take_turn())) == 1


def test_what_was_decided_below_does_not_run_again() -> None:
    origin = running()
    seq = birth(origin)
    origin.take_turn()
    origin.replay(0.0)

    origin.confirmed(STORE, [Confirm(seq)], 0.0)

    turn = origin.take_turn()
    assert decided(turn) == [seq]
    assert turn.launches == []


def test_a_launch_says_whether_the_batch_has_run_before() -> None:
    record = BatchRecord(0, 1, ("old",))
    origin = Origin(LIMITS, Restored(Head(next_seq=1), (record,)))
    origin.replay(0.0)
    birth(origin)
    assert [(launch.seq, launch.again) for launch in origin.take_turn().launches] == [(0, True), (1, False)]

    origin.replay(0.0)

    assert [(launch.seq, launch.again) for launch in origin.take_turn().launches] == [(0, True), (1, True)]


def one_of_two_confirmed() -> Origin:
    """Batch 0 is over, batch 1 is open."""
    origin = running()
    for _ in range(2):
        birth(origin)
    stage(origin, 0, STORE)
    origin.take_turn()
    origin.confirmed(STORE, [Confirm(0)], 0.0)
    return origin


def test_a_forgetting_rides_with_the_next_commit_while_anything_is_open() -> None:
    origin = one_of_two_confirmed()
    turn = origin.take_turn()
    assert (turn.changes, turn.settled) == ([], [Settled(0, 0, confirmed=True)])
    assert (origin.forgotten, origin.owes) == ((0,), False)

    turn = stage(origin, 1, STORE)
    assert BatchForgotten(0) in turn.changes
    assert (turn.low, origin.forgotten) == (1, ())

    origin.confirmed(STORE, [Confirm(1)], 0.0)
    assert origin.owes
    assert not origin.settled
    assert origin.take_turn().changes == [BatchForgotten(1)]
    assert origin.settled


def test_a_forgetting_may_ride_with_what_is_committed_beside() -> None:
    origin = one_of_two_confirmed()

    assert origin.take_forgotten() == [BatchForgotten(0)]
    assert origin.take_forgotten() == []


def test_a_go_says_which_batch_the_participant_has_not_confirmed() -> None:
    origin = running()
    for _ in range(3):
        birth(origin)
    origin.take_turn()
    stage(origin, 0, STORE)
    stage(origin, 1, OTHER_STORE)

    turn = stage(origin, 2, STORE, OTHER_STORE)
    assert [(task, go.after, go.low) for task, go in turn.gos] == [(STORE, 0, 0), (OTHER_STORE, 1, 0)]

    origin.confirmed(STORE, [Confirm(0)], 0.0)
    birth(origin)
    origin.take_turn()
    turn = stage(origin, 3, STORE)
    assert [(go.after, go.low) for _, go in turn.gos] == [(2, 1)]


def test_a_decided_batch_is_not_run_again_but_its_gos_are_told_again() -> None:
    origin = running()
    seq = birth(origin)
    origin.take_turn()
    stage(origin, seq, STORE, OTHER_STORE)
    origin.confirmed(STORE, [Confirm(seq)], 0.0)

    origin.replay(1.0)

    turn = origin.take_turn()
    assert turn.launches == []
    assert turn.gos == [(OTHER_STORE, Go(seq, 1, -1, seq, 1 << 6))], "of the generation that was decided"


def test_what_an_execution_staged_that_was_thrown_away_takes_no_part() -> None:
    origin = running()
    seq = birth(origin)
    origin.launched(seq, 1, 3 ^ 12, 0.0)
    origin.acked(Ack(seq, 1, 3, 0, (), staged=True), 0.0, STORE)
    origin.take_turn()

    origin.replay(0.0)
    turn = stage(origin, seq, OTHER_STORE)

    assert [(task, go.generation) for task, go in turn.gos] == [(OTHER_STORE, 2)]


def test_a_restarted_origin_tells_the_gos_of_what_was_decided() -> None:
    origin = Origin(LIMITS)
    origin.replay(0.0)
    seq = birth(origin, count=3)
    turns = [origin.take_turn(), stage(origin, seq, STORE, OTHER_STORE)]

    again = Origin(LIMITS, restored(turns))

    assert again.counts() == replace(origin.counts(), replayed=0)
    assert not again.settled
    again.replay(0.0)
    assert [(task, go.seq, go.generation) for task, go in again.take_turn().gos] == [
        (STORE, seq, 1),
        (OTHER_STORE, seq, 1),
    ]
    again.confirmed(STORE, [Confirm(seq)], 0.0)
    again.confirmed(OTHER_STORE, [Confirm(seq)], 0.0)
    assert again.take_turn().settled == [Settled(seq, 0, confirmed=True)]


def test_gos_that_nobody_confirms_are_told_again_later_and_later() -> None:
    origin = running(tree_timeout_s=10.0)
    seq = birth(origin)
    origin.take_turn()
    stage(origin, seq, STORE)
    told = []

    for now_s in range(80):
        origin.expire(float(now_s))
        told += [now_s] * len(origin.take_turn().gos)

    assert told == [10, 30, 70]


def test_unconfirmed_batches_fill_the_window() -> None:
    origin = running(max_pending=2)
    for _ in range(2):
        stage(origin, birth(origin), STORE)

    assert origin.room() == 0
    assert origin.low == 0

    origin.confirmed(STORE, [Confirm(0)], 0.0)
    assert origin.room() > 0
    assert origin.low == 1


# -- failed inputs of the origin's own durable task ----------------------------------------------


def test_a_failed_input_becomes_a_batch_that_descends_from_none() -> None:
    origin = running()
    origin.fail_here(failed_item(task=3), None, 0.0)
    (entry,) = kept(origin.take_turn())
    assert (entry.root, entry.held, entry.attempts, entry.due_s) == (NO_ROOT, 0, 1, 1.0)
    assert origin.has_own_retries
    assert not origin.settled

    origin.start_retries(1.0)

    turn = origin.take_turn()
    assert FailureTaken(entry.key) in turn.changes
    (born,) = [change.record for change in turn.changes if isinstance(change, BatchBorn)]
    assert born.retry is not None
    assert (born.retry.root, born.retry.entry) == (NO_ROOT, (3, Stage.PROCESS))
    assert turn.launches == [Launch(born.seq, 1, (0,), born.retry.entry)]
    assert origin.counts().own_retries == 1


def test_a_failed_input_is_over_when_its_retry_is_applied() -> None:
    origin = running()
    origin.fail_here(failed_item(task=3), None, 0.0)
    origin.start_retries(1.0)
    origin.take_turn()
    stage(origin, 0, TaskIndex(3))
    assert origin.has_own_retries

    origin.confirmed(TaskIndex(3), [Confirm(0)], 1.0)

    turn = origin.take_turn()
    assert turn.settled == [], "it is no batch of the stream"
    assert not origin.has_own_retries
    assert origin.settled
    assert origin.counts() == replace(origin.counts(), emitted=0, pending=0, failed=0, own_retries=0)


def test_a_failed_input_that_fails_again_has_one_try_less() -> None:
    origin = running()
    item = failed_item(task=3)
    attempts = []
    origin.fail_here(item, None, 0.0)
    for seq, now_s in enumerate((1000.0, 2000.0)):
        attempts += [entry.attempts for entry in kept(origin.take_turn())]
        origin.start_retries(now_s)
        origin.take_turn()
        stage(origin, seq, TaskIndex(3))

        origin.fail_here(item, origin.retry_of(seq), now_s)
        origin.confirmed(TaskIndex(3), [Confirm(seq)], now_s)

    (last,) = kept(origin.take_turn())
    assert [*attempts, last.attempts] == [1, 2, 3]
    assert last.due_s is None, "two tries beside the first are all it has"
    assert origin.counts().failed == 1
    assert origin.settled


def test_own_retries_outlive_a_restart() -> None:
    origin = Origin(LIMITS)
    origin.replay(0.0)
    origin.fail_here(failed_item(task=3), None, 0.0)
    turns = [origin.take_turn()]
    waiting = Origin(LIMITS, restored(turns))
    origin.start_retries(1.0)
    turns.append(origin.take_turn())
    under_way = Origin(LIMITS, restored(turns))
    turns.append(stage(origin, 0, TaskIndex(3)))
    decided_one = Origin(LIMITS, restored(turns))

    for again in (waiting, under_way, decided_one):
        assert again.has_own_retries
        assert again.counts().own_retries == 1
        assert again.counts().pending == 0
    assert decided_one.retry_of(0) is not None
