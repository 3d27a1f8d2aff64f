from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consecution.sources.handover import Handover

DEADLINE_S = 20.0


@pytest.fixture
def handover() -> Iterator[Handover]:
    made = Handover(100)
    yield made
    made.close()


def is_readable(handover: Handover, timeout_s: float = 0.0) -> bool:
    return bool(select.select([handover.fileno()], [], [], timeout_s)[0])


def take_all(handover: Handover, most: int) -> list[Any]:
    """Take until the end, asleep on the descriptor whenever there is nothing."""
    found: list[Any] = []
    deadline_s = time.monotonic() + DEADLINE_S
    while (some := handover.take(most)) is not None:
        assert len(some) <= most
        found += some
        if not some:
            assert is_readable(handover, DEADLINE_S), f"nobody woke the taker after {len(found)} items"
        assert time.monotonic() < deadline_s
    return found


def start(target: Any, *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def join(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(timeout=DEADLINE_S)
        assert not thread.is_alive()


# -- one thread ------------------------------------------------------------------------------------


def test_items_come_out_in_the_order_they_went_in(handover: Handover) -> None:
    for number in range(5):
        assert handover.put(number)

    assert [handover.take(2), handover.take(2), handover.take(2)] == [[0, 1], [2, 3], [4]]
    assert handover.take(2) == []


def test_the_descriptor_is_readable_only_after_a_taker_has_found_nothing(handover: Handover) -> None:
    handover.put(1)
    assert not is_readable(handover)
    assert handover.take(5) == [1]
    assert handover.take(5) == []
    assert not is_readable(handover)

    handover.put(2)

    assert is_readable(handover)
    assert handover.take(5) == [2]
    assert handover.take(5) == []
    assert not is_readable(handover)


def test_after_the_end_what_was_put_comes_first_and_the_descriptor_stays_readable(handover: Handover) -> None:
    assert handover.take(5) == []
    handover.put(1)
    handover.end()

    assert is_readable(handover)
    assert handover.take(5) == [1]
    assert [handover.take(5), handover.take(5)] == [None, None]
    assert is_readable(handover)


def test_an_end_wakes_a_taker_who_sleeps(handover: Handover) -> None:
    assert handover.take(5) == []

    handover.end()

    assert is_readable(handover)
    assert handover.take(5) is None


def test_an_error_comes_after_the_items_and_comes_again(handover: Handover) -> None:
    handover.put(1)
    handover.end(KeyError("gone"))

    assert handover.take(5) == [1]
    for _ in range(2):
        with pytest.raises(KeyError, match="gone"):
            handover.take(5)


def test_nothing_can_be_put_after_the_end(handover: Handover) -> None:
    handover.end()

    assert not handover.put(1)
    assert handover.take(5) is None


def test_closing_gives_back_what_nobody_took_and_refuses_the_rest(handover: Handover) -> None:
    handover.put(1)
    handover.put(2)
    handover.take(1)

    assert handover.close() == [2]
    assert handover.close() == []
    assert handover.cancelled
    assert not handover.put(3)
    assert not handover.feed(iter([4]))


def test_who_finds_no_room_gives_up_after_the_time_given() -> None:
    handover = Handover(2)
    assert handover.put(1)
    assert handover.put(2)

    assert not handover.put(3, timeout_s=0.01)
    assert not handover.put(3, timeout_s=0)

    assert handover.take(1) == [1]
    assert handover.put(4, timeout_s=0)
    assert handover.take(5) == [2, 4]
    handover.close()


# -- feeding ---------------------------------------------------------------------------------------


def test_an_item_is_there_before_the_next_one_is_asked_for(handover: Handover) -> None:
    asked = threading.Semaphore(0)
    go_on = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for number in range(5):
            asked.release()
            assert go_on.acquire(timeout=DEADLINE_S)
            yield number

    feeder = start(lambda: (handover.feed(items()), handover.end()))
    for number in range(5):
        assert asked.acquire(timeout=DEADLINE_S)
        assert handover.take(10) == []
        go_on.release()
        assert is_readable(handover, DEADLINE_S)
        assert handover.take(10) == [number]

    join(feeder)
    assert take_all(handover, 10) == []


def test_no_item_is_asked_for_that_has_no_room() -> None:
    handover, asked = Handover(3), []

    def items() -> Iterator[int]:
        for number in range(100):
            asked.append(number)
            yield number

    feeder = start(lambda: (handover.feed(items()), handover.end()))
    found: list[Any] = []
    while (some := handover.take(1)) is not None:
        found += some
        assert len(asked) <= len(found) + 3
        if not some:
            assert is_readable(handover, DEADLINE_S)

    assert found == list(range(100))
    join(feeder)


def test_what_came_before_an_error_is_there(handover: Handover) -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise KeyError("broken")

    with pytest.raises(KeyError):
        handover.feed(items())

    assert handover.take(10) == [0, 1, 2]


@pytest.mark.parametrize("items", [[None, None], [[]], [{"a": 1}], [False, 0, ""]])
def test_any_item_is_handed_over_as_it_is(handover: Handover, items: list[Any]) -> None:
    assert handover.feed(iter(items))
    handover.end()

    assert take_all(handover, 10) == items


def test_closing_lets_a_feeder_go_that_waits_for_room() -> None:
    handover, fed = Handover(2), []
    feeder = start(lambda: fed.append(handover.feed(iter(range(100)))))
    while len(handover._items) < 2:
        time.sleep(0)

    left = handover.close()
    join(feeder)

    assert fed == [False]
    assert left == [0, 1]


# -- under threads ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    room=st.sampled_from([1, 2, 3, 10, 4000]),
    most=st.sampled_from([1, 2, 7, 1000]),
    pauses=st.frozensets(st.integers(0, 400), max_size=6),
    count=st.integers(0, 500),
)
def test_a_feeder_and_a_taker_lose_nothing_and_never_oversleep(
    room: int, most: int, pauses: frozenset[int], count: int
) -> None:
    handover = Handover(room)

    def items() -> Iterator[int]:
        for number in range(count):
            if number in pauses:
                time.sleep(0.0005)  # Lets the taker find nothing, and go to sleep.
            yield number

    feeder = start(lambda: (handover.feed(items()), handover.end()))

    assert take_all(handover, most) == list(range(count))
    join(feeder)
    handover.close()


@pytest.mark.parametrize("room", [1, 3, 500])
def test_many_who_put_and_one_who_takes(room: int) -> None:
    handover, writers, each = Handover(room), 4, 2000
    refused: list[Any] = []

    def write(writer: int) -> None:
        for number in range(each):
            if not handover.put((writer, number), timeout_s=DEADLINE_S):
                refused.append((writer, number))

    threads = [start(write, writer) for writer in range(writers)]
    ender = start(lambda: (join(*threads), handover.end()))
    found = take_all(handover, 64)

    join(ender)
    assert refused == []
    for writer in range(writers):
        assert [number for who, number in found if who == writer] == list(range(each))
    handover.close()


def test_closing_in_the_middle_of_it_hangs_nobody() -> None:
    for _ in range(20):
        handover, accepted = Handover(5), []

        def write(handover: Handover = handover, accepted: list[int] = accepted) -> None:
            number = 0
            while handover.put(number):
                accepted.append(number)
                number += 1

        writer = start(write)
        found: list[Any] = []
        while len(found) < 50:
            some = handover.take(10)
            assert some is not None
            found += some
            if not some:
                assert is_readable(handover, DEADLINE_S)
        left = handover.close()
        join(writer)

        assert found + left == accepted
