"""A network source that is read by a thread, as an engine would read it, while a test plays the clients."""

from __future__ import annotations

import select
import threading
from types import TracebackType
from typing import Any

from consecution.report import Failure

DEADLINE_S = 60.0


class Reading:
    """Reads ``source`` until the end of the block. Items that are ``"bad"`` fail.

    While ``taking`` is not set nothing is read; while ``committing`` is not, nothing that was read is journalled.
    """

    def __init__(self, source: Any, *, taking: bool = True, committing: bool = True, most: int = 10) -> None:
        self.source = source
        self.items: list[Any] = []
        self.batches: list[list[Any]] = []
        self.taking = threading.Event()
        self.committing = threading.Event()
        self._most = most
        self._changed = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        if taking:
            self.taking.set()
        if committing:
            self.committing.set()

    def __enter__(self) -> Reading:
        self.source.open(None)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading, and close the source."""
        self._over = True
        self.taking.set()
        self.committing.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        self.source.close()

    def wait_for(self, count: int) -> list[Any]:
        """The items read so far, as soon as there are so many."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.items) >= count, DEADLINE_S), self.items
        return list(self.items)

    def _read(self) -> None:
        seq = 0
        while not self._over:
            if not self.taking.wait(0.05):
                continue
            found = self.source.read(self._most)
            if found:
                self._settle(seq, found)
                seq += 1
            elif not self.source.cut:
                select.select([self.source.fileno()], [], [], 0.05)

    def _settle(self, seq: int, items: list[Any]) -> None:
        source = self.source
        source.batch_born(seq, len(items))
        source.take_note(seq)
        with self._changed:
            self.items += items
            self.batches.append(items)
            self._changed.notify_all()
        self.committing.wait(DEADLINE_S)
        if self._over:
            return
        source.batch_journalled(seq)
        failed = [item for item in items if item == "bad"]
        if failed:
            source.items_failed(seq, [Failure("parse", repr(item), "ValueError: no", "", 1) for item in failed])
        source.batch_settled(seq, len(failed), True)
