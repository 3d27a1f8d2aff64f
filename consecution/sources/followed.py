"""Files that are followed as they grow, and as they are rotated."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
import time
from collections.abc import Sequence
from typing import Any

from consecution.errors import SourceError, UsageError
from consecution.source import Source
from consecution.sources.alarm import Alarm
from consecution.sources.content import COMPRESSED
from consecution.sources.files import FilesSource, Path, absolute, is_pattern
from consecution.sources.records import MOST_LINE_BYTES, RecordFormat
from consecution.sources.trail import FileId, FollowedFile, Known, Trail, id_of, paths_before
from consecution.telling import warn

POLL_S = 0.25
LONGEST_READ_S = 0.25
"""With ``may_block``: how long a read waits before it lets the caller look at other things."""


def make_files(
    paths: Path | Sequence[Path],
    format: str = "lines",
    *,
    encoding: str = "utf-8",
    delimiter: str = ",",
    columns: Sequence[str] | None = None,
    header: bool = True,
    max_line_bytes: int = MOST_LINE_BYTES,
    follow: bool = False,
    poll_s: float | None = None,
) -> Source:
    """What ``Producer("files", ...)`` makes: the files as they are, or with ``follow`` for as long as they grow."""
    options: dict[str, Any] = {
        "encoding": encoding,
        "delimiter": delimiter,
        "columns": columns,
        "header": header,
        "max_line_bytes": max_line_bytes,
    }
    if follow:
        return FollowedFilesSource(paths, format, **options, poll_s=POLL_S if poll_s is None else poll_s)
    if poll_s is not None:
        raise UsageError(f"the files source: poll_s={poll_s!r} goes with follow=True; leave it out")
    return FilesSource(paths, format, **options)


class FollowedFilesSource(Source):
    """The records of files that grow, as they come: what ``tail -F`` does, with every line once. It never ends.

    ``paths`` are one or several, each a path or a pattern. A path where no file lies is waited for; what comes to match
    a pattern later is read from its beginning, too. Every ``poll_s`` seconds it looks for what is new. A file that was
    renamed is read to its end before the one that took its place; one that was copied and truncated is read to its
    end in the copy, if that lies in the same folder. A line is given once its newline has come.

    ``format`` and its options are those of `consecution.sources.records.RecordFormat`. Compressed files do not grow:
    a pattern leaves them out, to name one is a UsageError; but the rest of a file that was compressed when it was
    rotated away is read there.

    Of each file lines keep their order, and so do the files at a path; several paths take turns. The position is, for
    each file that is followed, its inode, the place and a print of what was read (about 70 bytes), and the same for the
    last ones that were let go. What is lost (a file that was deleted before it was read to its end) is `Rejected` in
    its place, and logged.

    SourceError from both if a file cannot be read, or a line is too long.
    """

    rejects = True

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
        poll_s: float = POLL_S,
    ) -> None:
        self._paths = absolute(paths)
        for path in self._paths:
            if path.endswith(COMPRESSED) and not is_pattern(path):
                raise UsageError(f"follow=True: {path} is compressed, and cannot grow: leave follow out")
        if format == "parquet":
            raise UsageError("follow=True: a Parquet file cannot grow; expected format 'lines', 'ndjson' or 'csv'")
        if isinstance(poll_s, bool) or not isinstance(poll_s, int | float) or not poll_s > 0:
            raise UsageError(f"the files source: poll_s={poll_s!r}: expected a number of seconds above 0")
        self._form = RecordFormat(format, encoding=encoding, delimiter=delimiter, columns=columns, header=header)
        self._max_line_bytes = max_line_bytes
        self._poll_s = poll_s
        self._alarm: Alarm | None = None
        self._trails: dict[str, Trail] = {}
        self._before: set[FileId] = set()
        """What was beside the files of the patterns at the last look: none of them is a file that came since."""
        self._turn = 0
        self._due_s = 0.0
        self._error: SourceError | None = None

    def __repr__(self) -> str:
        return f"FollowedFilesSource({', '.join(self._paths)})"

    # -- which files -----------------------------------------------------------------------------

    def open(self, position: Any) -> None:
        self.close()
        self._error, self._due_s, self._turn = None, 0.0, 0
        for path, newest_ns, *positions in position or ():
            if self._is_asked_for(path):
                self._follow(path).go_on(newest_ns, *positions)
        for path in self._paths:
            if not is_pattern(path) and id_of(path) is None:
                warn("files source: no file is at %s: waiting for one", path)
        self._follow_named()
        self._before = set(self._find_beside().values())
        if not self.may_block:
            self._alarm = Alarm(time.monotonic)

    @property
    def _patterns(self) -> list[str]:
        """A path with letters as patterns have is none, if a file has lain there."""
        return [path for path in self._paths if path not in self._trails and is_pattern(path)]

    def _is_asked_for(self, path: str) -> bool:
        """Whether it is among the paths, or matches a pattern: the paths may be others than in the last run."""
        return path in self._paths or any(_matches(path, given) for given in self._patterns)

    def _follow_named(self) -> None:
        for path in self._paths:
            if not is_pattern(path) and path not in self._trails:
                self._follow(path)

    def _follow(self, path: str, before: set[FileId] | None = None) -> Trail:
        trail = self._trails[path] = Trail(path, self._open_file, self._followed, before)
        return trail

    def _open_file(self, path: str, known: Known | None) -> FollowedFile:
        return FollowedFile(path, self._form, self._max_line_bytes, known)

    def _followed(self) -> set[FileId]:
        return {file.id for trail in self._trails.values() for file in trail.files if file.id is not None}

    def _look(self, now_s: float) -> None:
        beside = self._find_beside()
        matching = self._find_matching()
        there = set(matching.values())
        self._follow_named()
        for path, trail in list(self._trails.items()):
            trail.look(now_s, there)
            if not trail.files and path not in self._paths:
                del self._trails[path]
        followed = self._followed()
        before = self._before | there
        for path, id in (matching | self._find_missed(beside, matching)).items():
            if id not in followed and path not in self._trails:
                self._follow(path, before - {id}).look(now_s, there)
        self._before = set(beside.values())

    def _find_missed(self, beside: dict[str, FileId], matching: dict[str, FileId]) -> dict[str, FileId]:
        """Paths that match a pattern where a file has come and gone since the last look, and that file."""
        found = {}
        for rotated, id in beside.items():
            if id not in self._before and not rotated.endswith(COMPRESSED):
                path = next(filter(self._is_asked_for, paths_before(rotated)), None)
                if path is not None and path not in matching:
                    found[path] = id
        return found

    def _find_beside(self) -> dict[str, FileId]:
        """What is in the folders of the patterns, and may be a file that was rotated: it has a digit in its name."""
        found: dict[str, FileId] = {}
        for pattern in self._patterns:
            beside = os.path.join(os.path.dirname(pattern), "*[0-9]*")
            for path in glob.iglob(beside, recursive=True, include_hidden=True):
                is_followed = _matches(path, pattern) and not path.endswith(COMPRESSED)
                if not is_followed and (id := _id_of_file(path)) is not None:
                    found[path] = id
        return found

    def _find_matching(self) -> dict[str, FileId]:
        """What is there for the patterns."""
        found: dict[str, FileId] = {}
        for pattern in self._patterns:
            for path in sorted(glob.glob(pattern, recursive=True)):
                if path not in found and not path.endswith(COMPRESSED) and (id := _id_of_file(path)) is not None:
                    found[path] = id
        return found

    # -- reading ---------------------------------------------------------------------------------

    def read(self, max_items: int) -> list[Any] | None:
        records = self._read(max_items)
        if not records and self._error is None and self.may_block:
            time.sleep(min(LONGEST_READ_S, max(0.0, self._due_s - time.monotonic())))
            records = self._read(max_items)
        if not records and self._error is not None:
            raise self._error
        if not records and self._alarm is not None:
            self._alarm.ring_at(self._due_s)
        return records

    def _read(self, max_items: int) -> list[Any]:
        """What is there; an error waits until all before it was taken."""
        records: list[Any] = []
        try:
            if self._error is None:
                self._look_again()
                self._take(max_items, records)
        except SourceError as error:
            self._error = error
        return records

    def _look_again(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self._due_s = now_s + self._poll_s
            self._look(now_s)

    def _take(self, max_items: int, records: list[Any]) -> None:
        """From one path after the other, as long as any has more; whoever was last is last in the next turn."""
        trails = list(self._trails.values())
        waiting = [trail for trail in trails[self._turn :] + trails[: self._turn] if not trail.quiet]
        for trail in waiting:
            while len(records) < max_items and not trail.quiet:
                records += trail.take(max_items - len(records))
            if len(records) >= max_items:
                self._turn = (trails.index(trail) + 1) % len(trails)
                return

    def position(self) -> Any:
        return [trail.position() for trail in self._trails.values()]

    def fileno(self) -> int | None:
        return None if self._alarm is None else self._alarm.fileno()

    def close(self) -> None:
        for trail in self._trails.values():
            trail.close()
        self._trails = {}
        if self._alarm is not None:
            self._alarm.close()
            self._alarm = None


def _matches(path: str, pattern: str) -> bool:
    """As `glob` does, but no file needs to lie at the path: ``*`` is no folder, and neither begins with a dot."""
    if path.count("/.") > pattern.count("/.") or ("**" not in pattern and path.count("/") != pattern.count("/")):
        return False
    return fnmatch.fnmatchcase(path, pattern.replace("**/", "*"))


def _id_of_file(path: str) -> FileId | None:
    """None for what is no file, or cannot be looked at."""
    with contextlib.suppress(SourceError):
        return id_of(path)
    return None
