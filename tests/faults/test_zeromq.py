"""Somebody who pushes messages on and on, while the run that takes them is killed."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import zmq

from tests.faults.revived import DEADLINE_S, Revived

MORE = 1000
"""Messages that must have come to the sink before a kill, at least, and after the last one."""
AT_ONCE = 50
PAUSE_S = 0.005
PROGRAM = """
from consecution import Pipeline, Producer, TextLines

pipeline = Pipeline(Producer("zmq", "ipc://in", format="text", max_waiting=100) | TextLines("out", path="out"))
"""


@contextlib.contextmanager
def pushing(endpoint: str) -> Iterator[list[str]]:
    """The messages that were sent so far, no two alike; on and on until the end of the block."""
    sent: list[str] = []
    over = threading.Event()

    def push() -> None:
        with zmq.Context() as context, context.socket(zmq.PUSH) as sender:
            sender.setsockopt(zmq.LINGER, 0)
            sender.setsockopt(zmq.SNDHWM, AT_ONCE)
            sender.connect(endpoint)
            for number in itertools.count():
                message = f"message {number}"
                while not sender.poll(100, zmq.POLLOUT):
                    if over.is_set():
                        return
                sender.send_string(message)
                sent.append(message)
                if number % AT_ONCE == 0 and over.wait(PAUSE_S):
                    return

    pusher = threading.Thread(target=push)
    pusher.start()
    try:
        yield sent
    finally:
        over.set()
        pusher.join(DEADLINE_S)
        assert not pusher.is_alive()


def wait_for_more(run: Revived, out: Path, more: int) -> None:
    """Until so many more messages are in the sink."""
    deadline_s = time.monotonic() + DEADLINE_S
    enough = count_of(out) + more
    while count_of(out) < enough:
        assert run.process.poll() is None, run.log()
        assert time.monotonic() < deadline_s, run.log()
        time.sleep(0.01)


def count_of(out: Path) -> int:
    return out.read_bytes().count(b"\n") if out.exists() else 0


def test_messages_come_once_and_in_order_and_what_was_read_is_in_the_sink(tmp_path: Path) -> None:
    seed = random.randrange(10_000)
    draw = random.Random(seed)
    out = tmp_path / "out"
    (tmp_path / "program.py").write_text(PROGRAM)
    run = Revived(tmp_path, "program.py")
    try:
        with pushing(f"ipc://{tmp_path}/in") as sent:
            for everybody in (False, True, False):
                wait_for_more(run, out, draw.randrange(MORE, 2 * MORE))
                if everybody:
                    run.kill(run.pids())
                    run.process.wait(DEADLINE_S)
                    run.revive()
                else:
                    run.kill([draw.choice(run.workers())])
            wait_for_more(run, out, MORE)
            assert run.stop() == 0, run.log()
        report = run.report()
    finally:
        run.remove()

    written = out.read_text().splitlines()
    came = set(written)
    assert written == [message for message in sent if message in came], f"seed {seed}"
    assert (report["emitted"], report["pending"]) == (len(written), 0), f"seed {seed}"
    assert report["restarts"] == 1
