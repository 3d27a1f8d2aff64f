from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from consecution.transport import socket_folder
from consecution.transport.socket_folder import SocketFolder, base_folder, remove_if_empty, sweep
from consecution.transport.sockets import Inbox


@pytest.fixture
def folder() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="t-", dir="/tmp")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def base(folder: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", folder)
    return Path(folder)


def test_a_folder_is_for_its_owner_only_and_gone_when_closed(base: Path) -> None:
    made = SocketFolder()

    assert Path(made.path).parent == base
    assert stat.S_IMODE(os.stat(made.path).st_mode) == 0o700
    made.close()
    made.close()
    assert list(base.iterdir()) == []


def test_a_sweep_removes_the_dead_and_never_the_living(base: Path) -> None:
    living = SocketFolder()
    dead = base / (socket_folder.PREFIX + "dead")
    others = [base / (socket_folder.PREFIX + "state-x"), base / "something"]
    for path in (dead, *others):
        path.mkdir()
        (path / "socket").write_text("")
    (dead / "lock").write_text("")

    sweep(str(base))

    assert sorted(base.iterdir()) == sorted([Path(living.path), *others])
    living.close()


def test_a_sweep_removes_what_was_left_without_a_lock(base: Path) -> None:
    left, another = base / (socket_folder.PREFIX + "7lp6ak7t"), base / (socket_folder.PREFIX + "state-7lp6ak7t")
    left.mkdir()
    another.mkdir()

    sweep(str(base))

    assert list(base.iterdir()) == [another]


def test_a_folder_swept_away_before_it_had_a_lock_is_made_again(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, made = tempfile.mkdtemp, list[str]()

    def make_and_sweep(**options: Any) -> str:
        made.append(make(**options))
        if len(made) == 1:
            sweep(str(base))
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_sweep)

    folder = SocketFolder()

    assert [Path(folder.path)] == [Path(made[1])] == list(base.iterdir())
    folder.close()


def test_a_sweep_follows_no_links(base: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "lock").write_text("")
    (base / (socket_folder.PREFIX + "link")).symlink_to(precious)
    trap = base / (socket_folder.PREFIX + "trap")
    trap.mkdir()
    (trap / "lock").symlink_to(precious / "lock")

    sweep(str(base))

    assert (precious / "lock").exists()


LIVES = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from consecution.transport.socket_folder import SocketFolder
made = SocketFolder()
print(made.path, flush=True)
sys.stdin.read()
"""


def test_the_folder_of_a_killed_run_goes_at_the_next_start(base: Path) -> None:
    run = subprocess.Popen([sys.executable, "-c", LIVES, str(base)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdin is not None
    assert run.stdout is not None
    path = Path(run.stdout.readline().decode().strip())
    next_one = SocketFolder()
    assert path.exists()
    next_one.close()

    run.kill()
    run.wait(timeout=10)
    run.stdin.close()
    run.stdout.close()
    assert path.exists()
    SocketFolder().close()

    assert list(base.iterdir()) == []


def test_a_folder_swept_away_before_it_was_locked_is_made_again(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock
    calls: list[int] = []

    def flock(fd: int, operation: int) -> None:
        if not operation & fcntl.LOCK_NB:
            calls.append(fd)
            if len(calls) == 1:
                sweep(str(base))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)

    made = SocketFolder()

    assert len(calls) == 2
    assert os.listdir(made.path) == ["lock"]
    made.close()


def test_many_runs_that_start_at_once_leave_each_other_alone(base: Path) -> None:
    arguments = [sys.executable, "-c", LIVES, str(base)]
    runs = [subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(4)]
    try:
        paths = [Path(run.stdout.readline().decode().strip()) for run in runs if run.stdout is not None]
        assert [path for path in paths if not (path / "lock").exists()] == []
    finally:
        for run in runs:
            run.communicate(timeout=10)


def test_the_last_one_out_takes_the_folder_away(base: Path) -> None:
    made = SocketFolder()
    socket = Path(made.path) / "1.0"
    socket.write_text("")

    remove_if_empty(made.path)
    assert socket.exists()
    socket.unlink()
    remove_if_empty(made.path)
    remove_if_empty(made.path)

    assert not Path(made.path).exists()
    made.close()


@pytest.mark.parametrize("length", [59, 60, 200])
def test_sockets_fit_however_long_the_folder_for_temporary_files_is(
    base: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    long = base / ("é" * ((length - len(str(base)) - 1) // 2))
    long.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(long))

    made = SocketFolder()
    context: zmq.Context[Any] = zmq.Context()
    inbox = Inbox(context, made.path, "99999.99999")

    assert (base_folder() == str(long)) == (len(os.fsencode(str(long))) < 60)
    assert len(os.fsencode(inbox.path)) < 107
    inbox.close()
    context.destroy(0)
    made.close()


def test_a_folder_that_goes_away_at_logout_is_not_used(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run")

    assert base_folder() == str(base)
