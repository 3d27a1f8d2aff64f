"""What does a run cost that waits for items?

    python -m benchmarks.idle [--nodes 1 20 50] [--seconds N] [--workers N]

A source into which nobody pushes any more, and so many nodes behind it, in `robust`, a process per node. After a few
items, and some seconds of rest, the processor time of the supervisor and of all workers is taken from /proc (Linux).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.identity import identity
from consecution import ManualSource, Map, Node, Pipeline, Producer

REST_S = 3.0
ITEMS = 100
DEADLINE_S = 60.0


def _used_ms(pids: set[int]) -> float:
    """The processor time of these processes, by the nanosecond counts of their threads."""
    used_ms = 0.0
    for path in (path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat")):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            used_ms += int(path.read_text().split()[0]) / 1e6
    return used_ms


def used(nodes: int, rest_s: float, seconds: float, **options: Any) -> tuple[float, float]:
    """Milliseconds a second that the supervisor takes, and all workers together."""
    chain: Node = Producer(ManualSource())
    for number in range(nodes):
        chain = chain | Map(identity, f"node-{number}")
    running: Any = Pipeline(chain).start(mode="process", robustness="robust", **options)
    try:
        receipts = [running.push(item) for item in range(ITEMS)]
        for receipt in receipts:
            receipt.wait(DEADLINE_S)
        time.sleep(rest_s)
        groups = {os.getpid()}, set(running.pids().values()) - {os.getpid()}
        before_s, before = time.perf_counter(), [_used_ms(group) for group in groups]
        time.sleep(seconds)
        after, took_s = [_used_ms(group) for group in groups], time.perf_counter() - before_s
    finally:
        report = running.stop()
    assert report is None or report.completed == ITEMS
    ours, theirs = ((now - then) / took_s for now, then in zip(after, before, strict=True))
    return ours, theirs


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle", description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 20, 50], help="how many of them (default 1 20 50)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to look at each (default 10)")
    parser.add_argument("--workers", type=int, help="so many workers, and not one for each node")
    asked = parser.parse_args(arguments)
    options = {} if asked.workers is None else {"workers": asked.workers}
    print("| nodes | supervisor, ms a second | workers | all |\n| ---: | ---: | ---: | ---: |")
    for nodes in asked.nodes:
        ours, theirs = used(nodes, REST_S, asked.seconds, **options)
        print(f"| {nodes} | {ours:.1f} | {theirs:.1f} | {ours + theirs:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
