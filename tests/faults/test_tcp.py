"""A client that sends again what it was not told of, while the run that it sends to is killed."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.revived import DEADLINE_S, Revived

LINES = 6000
AT_ONCE = 500
PROGRAM = """
from consecution import Pipeline, Producer, TextLines

pipeline = Pipeline(Producer("tcp", path="in", acknowledge=True) | TextLines("out", path="out"))
"""


def kill(run: Revived, *, everybody: bool, draw: random.Random) -> None:
    found = run.pids()
    workers = [pid for pid in found if pid != run.process.pid]
    run.kill(found if everybody else [draw.choice(workers)])
    if everybody:
        run.process.wait(DEADLINE_S)


@contextlib.contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE_S)
        client.connect(os.fspath(path))
        yield client


def send(path: Path, lines: list[str], then: Callable[[], None]) -> int:
    """How many of the lines are journalled, as far as the client is told; ``then`` something happens."""
    told = b""
    with contextlib.suppress(OSError), connected(path) as client:
        client.sendall("".join(f"{line}\n" for line in lines).encode())
        client.shutdown(socket.SHUT_WR)
        then()
        while block := client.recv(4096):
            told += block
    whole = told[: told.rfind(b"\n") + 1]
    return int(whole.split()[-1]) if whole else 0


def test_every_line_that_a_client_was_told_of_is_there_and_none_is_missing(tmp_path: Path) -> None:
    seed = random.randrange(10_000)
    draw = random.Random(seed)
    lines = [f"line {n}" for n in range(LINES)]
    # Not so late that a client may be told of all lines by a run that is already being killed.
    kills = {draw.randrange(500, 2500): False, draw.randrange(3000, LINES - 3 * AT_ONCE): True}
    (tmp_path / "program.py").write_text(PROGRAM)
    run = Revived(tmp_path, "program.py")
    told, deadline_s = 0, time.monotonic() + DEADLINE_S

    def kill_when_due() -> None:
        for at in [at for at in kills if at <= told]:
            kill(run, everybody=kills.pop(at), draw=draw)

    try:
        while told < LINES:
            assert time.monotonic() < deadline_s, (tmp_path / "log").read_text()
            run.revive()
            found = send(tmp_path / "in", lines[told : told + AT_ONCE], then=kill_when_due)
            told += found
            if not found:
                time.sleep(0.02)
        assert run.stop() == 0
    finally:
        run.remove()

    assert not kills
    written = (tmp_path / "out").read_text().splitlines()
    assert set(written) == set(lines), f"seed {seed}"
    assert len(written) <= LINES + 2 * AT_ONCE, f"seed {seed}"
