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
    """Appends one line per item to a file: ``format(item)``, which is ``str`` unless told otherwise.

    At least once: after a crash the lines of the batches that run again are appended again. A write that
    fails half way (a full disk) is cut off again.
    """

    max_replicas = 1

    def __init__(
        self, name: str, path: str | os.PathLike[str], format: Callable[[Any], str] = str, **kwargs: Any
    ) -> None:
        super().__init__(name, **kwargs)
        self.path = Path(path)
        self.format = format
        self._fd = -1

    def open(self) -> None:
        if not self.path.absolute().parent.is_dir():
            raise UsageError(
                f"{self}: the folder {self.path.absolute().parent} does not exist; make it, or choose another path"
            )
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        lines = "\n".join(map(self.format, items)) + "\n"
        content = lines.encode("utf-8", "surrogateescape")
        size_before = os.fstat(self._fd).st_size
        try:
            written = 0
            while written < len(content):
                written += os.write(self._fd, content[written:] if written else content)
            if self.sync == "power":
                os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, size_before)
            raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class JsonLines(TextLines):
    """Appends each item as a line of JSON. An item that JSON cannot hold fails at this node."""

    def __init__(self, name: str, path: str | os.PathLike[str], **kwargs: Any) -> None:
        super().__init__(name, path, format=_to_json, **kwargs)


def _to_json(item: Any) -> str:
    return json.dumps(item, ensure_ascii=False, separators=(",", ":"))
