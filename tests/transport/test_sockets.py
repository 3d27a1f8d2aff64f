from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from consecution.errors import FrameError
from consecution.protocol.values import CreditReturn, Frame, FrameId, Message, Stage, TaskIndex
from consecution.transport import sockets
from consecution.transport.sockets import Inbox, SocketFolder, SocketOutbox, base_folder, remove_if_empty, sweep

ONE, TWO = TaskIndex(1), TaskIndex(2)
DEADLINE_MS = 10_000


def credit(count: int) -> CreditReturn:
    return CreditReturn(ONE, count)


class Net:
    """Inboxes and outboxes in one short folder, closed at the end."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.context: zmq.Context[Any] = zmq.Context()
        self._open: list[Any] = []

    def inbox(self, name: str) -> Inbox:
        self._open.append(Inbox(self.context, self.folder, name))
        return self._open[-1]

    def outbox(self, **endpoints: Any) -> SocketOutbox:
        self._open.append(SocketOutbox(self.context))
        return self._open[-1]

    def close(self) -> None:
        for opened in self._open:
            opened.close()
        self.context.destroy(0)


@pytest.fixture
def folder() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="t-", dir="/tmp")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def net(folder: str) -> Iterator[Net]:
    made = Net(folder)
    yield made
    made.close()


def take(inbox: Inbox, count: int) -> list[Message]:
    """Wait for so many messages."""
    found: list[Message] = []
    while len(found) < count:
        assert inbox.socket.poll(DEADLINE_MS), f"only {len(found)} of {count} came"
        found += inbox.take(count - len(found))
    return found


# -- messages --------------------------------------------------------------------------------------


def test_messages_arrive_in_order_though_they_were_sent_before_anybody_listened(net: Net) -> None:
    outbox = net.outbox()
    outbox.wire({ONE: f"ipc://{net.folder}/1.0"})
    sent = [credit(number) for number in range(5000)]
    for message in sent:
        outbox.send(ONE, message)

    inbox = net.inbox("1.0")

    assert take(inbox, 5000) == sent


def test_a_large_frame_arrives_whole(net: Net) -> None:
    inbox, outbox = net.inbox("1.0"), net.outbox()
    outbox.wire({ONE: inbox.endpoint})
    frame = Frame(TaskIndex(0), 1, 1, (1,), FrameId(9), 0, TWO, Stage.PROCESS, True, os.urandom(5_000_000))

    outbox.send(ONE, frame)

    assert take(inbox, 1) == [frame]


def test_taking_does_not_wait_and_takes_no_more_than_asked(net: Net) -> None:
    inbox, outbox = net.inbox("1.0"), net.outbox()
    assert list(inbox.take(10)) == []
    outbox.wire({ONE: inbox.endpoint})
    for number in range(3):
        outbox.send(ONE, credit(number))

    first = take(inbox, 1)
    rest = take(inbox, 2)

    assert [first, rest] == [[credit(0)], [credit(1), credit(2)]]
    assert list(inbox.take(10)) == []


def test_bytes_that_are_no_message_raise_and_leave_the_next_ones(net: Net) -> None:
    inbox, outbox = net.inbox("1.0"), net.outbox()
    stranger = net.context.socket(zmq.PUSH)
    stranger.connect(inbox.endpoint)
    stranger.send(b"hello")
    assert inbox.socket.poll(DEADLINE_MS)

    with pytest.raises(FrameError, match="not a frame"):
        list(inbox.take(10))

    outbox.wire({ONE: inbox.endpoint})
    outbox.send(ONE, credit(1))
    assert take(inbox, 1) == [credit(1)]
    stranger.close(0)


def test_nothing_blocks_where_nobody_listens(net: Net) -> None:
    outbox = net.outbox()
    outbox.wire({ONE: f"ipc://{net.folder}/nobody"})
    done = threading.Event()

    def send() -> None:
        for number in range(20_000):
            outbox.send(ONE, credit(number))
        done.set()

    threading.Thread(target=send, daemon=True).start()

    assert done.wait(DEADLINE_MS / 1000)


# -- wiring ----------------------------------------------------------------------------------------


def test_what_waited_for_a_dead_incarnation_never_reaches_the_new_one(net: Net) -> None:
    outbox = net.outbox()
    outbox.wire({ONE: f"ipc://{net.folder}/1.0"})
    outbox.send(ONE, credit(1))

    new = net.inbox("1.1")
    moved = outbox.wire({ONE: new.endpoint})
    outbox.send(ONE, credit(2))

    assert moved == [ONE]
    assert take(new, 1) == [credit(2)]
    old = net.inbox("1.0")
    assert not old.socket.poll(100)


def test_wiring_names_those_that_moved_and_leaves_the_others_connected(net: Net) -> None:
    outbox = net.outbox()
    one, two, anew = net.inbox("1.0"), net.inbox("2.0"), net.inbox("2.1")

    first = outbox.wire({ONE: one.endpoint, TWO: two.endpoint})
    outbox.send(ONE, credit(1))
    outbox.send(TWO, credit(1))
    take(two, 1)
    second = outbox.wire({ONE: one.endpoint, TWO: anew.endpoint})
    outbox.send(ONE, credit(2))
    outbox.send(TWO, credit(2))

    assert (first, second) == ([], [TWO])
    assert take(one, 2) == [credit(1), credit(2)]
    assert take(anew, 1) == [credit(2)]


def test_who_is_not_wired_gets_nothing_and_harms_nobody(net: Net) -> None:
    outbox, inbox = net.outbox(), net.inbox("1.0")

    outbox.send(ONE, credit(1))
    outbox.wire({ONE: inbox.endpoint})
    moved = outbox.wire({})
    outbox.send(ONE, credit(2))
    outbox.wire({ONE: inbox.endpoint})
    outbox.send(ONE, credit(3))

    assert moved == [ONE]
    assert take(inbox, 1) == [credit(3)]


def test_the_endpoints_handed_in_may_change_afterwards(net: Net) -> None:
    outbox, inbox = net.outbox(), net.inbox("1.0")
    endpoints = {ONE: inbox.endpoint}
    outbox.wire(endpoints)

    endpoints.clear()
    outbox.send(ONE, credit(1))

    assert take(inbox, 1) == [credit(1)]


def test_closing_an_inbox_takes_its_socket_off_the_disk(net: Net) -> None:
    inbox = net.inbox("1.0")
    assert os.listdir(net.folder) == ["1.0"]

    inbox.close()
    inbox.close()

    assert os.listdir(net.folder) == []


# -- folders ---------------------------------------------------------------------------------------


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
    dead = base / (sockets.PREFIX + "dead")
    others = [base / (sockets.PREFIX + "state-x"), base / "something"]
    for path in (dead, *others):
        path.mkdir()
        (path / "socket").write_text("")
    (dead / "lock").write_text("")

    sweep(str(base))

    assert sorted(base.iterdir()) == sorted([Path(living.path), *others])
    living.close()


def test_a_sweep_follows_no_links(base: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "lock").write_text("")
    (base / (sockets.PREFIX + "link")).symlink_to(precious)
    trap = base / (sockets.PREFIX + "trap")
    trap.mkdir()
    (trap / "lock").symlink_to(precious / "lock")

    sweep(str(base))

    assert (precious / "lock").exists()


LIVES = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from consecution.transport.sockets import SocketFolder
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
