"""The stopwatch every node carries."""

from __future__ import annotations

import pytest

from consecution import clock as clock_module
from consecution.clock import Clock
from consecution.utils import Clock as ClockOfOldHome


class FakeTime:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(clock_module, "perf_counter", fake)
    return fake


def test_seconds_add_up_under_each_name(time: FakeTime) -> None:
    clock = Clock()
    for _ in range(2):
        with clock.running("parse", "all"):
            time.now_s += 1
            with clock.paused("parse"):
                time.now_s += 2

    assert clock.get_time("parse") == 2
    assert clock.get_time("all") == 6
    assert clock.get_time() == {"parse": 2, "all": 6}


def test_a_running_timer_tells_what_it_has_so_far(time: FakeTime) -> None:
    clock = Clock()
    clock.start("a")
    time.now_s += 3
    assert clock.get_time() == 3


def test_starting_twice_does_not_start_anew(time: FakeTime) -> None:
    clock = Clock()
    clock.start("a")
    time.now_s += 1
    clock.start("a")
    time.now_s += 1
    clock.stop()
    clock.stop()
    assert clock.get_time("a") == 2


def test_an_exception_stops_the_timer_and_ends_the_pause(time: FakeTime) -> None:
    clock = Clock()
    with pytest.raises(ZeroDivisionError), clock.running("a"), clock.paused("a"):
        1 / 0
    assert clock.active_start_times == {}
    assert clock.get_time("a") == 0


def test_reset_forgets_the_named_or_all(time: FakeTime) -> None:
    clock = Clock()
    clock.start("a", "b", "c")
    clock.stop("a")
    clock.reset("b")
    assert clock.get_time("a", "b", "c") == {"a": 0, "c": 0}
    clock.reset()
    assert clock.get_time() == {}


def test_it_prints_the_slowest_first(time: FakeTime) -> None:
    clock = Clock()
    with clock.running("fast"):
        time.now_s += 1
    with clock.running("slow"):
        time.now_s += 2
    assert str(clock).splitlines() == ["seconds        name", "2.000000       slow", "1.000000       fast"]


def test_a_timer_needs_a_name() -> None:
    with pytest.raises(ValueError, match="at least one name"):
        Clock().start()


def test_code_of_0_2_0_finds_it_where_it_was() -> None:
    assert ClockOfOldHome is Clock
