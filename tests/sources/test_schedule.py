"""Sources that go by the clock, which tests drive by hand."""

from __future__ import annotations

import select
import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consecution import EverySource, Pipeline, Producer, ScheduleSource, TextLines
from consecution.errors import MissingExtraError, UsageError
from consecution.sources.ticks import SECOND, Ticks, TickSource, to_datetime, to_microseconds
from consecution.testing.sources import check_source

BERLIN = ZoneInfo("Europe/Berlin")
NOON = to_microseconds(datetime(2026, 6, 1, 12, tzinfo=UTC))
HOUR = 3600 * SECOND
DEADLINE_S = 30.0


class ByHand(EverySource):
    """Its clock stands still until it is moved."""

    def __init__(self, seconds: float, now: int = NOON, **options: Any) -> None:
        super().__init__(seconds, **options)
        self.time = now

    def now(self) -> int:
        return self.time


def hours(source: TickSource, most: int = 100) -> list[int]:
    """The hours it gives, counted from noon."""
    return [(to_microseconds(item) - NOON) // HOUR for item in source.read(most)]


def opened(position: Any = None, now: int = NOON, **options: Any) -> ByHand:
    source = ByHand(3600, now, **options)
    source.open(position)
    return source


def shown(source: ScheduleSource, start: datetime, count: int) -> list[str]:
    """The next times that it gives after ``start``."""
    moment, found = to_microseconds(start), []
    for _ in range(count):
        moment = source.after(moment)
        found.append(source.to_item(moment).isoformat())
    return found


# -- what is due -----------------------------------------------------------------------------------


def test_a_time_is_given_once_when_it_is_due() -> None:
    source = opened(now=NOON + 1)
    try:
        assert hours(source) == []
        source.time = NOON + HOUR - 1
        assert hours(source) == []
        source.time = NOON + HOUR
        assert source.read(10) == [datetime(2026, 6, 1, 13, tzinfo=UTC)]
        assert hours(source) == []
        assert source.position() == NOON + HOUR
    finally:
        source.close()


@pytest.mark.parametrize(("missed", "at_once"), [("skip", []), ("once", [6]), ("all", [3, 4, 5, 6])])
def test_what_was_missed_while_no_run_was_on(missed: str, at_once: list[int]) -> None:
    source = opened(NOON + 2 * HOUR, NOON + 6 * HOUR + 1, missed=missed)
    try:
        assert hours(source) == at_once
        source.time += HOUR
        assert hours(source) == [7]
    finally:
        source.close()


@pytest.mark.parametrize(("missed", "given"), [("skip", [4]), ("once", [4]), ("all", [1, 2, 3, 4])])
def test_of_what_nobody_came_to_take_the_newest_is_given(missed: str, given: list[int]) -> None:
    source = opened(missed=missed)
    try:
        source.time = NOON + 4 * HOUR
        assert hours(source) == given
        assert hours(source) == []
    finally:
        source.close()


@pytest.mark.parametrize(("missed", "given"), [("skip", []), ("once", [0]), ("all", [-2, -1, 0])])
def test_a_start_lies_before_the_first_run(missed: str, given: list[int]) -> None:
    source = opened(missed=missed, start=datetime(2026, 6, 1, 9, tzinfo=UTC))
    try:
        assert hours(source) == given
        assert source.position() == (NOON if given else None)
    finally:
        source.close()


@pytest.mark.parametrize("missed", ["skip", "once", "all"])
def test_a_start_that_is_to_come_is_waited_for(missed: str) -> None:
    source = opened(missed=missed, start=datetime(2026, 6, 1, 15, tzinfo=UTC))
    try:
        if missed == "skip":
            assert hours(source) == []
        source.time = NOON + 3 * HOUR
        assert hours(source) == []
        source.time = NOON + 4 * HOUR
        assert hours(source) == [4]
    finally:
        source.close()


@pytest.mark.parametrize("missed", ["skip", "once", "all"])
def test_a_clock_that_is_set_back_repeats_nothing(missed: str) -> None:
    source = opened(NOON + 5 * HOUR, NOON + 3 * HOUR, missed=missed)
    try:
        for hour, given in ((4, []), (5, []), (6, [6]), (2, []), (6, []), (7, [7])):
            source.time = NOON + hour * HOUR
            assert hours(source) == given
    finally:
        source.close()


@given(
    period=st.integers(1, 1000),
    missed=st.sampled_from(["once", "all"]),
    steps=st.lists(st.tuples(st.integers(0, 5000), st.booleans()), max_size=20),
)
def test_whatever_the_clock_does_and_however_often_it_begins_anew(
    period: int, missed: str, steps: list[tuple[int, bool]]
) -> None:
    def after(moment: int) -> int:
        return (moment // period + 1) * period

    now = last = 0
    ticks = Ticks(after, missed, last=last, now=now)
    for step, anew in steps:
        now += step
        if anew:
            ticks = Ticks(after, missed, last=last, now=now)
        due = list(range(after(last), now + 1, period))
        found = ticks.due(now, 10**6)

        assert found == (due if missed == "all" else due[-1:])
        last = found[-1] if found else last


def test_every_counts_from_midnight_in_utc() -> None:
    source = EverySource(0.25)
    assert source.after(NOON) == NOON + SECOND // 4
    assert EverySource(7 * 86_400).to_item(EverySource(86_400).after(NOON)) == datetime(2026, 6, 2, tzinfo=UTC)


# -- cron, and when clocks are set -----------------------------------------------------------------


def test_cron_has_five_fields_or_six() -> None:
    start = datetime(2026, 6, 1, 12, tzinfo=UTC)

    assert shown(ScheduleSource("*/5 * * * *"), start, 2) == ["2026-06-01T12:05:00+00:00", "2026-06-01T12:10:00+00:00"]
    assert shown(ScheduleSource("*/20 * * * * *"), start, 1) == ["2026-06-01T12:00:20+00:00"]
    assert shown(ScheduleSource("0 9 * * mon", timezone="Europe/Berlin"), start, 1) == ["2026-06-08T09:00:00+02:00"]


@pytest.mark.parametrize(
    ("cron", "times"),
    [
        ("30 2 * * *", ["2026-03-28T02:30:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]),
        ("0 3 * * *", ["2026-03-28T03:00:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-30T03:00:00+02:00"]),
        ("0,30 2 29 * *", ["2026-03-29T03:00:00+02:00", "2026-04-29T02:00:00+02:00"]),
        ("30 * 29 * *", ["2026-03-29T00:30:00+01:00", "2026-03-29T01:30:00+01:00", "2026-03-29T03:30:00+02:00"]),
    ],
)
def test_when_clocks_are_set_forward(cron: str, times: list[str]) -> None:
    source = ScheduleSource(cron, timezone="Europe/Berlin")

    assert shown(source, datetime(2026, 3, 28, tzinfo=BERLIN), len(times)) == times


@pytest.mark.parametrize(
    ("cron", "times"),
    [
        ("30 2 * * *", ["2026-10-24T02:30:00+02:00", "2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]),
        ("0 3 * * *", ["2026-10-24T03:00:00+02:00", "2026-10-25T03:00:00+01:00", "2026-10-26T03:00:00+01:00"]),
        (
            "30 * 25 * *",
            [
                "2026-10-25T00:30:00+02:00",
                "2026-10-25T01:30:00+02:00",
                "2026-10-25T02:30:00+02:00",
                "2026-10-25T02:30:00+01:00",
                "2026-10-25T03:30:00+01:00",
            ],
        ),
    ],
)
def test_when_clocks_are_set_back(cron: str, times: list[str]) -> None:
    source = ScheduleSource(cron, timezone="Europe/Berlin")

    assert shown(source, datetime(2026, 10, 24, tzinfo=BERLIN), len(times)) == times


@pytest.mark.parametrize("cron", ["30 2 * * *", "15,30 1-3 * * *", "*/20 * * * *", "30 * * * *", "0 */2 * * *"])
@pytest.mark.parametrize("day", [datetime(2026, 3, 29, tzinfo=BERLIN), datetime(2026, 10, 25, tzinfo=BERLIN)])
def test_it_goes_on_alike_from_every_minute_around_a_change(cron: str, day: datetime) -> None:
    """Wherever a run ends and another begins, each time is given once, and in order."""
    source = ScheduleSource(cron, timezone="Europe/Berlin")
    begin = to_microseconds(day)
    times = [begin]
    while times[-1] < begin + 30 * HOUR:
        times.append(source.after(times[-1]))

    assert times == sorted(set(times))
    for minute in range(0, 6 * 60, 7):
        moment = begin + minute * 60 * SECOND
        assert source.after(moment) == next(time_due for time_due in times[1:] if time_due > moment)
        ticks = Ticks(source.after, "once", last=begin, now=moment)
        assert ticks.due(moment, 9) == [time_due for time_due in times[1:] if time_due <= moment][-1:]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Producer("schedule", cron="0 0 30 2 *"), "Bad day-of-month; expected minute, hour"),
        (lambda: Producer("schedule", cron="* * *"), "Wrong number of fields"),
        (lambda: Producer("schedule", cron="* * * * *", timezone="Mars/Base"), "there is no such timezone here"),
        (lambda: Producer("schedule", cron="* * * * *", missed="some"), "expected one of 'skip', 'once', 'all'"),
        (lambda: Producer("every", seconds=0), r"expected a number of at least 0\.001"),
        (lambda: Producer("every", seconds="5"), r"seconds='5'\): expected a number of at least 0\.001"),
        (lambda: Producer("every", seconds=1, start=datetime(2026, 1, 1)), "give its timezone"),
    ],
)
def test_options_that_make_no_sense_are_told(make: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        make().make_source()


def test_without_the_extra_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cronsim", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'consecution\[schedule\]'"):
        Producer("schedule", cron="* * * * *").make_source()


# -- waiting ---------------------------------------------------------------------------------------


def test_the_descriptor_rings_when_something_is_due() -> None:
    source = EverySource(0.2)
    source.open(None)
    try:
        while source.read(10):
            pass
        for _ in range(3):
            begun = source.now()
            assert select.select([source.fileno()], [], [], DEADLINE_S)[0]
            found = source.read(10)
            assert [to_microseconds(item) for item in found] == [EverySource(0.2).after(begun)]
            while source.read(10):
                pass
    finally:
        source.close()


def test_closing_ends_its_thread() -> None:
    source = opened()
    source.read(1)
    assert any(thread.name == "consecution-alarm" for thread in threading.enumerate())

    source.close()

    assert not any(thread.name == "consecution-alarm" for thread in threading.enumerate())


# -- in a pipeline ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_a_pipeline_that_goes_by_the_clock(mode: str, tmp_path: Path) -> None:
    pipeline = Pipeline(Producer("every", seconds=0.01, missed="all") | str | TextLines("out", tmp_path / "out"))
    for count in (3, 6):
        with pipeline.start(mode=mode, state_dir=tmp_path / "state", sync="process") as running:
            deadline_s = time.monotonic() + DEADLINE_S
            while running.status().completed < count:
                running.join(0.01)
                assert time.monotonic() < deadline_s
            running.stop()

    times = [datetime.fromisoformat(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert len(times) >= 6
    assert {after - before for before, after in pairwise(times)} == {timedelta(milliseconds=10)}


def test_consume_waits_for_it() -> None:
    found = list(islice(Producer("every", seconds=0.05), 3))

    assert [item.microsecond % 50_000 for item in found] == [0, 0, 0]
    assert found == sorted(set(found))


# -- the contract ----------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the clock stands still, waiting for it takes as long as it may."""
    monkeypatch.setattr("consecution.sources.ticks.LONGEST_WAIT_S", 0.01)


class HoursUntilNoon(ByHand):
    """The hours of the day before, all missed."""

    def __init__(self) -> None:
        super().__init__(3600, missed="all", start=datetime(2026, 5, 31, 11, 30, tzinfo=UTC))


@pytest.mark.usefixtures("impatient")
def test_it_keeps_the_contract_of_sources(tmp_path: Path) -> None:
    items = [to_datetime(NOON - 24 * HOUR + hour * HOUR) for hour in range(25)]
    check_source(lambda folder: HoursUntilNoon(), items, folder=tmp_path, ends=False)


class CronUntilNoon(ScheduleSource):
    """Also where the clocks are set back on the way."""

    def __init__(self) -> None:
        start = datetime(2026, 10, 24, 23, 59, tzinfo=BERLIN)
        super().__init__("*/30 * * * *", timezone="Europe/Berlin", missed="all", start=start)

    def now(self) -> int:
        return to_microseconds(datetime(2026, 10, 25, 12, tzinfo=BERLIN))


@pytest.mark.usefixtures("impatient")
def test_cron_keeps_it_too(tmp_path: Path) -> None:
    begin = datetime(2026, 10, 24, 22, tzinfo=UTC)
    items = [(begin + n * timedelta(minutes=30)).astimezone(BERLIN) for n in range(27)]
    check_source(lambda folder: CronUntilNoon(), items, folder=tmp_path, ends=False, kills=False)
