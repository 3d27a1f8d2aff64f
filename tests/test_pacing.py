"""No more items pass than may, whoever looks when."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consecution import Pipeline, RateLimit
from consecution.errors import GraphError
from consecution.pacing import Bucket


@given(
    st.floats(0.1, 1000.0),
    st.integers(1, 20),
    st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(0, 30)), min_size=1, max_size=40),
)
def test_in_no_span_of_time_more_pass_than_may(per_second: float, burst: int, looks: list[tuple[float, int]]) -> None:
    now_s, passed = 50.0, []
    bucket = Bucket(per_second, burst, now_s)
    for pause_s, wanted in looks:
        now_s += pause_s
        count = min(wanted, bucket.room(now_s))
        assert count <= burst
        bucket.spend(count)
        passed.append((now_s, count))

    for at, (start_s, _) in enumerate(passed):
        for upto, (end_s, _) in enumerate(passed[at:], at):
            total = sum(count for _, count in passed[at : upto + 1])
            assert total <= per_second * (end_s - start_s) + burst + 1 + 1e-6


@given(st.floats(0.5, 500.0), st.integers(1, 5), st.floats(0.0, 0.9))
def test_who_comes_when_it_is_due_and_a_little_late_loses_nothing(per_second: float, burst: int, late: float) -> None:
    now_s = 0.0
    bucket = Bucket(per_second, burst, now_s)
    bucket.spend(burst)
    for _ in range(50):
        now_s += bucket.due_s(now_s) + late / per_second
        while not bucket.room(now_s):
            now_s += bucket.due_s(now_s) + 1e-9
        bucket.spend(1)

    assert now_s <= (50 + late) / per_second + 1e-3


def test_consume_waits() -> None:
    made: list[int] = []
    started_s = time.monotonic()
    Pipeline(RateLimit(100, burst=1) | made.append).consume(range(6))

    assert made == list(range(6))
    assert time.monotonic() - started_s >= 0.039  # it may take longer, never less


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((0,), r"RateLimit\(0\): expected a number of items per second greater than 0"),
        (("5",), "expected a number of items per second"),
        ((5, 0), r"RateLimit\(burst=0\): expected a whole number of 1 or more"),
    ],
)
def test_what_is_no_limit_is_refused(given: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        RateLimit(*given)


def test_it_has_one_replica() -> None:
    with pytest.raises(GraphError, match="RateLimit can have 1 replica only"):
        Pipeline(RateLimit(5) * 2).plan([1])


def test_a_burst_is_what_comes_in_a_moment_and_at_least_one() -> None:
    assert [RateLimit(rate).burst for rate in (0.1, 10, 1000)] == [1, 1, 20]
