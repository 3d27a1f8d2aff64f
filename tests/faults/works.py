"""The kinds of work that are attacked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from consecution import Pipeline
from tests.faults import ledger, travel
from tests.faults.job import Job
from tests.faults.trouble import Marks


class Work(Protocol):
    """What the attacker, and its victim, know of a work: a module is one."""

    def source(self, job: Job) -> Any: ...

    def lines(self, job: Job) -> Iterator[str]: ...

    def marks_of(self, job: Job) -> Marks: ...

    def make_pipeline(self, job: Job) -> Pipeline: ...

    def growing(self, job: Job) -> list[Path]: ...

    def expected_bytes(self, job: Job) -> int: ...

    def expected_failures(self, job: Job) -> set[Any]: ...


WORKS: dict[str, Work] = {"travel": travel, "ledger": ledger}
