from __future__ import annotations

import datetime
import enum
import pickle
from typing import Any

import pytest

from consecution.runtime.attribute_pickles import pickle_attributes


class Colour(enum.Enum):
    RED = 1


class Thing:
    def __init__(self, part: Any) -> None:
        self.part = part


class Labelled(str):
    label: list[Any]


class Pair(tuple[Any, ...]):
    label: list[Any]


def put_back(values: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for names, blob in pickle_attributes(values).items():
        found.update(zip(names, pickle.loads(blob), strict=True))
    return found


def groups(**values: Any) -> set[tuple[str, ...]]:
    return set(pickle_attributes(values))


@pytest.mark.parametrize("shared", [[], {}, set(), bytearray(b"x"), Thing(1)], ids=lambda shared: type(shared).__name__)
def test_what_can_change_stays_one_object_wherever_it_lies(shared: Any) -> None:
    found = put_back({"b": shared, "a": {"x": [shared]}, "c": Thing((shared,)), "d": 1})

    assert found["a"]["x"][0] is found["b"] is found["c"].part[0]
    assert groups(b=shared, a={"x": [shared]}, c=Thing((shared,)), d=1) == {("a", "b", "c"), ("d",)}


def test_those_that_share_different_things_are_one_group_if_they_hang_together() -> None:
    one, other, alone = [1], [2], [3]

    assert groups(a=[one], b=[one, other], c=[other], d=[alone], e=[[3]]) == {("a", "b", "c"), ("d",), ("e",)}


@pytest.mark.parametrize(
    "shared",
    [
        "text" * 9,
        b"bytes" * 9,
        2**99,
        (1, "x"),
        frozenset({1}),
        Colour.RED,
        Thing,
        len,
        datetime.datetime(2026, 11, 30),
    ],
    ids=repr,
)
def test_what_cannot_change_joins_nothing(shared: Any) -> None:
    assert groups(a=[shared], b=[shared], c=shared) == {("a",), ("b",), ("c",)}


def test_objects_that_are_equal_and_not_the_same_join_nothing() -> None:
    assert groups(a={"x": []}, b={"x": []}, c=[]) == {("a",), ("b",), ("c",)}


def test_what_cannot_be_pickled_is_left_out_and_hinders_nobody() -> None:
    shared = [1]

    assert groups(a=(part for part in ()), b=[shared, (part for part in ())], c=shared, d=[shared]) == {("c", "d")}


def test_what_only_dill_can_pickle_may_share_too() -> None:
    shared = [1]
    found = put_back({"a": [shared, lambda: 7], "b": shared})

    assert found["a"][0] is found["b"]
    assert found["a"][1]() == 7


@pytest.mark.parametrize("kind", [Labelled, Pair])
def test_what_cannot_change_but_for_the_attributes_that_its_class_gives_it_stays_one_object(kind: type[Any]) -> None:
    shared = kind("ab")
    shared.label = [1]

    found = put_back({"a": shared, "b": [shared], "c": shared.label})

    assert found["a"] is found["b"][0]
    assert found["a"].label is found["c"]


def test_arrays_of_one_type_join_only_if_they_are_one() -> None:
    numpy = pytest.importorskip("numpy")
    one, other = numpy.zeros(3), numpy.zeros(3)

    assert groups(a=one, b=other, c=[numpy.int64(3)], d=[numpy.int64(3)]) == {("a",), ("b",), ("c",), ("d",)}
    assert groups(a=one, b=[one], c=other) == {("a", "b"), ("c",)}
