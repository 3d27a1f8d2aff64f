"""A client that sends again what it was not told of, while the run that it sends to is killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults import processes

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0
LINES = 6000
AT_ONCE = 500
PROGRAM = """
from consecution import Pipeline, Producer, TextLines

pipeline = Pipeline(Producer("tcp", path="in", acknowledge=True) | TextLines("out", path="out"))
"""


class Run:
    """`consecution run`, started again whenever it has died."""

    def __init__(self, folder: Path) -> None:
        self.mark = f"tcp-{os.getpid()}-{time.monotonic_ns()}"
        self._folder = folder
        (folder / "program.py").write_text(PROGRAM)
        self._start()

    def _start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "consecution",
            "run",
            "program.py",
            "--mode",
            "process",
            "--state-dir",
            "state",
        ]
        environment = {**os.environ, processes.VARIABLE: self.mark, "PYTHONPATH": str(ROOT)}
        with open(self._folder / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder, env=environment)

    def revive(self) -> None:
        if self.process.poll() is not None:
            assert self.process.returncode == -signal.SIGKILL, (self._folder / "log").read_text()
            self._start()

    def kill(self, *, everybody: bool, draw: random.Random) -> None:
        found = sorted(one.pid for one in processes.of_run(self.mark))
        workers = [pid for pid in found if pid != self.process.pid]
        for pid in found if everybody else [draw.choice(workers)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if everybody:
            self.process.wait(DEADLINE_S)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def end(self) -> None:
        for found in processes.of_run(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(found.pid, signal.SIGKILL)
        self.process.wait(DEADLINE_S)


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
    kills = {draw.randrange(500, 2500): False, draw.randrange(3000, 5500): True}
    run = Run(tmp_path)
    told, deadline_s = 0, time.monotonic() + DEADLINE_S

    def kill_when_due() -> None:
        for at in [at for at in kills if at <= told]:
            run.kill(everybody=kills.pop(at), draw=draw)

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
        run.end()

    assert not kills
    written = (tmp_path / "out").read_text().splitlines()
    assert set(written) == set(lines), f"seed {seed}"
    assert len(written) <= LINES + 2 * AT_ONCE, f"seed {seed}"
