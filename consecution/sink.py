"""The Sink contract: where items leave the pipeline."""

from __future__ import annotations

import contextlib
from typing import Any

from consecution.nodes import Node
from consecution.protocol.values import BatchId

CONSUME_BUFFER = 1000


class Sink(Node):
    """Ends a pipeline. Inherit from it and define ``write(batch_id, items)``.

    ``open`` is called once in the process that writes, then ``write`` for every frame of items, then
    ``close``. When ``write`` returns, the items must be safe: a ``kill -9`` right after it must lose
    nothing, and with ``self.sync == "power"`` neither may a power cut.

    **A repeat.** After a crash a batch may be written again: the same (origin, seq, path) with a higher
    generation. Its items are those of the stream, but a node that answers differently each time may have
    made others of them. A sink that must not hold anything twice replaces what an earlier generation of
    (origin, seq, path) has written, or writes by a key of the item.

    In ``robust`` a sink is given the items after the decision (`after_decision`): a repeat, after a crash
    between ``write`` and the commit that follows, brings the same items under the same (origin, seq, path). A
    sink with ``after_decision = False`` is given them while they travel, earlier and without a commit of its own.

    If ``write`` raises, it is offered the items one by one, to find the ones at fault; so what a call
    that raises has written must be undone, or be harmless to write again.
    """

    sync: str = "power"
    after_decision: bool = True
    """In ``robust``: write what was decided, once that is certain; False: write what comes by, with its generation."""

    def open(self) -> None:
        """Take hold of the file or connection. May raise: the run then does not start."""

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        """Write the items, in order. ``batch_id`` is None in `Pipeline.consume`."""
        raise NotImplementedError(f"{type(self).__name__} {self.name!r} must define write(self, batch_id, items)")

    def close(self) -> None:
        """Let go of what `open` took. Not called after a crash."""

    def _write_frame(self, batch_id: BatchId, items: list[Any]) -> None:
        """`write`, for engines: a frame that is offered again item by item is not logged again."""
        if self._logging == "input" and batch_id != self._logged:
            self._logged = batch_id
            for item in items:
                self._write_log(item)
        self.write(batch_id, items)

    _logged: BatchId | None = None

    # -- item by item (`Pipeline.consume`) -------------------------------------------------------

    def begin(self) -> None:
        self.open()
        self._waiting: list[Any] = []

    def process(self, item: Any) -> None:
        self._waiting.append(item)
        if len(self._waiting) >= CONSUME_BUFFER:
            self._write_waiting()

    def end(self) -> None:
        self._write_waiting()
        self.close()
        del self._waiting

    def _break_off(self) -> None:
        """The stream broke off: what has reached the sink is written all the same, as far as it can be."""
        if "_waiting" in vars(self):
            with contextlib.suppress(Exception):
                self._write_waiting()
            with contextlib.suppress(Exception):
                self.close()
            del self._waiting

    def _write_waiting(self) -> None:
        """Write all, or, if that raises, what came before the item at fault: its own error is raised."""
        items, self._waiting = self._waiting, []
        if not items:
            return
        try:
            self.write(None, items)
        except Exception:
            for item in items:
                self.write(None, [item])

    def _wants_end(self) -> bool:
        return False

    def _is_durable(self) -> bool:
        return self.after_decision


class AppendSink(Sink):
    """A sink whose store grows at its end, and can be cut back: files. In ``robust`` it holds every item once.

    Define `open`, `write`, `flush`, `cut_to` and `close`. What `flush` returns is committed together with the news
    that the batch was applied; at the next start `cut_to` is told that place, and removes what lies behind.
    """

    def flush(self) -> Any:
        """Make safe what was written, and return its end: numbers, text, bytes, None, or lists and dicts of these."""
        raise NotImplementedError(f"{type(self).__name__} {self.name!r} must define flush(self)")

    def cut_to(self, end: Any) -> None:
        """Called after `open`: remove what was written after ``end``; None: nothing was committed yet.

        Raises DamagedStoreError if there is less than that.
        """
        raise NotImplementedError(f"{type(self).__name__} {self.name!r} must define cut_to(self, end)")


class TransactionSink(Sink):
    """A sink whose store has transactions: databases. In ``robust`` it holds every item once.

    Define `open`, `begin_transaction`, `write`, `commit`, `roll_back`, `last_mark` and `close`. Several ``write``s
    make one transaction. One that raises must leave the transaction as it was before that call (a savepoint).
    """

    def begin_transaction(self) -> None:
        """Everything written from here on becomes one transaction."""
        raise NotImplementedError(f"{type(self).__name__} {self.name!r} must define begin_transaction(self)")

    def commit(self, owner: str, number: int, redo: bytes) -> None:
        """Put the mark (number, redo) of ``owner`` in place of its last one, and commit; all or nothing.

        A lost connection is the sink's to get over: it repeats the transaction until that is certain.
        """
        raise NotImplementedError(f"{type(self).__name__} {self.name!r} must define commit(self, owner, number, redo)")

    def roll_back(self) -> None:
        """Forget what was written since `begin_transaction`."""
        raise NotImplementedError(f"{type(self).__name__} {self.name!r} must define roll_back(self)")

    def last_mark(self, owner: str) -> tuple[int, bytes]:
        """(number, redo) of the last transaction of ``owner``; (0, b"") if there is none."""
        raise NotImplementedError(f"{type(self).__name__} {self.name!r} must define last_mark(self, owner)")
