"""Mixed: the ledger, fed by several sources, some of them read in shares, with a pace and with answers that take time.

[dealt * n, files * n, told, table] → enter * 2 → book
                                                → pace → tag * 2 → slips, legs → balance * 3 → ...    as in the ledger

Some of the sources are drawn, and the pace may be behind `tag`, which is async here: it answers some items at once and
others late, many of them at a time. What comes out is as right as in the ledger; and what each source, and each share
of one, has given keeps its order, in all stores.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from consecution import Node, Pipeline, Producer, RateLimit
from tests.faults import ledger
from tests.faults.job import Job
from tests.faults.ledger import Revenue, Slip
from tests.faults.trouble import Trouble

expected_bytes = ledger.expected_bytes
expected_failures = ledger.expected_failures
growing = ledger.growing
marks_of = ledger.marks_of

KINDS = ("dealt", "files", "told", "table")
"""A list, files of lines, a generator function, which is read beside the supervisor, and a table of SQLite."""
SPLIT = ("dealt", "files")
"""Those that can be read in shares."""
FILES = 5
PACED_TASKS = ("pace.0", "pace.0", "tag.0", "tag.1")
"""What is not in the other works is killed more often."""
ANSWERS_WITHIN_S = 30.0


def tasks_of(shares: dict[str, int], server: str) -> tuple[str, ...]:
    """Those that a worker hosts."""
    sources = [f"{kind}.{share}" for kind, count in shares.items() if kind != "told" for share in range(count)]
    return (*sources, *(ledger.TASKS_WITH_SERVER if server else ledger.TASKS), *PACED_TASKS)


# -- what comes in -------------------------------------------------------------------------------


def source(job: Job) -> Any:
    """The sources are in the pipeline."""
    return None


def blocks(job: Job) -> dict[str, range]:
    """The numbers of each source."""
    count = len(job.shares)
    limits = [job.items * place // count for place in range(count + 1)]
    return {kind: range(limits[place], limits[place + 1]) for place, kind in enumerate(job.shares)}


def origins(job: Job) -> dict[str, Sequence[int]]:
    """The numbers that each of the tasks that read gives, in their order."""
    found: dict[str, Sequence[int]] = {}
    for kind, numbers in blocks(job).items():
        count = job.shares[kind]
        for share in range(count):
            given: Sequence[int] = numbers[share::count]
            if kind == "files":
                given = [number for file in range(share, FILES, count) for number in numbers[file::FILES]]
            found[f"{kind}.{share}" if count > 1 else kind] = given
    return found


def prepare(job: Job) -> None:
    """Write what the sources read."""
    found = blocks(job)
    for place, path in enumerate(_files(job) if "files" in found else []):
        lines = (f"{ledger.line_of(ledger.revenue_of(number))}\n" for number in found["files"][place::FILES])
        job.path(path).write_text("".join(lines))
    if "table" in found:
        with closing(sqlite3.connect(job.path("revenue.db"))) as database, database:
            database.execute("CREATE TABLE revenue (number INTEGER PRIMARY KEY, company TEXT, cents INTEGER)")
            rows = map(ledger.revenue_of, found["table"])
            database.executemany("INSERT INTO revenue VALUES (?, ?, ?)", rows)


def _files(job: Job) -> list[str]:
    return [str(job.path(f"revenue-{place}.txt")) for place in range(FILES)]


def _producer(job: Job, kind: str, numbers: range) -> Any:
    if kind == "files":
        return Producer("files", _files(job), name="files")
    if kind == "table":
        url = f"sqlite:///{job.path('revenue.db')}"
        return Producer("sql", name="table", url=url, table="revenue", order_by="number")
    if kind == "dealt":
        return Producer([ledger.revenue_of(number) for number in numbers], name="dealt")

    def told() -> Iterator[Revenue]:
        return map(ledger.revenue_of, numbers)

    return Producer(told, name="told")


# -- the pipeline --------------------------------------------------------------------------------


class Ask(Node):
    """Answers differently on each execution, as `ledger.Tag` does, and after a while."""

    trouble: Trouble
    wait_s: float
    timeout_s = ANSWERS_WITHIN_S

    async def process(self, item: Revenue) -> None:
        if item.number % 3:
            await asyncio.sleep(random.random() * self.wait_s)
        self.trouble.meet(item.number)
        self.push(Slip(*item, ledger.TAGS.start + secrets.randbelow(len(ledger.TAGS)), random.randrange(4)))


def make_pipeline(job: Job) -> Pipeline:
    sources = []
    for kind, numbers in blocks(job).items():
        producer = _producer(job, kind, numbers)
        sources.append(producer * job.shares[kind] if kind in SPLIT else producer)
    return Pipeline(sources | ledger.make_chain(job, _way(job)))


def _way(job: Job) -> Any:
    trouble = Trouble(job, "tag", marks_of(job))
    ask = Ask("tag", trouble=trouble, wait_s=job.wait_s, concurrency=job.at_once) * 2
    pace = RateLimit(job.per_second, job.burst or None, name="pace")
    return pace | ask if job.paces_first else ask | pace
