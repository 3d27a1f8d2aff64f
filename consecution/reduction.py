"""Folding the items of each key into one value; where that can be done in parts, each worker does its own first.

A node with ``combine`` gets a companion where ``workers`` is a number: `Parts`, in every worker, which folds each
frame by itself. What then crosses between workers is one `PartTable` a frame and replica, not the items.

Source: the combiner of MapReduce.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import itertools
import operator
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from consecution import graph
from consecution.calling import call_each
from consecution.errors import KeyEncodingError, UndecodableStateError, UsageError
from consecution.nodes import Node
from consecution.protocol.values import USER_ERRORS, PartlyFailedError
from consecution.routing import encode_key
from consecution.stateful import KeyedNode
from consecution.states import ALWAYS_KEYS, MISSING, Key, all_equal_themselves, check_equal

JOINED_AT_ONCE = 1024
"""Keys that are looked up, joined and kept before the next ones: these are still in the processor's cache each time."""


def _all_at_once(cursor: Iterator[Any], take: Callable[[list[Any]], None]) -> bool:
    """Have all items that are left taken together. False, and none is: one of them raises, and is found one by one."""
    items = list(copy.copy(cursor))
    try:
        take(items)
    except USER_ERRORS:
        return False
    collections.deque(cursor, maxlen=0)
    return True


def _errors_of(chosen: list[bool], errors: dict[int, BaseException]) -> dict[int, BaseException]:
    """Errors by their places in a list, of which these are some that were chosen."""
    places = list(itertools.compress(itertools.count(), chosen)) if errors else []
    return {places[place]: error for place, error in errors.items()}


def _all_that_go(results: Iterator[Any], count: int) -> tuple[list[Any], dict[int, BaseException]]:
    """So many results of an iterator that goes on after an error, with None in the place of each that raised."""
    good: list[Any] = []
    errors: dict[int, BaseException] = {}
    while len(good) < count:
        error: BaseException = RuntimeError("combine raised StopIteration")
        try:
            good.extend(results)
        except UndecodableStateError:
            raise
        except USER_ERRORS as raised:
            error = raised
        if len(good) < count:
            errors[len(good)] = error
            good.append(None)
    return good, errors


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


def _holds_tables(cursor: Iterator[Any]) -> bool:
    """Whether a frame comes from `Parts`. All of its items do then, for it came over one edge; else none does."""
    return type(next(copy.copy(cursor), None)) is PartTable


class _PartlyJoined(BaseException):
    """Of a frame only these keys are joined, for others cannot be. No error of an item's, nor to be taken for one."""

    def __init__(self, joined: Collection[Key], error: BaseException) -> None:
        super().__init__()
        self.joined = joined
        self.error = error


class Reduce(KeyedNode):
    """Folds the items of each key into one value: ``value = step(value, item)``, beginning with ``initial``.

    At the end of the stream it pushes ``(key, value)`` for every key; with ``every_change=True`` it pushes
    that after each item instead: the value itself, so let ``step`` return a new one there. ``initial`` is a value, or
    a function without arguments that makes one; give a function where ``step`` changes the value in place.

    ``combine(value, other)`` joins two values that were folded from different items of a key, each beginning with
    ``initial``. Where it is given, workers fold what they have before they send it (``workers``). It must not matter
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
        self._joined_of: tuple[Iterator[Any], Collection[Key]] | None = None

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
            push = self.push
            for key_and_value in self.states():
                push(key_and_value)

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
        if _holds_tables(cursor):
            for table in cursor:
                self._join_table(table)
        elif self._joined_of is not None and self._joined_of[0] is cursor:
            self._process_others(*self._joined_of)
        elif self._states.careful or not self._fold_frame(cursor):
            for item in cursor:
                self._process_item(item)

    def _fold_frame(self, cursor: Iterator[Any]) -> bool:
        """False: nothing was taken. Where the states are stored, an error has them all taken back by whoever stores."""
        try:
            return _all_at_once(cursor, self._fold_in)
        except _PartlyJoined as partly:
            if not self._states.in_memory:
                raise partly.error from None
            joined = partly.joined
        self._joined_of = cursor, joined
        self._process_others(cursor, joined)
        return True

    def _process_others(self, cursor: Iterator[Any], joined: Collection[Key]) -> None:
        """Item by item, but for those whose keys are joined. After one that raises it goes on so with the rest."""
        for item in cursor:
            if self._key(item) not in joined:
                self._process_item(item)
        self._joined_of = None

    def _fold_in(self, items: list[Any]) -> None:
        """All or nothing; but of keys that cannot be joined the others are, for ``combine`` may work in place."""
        folded = self.fold(items)
        keys = list(folded)
        try:
            refused = self._join(keys, list(folded.values()))
        except USER_ERRORS as error:
            if self._states.in_memory:
                raise
            raise _PartlyJoined((), error) from None
        if refused:
            kept = frozenset(key for place, key in enumerate(keys) if place not in refused)
            raise _PartlyJoined(kept, next(iter(refused.values())))

    def _join_table(self, table: PartTable) -> None:
        """Join what was folded elsewhere with the states. Whoever sent it is gone, so that no item can be blamed.

        PartlyFailedError, once the others are joined, for entries that raise: each as a table of its own.
        """
        keys, values = table.columns
        refused = self._join(keys, values)
        if refused:
            for place in refused:
                self._states.undo_key(keys[place])
            raise PartlyFailedError([(PartTable([keys[at]], [values[at]]), error) for at, error in refused.items()])

    def _join(self, keys: list[Key], values: list[Any]) -> dict[int, BaseException]:
        """Join the state of each key with its value, and keep it; returns the places of those that raise.

        Each is tried once, for what ``combine`` has changed in place it must not be given again.
        """
        refused: dict[int, BaseException] = {}
        for start in range(0, len(keys), JOINED_AT_ONCE):
            some = keys[start : start + JOINED_AT_ONCE]
            try:
                errors = self._join_some(some, values[start : start + JOINED_AT_ONCE])
            except USER_ERRORS as error:  # A key cannot be looked up.
                if not start or not self._states.in_memory:
                    raise
                errors = dict.fromkeys(range(len(some)), error)
            refused.update((start + place, errors[place]) for place in sorted(errors))
        return refused

    def _join_some(self, keys: list[Key], values: list[Any]) -> dict[int, BaseException]:
        states, combine = self._states, self._combine
        assert combine is not None
        find = functools.partial(states.find, default=MISSING) if states.careful else states.look

        def find_and_join(key: Key, value: Any) -> Any:
            state = find(key)
            return value if state is MISSING else combine(state, value)

        if states.careful:
            return self._keep(keys, map(find_and_join, keys, values))
        states.touch_all(keys)
        found = call_each(states.cached.get, keys, itertools.repeat(MISSING))
        is_new = list(map(operator.is_, found, itertools.repeat(MISSING)))
        if not any(is_new):
            return self._keep(keys, map(combine, found, values))
        new_keys, new_values = list(itertools.compress(keys, is_new)), list(itertools.compress(values, is_new))
        new = iter(new_values) if states.are_new(new_keys) else map(find_and_join, new_keys, new_values)
        is_known = list(map(operator.not_, is_new))
        joined = map(combine, itertools.compress(found, is_known), itertools.compress(values, is_known))
        errors = self._keep(list(itertools.compress(keys, is_known)), joined)
        new_errors = self._keep(new_keys, new)
        return {**_errors_of(is_known, errors), **_errors_of(is_new, new_errors)}

    def _keep(self, keys: list[Key], results: Iterator[Any]) -> dict[int, BaseException]:
        """The states of these keys, which were looked up, are what ``results`` gives; returns the places of errors."""
        states = self._states
        joined, errors = _all_that_go(results, len(keys))
        if errors:
            good = [place not in errors for place in range(len(keys))]
            keys, joined = list(itertools.compress(keys, good)), list(itertools.compress(joined, good))
        if states.careful:
            for key, state in zip(keys, joined, strict=True):
                states.put(key, state)
        else:
            states.cached.update(zip(keys, joined, strict=True))
        return errors

    def _process_keyed(self, keys: list[Key], cursor: Iterator[Any], out: list[Any]) -> None:
        if self._every_change or type(self).process is not Reduce.process:
            super()._process_keyed(keys, cursor, out)
            return
        states, step = self._states, self._step
        cached, get = states.cached, states.get
        made_at = -1
        try:
            for key, item in zip(keys, cursor, strict=False):
                try:
                    state = cached[key]
                except KeyError:
                    state = MISSING
                if state is MISSING:
                    state = get(key)
                    made_at = operator.length_hint(cursor)
                cached[key] = step(state, item)
        except BaseException:
            if made_at == operator.length_hint(cursor):
                states.unmake(key)
            raise


class Count(Reduce):
    """Counts the items of each key, and pushes ``(key, count)`` for every key at the end of the stream.

    Without ``key`` the item itself is the key. Where several workers share the keys, each counts what it has, and
    only these counts are sent.
    """

    def __init__(self, key: Callable[[Any], Key] | None = None, name: str = "count") -> None:
        if key is not None:
            graph.check_function(key, "Count(key=...)", "a function that returns an item's key")
        super().__init__(_itself if key is None else key, 0, _one_more, name, combine=operator.add)

    def fold(self, items: Iterable[Any]) -> dict[Key, Any]:
        return collections.Counter(items if self._key is _itself else call_each(self._key, items))

    def _fold_in(self, items: list[Any]) -> None:
        """Where the states are in memory only, without a count of the frame in between."""
        if not self._states.in_memory:
            super()._fold_in(items)
            return
        keys = items if self._key is _itself else call_each(self._key, items)
        counts = self._states.cached
        known, taking, taken = len(counts), iter(keys), len(keys)
        error: BaseException | None = None
        try:
            collections.Counter.update(counts, taking)  # type: ignore[call-overload]
        except USER_ERRORS as found:
            error, taken = found, len(keys) - operator.length_hint(taking) - 1
        new = list(itertools.islice(reversed(counts), len(counts) - known))
        if error is None and all_equal_themselves(new):
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
        """One table of all items that go. PartlyFailedError for the others, all together."""
        if _all_at_once(cursor, self._push_table):
            return
        tables, good, failed = self._sift(cursor)
        if len(tables) > 1:
            with contextlib.suppress(*USER_ERRORS):  # Each part may go, and together they do not.
                tables = [self._table(good)]
        collections.deque(map(self.push, tables), maxlen=0)
        if failed:
            raise PartlyFailedError(failed)

    def _push_table(self, items: list[Any]) -> None:
        if items:
            self.push(self._table(items))

    def _sift(self, cursor: Iterator[Any]) -> tuple[list[PartTable], list[Any], list[tuple[Any, BaseException]]]:
        """Try half by half, to find what raises. Tables of what goes, these items, and those that raise."""
        tables: list[PartTable] = []
        good: list[Any] = []
        failed: list[tuple[Any, BaseException]] = []
        parts = [items] if (items := list(copy.copy(cursor))) else []
        while parts:
            part = parts.pop()
            try:
                tables.append(self._table(part))
            except USER_ERRORS as error:
                if len(part) > 1:
                    middle = len(part) // 2
                    parts += part[middle:], part[:middle]
                    continue
                failed.append((part[0], error))
            else:
                good += part
            collections.deque(itertools.islice(cursor, len(part)), maxlen=0)
        return tables, good, failed

    def _table(self, items: list[Any]) -> PartTable:
        """Keys that find no replica are refused here, where the item is known."""
        folded = self._reduce.fold(items)
        if not ALWAYS_KEYS.issuperset(map(type, folded)):
            for key in folded:
                check_equal(key)
                if type(key) is not float:
                    encode_key(key)
        return PartTable(list(folded), list(folded.values()))


__all__ = ["Count", "PartTable", "Parts", "Reduce"]
