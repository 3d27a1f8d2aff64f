"""Judges what a run of mixed has left: as the ledger, and the order of each source in all stores."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Sequence

from consecution.report import Failure
from tests.faults import ledger_verdict
from tests.faults.job import Job
from tests.faults.ledger import COMPANIES, LEGS, line_of, marks_of, parse, raised_at, revenue_of
from tests.faults.mixed import origins
from tests.faults.verdict import SHOWN

of_crash = ledger_verdict.of_crash


def of_end(job: Job, failures: list[Failure], *, torn_at_most: int) -> list[str]:
    """What must stand in the stores and among the failures when the run has ended."""
    problems, tables = ledger_verdict.of_stores(job, failures)
    problems += _of_book(job)
    problems += _of_order(job, "slips", lambda line: int(json.loads(line)[0]), ("enter", "tag", "slips"))
    for table in tables:
        problems += _of_places(job, table.name, table.places)
    return problems


def _of_book(job: Job) -> list[str]:
    """Each item that passes has its line, and nothing before the book is tried again."""
    lines = job.path("book").read_text().splitlines()
    raised = raised_at(job, "enter", "book")
    wanted = sorted(line_of(revenue_of(number)) for number in range(job.items) if number not in raised)
    problems = _of_order(job, "book", lambda line: parse(line).number, ("enter", "book"))
    if sorted(lines) != wanted:
        problems.append(f"book: {len(lines)} lines, expected {len(wanted)}: each of its item, once")
    return problems


def _of_order(job: Job, name: str, number_of: Callable[[str], int], nodes: Sequence[str]) -> list[str]:
    """In a file the numbers of each origin stand in their order, but for those that were tried again."""
    places: dict[int, int] = {}
    for place, line in enumerate(job.path(name).read_text().splitlines()):
        places[number_of(line)] = place
    again = _tried_again(job, *nodes)
    problems = []
    for origin, numbers in origins(job).items():
        there = ((number, places[number]) for number in numbers if number in places and number not in again)
        problems += _of_descents(f"{name}: {origin}", there)
    return problems


def _of_places(job: Job, name: str, places: array[int]) -> list[str]:
    """In each account the legs of each origin are booked in their order, but for those that were tried again."""
    again = _tried_again(job, "enter", "tag", "legs", "balance")
    problems = []
    for origin, numbers in origins(job).items():
        for company in range(COMPANIES):
            its_own = [number for number in numbers if number % COMPANIES == company and number not in again]
            for leg in range(len(LEGS)):
                in_turn = ((number, places[number * len(LEGS) + leg]) for number in its_own)
                booked = ((number, place) for number, place in in_turn if place)
                problems += _of_descents(f"{name}: {origin}: leg {leg}", booked)
    return problems


def _tried_again(job: Job, *nodes: str) -> set[int]:
    marks = marks_of(job)
    return {number for node in nodes for number, kind in marks.get(node, {}).items() if kind == "once"}


def _of_descents(where: str, places: Iterator[tuple[int, int]]) -> list[str]:
    """Of numbers in their order, with where each stands: those that stand before one that they come after."""
    wrong, last = [], -1
    for number, place in places:
        if place < last:
            wrong.append(number)
        last = max(last, place)
    return [f"{where}: {len(wrong)} before one that they come after: {wrong[:SHOWN]}"] if wrong else []
