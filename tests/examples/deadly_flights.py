"""The example's pipeline, as a program that is killed on the way: ``deadly_flights.py FOLDER SEED KILLS``.

Each kill comes with a row drawn from the seed, and once: it leaves a file that says who was struck. Some take a worker,
some the supervisor with all it has; then the program is to be started again.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.examples import programs

flights = programs.load("flights")

ROWS = 336_776
OUT = Path(sys.argv[1])
KILLS = int(sys.argv[3])
RANDOM = random.Random(int(sys.argv[2]))
STRIKES = dict(zip(sorted(RANDOM.sample(range(ROWS), KILLS)), range(KILLS), strict=True))
VICTIMS = [RANDOM.choice(["a worker", "a worker", "everything"]) for _ in range(KILLS)]

started: list[Any] = []


def deadly_flights() -> Iterator[dict[str, str]]:
    for index, row in enumerate(flights.flights()):
        if index in STRIKES and not (mark := OUT / f"strike.{STRIKES[index]}").exists():
            strike(mark, VICTIMS[STRIKES[index]])
        yield row


def strike(mark: Path, victim: str) -> None:
    pids = sorted(set(started[0].pids().values()) - {os.getpid()}) if started else []
    mark.write_text(victim if pids else "nobody")
    if victim == "everything":
        os.kill(os.getpid(), signal.SIGKILL)
    elif pids:
        os.kill(RANDOM.choice(pids), signal.SIGKILL)


def main() -> int:
    with flights.build(OUT).start(deadly_flights, workers=2, state_dir=OUT / "state") as running:
        started.append(running)
        report = running.join(None)
    print(report)
    return int(report.exit_code)


if __name__ == "__main__":
    sys.exit(main())
