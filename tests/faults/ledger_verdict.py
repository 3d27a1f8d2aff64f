"""Judges what a run of ledger has left: to the cent, row by row, byte by byte.

Files and tables are read as streams, once. What is known of each item (its tag, its legs' cents, where they were
booked) lies in flat arrays: some 60 bytes an item, so that a million of them can be judged beside the next run.
"""

from __future__ import annotations

import ast
import json
import sqlite3
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
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
    legs_of,
    parse,
    raised_at,
    revenue_of,
    troubled_leg,
)
from tests.faults.verdict import SHOWN, Open, of_failures, of_tokens

LINES_AT_ONCE = 10_000
COMPANY_NAMES = [f"company {number}" for number in range(COMPANIES)]
Account = tuple[int, str]


def of_end(job: Job, failures: list[Failure], *, torn_at_most: int) -> list[str]:
    """What must stand in the stores and among the failures when the run has ended."""
    return of_stores(job, failures)[0] + of_bytes(job, "book", expected_book(job))


def of_stores(job: Job, failures: list[Failure]) -> tuple[list[str], list[_Table]]:
    """All but the book, whose order is another with several sources; and the tables as they were read."""
    failed = _Failed(failures)
    problems = of_failures(failed.listed, expected_failures(job)) + of_tokens(job, set())
    drawn = _Drawn(job, failed)
    problems += drawn.problems
    tables = [_Table(job, name, drawn, failed) for name in _tables(job)]
    for table in tables:
        problems += table.problems
    if len(tables) > 1:
        problems += _of_places(*tables)
    uncounted = sum(row.cents for row in failed.rows_at("count"))
    return problems + of_bytes(job, "tape", expected_tape(job, tables[0].cents - uncounted)), tables


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

    def rows_at(self, node: str) -> list[Row]:
        return [Row(*item) for item in self.items.get(node, [])]


def _tuple_of(text: str) -> tuple[Any, ...]:
    """The report has the ``repr`` of a named tuple or of a row, or a line as it was."""
    if text.endswith("}"):
        return tuple(ast.literal_eval(text).values())
    if not text.endswith(")"):
        return tuple(parse(text))
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    return tuple(ast.literal_eval(keyword.value) for keyword in call.keywords)


class _Found:
    """Which of ``size`` things were found. `say` gives what is missing, too many or there twice."""

    def __init__(self, size: int) -> None:
        self.counts = bytearray(size)
        self.strange: list[Any] = []
        self.doubled: list[int] = []

    def take(self, place: int) -> None:
        """Of what is there twice, the first few are remembered."""
        if self.counts[place]:
            self.doubled.append(place)
        self.counts[place] = 1

    def say(self, name: str, missing_too: set[int], shown: Callable[[int], Any] = int) -> list[str]:
        """``missing_too`` must not be there; all others must."""
        kept_out = [place for place in sorted(missing_too) if self.counts[place]]
        missing = self.counts.count(0) - len(missing_too) + len(kept_out)
        problems = []
        if missing:
            first = (n for n, count in enumerate(self.counts) if not count and n not in missing_too)
            problems.append(f"{name}: {missing} missing {[shown(n) for n in islice(first, SHOWN)]}")
        extra = [*self.strange, *map(shown, kept_out)]
        if extra:
            problems.append(f"{name}: {len(extra)} too many {extra[:SHOWN]}")
        if self.doubled:
            problems.append(f"{name}: more than once: {len(self.doubled)} {[shown(n) for n in self.doubled[:SHOWN]]}")
        return problems


# -- files ---------------------------------------------------------------------------------------


class _Drawn:
    """What `Tag` has drawn for each item: as the file has it, or the failed items."""

    def __init__(self, job: Job, failed: _Failed) -> None:
        self.problems: list[str] = []
        self.tags = array("q", bytes(8 * job.items))
        self.cents = array("i", bytes(4 * job.items * len(LEGS)))
        """Of each leg."""
        self._read(job)
        torn = [slip for slip in failed.slips if not self._agrees(slip)]
        if torn:
            self.problems.append(f"slips: the failed items are of another execution: {torn[:SHOWN]}")

    def _read(self, job: Job) -> None:
        """Every item has one slip, of the revenue that came in."""
        found = _Found(job.items)
        wrong = []
        for line in _whole_lines(job, "slips"):
            slip = Slip(*json.loads(line))
            if not 0 <= slip.number < job.items:
                found.strange.append(slip.number)
                continue
            if slip[:3] != revenue_of(slip.number):
                wrong.append(slip)
            found.take(slip.number)
            self._note(slip)
        self.problems += found.say("slips", raised_at(job, "enter", "tag", "slips"))
        if wrong:
            self.problems.append(f"slips: {len(wrong)} of other revenue than came in: {wrong[:SHOWN]}")

    def _note(self, slip: Slip) -> None:
        self.tags[slip.number] = slip.tag
        for leg in legs_of(slip):
            self.cents[slip.number * len(LEGS) + leg.leg] = leg.cents

    def _agrees(self, slip: Slip) -> bool:
        """What the file does not have is known from here."""
        if not self.tags[slip.number]:
            self._note(slip)
        return self.has(legs_of(slip))

    def has(self, legs: Iterable[tuple[Any, ...]]) -> bool:
        """Whether these legs are of the execution that the slips are of."""
        return all(
            self.tags[number] == tag
            and self.cents[number * len(LEGS) + leg] == cents
            and company == COMPANY_NAMES[number % COMPANIES]
            for number, leg, company, cents, tag, *_ in legs
        )


def _whole_lines(job: Job, name: str) -> Iterator[str]:
    """What stands there, but for a torn last line."""
    if job.path(name).exists():
        with open(job.path(name), newline="\n") as lines:
            yield from (line for line in lines if line.endswith("\n"))


def of_bytes(job: Job, name: str, expected: Iterator[str]) -> list[str]:
    """The file's bytes are these lines, and no others."""
    at = 0
    with open(job.path(name), "rb") as file:
        while wanted := "".join(islice(expected, LINES_AT_ONCE)).encode():
            found = file.read(len(wanted))
            if found != wanted:
                return [_told(name, at, found, wanted)]
            at += len(wanted)
        rest = file.read(60)
    return [_told(name, at, rest, b"")] if rest else []


def _told(name: str, at: int, found: bytes, wanted: bytes) -> str:
    differ = (n for n, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b)
    place = next(differ, min(len(found), len(wanted)))
    return f"{name}: at {at + place}: {found[place : place + 60]!r}, expected {wanted[place : place + 60]!r}"


# -- tables --------------------------------------------------------------------------------------


def _tables(job: Job) -> list[str]:
    return ["rows", "server"] if job.server else ["rows"]


def _leg_of(place: int) -> tuple[int, int]:
    return divmod(place, len(LEGS))


class _Table:
    """Judges one table: each leg once, of the execution that the slips are of, in accounts without a gap.

    What failed at the table was booked as well, and counts as if it stood there.
    """

    def __init__(self, job: Job, name: str, drawn: _Drawn, failed: _Failed) -> None:
        self.name = name
        self.places = array("i", bytes(4 * job.items * len(LEGS)))
        """Where each leg stands in its account."""
        self._job = job
        self._drawn = drawn
        self._found = _Found(job.items * len(LEGS))
        self._torn: list[Any] = []
        self._sums = array("q", bytes(8 * job.items))
        self._accounts = [_Account(leg, company) for leg in range(len(LEGS)) for company in COMPANY_NAMES]
        self._ends: list[Row] = []
        self._counted = {row.number: row for row in failed.rows_at("count")}
        self._read(failed.rows_at(name))
        self._found.counts[:] = bytes(len(self._found.counts))
        self._read(_read_table(job, name))
        self._take_legs(failed.items.get("balance", []))
        self.problems = self._judge()

    @property
    def cents(self) -> int:
        return sum(account.total for account in self._accounts)

    def _read(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """The loop that every row goes through: what is the same for all rows is looked up before it."""
        items, legs, per_leg, companies = self._job.items, len(LEGS), COMPANIES, COMPANY_NAMES
        tags, cents_of, places, sums = self._drawn.tags, self._drawn.cents, self.places, self._sums
        accounts, counts, take, counted = self._accounts, self._found.counts, self._found.take, self._counted
        for row in rows:
            number, leg, company, cents, tag, place, total = row
            if not (0 <= number < items and 0 <= leg < legs):
                self._take_other(Row(*row))
                continue
            at = number * legs + leg
            owner = number % per_leg
            if tag != tags[number] or cents != cents_of[at] or company != companies[owner]:
                self._torn.append(row)
            if counts[at]:
                take(at)
            counts[at] = 1
            places[at] = place
            sums[number] += cents
            account = accounts[leg * per_leg + owner]
            if place == account.next_place and total == account.total + cents:
                account.next_place = place + 1
                account.total = total
                account.tags += tag
                if account.waiting:
                    account.book_waiting()
            else:
                account.take(Row(*row))
            if number in counted and counted[number] == row:
                del counted[number]

    def _take_other(self, row: Row) -> None:
        """Not a leg of an item: what an account has at its end, or nothing that belongs here."""
        if row.number == AT_THE_END:
            self._ends.append(row)
        else:
            self._found.strange.append(row[:2])

    def _take_legs(self, legs: list[tuple[Any, ...]]) -> None:
        """Those that failed before they were booked: together with the others they are the revenue."""
        self._torn += [leg for leg in legs if not self._drawn.has([leg])]
        for number, _, _, cents, _ in legs:
            self._sums[number] += cents

    def _judge(self) -> list[str]:
        job, name = self._job, self.name
        lost = raised_at(job, "enter", "tag", "legs")
        unbooked = {number * len(LEGS) + leg for number in lost for leg in range(len(LEGS))}
        for node in ("balance", name):
            unbooked |= {number * len(LEGS) + troubled_leg(number) for number in always(job, node)}
        problems = self._found.say(name, unbooked, _leg_of)
        if self._torn:
            problems.append(f"{name}: {len(self._torn)} of another execution than the slips: {self._torn[:SHOWN]}")
        wrong = [n for n, cents in enumerate(self._sums) if cents != (0 if n in lost else revenue_of(n).cents)]
        if wrong:
            problems.append(f"{name}: {len(wrong)} items whose legs are not the revenue: {wrong[:SHOWN]}")
        if self._counted:
            problems.append(f"count: failed items that {name} has not: {list(self._counted.values())[:SHOWN]}")
        return problems + self._of_totals()

    def _of_totals(self) -> list[str]:
        """Each account's rows follow one another without a gap, to the cent; at its end stands their sum."""
        ends: dict[Account, list[Row]] = {}
        for row in self._ends:
            ends.setdefault((row.leg, row.company), []).append(row)
        problems = []
        for account in self._accounts:
            problems += account.problems(ends.pop((account.leg, account.company), []))
        problems += [f"accounts that nobody has: {sorted(ends)[:SHOWN]}"] * bool(ends)
        return [f"{self.name}: {problem}" for problem in problems]


class _Account:
    """One leg of one company, as its rows come: mostly in order, but a row that failed at first comes later."""

    __slots__ = ("company", "leg", "next_place", "tags", "total", "waiting", "wrong")

    def __init__(self, leg: int, company: str) -> None:
        self.leg = leg
        self.company = company
        self.next_place = 1
        self.total = 0
        self.tags = 0
        self.waiting: dict[int, Row] = {}
        """Those that come after one that is not there yet."""
        self.wrong: Row | None = None

    def take(self, row: Row) -> None:
        if row.place < self.next_place or row.place in self.waiting:
            self.wrong = self.wrong or row
            return
        self.waiting[row.place] = row
        self.book_waiting()

    def book_waiting(self) -> None:
        while (row := self.waiting.pop(self.next_place, None)) is not None:
            self._book(row)

    def _book(self, row: Row) -> None:
        self.total += row.cents
        self.tags += row.tag
        self.next_place += 1
        if row.total != self.total:
            self.wrong = self.wrong or row
            self.total = row.total

    def problems(self, ends: list[Row]) -> list[str]:
        name = f"account {(self.leg, self.company)}"
        found = []
        if self.wrong is not None:
            found.append(f"{name}: does not follow from the one before, or has its place twice: {self.wrong}")
        if self.waiting:
            found.append(f"{name}: place {self.next_place} is not there, but {len(self.waiting)} after it")
        wanted = Row(AT_THE_END, self.leg, self.company, 0, self.tags, self.next_place - 1, self.total)
        return found if ends == [wanted] else [*found, f"{name}: at the end {ends}, expected once {wanted}"]


def _of_places(first: _Table, second: _Table) -> list[str]:
    """Both have each leg at the same place."""
    if first.places == second.places:
        return []
    pairs = zip(first.places, second.places, strict=True)
    differ = [_leg_of(n) for n, (one, other) in enumerate(pairs) if one != other]
    return [f"{first.name} and {second.name}: {len(differ)} legs at different places: {differ[:SHOWN]}"]


def _read_table(job: Job, name: str, columns: str = ", ".join(Row._fields)) -> Iterator[tuple[Any, ...]]:
    """The rows one by one, in whatever order they come; none where there is no table."""
    query = f"SELECT {columns} FROM {TABLE}"
    if name == "server":
        yield from _read_server(job.server, query)
        return
    with closing(sqlite3.connect(job.path("rows.db"))) as database:
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (TABLE,)).fetchone():
            yield from database.execute(query)


def _read_server(url: str, query: str) -> Iterator[tuple[Any, ...]]:
    import psycopg

    with psycopg.connect(url) as server:
        if server.execute("SELECT to_regclass(%s)", (TABLE,)).fetchone() == (None,):
            return
        with server.cursor(name="rows") as rows:
            rows.itersize = LINES_AT_ONCE
            yield from rows.execute(query, binary=True)


# -- after a crash -------------------------------------------------------------------------------


def of_crash(job: Job, still_open: Open) -> list[str]:
    """Nothing stands twice in a table, ever; what the journals have let go of stands everywhere."""
    done = bytearray(job.items)
    for number in still_open.done():
        done[number] = 1
    problems = _of_lost("book", job, done, (parse(line).number for line in _whole_lines(job, "book")), "enter", "book")
    slips = (json.loads(line)[0] for line in _whole_lines(job, "slips"))
    problems += _of_lost("slips", job, done, slips, "enter", "tag", "slips")
    for name in _tables(job):
        problems += _of_table_after_crash(job, name, done)
    return problems


def _of_lost(name: str, job: Job, done: bytearray, numbers: Iterator[int], *nodes: str) -> list[str]:
    found = bytearray(job.items)
    for number in numbers:
        found[number] = 1
    raised = raised_at(job, *nodes)
    return _say_lost(name, (n for n in range(job.items) if done[n] and not found[n] and n not in raised))


def _of_table_after_crash(job: Job, name: str, done: bytearray) -> list[str]:
    found = _Found(job.items * len(LEGS))
    ends: Counter[Any] = Counter()
    for number, leg, company in _read_table(job, name, "number, leg, company"):
        if number == AT_THE_END:
            ends[leg, company] += 1
        else:
            found.take(number * len(LEGS) + leg)
    twice = [*map(_leg_of, found.doubled), *(end for end, count in ends.items() if count > 1)]
    problems = [f"{name}: more than once: {twice[:SHOWN]}"] if twice else []
    raised = raised_at(job, "enter", "tag", "legs")
    unbooked = {(number, troubled_leg(number)) for node in ("balance", name) for number in always(job, node)}
    lost = (
        (number, leg)
        for number in range(job.items)
        if done[number] and number not in raised
        for leg in range(len(LEGS))
        if not found.counts[number * len(LEGS) + leg] and (number, leg) not in unbooked
    )
    return problems + _say_lost(name, lost)


def _say_lost(name: str, lost: Iterator[Any]) -> list[str]:
    missing = list(lost)
    return [f"{name}: {len(missing)} count as complete but are not there: {missing[:SHOWN]}"] if missing else []
