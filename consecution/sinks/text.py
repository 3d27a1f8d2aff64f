"""Lines appended to a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from consecution.errors import UsageError
from consecution.protocol.values import BatchId
from consecution.sink import Sink


class TextLines(Sink):
    """Appends one line per item to a file: ``format(item)``, which is ``str`` unless told otherwise
    (a text that holds newlines makes several).

    At least once: after a crash the lines of the batches that run again are appended again. A write that
    fails half way (a full disk) is cut off again; half a line that a crash has left is ended when the
    file is opened, so that it spoils no other line. The folder must exist; the file need not. One replica only.

    With ``sync="power"`` every write is followed by an fsync. What is no regular file (``/dev/stdout``, a
    named pipe) is written to all the same, without it.
    """

    max_replicas = 1

    def __init__(
        self, name: str, path: str | os.PathLike[str], format: Callable[[Any], str] = str, **kwargs: Any
    ) -> None:
        super().__init__(name, **kwargs)
        self.path = Path(path)
        self.format = format
        self._fd = -1
        self._is_file = False

    def open(self) -> None:
        folder = self.path.absolute().parent
        if not folder.is_dir():
            raise UsageError(f"{self}: the folder {folder} does not exist; make it, or choose another path")
        self._is_file = not self.path.exists() or self.path.is_file()
        access = os.O_RDWR if self._is_file else os.O_WRONLY
        self._fd = os.open(self.path, access | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if self._is_file:
            self._end_half_line()
            self._sync_folder(folder)

    def _end_half_line(self) -> None:
        size_bytes = os.fstat(self._fd).st_size
        if size_bytes and os.pread(self._fd, 1, size_bytes - 1) != b"\n":
            os.write(self._fd, b"\n")

    def _sync_folder(self, folder: Path) -> None:
        """A new file's name must survive a power cut too."""
        if self.sync == "power":
            folder_fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder_fd)
            finally:
                os.close(folder_fd)

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        if not items:
            return
        content = ("\n".join(map(self.format, items)) + "\n").encode("utf-8", "surrogateescape")
        size_before = os.fstat(self._fd).st_size
        try:
            _write_all(self._fd, content)
            if self.sync == "power" and self._is_file:
                os.fsync(self._fd)
        except OSError:
            if self._is_file:
                os.ftruncate(self._fd, size_before)
            raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class JsonLines(TextLines):
    """Appends each item as a line of JSON. An item that JSON cannot hold, NaN included, fails at this node.

    Named tuples and tuples become arrays, keys that are no text become text, as `json.dumps` has it.
    """

    def __init__(self, name: str, path: str | os.PathLike[str], **kwargs: Any) -> None:
        super().__init__(name, path, format=_to_json, **kwargs)


_to_json: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _write_all(fd: int, content: bytes) -> None:
    """One call of the system, unless it takes only a part."""
    written = os.write(fd, content)
    while written < len(content):
        written += os.write(fd, content[written:])
