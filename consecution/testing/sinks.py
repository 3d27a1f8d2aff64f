"""Does a sink keep its contract? `check_sink` puts any sink through it: ours and yours.

    def test_my_sink_keeps_its_contract(tmp_path):
        check_sink(
            lambda folder: MySink("sink", folder / "out"),
            lambda folder: (folder / "out").read_text().splitlines(),
            items=[f"item {n}" for n in range(40)],
            bad=object(),
            folder=tmp_path,
        )

``make_sink`` makes the sink over a store that belongs to ``folder``: a file in it, or a table named after it. It is
called again for each life. ``read_back`` returns the items that the store holds, in order, without
the sink's help. Each check has a folder of its own. What is killed runs in a process of its own, to which
``make_sink`` is sent as nodes are sent to workers.

What is checked, by kind of sink:

- every sink: order; frames without items; going on behind what is there; a second close; a close without an open;
  one bad item among good ones; every item is there after kills;
- `TransactionSink`, `AppendSink`: every item is there **once** after kills, in order;
- `TransactionSink`: rolled back is gone; a write that raises leaves the rest of its transaction; marks per owner, which
  move by one only and last;
- `AppendSink`: what lies behind the committed end is cut off, whether flushed or not;
- a plain `Sink` that says ``repeats_are_harmless``: a frame that is written again, under the same batch id or a
  higher generation, is there once, and so is every item after kills.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consecution.errors import OutageError, WorldError
from consecution.pipeline import Pipeline
from consecution.protocol.values import BatchId
from consecution.report import Report
from consecution.sink import AppendSink, Sink, TransactionSink
from consecution.testing.lives import live

MakeSink = Callable[[Path], Sink]
ReadBack = Callable[[Path], Sequence[Any]]

LEAST_ITEMS = 20
BATCHES = 10
LIFE_WITHIN_S = 60.0
KILLED_AT: tuple[str, ...] = ("durable.applied", "origin.committed")
KILLED_OUTSIDE_AT = ("outside.before_commit", "outside.committed")
NOTHING: Any = object()
"""There is no item that the sink cannot take."""


class BrokenSinkError(AssertionError):
    """A sink has broken its contract; the text says in which check, and how."""


def check_sink(
    make_sink: MakeSink,
    read_back: ReadBack,
    items: Sequence[Any],
    *,
    folder: Path,
    bad: Any = NOTHING,
    repeats_are_harmless: bool = False,
) -> None:
    """Put a sink through its contract. BrokenSinkError at the first thing that is not as it should be.

    ``items``, at least twenty, must be such that `read_back` returns what is equal to them; ``bad`` is one that the
    sink must refuse, if there is such a thing. ``folder`` is empty. Takes some seconds: processes are killed.
    """
    if len(items) < LEAST_ITEMS:
        raise ValueError(f"check_sink: {len(items)} items are too few, give at least {LEAST_ITEMS}")
    for check in _checks_for(make_sink(_fresh(folder, "kind")), bad, repeats_are_harmless):
        place = _fresh(folder, check.__name__.strip("_"))
        check(_Case(make_sink, read_back, list(items), place, bad, repeats_are_harmless))


def _fresh(folder: Path, name: str) -> Path:
    place = folder / name
    place.mkdir()
    return place


@dataclass(frozen=True, slots=True)
class _Case:
    """One check at work: the sink, what it is to hold, and a place of its own."""

    make_sink: MakeSink
    read_back: ReadBack
    items: list[Any]
    place: Path
    bad: Any
    repeats_are_harmless: bool
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def owner(self, name: str) -> str:
        """As an engine names them: other stores, perhaps of earlier runs, may have marks beside ours."""
        return f"{name}/{self.token}"

    def open(self) -> Any:
        sink = self.make_sink(self.place)
        sink.open()
        return sink

    def batch(self, seq: int, generation: int = 1) -> BatchId:
        return BatchId("check_sink@1", seq, generation, (0,))

    def expect(self, items: Sequence[Any], when: str) -> None:
        """The store holds just these, in this order."""
        found = list(self.read_back(self.place))
        self.require(found == list(items), f"{when}: {_difference(found, list(items))}")

    def expect_at_least(self, items: Sequence[Any], when: str) -> None:
        """The store holds each of these, some perhaps again, and nothing else."""
        found = list(self.read_back(self.place))
        missing = [item for item in items if item not in found]
        foreign = [item for item in found if item not in items]
        self.require(not missing and not foreign, f"{when}: {_difference(found, list(items))}")

    def require(self, holds: bool, problem: str) -> None:
        if not holds:
            raise BrokenSinkError(f"{self.make_sink(self.place)}: {problem}")


def _difference(found: list[Any], expected: list[Any]) -> str:
    text = f"expected {len(expected)} items, found {len(found)}"
    at = next((n for n, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
    if at is not None:
        text += f"; item {at} is {found[at]!r}, expected {expected[at]!r}"
    try:
        more, less = Counter(found) - Counter(expected), Counter(expected) - Counter(found)
    except TypeError:
        return text
    return f"{text}; too many: {list(more)[:5]}, missing: {list(less)[:5]}"


def _checks_for(sink: Sink, bad: Any, repeats_are_harmless: bool) -> list[Callable[[_Case], None]]:
    checks: list[Callable[[_Case], None]] = [_order, _empty_frames, _another_life, _closing]
    if isinstance(sink, TransactionSink):
        checks += [_rolling_back, _marks, *([_savepoint] if bad is not NOTHING else [])]
    if isinstance(sink, AppendSink):
        checks += [_cutting_what_was_flushed, _cutting_what_was_not]
    if repeats_are_harmless:
        checks += [_repeats]
    if bad is not NOTHING:
        checks += [_refusing, _bad_item_in_track, _bad_item_in_robust]
    return [*checks, _kills]


# -- every sink ------------------------------------------------------------------------------------


def _order(case: _Case) -> None:
    report = _run(case.make_sink(case.place), case.items, robustness="track")
    case.require(report.completed == len(case.items) and not report.failed, f"it refused items: {report.failures}")
    case.expect(case.items, "after one run")


def _empty_frames(case: _Case) -> None:
    sink = case.open()
    sink._write_frame(case.batch(0), [])
    sink._write_frame(case.batch(1), case.items[:1])
    sink._write_frame(case.batch(2), [])
    sink._close_for_good()
    case.expect(case.items[:1], "after one item between frames without any")


def _another_life(case: _Case) -> None:
    middle = len(case.items) // 2
    for part in (case.items[:middle], case.items[middle:]):
        _run(case.make_sink(case.place), part, robustness="none")
    case.expect(case.items, "after a second run over what the first has left")


def _closing(case: _Case) -> None:
    case.make_sink(case.place).close()
    sink = case.open()
    sink._write_frame(case.batch(0), case.items[:1])
    sink._close_for_good()
    sink.close()
    case.expect(case.items[:1], "after a second close")


def _refusing(case: _Case) -> None:
    """What an engine does with a frame that a sink refuses."""
    sink = case.open()
    good = case.items[:4]
    for part in ([*good[:2], case.bad, *good[2:]], good[:2], [case.bad], good[2:]):
        if case.bad in part:
            _expect_refused(case, sink._write_frame, part)
        else:
            sink._write_frame(case.batch(0), part)
    sink._close_for_good()
    case.expect(good, "after a frame with a bad item was offered, and then its parts")


def _expect_refused(case: _Case, write: Callable[[BatchId, list[Any]], None], items: list[Any]) -> None:
    try:
        write(case.batch(0), items)
    except OutageError:
        raise
    except Exception:
        return
    case.require(False, f"write took the bad item {case.bad!r}")


def _bad_item_in_track(case: _Case) -> None:
    _check_bad_item(case, robustness="track")


def _bad_item_in_robust(case: _Case) -> None:
    _check_bad_item(case, robustness="robust", state_dir=case.place / "state", retries=0)


def _check_bad_item(case: _Case, **options: Any) -> None:
    report = _run(case.make_sink(case.place), _with_bad(case), **options)
    case.require(report.failed == 1, f"of {len(case.items)} items and a bad one {report.failed} failed, expected 1")
    case.expect(case.items, f"one bad item among good ones ({options['robustness']})")


def _with_bad(case: _Case) -> list[Any]:
    if case.bad is NOTHING:
        return case.items
    middle = len(case.items) // 2
    return [*case.items[:middle], case.bad, *case.items[middle:]]


def _repeats(case: _Case) -> None:
    """A frame again, under the same id, and under a higher generation."""
    sink = case.open()
    first, second = case.items[:5], case.items[5:10]
    for generation in (1, 1, 2):
        sink._write_frame(case.batch(0, generation), first)
    sink._write_frame(case.batch(1, 2), second)
    sink._close_for_good()
    case.expect([*first, *second], "after a frame came three times")


def _run(sink: Sink, items: list[Any], **options: Any) -> Report:
    batch_size = max(1, len(items) // BATCHES)
    return Pipeline(sink).run(items, mode="inline", batch_size=batch_size, **options)


# -- kills -----------------------------------------------------------------------------------------


def _kills(case: _Case) -> None:
    """One life after another is killed around its commits; the last one ends by itself."""
    items = _with_bad(case)
    sink = case.make_sink(case.place)
    is_exact = case.repeats_are_harmless or isinstance(sink, (TransactionSink, AppendSink))
    points = KILLED_AT + (KILLED_OUTSIDE_AT if isinstance(sink, TransactionSink) else ())
    killed = [point for point in points if _live(case, items, point)]
    case.require(bool(killed), "none of its lives could be killed; give more items")
    _live(case, items, None)
    when = f"after kills at {', '.join(killed)}"
    (case.expect if is_exact else case.expect_at_least)(case.items, when)


def _live(case: _Case, items: list[Any], point: str | None) -> bool:
    """Run a life, to be killed at ``point``; whether it was."""
    job = (_one_life, case.make_sink, items, case.place)
    return live(*job, point=point, place=case.place, within_s=LIFE_WITHIN_S, require=case.require)


def _one_life(make_sink: MakeSink, items: list[Any], place: Path) -> None:
    _run(make_sink(place), items, robustness="robust", state_dir=place / "state", retries=0, max_pending=2)


# -- sinks with transactions -----------------------------------------------------------------------


def _rolling_back(case: _Case) -> None:
    sink: TransactionSink = case.open()
    sink.last_mark(case.owner("a"))
    sink.begin_transaction()
    sink.write(case.batch(0), case.items[:3])
    sink.roll_back()
    sink.begin_transaction()
    sink.write(case.batch(1), case.items[3:5])
    sink.write(case.batch(2), case.items[5:6])
    sink.commit(case.owner("a"), 1, b"")
    sink.begin_transaction()
    sink.write(case.batch(3), case.items[6:7])
    sink.close()
    case.expect(case.items[3:6], "after a rollback, a commit, and a close in the middle of a transaction")


def _savepoint(case: _Case) -> None:
    sink: TransactionSink = case.open()
    sink.last_mark(case.owner("a"))
    sink.begin_transaction()
    _expect_refused(case, sink.write, [case.items[0], case.bad])
    sink.write(case.batch(0), case.items[:3])
    _expect_refused(case, sink.write, [case.items[3], case.bad, case.items[4]])
    sink.write(case.batch(1), case.items[3:5])
    sink.commit(case.owner("a"), 1, b"")
    sink.close()
    case.expect(case.items[:5], "after writes that raised in the middle of a transaction")


def _marks(case: _Case) -> None:
    """Each owner has its own; they move by one, with what was written, and last."""
    sink: TransactionSink = case.open()
    case.require(sink.last_mark(case.owner("a")) == (0, b""), "last_mark of a new owner must be (0, b'')")
    _commit(case, sink, "a", 1, b"\x00first", 0)
    _commit(case, sink, "b", 1, b"other", 1)
    _commit(case, sink, "a", 2, b"second", 2)
    for number in (2, 4):
        try:
            _commit(case, sink, "a", number, b"wrong", 3)
        except WorldError:
            sink.roll_back()
        else:
            case.require(False, f"commit took the mark {number} after 2; it must raise WorldError and commit nothing")
    sink.close()
    again: TransactionSink = case.open()
    marks = [again.last_mark(case.owner(owner)) for owner in ("a", "b", "c")]
    again.close()
    case.require(marks == [(2, b"second"), (1, b"other"), (0, b"")], f"the marks of a, b and c are {marks}")
    case.expect(case.items[:3], "after three commits and two that had to be refused")


def _commit(case: _Case, sink: TransactionSink, owner: str, number: int, redo: bytes, item: int) -> None:
    sink.last_mark(case.owner(owner))
    sink.begin_transaction()
    sink.write(case.batch(item), case.items[item : item + 1])
    sink.commit(case.owner(owner), number, redo)


# -- sinks that append -----------------------------------------------------------------------------


def _cutting_what_was_flushed(case: _Case) -> None:
    _check_cutting(case, flushed=True)


def _cutting_what_was_not(case: _Case) -> None:
    _check_cutting(case, flushed=False)


def _check_cutting(case: _Case, *, flushed: bool) -> None:
    """Three writes, of which two are committed; the next life goes on behind them."""
    sink: AppendSink = case.open()
    sink.cut_to(None)
    sink.flush()
    sink.committed()
    for seq in (0, 1):
        sink.write(case.batch(seq), [case.items[seq]])
        end = sink.flush()
        sink.committed()
    sink.write(case.batch(2), [case.items[2]])
    if flushed:
        sink.flush()
    sink.close()
    again: AppendSink = case.open()
    again.cut_to(end)
    again.write(case.batch(2), case.items[5:7])
    again.flush()
    again.committed()
    again._close_for_good()
    case.expect([*case.items[:2], *case.items[5:7]], "after a life whose last write was not committed")
