"""What a worker has in hand outlives it, and never more than that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consecution.protocol.poison import FrameKey, InHand
from consecution.protocol.values import TaskIndex
from consecution.runtime.slots import SIZE_BYTES, SlotFile, SlotNote, map_slot

TASK = TaskIndex(5)
KEY = FrameKey(TaskIndex(3), 2**40, (1, 2**33, 0))


@pytest.fixture
def slot() -> Iterator[SlotFile]:
    made = SlotFile()
    yield made
    made.close()


@settings(deadline=None, max_examples=100)
@given(
    st.builds(FrameKey, st.integers(0, 2**31), st.integers(0, 2**63), st.lists(st.integers(0, 2**40)).map(tuple)),
    st.binary(max_size=16),
)
def test_what_is_noted_is_read(key: FrameKey, name: bytes) -> None:
    slot = SlotFile()
    note = SlotNote(map_slot(slot), TASK)

    note.frame(OTHER)
    note.item(b"an older item")
    note.frame(key)
    if name:
        note.item(name)

    assert slot.take() == InHand(TASK, key, name)
    slot.close()


OTHER = FrameKey(TaskIndex(9), 1, (7,) * 100)


def test_a_slot_is_empty_before_and_after(slot: SlotFile) -> None:
    note = SlotNote(map_slot(slot), TASK)
    at_first = slot.take()
    note.frame(KEY)
    note.clear()
    cleared = slot.take()
    note.frame(KEY)
    slot.take()

    assert (at_first, cleared, slot.take()) == (None, None, None), "nobody is blamed twice for one death"


def test_a_path_too_long_for_the_slot_is_not_noted(slot: SlotFile) -> None:
    note = SlotNote(map_slot(slot), TASK)
    note.frame(KEY)

    note.frame(FrameKey(TaskIndex(0), 0, (2**40,) * SIZE_BYTES))

    assert slot.take() is None


@given(st.binary(min_size=1, max_size=200))
def test_what_was_only_half_written_blames_nobody_or_somebody_and_never_raises(torn: bytes) -> None:
    slot = SlotFile()
    os.pwrite(slot.fileno(), torn, 0)

    found = slot.take()

    assert found is None or isinstance(found.frame.path, tuple)
    slot.close()


def test_it_outlives_a_process_that_is_killed(slot: SlotFile) -> None:
    code = (
        "import os, signal; from consecution.runtime.slots import SlotNote, map_slot;"
        "from tests.runtime import test_slots as t;"
        f"slot = map_slot(open({slot.fileno()}, 'r+b', closefd=False)); note = SlotNote(slot, t.TASK);"
        "note.frame(t.KEY); note.item(b'#7');"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )

    done = subprocess.run([sys.executable, "-c", code], pass_fds=[slot.fileno()], timeout=60)

    assert done.returncode == -signal.SIGKILL
    assert slot.take() == InHand(TASK, KEY, b"#7")


def test_what_a_coroutine_ran_comes_before_what_its_task_had_in_hand(slot: SlotFile) -> None:
    made = map_slot(slot)
    own, beside = SlotNote(made, TASK), SlotNote(made, TaskIndex(6), beside=True)

    own.frame(KEY)
    own.item(b"mine")
    beside.frame(OTHER)
    assert slot.take() == InHand(TaskIndex(6), OTHER, b"")
    assert slot.take() is None

    own.frame(KEY)
    own.item(b"mine")
    beside.frame(OTHER)
    beside.clear()
    assert slot.take() == InHand(TASK, KEY, b"mine")
