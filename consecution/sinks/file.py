"""What all sinks that append to files share. The rules this file keeps:

1. ``write`` only encodes. ``flush`` writes, and what it returns enters the commit that says that the items were
   applied. The file, and the folder where the name is new, are synced before (``sync="power"``).
2. So after a crash a file is as long as was committed, or longer: then it is cut. One that is shorter, or
   that has other bytes where it ended, is not the file that was committed to: that stops with an error.
3. With rotation a file is written as ``NAME.part``. It gets its name after the commit that says that it is complete,
   so what stands under a final name is committed and does not change any more. A crash between that commit and
   the new name is made up for at the next start.
4. Where one file ends and the next begins depends on the items (and, with ``rotate_s``, on the clock), not on how they
   came in frames and commits: after crashes the files are the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consecution.errors import DamagedStoreError, UsageError, WorldError, reason_of
from consecution.own_descriptors import give_back, keep_from_children
from consecution.protocol.values import BatchId
from consecution.sink import AppendSink, refuse_unknown
from consecution.sinks.compression import PROGRAMS, Compress, check_suffix, compression_of, last_byte_of
from consecution.sinks.rotation import FileNames, RotationLimits

LOCK_WAIT_S = 5.0
"""How long a file is waited for that another process holds; one that was killed lets go of it."""
TAIL_BYTES = 1024
"""So much before its end is compared when a file is opened again."""
STREAMS = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")
"""Names that stand for another file in each process: what an earlier one wrote there cannot be cut."""


@dataclass(slots=True)
class _Part:
    """One file: what of it is on disk, and what waits for the next flush."""

    number: int
    length: int = 0
    tail: bytes = b""
    items: int = 0
    size_bytes: int = 0
    """Before compression, what waits included."""
    started_s: float | None = None
    waiting: list[bytes] = field(default_factory=list)

    def grown(self, content: bytes) -> None:
        """So much more is on disk."""
        self.length += len(content)
        self.tail = (self.tail + content)[-TAIL_BYTES:]
        self.waiting.clear()


class FileSink(AppendSink):
    """Appends items to a file, or to one file after another. Inherit from it and define `encode`.

    **In ``robust``** each item is in the file once, whatever died: the file's length is part of the commit that says
    that the items were applied, and what a crash left behind it is cut off at the next start. The file belongs to
    the sink as long as its state directory lives: what others append to it between two runs is cut off, too.
    What it held before the first run, or before one with ``fresh=True``, is kept, and appended to. A full disk ends
    the run with an error; when it is run again, nothing is lost, and nothing there twice.

    **At the other levels**, and in ``consume``, nothing is repeated and nothing cut: each frame is written and, with
    ``sync="power"``, synced, before it counts as done. A write that fails half way is cut off again.

    **What cannot be cut** (a named pipe, ``/dev/stdout``, a terminal) is written to all the same: at least once,
    after a crash the last items again.

    **Rotation.** ``path="out-{number:06}.jsonl"`` makes a file for each number: a new one once it holds
    ``rotate_items`` items or ``rotate_bytes`` bytes (before compression; the item that reaches that is its last), or
    once its first item is ``rotate_s`` seconds old (looked at when something is written, and in ``robust`` in
    between, too). Without any of the three a run makes one file. A file is called ``NAME.part`` until it is complete
    and committed; then it gets its name and never changes again, so others may take it away. The last one is
    complete when the stream ends or the run drains; after an abort or a crash the next run goes on with it. Numbers
    start above those that are there. A ``.part`` that a run without ``robust`` left when it was killed stays as it is.

    **Compression** by suffix: ``.gz``, ``.bz2``, ``.xz``, ``.zst`` (before Python 3.14 with the extra ``zstd``);
    suffixes of other compressions are refused. Each commit ends a compressed piece, so that the file can be cut
    there: at low rates pieces are small, and little is gained. The bytes depend on how items came in commits; what
    they are decompressed to does not. WorldError for a file that is there before the first run and was cut short:
    nothing could be read behind that.

    The folder must exist. One replica only.
    """

    max_replicas = 1
    in_parts = False
    """Whether even a single file is written under another name until it is complete."""

    def __init__(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        rotate_bytes: int | None = None,
        rotate_items: int | None = None,
        rotate_s: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, **kwargs)
        refuse_unknown(self, kwargs)
        self.path = Path(path)
        check_suffix(self.path, str(self))
        self.limits = RotationLimits(rotate_bytes, rotate_items, rotate_s)
        self.limits.check(str(self))
        self.names = FileNames(self.path, in_parts=self.in_parts, sink=str(self))
        if self.limits.any and not self.names.numbered:
            raise UsageError(
                f"{self}: path={str(path)!r}: rotation needs a {{number}} in the file's name, as in "
                f"{self.path.stem + '-{number:06}' + self.path.suffix!r}"
            )
        self.now = time.time
        self._is_open = False
        self._forget()

    def _forget(self) -> None:
        self._fd = -1
        self._fd_number = 0
        self._is_file = True
        self._commits = False
        self._compress: Compress | None = None
        self._parts: list[_Part] = []
        self._last_end: dict[str, Any] | None = None
        self._last_byte: bytes | None = b""
        """Of what the file held before; None where that was cut short."""
        self.learned = None

    # -- what kinds of files differ in -------------------------------------------------------------

    learned: Any = None
    """What the first items have taught, the same for all files: numbers, text, bytes, None, or lists of these."""

    def encode(self, items: list[Any]) -> bytes:
        """The items as bytes, in order. Raises for an item that is wrong, and has then changed nothing."""
        raise NotImplementedError(f"{type(self).__name__} {self.name!r} must define encode(self, items)")

    def beginning(self) -> bytes:
        """What each file begins with. Asked after the first `encode`."""
        return b""

    def found(self, size_bytes: int) -> None:
        """The open file holds something from before this sink's first run."""

    def end_line(self) -> None:
        """End half a line that the open file ends with, so that it spoils no other. For `found`."""
        if self._last_byte not in (b"", b"\n"):
            _write_all(self._fd, self._packed(b"\n"))

    def publish(self, part: Path, final: Path) -> None:
        """``part`` is complete: now there must be ``final``, all at once, and no ``part``."""
        if final.exists():
            raise self._in_the_way(part, final)
        os.rename(part, final)

    def _in_the_way(self, part: Path, final: Path) -> WorldError:
        return WorldError(
            f"{self}: {part} is complete, but there is a file {final} that this sink has not made: move it away, and "
            "run again with the same state directory"
        )

    # -- open and close --------------------------------------------------------------------------

    def open(self) -> None:
        self._forget()
        folder = self.names.folder
        if not folder.is_dir():
            raise UsageError(f"{self}: the folder {folder} does not exist; make it, or choose another path")
        self._compress = compression_of(self.path, str(self))
        if not self.names.in_parts:
            self._is_file = self._can_be_cut()
            self._open_file(_Part(1, length=1))
            self._sync_folder()
        self._is_open = True

    def _can_be_cut(self) -> bool:
        if os.fspath(self.path.absolute()).startswith(STREAMS):
            return False
        return not self.path.exists() or self.path.is_file()

    def _open_file(self, part: _Part) -> int:
        """The descriptor of a part; a new one begins empty, whatever a crash has left under its name."""
        if self._fd >= 0 and self._fd_number == part.number:
            return self._fd
        self._close_file()
        access = os.O_RDWR if self._is_file else os.O_WRONLY
        path = self.names.working(part.number)
        self._fd = os.open(path, access | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._fd_number = part.number
        self._lock()
        if self.names.in_parts and not part.length:
            os.ftruncate(self._fd, 0)
        return self._fd

    def _lock(self) -> None:
        """Where lengths are committed, nobody else may write: they would be cut off, or be taken for ours."""
        if not self._commits or not self._is_file:
            return
        keep_from_children(self._fd)
        give_up_s = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() > give_up_s:
                    raise WorldError(
                        f"{self}: {self.names.working(self._fd_number)} is being written by another sink or run; give "
                        "each its own path, or stop the other one"
                    ) from error
                time.sleep(0.005)

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(give_back(self._fd))
            self._fd = -1

    def _sync_folder(self) -> None:
        """Names must survive a power cut too."""
        if self.sync == "power" and self._is_file:
            folder = os.open(self.names.folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def close(self) -> None:
        self._is_open = False
        self._close_file()
        self._forget()

    # -- where the files end -----------------------------------------------------------------------

    def cut_to(self, end: Any) -> None:
        self._commits = True
        if self._fd >= 0:
            self._lock()
        if end is None:
            self._go_behind()
        elif self._is_file:
            self._restore(end)
        else:
            self._parts = [_Part(1)]

    def _go_behind(self) -> None:
        """Go on behind what is there."""
        part = _Part(self.names.next_free())
        if not self.names.in_parts:
            part.length = part.size_bytes = self._found_length()
            part.tail = self._read_tail(part.length)
        elif not self.names.numbered:
            self._check_nothing_is_there(part.number)
        self._parts = [part]
        self._last_end = self._describe()

    def _found_length(self) -> int:
        if not self._is_file:
            return 0
        size_bytes = os.fstat(self._fd).st_size
        if size_bytes:
            self._check_end(size_bytes)
            self.found(size_bytes)
            if self.sync == "power":
                os.fsync(self._fd)  # Its length is to be committed.
        return os.fstat(self._fd).st_size

    def _check_end(self, size_bytes: int) -> None:
        """WorldError where the file is cut short: nothing could be read behind that."""
        if self._compress is None:
            self._last_byte = os.pread(self._fd, 1, size_bytes - 1)
        elif self._last_byte is not None:  # Else it was looked at, and is asked for again item by item.
            self._last_byte = last_byte_of(self._fd, self.path)
        if self._last_byte is None:
            program = PROGRAMS[self.path.suffix]
            raise WorldError(
                f"{self}: {self.path}, which is to be added to, was expected to end where something compressed ends; "
                f"found {size_bytes} bytes that were cut short, or are damaged, so that nothing could be read behind "
                f"them: move it away, or put what can be read of it in its place ({program} -dc FILE | {program} > "
                "NEW), and run again"
            )

    def _check_nothing_is_there(self, number: int) -> None:
        for path in (self.names.final(number), self.names.working(number)):
            if path.exists():
                raise UsageError(
                    f"{self}: {path} is there already, and a file of this kind cannot be added to: move it away, run "
                    "again with the state directory that it was written with, or put a {number} into the path"
                )

    def _read_tail(self, length: int) -> bytes:
        wanted = min(length, TAIL_BYTES)
        return os.pread(self._fd, wanted, length - wanted) if wanted else b""

    def _describe(self) -> dict[str, Any] | None:
        """Where the files end, as it is committed."""
        if not self._is_file:
            return None
        *complete, part = self._parts
        return {
            "complete": [[done.number, done.length, zlib.crc32(done.tail)] for done in complete],
            "number": part.number,
            "length": part.length,
            "tail": zlib.crc32(part.tail),
            "items": part.items,
            "size_bytes": part.size_bytes,
            "started_s": part.started_s,
            "learned": self.learned,
            "files": [[str(self.names.working(part.number)), part.length] for part in self._parts if part.length],
        }

    def _restore(self, end: dict[str, Any]) -> None:
        """Go on where the last commit was: name what is complete, cut what came after it."""
        self._parts = []
        for number, length, check in end["complete"]:
            self._make_up_for(number, length, check)
        if end["complete"]:
            self._sync_folder()
        part = _Part(end["number"], end["length"], b"", end["items"], end["size_bytes"], end["started_s"])
        self._remove_uncommitted(part)
        if part.length or not self.names.in_parts:
            self._cut(part.number, part.length, end["tail"])
            part.tail = self._read_tail(part.length)
        self.learned = end["learned"]
        self._parts = [part]
        self._last_end = end

    def _make_up_for(self, number: int, length: int, check: int) -> None:
        """A complete file without its name: the crash came between. Is there none, it was taken away already."""
        working = self.names.working(number)
        if working.exists():
            self._cut(number, length, check)
            self._close_file()
            self.publish(working, self.names.final(number))

    def _remove_uncommitted(self, part: _Part) -> None:
        """What a crash has left of parts that were never committed; the last first, so that no gap can hide one."""
        if not self.names.in_parts:
            return
        self._close_file()
        first = last = part.number + 1 if part.length else part.number
        while self.names.numbered and self.names.working(last).exists():
            last += 1
        for number in range(last, first - 1, -1):
            if self.names.numbered or not part.length:
                self.names.working(number).unlink(missing_ok=True)

    def _cut(self, number: int, length: int, check: int) -> None:
        path = self.names.working(number)
        if not path.exists():
            raise self._damaged(path, f"is missing; {length} bytes of it were committed")
        fd = self._open_file(_Part(number, length=1))
        size_bytes = os.fstat(fd).st_size
        if size_bytes < length:
            raise self._damaged(path, f"holds {size_bytes} bytes; {length} were committed")
        if zlib.crc32(self._read_tail(length)) != check:
            raise self._damaged(path, f"was changed: before byte {length} it does not hold what was committed")
        if size_bytes > length:
            os.ftruncate(fd, length)

    def _damaged(self, path: Path, what: str) -> DamagedStoreError:
        return DamagedStoreError(
            f"{self}: the file {path} {what}; put back the file that belongs to this state directory, or start afresh "
            "(fresh=True), which appends to what is there",
            path=str(path),
            record="length",
        )

    # -- writing -----------------------------------------------------------------------------------

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        if not items:
            return
        if not self._parts:
            self._go_behind()
        self._finish_if_old()
        if self._parts[-1].number > 1 and not self.names.numbered:
            raise UsageError(
                f"{self}: {self.path} is complete; put a {{number}} into the path, and there will be another"
            )
        for content, count in self._pieces(items):
            self._take(content, count)

    def _pieces(self, items: list[Any]) -> list[tuple[bytes, int]]:
        """The items encoded, with their number: all at once, or so that files can end where they must."""
        content = self.encode(items)
        part, limits = self._parts[-1], self.limits
        if not limits.reached(part.size_bytes + len(self.beginning()) + len(content), part.items + len(items)):
            return [(content, len(items))]
        if limits.size_bytes is not None:
            return [(self.encode([item]), 1) for item in items]
        assert limits.items is not None
        first = limits.items - part.items
        cuts = [0, *range(first, len(items), limits.items), len(items)]
        return [(self.encode(items[i:j]), j - i) for i, j in itertools.pairwise(cuts)]

    def _take(self, content: bytes, count: int) -> None:
        part = self._parts[-1]
        if not part.size_bytes:
            content = self.beginning() + content
        if part.started_s is None:
            part.started_s = self.now()
        part.waiting.append(content)
        part.size_bytes += len(content)
        part.items += count
        if self.limits.reached(part.size_bytes, part.items):
            self._finish()

    def _finish(self) -> None:
        self._parts.append(_Part(self._parts[-1].number + 1))

    def _finish_if_old(self) -> None:
        if self.flush_due_s() == 0.0:
            self._finish()

    def flush_due_s(self) -> float | None:
        limit_s = self.limits.age_s
        if limit_s is None or not self._parts or self._parts[-1].started_s is None:
            return None
        return max(0.0, self._parts[-1].started_s + limit_s - self.now())

    def flush(self) -> Any:
        if not self._is_open:
            return None
        if not self._parts:
            self._go_behind()
        self._finish_if_old()
        try:
            self._write_out()
        except OSError as error:
            self._take_back()
            raise self._cannot("written", error) from error
        self._last_end = self._describe()
        return self._last_end

    def _write_out(self) -> None:
        new = False
        for part in self._parts:
            if part.waiting:
                new = new or (self.names.in_parts and not part.length)
                self._append(part)
        if new:
            self._sync_folder()

    def _append(self, part: _Part) -> None:
        content = self._packed(b"".join(part.waiting))
        fd = self._open_file(part)
        _write_all(fd, content)
        if self.sync == "power" and self._is_file:
            os.fsync(fd)
        part.grown(content)

    def _packed(self, content: bytes) -> bytes:
        return content if self._compress is None else self._compress(content)

    def _take_back(self) -> None:
        """Go back to where the last flush was: whoever goes on without a restart must not find half of this one."""
        end, self._parts = self._last_end, []
        with contextlib.suppress(OSError, WorldError):
            if end is None:
                self._parts = [_Part(1)]
            else:
                self._restore(end)

    def _cannot(self, what: str, error: OSError) -> WorldError:
        what = f"{self.path} cannot be {what}: {reason_of(error)}"
        return WorldError(
            f"{self}: {what}; mend that (a full disk: make room) and run again: with robustness='robust' and the same "
            "state directory nothing is lost"
        )

    def committed(self) -> None:
        complete = self._parts[:-1]
        if not complete:
            return
        self._close_file()
        try:
            for part in complete:
                self.publish(self.names.working(part.number), self.names.final(part.number))
            # Before the next commit: it will not speak of these files any more.
            self._sync_folder()
        except OSError as error:
            raise self._cannot("completed", error) from error
        del self._parts[:-1]

    def complete(self, *, ended: bool) -> None:
        if not self._is_open or not self._parts or not self._parts[-1].size_bytes:
            return
        if self.names.numbered or (self.names.in_parts and ended):
            self._finish()


def _write_all(fd: int, content: bytes) -> None:
    """One call of the system, unless it takes only a part."""
    written = os.write(fd, content)
    while written < len(content):
        written += os.write(fd, content[written:])
