"""A pipeline into a table, with traps in its sink's worker: a program of its own, so that all of it can be killed.

    python -m tests.sinks.sql_victim URL STATE_DIR REPLICAS [TRAP...]

A trap is a failpoint as `consecution.runtime.failpoints` writes it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from consecution import Node, Pipeline, Producer, SqlSink
from consecution.runtime import failpoints

COUNT = 300
WRONG = 137
"""An item whose row the database does not take."""
OPTIONS: dict[str, Any] = {
    "mode": "process",
    "robustness": "robust",
    "sync": "process",
    "retries": 1,
    "batch_size": 20,
    "max_pending": 4,  # several transactions
}


class Differs(Node):
    """Answers differently each time: no two executions of a batch make the same rows."""

    def process(self, item: int) -> None:
        row = {"n": item, "salt": os.urandom(8).hex()}
        self.push({**row, "unknown": 1} if item == WRONG else row)


class Trapped(SqlSink):
    """Sets traps in its own worker only."""

    traps = ""

    def open(self) -> None:
        failpoints.arm(self.traps)
        super().open()


def make_pipeline(url: str, traps: str, replicas: int) -> Pipeline:
    sink = Trapped("sink", url, "t")
    sink.traps = traps
    return Pipeline(Producer(range(COUNT)) | Differs("differs") * 2 | sink * replicas)


if __name__ == "__main__":
    url, state_dir, replicas, *traps = sys.argv[1:]
    report = make_pipeline(url, ",".join(traps), int(replicas)).run(state_dir=state_dir, **OPTIONS)
    print([failure.item["n"] for failure in report.failures], report.restarts)
    sys.exit(report.exit_code)
