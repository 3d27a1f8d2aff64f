"""One path that is followed: what has come to lie there, file after file.

The rules it keeps:

- A file is known by its inode and by what it begins and ends with, up to where it was read; never by its name.
- Whatever was read is compared again with every read behind it: so a file that was truncated, or written anew, is
  noticed although it may have grown beyond that place since.
- A file that was rotated away is read on before the next one. It is let go when two others have come after it, or
  when it was deleted, and it has been quiet: a program may write to it for a while.
- A file that was rotated away, and read to its end by then, is not missed when it is gone at the next start.
- What was let go is remembered for as long as it lies in the folder: if it was written to since, it is gone on with.
- Files that came and went while nobody looked are found by their names, as rotation gives them, and by their times:
  they were written to after the newest file that was read. When that one was written to counts only as long as it lies
  at the path: what is written late to a file that was rotated away says nothing of those that came after it.
- Until a first file is read, what was beside the path when it began to be followed is old, whoever still writes to it;
  so is what has no later time than all that. Anything else came, and was rotated away, between two looks.
- A file of which nothing was read yet cannot be known again: whenever it was written to, and when its first bytes have
  been read, others are looked for that were copied from it before it was truncated.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from consecution.errors import SourceError
from consecution.source import Rejected
from consecution.sources.content import COMPRESSED, PRINT_BYTES, Content, CutShortError, Print, digest
from consecution.sources.files import why_no_file
from consecution.sources.recorded import TextFile
from consecution.sources.records import Place, RecordFormat
from consecution.telling import warn

QUIET_S = 5.0
"""So long nothing may have come to a file that was rotated away before its last line is taken without its newline."""

MOST_LET_GO = 16
"""So many files that were let go are remembered, for they are part of each position."""

FileId = tuple[int, int]
"""Device and inode."""

_NUMBER = r"[-._]?\d[-._:T\d]*"
_DATE = r"[-._]?\d{4}[-._]?\d\d[-._]?\d\d[-._:T\d]*"
"""What rotation puts behind a name, and what before its suffix: app-2.log may be the log of somebody else."""


@dataclass(frozen=True, slots=True)
class Known:
    """A file that was read before: its inode, the place in it, and its print."""

    inode: int
    place: Any
    content: Print
    was_whole: bool = False
    """It was read to its end, and another one had come after it."""

    @classmethod
    def of(cls, position: Any) -> Known:
        inode, place, mark, head, tail, *was_whole = position
        return cls(inode, place, Print(mark, head, tail), bool(was_whole))

    @property
    def taken_bytes(self) -> int:
        return Place.of(self.place).offset

    def to_position(self) -> list[Any]:
        return [self.inode, self.place, self.content.mark, self.content.head, self.content.tail]


@dataclass(frozen=True, slots=True)
class LetGo:
    """A file that was read to its end, and is not open any more."""

    known: Known
    mtime_ns: int

    @classmethod
    def of(cls, position: Any) -> LetGo:
        *known, mtime_ns = position
        return cls(Known.of(known), mtime_ns)

    def to_position(self) -> list[Any]:
        return [*self.known.to_position(), self.mtime_ns]

    def may_be(self, path: str, id: FileId, mtime_ns: int) -> bool:
        return id[1] == self.known.inode or (path.endswith(COMPRESSED) and self.is_as_it_was(mtime_ns))

    def is_as_it_was(self, mtime_ns: int) -> bool:
        """Compressing it keeps the time, or its seconds."""
        return mtime_ns in (self.mtime_ns, self.mtime_ns - self.mtime_ns % 10**9)


class FollowedFile(TextFile):
    """A file that may grow, but for a compressed one, which is read once."""

    def __init__(self, path: str, form: RecordFormat, max_line_bytes: int, known: Known | None = None) -> None:
        place, content = (None, None) if known is None else (known.place, known.content)
        super().__init__(path, form, max_line_bytes, place, content)
        status = self._content.look()
        self.id: FileId = (status.st_dev, status.st_ino)
        self.mtime_ns = status.st_mtime_ns
        """When it was written to, as far as it was read: nothing that was read is missing from it at that time."""
        self.replaced = False
        """What was read of it is not in it any more."""
        self.deleted = False
        self._size_bytes = status.st_size
        self._grew = True
        self._grew_s = 0.0
        self._position: list[Any] | None = None

    def fill(self) -> bool:
        if self._error is not None:
            raise self._error
        try:
            self._read_on()
        except SourceError as error:
            self._error = error
            if not self._stream:
                raise
        return len(self._stream) > 0

    def _read_on(self) -> None:
        if self.is_compressed:
            self._position = None
            super().fill()
            return
        while not self._stream and not self.replaced:
            status = self._content.look()
            block = self._content.read_behind(self._printer.tail)
            if block is None:
                self.replaced = True
                break
            self.mtime_ns, self._size_bytes = status.st_mtime_ns, status.st_size
            if not block:
                break
            self._position = None
            self._grew = True
            self._printer.feed(block)
            self._stream.feed(block)

    def take(self, max_items: int) -> list[Any]:
        self._position = None
        return super().take(max_items)

    def position(self) -> list[Any]:
        if self._position is None:
            self._position = [self.id[1], *super().position()]
        return self._position

    @property
    def written_ns(self) -> int:
        """When it was written to last, whatever was read of it."""
        return self._content.look().st_mtime_ns

    def was_written_to_unread(self) -> bool:
        """Whether it was written to, or truncated, since this was asked before, and nothing of it was read."""
        if self.was_read:
            return False
        before, self.mtime_ns = self.mtime_ns, self.written_ns
        return self.mtime_ns != before

    @property
    def is_compressed(self) -> bool:
        return self._content.is_compressed

    @property
    def was_read(self) -> bool:
        return self._printer.mark > 0

    @property
    def known(self) -> Known:
        return Known.of(self.position())

    @property
    def unread_bytes(self) -> int:
        """How much is known to be in it, and was not taken."""
        return max(self._size_bytes, self._content.offset) - self._stream.place.offset

    def is_done(self, now_s: float, *, old: bool) -> bool:
        """Whether all was taken, nothing has come for long, and it need not be watched: it is ``old``, or was deleted.

        A line that has begun is taken as it is by then.
        """
        status = self._content.look()
        self.deleted = status.st_nlink == 0
        if self.is_compressed:
            return self._ended and not len(self)
        if self._grew or status.st_size > self._content.offset:
            self._grew, self._grew_s = False, now_s
            return False
        if len(self) or now_s - self._grew_s < QUIET_S or not (old or self.deleted):
            return False
        if self._stream.has_begun_line:
            self._position = None
            self._stream.end()
        return not len(self)


class LostFile:
    """Takes the place of a file that cannot be found any more: it is told of, once."""

    id: FileId | None = None
    replaced = False
    was_read = True

    def __init__(self, known: Known, path: str, problem: str) -> None:
        self._known = known
        self._told: list[Any] = [Rejected(path, SourceError(problem))]

    def __len__(self) -> int:
        return len(self._told)

    def fill(self) -> bool:
        return False

    def take(self, max_items: int) -> list[Any]:
        told, self._told = self._told[:max_items], self._told[max_items:]
        return told

    def position(self) -> list[Any]:
        return self._known.to_position()

    def close(self) -> None:
        pass


Open = Callable[[str, Known | None], FollowedFile]


class Trail:
    """What lies, and has lain, at a path: ``files``, the oldest first.

    ``open_file`` opens one, at the place where it is known; ``followed`` says which files are followed at any path.
    `look` finds what has changed, `take` gives records. SourceError if a file cannot be read. ``before`` are files
    that were there before anything lay at the path; None: all that are beside it now.
    """

    def __init__(
        self, path: str, open_file: Open, followed: Callable[[], set[FileId]], before: set[FileId] | None = None
    ) -> None:
        self.path = path
        self.files: list[FollowedFile | LostFile] = []
        self.quiet = False
        """There was nothing more at the last look."""
        self._open_file = open_file
        self._followed = followed
        self._newest_ns = 0
        """When the newest file that was read was written to, while at the path: what is later is new."""
        self._waits = True
        """None was begun yet: it is the time of the newest one that was rotated away before."""
        self._copied: set[tuple[int, bytes]] = set()
        """What files began with that were truncated: another file that begins so is a copy that was made before."""
        self._let_go: list[LetGo] = []
        self._passed_over: set[FileId] = set()
        """Rotated files that hold nothing new, though by their times they might, as long as nothing newer was read."""
        self._pass_over(before)

    def _pass_over(self, before: set[FileId] | None) -> None:
        """What was rotated away up to now is no concern of this run."""
        old = [(path, id) for path, id in _rotated(self.path) if before is None or id in before]
        self._passed_over = {id for _, id in old}
        self._newest_ns = max((_mtime_ns(path) for path, _ in old), default=1)

    # -- where it stands -------------------------------------------------------------------------

    def position(self) -> list[Any]:
        """Without the files of which nothing was read: by their times they are new again, whatever became of them."""
        begun = [file for file in self.files if isinstance(file, LostFile) or file.was_read]
        let_go = [[known.to_position() for known in self._let_go]] if self._let_go else []
        return [self.path, self._newest_ns, [self._position_of(file) for file in begun], *let_go]

    def _position_of(self, file: FollowedFile | LostFile) -> list[Any]:
        if isinstance(file, LostFile) or file is self.files[-1] or file.is_compressed or file.unread_bytes:
            return file.position()
        return [*file.position(), True]

    def go_on(self, newest_ns: int, positions: list[Any], let_go: Iterable[Any] = ()) -> None:
        """With the files that were followed before: as they are called now, or as what tells what was lost."""
        if newest_ns or positions:
            self._newest_ns, self._waits = newest_ns, False
            self._passed_over.clear()
        self._let_go = [LetGo.of(position) for position in let_go]
        for known in map(Known.of, positions):
            found = self._find(known, self._there_before(known))
            if found is not None:
                self._add(found)
            elif known.was_whole:
                self._note_copies(known)
            else:
                self.files.append(self._lose(known))

    def _there_before(self, known: Known) -> list[str]:
        """Where a file of an earlier life may be, the likeliest first."""
        beside = _paths_beside(self.path)
        with_inode = [path for path in beside if (id := id_of(path)) is not None and id[1] == known.inode]
        others = [self.path, *(path for path, _ in _rotated(self.path))]
        return with_inode + [path for path in others if path in beside and path not in with_inode]

    def _find(self, known: Known, paths: Iterable[str]) -> FollowedFile | None:
        for path in paths:
            try:
                file = self._open_file(path, known)
            except SourceError:
                if os.path.exists(path) and not os.access(path, os.R_OK):
                    raise
                continue  # Another one, or one that is just being compressed.
            if file.id not in self._followed():
                return file
            file.close()
        return None

    def _lose(self, known: Known) -> LostFile:
        self._note_copies(known)
        problem = (
            f"{self.path}, of which {known.taken_bytes} bytes were taken, was rotated away or truncated, and neither "
            f"the file nor a copy of it is in {os.path.dirname(self.path)}: what it had after byte "
            f"{known.taken_bytes}, if anything, is lost to this run, which goes on with what is there now. If you find "
            "it, read its rest in a run of its own, and drop this entry"
        )
        warn("files source: %s", problem)
        return LostFile(known, self.path, problem)

    def _add(self, file: FollowedFile) -> None:
        self.files.append(file)
        self.quiet = False
        if self._waits:
            self._newest_ns, self._waits = file.mtime_ns - 1, False

    # -- what has changed ------------------------------------------------------------------------

    def look(self, now_s: float, there: set[FileId]) -> None:
        """See what lies at the path now; ``there`` are files that are to be followed whatever they are called."""
        self.quiet = False
        current = id_of(self.path)
        newest = self.files[-1] if self.files else None
        if current is None or newest is None or newest.id != current:
            self._catch_up(current)
        elif isinstance(newest, FollowedFile) and newest.was_written_to_unread():
            self._put_behind_copies(newest)
        for place, file in enumerate(list(self.files)):
            if isinstance(file, LostFile) or file.id == current:
                continue
            old = place < len(self.files) - 2 and file.id not in there
            if file.is_done(now_s, old=old):
                self._let_go_of(file)

    def _let_go_of(self, file: FollowedFile) -> None:
        others = [let_go for let_go in self._let_go if let_go.known.inode != file.id[1]]
        self._let_go = [*others, LetGo(file.known, file.written_ns)][-MOST_LET_GO:]
        self.files.remove(file)
        file.close()

    def _catch_up(self, current: FileId | None) -> None:
        """Go on with the files that came after the newest one, and with the one that is there now.

        Where names change meanwhile, the rest is left to the next look.
        """
        missed = self._missed()
        if missed is None or not all(self._begin(path, id, known) for path, id, known in missed if id != current):
            return
        self._copied.clear()
        if current is not None and current not in self._followed():
            self._begin(self.path, current)

    def _begin(self, path: str, id: FileId, known: Known | None = None) -> bool:
        """Follow this file from its beginning, or from where it is known. False: it is not there any more."""
        try:
            file = self._open_file(path, known)
        except SourceError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return False
            if known is not None:  # Another one, which has got the inode of the one that was let go.
                return self._begin(path, id)
            raise
        if file.id != id:
            file.close()
            return False
        self._add(file)
        return True

    def _put_behind_copies(self, file: FollowedFile) -> bool:
        """Read what was copied from a file, before it was truncated, ahead of it; nothing may have been taken of it.

        False: there are no such copies.
        """
        if self._missed() == []:
            return False
        self.files.remove(file)
        file.close()
        self._catch_up(id_of(self.path))
        return True

    def _missed(self) -> list[tuple[str, FileId, Known | None]] | None:
        """The later files that were rotated away before anybody saw them, oldest first; None: they are just moved.

        With them come those that were let go, and were written to since, with what is known of them.
        """
        found, followed, old = [], self._followed(), []
        rotated, there = _rotated(self.path), []
        self._passed_over &= {id for _, id in rotated}
        try:
            for path, id in rotated:
                mtime_ns = os.stat(path).st_mtime_ns
                let_go = self._let_go_before(path, id, mtime_ns)
                if let_go is not None:
                    there.append(let_go)
                if id in followed:
                    continue
                is_old = mtime_ns <= self._newest_ns and not (let_go and self._was_written_to(path, mtime_ns, let_go))
                if is_old or id in self._passed_over:
                    old.append((id, mtime_ns))
                    continue
                if self._is_compressed_from_followed(path, mtime_ns) or (let_go and let_go.is_as_it_was(mtime_ns)):
                    continue
                if self._is_copy(path):
                    self._passed_over.add(id)
                else:
                    found.append((mtime_ns, path, id, None if let_go is None else let_go.known))
        except FileNotFoundError:
            return None
        except SourceError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        if _rotated(self.path) != rotated:
            return None
        self._let_go = [let_go for let_go in self._let_go if let_go in there]
        if self._waits:  # Whoever still writes to them, and whatever comes first, they stay old.
            self._passed_over |= {id for id, _ in old}
            if not found:
                self._newest_ns = max([self._newest_ns, *(mtime_ns for _, mtime_ns in old)])
        return [(path, id, known) for _, path, id, known in sorted(found, key=lambda file: file[:2])]

    def _let_go_before(self, path: str, id: FileId, mtime_ns: int) -> LetGo | None:
        """What is known of a file that was let go. An inode may belong to another file by now, so times come first."""
        likely = [let_go for let_go in self._let_go if let_go.may_be(path, id, mtime_ns)]
        return max(likely, key=lambda let_go: let_go.is_as_it_was(mtime_ns), default=None)

    def _was_written_to(self, path: str, mtime_ns: int, let_go: LetGo) -> bool:
        """Whether it is that file, and has grown, though what was read of the newest file may be newer still."""
        if mtime_ns <= let_go.mtime_ns or path.endswith(COMPRESSED):
            return False
        file = self._find(let_go.known, [path])
        if file is not None:
            file.close()
        return file is not None

    def _is_compressed_from_followed(self, path: str, mtime_ns: int) -> bool:
        """Compressing keeps the time, or its seconds; what is followed is read to its end where it is open."""
        if not path.endswith(COMPRESSED):
            return False
        written = [file.written_ns for file in self.files if isinstance(file, FollowedFile)]
        return any(mtime_ns in (ns, ns - ns % 10**9) for ns in written)

    def _note_copies(self, known: Known) -> None:
        self._copied.add((min(PRINT_BYTES, known.content.mark), known.content.head))

    def _is_copy(self, path: str) -> bool:
        if not self._copied:
            return False
        try:
            with Content(path) as content:
                head = content.read_exactly(PRINT_BYTES)
        except CutShortError:
            return False
        return any(digest(head[:count]) == known for count, known in self._copied)

    # -- reading ---------------------------------------------------------------------------------

    def take(self, max_items: int) -> list[Any]:
        """Records of the oldest file that has any; [] if there are none before the next look."""
        for file in list(self.files):
            if not len(file) and not self._read_on(file):
                return self.take(max_items)
            if len(file):
                found = file.take(max_items)
                if isinstance(file, LostFile):
                    self.files.remove(file)
                return found
            if file.replaced:
                assert isinstance(file, FollowedFile)
                self._start_over(file)
                return self.take(max_items)
        self.quiet = True
        return []

    def _read_on(self, file: FollowedFile | LostFile) -> bool:
        """Get more of it, if there is more. False: what was copied from it before comes first."""
        was_read = file.was_read
        file.fill()
        if isinstance(file, FollowedFile) and file.was_read and file.id == id_of(self.path):
            if not was_read and self._put_behind_copies(file):
                return False
            self._newest_ns = max(self._newest_ns, file.mtime_ns)
            self._passed_over.clear()
        return True

    def _start_over(self, file: FollowedFile) -> None:
        """A file was truncated, or written anew: go on in the copy that was made of it, if there is one, and in it."""
        known, unread_bytes = file.known, file.unread_bytes
        place = self.files.index(file)
        self.files.remove(file)
        file.close()
        copy = self._find(known, [path for path, _ in _rotated(self.path)])
        if copy is not None:
            self.files.insert(place, copy)
        elif unread_bytes:
            self.files.insert(place, self._lose(known))
        else:
            self._note_copies(known)
            warn(
                "files source: %s was truncated: it had been taken up to byte %d, and is read from its beginning",
                self.path,
                known.taken_bytes,
            )
        self._catch_up(id_of(self.path))

    def close(self) -> None:
        for file in self.files:
            file.close()
        self.files = []


# -- what is in the folder -------------------------------------------------------------------------


def _mtime_ns(path: str) -> int:
    """0 for a file that is not there any more."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def id_of(path: str) -> FileId | None:
    """None: no file is there, just now. SourceError for what is there and is no file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SourceError(f"{path} cannot be looked at: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(why_no_file(path))
    return status.st_dev, status.st_ino


def _paths_beside(path: str) -> list[str]:
    """The files of the folder that the path is in."""
    folder = os.path.dirname(path)
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.path for entry in entries if entry.is_file())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SourceError(f"{folder} cannot be searched: {error.strerror}") from error


def paths_before(path: str) -> list[str]:
    """Where a file may have lain that was rotated to this path by a number, or a date, behind its name; longest first.

    Names may end with a number themselves.
    """
    folder, name = os.path.split(path)
    ends = [end for end in range(len(name) - 1, 0, -1) if re.fullmatch(_NUMBER, name[end:])]
    return [os.path.join(folder, name[:end]) for end in ends]


def _rotated(path: str) -> list[tuple[str, FileId]]:
    """What is called as a file that was rotated away from the path: app.log.1, app.log-20260101.gz, ...

    What lies there compressed, and not compressed, is still being compressed.
    """
    name = os.path.basename(path)
    stem, suffix = os.path.splitext(name)
    compressed = "|".join(map(re.escape, COMPRESSED))
    names = f"(?:{re.escape(name)}{_NUMBER}|{re.escape(stem)}{_DATE}{re.escape(suffix)})(?:{compressed})?"
    found = [beside for beside in _paths_beside(path) if re.fullmatch(names, os.path.basename(beside))]
    begun = {plain + suffix for plain in found for suffix in COMPRESSED}
    return [(beside, id) for beside in found if beside not in begun and (id := id_of(beside)) is not None]
