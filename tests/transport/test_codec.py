from __future__ import annotations

import gc
import pickle
import pickletools
import sys
import threading
import weakref
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consecution.transport.codec import (
    LIVE_ITEM_BYTES,
    MANY_TEXTS,
    TEXT_BYTES,
    LiveCodec,
    PickleCodec,
    ReusingCodec,
)
from consecution.transport.salvage import salvage

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inner, max_size=3)
    ),
    max_leaves=10,
)


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("no")


class Thing:
    pass


def local_thing() -> Any:
    class Local:
        def __init__(self) -> None:
            self.x = 7

    return Local()


@settings(deadline=None)
@given(st.lists(plain, max_size=5))
@pytest.mark.parametrize("codec", [PickleCodec(), ReusingCodec(), LiveCodec(stores_bytes=False)], ids=type)
def test_items_come_back_as_they_were_types_included(codec: Any, items: list[Any]) -> None:
    payload = codec.encode(items)

    assert repr(codec.decode(payload)) == repr(items)


@pytest.mark.parametrize("codec", [PickleCodec(), ReusingCodec()], ids=type)
@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
def test_any_buffer_is_decoded(codec: PickleCodec, buffer: Any) -> None:
    assert codec.decode(buffer(codec.encode([1, "two"]))) == [1, "two"]


@pytest.mark.parametrize("codec", [PickleCodec(), ReusingCodec()], ids=type)
def test_what_pickle_refuses_goes_by_dill(codec: PickleCodec) -> None:
    doubled, thing = codec.decode(codec.encode([lambda x: 2 * x, local_thing()]))

    assert doubled(4) == 8
    assert thing.x == 7


@pytest.mark.parametrize("codec", [PickleCodec(), ReusingCodec()], ids=type)
@pytest.mark.parametrize("item", [(n for n in [1]), sys._getframe(), Unpicklable()], ids=type)
def test_what_cannot_be_encoded_raises_and_spoils_nothing(codec: PickleCodec, item: Any) -> None:
    good = [1, 2]
    payload = codec.encode(good)
    for _ in range(2):
        with pytest.raises(Exception):
            codec.encode([item])

    assert codec.encode(good) == payload
    with pytest.raises(Exception):
        codec.encode_failed(item)


class Word(str):
    """A text that may hold something."""


@pytest.mark.parametrize("codec", [PickleCodec(), ReusingCodec()], ids=type)
@pytest.mark.parametrize(
    "texts",
    [[f"line {n}" for n in range(1000)], ["ü\udc80\n", ""] * MANY_TEXTS, [b"\x00", b""] * MANY_TEXTS, ["same"] * 1000],
    ids=["lines", "odd", "bytes", "same"],
)
def test_many_texts_are_pickled_without_a_memo(codec: PickleCodec, texts: list[Any]) -> None:
    payload = codec.encode(texts)

    assert codec.decode(payload) == salvage(payload) == texts
    assert not [code for code, _, _ in pickletools.genops(payload) if code.name in ("MEMOIZE", "BINGET")]


@pytest.mark.parametrize("codec", [PickleCodec(), ReusingCodec()], ids=type)
def test_a_large_text_that_comes_again_and_again_is_pickled_once(codec: PickleCodec) -> None:
    texts = ["x" * (TEXT_BYTES // MANY_TEXTS)] * (2 * MANY_TEXTS)
    payload = codec.encode(texts)

    assert len(payload) < 2 * len(texts[0])
    assert codec.decode(payload) == texts


@pytest.mark.parametrize("codec", [PickleCodec(), ReusingCodec()], ids=type)
def test_what_may_hold_something_keeps_what_it_shares(codec: PickleCodec) -> None:
    shared: list[int] = []
    words: list[Any] = ["plain", *(Word(n) for n in range(2 * MANY_TEXTS))]
    for word in words[1:]:
        word.held = shared

    decoded = codec.decode(codec.encode(words))

    assert decoded == words
    assert {id(word.held) for word in decoded[1:]} == {id(decoded[1].held)}


@pytest.mark.parametrize("numbers", [range(10_000), range(7, -(10**6), -3), range(2**70, 2**70 + 9), range(0)])
def test_a_range_is_encoded_as_its_ends_and_is_sent_as_a_range(numbers: range) -> None:
    payload = ReusingCodec().encode(numbers)

    assert len(payload) < 100
    assert ReusingCodec().decode(payload) == numbers
    assert PickleCodec().decode(payload) == list(numbers)
    assert salvage(payload) == list(numbers)


@pytest.mark.parametrize("codec", [PickleCodec(), ReusingCodec(), LiveCodec(stores_bytes=True)], ids=type)
def test_a_failed_item_is_stored_as_a_list_of_one(codec: Any) -> None:
    stored = codec.encode_failed(("a", 1))

    assert pickle.loads(stored) == [("a", 1)]
    assert codec.decode(stored) == [("a", 1)]


# -- encoded once ----------------------------------------------------------------------------------


class Counted:
    times = 0

    def __reduce__(self) -> Any:
        Counted.times += 1
        return (int, (7,))


def test_the_same_list_is_encoded_once() -> None:
    codec, items = ReusingCodec(), [Counted()]
    Counted.times = 0

    payloads = {codec.encode(items) for _ in range(3)}

    assert Counted.times == 1
    assert {pickle.loads(payload)[0] for payload in payloads} == {7}


def test_another_list_is_never_taken_for_the_last_one() -> None:
    # Lists that are freed at once leave their place in memory to the next: an id proves nothing.
    codec = ReusingCodec()
    for number in range(1000):
        assert codec.decode(codec.encode([number, "x"])) == [number, "x"]
        gc.collect(0)


def test_an_item_that_changed_is_encoded_anew_in_its_next_list() -> None:
    codec, item = ReusingCodec(), {"n": 0}
    for number in range(3):
        item["n"] = number
        assert codec.decode(codec.encode([item])) == [{"n": number}]


def test_only_the_last_list_is_kept() -> None:
    codec, thing = ReusingCodec(), Thing()
    gone = weakref.ref(thing)
    codec.encode([thing])
    del thing
    assert gone() is not None

    codec.encode([])
    gc.collect()

    assert gone() is None


# -- live ------------------------------------------------------------------------------------------


def test_a_live_frame_shares_items_but_never_the_list() -> None:
    codec, item = LiveCodec(stores_bytes=False), {"a": 1}
    payload = codec.encode([item])

    first, second = codec.decode(payload), codec.decode(payload)
    first.clear()

    assert second[0] is item


def test_a_live_range_stays_one() -> None:
    codec = LiveCodec(stores_bytes=True)
    payload = codec.encode(range(3))

    assert codec.size(payload) == 3 * LIVE_ITEM_BYTES
    assert (codec.decode(payload), salvage(payload)) == (range(3), [0, 1, 2])


def test_what_a_journal_stored_is_decoded_by_a_live_codec() -> None:
    assert LiveCodec(stores_bytes=True).decode(PickleCodec().encode([1])) == [1]


def test_a_live_failure_is_kept_as_it_is_where_nothing_is_stored() -> None:
    item = threading.Lock()

    assert LiveCodec(stores_bytes=False).encode_failed(item)[0] is item


def test_sizes_are_bytes_and_an_estimate_for_live_items() -> None:
    assert PickleCodec().size(b"four") == 4
    assert LiveCodec(stores_bytes=True).size(b"four") == 4
    assert LiveCodec(stores_bytes=True).size([1, 2, 3]) == 3 * LIVE_ITEM_BYTES


LARGE = 300_000


class Matrix:
    """Hands its bytes over as numpy does."""

    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Matrix, (pickle.PickleBuffer(self.buffer),)


@pytest.mark.parametrize(
    "item",
    [
        b"\x07" * LARGE,
        bytearray(b"\x07" * LARGE),
        "ü" * LARGE,
        {"deep": [(b"\x07" * LARGE, 1), b"\x08" * LARGE]},
        ["x" * 9] * LARGE,
    ],
    ids=["bytes", "bytearray", "text", "nested", "many"],
)
def test_what_is_large_is_pickled_as_pickle_does(item: Any) -> None:
    items = [1, item, "between", item]

    payload = PickleCodec().encode(items)

    assert pickle.loads(payload) == items


@pytest.mark.parametrize("frozen", [False, True])
def test_buffers_go_along_as_they_were_at_that_moment_and_may_be_written_to_afterwards(frozen: bool) -> None:
    grid = memoryview(bytearray(range(250)) * 2000).cast("B", (2000, 250))
    item = Matrix(grid.toreadonly() if frozen else grid)

    payload = PickleCodec().encode([item, 7])
    grid[0, 0] = 99
    (found, seven) = PickleCodec().decode(payload)

    assert seven == 7
    assert bytes(found.buffer) == bytes(range(250)) * 2000
    assert type(found.buffer) is (bytes if frozen else bytearray)


def test_whatever_others_encode_meanwhile_a_list_gets_its_own_payload() -> None:
    """Tasks that share a codec are threads, which may take turns at any line."""
    codec = ReusingCodec()
    met: list[int] = []

    def meanwhile(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code is not ReusingCodec.encode.__code__:
            return None
        if event == "line":
            met.append(frame.f_lineno)
            codec.encode([f"met at line {frame.f_lineno}"])
        return meanwhile

    before = sys.gettrace()
    sys.settrace(meanwhile)
    try:
        payload = codec.encode(["mine"])
    finally:
        sys.settrace(before)

    assert len(met) > 1
    assert codec.decode(payload) == ["mine"]
