from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from consecution.errors import FrameError
from consecution.protocol.values import (
    Ack,
    Acks,
    Action,
    Confirm,
    Confirms,
    CreditReturn,
    FailedItem,
    Frame,
    FrameId,
    Message,
    Stage,
    TaskIndex,
    Treatment,
)
from consecution.transport.frames import decode_failed, decode_message, encode_message

numbers = st.integers(0, 2**64 - 1)
tasks = numbers.map(TaskIndex)
texts = st.text(st.characters(), max_size=20)
"""Lone surrogates included."""

frames = st.builds(
    Frame,
    tasks,
    numbers,
    numbers,
    st.lists(numbers, max_size=4).map(tuple),
    numbers.map(FrameId),
    numbers,
    tasks,
    st.sampled_from(Stage),
    st.booleans(),
    st.binary(max_size=50),
    st.floats(0, allow_nan=False),
)
wholes = st.builds(replace, frames, whole=st.just(True), load_s=st.floats(0, allow_nan=False))
confirms = st.builds(Confirm, numbers, st.floats(0, allow_nan=False))
treatments = st.builds(
    Treatment, st.sampled_from(Action), st.none() | st.integers(0, 99), st.none() | st.floats(0, allow_nan=False)
)
failed_items = st.builds(
    FailedItem, tasks, st.sampled_from(Stage), st.none() | st.binary(), texts, texts, st.booleans(), texts, treatments
)
acks = st.builds(
    Ack,
    numbers,
    numbers,
    numbers,
    numbers,
    st.lists(failed_items, max_size=2).map(tuple),
    st.booleans(),
    st.floats(0, allow_nan=False),
)
messages: st.SearchStrategy[Message] = st.one_of(
    frames,
    wholes,
    st.builds(Acks, tasks, st.lists(acks, max_size=3)),
    st.builds(CreditReturn, tasks, numbers),
    st.builds(Confirms, tasks, st.lists(confirms, max_size=3)),
)
TARGET = TaskIndex(7)
FRAME = Frame(TaskIndex(0), 1, 2, (3,), FrameId(4), 0, TaskIndex(5), Stage.PROCESS, False, b"items")


def decodes(parts: list[Any]) -> bool:
    """Whether the parts are a message; nothing but FrameError may come instead."""
    try:
        decode_message(parts)
    except FrameError:
        return False
    return True


@settings(deadline=None)
@given(messages)
def test_messages_come_back_as_they_were_sent(message: Message) -> None:
    parts = encode_message(TARGET, message)

    found = decode_message([bytes(part) for part in parts])

    assert found == (TARGET, message)
    assert type(found[1]) is type(message)


@settings(deadline=None)
@given(frames)
def test_a_frame_has_the_types_that_it_was_made_with(frame: Frame) -> None:
    _, found = decode_message(encode_message(TARGET, frame))

    assert isinstance(found, Frame)
    assert isinstance(found.path, tuple)
    assert isinstance(found.stage, Stage)
    assert isinstance(found.credited, bool)


def test_a_payload_is_not_copied_into_the_header() -> None:
    header, payload = encode_message(TARGET, FRAME)

    assert payload is FRAME.payload
    assert len(header) < 30


@settings(deadline=None, max_examples=300)
@given(st.lists(st.binary(max_size=200), max_size=3))
@example([b""])
@example([])
@example([b"\xdd\xff\xff\xff\xff"])
@example([b"\x91" * 2000])
@example([b"\xc0"])
@example([b"\x90"])
@example([msgpack.packb([[1], 2])])
@example([msgpack.packb([{}])])
def test_random_bytes_raise_only_the_frame_error(parts: list[bytes]) -> None:
    decodes(parts)


@settings(deadline=None, max_examples=300)
@given(messages, st.data())
def test_mutated_messages_raise_only_the_frame_error(message: Message, data: st.DataObject) -> None:
    parts = [bytearray(part) for part in encode_message(TARGET, message)]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(parts[0]) - 1))
        parts[0][at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del parts[0][data.draw(st.integers(0, len(parts[0]) - 1)) :]

    decodes(parts)


@settings(deadline=None)
@given(messages)
def test_a_message_with_a_part_too_many_or_too_few_is_none(message: Message) -> None:
    parts = encode_message(TARGET, message)

    assert not decodes([*parts, b"more"])
    assert not decodes(parts[:-1])


WRONG_FIELDS = [
    (1, -1),
    (1, "1"),
    (1, None),
    (2, -1),
    (2, "1"),
    (2, True),
    (3, None),
    (4, 1.0),
    (5, 7),
    (5, [-1]),
    (5, ["a"]),
    (6, None),
    (9, 3),
    (9, "x"),
    (0, 3),
    (0, -1),
    (0, "frame"),
]


@pytest.mark.parametrize(("at", "value"), WRONG_FIELDS)
def test_a_frame_with_a_wrong_field_is_none(at: int, value: Any) -> None:
    header, payload = encode_message(TARGET, FRAME)
    fields = msgpack.unpackb(header)
    fields[at] = value

    with pytest.raises(FrameError, match=r"not a frame: 2 parts, .*; the sender does not speak this version's"):
        decode_message([msgpack.packb(fields), payload])


@pytest.mark.parametrize("fields", [[], [1, 0, None, "e", "t", True], [1, 9, None, "e", "t", True, "s"], 7, "text"])
def test_a_failed_item_of_another_form_is_refused(fields: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        decode_failed(fields)
