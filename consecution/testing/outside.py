"""What sinks of the simulated world write to: it lives outside the tasks' own stores, and survives them.

A process that dies loses what it had not given away; a power cut also takes what was not safe yet, or tears it.
"""

from __future__ import annotations

from random import Random
from typing import Any

from consecution.protocol.values import BatchId
from consecution.testing.violation import Violation
from consecution.testing.world import Item

TORN: Item = -1
"""Half an item, at the end of a file after a power cut."""


class Log:
    """Remembers every write, repeats included: a frame of a batch is always the same items."""

    def __init__(self) -> None:
        self._frames: dict[tuple[str, int, tuple[int, ...]], tuple[int, list[Item]]] = {}

    def write(self, batch_id: BatchId, items: list[Item]) -> None:
        """Items of one frame; first all of them, then, if that failed, parts."""
        key = batch_id.origin, batch_id.seq, batch_id.path
        generation, whole = self._frames.setdefault(key, (batch_id.generation, items))
        if generation != batch_id.generation or not set(items) <= set(whole):
            raise Violation(f"a sink got {batch_id} with {items}, after generation {generation} with {whole}")

    def check(self, taken: list[Item]) -> None:
        missing = set(taken).difference(*(items for _, items in self._frames.values()))
        if missing:
            raise Violation(f"items {missing} were applied, and the sink never got them")

    def died(self, rng: Random, *, power_cut: bool) -> None:
        """What was written is safe at once."""


class File:
    """Grows at its end. What was not made safe may be lost or torn."""

    def __init__(self) -> None:
        self.content: list[Item] = []
        self._safe = 0

    def flush(self) -> int:
        self._safe = len(self.content)
        return self._safe

    def cut_to(self, end: int | None) -> None:
        if len(self.content) < (end or 0):
            raise Violation(f"the file holds {len(self.content)} items, {end} were committed")
        del self.content[end or 0 :]

    def check(self, taken: list[Item]) -> None:
        if self.content != taken:
            raise Violation(f"the file holds {self.content}; applied were {taken}")

    def died(self, rng: Random, *, power_cut: bool) -> None:
        """Of what was not safe some first part is there."""
        kept = rng.randint(min(self._safe, len(self.content)), len(self.content))
        lost = len(self.content) - kept
        del self.content[kept:]
        if power_cut and lost and rng.random() < 0.5:
            self.content.append(TORN)


class Database:
    """Has transactions: all or nothing, and safe once they are committed."""

    def __init__(self) -> None:
        self.rows: list[Item] = []
        self.mark: tuple[int, Any] = (0, b"")
        self._open: list[Item] | None = None

    def begin(self) -> None:
        if self._open is not None:
            raise Violation("a transaction was begun in another")
        self._open = []

    def write(self, items: list[Item]) -> None:
        if self._open is None:
            raise Violation("rows were written outside of a transaction")
        self._open += items

    def commit(self, number: int, redo: Any) -> None:
        assert self._open is not None
        self.rows += self._open
        self.mark = number, redo
        self._open = None

    def roll_back(self) -> None:
        self._open = None

    def check(self, taken: list[Item]) -> None:
        if self.rows != taken:
            raise Violation(f"the database holds {self.rows}; applied were {taken}")

    def died(self, rng: Random, *, power_cut: bool) -> None:
        self._open = None


Outside = Log | File | Database
