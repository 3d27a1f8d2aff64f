"""From threads that may block to one that may not: a bounded queue with a file descriptor to wait on."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any


class Handover:
    """Items put by any thread, taken by one. ``room`` bounds what waits in between.

    `put` and `feed` block while it is full; `take` never does. After `take` has returned [], the
    descriptor becomes readable as soon as there is something to take.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._items: deque[Any] = deque()
        self._changed = threading.Condition()
        self._hungry = False
        self._full = 0
        self._ended = False
        self._cancelled = False
        self._error: BaseException | None = None
        self._readable, self._wake = os.pipe()
        self._signalled = False

    def fileno(self) -> int:
        return self._readable

    def put(self, item: Any, timeout_s: float | None = None) -> bool:
        """Wait for room, then add the item. False after ``timeout_s``, or once the taker is gone."""
        with self._changed:
            if not self._wait_for_room(timeout_s):
                return False
            self._items.append(item)
            self._feed_hungry()
        return True

    def feed(self, iterator: Iterator[Any]) -> bool:
        """Put every item of the iterator, each as soon as it is there. False once the taker is gone."""
        items, append, room = self._items, self._items.append, self._room
        for item in iterator:
            append(item)
            if self._hungry or len(items) >= room:
                with self._changed:
                    self._feed_hungry()
                    if not self._wait_for_room(None):
                        return False
        return not self._cancelled

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more will be put. ``error`` is raised by `take` when all before it was taken."""
        with self._changed:
            self._ended, self._error = True, error
            self._feed_hungry()

    def take(self, max_items: int) -> list[Any] | None:
        """Up to ``max_items``; [] when nothing waits; None at the end."""
        items = self._items
        if not items:
            with self._changed:
                if not self._become_hungry():
                    return self._over()
        taken = [items.popleft() for _ in range(min(len(items), max_items))]
        if self._full and len(items) * 2 <= self._room:
            with self._changed:
                self._changed.notify_all()
        return taken

    def _become_hungry(self) -> bool:
        """Say that something is wanted. True if it has just come: who feeds looks after adding."""
        self._hungry = True
        if self._items:
            self._hungry = False
            return True
        if self._signalled and not self._ended and self._readable >= 0:
            self._signalled = False
            os.read(self._readable, 1)
        return False

    def _over(self) -> list[Any] | None:
        if not self._ended:
            return []
        if self._error is not None:
            raise self._error
        return None

    def _feed_hungry(self) -> None:
        if self._hungry:
            self._hungry = False
            if not self._signalled and self._wake >= 0:
                self._signalled = True
                os.write(self._wake, b".")

    def _wait_for_room(self, timeout_s: float | None) -> bool:
        self._full += 1
        try:
            self._changed.wait_for(lambda: self._cancelled or len(self._items) < self._room, timeout_s)
        finally:
            self._full -= 1
        return not self._cancelled and len(self._items) < self._room

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def close(self) -> None:
        """The taker is gone: whoever waits gives up. Harmless when repeated."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()
            if self._readable >= 0:
                os.close(self._readable)
                os.close(self._wake)
                self._readable = self._wake = -1
