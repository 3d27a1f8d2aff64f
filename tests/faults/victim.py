"""One life of the pipeline under attack: a process of its own, so that the supervisor can be killed too.

    python -m tests.faults.victim FOLDER/job.json LIFE

It tells the attacker what it could not see from outside, in FOLDER/events-LIFE: which worker was started with
which pid, and when the replay was ordered.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import multiprocess

from consecution.engines import process
from consecution.protocol.recovery import OrderReplay
from consecution.report import Status
from consecution.runtime.supervisor import Supervisor
from tests.faults.job import RETRIES, Job
from tests.faults.works import WORKS


class Events:
    """Lines appended to a file, each with the time it happened."""

    def __init__(self, job: Job, life: str) -> None:
        self._fd = os.open(job.path(f"events-{life}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def tell(self, *words: object) -> None:
        os.write(self._fd, (" ".join(map(str, (*words, time.monotonic()))) + "\n").encode())


def observe(events: Events) -> None:
    """Look at workers being started and at replays being ordered; nothing else changes."""

    class Observed(process.ProcessWorker):
        def __init__(self, spec: Any, parcel: Any, mark: str, *others: Any) -> None:
            super().__init__(spec, parcel, mark, *others)
            events.tell("started", mark, self.pid)

    class ObservedSupervisor(Supervisor):
        def _carry_out(self, orders: list[Any]) -> None:
            super()._carry_out(orders)
            for order in orders:
                if isinstance(order, OrderReplay):
                    events.tell("replay", order.version)

    process.ProcessWorker = Observed  # type: ignore[misc]
    process.Supervisor = ObservedSupervisor  # type: ignore[misc]


def name_semaphores(job: Job) -> None:
    """Those of this process, and of its workers, which inherit it: one that is left can be told from others'."""
    multiprocess.process.current_process()._config["semprefix"] = f"/{job.path('').name}"


def live(job: Job, life: str) -> int:
    name_semaphores(job)
    events = Events(job, life)
    observe(events)

    def on_status(status: Status) -> None:
        events.tell("status", status.emitted, status.completed, status.pending)

    work = WORKS[job.work]
    report = work.make_pipeline(job).run(
        work.source(job),
        mode="process",
        robustness="robust",
        state_dir=job.path("state"),
        retries=RETRIES,
        sync=job.sync,  # type: ignore[arg-type]
        timeout_s=job.timeout_s,
        workers=job.workers,  # type: ignore[arg-type]
        max_restarts=100,
        on_status=on_status,
    )
    new = job.path("report.json.new")
    new.write_text(json.dumps(report.to_dict()))
    new.rename(job.path("report.json"))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(live(Job.load(sys.argv[1]), sys.argv[2]))
