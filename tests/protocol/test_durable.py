"""The durable task's core: staging, order, the ledger, what is thrown away; step by step and under any order."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consecution.errors import ProtocolError
from consecution.protocol.durable import Application, Durable, FramesDropped, FrameStaged, LedgerMoved
from consecution.protocol.values import Confirm, Frame, FrameId, Go, Stage, TaskIndex
from tests.strategies import failed_item

SOURCE, OTHER, OWN = TaskIndex(0), TaskIndex(7), TaskIndex(3)


def frame(
    seq: int,
    frame_id: int,
    *,
    generation: int = 1,
    path: Iterable[int] = (0,),
    low: int = 0,
    origin: TaskIndex = SOURCE,
    whole: bool = False,
    load_s: float = 0.0,
) -> Frame:
    ident, way = FrameId(frame_id), tuple(path)
    payload = (seq, frame_id)
    made = Frame(origin, seq, generation, way, ident, low, origin, Stage.PROCESS, False, payload, whole=whole)
    made.load_s = load_s
    return made


def fence(seq: int, frame_id: int, *, generation: int = 2, low: int = 0) -> Frame:
    return Frame(SOURCE, seq, generation, (), FrameId(frame_id), low, SOURCE, Stage.PROCESS, False, b"")


def go(seq: int, xor: int, *, generation: int = 1, after: int = -1, low: int = 0) -> Go:
    return Go(seq, generation, after, low, xor)


def staged(*frames: Frame) -> Durable:
    """A task with these frames in its inbox and nothing to do."""
    durable = Durable()
    for each in frames:
        durable.stage(each)
    durable.take_turn()
    return durable


def apply_all(durable: Durable) -> list[tuple[int, int]]:
    """Apply what may be applied: (origin, seq) in this order."""
    applied = []
    while (application := durable.next_application()) is not None:
        durable.apply(application)
        applied.append((int(application.origin), application.seq))
    return applied


def dropped(changes: list[Any]) -> set[int]:
    return {int(f.frame_id) for change in changes if isinstance(change, FramesDropped) for f in change.frames}


# -- staging -------------------------------------------------------------------------------------


def test_a_frame_is_stored_and_then_acknowledged() -> None:
    durable = Durable()
    arriving, failed = frame(4, 99, generation=2), failed_item()

    assert durable.stage(arriving, (failed,))

    turn = durable.take_turn()
    assert turn.changes == [FrameStaged(arriving)]
    ((origin, ack),) = turn.acks
    assert (origin, ack.seq, ack.generation, ack.xor, ack.failed, ack.staged) == (SOURCE, 4, 2, 99, (failed,), True)
    assert not durable.take_turn()


def test_origins_take_turns() -> None:
    durable = staged(*(frame(seq, seq + 1, origin=origin) for origin in (SOURCE, OTHER, OWN) for seq in range(3)))
    for origin in (SOURCE, OTHER, OWN):
        for seq in range(3):
            durable.go(origin, go(seq, seq + 1))

    assert apply_all(durable) == [(origin, seq) for seq in range(3) for origin in (SOURCE, OTHER, OWN)]


def test_an_origin_that_always_has_more_does_not_keep_others_waiting() -> None:
    durable = staged(*(frame(seq, seq + 1) for seq in range(100)), frame(0, 1, origin=OTHER))
    for seq in range(100):
        durable.go(SOURCE, go(seq, seq + 1))
    first = durable.next_application()
    assert first is not None
    durable.apply(first)
    durable.go(OTHER, go(0, 1))

    second = durable.next_application()

    assert second is not None
    assert second.origin == OTHER


def test_nothing_is_applied_before_the_decision() -> None:
    durable = staged(frame(0, 1))

    assert durable.next_application() is None
    assert durable.staged_count == 1


def test_a_repeat_is_not_acknowledged_again() -> None:
    durable = staged(frame(0, 1))

    assert not durable.stage(frame(0, 1))
    assert not durable.take_turn()


# -- application ---------------------------------------------------------------------------------


def test_a_go_applies_the_frames_of_its_generation_by_path() -> None:
    first, second = frame(0, 2, path=(0, 1)), frame(0, 1, path=(0, 2))
    durable = staged(second, frame(0, 8, generation=2), first)

    durable.go(SOURCE, go(0, 2 ^ 1))

    assert durable.next_application() == Application(SOURCE, 0, 1, (first, second))


def test_ledger_and_emptied_inbox_are_one_turn_and_the_confirm_comes_with_it() -> None:
    durable = staged(frame(0, 1), frame(0, 8, generation=2))
    durable.go(SOURCE, go(0, 1))

    assert apply_all(durable) == [(SOURCE, 0)]

    turn = durable.take_turn()
    assert dropped(turn.changes) == {1, 8}, "frames of every execution of the batch go"
    assert LedgerMoved(SOURCE, 0) in turn.changes
    assert turn.confirms == [(SOURCE, Confirm(0))]
    assert durable.staged_count == 0


def test_a_go_waits_for_the_batch_it_comes_after() -> None:
    durable = staged(frame(0, 1), frame(2, 4))

    durable.go(SOURCE, go(2, 4, after=0))
    assert durable.next_application() is None

    durable.go(SOURCE, go(0, 1))
    assert apply_all(durable) == [(SOURCE, 0), (SOURCE, 2)]


def test_origins_do_not_wait_for_each_other() -> None:
    durable = staged(frame(1, 1), frame(0, 2, origin=OTHER))
    durable.go(SOURCE, go(1, 1, after=0))
    durable.go(OTHER, go(0, 2))

    assert apply_all(durable) == [(OTHER, 0)]


def test_only_one_origin_may_be_asked_for() -> None:
    durable = staged(frame(0, 1), frame(0, 2, origin=OWN))
    durable.go(SOURCE, go(0, 1))
    durable.go(OWN, go(0, 2))

    application = durable.next_application(only=OWN)

    assert application is not None
    assert application.origin == OWN


def test_a_go_that_the_ledger_has_is_confirmed_again() -> None:
    durable = Durable({SOURCE: 5})

    durable.go(SOURCE, go(5, 1))

    assert durable.next_application() is None
    assert durable.take_turn().confirms == [(SOURCE, Confirm(5))]


@pytest.mark.parametrize("missing", [(), (1,)])
def test_a_go_whose_frames_are_missing_is_damage(missing: tuple[int, ...]) -> None:
    durable = staged(*(frame(3, number) for number in missing))
    durable.go(SOURCE, go(3, 1 ^ 2))

    with pytest.raises(ProtocolError, match=r"lacks frames of batch 3 of origin 0 .* restore the state directory"):
        durable.next_application()


def test_a_new_incarnation_goes_on_with_what_was_stored() -> None:
    durable = Durable({SOURCE: 0}, [frame(1, 4)])

    assert durable.applied(SOURCE) == 0
    assert not durable.stage(frame(0, 2)), "the ledger has that batch"
    assert not durable.stage(frame(1, 4)), "that frame lies in the inbox"
    durable.go(SOURCE, go(1, 4, after=0))
    assert apply_all(durable) == [(SOURCE, 1)]


# -- what is thrown away -------------------------------------------------------------------------


def test_frames_below_low_go_and_come_in_no_more() -> None:
    durable = staged(frame(0, 1), frame(1, 2))

    durable.stage(frame(3, 4, low=1))

    turn = durable.take_turn()
    assert dropped(turn.changes) == {1}
    assert not durable.stage(frame(0, 8)), "its batch is over"
    assert not durable.take_turn()


def test_frames_below_low_stay_while_their_go_is_in_hand() -> None:
    durable = staged(frame(1, 2))
    durable.go(SOURCE, go(1, 2, after=0))

    durable.stage(frame(3, 4, low=2))

    assert dropped(durable.take_turn().changes) == set()
    assert durable.staged_count == 2


def test_with_a_batch_goes_what_is_left_of_those_before_it() -> None:
    """A batch that ran again, and was routed elsewhere then; its origin need not say anything more for a while."""
    durable = staged(frame(0, 1), frame(1, 2), frame(2, 4))
    durable.go(SOURCE, go(1, 2))

    apply_all(durable)

    assert dropped(durable.take_turn().changes) == {1, 2}


def test_what_is_told_stays_until_its_turn() -> None:
    durable = staged(frame(0, 1), frame(1, 2))
    durable.go(SOURCE, go(0, 1))
    durable.go(SOURCE, go(1, 2, after=0))

    assert apply_all(durable) == [(SOURCE, 0), (SOURCE, 1)]


def test_low_never_falls() -> None:
    durable = staged(frame(5, 1, low=5))

    assert not durable.stage(frame(4, 2, low=0))


def test_at_the_end_of_the_stream_what_is_staged_goes_and_only_own_retries_come() -> None:
    durable = staged(frame(0, 1), frame(9, 2, origin=OWN))

    durable.finish(OWN)

    assert dropped(durable.take_turn().changes) == {1}
    assert not durable.stage(frame(1, 4)), "everything above is applied: this is left of another execution"
    assert durable.stage(frame(10, 8, origin=OWN))


# -- what is decided here ------------------------------------------------------------------------


def test_a_frame_that_is_the_whole_of_the_next_batch_is_applied_after_its_commit_and_confirmed() -> None:
    durable = Durable()
    arriving = frame(0, 1, whole=True)

    assert durable.stage(arriving)
    assert durable.next_application() is None, "it is not on disk yet"
    turn = durable.take_turn()
    assert (turn.changes, turn.acks, turn.confirms) == ([FrameStaged(arriving)], [], [])

    assert durable.next_application() == Application(SOURCE, 0, 1, (arriving,))
    assert apply_all(durable) == [(SOURCE, 0)]
    durable.acknowledge_late()
    turn = durable.take_turn()
    assert turn.changes == [FramesDropped((arriving,)), LedgerMoved(SOURCE, 0)]
    assert (turn.acks, turn.confirms) == ([], [(SOURCE, Confirm(0))])


def test_what_a_batch_has_cost_is_told_with_the_word_that_it_is_decided() -> None:
    durable = Durable()
    durable.stage(frame(0, 1, whole=True, load_s=0.25))
    durable.stage(frame(2, 2, whole=True, load_s=0.5))
    acks = durable.take_turn().acks
    apply_all(durable)

    assert [(ack.seq, ack.load_s) for _, ack in acks] == [(2, 0.5)], "that one its origin decides"
    assert durable.take_turn().confirms == [(SOURCE, Confirm(0, 0.25))]


def test_what_a_crash_takes_back_is_applied_by_the_commit_that_decides_it() -> None:
    durable = Durable(applies_at_once=True)
    first, second = frame(0, 1, whole=True), frame(1, 2, whole=True)
    assert durable.stage(first)
    assert durable.stage(second)

    assert durable.owes
    assert apply_all(durable) == [(SOURCE, 0), (SOURCE, 1)]
    assert not durable.stage(frame(1, 9, generation=2)), "it is applied"
    turn = durable.take_turn()

    assert dropped(turn.changes) == set()
    assert [change for change in turn.changes if type(change) is not FramesDropped] == [
        LedgerMoved(SOURCE, 0),
        LedgerMoved(SOURCE, 1),
    ]
    assert (turn.acks, turn.confirms) == ([], [(SOURCE, Confirm(0)), (SOURCE, Confirm(1)), (SOURCE, Confirm(1))])
    assert not durable.owes


def test_and_staged_by_it_where_it_is_not_applied_by_then() -> None:
    durable = Durable(applies_at_once=True)
    first, second = frame(0, 1, whole=True), frame(1, 2, whole=True)
    durable.stage(first)
    durable.stage(second)
    application = durable.next_application()
    assert application is not None
    durable.apply(application)

    turn = durable.take_turn()
    assert turn.changes == [FramesDropped(()), LedgerMoved(SOURCE, 0), FrameStaged(second)]
    assert turn.acks == []
    assert durable.has_decided

    durable.acknowledge_late()
    assert apply_all(durable) == [(SOURCE, 1)]
    turn = durable.take_turn()
    assert turn.changes == [FramesDropped((second,)), LedgerMoved(SOURCE, 1)]
    assert ([ack.seq for _, ack in turn.acks], turn.confirms) == ([1], [(SOURCE, Confirm(1))])


@pytest.mark.parametrize("arriving", [frame(0, 1), frame(1, 1, whole=True)], ids=["a part", "batch 0 may come yet"])
def test_what_its_origin_has_to_decide_is_staged_in_any_case(arriving: Frame) -> None:
    durable = Durable(applies_at_once=True)
    durable.stage(arriving)

    assert durable.next_application() is None
    assert durable.take_turn().changes == [FrameStaged(arriving)]


def test_batches_in_a_row_are_decided_in_one_commit() -> None:
    durable = staged(*(frame(seq, seq + 1, whole=True) for seq in range(3)))

    assert apply_all(durable) == [(SOURCE, 0), (SOURCE, 1), (SOURCE, 2)]


@pytest.mark.parametrize(
    ("before", "arriving"),
    [
        ([], frame(1, 9, whole=True)),
        ([frame(0, 1)], frame(1, 9, whole=True)),
        ([], frame(0, 9)),
        ([frame(0, 1, path=(1,)), fence(0, 2)], frame(0, 9, whole=True)),
    ],
    ids=["batch 0 may come yet", "batch 0 is not decided", "a part", "runs again"],
)
def test_whatever_else_is_staged_waits_for_its_origin(before: list[Frame], arriving: Frame) -> None:
    durable = staged(*before)

    assert durable.stage(arriving)

    assert [ack.xor for _, ack in durable.take_turn().acks] == [9]
    assert durable.next_application() is None


def test_a_frame_with_items_that_cannot_be_stored_waits_for_its_origin() -> None:
    durable = Durable()

    durable.stage(frame(0, 1, whole=True), (failed_item(),))

    assert len(durable.take_turn().acks) == 1
    assert durable.next_application() is None


def test_batches_before_it_may_be_over_everywhere() -> None:
    durable = staged(frame(9, 8, low=9, whole=True))

    assert apply_all(durable) == [(SOURCE, 9)]


def test_batches_before_it_may_be_applied_or_told() -> None:
    durable = staged(frame(0, 1), frame(1, 2))
    durable.go(SOURCE, go(0, 1))
    apply_all(durable)
    durable.go(SOURCE, go(1, 2, after=0))
    durable.stage(frame(2, 4, whole=True))
    durable.take_turn()

    assert apply_all(durable) == [(SOURCE, 1), (SOURCE, 2)]


def test_what_could_not_be_applied_at_once_is_acknowledged_once() -> None:
    durable = Durable()
    durable.stage(frame(0, 1, whole=True))
    durable.acknowledge_late()
    assert durable.take_turn().acks == [], "it is only just being committed"

    durable.acknowledge_late()
    durable.acknowledge_late()

    assert [(ack.seq, ack.xor, ack.staged) for _, ack in durable.take_turn().acks] == [(0, 1, True)]
    durable.go(SOURCE, go(0, 1))
    assert apply_all(durable) == [(SOURCE, 0)]
    assert durable.take_turn().confirms == [(SOURCE, Confirm(0))]


def test_a_later_execution_of_what_was_decided_here_is_neither_staged_nor_acknowledged() -> None:
    durable = staged(frame(0, 1, whole=True))

    assert not durable.stage(fence(0, 2))
    assert not durable.stage(frame(0, 4, generation=2))
    assert not durable.take_turn()

    assert apply_all(durable) == [(SOURCE, 0)]
    assert durable.take_turn().confirms == [(SOURCE, Confirm(0))]


def test_so_it_is_in_the_turn_of_the_decision() -> None:
    durable = Durable()
    durable.stage(frame(0, 1, whole=True))

    assert not durable.stage(fence(0, 2))
    assert durable.take_turn().acks == []


def test_whoever_asks_for_what_is_applied_is_told() -> None:
    durable = staged(frame(0, 1, whole=True))
    apply_all(durable)
    durable.take_turn()

    assert not durable.stage(fence(0, 2))

    assert durable.take_turn().confirms == [(SOURCE, Confirm(0))]


def test_a_fence_holds_back_what_ran_before_it_and_is_nothing_to_apply() -> None:
    durable = staged(fence(0, 2), frame(0, 4, generation=2), frame(0, 1, whole=True))
    assert durable.next_application() is None

    durable.go(SOURCE, go(0, 2 ^ 4, generation=2))

    application = durable.next_application()
    assert application is not None
    assert [f.frame_id for f in application.frames] == [4]
    durable.apply(application)
    assert dropped(durable.take_turn().changes) == {1, 2, 4}


def test_a_fence_alone_is_confirmed_too() -> None:
    durable = staged(fence(0, 2))

    durable.go(SOURCE, go(0, 2, generation=2))

    application = durable.next_application()
    assert application is not None
    assert application.frames == ()
    durable.apply(application)
    assert durable.take_turn().confirms == [(SOURCE, Confirm(0))]


def test_after_a_crash_it_is_still_decided() -> None:
    """Some of it may have been written, where nobody can take it back."""
    durable = Durable({SOURCE: 5}, [frame(7, 2, whole=True), frame(6, 1, whole=True)])

    assert not durable.stage(fence(6, 16))
    assert not durable.stage(fence(7, 32))
    assert apply_all(durable) == [(SOURCE, 6), (SOURCE, 7)]
    assert durable.take_turn().confirms == [(SOURCE, Confirm(6)), (SOURCE, Confirm(7))]


def test_after_a_crash_it_waits_for_what_was_told_before_it() -> None:
    """That was in memory only, and is told again."""
    durable = Durable({SOURCE: 4}, [frame(5, 1), frame(6, 2, whole=True)])

    assert not durable.stage(fence(6, 16))
    assert apply_all(durable) == []
    durable.go(SOURCE, go(5, 1, after=4))

    assert apply_all(durable) == [(SOURCE, 5), (SOURCE, 6)]


def test_after_a_crash_it_waits_for_nobody_whose_batches_were_over() -> None:
    durable = Durable({SOURCE: 4}, [frame(9, 2, low=9, whole=True)])

    assert apply_all(durable) == [(SOURCE, 9)]


def test_only_what_was_decided_lies_in_the_inbox_as_the_whole() -> None:
    durable = Durable()
    for seq in (0, 2):
        durable.stage(frame(seq, seq + 1, whole=True))

    changes = durable.take_turn().changes

    assert [change.frame.whole for change in changes if isinstance(change, FrameStaged)] == [True, False]


# -- any order -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(
    batches=st.lists(st.integers(1, 3), min_size=1, max_size=6),
    repeats=st.integers(0, 5),
    order=st.randoms(use_true_random=False),
    crashes=st.sets(st.integers(0, 40), max_size=3),
)
def test_every_batch_is_applied_once_in_order_whatever_comes_when(
    batches: list[int], repeats: int, order: Random, crashes: set[int]
) -> None:
    sent = [
        frame(seq, 1 << 4 * seq + place, path=(place,)) for seq, count in enumerate(batches) for place in range(count)
    ]
    xors = [sum(int(f.frame_id) for f in sent if f.seq == seq) for seq in range(len(batches))]
    gos = [go(seq, xor, after=seq - 1) for seq, xor in enumerate(xors)]
    told = gos + [order.choice(gos) for _ in range(repeats)]
    order.shuffle(sent)
    order.shuffle(told)
    durable, ledger, inbox, applied = Durable(), dict[TaskIndex, int](), dict[FrameId, Frame](), list[int]()

    for number, message in enumerate([*sent, *told, *gos]):
        if number in crashes:
            durable = Durable(dict(ledger), inbox.values())
        if isinstance(message, Frame):
            durable.stage(message)
        else:
            durable.go(SOURCE, message)
        applied += [seq for _, seq in apply_all(durable)]
        for change in durable.take_turn().changes:
            if isinstance(change, FrameStaged):
                inbox[change.frame.frame_id] = change.frame
            elif isinstance(change, FramesDropped):
                for each in change.frames:
                    del inbox[each.frame_id]
            else:
                ledger[change.origin] = change.seq

    assert applied == list(range(len(batches)))
    assert not inbox
