"""What a stream of bytes holds: lines, JSON values a line each, or rows of CSV. The same for every source of bytes.

The rules it keeps:

- A line ends at ``\\n`` only. Bytes that the encoding does not know come as surrogates (``errors="surrogateescape"``).
- A byte order mark that a stream begins with is no part of what it holds, but its bytes count in each place.
- Bytes are looked at by the block, and never one by one: functions written in C decode, split and parse it.
- What is no record becomes `Rejected` in its place, alone: one line of it, and with the next line it starts afresh.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from consecution.delimiters import check_delimiter
from consecution.errors import BadRecordError, SourceError, UsageError
from consecution.protocol.step import shorten_repr
from consecution.source import Rejected
from consecution.sources.json_values import DECODER

FORMATS = ("lines", "ndjson", "csv")
MOST_LINE_BYTES = 64 << 20
BLOCK_BYTES = 1 << 15
"""How much is read at once: what is made of a larger block does not fit into the cache, and takes twice as long."""
SMALL_ROW_BYTES = 1 << 17
"""A row of CSV that goes on is read again with every block up to here; a larger one only where it may have ended."""
BOM = codecs.BOM_UTF8
PLAIN = '\n\r ,;\t"{}[]:0aZ'
"""What must be the same bytes in an encoding as in ASCII: blocks are cut at newlines before they are decoded."""
BEGINNINGS = (b"\x1b", b"~", b"+,", rb"\u")
"""What must be a text, whatever it says. In ISO-2022, HZ, UTF-7 and Python's escapes something else begins with it, and
may be wrong; but only bytes that are no ASCII can come as surrogates."""


@dataclass(slots=True)
class Place:
    """How far a stream of bytes was taken: so many bytes and lines; ``columns`` are what its header has named."""

    offset: int = 0
    line: int = 0
    columns: list[str] | None = None

    @classmethod
    def of(cls, position: Any) -> Place:
        """From what `to_position` returned; None: the beginning."""
        if position is None:
            return cls()
        return cls(*position) if isinstance(position, (list, tuple)) else cls(int(position))


RECORDS = {"lines": "the whole line", "ndjson": "the JSON value of the line", "csv": "a dict of the columns' texts"}
"""What is to be put back in the place of something that is no record: it does not come to the source's parser again."""


def reject(found: Any, where: str, problem: str, record: str = "the item that it should be") -> Rejected:
    """What takes the place of something that is no record, with an error that says where it was and what to do."""
    remedy = f"mend it and put it back as {record}, for it is not parsed again; the others went on without it"
    return Rejected(found, BadRecordError(f"{where}: {problem}; found {shorten_repr(found)}: {remedy}"))


class Records:
    """The records of a block, taken in parts.

    ``sized`` are the lines of the block, without newlines, each as long as it is in bytes; ``ends`` says for each item
    at which of them it ends, None: each line is an item. The last line may have no newline.
    """

    def __init__(
        self,
        items: list[Any],
        sized: Sequence[Any],
        ends: list[int] | None = None,
        *,
        columns: list[str] | None = None,
        newline_at_end: bool = True,
        mark_bytes: int = 0,
    ) -> None:
        self._items = items
        self._sized = sized
        self._ends = ends
        self._columns = columns
        self._missing_newline = 0 if newline_at_end else 1
        self._mark_bytes = mark_bytes
        self._at = 0
        self._line = 0

    def __len__(self) -> int:
        return len(self._items) - self._at

    def take(self, max_items: int, place: Place) -> list[Any]:
        """Up to so many items; ``place`` moves behind them, and at the last one behind the block."""
        start = self._at
        self._at = end = min(start + max_items, len(self._items))
        self._move(place, self._line_after(end))
        return self._items[start:end]

    def _line_after(self, end: int) -> int:
        if end == len(self._items):
            return len(self._sized)
        if self._ends is None:
            return end
        return self._ends[end - 1] if end else 0

    def _move(self, place: Place, line: int) -> None:
        count = line - self._line
        if not count:
            return
        place.offset += sum(map(len, self._sized[self._line : line])) + count
        if line == len(self._sized):
            place.offset -= self._missing_newline
        if not self._line:
            place.offset += self._mark_bytes
        place.line += count
        place.columns = self._columns
        self._line = line


NOTHING = Records([], ())


class RecordFormat:
    """How the bytes of a stream become items. UsageError for options that make no sense.

    ``encoding`` must have newlines and ASCII as they are (UTF-16 has not). The first row of CSV is its header, and
    names the columns, unless ``columns`` does; with ``header=False`` it is a row like any other.
    """

    def __init__(
        self,
        format: str = "lines",
        *,
        encoding: str = "utf-8",
        delimiter: str = ",",
        columns: Sequence[str] | None = None,
        header: bool = True,
    ) -> None:
        if format not in FORMATS:
            raise UsageError(f"format={format!r}: expected one of {', '.join(map(repr, FORMATS))}")
        if format != "csv" and (columns is not None or delimiter != "," or not header):
            raise UsageError(f"format={format!r}: delimiter, columns and header go with format='csv'; leave them out")
        if not header and not columns:
            raise UsageError("header=False: give the names of the columns: columns=[...]")
        self.format = format
        self.encoding = _checked(encoding)
        self.delimiter = check_delimiter(delimiter)
        self.columns = None if columns is None else _checked_names(columns)
        self.header = header
        self.rejects = format != "lines"

    def parse(self, block: bytes, place: Place, name: str, *, final: bool) -> tuple[Records, int]:
        """The records of a block of whole lines, and how many of its bytes at the end belong to one that goes on.

        ``place`` is where the block begins; ``name`` names the stream in errors. ``final``: nothing follows, so
        the last line may lack its newline, and no record goes on.
        """
        newline_at_end = block.endswith(b"\n") or not block
        mark_bytes = len(BOM) if not place.offset and block.startswith(BOM) else 0
        if mark_bytes:
            block = block[mark_bytes:]
        text = block.decode(self.encoding, "surrogateescape")
        lines = text.split("\n")
        if newline_at_end:
            lines.pop()
        # One byte per character lets lengths be counted on the text; otherwise on the bytes.
        sized: Sequence[Any] = lines if len(text) == len(block) else block.split(b"\n")
        sized = sized[: len(lines)] if len(sized) > len(lines) else sized
        if self.format == "lines":
            items = lines if text else []  # A mark alone is no line.
            return Records(items, sized, newline_at_end=newline_at_end, mark_bytes=mark_bytes), 0
        where = _Where(name, place.line, RECORDS[self.format])
        if self.format == "ndjson":
            items, ends = _parse_json(lines, where)
            return Records(items, sized, ends, newline_at_end=newline_at_end, mark_bytes=mark_bytes), 0
        rows = _Rows(self, lines, where, place.columns, quoted='"' in text, final=final)
        kept = len(lines) - rows.left
        made = Records(
            rows.items,
            sized[:kept],
            rows.ends,
            columns=rows.columns,
            newline_at_end=newline_at_end or rows.left > 0,
            mark_bytes=mark_bytes,
        )
        left_bytes = sum(map(len, sized[kept:])) + rows.left
        return made, left_bytes + (0 if kept else mark_bytes)  # The mark goes with the first line.

    def to_position(self, place: Place) -> Any:
        """A place as it goes into the journal: as short as it can be."""
        if self.format == "lines":
            return place.offset
        return [place.offset, place.line, *([place.columns] if place.columns is not None else [])]


class RecordStream:
    """The records of a stream whose bytes come in pieces, cut anywhere. Feed it while it is empty, then take.

    ``name`` names the stream in errors, ``kind`` the producer whose option is to be raised where a line is longer than
    ``max_line_bytes``.
    """

    def __init__(self, form: RecordFormat, name: str, position: Any, *, kind: str, max_line_bytes: int) -> None:
        self.place = Place.of(position)
        self._form = form
        self._name = name
        self._kind = kind
        self._max_line_bytes = max_line_bytes
        self._records = NOTHING
        self._begun: list[bytes] = []
        self._begun_bytes = 0
        self._open_bytes = 0
        """So many of them, at the beginning, are lines of a row that goes on in a quote; and behind them are:"""
        self._quotes = 0
        self._open_line = 0
        """The number of the line that row begins with."""
        self._end = self.place.offset

    def __len__(self) -> int:
        """How many records can be taken."""
        return len(self._records)

    @property
    def has_begun_line(self) -> bool:
        """Bytes have come that make no whole record yet."""
        return bool(self._begun_bytes)

    def feed(self, block: bytes) -> None:
        """Take in more bytes. SourceError for a line that is too long; what came before it can be taken first."""
        count = block.rfind(b"\n") + 1
        lines, tail = block[:count], block[count:]
        self._end += len(lines)
        if lines and self._open_bytes and self._stays_open(lines):
            self._begin(lines)
        elif lines:
            self._parse_lines(b"".join([*self._begun, lines]))
        self._end += len(tail)
        if tail:
            self._begin(tail)

    def _stays_open(self, lines: bytes) -> bool:
        """Whether the row of CSV that has begun surely, or most likely, does not end in these lines.

        To find out for sure it is read from its beginning. That is worth it where a quote may have closed before a
        newline; but quotes in fields without quotes can be miscounted, so it is also done whenever it has doubled.
        """
        pieces = lines.split(b'"')
        if not self._quotes and len(pieces) == 1:
            return True
        row_bytes = self._begun_bytes + len(lines)
        if row_bytes < SMALL_ROW_BYTES or row_bytes >= 2 * self._open_bytes:
            return False
        return not any(b"\n" in outside for outside in pieces[1 - self._quotes % 2 :: 2])

    def end(self) -> None:
        """No more bytes come: what has begun is the last record."""
        self._parse(b"".join(self._begun), final=True)

    def _parse_lines(self, lines: bytes) -> None:
        """Whole lines; only where all together are longer than one may be each is looked at."""
        if len(lines) > self._max_line_bytes:
            at = 0
            for line in lines.split(b"\n"):
                if len(line) > self._max_line_bytes:
                    self._parse(lines[:at], final=False)
                    raise self._too_long(self._end - len(lines) + at)
                at += len(line) + 1
        self._parse(lines, final=False)

    def _too_long(self, offset: int) -> SourceError:
        remedy = f"raise max_line_bytes: Producer({self._kind!r}, max_line_bytes=...)"
        if self._open_bytes:
            return SourceError(
                f"{self._name}, line {self._open_line}: it begins a row of more than {self._max_line_bytes} bytes, "
                f"after byte {offset}: is a quote in it not closed? Whether or not, {remedy}; where it is large "
                "enough for all from there to the end, a line whose quote is not closed fails alone"
            )
        return SourceError(
            f"{self._name} has a line of more than {self._max_line_bytes} bytes, after byte {offset}: is it text? If "
            f"so, {remedy}"
        )

    def _parse(self, block: bytes, *, final: bool) -> None:
        if self._form.format == "csv":
            _let_fields_have(self._max_line_bytes)
        self._begun, self._begun_bytes, self._open_bytes = [], 0, 0
        before = self.place.line
        self._records, left_bytes = self._form.parse(block, self.place, self._name, final=final)
        if not self._records:
            self._records.take(0, self.place)  # A header, or empty lines.
        if left_bytes:
            self._open_bytes = left_bytes
            self._open_line = before + block.count(b"\n", 0, -left_bytes) + 1
            self._begin(block[-left_bytes:])
            self._quotes = 0

    def _begin(self, tail: bytes) -> None:
        self._begun.append(tail)
        self._begun_bytes += len(tail)
        if self._open_bytes:
            self._quotes += tail.count(b'"')
        if self._begun_bytes > self._max_line_bytes:
            raise self._too_long(self._end - self._begun_bytes)

    def take(self, max_items: int) -> list[Any]:
        """Up to so many records; the place moves behind them."""
        return self._records.take(max_items, self.place)

    def position(self) -> Any:
        """The place, for the journal."""
        return self._form.to_position(self.place)


def _checked(encoding: str) -> str:
    try:
        if codecs.lookup(encoding).name == "utf-8-sig":  # The mark is left out anyway.
            return "utf-8"
        problem = _why_unfit(encoding)
    except (LookupError, UnicodeError) as error:
        raise UsageError(f"encoding={encoding!r}: {error}") from error
    if problem:
        raise UsageError(f"encoding={encoding!r}: {problem}; convert the file (iconv -t utf-8)")
    return codecs.lookup(encoding).name


def _why_unfit(encoding: str) -> str | None:
    if PLAIN.encode(encoding) != PLAIN.encode("ascii"):
        return "it does not write newlines and ASCII as single bytes"
    try:
        for beginning in BEGINNINGS:
            beginning.decode(encoding, "surrogateescape")
    except UnicodeError:
        return "what is ASCII may begin something else in it"
    return None


def _checked_names(columns: Sequence[str]) -> list[str]:
    names = list(columns)
    if isinstance(columns, str) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise UsageError(f"columns={columns!r}: expected a list of the columns' names, each once")
    return names


@dataclass(frozen=True, slots=True)
class _Where:
    """The stream, how many lines it had before the block, and what a record of it is."""

    name: str
    before: int
    record: str

    def reject(self, lines: list[str], at: int, end: int, problem: str) -> Rejected:
        """What takes the place of the lines from ``at`` to ``end``."""
        return reject("\n".join(lines[at:end]), f"{self.name}, line {self.before + at + 1}", problem, self.record)


# -- JSON ------------------------------------------------------------------------------------------

_scan_once: Any = vars(DECODER)["scan_once"]
"""What the decoder itself calls: (value, where it ends), from a place in a text on."""


def _parse_json(lines: list[str], where: _Where) -> tuple[list[Any], list[int] | None]:
    """The values, and for each the number of the line it ends at where lines were left out."""
    try:
        found = list(map(_scan_once, lines, itertools.repeat(0)))
    except (ValueError, RecursionError):
        found = []
    if len(found) == len(lines):  # What has no value at its start ends the loop as if there were no more.
        values, ends = zip(*found, strict=True) if found else ((), ())
        if list(ends) == list(map(len, lines)):
            return list(values), None
    return _parse_each(lines, where)


def _parse_each(lines: list[str], where: _Where) -> tuple[list[Any], list[int]]:
    """Line by line: some are bad, empty, or have spaces around."""
    items: list[Any] = []
    ends: list[int] = []
    for at, line in enumerate(lines):
        if line.isspace() or not line:
            continue
        try:
            items.append(DECODER.decode(line))
        except (ValueError, RecursionError) as error:
            items.append(where.reject(lines, at, at + 1, f"expected a JSON value ({_told(error)})"))
        ends.append(at + 1)
    return items, ends


def _told(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


# -- CSV -------------------------------------------------------------------------------------------

LARGEST_FIELD = 2**31 - 1


def _let_fields_have(most_bytes: int) -> None:
    """Python's limit of 131,072 characters in a field is one for all that reads CSV in the process: never lower it."""
    if csv.field_size_limit() < most_bytes:
        csv.field_size_limit(min(most_bytes, LARGEST_FIELD))


_STOPPER = "end of block"
"""A line that is put behind a block: it comes back as a row of its own, unless a quote is still open there."""


class _Rows:
    """The rows of a block: a dict each. ``left`` lines at its end belong to a row that goes on in the next block.

    Where a row cannot be read, its first line is set apart, and the next line begins a row: a quote that is never
    closed takes no other row along. A row is as strict as `csv` can be, so that such a quote is noticed.
    """

    def __init__(
        self,
        form: RecordFormat,
        lines: list[str],
        where: _Where,
        columns: list[str] | None,
        *,
        quoted: bool,
        final: bool,
    ) -> None:
        self.items: list[Any] = []
        self.ends: list[int] | None = []
        self.columns = columns
        self.left = 0
        self._form = form
        self._lines = lines
        self._where = where
        self._fed = [f"{line}\n" for line in lines] if quoted else lines
        if not self._take_plain():
            self._take_all(final)

    @property
    def _names(self) -> list[str] | None:
        return self.columns if self._form.header else self._form.columns

    def _take_plain(self) -> bool:
        """Where each line is a row, with as many fields as there are columns."""
        names = self._names
        if names is None:
            return False
        try:
            rows = list(self._reader(0))
        except csv.Error:
            return False
        rows.pop()
        if len(rows) != len(self._lines) or set(map(len, rows)) != {len(names)}:
            return False
        self.items = list(map(dict, map(zip, itertools.repeat(names), rows)))
        self.ends = None
        return True

    def _reader(self, at: int) -> Any:
        """Reads rows from this line on, and the stopper."""
        fed = itertools.chain(itertools.islice(self._fed, at, None), (_STOPPER,))
        return csv.reader(fed, delimiter=self._form.delimiter, strict=True)

    def _take_all(self, final: bool) -> None:
        at, count = 0, len(self._lines)
        while at < count:
            reader = self._reader(at)
            start = at
            try:
                for row in reader:
                    if start + reader.line_num <= count:
                        self._take_row(row, at, start + reader.line_num)
                        at = start + reader.line_num
                return
            except csv.Error as error:
                goes_on = start + reader.line_num > count
                if goes_on and not final:
                    self.left = count - at
                    return
                if "field limit" in str(error):
                    raise self._too_large(at, error) from error
                problem = "a quote that is opened here is not closed" if goes_on else str(error)
            self._set_apart(at, at + 1, problem)
            at += 1

    def _take_row(self, row: list[str], at: int, end: int) -> None:
        if not row:
            return
        if self._names is None:
            self.columns = self._header(row, at)
            return
        names = self._names
        if len(row) == len(names):
            self._add(dict(zip(names, row, strict=True)), end)
        else:
            self._set_apart(at, end, f"expected {len(names)} fields ({', '.join(names)}), found {len(row)}")

    def _add(self, item: Any, end: int) -> None:
        assert self.ends is not None
        self.items.append(item)
        self.ends.append(end)

    def _set_apart(self, at: int, end: int, problem: str) -> None:
        if self._names is None:
            raise self._unusable(at, problem)
        self._add(self._where.reject(self._lines, at, end, problem), end)

    def _header(self, row: list[str], at: int) -> list[str]:
        names = self._form.columns or row
        if len(names) != len(row):
            raise self._unusable(at, f"it has {len(row)} fields, columns={names!r} has {len(names)}")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise self._unusable(at, f"it has the column {twice[0]!r} more than once")
        return names

    def _too_large(self, at: int, error: csv.Error) -> SourceError:
        """To begin afresh in the middle of a field would make rows of what is none."""
        place = f"{self._where.name}, line {self._where.before + at + 1}"
        return SourceError(f"{place}: {error}: is a quote in it not closed? If not, raise max_line_bytes")

    def _unusable(self, at: int, problem: str) -> SourceError:
        place = f"{self._where.name}, line {self._where.before + at + 1}"
        shown = shorten_repr(self._lines[at])
        return SourceError(
            f"{place}: the header {shown} cannot be used: {problem}; mend it, or give the names: columns=[...]"
        )
