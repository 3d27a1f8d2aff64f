from __future__ import annotations

import pickle
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from consecution.errors import SourceError, UsageError
from consecution.sources import iterable
from consecution.sources.iterable import IterableSource
from tests.sources.test_contract import Silence, read_all, read_exactly

DEADLINE_S = 10.0


async def asynchronous() -> AsyncIterator[int]:
    yield 1


async def coroutine() -> list[int]:
    return [1]


def opened(items: Any, position: Any = None, *, may_block: bool = False) -> IterableSource:
    source = IterableSource(items)
    source.may_block = may_block
    source.open(position)
    return source


@pytest.mark.parametrize("items", [[], list(range(10)), tuple(range(11)), range(5, 30, 3)])
@pytest.mark.parametrize("shares", [1, 2, 3, 12])
def test_shares_give_each_item_once_and_know_where_they_are(items: Any, shares: int) -> None:
    found = IterableSource(items).split(shares)

    assert found is not None
    assert len(found) == shares
    for first, share in enumerate(found):
        share.open(None)
        some = share.read(1) or []
        place = share.position()
        share.close()
        again = pickle.loads(pickle.dumps(share))
        again.open(place)
        assert [*some, *read_all(again)] == list(items[first::shares])


@pytest.mark.parametrize("items", [{1: 2}, "text", iter([1]), lambda: [1]])
def test_what_is_no_list_tuple_or_range_is_not_split(items: Any) -> None:
    assert IterableSource(items).split(2) is None


@pytest.mark.parametrize("items", [7, None, object(), 1.5])
def test_what_cannot_be_iterated_is_refused(items: Any) -> None:
    with pytest.raises(UsageError, match="is not iterable: expected a sequence, an iterable, or a function"):
        IterableSource(items)


@pytest.mark.parametrize("items", [asynchronous, coroutine, asynchronous()])
def test_what_is_asynchronous_is_refused_with_the_remedy(items: Any) -> None:
    with pytest.raises(UsageError, match="is asynchronous: expected an ordinary iterable"):
        IterableSource(items)


@pytest.mark.parametrize("made", [None, 7])
def test_a_function_that_makes_nothing_to_iterate_is_named(made: Any) -> None:
    def make_nothing() -> Any:
        return made

    with pytest.raises(SourceError, match=rf"the source make_nothing\(\) returned {made}, which is not iterable"):
        opened(make_nothing)


@pytest.mark.parametrize("items", [{1, 2, 3}, frozenset({1, 2, 3})])
def test_a_set_is_read_but_never_gone_on_with(items: Any) -> None:
    source = opened(items)
    assert sorted(read_all(source)) == [1, 2, 3]
    source.close()

    with pytest.raises(SourceError, match=r"cannot go on after 3 items: a set has another order.*sorted\(the_set\)"):
        opened(items, source.position())


@pytest.mark.parametrize("items", [range(2**70), range(-(2**70), 2**70, 3), range(10**20, 0, -1)])
def test_a_range_may_be_longer_than_any_list(items: range) -> None:
    source = opened(items)
    first = read_exactly(source, 3)
    position = source.position()
    source.close()

    again = opened(items, position)

    assert first + read_exactly(again, 2) == list(items[:5])
    again.close()


@pytest.mark.parametrize("items", [range(0), range(3), "abc", b"abc", (1, 2, 3), [1]])
def test_a_plain_sequence_is_read_to_its_end_and_no_further(items: Any) -> None:
    source = opened(items)

    assert read_all(source, 2) == list(items)
    with pytest.raises(SourceError, match=rf"has {len(items)} items, but {len(items) + 1} of it were taken"):
        opened(items, len(items) + 1)


@pytest.mark.parametrize(
    ("items", "in_parent"),
    [([1], False), ((1,), False), (range(3), False), ("ab", False), ({1: 2}, True), (iter([1]), True), (list, True)],
)
def test_only_plain_sequences_are_sent_to_a_worker(items: Any, in_parent: bool) -> None:
    assert IterableSource(items).in_parent == in_parent


class Sent:
    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Sent) and other.x == self.x

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("items", [[1, "two"], (1, 2), range(3), "text", [Sent(1)], []])
def test_a_source_that_was_sent_reads_the_same(items: Any) -> None:
    source = pickle.loads(pickle.dumps(IterableSource(items)))

    source.open(None)

    assert read_all(source) == list(items)


def test_a_list_may_be_too_odd_for_pickle_and_is_left_to_the_shipper() -> None:
    function = lambda x: x  # noqa: E731

    assert IterableSource([function]).__getstate__()["_items"] == [function]


def test_a_function_is_called_anew_for_every_run() -> None:
    calls: list[int] = []

    def make() -> Iterator[int]:
        calls.append(1)
        yield from range(3)

    source = IterableSource(make)
    for _ in range(2):
        source.open(None)
        assert read_all(source) == [0, 1, 2]
        source.close()

    assert len(calls) == 2


@pytest.mark.parametrize("may_block", [False, True])
def test_a_generator_made_here_is_finished_and_one_that_was_given_is_not(may_block: bool) -> None:
    finished = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            finished.set()

    given = items()
    source = opened(given, may_block=may_block)
    read_exactly(source, 1)
    source.close()
    if may_block:
        assert not finished.is_set()
        assert next(given) == 2
    given.close() if may_block else None

    finished.clear()
    made = opened(items, may_block=may_block)
    read_all(made)
    made.close()
    assert finished.wait(DEADLINE_S)


def test_iterating_it_gives_errors_as_they_come() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("as it is")

    iterator = iter(IterableSource(items))

    assert next(iterator) == 1
    with pytest.raises(KeyError, match="as it is"):
        next(iterator)


def test_a_caller_who_may_wait_gets_what_there_is_before_a_pause() -> None:
    # The clock jumps by a second whenever it is asked: every step took too long, so none is waited for.
    clock = iter(range(10_000))
    source = opened((n for n in range(10)), may_block=True)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(iterable.time, "monotonic", lambda: float(next(clock)))
        first = source.read(10)

    assert first == [0]
    assert source.read(10) == list(range(1, 10))
    source.close()


def test_a_feeder_reads_two_batches_ahead_and_few_items_at_first() -> None:
    asked: list[int] = []
    waiting = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for number in range(1000):
            asked.append(number)
            waiting.release()
            yield number

    def ahead(count: int) -> int:
        """How many were asked for once there are so many."""
        while len(asked) < count:
            assert waiting.acquire(timeout=DEADLINE_S)
        return len(asked)

    few = iterable.FIRST_AHEAD_ITEMS
    source = opened(items)
    assert ahead(few) <= few + 1

    found = source.read(few) or []
    assert found == list(range(few))
    assert ahead(few + 2 * few) <= few + 2 * few + 1

    found = source.read(1) or []
    assert len(found) == 1
    assert len(asked) <= few + 2 * few + 2
    assert found + read_all(source) == list(range(few, 1000))
    source.close()


def test_what_was_taken_before_is_skipped_by_the_feeder_not_by_the_reader() -> None:
    silence = Silence([1, 2, 3])

    source = opened(silence, 2)
    assert source.read(10) == []
    silence.go_on.set()

    assert read_all(source) == [3]
    assert source.position() == 3
    source.close()


@pytest.mark.parametrize(
    ("items", "expected"),
    [([1, 2, 3], 3), (range(7), 7), ("ab", 2), ((), 0), (range(10**30), None), ({1, 2}, None), (lambda: [1], None)],
)
def test_a_sequence_knows_how_many_items_it_gives(items: Any, expected: int | None) -> None:
    assert IterableSource(items).expected == expected
