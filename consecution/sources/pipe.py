"""Lines of standard input, as a Unix filter reads them."""

from __future__ import annotations

import os
import select
import stat
import sys
from typing import Any

from consecution.errors import SourceError
from consecution.source import Source

CHUNK_BYTES = 1 << 18
LONGEST_WAIT_MS = 500
"""With ``may_block``: how long a read waits for a line before it lets the caller look at other things."""

MOST_LINE_BYTES = 64 << 20


class PipeSource(Source):
    """The lines of a file descriptor (standard input), without their newlines, as text.

    A line ends at ``\\n`` only. Bytes that are no UTF-8 come as surrogates (``errors="surrogateescape"``),
    so nothing is lost. The position is the number of bytes: a file is gone on with at that place, a pipe
    with what comes next. At most a chunk and one line, of ``max_line_bytes``, are in memory.

    SourceError from ``open`` if the descriptor is closed, or the file is shorter than what was taken; from
    ``read`` if it cannot be read, or a line is too long.
    """

    in_parent = True

    def __init__(self, fd: int = 0, max_line_bytes: int = MOST_LINE_BYTES) -> None:
        self._fd = fd
        self._max_line_bytes = max_line_bytes
        self._offset = 0
        self._end = 0
        self._begun: list[bytes] = []
        self._begun_bytes = 0
        self._chunk = _Lines(b"")
        self._ended = False
        self._error: SourceError | None = None

    def __repr__(self) -> str:
        return f"PipeSource(fd={self._fd})"

    def open(self, position: Any) -> None:
        self._begun, self._begun_bytes, self._chunk, self._ended = [], 0, _Lines(b""), False
        self._error = None
        self._offset = 0 if position is None else int(position)
        status = self._look()
        if stat.S_ISREG(status.st_mode):
            self._seek(position, status.st_size)
        self._end = self._offset
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

    def _seek(self, position: Any, size_bytes: int) -> None:
        """Go to the place in a file; without one, from wherever the shell has put it."""
        if position is None:
            self._offset = os.lseek(self._fd, 0, os.SEEK_CUR)
            return
        if self._offset > size_bytes:
            raise SourceError(
                f"standard input has {size_bytes} bytes, but {self._offset} of it were taken before: give the "
                "run the same file again, or start afresh with fresh=True"
            )
        os.lseek(self._fd, self._offset, os.SEEK_SET)

    def read(self, max_items: int) -> list[Any] | None:
        lines, taken_bytes = self._chunk.take(max_items)
        while len(lines) < max_items and self._fill(wait=not lines):
            more, more_bytes = self._chunk.take(max_items - len(lines))
            lines += more
            taken_bytes += more_bytes
        self._offset += taken_bytes
        if lines:
            return lines
        if self._error is not None:
            raise self._error
        return None if self._ended else []

    def _fill(self, *, wait: bool) -> bool:
        """Get more lines, of what is there now. False: there are none; an error waits until all before it was read."""
        try:
            return self._error is None and self._read_lines(wait)
        except SourceError as error:
            self._error = error
            return bool(self._chunk)

    def _read_lines(self, wait: bool) -> bool:
        while not self._ended:
            read = self._read_bytes(wait)
            if read is None:
                return False
            if not read:
                self._ended = True
                self._chunk = _Lines(self._join(b""), newline_at_end=False)
                return True
            self._end += len(read)
            head, newline, tail = read.rpartition(b"\n")
            if newline:
                self._chunk = _Lines(self._join(head) + b"\n")
            if tail:
                self._begin_line(tail)
            if newline:
                return True
        return False

    def _read_bytes(self, wait: bool) -> bytes | None:
        """Some bytes, b"" at the end, or None if there are none just now."""
        wait_ms = LONGEST_WAIT_MS if wait and self.may_block else 0
        try:
            return os.read(self._fd, CHUNK_BYTES) if self._poll.poll(wait_ms) else None
        except BlockingIOError:
            return None
        except OSError as error:
            raise SourceError(f"standard input (descriptor {self._fd}) cannot be read: {error}") from error

    def _begin_line(self, tail: bytes) -> None:
        self._begun.append(tail)
        self._begun_bytes += len(tail)
        if self._begun_bytes > self._max_line_bytes:
            raise SourceError(
                f"standard input has a line of more than {self._max_line_bytes} bytes, after byte "
                f"{self._end - self._begun_bytes}: is it text? If so, raise max_line_bytes: "
                "Producer('pipe', max_line_bytes=...)"
            )

    def _join(self, head: bytes) -> bytes:
        """The line begun before, and what follows."""
        joined = b"".join([*self._begun, head])
        self._begun, self._begun_bytes = [], 0
        return joined

    def position(self) -> int:
        return self._offset

    def fileno(self) -> int:
        return self._fd


class _Lines:
    """A chunk of whole lines, split and decoded at once, and taken in parts."""

    def __init__(self, chunk: bytes, *, newline_at_end: bool = True) -> None:
        text = chunk.decode("utf-8", "surrogateescape")
        self._lines = text.split("\n")
        if newline_at_end or not text:
            self._lines.pop()
        self._at = 0
        self._missing_newline = 0 if newline_at_end else 1
        # One byte per character lets lengths be counted on the text; otherwise on the bytes.
        self._sized: list[Any] = self._lines if len(text) == len(chunk) else chunk.split(b"\n")

    def __len__(self) -> int:
        return len(self._lines) - self._at

    def take(self, max_lines: int) -> tuple[list[str], int]:
        """Up to so many lines, and how many bytes they had with their newlines."""
        start = self._at
        self._at = end = min(start + max_lines, len(self._lines))
        if start == end:
            return [], 0
        size_bytes = sum(map(len, self._sized[start:end])) + end - start
        if end == len(self._lines):
            size_bytes -= self._missing_newline
        return self._lines[start:end], size_bytes
