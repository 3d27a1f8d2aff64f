"""When a node's ``on_timer`` is due."""

from __future__ import annotations

from consecution.runtime.timer import Timer


class ManualClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_it_ticks_after_each_interval_and_not_before() -> None:
    clock = ManualClock()
    timer = Timer(5.0, clock)

    assert (timer.ticks(), timer.left_s()) == (False, 5.0)
    clock.now_s += 5.0
    assert timer.ticks()
    assert (timer.ticks(), timer.left_s()) == (False, 5.0)


def test_what_was_missed_is_one_tick() -> None:
    clock = ManualClock()
    timer = Timer(5.0, clock)

    clock.now_s += 60.0

    assert [timer.ticks(), timer.ticks()] == [True, False]


def test_without_an_interval_or_once_stopped_it_never_ticks() -> None:
    clock = ManualClock()
    never, stopped = Timer(None, clock), Timer(5.0, clock)

    stopped.stop()
    clock.now_s += 60.0

    assert [(timer.ticks(), timer.left_s()) for timer in (never, stopped)] == [(False, None)] * 2
