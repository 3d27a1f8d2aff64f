"""Lines of standard input, as a Unix filter reads them."""

from __future__ import annotations

import os
import select
import stat
from typing import Any

from consecution.errors import SourceError
from consecution.source import Source

CHUNK_BYTES = 1 << 18


class PipeSource(Source):
    """The lines of a file descriptor (standard input), without their newlines, as text.

    Bytes that are no UTF-8 come as surrogates (``errors="surrogateescape"``), so nothing is lost. The
    position is a byte offset: a file is gone on with at that place; a pipe goes on with what comes next.
    """

    in_parent = True

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd
        self._offset = 0
        self._tail = b""
        self._lines: list[bytes] = []
        self._at = 0
        self._ended = False

    def __repr__(self) -> str:
        return f"PipeSource(fd={self._fd})"

    def open(self, position: Any) -> None:
        self._offset = 0 if position is None else int(position)
        try:
            is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
        except OSError as error:
            raise SourceError(
                f"standard input (descriptor {self._fd}) is closed: give the run a file or a pipe to read"
            ) from error
        if position is not None and is_file:
            size_bytes = os.fstat(self._fd).st_size
            if self._offset > size_bytes:
                raise SourceError(
                    f"standard input has {size_bytes} bytes, but {self._offset} of it were taken before: give "
                    "the run the same file again, or start afresh with fresh=True"
                )
            os.lseek(self._fd, self._offset, os.SEEK_SET)
        elif position is None and is_file:
            self._offset = os.lseek(self._fd, 0, os.SEEK_CUR)

    def read(self, max_items: int) -> list[Any] | None:
        if self._at >= len(self._lines):
            self._fill()
        lines = self._lines[self._at : self._at + max_items]
        if not lines:
            return None if self._ended else []
        self._at += len(lines)
        self._offset += sum(map(len, lines)) + len(lines)
        if self._ended and self._at >= len(self._lines) and not self._tail:
            self._offset = min(self._offset, self._end_offset)
        return [line.decode("utf-8", "surrogateescape") for line in lines]

    _end_offset = 0

    def _fill(self) -> None:
        """Read what is there until a line is whole; without ``may_block``, only what is there."""
        while not self._ended:
            if not self.may_block and not select.select([self._fd], [], [], 0)[0]:
                return
            chunk = os.read(self._fd, CHUNK_BYTES)
            if not chunk:
                self._end()
                return
            head, newline, tail = chunk.rpartition(b"\n")
            if newline:
                self._lines = (self._tail + head).split(b"\n")
                self._at = 0
                self._tail = tail
                return
            self._tail += tail

    def _end(self) -> None:
        self._ended = True
        self._lines, self._at = ([self._tail] if self._tail else []), 0
        self._end_offset = self._offset + len(self._tail)
        self._tail = b""

    def position(self) -> int:
        return self._offset

    def fileno(self) -> int:
        return self._fd
