"""Judges what a run of travel has left in its sinks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from consecution.report import Failure
from tests.faults.job import Job
from tests.faults.travel import Pair, expected_at, expected_failures, goes_to, marks_of, parts_of
from tests.faults.verdict import SHOWN, Open, difference, doubles, of_failures, of_tokens


def of_end(job: Job, failures: list[Failure], *, torn_at_most: int) -> list[str]:
    """What must be in the sinks and among the failures when the run has ended."""
    listed = Counter((failure.node, str(failure.item), failure.attempts) for failure in failures)
    elsewhere = {f"left-{n}" for n in marks_of(job).get("left", {}) if not goes_to(job, "left", parts_of(n)[0])}
    problems = of_failures(listed, expected_failures(job)) + of_tokens(job, elsewhere)
    for sink in ("left", "right"):
        problems += _of_sink(job, sink, torn_at_most)
    return problems


def of_crash(job: Job, still_open: Open) -> list[str]:
    """Whatever the journal neither holds as open nor as failed must have reached its sinks."""
    problems = []
    for sink in ("left", "right"):
        seen = _seen_in(job, sink)
        pairs = (p for n in still_open.done() for p in parts_of(n) if goes_to(job, sink, p))
        missing = [pair for pair in pairs if pair not in seen]
        if missing:
            problems.append(f"{sink}: {len(missing)} pairs count as complete but are not there: {missing[:SHOWN]}")
    return problems


def _of_sink(job: Job, sink: str, torn_at_most: int) -> list[str]:
    """A text holds every pair exactly once; a recorder too, once each batch counts once."""
    expected = expected_at(job, sink)
    is_text = job.right == "text" and sink == "right"
    found, torn = _lines_of(job.path(sink)) if is_text else _counted(job.path(sink))
    problems = []
    if doubles(found):
        problems.append(f"{sink}: more than once: {doubles(found)}")
    if set(found) != expected:
        problems.append(f"{sink}: {difference(set(found), expected)}")
    if torn > (0 if is_text else torn_at_most):
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
