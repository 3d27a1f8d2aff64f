"""The example's pipeline, as a program that is killed on the way: ``deadly_flights.py FOLDER SEED KILLS``.

Each kill comes when as many rows are read as were drawn from the seed, and once: it leaves a file that says who was
struck. Some take a worker, some the supervisor with all it has; then the program is to be started again.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from consecution.engines.process import ProcessRunning
from tests.examples import programs

flights = programs.load("flights")

ROWS = 336_776
OUT = Path(sys.argv[1])
KILLS = int(sys.argv[3])
RANDOM = random.Random(int(sys.argv[2]))
DUE = sorted(RANDOM.sample(range(ROWS * 9 // 10), KILLS))
"""Rows after which somebody is struck; after the last one there is work enough for the next life, too."""
VICTIMS = [RANDOM.choice(["a worker", "a worker", "everything"]) for _ in range(KILLS)]
DIES_WITHIN_S = 30
LOOKS_EVERY_S = 0.005


def strike_when_due(running: ProcessRunning) -> None:
    """The next one that is due and was not struck in an earlier life. A worker is struck as soon as there is one."""
    read = running.status().emitted
    for number, (due, victim) in enumerate(zip(DUE, VICTIMS, strict=True)):
        mark = OUT / f"strike.{number}"
        if due > read or mark.exists():
            continue
        if victim == "everything":
            mark.write_text(victim)
            os.kill(os.getpid(), signal.SIGKILL)
        elif workers := sorted(set(running.pids().values()) - {os.getpid()}):
            kill_worker(running, RANDOM.choice(workers))
            mark.write_text(victim)
        return


def kill_worker(running: ProcessRunning, pid: int) -> None:
    """Only what lives can be killed: the supervisor is waited for until it has seen the death."""
    os.kill(pid, signal.SIGKILL)
    give_up_s = time.monotonic() + DIES_WITHIN_S
    while pid in running.pids().values():
        assert time.monotonic() < give_up_s, f"worker {pid} was killed, and the run does not know"
        time.sleep(LOOKS_EVERY_S)


def main() -> int:
    with flights.build(OUT).start(workers=2, state_dir=OUT / "state") as running:
        while (report := running.join(LOOKS_EVERY_S)) is None:
            assert isinstance(running, ProcessRunning)
            strike_when_due(running)
    print(report)
    return int(report.exit_code)


if __name__ == "__main__":
    sys.exit(main())
