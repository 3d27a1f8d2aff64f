"""From threads that may block to one that may not: a bounded queue with a file descriptor to wait on.

The rules it keeps:

- Who adds an item looks at ``_hungry`` afterwards; who takes sets ``_hungry`` and looks at the items
  afterwards. So an item that comes while the taker falls asleep is seen by one of the two.
- ``_hungry``, ``_ended`` and ``_cancelled`` change under the lock only; items are added and taken without it.
- Where nobody waits, nothing happens per item that is not done in C: see `Handover.feed`.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

_second: Any = {}.get
"""``dict.get(key, default)`` where there are no keys: returns its second argument, without leaving C."""


class Handover:
    """Items put by any thread, taken by one. ``room`` bounds what waits in between; the taker may change it.

    `put` and `feed` block while it is full; `take` never does. After `take` has returned [], the
    descriptor becomes readable as soon as there is something to take.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._items: deque[Any] = deque()
        self._changed = threading.Condition()
        self._permits: list[None] = []
        self._hungry = False
        self._waiting_for_room = 0
        self._ended = False
        self._cancelled = False
        self._error: BaseException | None = None
        self._readable, self._wake = os.pipe()
        self._signalled = False

    def fileno(self) -> int:
        return self._readable

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    # -- adding ----------------------------------------------------------------------------------

    def put(self, item: Any, timeout_s: float | None = None) -> bool:
        """Wait for room, then add the item. False after ``timeout_s``, after `end`, or once the taker is gone."""
        with self._changed:
            if len(self._items) >= self.room and not self._wait_for_room(timeout_s):
                return False
            if self._ended or self._cancelled:
                return False
            self._items.append(item)
            if self._hungry:
                self._wake_taker()
        return True

    def feed(self, iterator: Iterator[Any]) -> bool:
        """Put every item of the iterator, each as soon as it is there. False once the taker is gone.

        ``extend`` needs a permit for each item before it asks for the item; while permits last it runs
        in C, and what it has appended can be taken at once. A taker that finds nothing withdraws
        the permits, so that ``extend`` comes back with the very next item and the taker is woken.
        """
        ended: list[bool] = []
        items = itertools.chain(iterator, _noting_the_end(ended))
        while not ended:
            permits = self._grant()
            if permits is None:
                return False
            self._items.extend(map(_second, permits, items))
            if self._hungry:
                with self._changed:
                    self._wake_taker()
        return not self._cancelled

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more will be put. ``error`` is raised by `take` when all before it was taken."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()
            self._wake_taker()

    def _grant(self) -> Iterator[None] | None:
        """A permit for each item there is room for; only one while the taker waits."""
        with self._changed:
            if not self._wait_for_room(None):
                return None
            self._permits = [None] * (1 if self._hungry else self.room - len(self._items))
            return iter(self._permits)

    def _wait_for_room(self, timeout_s: float | None) -> bool:
        self._waiting_for_room += 1
        try:
            self._changed.wait_for(lambda: self._cancelled or self._ended or len(self._items) < self.room, timeout_s)
        finally:
            self._waiting_for_room -= 1
        return not self._cancelled and len(self._items) < self.room

    def _wake_taker(self) -> None:
        if self._hungry:
            self._hungry = False
            if not self._signalled and self._wake >= 0:
                self._signalled = True
                os.write(self._wake, b".")

    # -- taking ----------------------------------------------------------------------------------

    def take(self, max_items: int) -> list[Any] | None:
        """Up to ``max_items``; [] when nothing waits; None at the end. Raises the error it ended with."""
        items = self._items
        if not items:
            with self._changed:
                if not self._become_hungry():
                    return self._over()
        taken = self._pop(min(len(items), max_items))
        if self._waiting_for_room and len(items) * 2 <= self.room:
            with self._changed:
                self._changed.notify_all()
        return taken

    def _become_hungry(self) -> bool:
        """Say that something is wanted. True if it has just come: who adds looks after adding."""
        self._hungry = True
        self._permits.clear()
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

    def close(self) -> list[Any]:
        """The taker is gone: whoever waits gives up. Returns what nobody took. Harmless when repeated."""
        with self._changed:
            self._cancelled = True
            self._permits.clear()
            self._changed.notify_all()
            if self._readable >= 0:
                os.close(self._readable)
                os.close(self._wake)
                self._readable = self._wake = -1
        return self._pop(len(self._items))

    def _pop(self, count: int) -> list[Any]:
        return list(itertools.starmap(self._items.popleft, itertools.repeat((), count)))


def _noting_the_end(ended: list[bool]) -> Iterator[Any]:
    """Chained after an iterator: an empty one, which notes that it was asked."""
    ended.append(True)
    yield from ()
