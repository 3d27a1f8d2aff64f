"""Rows become values in the order of the columns: a frame at once, or row by row, with the same outcome."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consecution.errors import UsageError
from consecution.sinks.rows import shape_of

names = st.sampled_from(["a", "b", "c"])
plain = st.dictionaries(names, st.integers(0, 9), min_size=1)
others = st.one_of(plain.map(OrderedDict), plain.map(lambda row: defaultdict(int, row)), st.just(("a", 1)))
frames = st.one_of(
    st.fixed_dictionaries({"b": st.integers(), "a": st.none()}).flatmap(lambda row: st.lists(st.just(row), min_size=1)),
    st.lists(plain, min_size=1),
    st.builds(lambda first, rest: [first, *rest], plain, st.lists(st.one_of(plain, others))),
)


def outcome(rows: Callable[[], Any]) -> Any:
    try:
        return [list(row) for row in rows()]
    except UsageError as error:
        return str(error)


@given(frames, st.sampled_from([None, ("a",), ("a", "b"), ("c", "a", "b")]))
def test_a_frame_at_once_gives_what_its_rows_give_one_by_one(frame: list[Any], columns: Any) -> None:
    shape = shape_of(frame[0], columns or ("a", "b"), "sink")

    one_by_one = outcome(lambda: map(shape.values_of, frame))

    assert outcome(lambda: shape.rows_of(frame)) == one_by_one
    expected = one_by_one if isinstance(one_by_one, str) else [list(column) for column in zip(*one_by_one, strict=True)]
    assert outcome(lambda: shape.columns_of(frame)) == expected


def test_dicts_that_are_alike_are_not_looked_at_one_by_one() -> None:
    def forbidden(row: Any) -> Any:
        raise AssertionError(f"{row} was")

    frame = [{"b": 2, "a": 1}, {"a": 3, "b": 4}]
    shape = shape_of(frame[0], None, "sink")
    object.__setattr__(shape, "values_of", forbidden)

    assert list(shape.rows_of(frame)) == [(2, 1), (4, 3)]
    with pytest.raises(AssertionError):
        list(shape.rows_of([*frame, {"a": 5}]))


def test_a_row_that_raises_stop_iteration_does_not_end_the_frame() -> None:
    class Bare(OrderedDict[str, Any]):
        def get(self, *_: Any) -> Any:
            raise StopIteration

    frame = [{"a": 1}, Bare(a=2), {"a": 3}]
    shape = shape_of(frame[0], None, "sink")

    for ask in (shape.rows_of, shape.columns_of):
        with pytest.raises(RuntimeError, match="StopIteration"):
            list(ask(frame))
