from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from consecution.errors import FrameError
from consecution.protocol.values import CreditReturn, Frame, FrameId, Message, Stage, TaskIndex, WorkerIndex
from consecution.transport.pieces import Pieces
from consecution.transport.sockets import Inbox, SocketOutbox

ONE, TWO = TaskIndex(1), TaskIndex(2)
HOMES = [WorkerIndex(0), WorkerIndex(1), WorkerIndex(2), WorkerIndex(2)]
"""Task → its worker; tasks 2 and 3 share one."""
HOME, SHARED = HOMES[ONE], HOMES[TWO]
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
        self._open.append(SocketOutbox(self.context, HOMES))
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
        found += [message for _, message in inbox.take(count - len(found))]
    return found


# -- messages --------------------------------------------------------------------------------------


def test_messages_arrive_in_order_though_they_were_sent_before_anybody_listened(net: Net) -> None:
    outbox = net.outbox()
    outbox.wire({HOME: f"ipc://{net.folder}/1.0"})
    sent = [credit(number) for number in range(5000)]
    for message in sent:
        outbox.send(ONE, message)

    inbox = net.inbox("1.0")

    assert take(inbox, 5000) == sent


def test_a_large_frame_arrives_whole(net: Net) -> None:
    inbox, outbox = net.inbox("1.0"), net.outbox()
    outbox.wire({HOME: inbox.endpoint})
    frame = Frame(TaskIndex(0), 1, 1, (1,), FrameId(9), 0, TWO, Stage.PROCESS, True, os.urandom(5_000_000))

    outbox.send(ONE, frame)

    assert take(inbox, 1) == [frame]


def test_what_is_large_is_copied_neither_to_send_nor_to_receive_it_and_freed_afterwards(net: Net) -> None:
    inbox, outbox = net.inbox("1.0"), net.outbox()
    outbox.wire({HOME: inbox.endpoint})
    large = os.urandom(5_000_000)
    before = sys.getrefcount(large)
    payload = Pieces([b"head", large, b"between", large[:-1], b""])
    frame = Frame(TaskIndex(0), 1, 1, (1,), FrameId(9), 0, TWO, Stage.PROCESS, True, payload)

    outbox.send(ONE, frame)
    outbox.send(ONE, credit(1))
    arrived, after = take(inbox, 2)

    assert isinstance(arrived, Frame)
    assert list(map(bytes, arrived.payload.pieces)) == payload.pieces
    assert [type(piece) for piece in arrived.payload.pieces] == [bytes, memoryview, bytes, memoryview, bytes]
    assert after == credit(1)
    del payload, frame
    deadline_s = time.monotonic() + DEADLINE_MS / 1000
    while sys.getrefcount(large) > before:
        assert time.monotonic() < deadline_s, "ZeroMQ holds what it has sent"
        time.sleep(0.005)


def test_taking_does_not_wait_and_takes_no_more_than_asked(net: Net) -> None:
    inbox, outbox = net.inbox("1.0"), net.outbox()
    assert list(inbox.take(10)) == []
    outbox.wire({HOME: inbox.endpoint})
    for number in range(3):
        outbox.send(ONE, credit(number))

    first = take(inbox, 1)
    rest = take(inbox, 2)

    assert [first, rest] == [[credit(0)], [credit(1), credit(2)]]
    assert list(inbox.take(10)) == []


def test_one_who_has_much_to_say_keeps_nobody_else_waiting(net: Net) -> None:
    """Each message takes the reader long; the other begins to send when some of the first one's wait."""
    inbox, outbox, other = net.inbox("1.0"), net.outbox(), net.outbox()
    for sender in (outbox, other):
        sender.wire({HOME: inbox.endpoint})
        sender.send(ONE, credit(0))
    take(inbox, 2)
    of_one, of_other = [credit(number) for number in range(1, 91)], credit(1000)
    for message in of_one:
        outbox.send(ONE, message)
    found = take(inbox, 1)
    other.send(ONE, of_other)

    while len(found) < len(of_one) and of_other not in found:
        time.sleep(0.01)
        found += [message for _, message in inbox.take(1)]

    assert found == [*of_one[: len(found) - 1], of_other]


def test_bytes_that_are_no_message_raise_and_leave_the_next_ones(net: Net) -> None:
    inbox, outbox = net.inbox("1.0"), net.outbox()
    stranger = net.context.socket(zmq.PUSH)
    stranger.connect(inbox.endpoint)
    stranger.send(b"hello")
    assert inbox.socket.poll(DEADLINE_MS)

    with pytest.raises(FrameError, match="not a frame"):
        list(inbox.take(10))

    outbox.wire({HOME: inbox.endpoint})
    outbox.send(ONE, credit(1))
    assert take(inbox, 1) == [credit(1)]
    stranger.close(0)


def test_nothing_blocks_where_nobody_listens(net: Net) -> None:
    outbox = net.outbox()
    outbox.wire({HOME: f"ipc://{net.folder}/nobody"})
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
    outbox.wire({HOME: f"ipc://{net.folder}/1.0"})
    outbox.send(ONE, credit(1))

    new = net.inbox("1.1")
    moved = outbox.wire({HOME: new.endpoint})
    outbox.send(ONE, credit(2))

    assert moved == [HOME]
    assert take(new, 1) == [credit(2)]
    old = net.inbox("1.0")
    assert not old.socket.poll(100)


def test_wiring_names_those_that_moved_and_leaves_the_others_connected(net: Net) -> None:
    outbox = net.outbox()
    one, two, anew = net.inbox("1.0"), net.inbox("2.0"), net.inbox("2.1")

    first = outbox.wire({HOME: one.endpoint, SHARED: two.endpoint})
    outbox.send(ONE, credit(1))
    outbox.send(TWO, credit(1))
    take(two, 1)
    second = outbox.wire({HOME: one.endpoint, SHARED: anew.endpoint})
    outbox.send(ONE, credit(2))
    outbox.send(TWO, credit(2))

    assert (first, second) == ([], [SHARED])
    assert take(one, 2) == [credit(1), credit(2)]
    assert take(anew, 1) == [credit(2)]


def test_who_is_not_wired_gets_nothing_and_harms_nobody(net: Net) -> None:
    outbox, inbox = net.outbox(), net.inbox("1.0")

    outbox.send(ONE, credit(1))
    outbox.wire({HOME: inbox.endpoint})
    moved = outbox.wire({})
    outbox.send(ONE, credit(2))
    outbox.wire({HOME: inbox.endpoint})
    outbox.send(ONE, credit(3))

    assert moved == [HOME]
    assert take(inbox, 1) == [credit(3)]


def test_the_endpoints_handed_in_may_change_afterwards(net: Net) -> None:
    outbox, inbox = net.outbox(), net.inbox("1.0")
    endpoints = {HOME: inbox.endpoint}
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
