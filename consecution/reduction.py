"""Folding the items of each key into one value; where that can be done in parts, each worker does its own first.

A node with ``combine`` gets a companion where ``workers`` is a number: `Parts`, in every worker, which folds each
frame by itself. What then crosses between workers is one `PartTable` a frame and replica, not the items.

Source: the combiner of MapReduce.
"""

from __future__ import annotations

import collections
import copy
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from consecution import graph
from consecution.errors import KeyEncodingError, UsageError
from consecution.nodes import Node
from consecution.protocol.values import USER_ERRORS
from consecution.routing import encode_key
from consecution.stateful import KeyedNode
from consecution.states import MISSING, Key

ALWAYS_KEYS = frozenset((str, int, float, bool, bytes))
"""Whatever is of these types finds a replica."""


def _all_at_once(cursor: Iterator[Any], take: Callable[[list[Any]], None]) -> bool:
    """Have all items that are left taken together. False, and none is: one of them raises, and is found one by one."""
    items = list(copy.copy(cursor))
    try:
        take(items)
    except USER_ERRORS:
        return False
    collections.deque(cursor, maxlen=0)
    return True


class PartTable:
    """What the items of one frame come to, key by key: two columns of the same length."""

    __slots__ = ("keys", "values")

    def __init__(self, keys: list[Key], values: list[Any]) -> None:
        self.keys = keys
        self.values = values

    def __reduce__(self) -> tuple[Any, ...]:
        return PartTable, (self.keys, self.values)

    def __repr__(self) -> str:
        shown = ", ".join(f"{key!r}: {value!r}" for key, value in itertools.islice(zip(*self.columns, strict=True), 5))
        more = f", and {len(self.keys) - 5} more" if len(self.keys) > 5 else ""
        return f"PartTable({shown}{more})"

    @property
    def columns(self) -> tuple[list[Key], list[Any]]:
        return self.keys, self.values


def _are_tables(items: list[Any]) -> bool:
    """Whether a frame comes from `Parts`. All of its items do then, for it came over one edge; else none does."""
    return bool(items) and type(items[0]) is PartTable


class Reduce(KeyedNode):
    """Folds the items of each key into one value: ``value = step(value, item)``, beginning with ``initial``.

    At the end of the stream it pushes ``(key, value)`` for every key; with ``every_change=True`` it pushes
    that after each item instead. ``initial`` is a value, or a function without arguments that makes one; give a
    function where ``step`` changes the value in place.

    ``combine(value, other)`` joins two values that were folded from different items of a key, each beginning with
    ``initial``. Where it is given, workers fold what they have before they send it (`workers`). It must not matter
    in which order values are joined, and joining ``initial`` must change nothing: a sum, a count, the greatest.
    """

    def __init__(
        self,
        key: Callable[[Any], Key],
        initial: Any,
        step: Callable[[Any, Any], Any],
        name: str | None = None,
        *,
        every_change: bool = False,
        combine: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        graph.check_function(key, "Reduce(key=...)", "a function that returns an item's key")
        graph.check_function(step, "Reduce(step=...)", "a function of the value so far and an item")
        if combine is not None:
            graph.check_function(combine, "Reduce(combine=...)", "a function of two values of a key")
        if combine is not None and every_change:
            raise UsageError("Reduce: combine joins many items at a time, and every_change wants each; leave one out")
        super().__init__(name or graph.name_of_callable(step))
        self._stem = None if name else self.name
        self._key = key
        self._initial = initial
        self._step = step
        self._every_change = every_change
        self._combine = combine

    def initial_state(self) -> Any:
        return self._initial() if callable(self._initial) else self._initial

    def key(self, item: Any) -> Key:
        return self._key(item)

    def process(self, item: Any) -> None:
        self.state = self._step(self.state, item)
        if self._every_change:
            self.push((self._key(item), self.state))

    def end(self) -> None:
        if not self._every_change:
            collections.deque(map(self.push, self.states()), maxlen=0)

    @property
    def any_order(self) -> bool:  # type: ignore[override]
        """Values that are joined in any order may be folded in any."""
        return self.works_in_parts

    # -- by the frame ----------------------------------------------------------------------------

    @property
    def works_in_parts(self) -> bool:
        """Whether values can be joined that were folded apart."""
        return self._combine is not None and type(self).process is Reduce.process and type(self).end is Reduce.end

    def fold(self, items: Iterable[Any]) -> dict[Key, Any]:
        """What these items come to, key by key. Raises what the user's functions raise."""
        key_of, step, initial = self._key, self._step, self.initial_state
        folded: dict[Key, Any] = {}
        for item in items:
            key = key_of(item)
            value = folded[key] if key in folded else initial()
            folded[key] = step(value, item)
        return folded

    def _process_frame(self, cursor: Iterator[Any], out: list[Any]) -> None:
        if not self.works_in_parts or self._logging is not None:
            super()._process_frame(cursor, out)
            return
        if not self._states.careful and _all_at_once(cursor, self._fold_in):
            return
        for item in cursor:
            if type(item) is PartTable:
                self._join(*item.columns)
            else:
                self._process_item(item)

    def _fold_in(self, items: list[Any]) -> None:
        """All or nothing."""
        if _are_tables(items):
            tables = [item.columns for item in items]
        else:
            folded = self.fold(items)
            tables = [(list(folded), list(folded.values()))]
        if len(tables) > 1:
            tables = [self._join_tables(tables)]
        for keys, values in tables:
            self._join(keys, values)

    def _join_tables(self, tables: list[tuple[list[Key], list[Any]]]) -> tuple[list[Key], list[Any]]:
        combine = self._combine
        assert combine is not None
        joined: dict[Key, Any] = {}
        for keys, values in tables:
            for key, value in zip(keys, values, strict=True):
                joined[key] = combine(joined[key], value) if key in joined else value
        return list(joined), list(joined.values())

    def _join(self, keys: list[Key], values: list[Any]) -> None:
        """Join what was folded elsewhere with the states, all or nothing."""
        states, combine = self._states, self._combine
        assert combine is not None
        cached = states.cached
        found = list(map(cached.get, keys, itertools.repeat(MISSING)))
        unknown = list(itertools.compress(range(len(keys)), map(operator.is_, found, itertools.repeat(MISSING))))
        for index in unknown:
            found[index] = states.look(keys[index])
        if unknown:
            joined = [v if state is MISSING else combine(state, v) for state, v in zip(found, values, strict=True)]
        else:
            joined = list(map(combine, found, values))
        if states.careful:
            for key, state in zip(keys, joined, strict=True):
                states.put(key, state)
        else:
            states.touch_all(keys)
            cached.update(zip(keys, joined, strict=True))

    def _process_keyed(self, keys: list[Key], cursor: Iterator[Any], out: list[Any]) -> None:
        if self._every_change or type(self).process is not Reduce.process:
            super()._process_keyed(keys, cursor, out)
            return
        states, step = self._states, self._step
        cached, get = states.cached, states.get
        for key, item in zip(keys, cursor, strict=False):
            try:
                state = cached[key]
            except KeyError:
                state = MISSING
            if state is MISSING:
                state = get(key)
            cached[key] = step(state, item)


class Count(Reduce):
    """Counts the items of each key, and pushes ``(key, count)`` for every key at the end of the stream.

    Without ``key`` the item itself is the key. Where several workers share the keys, each counts what it has, and
    only these counts are sent.
    """

    def __init__(self, key: Callable[[Any], Key] | None = None, name: str = "count") -> None:
        super().__init__(_itself if key is None else key, 0, _one_more, name, combine=operator.add)

    def fold(self, items: Iterable[Any]) -> dict[Key, Any]:
        return collections.Counter(items if self._key is _itself else map(self._key, items))

    def _fold_in(self, items: list[Any]) -> None:
        """Where the states are in memory only, without a count of the frame in between."""
        if not self._states.in_memory or _are_tables(items):
            super()._fold_in(items)
            return
        keys = items if self._key is _itself else list(map(self._key, items))
        counts = self._states.cached
        known, taking, taken = len(counts), iter(keys), len(keys)
        error: BaseException | None = None
        try:
            collections.Counter.update(counts, taking)  # type: ignore[call-overload]
        except USER_ERRORS as found:
            error, taken = found, len(keys) - operator.length_hint(taking) - 1
        new = list(itertools.islice(reversed(counts), len(counts) - known))
        if error is None and all(map(operator.eq, new, new)):
            return
        # Taken back, so that it is found item by item which are at fault.
        for key in keys[:taken]:
            counts[key] -= 1
        for key in new:
            del counts[key]
        raise error or KeyEncodingError(f"{self}: a key is not equal to itself")


def _itself(item: Any) -> Any:
    return item


def _one_more(count: int, item: Any) -> int:
    return count + 1


class Parts(Node):
    """Folds each frame by itself, for a `Reduce` in other workers; the planner puts it there."""

    stateless = True

    def __init__(self, reduce: Reduce, name: str) -> None:
        super().__init__(name)
        self._reduce = reduce._detached_copy()

    def _may_be_spread(self) -> bool:
        return True

    def process(self, item: Any) -> None:
        self._push_table([item])

    def _process_frame(self, cursor: Iterator[Any], out: list[Any]) -> None:
        if not _all_at_once(cursor, self._push_table):
            super()._process_frame(cursor, out)

    def _push_table(self, items: list[Any]) -> None:
        if items:
            self.push(self._table(items))

    def _table(self, items: list[Any]) -> PartTable:
        """Keys that find no replica are refused here, where the item is known."""
        assert isinstance(self._reduce, Reduce)
        folded = self._reduce.fold(items)
        if not ALWAYS_KEYS.issuperset(map(type, folded)):
            for key in folded:
                encode_key(key)
        return PartTable(list(folded), list(folded.values()))


__all__ = ["Count", "PartTable", "Parts", "Reduce"]
