"""What every source keeps: the rules of `consecution.source.Source`, one implementation after the other."""

from __future__ import annotations

import contextlib
import io
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest

from consecution.errors import NotRunningError, SourceError
from consecution.source import Source
from consecution.sources.iterable import IterableSource
from consecution.sources.manual import ManualSource
from consecution.sources.pipe import PipeSource

DEADLINE_S = 10.0
ITEMS = ["one", "two", "", "vier ü", "five\r", "\udce9", "seven\0", "eight"]


class Silence:
    """An iterator that has nothing until it is told to go on."""

    def __init__(self, items: list[Any]) -> None:
        self._items = iter(items)
        self.go_on = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        assert self.go_on.wait(DEADLINE_S)
        return next(self._items)


class Kind(NamedTuple):
    """How to make a source of some items, and what it is able to do.

    ``seekable``: it finds the place in the whole stream itself; others go on with what comes next.
    ``reusable``: the same object gives the same stream again.
    """

    make: Callable[[list[str], Path], Source]
    seekable: bool = True
    reusable: bool = True


def _file(items: list[str], folder: Path) -> Path:
    path = folder / f"lines-{len(items)}"
    path.write_bytes("".join(item + "\n" for item in items).encode("utf-8", "surrogateescape"))
    return path


def _opened(items: list[str], folder: Path) -> int:
    return os.open(_file(items, folder), os.O_RDONLY)


def _piped(items: list[str], folder: Path) -> int:
    readable, writable = os.pipe()
    os.write(writable, _file(items, folder).read_bytes())
    os.close(writable)
    return readable


def _pushed(items: list[str], folder: Path) -> Source:
    source = ManualSource()
    for item in items:
        source.push(item)
    source.finish()
    return source


class OnlyGetItem:
    """Iterable by the oldest of all protocols."""

    def __init__(self, items: list[Any]) -> None:
        self._items = items

    def __getitem__(self, at: int) -> Any:
        return self._items[at]


class ListOfMyOwn(list):  # type: ignore[type-arg]
    """Iterates as it likes."""

    def __iter__(self) -> Iterator[Any]:
        return (item for item in list.__getitem__(self, slice(None)))


KINDS = {
    "list": Kind(lambda items, _: IterableSource(items)),
    "tuple": Kind(lambda items, _: IterableSource(tuple(items))),
    "generator function": Kind(lambda items, _: IterableSource(lambda: (item for item in items))),
    "function": Kind(lambda items, _: IterableSource(lambda: items)),
    "generator": Kind(lambda items, _: IterableSource(item for item in items), reusable=False),
    "dict": Kind(lambda items, _: IterableSource(dict.fromkeys(items))),
    "old sequence": Kind(lambda items, _: IterableSource(OnlyGetItem(items))),
    "own list": Kind(lambda items, _: IterableSource(ListOfMyOwn(items))),
    "file object": Kind(
        lambda items, folder: IterableSource(
            line.removesuffix("\n") for line in io.StringIO("".join(f"{i}\n" for i in items), newline="\n")
        ),
        reusable=False,
    ),
    "file": Kind(lambda items, folder: PipeSource(_opened(items, folder))),
    "pipe": Kind(lambda items, folder: PipeSource(_piped(items, folder)), seekable=False, reusable=False),
    "manual": Kind(_pushed, seekable=False, reusable=False),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(params=[name for name, kind in KINDS.items() if kind.seekable])
def seekable_kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(params=[name for name, kind in KINDS.items() if kind.reusable])
def reusable_kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def read_some(source: Source, most: int) -> list[Any] | None:
    """Read until something comes, or the end; waiting as the contract says one may."""
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        found = source.read(most)
        assert found is None or len(found) <= most
        if found is None or found:
            return found
        assert time.monotonic() < deadline_s
        fd = source.fileno()
        if fd is not None:
            assert select.select([fd], [], [], DEADLINE_S)[0], "the descriptor never became readable"


def read_exactly(source: Source, count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        some = read_some(source, count - len(found))
        assert some is not None, f"ended after {len(found)} of {count}"
        found += some
    return found


def read_all(source: Source, most: int = 1000) -> list[Any]:
    found: list[Any] = []
    while (some := read_some(source, most)) is not None:
        found += some
    return found


@pytest.mark.parametrize("may_block", [False, True])
@pytest.mark.parametrize("most", [1, 2, 3, 1000])
def test_all_items_come_in_order_however_many_are_asked_for(
    kind: Kind, tmp_path: Path, most: int, may_block: bool
) -> None:
    source = kind.make(ITEMS, tmp_path)
    source.may_block = may_block

    source.open(None)

    assert read_all(source, most) == ITEMS
    source.close()


def test_a_source_of_nothing_ends_at_once(kind: Kind, tmp_path: Path) -> None:
    source = kind.make([], tmp_path)

    source.open(None)

    assert read_all(source) == []
    source.close()


@pytest.mark.parametrize("may_block", [False, True])
@pytest.mark.parametrize("at", range(len(ITEMS) + 1))
def test_opened_at_any_position_it_gives_the_rest_exactly(kind: Kind, tmp_path: Path, at: int, may_block: bool) -> None:
    first = kind.make(ITEMS, tmp_path)
    first.open(None)
    taken = read_exactly(first, at)
    position = msgpack.unpackb(msgpack.packb(first.position()))
    first.close()

    second = kind.make(ITEMS if kind.seekable else ITEMS[at:], tmp_path)
    second.may_block = may_block
    second.open(position if at else None)

    assert second.position() == (position if at else 0)
    assert taken + read_all(second, 2) == ITEMS
    second.close()


def test_positions_grow_and_do_not_depend_on_how_much_was_asked_for(kind: Kind, tmp_path: Path) -> None:
    one, many = kind.make(ITEMS, tmp_path), kind.make(ITEMS, tmp_path)
    one.open(None)
    many.open(None)

    seen = []
    while (some := read_some(one, 1)) is not None:
        assert len(some) == 1
        seen.append(one.position())
    read_all(many)

    assert seen == sorted(set(seen))
    assert many.position() == one.position() == seen[-1]
    one.close()
    many.close()


def test_the_position_at_the_end_is_the_end(kind: Kind, tmp_path: Path) -> None:
    first = kind.make(ITEMS, tmp_path)
    first.open(None)
    read_all(first)
    position = first.position()
    first.close()

    second = kind.make(ITEMS if kind.seekable else [], tmp_path)
    second.open(position)

    assert read_all(second) == []
    second.close()


def test_a_stream_shorter_than_what_was_taken_is_refused(seekable_kind: Kind, tmp_path: Path) -> None:
    first = seekable_kind.make(ITEMS, tmp_path)
    first.open(None)
    read_all(first)
    position = first.position()
    first.close()
    second = seekable_kind.make(ITEMS[:3], tmp_path)

    def go_on() -> None:
        second.open(position)
        read_all(second)

    with pytest.raises(SourceError, match=r"has \d+ .*were taken before: give the\s+run the same"):
        go_on()
    second.close()


def test_the_next_run_may_open_the_same_object_again(reusable_kind: Kind, tmp_path: Path) -> None:
    source = reusable_kind.make(ITEMS, tmp_path)
    source.open(0)
    read_exactly(source, 3)
    position = source.position()
    source.close()

    source.open(position)
    rest = read_all(source)
    source.close()
    source.open(0)
    whole = read_all(source)
    source.close()

    assert (rest, whole) == (ITEMS[3:], ITEMS)


def test_a_list_that_was_read_belongs_to_the_caller(kind: Kind, tmp_path: Path) -> None:
    source = kind.make(ITEMS, tmp_path)
    source.open(None)

    first = read_exactly(source, 2)
    some = read_some(source, 1)
    assert some is not None
    some.clear()

    assert first + read_all(source) == ITEMS[:2] + ITEMS[3:]
    source.close()


def test_it_may_be_closed_twice_half_way_and_without_being_opened(kind: Kind, tmp_path: Path) -> None:
    never, half = kind.make(ITEMS, tmp_path), kind.make(ITEMS, tmp_path)
    half.open(None)
    read_some(half, 1)

    for source in (never, half):
        source.close()
        source.close()


# -- slow, and failing -----------------------------------------------------------------------------


class Slow(NamedTuple):
    """A source that has nothing yet, and how to let two items come, and then the end."""

    source: Source
    send: Callable[[], None]
    end: Callable[[], None]


def _slow_iterator() -> Slow:
    silence = Silence([1, 2])
    return Slow(IterableSource(silence), silence.go_on.set, lambda: None)


def _slow_pipe() -> Slow:
    readable, writable = os.pipe()
    return Slow(PipeSource(readable), lambda: os.write(writable, b"1\n2\n") and None, lambda: os.close(writable))


def _slow_manual() -> Slow:
    source = ManualSource()

    def send() -> None:
        with contextlib.suppress(NotRunningError):
            source.push(1)
            source.push(2)

    return Slow(source, send, source.finish)


@pytest.mark.parametrize("make", [_slow_iterator, _slow_pipe, _slow_manual])
def test_reading_never_waits_and_the_descriptor_tells_when_to_ask_again(make: Callable[[], Slow]) -> None:
    slow = make()
    source = slow.source
    source.open(None)

    assert [source.read(10) for _ in range(3)] == [[], [], []]
    assert select.select([source.fileno()], [], [], 0)[0] == []
    slow.send()
    found = [int(item) for item in read_exactly(source, 2)]
    slow.end()

    assert found == [1, 2]
    assert read_some(source, 10) is None
    source.close()


@pytest.mark.parametrize("make", [_slow_iterator, _slow_pipe, _slow_manual])
def test_closing_does_not_wait_for_what_never_comes(make: Callable[[], Slow]) -> None:
    slow = make()
    slow.source.open(None)
    slow.source.read(1)

    slow.source.close()

    slow.send()
    slow.end()


class Broken(NamedTuple):
    source: Source
    error: str


def _broken_generator() -> Broken:
    def items() -> Iterator[str]:
        yield from ITEMS
        raise RuntimeError("no more")

    return Broken(IterableSource(items), "the source raised RuntimeError: no more")


def _exiting_generator() -> Broken:
    def items() -> Iterator[str]:
        yield from ITEMS
        raise SystemExit(3)

    return Broken(IterableSource(items), "the source raised SystemExit: 3")


def _broken_getitem() -> Broken:
    class Items:
        def __getitem__(self, at: int) -> str:
            if at == len(ITEMS):
                raise KeyError(at)
            return ITEMS[at]

    return Broken(IterableSource(Items()), "the source raised KeyError: 8")


def _endless_line() -> Broken:
    readable, writable = os.pipe()
    os.write(writable, "".join(item + "\n" for item in ITEMS).encode("utf-8", "surrogateescape") + b"x" * 20)
    return Broken(PipeSource(readable, max_line_bytes=10), "has a line of more than 10 bytes")


BROKEN = [_broken_generator, _exiting_generator, _broken_getitem, _endless_line]


@pytest.mark.parametrize("may_block", [False, True])
@pytest.mark.parametrize("most", [1, 3, 8, 1000])
@pytest.mark.parametrize("make", BROKEN)
def test_an_error_comes_after_all_items_before_it_and_comes_again(
    make: Callable[[], Broken], most: int, may_block: bool
) -> None:
    broken = make()
    source = broken.source
    source.may_block = may_block
    source.open(None)

    assert read_exactly(source, len(ITEMS)) == ITEMS
    position = source.position()
    for _ in range(2):
        with pytest.raises(SourceError, match=broken.error):
            read_some(source, most)

    assert source.position() == position
    source.close()


@pytest.mark.parametrize("make", [_broken_generator, _broken_getitem])
def test_an_error_that_is_mended_costs_nothing(make: Callable[[], Broken]) -> None:
    source = make().source
    source.open(None)
    taken = read_exactly(source, 3)
    position = source.position()
    source.close()

    again = make().source
    again.open(position)

    assert taken + read_exactly(again, len(ITEMS) - 3) == ITEMS
    again.close()
