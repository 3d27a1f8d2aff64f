"""Nodes that take many items at a time, for whoever works with arrays and tables."""

from __future__ import annotations

import bdb
import collections
import copy
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

from consecution.errors import GraphError
from consecution.nodes import Node
from consecution.protocol.step import shorten_repr
from consecution.protocol.values import USER_ERRORS


class BatchNode(Node):
    """Takes items by the list: inherit from it and define ``process_batch(self, items)``.

    It is given as many items as have come together, at least one, in order, and pushes as many as it likes. How many
    come together is not up to the node: one where little comes, up to ``batch_size`` (an option of the run) under
    load, or more where a node before it makes many of one; never more than ``max_items`` (a class attribute or
    keyword argument; None: no limit). In `Pipeline.consume` it is one at a time.

    Where ``process_batch`` raises, what it has pushed is dropped, and the list is offered again half by half until
    the items at fault stand alone: they fail, and no others. So the node may see an item several times, and must keep
    nothing from call to call: with ``end`` or ``on_timer`` it is refused. ``Chunk(n) | StatefulNode`` gathers.
    """

    max_items: int | None = None
    _hooks = (*Node._hooks, "process_batch")

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        if inspect.iscoroutinefunction(type(self).process_batch):
            raise GraphError(
                f"{self}: process_batch is async; a Node with an async process(item) has many items at once"
            )
        if self._is_durable():
            raise GraphError(
                f"{self}: a BatchNode offers items again where one of them fails, and so it can keep nothing; "
                f"{type(self).__name__} has an end, a timer or a state: gather with Chunk(n) | StatefulNode"
            )
        if self.max_items is not None and (type(self.max_items) is not int or self.max_items < 1):
            raise GraphError(f"{self}: max_items={self.max_items!r}: expected a whole number of 1 or more, or None")

    def process_batch(self, items: list[Any]) -> Any:
        """Called with each list of items, which is the node's own. Must be overridden; returns nothing."""
        raise NotImplementedError(
            f"Error in node named {self.name!r}\n"
            "You must define a .process_batch(self, items) method on all batch nodes"
        )

    def process(self, item: Any) -> None:
        self._call([item])

    def _call(self, items: list[Any]) -> None:
        """What is returned, and not pushed, would be lost without a word."""
        returned = self.process_batch(items)
        if returned is not None:
            raise TypeError(
                f"process_batch returned {shorten_repr(returned)}, which goes nowhere: pass on what it makes with "
                f"self.push(item), once for each, and return nothing ({self})"
            )

    def _process_frame(self, cursor: Iterator[Any], out: list[Any]) -> None:
        while items := list(itertools.islice(copy.copy(cursor), self.max_items)):
            if self._logging == "input":
                for item in items:
                    self._write_log(item)
            self._offer(items, cursor, out)

    def _offer(self, items: list[Any], cursor: Iterator[Any], out: list[Any]) -> None:
        """Offer the next items of the cursor; if that raises, half by half, and go on behind the item at fault."""
        mark = len(out)
        try:
            self._call(items.copy())
        except USER_ERRORS as error:
            del out[mark:]
            if len(items) > 1 and not isinstance(error, bdb.BdbQuit):
                middle = len(items) // 2
                self._offer(items[:middle], cursor, out)
                self._offer(items[middle:], cursor, out)
                return
            next(cursor)
            raise
        collections.deque(itertools.islice(cursor, len(items)), maxlen=0)


__all__ = ["BatchNode"]
