from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consecution.errors import KeyEncodingError
from consecution.states import MISSING, Key, StateMapping, States


class Shelf:
    """A backing that holds what it was made with, and counts the looks."""

    def __init__(self, held: dict[Key, Any], unmerged: Iterable[Key] = ()) -> None:
        self.held = held
        self.looks: list[Key] = []
        self._unmerged = list(unmerged)

    def load(self, key: Key) -> Any:
        self.looks.append(key)
        return copy.deepcopy(self.held[key]) if key in self.held else MISSING

    def knows_none(self, keys: list[Key]) -> bool:
        return not self.held

    def items(self, fresh: Iterable[Key]) -> Iterator[tuple[Key, Any]]:
        return iter(sorted({**dict.fromkeys(fresh, MISSING), **copy.deepcopy(self.held)}.items()))

    def unmerged(self) -> Iterable[Key]:
        return self._unmerged

    def left_memory(self) -> None:
        pass

    def commit(self, states: States) -> None:
        for key, state in zip(*states.take_changes(), strict=True):
            if state is MISSING:
                self.held.pop(key, None)
            else:
                self.held[key] = copy.deepcopy(state)


# -- without a store ---------------------------------------------------------------------------------


def test_a_state_is_made_once_and_found_again() -> None:
    states = States(list)

    states.get("a").append(1)
    states.get("a").append(2)

    assert dict(states.items()) == {"a": [1, 2]}


@pytest.mark.parametrize("key", [math.nan, (math.nan,), ("a", (1, math.nan))])
def test_a_key_that_would_not_find_its_state_again_is_refused(key: Any) -> None:
    with pytest.raises(KeyEncodingError, match="equal to itself"):
        States().get(key)


def test_a_look_makes_no_state() -> None:
    states = States()

    assert states.find("a") is None
    assert states.find("a", 7) == 7

    assert list(states.items()) == []
    assert states.get("a") == {}


def test_what_is_removed_is_made_anew() -> None:
    states = States()
    states.put("a", 1)

    states.remove("a")

    assert list(states.items()) == []
    assert states.get("a") == {}


def test_without_a_store_nothing_is_kept_of_keys_that_have_no_state() -> None:
    states = States()
    for key in range(5):
        assert states.find(key) is None
        states.put(key, 1)
        states.remove(key)
        states.remove(key)
    states.begin_item()
    states.get("undone")
    states.undo_item()
    states.touch_all([1, 2, 3])

    assert (states.cached, states.touched) == ({}, set())
    with pytest.raises(TypeError):
        states.touch_all([1, []])


def test_items_may_be_changed_while_they_are_gone_through() -> None:
    states = States()
    for key in "abc":
        states.put(key, 1)

    for key, _ in states.items():
        states.remove(key)
        states.put(key.upper(), 2)

    assert dict(states.items()) == {"A": 2, "B": 2, "C": 2}


# -- over a store ------------------------------------------------------------------------------------


def test_a_state_comes_from_the_store_once() -> None:
    shelf = Shelf({"a": {"n": 1}})
    states = States(dict, shelf)

    states.get("a")["n"] = 2
    found = states.get("a")

    assert (found, shelf.looks) == ({"n": 2}, ["a"])


def test_what_was_looked_up_counts_as_changed_until_it_is_taken() -> None:
    states = States(dict, Shelf({"a": [1], "b": [2]}))

    states.get("a").append(3)

    assert states.take_changes() == (["a"], [[1, 3]])
    assert states.take_changes() == ([], [])


def test_a_roll_back_finds_what_the_store_has() -> None:
    states = States(dict, Shelf({"a": [1]}))
    states.get("a").append(2)
    states.get("new")["x"] = 1

    states.roll_back()

    assert states.get("a") == [1]
    assert dict(states.items()) == {"a": [1]}


def test_items_show_changes_over_the_store_each_key_once() -> None:
    shelf = Shelf({"a": 1, "b": 2, "c": 3}, unmerged=["d"])
    states = States(dict, shelf)
    states.cached["d"] = 4
    states.put("b", 20)
    states.remove("c")
    states.put("e", 5)

    found = list(states.items())

    assert found == [("a", 1), ("b", 20), ("d", 4), ("e", 5)]


def test_items_show_what_only_the_log_has_after_a_roll_back() -> None:
    shelf = Shelf({"a": 1, "b": 2}, unmerged=["b"])
    shelf.items = lambda fresh: iter([("a", 1), ("b", "old")])  # type: ignore[method-assign]
    states = States(dict, shelf)
    states.put("b", 3)

    states.roll_back()

    assert list(states.items()) == [("a", 1), ("b", 2)]


def test_a_removal_is_a_change() -> None:
    shelf = Shelf({"a": 1})
    states = States(dict, shelf)

    states.remove("a")

    assert states.take_changes() == (["a"], [MISSING])


# -- item by item ------------------------------------------------------------------------------------


def test_an_item_that_is_undone_leaves_every_state_as_it_was() -> None:
    states = States(dict, Shelf({"deep": {"list": [1]}, "gone": 1}))
    states.get("before")["n"] = 1

    states.begin_item()
    states.get("deep")["list"].append(2)
    states.get("before")["n"] = 2
    states.get("new")["n"] = 1
    states.remove("gone")
    states.undo_item()

    assert dict(states.items()) == {"deep": {"list": [1]}, "gone": 1, "before": {"n": 1}}


def test_an_item_that_is_kept_stays() -> None:
    states = States()

    states.begin_item()
    assert states.careful
    states.get("a")["n"] = 1
    states.keep_item()

    assert not states.careful
    states.begin_item()
    states.undo_item()
    assert dict(states.items()) == {"a": {"n": 1}}


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["append", "put", "remove", "find", "commit", "roll back", "begin", "keep", "undo"]),
        st.integers(0, 4),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=300)
@given(ACTIONS)
def test_it_equals_a_dict_with_copies_at_every_commit_and_item(actions: list[tuple[str, int]]) -> None:
    shelf = Shelf({})
    states = States(list, shelf)
    now: dict[int, Any] = {}
    committed: dict[int, Any] = {}
    before_item: dict[int, Any] | None = None
    for number, (action, key) in enumerate(actions):
        if action == "append":
            states.get(key).append(number)
            now.setdefault(key, []).append(number)
        elif action == "put":
            states.put(key, [number])
            now[key] = [number]
        elif action == "remove":
            states.remove(key)
            now.pop(key, None)
        elif action == "find":
            assert states.find(key) == now.get(key)
        elif action == "begin" and before_item is None:
            states.begin_item()
            before_item = copy.deepcopy(now)
        elif action in ("keep", "undo") and before_item is not None:
            if action == "undo":
                states.undo_item()
                now = before_item
            else:
                states.keep_item()
            before_item = None
        elif action == "commit" and before_item is None:
            shelf.commit(states)
            committed = copy.deepcopy(now)
        elif action == "roll back" and before_item is None:
            states.roll_back()
            now = copy.deepcopy(committed)

        assert dict(states.items()) == now
    if before_item is None:
        shelf.commit(states)
        assert shelf.held == now


# -- as a mapping ------------------------------------------------------------------------------------


def test_a_mapping_behaves_like_a_dict() -> None:
    mapping = StateMapping(States(dict, Shelf({"a": 1})))

    mapping["b"] = [2]
    mapping["b"].append(3)
    del mapping["a"]

    assert dict(mapping) == {"b": [2, 3]}
    assert (len(mapping), "a" in mapping, mapping.get("a", 7), mapping.pop("b")) == (1, False, 7, [2, 3])
    with pytest.raises(KeyError):
        del mapping["a"]
    assert repr(mapping) == "StateMapping({})"


def test_a_mapping_is_gone_through_once_to_be_cleared() -> None:
    class Walked(Shelf):
        entries = 0

        def items(self, fresh: Iterable[Key]) -> Iterator[tuple[Key, Any]]:
            for entry in super().items(fresh):
                self.entries += 1
                yield entry

    shelf = Walked({number: number for number in range(50)})
    states = States(dict, shelf)
    mapping = StateMapping(states)
    mapping[50] = 50

    mapping.clear()

    assert shelf.entries == 51
    assert dict(mapping) == {}
    shelf.commit(states)
    assert shelf.held == {}


def test_looking_for_what_is_not_there_changes_nothing() -> None:
    states = States(dict, Shelf({}))
    mapping = StateMapping(states)

    assert "a" not in mapping
    assert mapping.get("a") is None

    assert states.take_changes() == ([], [])
