"""One run of one contestant, in its own Python: ``python -m benchmarks.peers.child MODULE``.

The task is in the environment. The last line printed is what came of it, as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks import airports
from benchmarks.peers import kill
from benchmarks.peers.task import Task, current


def main() -> None:
    task = current()
    contestant = importlib.import_module(f"benchmarks.peers.{sys.argv[1]}")
    getattr(contestant, task.work)(task)
    print("\n" + json.dumps(gather(task)), flush=True)
    os._exit(0)  # what a tool does at its end is not measured; the contest ends what is left


def gather(task: Task) -> dict[str, Any]:
    """What the marks say."""
    firsts = [float(path.read_text()) for path in task.folder.glob("first.*")]
    done = [path.read_text().split() for path in task.folder.glob("done.*")]
    told: dict[str, Any] = {"first_s": min(firsts)}
    if task.work == "kill":
        return {**told, **kill.sum_up(task)}
    told["seconds"] = max(float(last_s) for last_s, _ in done) - told["first_s"]
    told["answer"] = airports.look(task.folder) if task.work == "airports" else sum(int(n) for _, n in done)
    if task.work == "latency":
        told["p50_ms"], told["p99_ms"] = percentiles_ms(task.folder)
    return told


def percentiles_ms(folder: Path) -> tuple[float, float]:
    late_s = [float(line) for path in folder.glob("late.*") for line in path.read_text().split()]
    cuts = statistics.quantiles(late_s, n=100)
    return cuts[49] * 1000, cuts[98] * 1000


if __name__ == "__main__":
    main()
