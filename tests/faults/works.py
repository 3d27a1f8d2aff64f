"""The kinds of work that are attacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from consecution import Pipeline
from tests.faults import ledger, mixed, travel
from tests.faults.job import Job
from tests.faults.trouble import Marks


class Work(Protocol):
    """What the attacker, and its victim, know of a work: a module is one."""

    def source(self, job: Job) -> Any: ...

    def prepare(self, job: Job) -> None: ...

    def origins(self, job: Job) -> Mapping[str, Sequence[int]]: ...

    def marks_of(self, job: Job) -> Marks: ...

    def make_pipeline(self, job: Job) -> Pipeline: ...

    def growing(self, job: Job) -> list[Path]: ...

    def expected_bytes(self, job: Job) -> int: ...

    def expected_failures(self, job: Job) -> set[Any]: ...


WORKS: dict[str, Work] = {"travel": travel, "ledger": ledger, "mixed": mixed}


def worker_of(job: Job) -> dict[str, str]:
    """Task → the worker that hosts it, by their names."""
    work = WORKS[job.work]
    plan = work.make_pipeline(job).plan(work.source(job), mode="process", workers=job.workers)  # type: ignore[arg-type]
    return {task.name: plan.worker_of(task.index).name for task in plan.tasks}
