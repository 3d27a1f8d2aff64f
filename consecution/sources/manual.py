"""Items that the program pushes itself, each with a receipt."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from consecution.errors import BackPressureError, NotRunningError
from consecution.source import Source
from consecution.sources.handover import Handover

ENDED = "this run takes no more items: it has ended or was stopped; start another one"


class Receipt:
    """What `Running.push` returns for an item. Any thread may ask.

    It is granted with the item's batch: ``failed`` says that some item of that batch was given up, which
    is this very item when it was pushed alone.
    """

    __slots__ = ("_decided", "_failed", "_lost", "_source")

    def __init__(self, source: ManualSource) -> None:
        self._source = source
        self._decided = False
        self._failed = False
        self._lost = ""

    def __repr__(self) -> str:
        state = "open" if not self._decided else "lost" if self._lost else "failed" if self._failed else "done"
        return f"Receipt({state})"

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the item is completely processed; False after ``timeout_s``.

        NotRunningError if the run ended before that, or the item was lost with a worker.
        """
        if not self._decided and not self._source.wait_until(lambda: self._decided, timeout_s):
            return False
        if self._lost:
            raise NotRunningError(self._lost)
        return True

    @property
    def done(self) -> bool:
        """The item is completely processed, or was given up; nothing will happen to it any more."""
        return self._decided and not self._lost

    @property
    def failed(self) -> bool:
        """An item of the batch was given up at some node."""
        return self._failed

    def _decide(self, *, failed: bool = False, lost: str = "") -> None:
        """The first decision counts. The caller holds the source's condition and notifies those who wait."""
        if not self._decided:
            self._failed, self._lost, self._decided = failed, lost, True


class ManualSource(Source):
    """The source behind ``Producer("manual")``. ``max_waiting`` items may wait to be taken.

    `push` and `finish` may be called by any thread, the rest by the one that reads.
    """

    in_parent = True
    advance: Callable[[Callable[[], bool], float | None], None] | None = None
    """Set by the inline engine, where nothing moves unless who waits for it moves it."""

    def __init__(self, max_waiting: int = 10_000) -> None:
        self._handover = Handover(max_waiting)
        self._news = threading.Condition()
        self._read: deque[Receipt] = deque()
        self._open: dict[int, list[Receipt]] = {}
        self._finished = False
        self._count = 0

    def __repr__(self) -> str:
        return "ManualSource()"

    def push(self, item: Any, timeout_s: float | None = None) -> Receipt:
        """Hand over an item; waits while too many wait already. See `Running.push` for the errors."""
        receipt = Receipt(self)
        if self._handover.put((item, receipt), timeout_s):
            return receipt
        if self._finished or self._handover.cancelled:
            raise NotRunningError(ENDED)
        raise BackPressureError(
            f"the pipeline is full: no room for another item within {timeout_s} s; push again later, with a longer "
            "timeout_s, or raise max_pending"
        )

    def wait_until(self, decided: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait for a receipt's decision; False after ``timeout_s``. Any thread may call it."""
        if self.advance is not None:
            self.advance(decided, timeout_s)
            return decided()
        with self._news:
            return self._news.wait_for(decided, timeout_s)

    def finish(self) -> None:
        """No more items will be pushed. Harmless when repeated."""
        self._finished = True
        self._handover.end()

    def open(self, position: Any) -> None:
        self._count = 0 if position is None else int(position)

    def read(self, max_items: int) -> list[Any] | None:
        taken = self._handover.take(max_items)
        if not taken:
            return taken
        self._count += len(taken)
        self._read.extend([receipt for _, receipt in taken])
        return [item for item, _ in taken]

    def position(self) -> int:
        return self._count

    def fileno(self) -> int:
        return self._handover.fileno()

    def batch_born(self, seq: int, count: int) -> None:
        self._open[seq] = [self._read.popleft() for _ in range(count)]

    def batch_settled(self, seq: int, failed: int, confirmed: bool) -> None:
        lost = "" if confirmed else "the item was lost with a worker; robustness='robust' would have kept it"
        self._decide(self._open.pop(seq, []), failed=failed > 0, lost=lost)

    def close(self) -> None:
        untaken = [receipt for _, receipt in self._handover.close()]
        taken = [receipt for receipts in self._open.values() for receipt in receipts] + list(self._read)
        self._open.clear()
        self._read.clear()
        self._decide(taken, lost="the run ended before this item was completely processed")
        self._decide(untaken, lost="the run ended before this item was taken")

    def _decide(self, receipts: list[Receipt], *, failed: bool = False, lost: str = "") -> None:
        if receipts:
            with self._news:
                for receipt in receipts:
                    receipt._decide(failed=failed, lost=lost)
                self._news.notify_all()
