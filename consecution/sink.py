"""The Sink contract: where items leave the pipeline."""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from consecution.errors import OutageError, UsageError
from consecution.nodes import Node
from consecution.protocol.values import BatchId
from consecution.telling import warn

CONSUME_BUFFER = 1000
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 2.0

T = TypeVar("T")


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

    If ``write`` raises, it is offered the items again, half by half, to find the ones at fault; so what a call
    that raises has written must be undone, or be harmless to write again. `consecution.errors.OutageError` says
    that no item is at fault: in ``robust`` the same call is then repeated, with pauses, until it succeeds, and the
    pipeline is held back; at the other levels the items of that call fail.
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

    # -- waiting for the world -------------------------------------------------------------------

    _hooks = (*Node._hooks, "open", "write", "close")
    _waits = False

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, this sink waits for the world: its worker is not taken for one that hangs, however long it takes."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def _ride_out(self, attempt: Callable[[], T], patience_s: float = math.inf) -> T:
        """Repeat ``attempt`` while it raises OutageError, less and less often; the last one after ``patience_s``."""
        give_up_s = time.monotonic() + patience_s
        wait_s = FIRST_WAIT_S
        while True:
            try:
                return attempt()
            except OutageError as error:
                if time.monotonic() + wait_s > give_up_s:
                    raise
                warn("%s: %s; trying again in %g s", self, error, wait_s)
            with self.waiting():
                time.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    # -- in a run --------------------------------------------------------------------------------

    def _write_frame(self, batch_id: BatchId | None, items: list[Any]) -> None:
        """Write the items and make them safe, for engines that commit nothing themselves."""
        self._take_frame(batch_id, items)

    def _take_frame(self, batch_id: BatchId | None, items: list[Any]) -> None:
        """`write`, for engines: a frame that is offered again item by item is not logged again."""
        if self._logging == "input" and batch_id != self._logged:
            self._logged = batch_id
            for item in items:
                self._write_log(item)
        self.write(batch_id, items)

    def _close_for_good(self) -> None:
        """`close`, for engines that keep nothing of this run."""
        self.close()

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
        self._close_for_good()
        del self._waiting

    def _break_off(self) -> None:
        """The stream broke off: what has reached the sink is written all the same, as far as it can be."""
        if "_waiting" in vars(self):
            with contextlib.suppress(Exception):
                self._write_waiting()
            with contextlib.suppress(Exception):
                self._close_for_good()
            del self._waiting

    def _write_waiting(self) -> None:
        """Write all, or, if that raises, what came before the item at fault: its own error is raised."""
        items, self._waiting = self._waiting, []
        if items:
            self._write_by_halves(items)

    def _write_by_halves(self, items: list[Any]) -> None:
        try:
            self._write_frame(None, items)
        except OutageError:
            raise
        except Exception:
            if len(items) == 1:
                raise
            middle = len(items) // 2
            self._write_by_halves(items[:middle])
            self._write_by_halves(items[middle:])

    def _wants_end(self) -> bool:
        return False

    def _is_durable(self) -> bool:
        return self.after_decision

    def _may_be_spread(self) -> bool:
        return False


def refuse_unknown(sink: Sink, given: Mapping[str, Any]) -> None:
    """For a sink whose options are known: what is no attribute of its class is a word that was misspelt.

    Nodes otherwise take any keyword as an attribute, and ``keys="id"`` for ``key="id"`` would pass in silence. A
    user's own subclass may mean it.
    """
    if type(sink).__module__.partition(".")[0] != __name__.partition(".")[0]:
        return
    unknown = [option for option in given if not hasattr(type(sink), option)]
    if unknown:
        known = {name for kind in type(sink).__mro__ for name in inspect.signature(kind).parameters} - _NO_OPTIONS
        raise UsageError(f"{sink}: unknown option {unknown[0]!r}; it takes {', '.join(sorted(known))}")


_NO_OPTIONS = {"name", "args", "kwargs"}


class AppendSink(Sink):
    """A sink whose store grows at its end, and can be cut back: files. In ``robust`` it holds every item once.

    Define `open`, `write`, `flush`, `cut_to` and `close`. Several ``write``s, one ``flush``: only then the items must
    be safe. What `flush` returns is committed together with the news that the batches were applied; at the next
    start `cut_to` is told that place, and removes what lies behind.

    ``write`` raises for what is wrong with an item, ``flush`` for what is wrong with the world: in ``robust`` that ends
    the run, and the next one goes on. Outside ``robust`` a ``flush`` follows every ``write``, and what it raises is
    the failure of these items: nothing of them may be left.
    """

    def flush(self) -> Any:
        """Make safe what was written, and return its end: numbers, text, bytes, None, or lists and dicts of these.

        A dict may have a key ``"files"``: a list of [absolute path, length], the files that a backup is to hold. It is
        refused where one is missing, but for the first so many as a list ``"complete"`` has: to those `committed` gives
        other names.
        """
        raise NotImplementedError(f"{type(self).__name__} {self.name!r} must define flush(self)")

    def cut_to(self, end: Any) -> None:
        """Called after `open`: remove what was written after ``end``; None: nothing was committed yet.

        What the store held before the first `cut_to` (None) stays; its end is asked for by a `flush` and committed
        before anything is written. Raises DamagedStoreError if there is less than ``end``.
        """
        raise NotImplementedError(f"{type(self).__name__} {self.name!r} must define cut_to(self, end)")

    def committed(self) -> None:
        """What the last `flush` returned is committed. A crash may come before this call."""

    def complete(self, *, ended: bool) -> None:
        """Nothing more comes in this run; ``ended``: nor in any other, for the stream is over. `flush` follows."""

    def flush_due_s(self) -> float | None:
        """Seconds until a `flush` is wanted even if nothing is written; None: it is not. Asked in ``robust`` only."""
        return None

    def _write_frame(self, batch_id: BatchId | None, items: list[Any]) -> None:
        self._take_frame(batch_id, items)
        self.flush()
        self.committed()

    def _close_for_good(self) -> None:
        try:
            self.complete(ended=True)
            self.flush()
            self.committed()
        finally:
            self.close()


class TransactionSink(Sink):
    """A sink whose store has transactions: databases. In ``robust`` it holds every item once.

    Define `open`, `begin_transaction`, `write`, `commit`, `roll_back`, `last_mark` and `close`. Several ``write``s
    make one transaction. One that raises must leave the transaction as it was before that call (a savepoint).
    At the other levels nobody begins a transaction, and each ``write`` is one of its own.

    **Outages.** `open`, `begin_transaction`, `write`, `commit` and `last_mark` may raise
    `consecution.errors.OutageError`: what was written since `begin_transaction` is gone, or will be with `roll_back`.
    After a pause `last_mark` is asked whether a commit that raised has happened, and the transaction is repeated if it
    has not. So `last_mark` and `begin_transaction` connect again where the connection is lost.
    """

    def begin_transaction(self) -> None:
        """Everything written from here on becomes one transaction."""
        raise NotImplementedError(f"{type(self).__name__} {self.name!r} must define begin_transaction(self)")

    def commit(self, owner: str, number: int, redo: bytes) -> None:
        """Put the mark (number, redo) of ``owner`` in place of its last one, and commit; all or nothing.

        The last one's number must be ``number - 1``: raise WorldError and commit nothing if it is not. A
        transaction of a process that has died may still have been on its way.
        """
        raise NotImplementedError(f"{type(self).__name__} {self.name!r} must define commit(self, owner, number, redo)")

    def roll_back(self) -> None:
        """Forget what was written since `begin_transaction`. Raises nothing, also where the connection is lost."""
        raise NotImplementedError(f"{type(self).__name__} {self.name!r} must define roll_back(self)")

    def last_mark(self, owner: str) -> tuple[int, bytes]:
        """(number, redo) of the last transaction of ``owner``; (0, b"") if there is none. Called outside of any."""
        raise NotImplementedError(f"{type(self).__name__} {self.name!r} must define last_mark(self, owner)")
