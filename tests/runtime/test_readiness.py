"""What waits for pipes and sentinels."""

from __future__ import annotations

import os
from collections.abc import Iterator

import multiprocess
import pytest

from consecution.runtime.readiness import Readiness

WAIT_S = 30.0


@pytest.fixture
def pipes() -> Iterator[list[tuple[int, int]]]:
    made = [os.pipe() for _ in range(3)]
    yield made
    for fd in {fd for pipe in made for fd in pipe}:
        os.close(fd)


def test_those_that_are_ready_come_back_as_they_were_given(pipes: list[tuple[int, int]]) -> None:
    ours, theirs = multiprocess.Pipe()
    ready = Readiness()
    objects = [ours, *(read for read, _ in pipes)]
    assert ready(objects, 0.0) == []

    theirs.send("word")
    os.write(pipes[1][1], b".")

    assert set(ready(objects, WAIT_S)) == {ours, pipes[1][0]}
    theirs.close()
    ours.close()


def test_what_is_no_longer_asked_for_wakes_nobody(pipes: list[tuple[int, int]]) -> None:
    ready = Readiness()
    first, second = pipes[0][0], pipes[1][0]
    os.write(pipes[0][1], b".")
    assert ready([first, second], WAIT_S) == [first]

    assert ready([second], 0.0) == []

    assert ready([first, second], WAIT_S) == [first]


def test_a_number_that_belongs_to_somebody_else_by_now_is_that_one(pipes: list[tuple[int, int]]) -> None:
    ready = Readiness()
    read, write = pipes[0]
    os.write(write, b".")
    assert ready([read], WAIT_S) == [read]

    os.dup2(pipes[1][0], read)  # the number is that of another pipe, in which nothing is
    assert ready([read], 0.0) == []
    os.write(pipes[1][1], b".")

    assert ready([read], WAIT_S) == [read]


def test_the_end_of_a_pipe_counts_as_ready() -> None:
    ours, theirs = multiprocess.Pipe()
    ready = Readiness()
    assert ready([ours], 0.0) == []

    theirs.close()

    assert ready([ours], WAIT_S) == [ours]
    ours.close()
