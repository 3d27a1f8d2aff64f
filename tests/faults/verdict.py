"""Judges what a run has left: its sinks, its report, its journal. It shares no code with what it judges."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import lmdb
import msgpack

from consecution.report import Report
from consecution.runtime.journal_check import check_state_dir
from tests.faults.pipeline import Job, Pair, expected_at, expected_failures, goes_to, marks_of, parts_of

SHOWN = 5


def of_end(job: Job, code: int, *, torn_at_most: int) -> list[str]:
    """Everything that must be true of a run that has ended by itself."""
    if read_report(job) is None:
        return [f"it ended with exit code {code} and no report"]
    problems = _of_report(job, code) + _of_final_journal(job) + _of_trouble(job)
    for sink in ("left", "right"):
        problems += _of_sink(job, sink, torn_at_most)
    return problems


def of_crash(job: Job) -> list[str]:
    """What must be true whenever nobody runs: the journal is sound, and what it calls complete is in the sinks."""
    state = job.path("state")
    if not (state / "manifest.json").exists():
        return []
    problems = list(check_state_dir(state).problems)
    return problems + _of_false_completion(job)


# -- report --------------------------------------------------------------------------------------


def read_report(job: Job) -> Report | None:
    path = job.path("report.json")
    return Report.from_dict(json.loads(path.read_text())) if path.exists() else None


def _of_report(job: Job, code: int) -> list[str]:
    report = read_report(job)
    failed = expected_failures(job)
    assert report is not None
    facts = {
        "exit code": (code, 1 if failed else 0),
        "emitted": (report.emitted, job.items),
        "completed": (report.completed, job.items),
        "pending": (report.pending, 0),
        "failed": (report.failed, len(failed)),
        "confirmed": (report.confirmed, not failed),
        "stopped": (report.stopped, False),
    }
    problems = [
        f"report: {what} is {found}, expected {wanted}" for what, (found, wanted) in facts.items() if found != wanted
    ]
    listed = Counter((failure.node, str(failure.item), failure.attempts) for failure in report.failures)
    if listed != Counter(failed):
        problems.append(f"report: failures: {_difference(set(listed), failed)}, twice: {_doubles(listed)}")
    return problems


def _of_trouble(job: Job) -> list[str]:
    """Whatever was to happen once has happened, or this run has shown less than it says."""
    left = {path.name for path in job.path("tokens").iterdir()}
    elsewhere = {f"left-{n}" for n in marks_of(job).get("left", {}) if not goes_to(job, "left", parts_of(n)[0])}
    return [f"trouble that never came: {name}" for name in sorted(left - elsewhere)]


# -- sinks ---------------------------------------------------------------------------------------


def _of_sink(job: Job, sink: str, torn_at_most: int) -> list[str]:
    """A recorder holds every pair exactly once, once each batch counts once; a text at least once."""
    expected = expected_at(job, sink)
    if job.right == "text" and sink == "right":
        found, torn = _lines_of(job.path(sink))
        problems = []
    else:
        found, torn = _counted(job.path(sink))
        problems = [f"{sink}: counts more than once: {_doubles(found)}"] if _doubles(found) else []
    if set(found) != expected:
        problems.append(f"{sink}: {_difference(set(found), expected)}")
    if torn > torn_at_most:
        problems.append(f"{sink}: {torn} torn records, more than there were kills")
    return problems


def _counted(path: Path) -> tuple[Counter[Pair], int]:
    """What counts: of each (origin, seq, path) what was written under its highest generation, repeats once."""
    highest: dict[tuple[Any, ...], tuple[int, set[Pair]]] = {}
    torn = 0
    for record in filter(None, path.read_bytes().split(b"\n")):
        try:
            origin, seq, way, generation, items = json.loads(record)
        except ValueError:
            torn += 1
            continue
        key = (origin, seq, tuple(way))
        pairs = {(number, part) for number, part in items}
        newest, kept = highest.get(key, (-1, set()))
        if generation > newest:
            highest[key] = (generation, pairs)
        elif generation == newest:
            kept |= pairs
    return Counter(pair for _, pairs in highest.values() for pair in pairs), torn


def _lines_of(path: Path) -> tuple[Counter[Pair], int]:
    found: Counter[Pair] = Counter()
    torn = 0
    for line in path.read_text().splitlines():
        words = line.removesuffix(";").split()
        if line.endswith(";") and len(words) == 2:
            found[(int(words[0]), int(words[1]))] += 1
        else:
            torn += 1
    return found, torn


def _seen_in(job: Job, sink: str) -> set[Pair]:
    path = job.path(sink)
    if not path.exists():
        return set()
    if job.right == "text" and sink == "right":
        return set(_lines_of(path)[0])
    records = (record for record in path.read_bytes().split(b"\n") if record)
    return {(number, part) for record in records for number, part in _items_of(record)}


def _items_of(record: bytes) -> list[Any]:
    try:
        return json.loads(record)[4]  # type: ignore[no-any-return]
    except ValueError:
        return []


# -- journal -------------------------------------------------------------------------------------


def _of_final_journal(job: Job) -> list[str]:
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
    (source,) = [origin for origin in origins if origin["name"] == source_name(job)]
    facts = {
        "finished": (result["finished"], True),
        "exhausted": (source["exhausted"], True),
        "emitted": (source["emitted"], job.items),
        "given up": (sum(origin["given_up"] for origin in origins), len(expected_failures(job))),
    }
    for what in ("open_batches", "decided", "staged", "waiting"):
        facts[what] = (sum(origin[what] for origin in origins), 0)
    return [
        f"journal: {what} is {found}, expected {wanted}" for what, (found, wanted) in facts.items() if found != wanted
    ]


def _of_false_completion(job: Job) -> list[str]:
    """Whatever the journal neither holds as open nor as failed must have reached its sinks."""
    emitted, open_numbers = _read_journal(job)
    problems = []
    for sink in ("left", "right"):
        seen = _seen_in(job, sink)
        pairs = (p for n in range(emitted) if n not in open_numbers for p in parts_of(n) if goes_to(job, sink, p))
        missing = [pair for pair in pairs if pair not in seen]
        if missing:
            problems.append(f"{sink}: {len(missing)} pairs count as complete but are not there: {missing[:SHOWN]}")
    return problems


def _read_journal(job: Job) -> tuple[int, set[int]]:
    """How many items the source's journal has taken, and which of them some journal or inbox still holds."""
    emitted, open_numbers = 0, set[int]()
    for folder in job.path("state/origins").glob("*"):
        if not (folder / "data.mdb").exists():
            continue
        with lmdb.open(str(folder), readonly=True, max_dbs=8) as env, env.begin() as txn:
            tables = {name: _table(env, txn, name) for name in (b"meta", b"batches", b"failures", b"inbox")}
        if folder.name == source_name(job) and b"head" in tables[b"meta"]:
            emitted = tables[b"meta"][b"head"][4]
        for _, payload, _, _ in tables[b"batches"].values():
            open_numbers |= _numbers_in(payload)
        for failed, *_ in tables[b"failures"].values():
            open_numbers |= _numbers_in(failed[2])
        for *_, payload in tables[b"inbox"].values():
            open_numbers |= _numbers_in(payload)
    return emitted, open_numbers


def source_name(job: Job) -> str:
    return "producer" if job.reads_lines else "source"


def _table(env: Any, txn: Any, name: bytes) -> dict[bytes, Any]:
    if txn.get(name) is None:
        return {}
    cursor = txn.cursor(db=env.open_db(name, txn=txn, create=False))
    return {bytes(key): msgpack.unpackb(value[4:]) for key, value in cursor}


def _numbers_in(payload: bytes) -> set[int]:
    """Items are numbers, lines or pairs, by the node they wait at."""
    return {int(item[0] if isinstance(item, tuple) else item) for item in pickle.loads(payload)}


# -- the rest ------------------------------------------------------------------------------------


def of_shared_memory(before: set[str], within_s: float = 2.0) -> list[str]:
    deadline_s = time.monotonic() + within_s
    while (new := set(os.listdir("/dev/shm")) - before) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return [f"left in shared memory: {name}" for name in sorted(new)]


def _difference(found: set[Any], expected: set[Any]) -> str:
    missing, extra = sorted(expected - found), sorted(found - expected)
    return f"{len(missing)} missing {missing[:SHOWN]}, {len(extra)} too many {extra[:SHOWN]}"


def _doubles(found: Counter[Any]) -> list[Any]:
    return sorted(key for key, count in found.items() if count > 1)[:SHOWN]
