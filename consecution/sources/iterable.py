"""Any Python iterable as a source."""

from __future__ import annotations

import collections
import contextlib
import inspect
import itertools
import pickle
import threading
import time
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from consecution.errors import SourceError, UsageError, text_of
from consecution.protocol.values import copied
from consecution.source import Source
from consecution.sources.handover import Handover
from consecution.sources.punctual import wake_on_time

PLAIN_SEQUENCES = (list, tuple, range, str, bytes)
"""Exactly these types are read by slices; a class of one's own that inherits from them is iterated."""

SPLIT_SEQUENCES = (list, tuple, range)

AHEAD_ITEMS = 16_000
"""How far the feeder thread reads ahead of what was taken, at most."""
FIRST_AHEAD_ITEMS = 16
"""How far it does at first, and at least: items may be large, and the next batch is cut by the bytes of the last."""

PATIENCE_S = 0.001
"""How long a read in the caller's own thread goes on collecting, once it has something."""


class IterableSource(Source):
    """Reads a sequence, an iterable, or what a function without arguments returns.

    The position is the number of items read; going on means skipping that many, so the iterable must give
    the same items in the same order again. A function (a generator function, say) is called anew for
    every run, in the process that started it; a generator, an open file or a cursor is read there
    too, by a thread of its own, because it may block. Lists, tuples, ranges and texts can be shipped to a worker.

    UsageError for what cannot be iterated. SourceError from ``read`` if the iterable raises, after all items
    before that were delivered.
    """

    def __init__(self, items: Iterable[Any] | Callable[[], Iterable[Any]]) -> None:
        _check_iterable(items)
        self._items: Any = items
        self.expected = _count(items)
        self._count = 0
        self.in_parent = type(items) not in PLAIN_SEQUENCES
        self._reader: _Reader | None = None

    def __repr__(self) -> str:
        return f"IterableSource({type(self._items).__name__})"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_items": _pack(self._items), "_reader": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _items=_unpack(state["_items"]))

    def open(self, position: Any) -> None:
        self._count = 0 if position is None else int(position)
        if type(self._items) in PLAIN_SEQUENCES:
            self._reader = _SequenceReader(self._items, self._count)
            return
        if self._count and isinstance(self._items, (set, frozenset)):
            raise SourceError(
                f"{self!r} cannot go on after {self._count} items: a set has another order in every process; give "
                "the run sorted(the_set), and start afresh with fresh=True"
            )
        items, made_here = self._make_items()
        reader = _CallersReader if self.may_block else _FeederReader
        self._reader = reader(iter(items), self._count, owned=made_here)

    def _make_items(self) -> tuple[Any, bool]:
        """The iterable, and whether it was made here and is ours to close."""
        if _is_iterable(self._items):
            return self._items, False
        made = self._items()
        _check_made(self._items, made)
        return made, True

    def __iter__(self) -> Iterator[Any]:
        """All items from the start, one by one, in the caller's thread; errors come as they are."""
        items, made_here = self._make_items()
        iterator = iter(items)
        try:
            yield from iterator
        finally:
            if made_here:
                _close_iterator(iterator)

    def read(self, max_items: int) -> list[Any] | range | None:
        assert self._reader is not None, "read before open"
        found = self._reader.read(max_items)
        if found:
            self._count += len(found)
        return found

    def position(self) -> int:
        return self._count

    def split(self, shares: int) -> list[Source] | None:
        """Lists, tuples and ranges: each share every n-th item, from another one on. Nothing else."""
        if type(self._items) not in SPLIT_SEQUENCES:
            return None
        return [self._share(self._items[first::shares]) for first in range(shares)]

    def _share(self, items: Sequence[Any]) -> IterableSource:
        share = object.__new__(type(self))
        vars(share).update(vars(self), _items=items, expected=_count(items))
        return share

    def fileno(self) -> int | None:
        return None if self._reader is None else self._reader.fileno()

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


class _Reader(Protocol):
    def read(self, max_items: int) -> list[Any] | range | None: ...

    def fileno(self) -> int | None: ...

    def close(self) -> None: ...


class _SequenceReader:
    """Reads by slices; those of a range are ranges."""

    def __init__(self, items: Sequence[Any], at: int) -> None:
        if at and not items[at - 1 : at]:  # A range may be longer than ``len`` can say.
            raise _too_short(len(items), at)
        self._items = items
        self._at = at

    def read(self, max_items: int) -> list[Any] | range | None:
        found = self._items[self._at : self._at + max_items]
        self._at += len(found)
        return copied(found) or None

    def fileno(self) -> None:
        return None

    def close(self) -> None:
        pass


class _CallersReader:
    """Reads in the caller's thread; blocks as long as the iterator does, but not to fill a batch.

    It asks for 1, 2, 4, ... items and returns what it has once that took longer than `PATIENCE_S`.
    """

    def __init__(self, iterator: Iterator[Any], skip: int, *, owned: bool) -> None:
        self._iterator = iterator
        self._skip = skip
        self._owned = owned
        self._ended = False
        self._error: BaseException | None = None

    def read(self, max_items: int) -> list[Any] | None:
        found: list[Any] = []
        try:
            self._collect(found, max_items)
        except (Exception, SystemExit) as error:
            self._error = error
        if found:
            return found
        if self._error is not None:
            raise _read_error(self._error)
        return None

    def _collect(self, found: list[Any], max_items: int) -> None:
        if self._error is not None or self._ended:
            return
        if self._skip:
            _skip(self._iterator, self._skip)
            self._skip = 0
        enough_s = time.monotonic() + PATIENCE_S
        step = 1
        while len(found) < max_items and not self._ended:
            wanted = min(len(found) + step, max_items)
            found.extend(itertools.islice(self._iterator, wanted - len(found)))
            self._ended = len(found) < wanted
            step *= 2
            if time.monotonic() > enough_s:
                return

    def fileno(self) -> None:
        return None

    def close(self) -> None:
        if self._owned:
            _close_iterator(self._iterator)


class _FeederReader:
    """A thread reads ahead, so that a slow iterator never holds up acknowledgements: up to two batches."""

    def __init__(self, iterator: Iterator[Any], skip: int, *, owned: bool) -> None:
        self._handover = Handover(FIRST_AHEAD_ITEMS)
        self._iterator = iterator
        self._skip = skip
        self._owned = owned
        threading.Thread(target=self._feed, name="consecution-feeder", daemon=True).start()

    def _feed(self) -> None:
        wake_on_time()
        try:
            _skip(self._iterator, self._skip)
            self._handover.feed(self._iterator)
            if self._owned:
                _close_iterator(self._iterator)
        except BaseException as error:
            self._handover.end(_read_error(error))
        else:
            self._handover.end()

    def read(self, max_items: int) -> list[Any] | None:
        found = self._handover.take(max_items)
        wanted = min(2 * max_items, 2 * self._handover.room, AHEAD_ITEMS)
        self._handover.room = max(FIRST_AHEAD_ITEMS, wanted)
        return found

    def fileno(self) -> int:
        return self._handover.fileno()

    def close(self) -> None:
        self._handover.close()


def _count(items: Any) -> int | None:
    with contextlib.suppress(OverflowError):  # a range may be longer than ``len`` can say
        return len(items) if type(items) in PLAIN_SEQUENCES else None
    return None


def _is_iterable(items: Any) -> bool:
    """Whether ``iter`` takes it. A class is a function that makes something, unless it can be iterated itself."""
    return hasattr(type(items), "__iter__") or hasattr(type(items), "__getitem__")


def _check_iterable(items: Any) -> None:
    if isinstance(items, AsyncIterable) or inspect.isasyncgenfunction(items) or inspect.iscoroutinefunction(items):
        raise UsageError(
            f"the source {items!r} is asynchronous: expected an ordinary iterable or function; an ordinary "
            "generator may block as long as it likes, it is read by a thread of its own"
        )
    if not _is_iterable(items) and not callable(items):
        raise UsageError(
            f"the source {items!r} is not iterable: expected a sequence, an iterable, or a function without "
            "arguments that returns one"
        )


def _check_made(function: Any, made: Any) -> None:
    if not _is_iterable(made):
        name = getattr(function, "__name__", repr(function))
        raise SourceError(f"the source {name}() returned {made!r}, which is not iterable: return or yield items")


class _Packed(bytes):
    """A sequence as pickle wrote it."""


def _pack(items: Any) -> Any:
    """A list as bytes: dill, which ships sources, takes thirty times as long for one as pickle does.

    Not where pickle cannot, or names a class of ``__main__``, which only dill knows how to ship.
    """
    if type(items) not in (list, tuple):
        return items
    try:
        packed = pickle.dumps(items, protocol=5)
    except Exception:
        return items
    return items if b"__main__" in packed else _Packed(packed)


def _unpack(items: Any) -> Any:
    return pickle.loads(items) if isinstance(items, _Packed) else items


def _skip(iterator: Iterator[Any], count: int) -> None:
    """Drop the items that were taken in an earlier life. SourceError if there are not that many."""
    if not count:
        return
    counter = itertools.count()
    collections.deque(zip(itertools.islice(iterator, count), counter, strict=False), maxlen=0)
    skipped = next(counter)
    if skipped < count:
        raise _too_short(skipped, count)


def _too_short(found: int, taken: int) -> SourceError:
    return SourceError(
        f"the source has {found} items, but {taken} of it were taken before: give the run the same stream again, "
        "or start afresh with fresh=True"
    )


def _read_error(error: BaseException) -> SourceError:
    if isinstance(error, SourceError):
        return error
    made = SourceError(
        f"the source raised {text_of(error)}; what came before it was taken: mend the source and run again; with a "
        "state_dir of its own a run goes on where this one ended, without one it begins anew"
    )
    made.__cause__ = error
    return made


def _close_iterator(iterator: Iterator[Any]) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()
