from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consecution.protocol.values import Frame, FrameId, Stage, TaskIndex
from consecution.transport.codec import PickleCodec, ReusingCodec
from consecution.transport.frames import decode_message, encode_message
from consecution.transport.pieces import LARGE_BYTES, Pieces, load
from tests.large_items import KINDS, after_a_hop, make_frame, scribbled, shape_of

LARGE = 2 * LARGE_BYTES
small = st.none() | st.integers() | st.text(max_size=20) | st.binary(max_size=200)
items_of_any_size = st.lists(
    small
    | st.integers(LARGE_BYTES - 2, LARGE_BYTES + 2).map(bytes)
    | st.sampled_from([b"\x01" * LARGE, bytearray(b"\x02" * LARGE), "ü" * LARGE, [b"\x03" * LARGE, 1, "\ud800"]]),
    max_size=6,
)


@settings(deadline=None, max_examples=50)
@given(items_of_any_size)
def test_pieces_are_the_pickle_of_the_whole(items: list[Any]) -> None:
    payload = ReusingCodec().encode(items)

    assert pickle.loads(bytes(payload)) == items
    assert bytes(payload) == PickleCodec().encode(items)
    assert len(payload) == len(bytes(payload))
    assert ReusingCodec().decode(payload) == items


@settings(deadline=None, max_examples=50)
@given(items_of_any_size, st.lists(st.integers(0, 3 * LARGE), max_size=6))
def test_wherever_it_is_cut_it_is_read_as_a_whole(items: list[Any], cuts: list[int]) -> None:
    whole = pickle.dumps(items, 5)
    places = [0, *sorted(cuts), len(whole)]
    pieces = Pieces([memoryview(whole)[start:end] for start, end in itertools.pairwise(places)])

    assert load(pieces) == items


@pytest.mark.parametrize("left", [1, 2, 9, 20, LARGE, LARGE + 30])
def test_pieces_that_end_too_early_raise(left: int) -> None:
    whole = bytes(ReusingCodec().encode([1, bytes(LARGE), "rest"]))

    with pytest.raises((EOFError, pickle.UnpicklingError)):
        load(Pieces([whole[: left // 2], whole[left // 2 : left]]))


@pytest.mark.parametrize("line", [b"I1\n.", b"cos\nsystem\n.", b"Vtext\n."])
def test_what_no_task_of_ours_writes_is_refused(line: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError):
        load(Pieces([line]))


def test_bytes_are_not_copied_and_what_may_change_is() -> None:
    fixed, open_to_change = b"\x07" * LARGE, bytearray(b"\x07" * LARGE)

    payload = ReusingCodec().encode([1, fixed, open_to_change, 2])
    open_to_change[:] = b"\x08" * LARGE

    assert isinstance(payload, Pieces)
    assert [piece is fixed for piece in payload.pieces] == [False, True, False, False, False]
    assert ReusingCodec().decode(payload) == [1, fixed, bytearray(fixed), 2]


@pytest.mark.parametrize("size", [0, 1, 100, 30_000])
def test_many_small_items_are_one_piece(size: int) -> None:
    assert type(ReusingCodec().encode([bytes(size)] * 100)) is bytes


def test_what_is_kept_as_a_state_or_a_failed_item_is_bytes() -> None:
    assert type(PickleCodec().encode([bytes(LARGE)])) is bytes
    assert type(ReusingCodec().encode_failed(bytes(LARGE))) is bytes


def test_items_decoded_twice_share_nothing_that_can_be_written_to() -> None:
    codec = ReusingCodec()
    payload = codec.encode([bytearray(LARGE)])

    (first,) = codec.decode(payload)
    first[0] = 9

    assert codec.decode(payload) == [bytearray(LARGE)]


@pytest.mark.parametrize("make", [*KINDS, make_frame])
def test_what_arrives_is_what_pickle_would_make_of_it(make: Callable[[int], Any]) -> None:
    items = [make(1), "between", make(2)]
    frame = Frame(
        TaskIndex(0), 1, 1, (1,), FrameId(9), 0, TaskIndex(2), Stage.PROCESS, True, ReusingCodec().encode(items)
    )

    parts = [bytearray(part) for part in encode_message(TaskIndex(1), frame)]
    _, arrived = decode_message(parts)

    assert isinstance(arrived, Frame)
    found = [scribbled(item) for item in ReusingCodec().decode(arrived.payload)]
    assert list(map(shape_of, found)) == [shape_of(scribbled(after_a_hop(item))) for item in items]
