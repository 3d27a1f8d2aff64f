"""What a forked child gives up before it does anything."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from consecution.own_descriptors import give_back, keep_from_children

EXIT_AS_WISHED = 7


def locked(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def test_a_child_holds_no_lock_of_ours_and_nothing_else_takes_its_number(tmp_path: Path) -> None:
    lock, other = keep_from_children(locked(tmp_path / "lock")), locked(tmp_path / "other")
    go_on, told = os.pipe()
    ready, tell_ready = os.pipe()

    child = os.fork()
    if child == 0:
        os.close(told)
        os.close(tell_ready)
        os.read(go_on, 1)
        is_null = os.path.samestat(os.fstat(lock), os.stat(os.devnull))
        is_theirs = os.path.samestat(os.fstat(other), os.stat(tmp_path / "other"))
        os._exit(EXIT_AS_WISHED if is_null and is_theirs else 1)
    os.close(go_on)
    os.close(tell_ready)
    assert os.read(ready, 1) == b""  # the child is there, and has done what it does first
    os.close(ready)
    os.close(give_back(lock))
    os.close(other)
    try:
        os.close(locked(tmp_path / "lock"))
        with pytest.raises(BlockingIOError):
            locked(tmp_path / "other")
    finally:
        os.close(told)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == EXIT_AS_WISHED


def test_what_was_given_back_is_left_to_the_child(tmp_path: Path) -> None:
    lock = give_back(give_back(keep_from_children(locked(tmp_path / "lock"))))

    child = os.fork()
    if child == 0:
        is_there = os.path.samestat(os.fstat(lock), os.stat(tmp_path / "lock"))
        os._exit(EXIT_AS_WISHED if is_there else 1)
    os.close(lock)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == EXIT_AS_WISHED
