"""The contract of sources finds what is wrong with a source, and passes those that are right."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consecution.errors import BadRecordError, SourceError
from consecution.source import Rejected, Source
from consecution.testing import sources
from consecution.testing.sources import BrokenSourceError, check_source

ITEMS = [f"item {n}" for n in range(25)]


class Lines(Source):
    """The lines of a small file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "in"
        if not self.path.exists():
            self.path.write_text("".join(f"{item}\n" for item in ITEMS))

    def open(self, position: Any) -> None:
        self.lines = self.path.read_text().splitlines()
        self.at = position or 0

    def read(self, max_items: int) -> list[Any] | None:
        found = self.lines[self.at : self.at + max_items]
        self.at += len(found)
        return found or None

    def position(self) -> Any:
        return self.at


class NeverEnds(Lines):
    def read(self, max_items: int) -> list[Any] | None:
        return super().read(max_items) or []


class Backwards(Lines):
    def open(self, position: Any) -> None:
        super().open(position)
        self.lines.reverse()


class GivesMore(Lines):
    def read(self, max_items: int) -> list[Any] | None:
        return super().read(max_items + 1)


class GivesTuples(Lines):
    def read(self, max_items: int) -> Any:
        found = super().read(max_items)
        return found and tuple(found)


class KeepsItsLists(Lines):
    def read(self, max_items: int) -> list[Any] | None:
        return self.lines or None if self.at else self.first()

    def first(self) -> list[Any]:
        self.at = 1
        return [self.lines.pop(0)]


class Boasts(Lines):
    expected = 1_000_000


class StartsOver(Lines):
    def open(self, position: Any) -> None:
        super().open(None)


class ForgetsWhereItWasOpened(Lines):
    """Its position is right only after it has read something."""

    read_any = False

    def read(self, max_items: int) -> list[Any] | None:
        self.read_any = True
        return super().read(max_items)

    def position(self) -> Any:
        return self.at if self.read_any else 0


class ReadsAhead(Lines):
    def position(self) -> Any:
        return min(self.at + 1, len(self.lines))


class OnceOnly(Lines):
    used = False

    def open(self, position: Any) -> None:
        super().open(len(ITEMS) if self.used else position)
        self.used = True


class OddPosition(Lines):
    def position(self) -> Any:
        return {self.at}


class LeavesItOpen(Lines):
    def open(self, position: Any) -> None:
        super().open(position)
        self.fd = os.open(self.path, os.O_RDONLY)


class ClosesOnce(Lines):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise ValueError("I am closed")
        self.closed = True


class CannotTravel(Lines):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lock = threading.Lock()

    def __reduce__(self) -> Any:
        raise TypeError("I stay here")


class Sent(Source):
    """Holds what `send` gave it, in a room for so many."""

    in_parent = True

    def __init__(self, folder: Path, room: int = 10) -> None:
        self.there: list[Any] = []
        self.changed = threading.Condition()
        self.count = 0
        self.finished = self.closed = False
        self.room = room

    def send(self, folder: Path, items: Any) -> None:
        for item in items:
            with self.changed:
                self.changed.wait_for(lambda: self.closed or len(self.there) < self.room)
                self.there.append(item)

    def finish(self, folder: Path) -> None:
        self.finished = True

    def open(self, position: Any) -> None:
        self.count = position or 0

    def read(self, max_items: int) -> list[Any] | None:
        with self.changed:
            found, self.there = self.there[:max_items], self.there[max_items:]
            self.changed.notify_all()
        self.count += len(found)
        return None if self.finished and not found and not self.there else found

    def position(self) -> Any:
        return self.count

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()


class NeverLetsGo(Sent):
    def close(self) -> None:
        pass


class AlwaysReadable(Sent):
    def open(self, position: Any) -> None:
        super().open(position)
        self.fd = os.open(os.devnull, os.O_RDONLY)

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        super().close()
        if "fd" in vars(self):
            os.close(self.fd)
            del self.fd


def flood(source: Sent, folder: Path) -> None:
    for _ in range(64):
        source.send(folder, [bytearray(sources.LARGE_BYTES // 64)])


# -- those that are right --------------------------------------------------------------------------


def test_a_source_that_keeps_the_contract_passes(tmp_path: Path) -> None:
    check_source(Lines, ITEMS, folder=tmp_path)


def test_a_source_that_never_ends_passes_where_this_is_said(tmp_path: Path) -> None:
    check_source(NeverEnds, ITEMS, folder=tmp_path, ends=False)


def test_a_source_that_is_sent_its_items_passes(tmp_path: Path) -> None:
    check_source(
        Sent,
        ITEMS,
        folder=tmp_path,
        send=Sent.send,
        finish=Sent.finish,
        make_large=lambda folder: Sent(folder, room=4),
        flood=flood,
    )


# -- those that are not ----------------------------------------------------------------------------


def leave_out(monkeypatch: pytest.MonkeyPatch, *checks: str) -> None:
    for name in checks:

        def check(case: Any) -> None:
            pass

        check.__name__ = name
        monkeypatch.setattr(sources, name, check)


@pytest.fixture
def no_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found by reading alone is found without running pipelines."""
    leave_out(monkeypatch, "_run_in_threads", "_kills")


@pytest.mark.usefixtures("no_runs")
@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (Backwards, "item 0 is 'item 24', expected 'item 0'"),
        (GivesMore, r"read\(1\) returned 2 items"),
        (GivesTuples, r"read\(1\) returned a tuple, expected a list or a range"),
        (Boasts, "it says that it gives 1000000 items .*; it gives 25"),
        (StartsOver, "opened at the position after 1 items, 1: expected 24 items, found 25"),
        (ForgetsWhereItWasOpened, "opened at the position after 1 items, 1, closed, opened again"),
        (ReadsAhead, "opened at the position after 1 items, 2: expected 24 items, found 23"),
        (OnceOnly, "after the same object was opened again, at its position|ended after 0"),
        (OddPosition, "the position .* is not made of numbers, text"),
        (LeavesItOpen, "3 more descriptors are open"),
        (CannotTravel, "it cannot be sent to a worker"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_a_source_that_breaks_the_contract_is_found(
    kind: Callable[[Path], Source], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(BrokenSourceError, match=problem):
        check_source(kind, ITEMS, folder=tmp_path)


@pytest.mark.usefixtures("no_runs")
def test_a_source_that_never_ends_is_found_where_it_should(tmp_path: Path) -> None:
    with pytest.raises(BrokenSourceError, match=r"nothing came within 0.2 s"):
        check_source(NeverEnds, ITEMS, folder=tmp_path, within_s=0.2)


@pytest.mark.usefixtures("no_runs")
def test_a_source_that_ends_is_found_where_it_should_not(tmp_path: Path) -> None:
    with pytest.raises(BrokenSourceError, match="it ended; ends=False says that it never does"):
        check_source(Lines, ITEMS, folder=tmp_path, ends=False)


@pytest.mark.usefixtures("no_runs")
def test_a_source_that_cannot_be_closed_twice_is_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="I am closed"):
        check_source(ClosesOnce, ITEMS, folder=tmp_path)


def test_a_position_that_is_wrong_only_after_a_kill_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out(monkeypatch, "_run_in_threads", "_resume", "_resume_from_far", "_reuse")

    with pytest.raises(BrokenSourceError, match=r"after kills at origin\.before_commit, origin\.committed"):
        check_source(StartsOver, ITEMS, folder=tmp_path)


@pytest.mark.usefixtures("no_runs")
def test_a_sender_that_is_not_let_go_is_found(tmp_path: Path) -> None:
    with pytest.raises(BrokenSourceError, match="who sends does not come back when the source is closed"):
        check_source(NeverLetsGo, ITEMS, folder=tmp_path, send=NeverLetsGo.send, finish=Sent.finish, within_s=0.2)


@pytest.mark.usefixtures("no_runs")
def test_a_descriptor_that_is_always_readable_is_found(tmp_path: Path) -> None:
    with pytest.raises(BrokenSourceError, match="its descriptor stays readable"):
        check_source(AlwaysReadable, ITEMS, folder=tmp_path, send=Sent.send, finish=Sent.finish)


@pytest.mark.usefixtures("no_runs")
def test_a_source_that_takes_in_all_that_is_sent_is_found(tmp_path: Path) -> None:
    with pytest.raises(BrokenSourceError, match=r"with 67108864 bytes to come, .* it took \d+ bytes of memory"):
        check_source(
            Sent,
            ITEMS,
            folder=tmp_path,
            send=Sent.send,
            finish=Sent.finish,
            make_large=lambda folder: Sent(folder, room=10**9),
            flood=flood,
        )


# -- bad input -------------------------------------------------------------------------------------


class Bad(Lines):
    """One bad record, in the middle of the good ones; what becomes of it is what subclasses say."""

    def open(self, position: Any) -> None:
        super().open(position)
        self.lines = [*ITEMS[:10], "bad", *ITEMS[10:]]

    def read(self, max_items: int) -> list[Any] | None:
        bad = 10 - self.at
        if bad == 0:
            return self.meet_bad()
        return super().read(max_items if bad < 0 else min(bad, max_items))

    def meet_bad(self) -> list[Any] | None:
        raise SourceError("line 11 is bad: mend it")


class SetsApart(Bad):
    rejects = True

    def meet_bad(self) -> list[Any] | None:
        self.at += 1
        return [Rejected("bad", BadRecordError("line 11 is bad: mend it"))]


class DoesNotSayThatItRejects(SetsApart):
    rejects = False


class SkipsBad(Bad):
    def meet_bad(self) -> list[Any] | None:
        self.at += 1
        return [self.lines[self.at]]

    def read(self, max_items: int) -> list[Any] | None:
        found = super().read(max_items)
        self.at += found == ["item 10"]
        return found


class GoesOnAfterAnError(Bad):
    def meet_bad(self) -> list[Any] | None:
        self.at += 1
        raise SourceError("line 11 is bad: mend it")


class LosesItsNeighbour(SetsApart):
    def meet_bad(self) -> list[Any] | None:
        self.at += 1
        return super().meet_bad()


class SaysNothing(Bad):
    def meet_bad(self) -> list[Any] | None:
        raise SourceError


@pytest.mark.usefixtures("no_runs")
@pytest.mark.parametrize("kind", [Bad, SetsApart])
def test_bad_input_may_stop_the_source_or_fail_alone(kind: Callable[[Path], Source], tmp_path: Path) -> None:
    check_source(Lines, ITEMS, folder=tmp_path, make_bad=kind)


@pytest.mark.usefixtures("no_runs")
@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (SkipsBad, "bad input was passed over in silence"),
        (DoesNotSayThatItRejects, "does not say rejects = True"),
        (GoesOnAfterAnError, "went on after it had raised"),
        (LosesItsNeighbour, "expected 25 items, found 24"),
        (SaysNothing, "the error for bad input says nothing"),
    ],
)
def test_bad_input_that_is_dealt_with_badly_is_found(
    kind: Callable[[Path], Source], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(BrokenSourceError, match=problem):
        check_source(Lines, ITEMS, folder=tmp_path, make_bad=kind)


def test_items_that_are_too_few_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="19 items are too few"):
        check_source(Lines, ITEMS[:19], folder=tmp_path)
