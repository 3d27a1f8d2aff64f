"""Items that the program pushes itself, each with a receipt."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from consecution.errors import BackPressureError, NotRunningError
from consecution.source import Source
from consecution.sources.handover import Handover


class Receipt:
    """What `Running.push` returns for an item. Any thread may ask.

    It is granted with the item's batch: ``failed`` says that some item of that batch was given up, which
    is this very item when it was pushed alone.
    """

    __slots__ = ("_decided", "_failed", "_lost")

    def __init__(self) -> None:
        self._decided = threading.Event()
        self._failed = False
        self._lost = ""

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the item is completely processed; False after ``timeout_s``.

        NotRunningError if the run ended before that, or the item was lost with a worker.
        """
        if not self._decided.wait(timeout_s):
            return False
        if self._lost:
            raise NotRunningError(self._lost)
        return True

    @property
    def done(self) -> bool:
        """The item is completely processed, or was given up; nothing will happen to it any more."""
        return self._decided.is_set() and not self._lost

    @property
    def failed(self) -> bool:
        """An item of the batch was given up at some node."""
        return self._failed

    def _settle(self, failed: bool) -> None:
        self._failed = failed
        self._decided.set()

    def _lose(self, why: str) -> None:
        if not self._decided.is_set():
            self._lost = why
            self._decided.set()


class ManualSource(Source):
    """The source behind ``Producer("manual")``. ``max_waiting`` items may wait to be taken."""

    in_parent = True

    def __init__(self, max_waiting: int = 10_000) -> None:
        self._handover = Handover(max_waiting)
        self._read: deque[Receipt] = deque()
        self._open: dict[int, list[Receipt]] = {}
        self._finished = False
        self._count = 0

    def __repr__(self) -> str:
        return "ManualSource()"

    def push(self, item: Any, timeout_s: float | None = None) -> Receipt:
        """Hand over an item; waits while too many wait already. See `Running.push` for the errors."""
        receipt = Receipt()
        if self._finished or self._handover.cancelled:
            raise NotRunningError("this run takes no more items: it has ended or was stopped")
        started_s = time.monotonic()
        if not self._handover.put((item, receipt), timeout_s):
            if self._handover.cancelled:
                raise NotRunningError("this run takes no more items: it has ended or was stopped")
            raise BackPressureError(
                f"the pipeline is full: no room for another item within {time.monotonic() - started_s:.2f} s; "
                "push again later, with a longer timeout_s, or raise max_pending"
            )
        return receipt

    def finish(self) -> None:
        """No more items will be pushed. Harmless when repeated."""
        if not self._finished:
            self._finished = True
            self._handover.end()

    def open(self, position: Any) -> None:
        self._count = 0 if position is None else int(position)

    def read(self, max_items: int) -> list[Any] | None:
        taken = self._handover.take(max_items)
        if not taken:
            return taken
        self._count += len(taken)
        self._read.extend(receipt for _, receipt in taken)
        return [item for item, _ in taken]

    def position(self) -> int:
        return self._count

    def fileno(self) -> int:
        return self._handover.fileno()

    def batch_born(self, seq: int, count: int) -> None:
        self._open[seq] = [self._read.popleft() for _ in range(count)]

    def batch_settled(self, seq: int, failed: int, confirmed: bool) -> None:
        for receipt in self._open.pop(seq, ()):
            if confirmed:
                receipt._settle(failed > 0)
            else:
                receipt._lose("the item was lost with a worker; robustness='robust' would have kept it")

    def close(self) -> None:
        self._handover.close()
        waiting = [receipt for receipts in self._open.values() for receipt in receipts]
        for receipt in (*waiting, *self._read):
            receipt._lose("the run ended before this item was completely processed")
        while taken := self._handover._items:
            taken.popleft()[1]._lose("the run ended before this item was taken")
