"""Lines or records of standard input, as a Unix filter reads them."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Sequence
from typing import Any

from consecution.errors import SourceError, reason_of
from consecution.source import Source
from consecution.sources.records import BLOCK_BYTES, MOST_LINE_BYTES, Place, RecordFormat, RecordStream

LONGEST_WAIT_MS = 500
"""With ``may_block``: how long a read waits for a line before it lets the caller look at other things."""

NAME = "standard input"


class PipeSource(Source):
    """What comes on a file descriptor (standard input): its lines as text, without their newlines; or records.

    ``format`` is "lines", "ndjson" (a JSON value on each line) or "csv" (rows become dicts), with the options that
    `consecution.sources.records.RecordFormat` has for them; what is no such record is `Rejected`, alone. A line ends at
    ``\\n`` only. Bytes that are not in the ``encoding`` come as surrogates (``errors="surrogateescape"``), so nothing
    is lost. The position is the number of bytes (and of lines, and the header): a file is gone on with at that place, a
    pipe with what comes next. At most a block and one line, of ``max_line_bytes``, are in memory.

    SourceError from ``open`` if the descriptor is closed, or the file is shorter than what was taken; from
    ``read`` if it cannot be read, a line is too long, or the header cannot be used.
    """

    in_parent = True

    def __init__(
        self,
        fd: int = 0,
        format: str = "lines",
        *,
        encoding: str = "utf-8",
        delimiter: str = ",",
        columns: Sequence[str] | None = None,
        header: bool = True,
        max_line_bytes: int = MOST_LINE_BYTES,
    ) -> None:
        self._fd = fd
        self._form = RecordFormat(format, encoding=encoding, delimiter=delimiter, columns=columns, header=header)
        self._max_line_bytes = max_line_bytes
        self.rejects = self._form.rejects
        self._stream = self._make_stream(None)
        self._ended = False
        self._error: SourceError | None = None

    def __repr__(self) -> str:
        return f"PipeSource(fd={self._fd})"

    def _make_stream(self, position: Any) -> RecordStream:
        return RecordStream(self._form, NAME, position, kind="pipe", max_line_bytes=self._max_line_bytes)

    def open(self, position: Any) -> None:
        self._ended, self._error = False, None
        status = self._look()
        if stat.S_ISREG(status.st_mode):
            position = self._seek(position, status.st_size)
        self._stream = self._make_stream(position)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def _look(self) -> os.stat_result:
        closed: OSError | None = None
        try:
            if self._fd or sys.__stdin__ is not None:
                return os.fstat(self._fd)
        except OSError as error:
            closed = error
        # Without a standard input the next file that anybody opens gets its descriptor: that is not it.
        raise SourceError(
            f"standard input (descriptor {self._fd}) is closed: give the run a file or a pipe to read"
        ) from closed

    def _seek(self, position: Any, size_bytes: int) -> Any:
        """Go to the place in a file; without one, from wherever the shell has put it."""
        if position is None:
            return os.lseek(self._fd, 0, os.SEEK_CUR)
        offset = Place.of(position).offset
        if offset > size_bytes:
            raise SourceError(
                f"{NAME} has {size_bytes} bytes, but {offset} of it were taken before: give the "
                "run the same file again, or start afresh with fresh=True"
            )
        os.lseek(self._fd, offset, os.SEEK_SET)
        return position

    def read(self, max_items: int) -> list[Any] | None:
        records = self._stream.take(max_items)
        while len(records) < max_items and self._fill(wait=not records):
            records += self._stream.take(max_items - len(records))
        if records:
            return records
        if self._error is not None:
            raise self._error
        return None if self._ended else []

    def _fill(self, *, wait: bool) -> bool:
        """Get more, of what is there now. False: there is none; an error waits until all before it was read."""
        try:
            return self._error is None and self._feed(wait)
        except SourceError as error:
            self._error = error
            return bool(self._stream)

    def _feed(self, wait: bool) -> bool:
        while not self._ended and not self._stream:
            read = self._read_bytes(wait)
            if read is None:
                return False
            if read:
                self._stream.feed(read)
            else:
                self._ended = True
                self._stream.end()
        return bool(self._stream)

    def _read_bytes(self, wait: bool) -> bytes | None:
        """Some bytes, b"" at the end, or None if there are none just now."""
        wait_ms = LONGEST_WAIT_MS if wait and self.may_block else 0
        try:
            return os.read(self._fd, BLOCK_BYTES) if self._poll.poll(wait_ms) else None
        except BlockingIOError:
            return None
        except OSError as error:
            raise SourceError(
                f"standard input (descriptor {self._fd}) cannot be read: {reason_of(error)}; give the run a file or a "
                "pipe to read"
            ) from error

    def position(self) -> Any:
        return self._stream.position()

    def fileno(self) -> int:
        return self._fd
