"""Large bytes, arrays and tables, as they are and as they should be at the other end."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

numpy = pytest.importorskip("numpy")
arrow = pytest.importorskip("pyarrow")


def make_grid(number: int) -> Any:
    return numpy.arange(120_000, dtype="f8").reshape(300, 400) + number


def make_frozen(number: int) -> Any:
    grid = make_grid(number)
    grid.flags.writeable = False
    return grid


def make_table(number: int) -> Any:
    """Made of buffers, for anything else would load pandas, which takes long."""
    column = arrow.Array.from_buffers(arrow.float64(), 120_000, [None, arrow.py_buffer(make_grid(number).ravel())])
    return arrow.Table.from_arrays([column, column], ["a", "b"], metadata={"number": str(number)})


def make_frame(number: int) -> Any:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"x": make_grid(number).ravel(), "y": numpy.arange(120_000), "z": str(number)})


def make_mixed(number: int) -> Any:
    return {"small": [number], "large": (make_grid(number), b"\x01" * 200_000, "ü" * 200_000)}


KINDS = [
    int,
    lambda number: bytes([number]) * 1_000_000,
    lambda number: bytearray([number]) * 300_000,
    make_grid,
    lambda number: make_grid(number)[::2, ::3],
    lambda number: numpy.asfortranarray(make_grid(number)),
    lambda number: numpy.empty((0, 5)),
    make_frozen,
    make_table,
    make_mixed,
    str,
]
"""Each makes one item from a number below 256."""


def make(number: int) -> Any:
    return KINDS[number % len(KINDS)](number)


def after_a_hop(item: Any) -> Any:
    """What pickle makes of it."""
    return pickle.loads(pickle.dumps(item, 5))


def scribbled(item: Any) -> Any:
    """The item when its owner has written to it, where that can be done."""
    if isinstance(item, numpy.ndarray) and item.flags.writeable:
        item += 1
    if isinstance(item, bytearray):
        item[:3] = b"abc"
    return item


def shape_of(item: Any) -> Any:
    """All that can be told of an item, for a comparison."""
    if isinstance(item, numpy.ndarray):
        flags = item.flags
        return str(item.dtype), item.shape, item.tobytes(), flags.writeable, flags.c_contiguous, flags.f_contiguous
    if isinstance(item, dict):
        return {key: shape_of(value) for key, value in item.items()}
    if isinstance(item, tuple):
        return tuple(map(shape_of, item))
    if hasattr(item, "to_parquet"):
        return list(item.dtypes), item.to_dict("list")
    return type(item), item
