"""Waits for pipes and sentinels that are the same ones most of the time, without telling the system of each again."""

from __future__ import annotations

import math
import select
from collections.abc import Iterable
from typing import Any


class Readiness:
    """Called with pipes and sentinels, and how many seconds to wait at most: those of them that are ready.

    Like `multiprocessing.connection.wait`, whose time grows by some 4 µs with each of them, at each call. One thread
    uses it.
    """

    def __init__(self) -> None:
        self._poller = select.poll()
        self._watched: set[int] = set()

    def __call__(self, objects: Iterable[Any], timeout_s: float) -> list[Any]:
        found = {item if isinstance(item, int) else item.fileno(): item for item in objects}
        for fd in self._watched - found.keys():
            self._poller.unregister(fd)
        for fd in found.keys() - self._watched:
            self._poller.register(fd, select.POLLIN)
        self._watched = set(found)
        return [found[fd] for fd, _ in self._poller.poll(max(0, math.ceil(timeout_s * 1000)))]


__all__ = ["Readiness"]
