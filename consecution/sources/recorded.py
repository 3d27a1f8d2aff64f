"""One file of records: what can be taken of it, and where it stands."""

from __future__ import annotations

import importlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from consecution.errors import MissingExtraError, SourceError, text_of
from consecution.sources.content import PRINT_BYTES, Content, CutShortError, Print, Printer, digest, read_on
from consecution.sources.records import RecordFormat, RecordStream

ROWS = 4096
SAME_AGAIN = "give the run the same file again, or start afresh with fresh=True"


class RecordFile(ABC):
    """A file that is open. `fill` while nothing is left to `take`."""

    @abstractmethod
    def __len__(self) -> int:
        """How many records can be taken."""

    @abstractmethod
    def fill(self) -> bool:
        """Read more records; False at the end. SourceError if the file cannot be read on."""

    @abstractmethod
    def take(self, max_items: int) -> list[Any]:
        """Up to so many records."""

    @abstractmethod
    def position(self) -> list[Any]:
        """The place behind what was taken, and the print of the file."""

    @abstractmethod
    def read_share(self) -> float:
        """How much of the file has been taken, from 0 to 1."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file. Harmless when repeated."""


class TextFile(RecordFile):
    """Lines, JSON values or rows of CSV. SourceError if it is not the file that ``known`` was made of."""

    def __init__(
        self, path: str, form: RecordFormat, max_line_bytes: int, place: Any = None, known: Print | None = None
    ) -> None:
        self.path = path
        self._content = Content(path)
        self._stream = RecordStream(form, path, place, kind="files", max_line_bytes=max_line_bytes)
        self._printer = Printer()
        self._ended = False
        self._error: SourceError | None = None
        """Of a line that is too long; what came before it is taken first."""
        if known is not None:
            self._go_on(known)

    def _go_on(self, known: Print) -> None:
        try:
            found = read_on(self._content, known, self._stream.place.offset)
            if found is None:
                raise self._changed(known)
        except CutShortError:
            self.close()
            raise self._cut_short() from None
        except BaseException:
            self.close()
            raise
        self._printer, begun = found
        try:
            if begun:
                self._stream.feed(begun)
        except SourceError as error:
            self._error = error

    def _changed(self, known: Print) -> SourceError:
        size_bytes = self._content.look().st_size
        if size_bytes < known.mark and not self._content.is_compressed:
            found = f"{self.path} has {size_bytes} bytes, but {known.mark} of it were taken before"
        else:
            found = f"{self.path} is another file than the one of which {known.mark} bytes were taken before"
        return SourceError(f"{found}: {SAME_AGAIN}")

    def _cut_short(self) -> SourceError:
        return SourceError(
            f"{self.path} ends in the middle of what was compressed, behind byte {self._content.offset} of what it "
            "holds: put a whole copy in its place, or what can still be read of it, compressed anew, and run again"
        )

    def __len__(self) -> int:
        return len(self._stream)

    def fill(self) -> bool:
        if self._error is not None:
            raise self._error
        while not self._stream and not self._ended:
            try:
                block = self._content.read()
            except CutShortError:
                raise self._cut_short() from None
            if block:
                self._printer.feed(block)
                self._stream.feed(block)
            else:
                self._ended = True
                self._stream.end()
        return len(self._stream) > 0

    def take(self, max_items: int) -> list[Any]:
        return self._stream.take(max_items)

    def position(self) -> list[Any]:
        known = self._printer.print()
        return [self._stream.position(), known.mark, known.head, known.tail]

    def read_share(self) -> float:
        """Of what is compressed, also what was read ahead: how much that takes where it lies is not known."""
        content = self._content
        if content.is_compressed or not content.offset:
            return content.read_share
        return content.read_share * min(1.0, self._stream.place.offset / content.offset)

    def close(self) -> None:
        self._content.close()


class ParquetFile(RecordFile):
    """Rows of a Parquet file as dicts; ``columns`` chooses. Its place is the row group, and the row in it."""

    def __init__(self, path: str, columns: Sequence[str] | None, place: Any = None, known: Print | None = None) -> None:
        self.path = path
        self._columns = None if columns is None else list(columns)
        self._group: int
        self._row: int
        self._group, self._row = place or (0, 0)
        self._known = _print_of(path)
        if known is not None and known != self._known:
            raise SourceError(f"{path} is another file than the one that was begun before: {SAME_AGAIN}")
        parquet = _parquet(path)
        try:
            self._file = parquet.ParquetFile(path)
            self._check_columns()
        except SourceError:
            raise
        except Exception as error:
            raise SourceError(f"{path} cannot be read as Parquet ({text_of(error)})") from error
        metadata = self._file.metadata
        sizes = (metadata.row_group(group).num_rows for group in range(self._file.num_row_groups))
        self._behind = list(itertools.accumulate(sizes, initial=0))
        self._batches: Iterator[Any] | None = None
        self._rows: list[Any] = []
        self._at = 0

    def _check_columns(self) -> None:
        unknown = [name for name in self._columns or () if name not in self._file.schema_arrow.names]
        if unknown:
            there = ", ".join(self._file.schema_arrow.names)
            raise SourceError(f"{self.path} has no column {unknown[0]!r}; its columns are {there}")

    def __len__(self) -> int:
        return len(self._rows) - self._at

    def fill(self) -> bool:
        while not len(self) and self._group < self._file.num_row_groups:
            try:
                self._read_batch()
            except Exception as error:
                raise SourceError(
                    f"{self.path} cannot be read at row group {self._group}, row {self._row} ({type(error).__name__}: "
                    f"{error}): put a good copy in its place, and run again"
                ) from error
        return len(self) > 0

    def _read_batch(self) -> None:
        if self._batches is None:
            self._batches = self._rest_of_group()
        batch = next(self._batches, None)
        if batch is None:
            self._batches = None
            self._group, self._row = self._group + 1, 0
        else:
            self._rows, self._at = batch.to_pylist(), 0

    def _rest_of_group(self) -> Iterator[Any]:
        skip = self._row
        for batch in self._file.iter_batches(ROWS, row_groups=[self._group], columns=self._columns):
            if skip < batch.num_rows:
                yield batch.slice(skip)
            skip = max(0, skip - batch.num_rows)

    def take(self, max_items: int) -> list[Any]:
        start = self._at
        self._at = min(start + max_items, len(self._rows))
        self._row += self._at - start
        return self._rows[start : self._at]

    def position(self) -> list[Any]:
        return [[self._group, self._row], self._known.mark, self._known.head, self._known.tail]

    def read_share(self) -> float:
        """By the rows that were taken."""
        in_all = self._behind[-1]
        return (self._behind[self._group] + self._row) / in_all if in_all else 1.0

    def close(self) -> None:
        self._file.close()
        self._batches = None


def _print_of(path: str) -> Print:
    """Of the file as a whole, which cannot grow; what a Parquet file ends with tells where everything in it is."""
    with Content(path) as content:
        size_bytes = content.look().st_size
        head = content.read_exactly(PRINT_BYTES)
        content.skip_to(max(0, size_bytes - PRINT_BYTES))
        return Print(size_bytes, digest(head), digest(content.read_exactly(PRINT_BYTES)))


def _parquet(path: str) -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: Parquet files need the package pyarrow: pip install 'consecution[parquet]'", extra="parquet"
        ) from error
