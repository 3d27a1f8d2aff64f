"""Keyed state in memory: a dict in front of a store, which learns what changed and can take it back.

A `States` hands out states by key. Whatever was handed out since the last `take_changes` counts as changed,
for a state is a mutable value of the user's and nobody can see what was done to it. A commit takes the
changes; `roll_back` forgets them instead, so that the next look finds what the store has.

Without a store (`Pipeline.consume`, and every robustness but ``robust``) the dict is all there is: nobody asks what
has changed, and what is not there takes no place. With one, a key that was looked for and not found stays for a while,
so that the store is not asked again; whoever commits bounds that (see `state_table`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, MutableMapping
from typing import Any, Protocol

from consecution.errors import KeyEncodingError

Key = Any

ALWAYS_KEYS = frozenset((str, int, bool, bytes))
"""Whatever is of these types finds a replica, and its state again."""

MISSING: Any = object()
"""No state under this key."""


def check_equal(key: Key) -> None:
    """KeyEncodingError for a key that no look-up would find again: NaN, as a float or a Decimal, or a tuple with it."""
    if key != key or (isinstance(key, tuple) and not equals_itself(key)):
        what = "holds what is not" if key == key else "is not"
        raise KeyEncodingError(
            f"{key!r} {what} equal to itself, and so cannot find its state again: no key; let the key function return, "
            "say, None instead"
        )


def equals_itself(key: Key) -> bool:
    """Whether a key equals a copy of it. A tuple equals itself whatever is in it: that may be the very same object."""
    return all_equal_themselves(key) if isinstance(key, tuple) else bool(key == key)


def all_equal_themselves(keys: Collection[Key]) -> bool:
    """Whether each of them equals a copy of itself."""
    return ALWAYS_KEYS.issuperset(map(type, keys)) or all(map(equals_itself, keys))


class Backing(Protocol):
    """Where states are that are not in memory."""

    def load(self, key: Key) -> Any:
        """The state under a key, `MISSING` if there is none."""

    def knows_none(self, keys: list[Key]) -> bool:
        """Whether none of these has a state, of which none is in memory; their types are in `ALWAYS_KEYS`.

        False: each has to be loaded.
        """

    def items(self, fresh: Collection[Key]) -> Iterator[tuple[Key, Any]]:
        """All that are merged, and the ``fresh`` ones as `MISSING`, in an order that is the same in every run."""

    def unmerged(self) -> Iterable[Key]:
        """The keys that may not be merged yet, or not as they are now; `load` has them."""

    def left_memory(self) -> None:
        """From here on a key that is not in memory may still be in the store."""


class States:
    """The states of one replica. Called by one thread.

    ``initial`` makes the state of a key that has none. `cached` and `touched` are open to the frame loop of
    `KeyedNode`, which has no time for a call per item; everybody else goes through the methods.
    """

    def __init__(self, initial: Callable[[], Any] = dict, backing: Backing | None = None) -> None:
        self.initial = initial
        self.cached: dict[Key, Any] = {}
        self.touched: set[Key] = set()
        self._backing = backing
        self._undo: dict[Key, Any] | None = None
        self.roll_backs = 0
        """How often something was taken back: whoever keeps notes on the states has to look again."""
        self.made = 0
        """How often a state was made for a key that had none."""

    def get(self, key: Key) -> Any:
        """The state of a key, made if there is none; it counts as changed."""
        state = self._touch(key)
        if state is MISSING:
            state = self.cached[key] = self.initial()
            self.made += 1
        return state

    def find(self, key: Key, default: Any = None) -> Any:
        """The state of a key, ``default`` if there is none; it counts as changed, for the caller may change it."""
        if self.look(key) is MISSING:
            return default
        return self._touch(key)

    def put(self, key: Key, state: Any) -> None:
        """Give a key another state."""
        self._touch(key)
        self.cached[key] = state

    def remove(self, key: Key) -> None:
        """Forget a key."""
        self.put(key, MISSING)
        if self._backing is None:
            del self.cached[key]

    def unmake(self, key: Key) -> None:
        """The item raised that `get` has made this state for. Where there is a store, whoever commits takes it back."""
        if self._backing is None:
            self.roll_backs += 1
            self.cached.pop(key, None)

    @property
    def in_memory(self) -> bool:
        """Whether there is no store behind them."""
        return self._backing is None

    def look(self, key: Key) -> Any:
        """The state of a key, `MISSING` if there is none. The store is not asked for it again; it has not changed."""
        state = self.cached.get(key, self)
        if state is self:
            check_equal(key)
            if self._backing is None:
                return MISSING
            state = self._load(self._backing, key)
        return state

    def are_new(self, keys: list[Key]) -> bool:
        """Whether none of these, which are not in memory, has a state; mostly that can be told without asking for each.

        False: each has to be looked for.
        """
        if not ALWAYS_KEYS.issuperset(map(type, keys)):
            return False
        return self._backing is None or self._backing.knows_none(keys)

    def _load(self, backing: Backing, key: Key) -> Any:
        state = self.cached[key] = backing.load(key)
        return state

    def _touch(self, key: Key) -> Any:
        state = self.look(key)
        if self._backing is not None:
            self.touched.add(key)
        if self._undo is not None and key not in self._undo:
            self._undo[key] = copy.deepcopy(state) if state is not MISSING else MISSING
        return state

    def touch_all(self, keys: Iterable[Key]) -> None:
        """These keys will have changed, once each was looked up with `get`. TypeError for one that cannot be hashed."""
        self.touched.update(keys)
        if self._backing is None:
            self.touched.clear()

    def items(self) -> Iterator[tuple[Key, Any]]:
        """Every key with its state, in the order of the store. A look only: what the caller changes may be lost."""
        if self._backing is None:
            return iter([(key, state) for key, state in self.cached.items() if state is not MISSING])
        return self._stored_items(self._backing)

    def _stored_items(self, backing: Backing) -> Iterator[tuple[Key, Any]]:
        fresh = {*backing.unmerged(), *self.touched}
        for key, stored in backing.items(fresh):
            state = self.cached.get(key, self)
            if state is self:
                state = self._load(backing, key) if key in fresh else stored
            if state is not MISSING:
                yield key, state

    # -- commits ---------------------------------------------------------------------------------

    def take_changes(self) -> tuple[list[Key], list[Any]]:
        """What changed since the last call: the keys, and the state of each, `MISSING` for what was removed."""
        cached = self.cached
        keys = list(self.touched)
        self.touched.clear()
        try:
            return keys, list(map(cached.__getitem__, keys))
        except KeyError:
            # Touched before it was looked up, and then not looked up: nothing has changed.
            keys = [key for key in keys if key in cached]
            return keys, [cached[key] for key in keys]

    def roll_back(self) -> None:
        """Forget what changed since the last `take_changes`."""
        self.roll_backs += 1
        if self._backing is not None:
            self._backing.left_memory()
        for key in self.touched:
            self.cached.pop(key, None)
        self.touched.clear()

    # -- item by item ----------------------------------------------------------------------------

    def begin_item(self) -> None:
        """From here on remember every state as it was, until `keep_item` or `undo_item`."""
        self._undo = {}

    def keep_item(self) -> None:
        self._undo = None

    def undo_item(self) -> None:
        """Put every state back to what it was at `begin_item`."""
        self.roll_backs += 1
        for key, state in (self._undo or {}).items():
            self._put_back(key, state)
        self._undo = None

    def _put_back(self, key: Key, state: Any) -> None:
        if state is MISSING and self._backing is None:
            self.cached.pop(key, None)
        else:
            self.cached[key] = state

    def undo_key(self, key: Key) -> None:
        """Put one state back to what it was at `begin_item`; the others stay as they are now."""
        if self._undo is not None and key in self._undo:
            self.roll_backs += 1
            self._put_back(key, self._undo.pop(key))

    @property
    def careful(self) -> bool:
        """Whether an item is being remembered, so that the quick loop may not be used."""
        return self._undo is not None


class StateMapping(MutableMapping[Any, Any]):
    """``self.state`` of a `StatefulNode`: a mapping whose entries are written one by one as they change.

    A value that is looked up counts as changed, for it may be a list that is then appended to.
    """

    def __init__(self, states: States) -> None:
        self._states = states

    def __getitem__(self, key: Key) -> Any:
        found = self._states.find(key, MISSING)
        if found is MISSING:
            raise KeyError(key)
        return found

    def __setitem__(self, key: Key, value: Any) -> None:
        self._states.put(key, value)

    def __delitem__(self, key: Key) -> None:
        self[key]
        self._states.remove(key)

    def __iter__(self) -> Iterator[Key]:
        return (key for key, _ in self._states.items())

    def __len__(self) -> int:
        return sum(1 for _ in self._states.items())

    def clear(self) -> None:
        """Remove all entries. They are gone through once, not anew for each as `popitem` would."""
        for key in [*iter(self)]:  # which, unlike `list`, does not ask for the length first
            self._states.remove(key)

    def __repr__(self) -> str:
        return f"StateMapping({dict(self._states.items())!r})"
