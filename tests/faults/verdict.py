"""Judges what a run has left: its report, its journals, its stores. It shares no code with what it judges."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lmdb
import msgpack

from consecution.report import Report
from consecution.runtime.journal_check import check_state_dir
from tests.faults.job import Job

SHOWN = 5


# -- report --------------------------------------------------------------------------------------


def read_report(job: Job) -> Report | None:
    path = job.path("report.json")
    return Report.from_dict(json.loads(path.read_text())) if path.exists() else None


def of_report(job: Job, report: Report, code: int, failed: int) -> list[str]:
    """The books balance, over all origins, and say what is so."""
    facts = {
        "exit code": (code, 1 if failed else 0),
        "emitted": (report.emitted, job.items),
        "completed": (report.completed, job.items),
        "pending": (report.pending, 0),
        "pending below": (report.pending_below, 0),
        "failed": (report.failed, failed),
        "confirmed": (report.confirmed, not failed),
        "stopped": (report.stopped, False),
    }
    return [
        f"report: {what} is {found}, expected {wanted}" for what, (found, wanted) in facts.items() if found != wanted
    ]


def of_failures(listed: Counter[Any], expected: set[Any]) -> list[str]:
    """Every item that had to fail is listed, once, and no other."""
    if listed == Counter(expected):
        return []
    return [f"report: failures: {difference(set(listed), expected)}, twice: {doubles(listed)}"]


def of_tokens(job: Job, elsewhere: set[str]) -> list[str]:
    """Whatever was to happen once has happened, or this run has shown less than it says."""
    left = {path.name for path in job.path("tokens").iterdir()}
    return [f"trouble that never came: {name}" for name in sorted(left - elsewhere)]


# -- journals ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Open:
    """What the sources' journals have taken, and which of it some journal, inbox or failure table still holds."""

    taken: list[int] = field(default_factory=list)
    numbers: set[int] = field(default_factory=set)

    def done(self) -> Iterator[int]:
        """Whatever must be in its stores by now."""
        return (number for number in self.taken if number not in self.numbers)


def of_journals_after_crash(job: Job) -> list[str]:
    return list(check_state_dir(job.path("state")).problems)


Origins = Mapping[str, Sequence[int]]
"""The numbers that each of the tasks that read gives, in their order."""


def of_final_journals(job: Job, failed: int, sources: Origins) -> list[str]:
    checked = subprocess.run(
        [sys.executable, "-m", "consecution", "journal", "check", "--json", str(job.path("state"))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if checked.returncode:
        return [f"journal check: exit code {checked.returncode}: {checked.stdout}{checked.stderr}"]
    result = json.loads(checked.stdout)
    origins = result["origins"]
    read = {origin["name"].replace("_", "."): origin for origin in origins if not origin["durable"]}
    facts = {
        "finished": (result["finished"], True),
        "exhausted": (all(origin["exhausted"] for origin in read.values()), True),
        "emitted": (
            {name: origin["emitted"] for name, origin in read.items()},
            {name: len(numbers) for name, numbers in sources.items()},
        ),
        "given up": (sum(origin["given_up"] for origin in origins), failed),
    }
    for what in ("open_batches", "decided", "staged", "waiting"):
        facts[what] = (sum(origin[what] for origin in origins), 0)
    return [
        f"journal: {what} is {found}, expected {wanted}" for what, (found, wanted) in facts.items() if found != wanted
    ]


def read_open(job: Job, sources: Origins) -> Open:
    """Look into every environment, while nobody runs."""
    found = Open()
    for folder in job.path("state/origins").glob("*"):
        if not (folder / "data.mdb").exists():
            continue
        with lmdb.open(str(folder), readonly=True, max_dbs=8) as env, env.begin() as txn:
            tables = {name: _table(env, txn, name) for name in (b"meta", b"batches", b"failures", b"inbox")}
        numbers = sources.get(folder.name.partition(".")[0].replace("_", "."))
        if numbers is not None and b"head" in tables[b"meta"]:
            found.taken += numbers[: tables[b"meta"][b"head"][4]]
        for _, payload, _, _ in tables[b"batches"].values():
            found.numbers |= _numbers_in(payload)
        for failed, *_ in tables[b"failures"].values():
            found.numbers |= _numbers_in(failed[2])
        for *_, payload, _ in tables[b"inbox"].values():
            found.numbers |= _numbers_in(payload) if payload else set()  # else it is a fence
    return found


def _table(env: Any, txn: Any, name: bytes) -> dict[bytes, Any]:
    if txn.get(name) is None:
        return {}
    cursor = txn.cursor(db=env.open_db(name, txn=txn, create=False))
    return {bytes(key): msgpack.unpackb(value[4:]) for key, value in cursor}


def _numbers_in(payload: bytes) -> set[int]:
    return {number for item in pickle.loads(payload) if (number := _number_of(item)) is not None}


def _number_of(item: Any) -> int | None:
    """Items are numbers, lines that begin with one, tuples whose first value is one, or rows."""
    if isinstance(item, dict):
        return int(item["number"])
    if isinstance(item, tuple):
        return int(item[0])
    if isinstance(item, str):
        first = item.partition(";")[0]
        return int(first) if first.isdigit() else None
    return int(item)


# -- the rest ------------------------------------------------------------------------------------


def of_shared_memory(mark: str, within_s: float = 2.0) -> list[str]:
    """Semaphores that lie there under the run's own name; those of others, on the same machine, are none of ours."""
    deadline_s = time.monotonic() + within_s
    while (left := _semaphores(mark)) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return [f"left in shared memory: {name}" for name in left]


def _semaphores(mark: str) -> list[str]:
    return sorted(name for name in os.listdir("/dev/shm") if name.startswith(f"sem.{mark}-"))


def difference(found: set[Any], expected: set[Any]) -> str:
    missing, extra = sorted(expected - found), sorted(found - expected)
    return f"{len(missing)} missing {missing[:SHOWN]}, {len(extra)} too many {extra[:SHOWN]}"


def doubles(found: Counter[Any]) -> list[Any]:
    return sorted(key for key, count in found.items() if count > 1)[:SHOWN]
