"""Nodes whose state survives: in ``robust`` it is committed together with what they push, once per item.

At the other robustness levels, and in `Pipeline.consume`, the same nodes keep their state in memory.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator
from typing import Any, Self

from consecution.calling import call_each
from consecution.errors import GraphError
from consecution.nodes import Node
from consecution.protocol.values import USER_ERRORS
from consecution.routing import encode_key
from consecution.states import MISSING, Backing, Key, StateMapping, States

WHOLE = ""
"""The key under which a `StatefulNode` keeps a state that is one value."""


class DurableNode(Node):
    """What `StatefulNode` and `KeyedNode` share. Inherit from one of them."""

    _states: States

    def initial_state(self) -> Any:
        """The state before the first item: a dict, unless you return a value of your own, say a dataclass.

        Any value that can be pickled will do. A value that cannot change (an int, a tuple) is replaced by
        assigning: ``self.state = self.state + 1``.
        """
        return {}

    def _open_states(self, backing: Backing | None = None) -> States:
        """Begin with the states of a store, or with none."""
        self._states = States(self.initial_state, backing)
        return self._states

    def _is_durable(self) -> bool:
        return True

    def _begin(self) -> None:
        self._open_states()
        super()._begin()

    def _break_off(self) -> None:
        vars(self).pop("_states", None)

    def _detached_copy(self) -> Self:
        twin = super()._detached_copy()
        vars(twin).pop("_states", None)
        vars(twin).pop("state", None)
        return twin


class StatefulNode(DurableNode):
    """A node with one state, and so with one replica.

    ``self.state`` is a mapping that survives; its entries are written one by one, as they change, and so no two of them
    may hold the same list. Where `initial_state` is overridden, ``self.state`` is that value, written as a whole.
    """

    max_replicas = 1

    @property
    def _is_mapping(self) -> bool:
        return type(self).initial_state is DurableNode.initial_state

    @property
    def state(self) -> Any:
        """The state: a mapping, or the value that `initial_state` began with. Assigning replaces it."""
        return StateMapping(self._states) if self._is_mapping else self._states.get(WHOLE)

    @state.setter
    def state(self, value: Any) -> None:
        if not self._is_mapping:
            self._states.put(WHOLE, value)
            return
        mapping = StateMapping(self._states)
        for key in list(mapping):
            if key not in value:
                del mapping[key]
        mapping.update(value)


class KeyedNode(DurableNode):
    """A node with one state per key. ``node * n`` shares the keys between replicas: a key always meets the same.

    Define ``key(item)`` and ``process(item)``; in `process`, ``self.state`` is the state of the item's key.
    `states` gives all states of this replica, for `end`.
    """

    state: Any

    def key(self, item: Any) -> Key:
        """The key of an item. Must be overridden.

        Text, bytes, a number (a Decimal too, but not NaN), True, False, None, a member of an Enum, a date, a datetime,
        a UUID, or a tuple of these: what is the same in every process. An item with another key fails.
        """
        raise NotImplementedError(
            f"Error in node named {self.name!r}\nYou must define a .key(self, item) method on all keyed nodes"
        )

    def states(self) -> Iterator[tuple[Key, Any]]:
        """(key, state) of every key of this replica; in a run, sorted by the keys' bytes."""
        return self._states.items()

    def _may_be_spread(self) -> bool:
        return True

    def by(self, key_function: Callable[[Any], Any]) -> Node:
        raise GraphError(f"{self}.by(...): a KeyedNode groups by its own key(item); define that instead")

    def _grouping_key(self) -> Callable[[Any], Any] | None:
        """What a sender needs to find the replica of an item: the key method, without the rest of the graph."""
        return self._detached_copy().key

    def _item_processor(self) -> Callable[[Any], Any]:
        return self._process_item

    def _process_item(self, item: Any) -> None:
        key = self.key(item)
        states = self._states
        made = states.made
        try:
            state = self.state = states.get(key)
        except TypeError:
            encode_key(key)  # raises, for what cannot be hashed, an error that says what a key may be
            raise
        try:
            self._logged_process(item)
        except BaseException:
            if states.made > made:
                states.unmake(key)
            raise
        if self.state is not state:
            states.put(key, self.state)

    def _process_frame(self, cursor: Iterator[Any], out: list[Any]) -> None:
        if self._logging is not None or self._states.careful or type(self)._process_item is not KeyedNode._process_item:
            super()._process_frame(cursor, out)
            return
        try:
            keys = call_each(self.key, copy.copy(cursor))
            self._states.touch_all(keys)
        except USER_ERRORS:
            super()._process_frame(cursor, out)  # finds the item whose key it is, or that has none
            return
        self._process_keyed(keys, cursor, out)

    def _process_keyed(self, keys: list[Key], cursor: Iterator[Any], out: list[Any]) -> None:
        """The loop over a frame whose keys are known, and touched; a call less per item than `_process_item`."""
        states, process = self._states, self.process
        cached, get = states.cached, states.get
        mark, made_at = len(out), -1
        try:
            for key, item in zip(keys, cursor, strict=False):
                try:
                    state = cached[key]
                except KeyError:
                    state = MISSING
                if state is MISSING:
                    state = get(key)
                    made_at = operator.length_hint(cursor)
                self.state = state
                process(item)
                if self.state is not state:
                    cached[key] = self.state
                mark = len(out)
        except BaseException:
            del out[mark:]
            if made_at == operator.length_hint(cursor):
                states.unmake(key)
            raise


__all__ = ["DurableNode", "KeyedNode", "StatefulNode"]
