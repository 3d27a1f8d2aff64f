from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import multiprocess
import multiprocess.connection
import pytest

from consecution.runtime.patient_pipe import PatientPipe
from tests.engines.misbehaving import wait_for

WAIT_S = 60.0
LARGE = 20_000_000
"""More than any socket buffers."""


@pytest.fixture
def ends() -> Iterator[tuple[PatientPipe, Any]]:
    ours, theirs = multiprocess.Pipe()
    pipe = PatientPipe(ours)
    yield pipe, theirs
    pipe.close()
    theirs.close()


def test_messages_of_all_sizes_come_whole_and_in_order(ends: tuple[PatientPipe, Any]) -> None:
    pipe, theirs = ends
    sent = [None, {"a": (1, 2)}, b"x" * 16_384, b"y" * 100_000, ""]
    for message in sent:
        theirs.send(message)

    assert [pipe.recv() for _ in sent if pipe.poll()] == sent
    assert not pipe.poll()


def test_it_can_be_waited_for_and_answered(ends: tuple[PatientPipe, Any]) -> None:
    pipe, theirs = ends
    assert multiprocess.connection.wait([pipe], 0) == []

    theirs.send("word")
    pipe.send("answer")

    assert multiprocess.connection.wait([pipe], WAIT_S) == [pipe]
    assert (pipe.poll(), pipe.recv(), theirs.recv()) == (True, "word", "answer")


def test_its_end_comes_after_all_that_was_sent(ends: tuple[PatientPipe, Any]) -> None:
    pipe, theirs = ends
    theirs.send("last")
    theirs.close()

    assert (pipe.poll(), pipe.recv(), pipe.poll()) == (True, "last", True)
    with pytest.raises(EOFError):
        pipe.recv()
    assert not pipe.closed
    pipe.close()
    assert pipe.closed


def test_the_last_words_of_one_who_did_not_hear_all_it_was_told_are_not_lost(ends: tuple[PatientPipe, Any]) -> None:
    pipe, theirs = ends
    pipe.send("an order that comes too late")
    theirs.send("last")
    theirs.close()

    assert (pipe.poll(), pipe.recv(), pipe.poll()) == (True, "last", True)
    with pytest.raises(EOFError):
        pipe.recv()


def send_much(pipe: Any) -> None:
    pipe.send("first")
    pipe.send(b"x" * LARGE)


def test_who_is_stopped_in_the_middle_of_a_message_stops_nobody_else(ends: tuple[PatientPipe, Any]) -> None:
    pipe, theirs = ends
    process = multiprocess.get_context("spawn").Process(target=send_much, args=(theirs,))
    process.start()
    theirs.close()
    try:
        wait_for(pipe.poll, WAIT_S)
        assert pipe.recv() == "first"
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert not pipe.poll()

        os.kill(process.pid, signal.SIGCONT)
        wait_for(pipe.poll, WAIT_S)
        assert len(pipe.recv()) == LARGE
    finally:
        process.kill()
        process.join(WAIT_S)
