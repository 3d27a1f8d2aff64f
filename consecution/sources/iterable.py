"""Any Python iterable as a source."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from consecution.errors import SourceError, UsageError
from consecution.source import Source
from consecution.sources.handover import Handover

PLAIN_SEQUENCES = (list, tuple, range, str, bytes)
AHEAD_ITEMS = 4000
"""How far the feeder thread reads ahead of what was taken."""


class IterableSource(Source):
    """Reads a sequence, an iterable, or what a function without arguments returns.

    The position is the number of items read; going on means skipping that many. A function (a
    generator function, say) is called anew for every run, in the process that started it; a generator, an
    open file or a cursor is read there too, by a thread of its own, because it may block.
    """

    def __init__(self, items: Iterable[Any] | Callable[[], Iterable[Any]]) -> None:
        if not hasattr(items, "__iter__") and not hasattr(items, "__getitem__") and not callable(items):
            raise UsageError(
                f"the source {items!r} is not iterable: expected a sequence, an iterable, or a function that "
                "returns one"
            )
        self._items = items
        self._count = 0
        self.in_parent = not isinstance(items, (tuple, range, str, bytes, list))
        self._reader: _SequenceReader | _IteratorReader | _FeederReader | None = None

    def __repr__(self) -> str:
        return f"IterableSource({type(self._items).__name__})"

    def open(self, position: Any) -> None:
        self._count = 0 if position is None else int(position)
        if isinstance(self._items, PLAIN_SEQUENCES):
            self._reader = _SequenceReader(self._items, self._count)
            return
        items = self._items() if callable(self._items) and not hasattr(self._items, "__iter__") else self._items
        iterator = iter(items)
        if self.may_block:
            self._reader = _IteratorReader(iterator, self._count)
        else:
            self._reader = _FeederReader(iterator, self._count)

    def read(self, max_items: int) -> list[Any] | None:
        assert self._reader is not None, "read before open"
        found = self._reader.read(max_items)
        if found:
            self._count += len(found)
        return found

    def position(self) -> int:
        return self._count

    def fileno(self) -> int | None:
        return None if self._reader is None else self._reader.fileno()

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


class _SequenceReader:
    def __init__(self, items: Sequence[Any], at: int) -> None:
        self._items = items
        self._at = at

    def read(self, max_items: int) -> list[Any] | None:
        found = list(self._items[self._at : self._at + max_items])
        self._at += len(found)
        return found or None

    def fileno(self) -> None:
        return None

    def close(self) -> None:
        pass


class _IteratorReader:
    """Reads in the calling thread; blocks as long as the iterator does."""

    def __init__(self, iterator: Iterator[Any], skip: int) -> None:
        self._iterator = _skipped(iterator, skip)

    def read(self, max_items: int) -> list[Any] | None:
        found: list[Any] = []
        try:
            found.extend(itertools.islice(self._iterator, max_items))
        except Exception as error:
            if not found:
                raise _read_error(error) from error
            self._iterator = _raising(error)
        return found or None

    def fileno(self) -> None:
        return None

    def close(self) -> None:
        _close_iterator(self._iterator)


class _FeederReader:
    """A thread reads ahead, so that a slow iterator never holds up acknowledgements."""

    def __init__(self, iterator: Iterator[Any], skip: int) -> None:
        self._handover = Handover(AHEAD_ITEMS)
        self._iterator = iterator
        self._skip = skip
        threading.Thread(target=self._feed, name="consecution-feeder", daemon=True).start()

    def _feed(self) -> None:
        try:
            if self._handover.feed(_skipped(self._iterator, self._skip)):
                self._handover.end()
        except Exception as error:
            self._handover.end(_read_error(error))

    def read(self, max_items: int) -> list[Any] | None:
        return self._handover.take(max_items)

    def fileno(self) -> int:
        return self._handover.fileno()

    def close(self) -> None:
        self._handover.close()


def _skipped(iterator: Iterator[Any], count: int) -> Iterator[Any]:
    skipped = sum(1 for _ in itertools.islice(iterator, count))
    if skipped < count:
        raise SourceError(
            f"the source has {skipped} items, but {count} of it were taken before: give the run the same "
            "stream again, or start afresh with fresh=True"
        )
    return iterator


def _raising(error: Exception) -> Iterator[Any]:
    raise _read_error(error) from error
    yield


def _read_error(error: Exception) -> SourceError:
    if isinstance(error, SourceError):
        return error
    made = SourceError(
        f"the source raised {type(error).__name__}: {error}; what came before it was taken: mend the source and "
        "run again with the same state directory"
    )
    made.__cause__ = error
    return made


def _close_iterator(iterator: Iterator[Any]) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()
