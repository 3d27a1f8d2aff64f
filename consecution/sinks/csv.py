"""Rows in a CSV file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from typing import Any

from consecution.delimiters import check_delimiter
from consecution.errors import UsageError
from consecution.sinks.file import FileSink
from consecution.sinks.rows import Row, Shape, check_names, shape_of


class Csv(FileSink):
    """Appends each item as a row: a dict, a dataclass, a named tuple, or a tuple with ``columns``.

    Columns are those of the first row, or ``columns``; a row that lacks one of a dict's leaves it empty, one with a
    column too many fails alone. Each file begins with the names of the columns, unless ``header`` is False or the
    file held something before; that something must then begin with the same names. Quoting as in Python's
    `csv` module, in UTF-8, lines end with a newline. None becomes nothing, everything else its ``str``.

    What is promised at which robustness, rotation and compression: see
    `consecution.sinks.file.FileSink`.
    """

    def __init__(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        columns: Sequence[str] | None = None,
        header: bool = True,
        delimiter: str = ",",
        **kwargs: Any,
    ) -> None:
        super().__init__(name, path, **kwargs)
        self.columns = check_names("columns", columns)
        self.header = header
        self.delimiter = check_delimiter(delimiter, f"{self}: ")

    def _forget(self) -> None:
        super()._forget()
        self._shape: Shape | None = None
        self._found_line = b""

    def encode(self, items: list[Any]) -> bytes:
        shape = self._shape
        if shape is None:
            known = self.columns if self.learned is None else tuple(self.learned)
            shape = shape_of(items[0], known, str(self))
            self._check_found(shape)
        content = self._lines(list(shape.rows_of(items)))
        self._shape, self.learned = shape, list(shape.columns)
        return content

    def _lines(self, rows: list[Row]) -> bytes:
        text = self._text_of(rows, "\n")
        if "\r" in text:
            # Before Python 3.13 the csv module quotes a carriage return only where lines end with one.
            text = "".join(self._text_of([row], "\r\n")[:-2] + "\n" for row in rows)
        return text.encode("utf-8", "surrogateescape")

    def _text_of(self, rows: list[Row], end: str) -> str:
        text = io.StringIO()
        csv.writer(text, delimiter=self.delimiter, lineterminator=end).writerows(rows)
        return text.getvalue()

    def beginning(self) -> bytes:
        return self._lines([self.learned]) if self.header else b""

    # -- what the file held before -----------------------------------------------------------------

    def found(self, size_bytes: int) -> None:
        self.end_line()
        if self._compress is None:
            self._found_line = os.pread(self._fd, 64 * 1024, 0).split(b"\n", 1)[0] + b"\n"

    def _check_found(self, shape: Shape) -> None:
        """Rows under the names of other columns would be read as something else."""
        if not self.header or not self._found_line:
            return
        expected = self._lines([shape.columns])
        if self._found_line.rstrip(b"\r\n") != expected.rstrip(b"\n"):
            raise UsageError(
                f"{self}: {self.path} begins with {self._found_line.rstrip()!r}; expected the columns "
                f"{expected.rstrip()!r}: choose another path, or give the columns it has (or header=False)"
            )
