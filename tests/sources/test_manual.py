from __future__ import annotations

import threading
from typing import Any

import pytest

from consecution.errors import BackPressureError, NotRunningError
from consecution.sources.manual import ManualSource

DEADLINE_S = 10.0


@pytest.fixture
def source() -> ManualSource:
    made = ManualSource()
    made.open(None)
    return made


def born(source: ManualSource, seq: int, count: int) -> list[Any]:
    """Read so many items and make them a batch."""
    items = source.read(count)
    assert items is not None
    source.batch_born(seq, len(items))
    return items


def test_a_receipt_is_granted_with_its_batch(source: ManualSource) -> None:
    first, second, third = (source.push(item) for item in "abc")
    assert born(source, 0, 2) == ["a", "b"]
    assert born(source, 1, 2) == ["c"]

    source.batch_settled(0, 0, True)

    assert [receipt.done for receipt in (first, second, third)] == [True, True, False]
    assert first.wait(0)
    assert not third.wait(0)
    source.batch_settled(1, 1, True)
    assert third.wait(0)
    assert [receipt.failed for receipt in (first, second, third)] == [False, False, True]
    assert third.done


def test_batches_are_settled_in_any_order_and_those_of_an_earlier_run_are_nobodys(source: ManualSource) -> None:
    receipts = [source.push(item) for item in "ab"]
    born(source, 7, 1)
    born(source, 8, 1)

    source.batch_settled(3, 0, True)
    source.batch_settled(8, 0, True)
    source.batch_settled(8, 5, True)

    assert [receipt.done for receipt in receipts] == [False, True]
    assert not receipts[1].failed


def test_many_may_wait_for_one_receipt(source: ManualSource) -> None:
    receipt = source.push("a")
    born(source, 0, 1)
    waited: list[bool] = []
    threads = [threading.Thread(target=lambda: waited.append(receipt.wait(DEADLINE_S))) for _ in range(4)]
    for thread in threads:
        thread.start()

    source.batch_settled(0, 0, True)

    for thread in threads:
        thread.join(DEADLINE_S)
    assert waited == [True] * 4


def test_a_batch_that_was_lost_is_told_so(source: ManualSource) -> None:
    receipt = source.push("a")
    born(source, 0, 1)

    source.batch_settled(0, 0, False)

    assert not receipt.done
    with pytest.raises(NotRunningError, match="lost with a worker; robustness='robust' would have kept it"):
        receipt.wait(0)


@pytest.mark.parametrize(
    ("batches", "reason"),
    [(1, "before this item was completely processed"), (0, "before this item was (taken|completely)")],
)
def test_closing_tells_those_who_wait(source: ManualSource, batches: int, reason: str) -> None:
    receipt = source.push("a")
    if batches:
        born(source, 0, 1)

    source.close()
    source.close()

    assert "lost" in repr(receipt)
    with pytest.raises(NotRunningError, match=reason):
        receipt.wait(0)


def test_what_was_read_but_is_in_no_batch_yet_is_told_when_it_closes(source: ManualSource) -> None:
    receipt = source.push("a")
    assert source.read(1) == ["a"]

    source.close()

    with pytest.raises(NotRunningError, match="before this item was completely processed"):
        receipt.wait(0)


def test_a_receipt_stays_as_it_was_decided(source: ManualSource) -> None:
    receipt = source.push("a")
    assert "open" in repr(receipt)
    born(source, 0, 1)
    source.batch_settled(0, 0, True)

    source.close()

    assert receipt.done
    assert receipt.wait(0)
    assert "done" in repr(receipt)


@pytest.mark.parametrize("stop", ["finish", "close"])
def test_nothing_can_be_pushed_after_the_end(source: ManualSource, stop: str) -> None:
    getattr(source, stop)()

    with pytest.raises(NotRunningError, match="takes no more items"):
        source.push("a")


def test_a_full_source_says_so_after_the_time_given() -> None:
    source = ManualSource(max_waiting=2)
    source.open(None)
    source.push(1)
    source.push(2)

    with pytest.raises(BackPressureError, match=r"no room for another item within 0\.01 s"):
        source.push(3, timeout_s=0.01)

    assert source.read(5) == [1, 2]
    source.push(3, timeout_s=0)
    assert source.read(5) == [3]
    source.close()


def test_one_who_waits_for_room_is_let_go_when_it_closes() -> None:
    source = ManualSource(max_waiting=1)
    source.open(None)
    source.push(1)
    problems: list[BaseException] = []
    waiting = threading.Event()

    def push() -> None:
        waiting.set()
        try:
            source.push(2)
        except NotRunningError as error:
            problems.append(error)

    pusher = threading.Thread(target=push)
    pusher.start()
    assert waiting.wait(DEADLINE_S)
    source.close()
    pusher.join(DEADLINE_S)

    assert len(problems) == 1


def test_it_counts_on_from_where_an_earlier_run_stopped() -> None:
    source = ManualSource()
    source.open(41)
    source.push("a")
    source.read(5)

    assert source.position() == 42
    source.close()
