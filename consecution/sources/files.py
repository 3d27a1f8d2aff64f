"""Files, one after the other."""

from __future__ import annotations

import copy
import glob
import itertools
import os
import zlib
from collections.abc import Sequence
from typing import Any

import msgpack

from consecution.compressions import is_unknown
from consecution.errors import SourceError, UsageError
from consecution.source import Note, Source
from consecution.sources.content import Print, digest
from consecution.sources.recorded import ParquetFile, RecordFile, TextFile
from consecution.sources.records import FORMATS, MOST_LINE_BYTES, RecordFormat

Path = str | os.PathLike[str]

NAMES = "surrogateescape"
"""What Python makes of names that are no UTF-8; a note keeps their bytes."""


class FilesSource(Source):
    """The records of files. ``paths`` are one or several, each a path or a pattern (``logs/*.gz``, ``**`` for folders).

    The files are read in the order of the paths, those of a pattern in the order of their names, each once. What is
    there at the start is read: the list is kept for later runs, and what comes later is not among them.
    ``format`` and its options are those of `consecution.sources.records.RecordFormat`, or "parquet": rows become
    dicts, ``columns`` chooses, and pyarrow is needed. What ends with ``.gz``, ``.bz2``, ``.xz`` or ``.zst`` is
    decompressed on the way.

    The position is the file and a place in it (decompressed bytes; in Parquet, row group and row), with a print
    of what was read, so that another file of that name is noticed.

    SourceError from ``open`` if there is no such file; from both, if it cannot be read, has become shorter, was
    replaced, or is cut short. What came before is given first.
    """

    worth_splitting = True

    def __init__(
        self,
        paths: Path | Sequence[Path],
        format: str = "lines",
        *,
        encoding: str = "utf-8",
        delimiter: str = ",",
        columns: Sequence[str] | None = None,
        header: bool = True,
        max_line_bytes: int = MOST_LINE_BYTES,
    ) -> None:
        self._paths = absolute(paths)
        self._columns = columns
        self._form: RecordFormat | None = None
        if format != "parquet":
            if format not in FORMATS:
                known = ", ".join(map(repr, (*FORMATS, "parquet")))
                raise UsageError(f"format={format!r}: expected one of {known}")
            self._form = RecordFormat(format, encoding=encoding, delimiter=delimiter, columns=columns, header=header)
            self.rejects = self._form.rejects
        elif delimiter != "," or not header or encoding != "utf-8":
            raise UsageError("format='parquet': encoding, delimiter and header go with text; leave them out")
        self._max_line_bytes = max_line_bytes
        self._share, self._shares = 0, 1
        self._recalled: list[str] | None = None
        self._noted = False
        self._files: list[str] = []
        self._behind: list[int] = []
        self._names = b""
        self._at = 0
        self._file: RecordFile | None = None
        self._is_done = False
        """All of the file was taken, although it is still open."""
        self._error: SourceError | None = None

    def __repr__(self) -> str:
        return f"FilesSource({', '.join(self._paths)})"

    # -- which files -----------------------------------------------------------------------------

    def recall(self, notes: Sequence[tuple[int, bytes]]) -> None:
        self._recalled = msgpack.unpackb(zlib.decompress(notes[-1][1]), unicode_errors=NAMES)

    def take_note(self, seq: int) -> Note | None:
        if self._noted:
            return None
        self._noted = True
        return Note(zlib.compress(msgpack.packb(self._files, unicode_errors=NAMES)))

    def open(self, position: Any) -> None:
        self.close()
        recalled, self._recalled = self._recalled, None
        self._error, self._is_done = None, False
        self._noted = recalled is not None
        self._files = recalled if recalled is not None and position is not None else self._find(position)
        self._behind = list(itertools.accumulate(map(_size_bytes, self._files), initial=0))
        self._names = digest("\0".join(self._files).encode("utf-8", NAMES))
        if position is None:
            self._at, self._noted = 0, False
            self._check_compressions()
            return
        count, names, self._at, *place = position
        if names != self._names:
            raise SourceError(
                f"{self!r} had {count} files at the start, and now there are {len(self._files)}, or others: give the "
                "run the same files again, or start afresh with fresh=True"
            )
        if place:
            begun, mark, head, tail, *is_done = place
            self._go_on(self._files[self._at], begun, Print(mark, head, tail), is_done=bool(is_done))

    def _check_compressions(self) -> None:
        """Refuse what would be read as if it were text; a Parquet file says by itself what it is."""
        for path in self._files if self._form is not None else ():
            suffix = os.path.splitext(path)[1]
            if is_unknown(suffix):
                raise SourceError(
                    f"{path}: expected .gz, .bz2, .xz or .zst, or a suffix that promises no compression; found "
                    f"{suffix}, which would be read as text: decompress it first, rename it, or leave it out of paths"
                )

    def _find(self, position: Any) -> list[str]:
        """The files as they are now; what was there at the start may be gone, if it was read."""
        files = find_files(self._paths, missing_too=position is not None)
        return [
            path
            for path, share in zip(files, self._shares_of(files, self._shares), strict=True)
            if share == self._share
        ]

    def split(self, shares: int) -> list[Source] | None:
        """File by file; a single one is read in one place."""
        if len(self._paths) == 1 and not is_pattern(self._paths[0]):
            return None
        return [self._make_share(share, shares) for share in range(shares)]

    def splits_evenly(self, shares: int) -> bool:
        """By the bytes that are there now: the largest share is no more than midway between an even one and all."""
        files = find_files(self._paths, missing_too=True)
        sizes = [0] * shares
        for path, share in zip(files, self._shares_of(files, shares), strict=True):
            sizes[share] += _size_bytes(path)
        return max(sizes) <= sum(sizes) * (1 + 1 / shares) / 2

    def _make_share(self, share: int, shares: int) -> FilesSource:
        made = copy.copy(self)
        made._share, made._shares = share, shares
        return made

    def _shares_of(self, files: list[str], shares: int) -> list[int]:
        """Files that were named go by turns, those of a pattern by their names: whatever else is there by now."""
        if shares == 1:
            return [0] * len(files)
        named: dict[str, int] = {}
        for place, path in enumerate(path for path in self._paths if not is_pattern(path)):
            named.setdefault(path, place)
        return [(named[path] if path in named else _place_of(path)) % shares for path in files]

    def _go_on(self, path: str, place: Any, known: Print, *, is_done: bool) -> None:
        if not os.path.exists(path):
            if is_done:
                self._at += 1
                return
            raise SourceError(
                f"{path} is gone, and was not read to its end before: put it back, or start afresh with fresh=True"
            )
        self._file = self._open_file(path, place, known)

    def _open_file(self, path: str, place: Any = None, known: Print | None = None) -> RecordFile:
        if self._form is None:
            return ParquetFile(path, self._columns, place, known)
        return TextFile(path, self._form, self._max_line_bytes, place, known)

    # -- reading ---------------------------------------------------------------------------------

    def read(self, max_items: int) -> list[Any] | None:
        records = [] if self._file is None else self._file.take(max_items)
        while len(records) < max_items and self._fill():
            assert self._file is not None
            records += self._file.take(max_items - len(records))
        self._is_done = self._look_whether_done()
        self.read_share = self._look_how_far()
        if records:
            return records
        if self._error is not None:
            raise self._error
        return None

    def _look_whether_done(self) -> bool:
        """Whether the file that is open has no more: by then it may go, and the next batch may be long in coming."""
        if self._file is None or self._error is not None or len(self._file):
            return False
        try:
            return not self._file.fill()
        except SourceError as error:
            self._error = error
            return False

    def _look_how_far(self) -> float:
        """The files that were read, and what was read of the one that is open, of the bytes of all."""
        before, in_all, of_this = self._behind[self._at], self._behind[-1], 0.0
        if self._file is not None:
            of_this = self._file.read_share() * (self._behind[self._at + 1] - before)
        return (before + of_this) / in_all if in_all else 1.0

    def _fill(self) -> bool:
        """Get more, from this file or the next ones. False: there is no more; an error waits until all was taken."""
        try:
            return self._error is None and self._fill_from_files()
        except SourceError as error:
            self._error = error
            return self._file is not None and len(self._file) > 0

    def _fill_from_files(self) -> bool:
        while self._at < len(self._files):
            if self._file is None:
                self._file = self._open_file(self._files[self._at])
            if self._file.fill():
                return True
            self._file.close()
            self._file = None
            self._at += 1
        return False

    def position(self) -> Any:
        place = [] if self._file is None else self._file.position()
        return [len(self._files), self._names, self._at, *place, *([True] if place and self._is_done else [])]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


# -- which files -----------------------------------------------------------------------------------


def absolute(paths: Path | Sequence[Path]) -> list[str]:
    """As they are from here: a worker may be somewhere else."""
    given = list(paths) if isinstance(paths, Sequence) and not isinstance(paths, str) else [paths]
    if not given or not all(isinstance(path, (str, os.PathLike)) for path in given):
        raise UsageError(f"paths={paths!r}: expected a path or pattern, or a list of these")
    return [_absolute(os.fspath(path)) for path in given]


def _absolute(path: str) -> str:
    """A pattern begins with the name of the current folder, which is none, whatever letters it has."""
    found = os.path.abspath(path)
    if not is_pattern(found) or os.path.isabs(path):
        return found
    return os.path.normpath(os.path.join(glob.escape(os.getcwd()), path))


def _place_of(path: str) -> int:
    return int.from_bytes(digest(os.fsencode(path)), "big")


def _size_bytes(path: str) -> int:
    """0 for a file that is not there any more."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def is_pattern(path: str) -> bool:
    return any(letter in path for letter in "*?[") and not os.path.exists(path)


def find_files(paths: Sequence[str], *, missing_too: bool = False) -> list[str]:
    """The files in the order they are to be read, each once. SourceError where there is none, unless they may miss."""
    found: list[str] = []
    for path in paths:
        if is_pattern(path):
            matching = sorted(name for name in glob.iglob(path, recursive=True) if os.path.isfile(name))
            if not (matching or missing_too):
                raise SourceError(f"no file matches {path}: check the pattern")
            found += matching
        elif missing_too or os.path.isfile(path):
            found.append(path)
        else:
            raise SourceError(why_no_file(path))
    return list(dict.fromkeys(found))


def why_no_file(path: str) -> str:
    if os.path.isdir(path):
        return f"{path} is a folder: give a pattern for the files in it, {os.path.join(path, '*')}"
    if os.path.lexists(path):
        return f"{path} is no file that can be read again: Producer('pipe') reads what comes on standard input"
    return f"there is no file {path}: check the path"
