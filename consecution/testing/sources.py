"""Does a source keep its contract? `check_source` puts any source through it: ours and yours.

    def test_my_source_keeps_its_contract(tmp_path):
        def make_source(folder):
            (folder / "in").write_text("".join(f"item {n}\\n" for n in range(40)))
            return MySource(folder / "in")

        check_source(make_source, [f"item {n}" for n in range(40)], folder=tmp_path)

``make_source`` makes a source over a store that belongs to ``folder``, from which ``items`` come, in that order. It is
called again, with the same folder, for each life of the source. Each check has a folder of its own.

What comes from outside while the source is open (requests, messages, what a program pushes) is sent by
``send(source, folder, items)``, in a thread of its own; it returns when all are sent. Then ``finish(source, folder)``
brings the stream to its end. A source that never ends is told of by ``ends=False``.

What is checked:

- **end**: all items come, in order, whatever `read` is asked for, never more than that, then None; each list
  is the caller's; where there is nothing, `read` says so at once, and the descriptor is silent until something comes;
- **resume**: opened at any position that was handed back, it gives the rest, exactly; the position it has then is as
  good; so does the same object when it is opened again. Where ``resumes=False``, it goes on with what comes next;
- **kill**: processes that read it are killed at their commits; with the same state directory every item is there once;
- **close**: twice, half way, without an open; no descriptor is left open;
- **shipping**: unless it says ``in_parent``, a copy that was sent to a worker reads the same;
- **back-pressure**, with ``make_large``: a source of `LARGE_BYTES` or more takes no more than ``most_bytes`` of memory
  while nobody reads. Where items are sent, ``flood(source, folder)`` sends that much: it may be held up, or be refused;
- **bad input**, with ``make_bad``: a source with bad input among the very same items gives them all, and `Rejected` in
  the place of what is bad; or it gives those before it, and raises SourceError again and again, without going on.
  Where items are sent, ``send_bad(source, folder)`` sends the items and what is bad.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgpack

from consecution.errors import SourceError
from consecution.pipeline import Pipeline
from consecution.producer import Producer
from consecution.protocol.values import LIVE, BatchId
from consecution.runtime.shipping import can_ship
from consecution.sink import AppendSink
from consecution.source import Rejected, Source
from consecution.testing.lives import live

MakeSource = Callable[[Path], Source]
Send = Callable[[Any, Path, Sequence[Any]], None]
Outside = Callable[[Any, Path], None]

LEAST_ITEMS = 20
LARGE_BYTES = 64 << 20
MOST_BYTES = 16 << 20
LIFE_WITHIN_S = 60.0
ASK_EVERY_S = 0.005
QUIET_S = 0.5
"""How long a flood may make no progress before it is taken to be held up."""
WATCH_EVERY_S = 0.02
KILLED_AT = ("origin.before_commit", "origin.committed")
BATCHES = 10
MANY = 1000


class BrokenSourceError(AssertionError):
    """A source has broken its contract; the text says in which check, and how."""


def check_source(
    make_source: MakeSource,
    items: Sequence[Any],
    *,
    folder: Path,
    send: Send | None = None,
    finish: Outside | None = None,
    ends: bool = True,
    resumes: bool = True,
    make_bad: MakeSource | None = None,
    send_bad: Outside | None = None,
    make_large: MakeSource | None = None,
    flood: Outside | None = None,
    most_bytes: int = MOST_BYTES,
    within_s: float = LIFE_WITHIN_S,
    kills: bool = True,
) -> None:
    """Put a source through its contract. BrokenSourceError at the first thing that is not as it should be.

    ``items``, at least twenty, must be equal to what the source gives; ``folder`` is empty. With ``send``, ``resumes``
    counts for nothing, and no processes are killed: what a sender does after that is between the two. ``kills=False``
    leaves out the kills, which take some seconds. Whatever is waited for must come ``within_s`` seconds.
    """
    if len(items) < LEAST_ITEMS:
        raise ValueError(f"check_source: {len(items)} items are too few, give at least {LEAST_ITEMS}")
    case = _Case(make_source, list(items), folder, send, finish, ends, resumes and send is None, within_s)
    checks = [_end, _closing, _handles, _run_in_threads]
    if send is not None:
        checks += [_silence, _going_on_with_what_comes]
    elif case.resumes:
        checks += [_resume, _resume_from_far, _reuse, _shipping, *([_kills] if kills else [])]
    else:
        checks += [_shipping]
    for check in checks:
        check(case.at(check.__name__))
    if make_bad is not None:
        _bad_input(case.at("_bad_input", make_bad), send_bad)
    if make_large is not None:
        _back_pressure(case.at("_back_pressure", make_large), flood, most_bytes)


@dataclass(frozen=True, slots=True)
class _Case:
    """One check at work: the source, what it gives, and a place of its own."""

    make_source: MakeSource
    items: list[Any]
    place: Path
    send: Send | None
    finish: Outside | None
    ends: bool
    resumes: bool
    within_s: float

    def at(self, name: str, make_source: MakeSource | None = None) -> _Case:
        place = self.place / name.strip("_")
        place.mkdir()
        return _Case(
            make_source or self.make_source,
            self.items,
            place,
            self.send,
            self.finish,
            self.ends,
            self.resumes,
            self.within_s,
        )

    def make(self) -> Any:
        return self.make_source(self.place)

    def require(self, holds: bool, problem: str) -> None:
        if not holds:
            raise BrokenSourceError(f"{self.place.name}: {problem}")

    def expect(self, found: list[Any], expected: list[Any], when: str) -> None:
        if found == expected:
            return
        at = next((n for n, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
        text = f"{when}: expected {len(expected)} items, found {len(found)}"
        if at is not None:
            text += f"; item {at} is {found[at]!r}, expected {expected[at]!r}"
        raise BrokenSourceError(f"{self.place.name}: {text}")

    def senders_job(self, items: Sequence[Any]) -> Outside | None:
        """What sends these items, and then ends the stream; None where nothing is sent."""
        send, finish = self.send, self.finish
        if send is None:
            return None

        def job(source: Any, folder: Path) -> None:
            send(source, folder, items)
            if finish is not None:
                finish(source, folder)

        return job


class _Life:
    """A source that is open: read as an engine does, while somebody sends. Closes it in the end."""

    def __init__(
        self, case: _Case, position: Any = None, *, source: Any = None, outside: Outside | None = None
    ) -> None:
        self._case = case
        self.source = case.make() if source is None else source
        self._position = position
        self._outside = outside
        self._sender: threading.Thread | None = None
        self._sender_error: BaseException | None = None
        self._closed = False
        self._seq = 0

    def __enter__(self) -> Self:
        self.source.open(self._position)
        if self._outside is not None:
            self._sender = threading.Thread(target=self._send, args=(self._outside,), daemon=True)
            self._sender.start()
        return self

    def _send(self, outside: Outside) -> None:
        try:
            outside(self.source, self._case.place)
        except BaseException as error:
            if not self._closed:  # Who is cut off in the middle may say so.
                self._sender_error = error

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closed = True
        self.source.close()
        if self._sender is not None:
            self._sender.join(self._case.within_s)
            self._case.require(not self._sender.is_alive(), "who sends does not come back when the source is closed")
        if kind is None and self._sender_error is not None:
            raise self._sender_error

    @property
    def is_sending(self) -> bool:
        return self._sender is not None and self._sender.is_alive()

    def ask(self, most: int) -> list[Any] | None:
        """What is there now."""
        read = self.source.read(most)
        if read is None:
            return None
        kind = type(read)
        self._case.require(kind in LIVE, f"read({most}) returned a {kind.__name__}, expected a list or a range")
        found = list(read)
        self._case.require(len(found) <= most, f"read({most}) returned {len(found)} items")
        if found:
            self.source.batch_born(self._seq, len(found))
            self.source.take_note(self._seq)
            self.source.batch_journalled(self._seq)
            self.source.batch_settled(self._seq, 0, True)
            self._seq += 1
        return found

    def some(self, most: int) -> list[Any] | None:
        """What is there, as soon as there is something; None at the end."""
        deadline_s = time.monotonic() + self._case.within_s
        while True:
            found = self.ask(most)
            if found is None or found:
                return found
            if self._sender_error is not None:
                raise self._sender_error
            self._case.require(time.monotonic() < deadline_s, f"nothing came within {self._case.within_s:g} s")
            fd = self.source.fileno()
            if fd is None:
                time.sleep(ASK_EVERY_S)
            else:
                self._case.require(_is_readable(fd, self._case.within_s), "its descriptor never became readable")

    def exactly(self, count: int, most: int = MANY) -> list[Any]:
        found: list[Any] = []
        while len(found) < count:
            some = self.some(min(most, count - len(found)))
            if some is None:
                raise BrokenSourceError(f"{self._case.place.name}: it ended after {len(found)} of {count} items")
            found += some
        return found

    def rest(self, count: int, most: int = MANY) -> list[Any]:
        """All that comes, which should be so many items: up to the end, where there is one."""
        if not self._case.ends:
            found = self.exactly(count, most)
            for _ in range(3):
                more = self.ask(most)
                self._case.require(more is not None, "it ended; ends=False says that it never does")
                found += more or []
            return found
        found = []
        while (some := self.some(most)) is not None:
            found += some
        return found


def _is_readable(fd: int, within_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(within_s * 1000))


def _plain(case: _Case, position: Any) -> Any:
    """The position as it comes back from the journal."""
    try:
        back = msgpack.unpackb(msgpack.packb(position), use_list=True, strict_map_key=False)
    except Exception as error:
        raise BrokenSourceError(
            f"{case.place.name}: the position {position!r} is not made of numbers, text, bytes, None and lists: {error}"
        ) from error
    return back


# -- every source ----------------------------------------------------------------------------------


def _end(case: _Case) -> None:
    said, count = case.make().expected, len(case.items)
    case.require(said in (None, count), f"it says that it gives {said} items (`expected`); it gives {count}")
    for most in (1, 3, len(case.items), MANY):
        for may_block in (False, True):
            part = case.at(f"most_{most}_{'may_block' if may_block else 'never_blocks'}")
            source = part.make()
            source.may_block = may_block
            with _Life(part, source=source, outside=part.senders_job(part.items)) as life:
                part.expect(life.rest(len(part.items), most), part.items, f"read({most}) again and again")
    _check_lists(case.at("lists"))


def _check_lists(case: _Case) -> None:
    with _Life(case, outside=case.senders_job(case.items)) as life:
        first = life.exactly(3)
        taken = life.some(2)
        assert taken is not None
        count = len(taken)
        taken.clear()
        rest = life.rest(len(case.items) - 3 - count)
    case.expect(first + rest, case.items[:3] + case.items[3 + count :], "after a list that it gave was emptied")


def _closing(case: _Case) -> None:
    never = case.at("never_opened")
    source = never.make()
    source.close()
    source.close()
    half = case.at("half_way")
    with _Life(half, outside=half.senders_job(half.items)) as life:
        life.some(1)
    life.source.close()
    with _Life(case.at("unread")):
        pass


def _handles(case: _Case) -> None:
    """Open and close again and again: what was taken is given back."""

    def live(name: str) -> None:
        part = case.at(name)
        with _Life(part, outside=part.senders_job(part.items)) as life:
            life.rest(len(part.items))

    live("first")  # What is loaded once may stay.
    before = _count_descriptors()
    for number in range(3):
        live(f"again_{number}")
    left = _count_descriptors() - before
    case.require(left <= 0, f"after three lives, opened and closed, {left} more descriptors are open than before")


def _count_descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def _run_in_threads(case: _Case) -> None:
    """In a pipeline, with a journal: every item once, in order."""
    source = case.make()
    opened = _tell_when_open(source)
    collected = case.place / "collected"
    job = case.senders_job(case.items)
    pipeline = Pipeline(Producer(source) | _Collector("collector", collected))
    with pipeline.start(mode="thread", state_dir=case.place / "state", batch_size=7, sync="process") as running:
        if job is not None:
            case.require(opened.wait(case.within_s), f"a run had not opened it within {case.within_s:g} s")
            job(source, case.place)
        _finish_run(case, running)
    case.expect(_collected(collected), case.items, "after a run in threads")


def _tell_when_open(source: Any) -> threading.Event:
    opened = threading.Event()
    open_it = source.open

    def open_and_tell(position: Any) -> None:
        open_it(position)
        opened.set()

    source.open = open_and_tell
    return opened


def _finish_run(case: _Case, running: Any) -> None:
    if case.ends:
        running.wait(case.within_s)
        return
    deadline_s = time.monotonic() + case.within_s
    while running.status().completed < len(case.items):
        case.require(time.monotonic() < deadline_s, f"a run had not completed all items within {case.within_s:g} s")
        time.sleep(ASK_EVERY_S)
    running.stop(case.within_s)


def _shipping(case: _Case) -> None:
    source = case.make()
    if source.in_parent:
        return
    case.require(can_ship(source), "it cannot be sent to a worker: mend that, or say in_parent = True")
    import dill

    with _Life(case, source=dill.loads(dill.dumps(source))) as life:
        case.expect(life.rest(len(case.items)), case.items, "after it was sent to a worker")


# -- what comes from outside -----------------------------------------------------------------------


def _silence(case: _Case) -> None:
    """While nobody sends there is nothing, and the descriptor does not pretend; what comes then is noticed."""
    with _Life(case) as life:
        case.require(life.ask(MANY) == [], "read() found something before anything was sent")
        fd = life.source.fileno()
        for _ in range(10):
            if fd is None or not _is_readable(fd, 0):
                break
            case.require(life.ask(MANY) == [], "read() found something before anything was sent")
        else:
            case.require(False, "its descriptor stays readable while there is nothing to read")
        job = case.senders_job(case.items)
        assert job is not None
        life._outside = job
        life._sender = threading.Thread(target=life._send, args=(job,), daemon=True)
        life._sender.start()
        case.expect(life.rest(len(case.items)), case.items, "after a while of silence")


def _going_on_with_what_comes(case: _Case) -> None:
    middle = len(case.items) // 2
    send = case.send
    assert send is not None
    with _Life(case, outside=lambda source, folder: send(source, folder, case.items[:middle])) as life:
        first = life.exactly(middle, 3)
        position = _plain(case, life.source.position())
    with _Life(case, position, outside=case.senders_job(case.items[middle:])) as life:
        case.expect(first + life.rest(len(case.items) - middle, 3), case.items, "after a second open")


# -- positions -------------------------------------------------------------------------------------


def _positions(case: _Case, most: int) -> Iterator[tuple[int, Any]]:
    """How many items were read, and the position then."""
    with _Life(case) as life:
        count = 0
        while count < len(case.items):
            found = life.some(most)
            assert found is not None
            count += len(found)
            yield count, _plain(case, life.source.position())


def _resume(case: _Case) -> None:
    for most in (1, 7):
        for count, position in _positions(case, most):
            when = f"opened at the position after {count} items, {position!r}"
            with _Life(case, position) as life:
                unread = _plain(case, life.source.position())
                case.expect(life.rest(len(case.items) - count, most), case.items[count:], when)
            with _Life(case, unread) as life:
                case.expect(life.rest(len(case.items) - count), case.items[count:], f"{when}, closed, opened again")


def _resume_from_far(case: _Case) -> None:
    """One short life after the other."""
    found: list[Any] = []
    position: Any = None
    while len(found) < len(case.items):
        with _Life(case, position) as life:
            for most in (1, 2):
                if len(found) < len(case.items):
                    found += life.some(most) or []
            position = _plain(case, life.source.position())
    case.expect(found, case.items, "after lives of two reads each")


def _reuse(case: _Case) -> None:
    source = case.make()
    with _Life(case, source=source) as life:
        first = life.exactly(3)
        position = _plain(case, source.position())
    with _Life(case, position, source=source) as life:
        rest = life.rest(len(case.items) - 3)
    case.expect(first + rest, case.items, "after the same object was opened again, at its position")
    with _Life(case, source=source) as life:
        whole = life.rest(len(case.items))
    case.expect(whole, case.items, "after the same object was opened again, from the start")


# -- kills -----------------------------------------------------------------------------------------


def _kills(case: _Case) -> None:
    """One life after another is killed around its commits; the last one ends by itself."""
    killed = [point for point in KILLED_AT if _live(case, point)]
    case.require(bool(killed), "none of its lives could be killed; give more items")
    _live(case, None)
    case.expect(_collected(case.place / "collected"), case.items, f"after kills at {', '.join(killed)}")


def _live(case: _Case, point: str | None) -> bool:
    """Run a life, to be killed at ``point``; whether it was."""
    return live(_one_life, case, point=point, place=case.place, within_s=case.within_s, require=case.require)


def _one_life(case: _Case) -> None:
    pipeline = Pipeline(Producer(case.make()) | _Collector("collector", case.place / "collected"))
    batch_size = max(1, len(case.items) // BATCHES)
    options: dict[str, Any] = {"state_dir": case.place / "state", "batch_size": batch_size, "max_pending": 2}
    with pipeline.start(mode="thread", sync="process", **options) as running:
        _finish_run(case, running)


class _Collector(AppendSink):
    """Keeps what comes in a file."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name)
        self._path = path

    def open(self) -> None:
        self._file = open(self._path, "ab")

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        for item in items:
            pickle.dump(item, self._file)

    def flush(self) -> int:
        self._file.flush()
        return self._file.tell()

    def cut_to(self, end: Any) -> None:
        self._file.truncate(end or 0)
        self._file.seek(end or 0)

    def close(self) -> None:
        if "_file" in vars(self):
            self._file.close()


def _collected(path: Path) -> list[Any]:
    found = []
    with open(path, "rb") as file, contextlib.suppress(EOFError):
        while True:
            found.append(pickle.load(file))
    return found


# -- bad input, and too much of it -----------------------------------------------------------------


def _bad_input(case: _Case, send_bad: Outside | None) -> None:
    found: list[Any] = []
    with _Life(case, outside=send_bad) as life:
        error = _read_until_bad(case, life, found)
        position = _plain(case, life.source.position())
    rejected = [item for item in found if type(item) is Rejected]
    good = [item for item in found if type(item) is not Rejected]
    if error is None:
        case.require(bool(rejected), "bad input was passed over in silence: give Rejected for it, or raise")
        case.require(life.source.rejects, "it gives Rejected, and does not say rejects = True")
        case.require(all(str(r.error) for r in rejected), "the error of what it rejects says nothing")
        case.expect(good, case.items, "with bad input among the items")
        return
    case.require(bool(str(error)), "the error for bad input says nothing")
    case.expect(good, case.items[: len(good)], "before the error for bad input")
    if case.resumes:
        with _Life(case, position) as life:
            more: list[Any] = []
            again = _read_until_bad(case, life, more)
        case.require(not more and again is not None, "opened after bad input at the position before it, it went on")


def _read_until_bad(case: _Case, life: _Life, found: list[Any]) -> SourceError | None:
    """Read to the end, or to an error, which must come again."""
    error: SourceError | None = None
    deadline_s = time.monotonic() + case.within_s
    for _ in range(2):
        try:
            while (some := life.ask(3)) is not None:
                case.require(error is None, "read went on after it had raised")
                found += some
                good = sum(type(item) is not Rejected for item in found)
                if not case.ends and good >= len(case.items) and len(found) > good:
                    return None
                case.require(time.monotonic() < deadline_s, f"no end and no error within {case.within_s:g} s")
                if not some:
                    time.sleep(ASK_EVERY_S)
            case.require(error is None, "read ended after it had raised")
            return None
        except SourceError as raised:
            error = raised
    return error


def _back_pressure(case: _Case, flood: Outside | None, most_bytes: int) -> None:
    was_tracing = tracemalloc.is_tracing()
    source = case.make()
    with contextlib.ExitStack() as stack:
        tracemalloc.start()
        if not was_tracing:
            stack.callback(tracemalloc.stop)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        life = stack.enter_context(_Life(case, source=source, outside=flood))
        _watch_flood(life, before + most_bytes)
        for _ in range(10):
            life.some(1)
        _watch_flood(life, before + most_bytes)
        _, peak = tracemalloc.get_traced_memory()
    taken = peak - before
    case.require(
        taken <= most_bytes,
        f"with {LARGE_BYTES} bytes to come, and nobody to take them, it took {taken} bytes of memory; at most "
        f"{most_bytes} were allowed",
    )


def _watch_flood(life: _Life, most_bytes: int) -> None:
    """Let whoever sends go on until he is done or held up, or memory has grown too much."""
    quiet_s = time.monotonic() + QUIET_S
    seen = 0
    while life.is_sending and time.monotonic() < quiet_s:
        held, _ = tracemalloc.get_traced_memory()
        if held > most_bytes:
            return
        if held > seen:
            seen, quiet_s = held, time.monotonic() + QUIET_S
        time.sleep(WATCH_EVERY_S)
