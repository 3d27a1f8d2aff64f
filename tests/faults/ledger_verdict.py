"""Judges what a run of ledger has left: to the cent, row by row, byte by byte."""

from __future__ import annotations

import ast
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from typing import Any

from consecution.report import Failure
from tests.faults.job import Job
from tests.faults.ledger import (
    AT_THE_END,
    COMPANIES,
    LEGS,
    TABLE,
    Row,
    Slip,
    always,
    expected_book,
    expected_failures,
    expected_tape,
    kept,
    legs_of,
    parse,
    revenue_of,
    troubled_leg,
)
from tests.faults.verdict import SHOWN, Open, difference, doubles, of_failures, of_tokens

Rows = list[Row]


def of_end(job: Job, failures: list[Failure], *, torn_at_most: int) -> list[str]:
    """What must stand in the stores and among the failures when the run has ended."""
    failed = _Failed(failures)
    problems = of_failures(failed.listed, expected_failures(job)) + of_tokens(job, set())
    slips = _read_slips(job)
    problems += _of_slips(job, slips, failed)
    drawn = {slip.number: slip for slip in [*slips, *failed.slips]}
    booked = _check_tables(job, drawn, failed, problems)
    problems += _of_totals(booked, failed)
    problems += _of_bytes(job, "book", expected_book(job))
    uncounted = set(failed.rows_at("count"))
    cents = sum(row.cents for row in booked if row not in uncounted)
    problems += _of_bytes(job, "tape", expected_tape(job, cents))
    return problems


class _Failed:
    """The failed items, as what they were at their nodes."""

    def __init__(self, failures: list[Failure]) -> None:
        self.items: dict[str, list[tuple[Any, ...]]] = {}
        self.listed: Counter[tuple[str, int, int]] = Counter()
        for failure in failures:
            item = _tuple_of(str(failure.item))
            self.items.setdefault(failure.node, []).append(item)
            self.listed[failure.node, item[0], failure.attempts] += 1

    @property
    def slips(self) -> list[Slip]:
        """What `Tag` had drawn for items that failed later."""
        return [Slip(*item) for node in ("slips", "legs") for item in self.items.get(node, [])]

    def rows_at(self, node: str) -> Rows:
        return [Row(*item) for item in self.items.get(node, [])]


def _tuple_of(text: str) -> tuple[Any, ...]:
    """The report has the ``repr`` of a named tuple, or a line as it was."""
    if not text.endswith(")"):
        return tuple(parse(text))
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    return tuple(ast.literal_eval(keyword.value) for keyword in call.keywords)


# -- files ---------------------------------------------------------------------------------------


def _read_slips(job: Job) -> list[Slip]:
    text = job.path("slips").read_text() if job.path("slips").exists() else ""
    return [Slip(*json.loads(line)) for line in text[: text.rfind("\n") + 1].splitlines()]


def _of_slips(job: Job, slips: list[Slip], failed: _Failed) -> list[str]:
    """Every item has one; two sinks, or a sink and the failures, know the same one."""
    expected = kept(job, "enter", "tag", "slips")
    found = Counter(slip.number for slip in slips)
    problems = [f"slips: {difference(set(found), expected)}"] if set(found) != expected else []
    if doubles(found):
        problems.append(f"slips: more than once: {doubles(found)}")
    wrong = [slip for slip in slips if slip[:3] != revenue_of(slip.number)]
    if wrong:
        problems.append(f"slips: other revenue than came in: {wrong[:SHOWN]}")
    drawn = {slip.number: slip for slip in slips}
    torn = [slip for slip in failed.slips if drawn.get(slip.number, slip) != slip]
    if torn:
        problems.append(f"slips: the failed items are of another execution: {torn[:SHOWN]}")
    return problems


def _of_bytes(job: Job, name: str, expected: bytes) -> list[str]:
    found = job.path(name).read_bytes()
    if found == expected:
        return []
    place = next(
        (n for n, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(len(found), len(expected))
    )
    return [
        f"{name}: {len(found)} bytes, expected {len(expected)}; at {place}: {found[place : place + 60]!r}, expected "
        f"{expected[place : place + 60]!r}"
    ]


# -- tables --------------------------------------------------------------------------------------


def _check_tables(job: Job, drawn: dict[int, Slip], failed: _Failed, problems: list[str]) -> Rows:
    """Appends to ``problems``; what `Balance` has made, as the first table and its failures have it."""
    booked: list[Rows] = []
    for name in _tables(job):
        rows = _read_table(job, name)
        problems += _of_table(job, name, rows, drawn, failed)
        booked.append([*rows, *failed.rows_at(name)])
    if len(booked) > 1 and sorted(booked[0]) != sorted(booked[1]):
        problems.append(f"rows and server: {difference(set(booked[1]), set(booked[0]))}")
    counted = set(booked[0])
    strange = [row for row in failed.rows_at("count") if row not in counted]
    if strange:
        problems.append(f"count: failed items that no table has: {strange[:SHOWN]}")
    return booked[0]


def _tables(job: Job) -> list[str]:
    return ["rows", "server"] if job.server else ["rows"]


def _read_table(job: Job, name: str) -> Rows:
    query = f"SELECT {', '.join(Row._fields)} FROM {TABLE}"
    if name == "server":
        import psycopg

        with psycopg.connect(job.server) as server:
            return [Row(*row) for row in server.execute(query).fetchall()] if _has_table(server) else []
    with closing(sqlite3.connect(job.path("rows.db"))) as database:
        made = database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (TABLE,)).fetchone()
        return [Row(*row) for row in database.execute(query)] if made else []


def _has_table(server: Any) -> bool:
    return server.execute("SELECT to_regclass(%s)", (TABLE,)).fetchone() != (None,)


def _of_table(job: Job, name: str, rows: Rows, drawn: dict[int, Slip], failed: _Failed) -> list[str]:
    """Each leg once, of the execution that the slips are of; the failed ones too: together they are the revenue."""
    problems = []
    expected = _expected_legs(job, name)
    found = Counter((row.number, row.leg) for row in rows if row.number != AT_THE_END)
    if set(found) != expected:
        problems.append(f"{name}: {difference(set(found), expected)}")
    if doubles(found):
        problems.append(f"{name}: more than once: {doubles(found)}")
    legs = {leg[:2]: leg for slip in drawn.values() for leg in legs_of(slip)}
    everywhere = [row[:5] for row in [*rows, *failed.rows_at(name)] if row.number != AT_THE_END]
    everywhere += failed.items.get("balance", [])
    torn = [row for row in everywhere if row != legs.get(row[:2])]
    if torn:
        problems.append(f"{name}: {len(torn)} of another execution than the slips: {torn[:SHOWN]}")
    return problems + _of_revenue(job, name, everywhere)


def _of_revenue(job: Job, name: str, legs: Iterable[tuple[Any, ...]]) -> list[str]:
    """The legs of each item add up to what came in."""
    sums: Counter[int] = Counter()
    for number, _, _, cents, _ in legs:
        sums[number] += cents
    wrong = [number for number in kept(job, "enter", "tag", "legs") if sums[number] != revenue_of(number).cents]
    return [f"{name}: {len(wrong)} items whose legs are not the revenue: {wrong[:SHOWN]}"] if wrong else []


def _expected_legs(job: Job, table: str) -> set[tuple[int, int]]:
    legs = {(number, leg) for number in kept(job, "enter", "tag", "legs") for leg in range(len(LEGS))}
    return legs - {(n, troubled_leg(n)) for node in ("balance", table) for n in always(job, node)}


def _of_totals(booked: Rows, failed: _Failed) -> list[str]:
    """Each account's rows follow one another without a gap, to the cent; at its end stands their sum."""
    accounts: dict[tuple[int, str], Rows] = {
        (leg, f"company {n}"): [] for leg in range(len(LEGS)) for n in range(COMPANIES)
    }
    ends: dict[tuple[int, str], Rows] = {}
    for row in booked:
        (ends if row.number == AT_THE_END else accounts).setdefault((row.leg, row.company), []).append(row)
    problems = []
    for account, rows in accounts.items():
        problems += _of_account(account, sorted(rows, key=lambda row: row.place), ends.pop(account, []))
    return problems + [f"accounts that nobody has: {sorted(ends)[:SHOWN]}"] * bool(ends)


def _of_account(account: tuple[int, str], rows: Rows, ends: Rows) -> list[str]:
    total = 0
    for place, row in enumerate(rows, 1):
        total += row.cents
        if (row.place, row.total) != (place, total):
            return [f"account {account}: expected place {place} and total {total}, found {row}"]
    wanted = Row(AT_THE_END, *account, 0, sum(row.tag for row in rows), len(rows), total)
    return [] if ends == [wanted] else [f"account {account}: at the end {ends}, expected once {wanted}"]


# -- after a crash -------------------------------------------------------------------------------


def of_crash(job: Job, still_open: Open) -> list[str]:
    """Nothing stands twice in a table, ever; what the journals have let go of stands everywhere."""
    done = set(still_open.done())
    problems = _of_lost("book", done & kept(job, "enter", "book"), _numbers_in_book(job))
    problems += _of_lost("slips", done & kept(job, "enter", "tag", "slips"), {s.number for s in _read_slips(job)})
    for name in _tables(job):
        found = Counter((row.number, row.leg, row.company if row.number < 0 else "") for row in _read_table(job, name))
        if doubles(found):
            problems.append(f"{name}: more than once: {doubles(found)}")
        wanted = {(*leg, "") for leg in _expected_legs(job, name) if leg[0] in done}
        problems += _of_lost(name, wanted, set(found))
    return problems


def _numbers_in_book(job: Job) -> set[int]:
    text = job.path("book").read_text() if job.path("book").exists() else ""
    return {parse(line).number for line in text[: text.rfind("\n") + 1].splitlines()}


def _of_lost(name: str, wanted: set[Any], found: set[Any]) -> list[str]:
    missing = sorted(wanted - found)
    return [f"{name}: {len(missing)} count as complete but are not there: {missing[:SHOWN]}"] if missing else []
