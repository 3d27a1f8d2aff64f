"""Rotation: when a file is complete, and what the files of a sink are called."""

from __future__ import annotations

import os
import re
import string
from dataclasses import dataclass
from pathlib import Path

from consecution.errors import UsageError

FIELD = "{number"
PART = ".part"


@dataclass(frozen=True, slots=True)
class RotationLimits:
    """A file is complete once it has one of these; None: no limit."""

    size_bytes: int | None = None
    items: int | None = None
    age_s: float | None = None

    def check(self, sink: str) -> None:
        """UsageError for a limit that cannot be one."""
        for option, value, kinds in (
            ("rotate_bytes", self.size_bytes, int),
            ("rotate_items", self.items, int),
            ("rotate_s", self.age_s, int | float),
        ):
            if value is not None and (not isinstance(value, kinds) or isinstance(value, bool) or value <= 0):
                raise UsageError(f"{sink}: {option}={value!r}: expected a number above 0, or None for no limit")

    @property
    def any(self) -> bool:
        return (self.size_bytes, self.items, self.age_s) != (None, None, None)

    def reached(self, size_bytes: int, items: int) -> bool:
        """Whether a file that holds so much is complete."""
        if self.items is not None and items >= self.items:
            return True
        return self.size_bytes is not None and size_bytes >= self.size_bytes


class FileNames:
    """The names of a sink's files: one for each number, or one for all.

    ``path`` with a ``{number}`` in its last part, which may have a format as in ``{number:06}``, has a name for
    each number. ``in_parts``: a file is written under its name with ``.part`` behind until it is complete.
    """

    def __init__(self, path: Path, *, in_parts: bool, sink: str) -> None:
        self.path = path
        self.folder = path.absolute().parent
        self.numbered = FIELD in path.name
        self.in_parts = in_parts or self.numbered
        if FIELD in str(path.parent):
            raise UsageError(
                f"{sink}: path={str(path)!r}: {{number}} belongs into the name of the file, not the folder's"
            )
        if self.numbered:
            self._check_pattern(sink)

    def _check_pattern(self, sink: str) -> None:
        try:
            fields = [part for part in string.Formatter().parse(self.path.name) if part[1] is not None]
        except ValueError as error:
            raise self._no_pattern(sink, str(error)) from error
        if [(name, conversion) for _, name, _, conversion in fields] != [("number", None)]:
            raise self._no_pattern(sink, f"found {', '.join(str(name) for _, name, _, _ in fields)}")
        spec = fields[0][2] or ""
        if not re.fullmatch(r"(0\d+)?d?", spec):
            raise self._no_pattern(sink, f"found the format {spec!r}")

    def _no_pattern(self, sink: str, what: str) -> UsageError:
        return UsageError(
            f"{sink}: path={str(self.path)!r}: expected one {{number}}, perhaps with a format as in "
            f"{{number:06}}; {what}; braces that are meant are doubled"
        )

    def final(self, number: int) -> Path:
        """What the file is called when it is complete."""
        return self.folder / (self.path.name.format(number=number) if self.numbered else self.path.name)

    def working(self, number: int) -> Path:
        """What it is called while it is written."""
        final = self.final(number)
        return final.with_name(final.name + PART) if self.in_parts else final

    def next_free(self) -> int:
        """The number above all that are there, complete or not."""
        if not self.numbered:
            return 1
        found = map(self._pattern().fullmatch, os.listdir(self.folder))
        return 1 + max((int(match[1]) for match in found if match), default=0)

    def _pattern(self) -> re.Pattern[str]:
        pattern = ""
        for literal, field, _, _ in string.Formatter().parse(self.path.name):
            pattern += re.escape(literal) + ("" if field is None else r"0*(\d+)")
        return re.compile(f"{pattern}({re.escape(PART)})?")
