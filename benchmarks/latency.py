"""How long until the first result of a fresh run, and until output flows again after a worker was killed?"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contest import ROOT
from consecution import KeyedNode, Map, Node, Pipeline, Producer, Running, Sink

WAIT_S = 60
BEFORE_KILL_ITEMS = 50
KILLED = "middle.0"
STATES = (1_000, 100_000, 1_000_000)
"""How many states a durable node has when it is killed."""


class TimesSink(Sink):
    """Appends the moment of every write to a file."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name)
        self._path = path

    def open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, batch_id: Any, items: list[Any]) -> None:
        os.write(self._fd, f"{time.time()!r}\n".encode())

    def close(self) -> None:
        os.close(self._fd)


class Remember(KeyedNode):
    """A state per item; passes on what is negative."""

    def key(self, item: int) -> int:
        return item

    def process(self, item: int) -> None:
        self.state["seen"] = self.state.get("seen", 0) + 1
        if item < 0:
            self.push(item)


def pass_on(item: Any) -> Any:
    return item


def times_in(path: Path) -> list[float]:
    try:
        return [float(line) for line in path.read_text().split()]
    except FileNotFoundError:
        return []


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"no {what} within {WAIT_S} s")
        time.sleep(0.001)


def first_result(mode: str, byte_code: Path) -> float:
    """Seconds from calling ``run`` in a fresh Python process to the first write, four nodes.

    Compiled modules are kept in ``byte_code``, as they would be beside an installed package: the first call fills it.
    """
    with tempfile.TemporaryDirectory(prefix="consecution-bench-") as made:
        path = Path(made) / "times"
        command = [sys.executable, "-m", "benchmarks.latency", mode, str(path)]
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(byte_code)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=True
        )
        return times_in(path)[0] - float(done.stdout.split()[0])


def run_once(mode: Any, path: Path) -> None:
    """In the fresh process: print when ``run`` was called."""
    pipeline = Pipeline(Producer(range(10)) | Map(pass_on, "one") | Map(pass_on, "two") | TimesSink("sink", path))
    print(repr(time.time()), flush=True)
    pipeline.run(mode=mode)


def recovery() -> float:
    """Seconds from ``kill -9`` of a worker in the middle to the next write; items come one by one."""

    def prepare(running: Running) -> None:
        for number in range(BEFORE_KILL_ITEMS):
            running.push(-2 - number).wait(WAIT_S)

    return _recover(Map(pass_on, "middle"), prepare)


def durable_recovery(states: int) -> float:
    """The same, of a durable node that has so many states."""

    def prepare(running: Running) -> None:
        for number in range(states):
            last = running.push(number)
        last.wait(WAIT_S)

    return _recover(Remember("middle"), prepare)


def _recover(middle: Node, prepare: Callable[[Running], None]) -> float:
    with tempfile.TemporaryDirectory(prefix="consecution-bench-") as made:
        path = Path(made) / "times"
        pipeline = Pipeline(Producer("manual") | middle | TimesSink("sink", path))
        with contextlib.redirect_stderr(io.StringIO()), pipeline.start(state_dir=Path(made) / "state") as running:
            prepare(running)
            pids: dict[str, int] = running.pids()  # type: ignore[attr-defined]
            killed_s = time.time()
            os.kill(pids[KILLED], signal.SIGKILL)
            running.push(-1).wait(WAIT_S)
            wait_for(lambda: max(times_in(path), default=0.0) > killed_s, "write after the kill")
            return next(t for t in times_in(path) if t > killed_s) - killed_s


def report(rounds: int, states: Sequence[int] = STATES) -> str:
    """All figures, for people."""
    lines = ["latency: process mode, robust"]
    with tempfile.TemporaryDirectory(prefix="consecution-bench-") as byte_code:
        fresh = {mode: functools.partial(first_result, mode, Path(byte_code)) for mode in ("process", "inline")}
        for measure in fresh.values():
            measure()
        lines += _measured(
            rounds,
            ("first result after run(), four fresh workers", fresh["process"]),
            ("the same, inline", fresh["inline"]),
        )
    lines += _measured(
        rounds,
        ("output again after kill -9 of a worker", recovery),
        *((f"the same, a durable one with {n:,} states", functools.partial(durable_recovery, n)) for n in states),
    )
    return "\n".join(lines)


def _measured(rounds: int, *questions: tuple[str, Callable[[], float]]) -> Iterator[str]:
    for title, measure in questions:
        found = sorted(measure() * 1000 for _ in range(rounds))
        yield f"  {title: <46}  median {statistics.median(found):6.0f} ms  least {found[0]:6.0f}  most {found[-1]:6.0f}"


if __name__ == "__main__":
    run_once(sys.argv[1], Path(sys.argv[2]))
