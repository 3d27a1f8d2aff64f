"""The judge of the ledger: it finds nothing wrong in what is right, and every damage that is planted."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from consecution.report import Failure
from tests.faults import ledger, ledger_verdict
from tests.faults.job import ATTEMPTS, Job
from tests.faults.ledger import AT_THE_END, COMPANIES, LEGS, TABLE, Leg, Row, Slip
from tests.faults.verdict import Open

ITEMS = 400
SEED = 3
"""One of those in which some items always raise."""


class Books:
    """What an undisturbed run leaves, made in one process: items that raise once come again at the end."""

    def __init__(self, folder: Path) -> None:
        self.job = Job(SEED, "ledger", ITEMS, "list", "power", 30.0, str(folder), stores="own", server="other")
        self.failures: list[Failure] = []
        marks = ledger.marks_of(self.job)
        self.kinds = {(node, n): kind for node, numbers in marks.items() for n, kind in numbers.items()}
        self.lines: dict[str, list[str]] = {"book": [], "slips": []}
        self.rows: list[Row] = []
        self._states: dict[tuple[int, str], tuple[int, int, int]] = {}

    def write(self) -> None:
        again: list[Leg] = []
        for revenue in map(ledger.revenue_of, range(ITEMS)):
            if self._passes("enter", revenue):
                if self._passes("book", revenue):
                    self.lines["book"].append(ledger.line_of(revenue))
                if self._passes("tag", revenue):
                    again += self._take(Slip(*revenue, ledger.TAGS.start + revenue.number * 31, revenue.number % 4))
        for leg in again:
            self._book(leg)
        for (number, company), (place, total, tags) in self._states.items():
            self.rows.append(Row(AT_THE_END, number, company, 0, tags, place, total))
        self._write_stores()

    def _take(self, slip: Slip) -> list[Leg]:
        """The legs that raise the first time."""
        if self._passes("slips", slip):
            self.lines["slips"].append(json.dumps(slip))
        if not self._passes("legs", slip):
            return []
        legs = ledger.legs_of(slip)
        late = [leg for leg in legs if self._is_troubled(leg) and self.kinds.get(("balance", slip.number)) == "once"]
        for leg in legs:
            if leg not in late and (not self._is_troubled(leg) or self._passes("balance", leg)):
                self._book(leg)
        return late

    def _book(self, leg: Leg) -> None:
        place, total, tags = self._states.get((leg.leg, leg.company), (0, 0, 0))
        self._states[leg.leg, leg.company] = (place + 1, total + leg.cents, tags + leg.tag)
        self.rows.append(Row(*leg, place + 1, total + leg.cents))

    def _passes(self, node: str, item: Any) -> bool:
        """Whether the item does not always raise there; then it is a failure."""
        if self.kinds.get((node, item.number)) != "always":
            return True
        self.failures.append(Failure(node, repr(item), "ValueError", "", ATTEMPTS))
        return False

    def _is_troubled(self, leg: Leg | Row) -> bool:
        return leg.leg == ledger.troubled_leg(leg.number)

    def _write_stores(self) -> None:
        counted = [row for row in self.rows if not self._is_troubled(row) or self._passes("count", row)]
        marks = range(ledger.COUNTS_PER_LINE, len(counted) + 1, ledger.COUNTS_PER_LINE)
        self.lines["tape"] = [*map(str, marks), f"{len(counted)} booked, {sum(row.cents for row in counted)} cents"]
        for name, lines in self.lines.items():
            self.job.path(name).write_text("".join(f"{line}\n" for line in lines))
        for name in ("rows", "server"):
            stored = [row for row in self.rows if not self._is_troubled(row) or self._passes(name, row)]
            with closing(sqlite3.connect(self.job.path(f"{name}.db"))) as database, database:
                database.execute(f"CREATE TABLE {TABLE} ({', '.join(Row._fields)})")
                database.executemany(f"INSERT INTO {TABLE} VALUES (?, ?, ?, ?, ?, ?, ?)", stored)
        self.job.path("tokens").mkdir()

    def change(self, name: str, query: str) -> None:
        """Do something to one row of a table."""
        with closing(sqlite3.connect(self.job.path(f"{name}.db"))) as database, database:
            assert database.execute(query).rowcount == 1

    def edit(self, name: str, edited: Callable[[list[str]], list[str]]) -> None:
        """Do something to the lines of a file."""
        lines = self.job.path(name).read_text().splitlines()
        changed = edited(list(lines))
        assert changed != lines
        self.job.path(name).write_text("".join(f"{line}\n" for line in changed))

    def judge(self) -> list[str]:
        return ledger_verdict.of_end(self.job, self.failures, torn_at_most=0)


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Books:
    """The other table lies in SQLite too: no server is needed to judge one."""

    def read_other(url: str, query: str) -> Iterator[tuple[Any, ...]]:
        with closing(sqlite3.connect(tmp_path / "server.db")) as database:
            yield from database.execute(query)

    monkeypatch.setattr(ledger_verdict, "_read_server", read_other)
    made = Books(tmp_path)
    made.write()
    return made


def one(where: str) -> str:
    return f"rowid = (SELECT MIN(rowid) FROM {TABLE} WHERE {where})"


QUIET = "number = 100 AND leg = 1"
"""An item that makes no trouble."""
TABLE_DAMAGES = {
    "a cent": f"UPDATE {TABLE} SET cents = cents + 1 WHERE {one(QUIET)}",
    "a cent of a total": f"UPDATE {TABLE} SET total = total - 1 WHERE {one(QUIET)}",
    "a tag": f"UPDATE {TABLE} SET tag = tag + 1 WHERE {one(QUIET)}",
    "a company": f"UPDATE {TABLE} SET company = 'company 0' WHERE {one(QUIET)}",
    "a place": f"UPDATE {TABLE} SET place = place + 1 WHERE {one(QUIET)}",
    "a leg of another": f"UPDATE {TABLE} SET leg = 2 WHERE {one(QUIET)}",
    "missing": f"DELETE FROM {TABLE} WHERE {one(QUIET)}",
    "the last of an account is missing": f"DELETE FROM {TABLE} WHERE {one('number >= 390 AND leg = 3')}",
    "doubled": f"INSERT INTO {TABLE} SELECT * FROM {TABLE} WHERE {one(QUIET)}",
    "foreign": f"INSERT INTO {TABLE} VALUES ({ITEMS + 7}, 0, 'company 0', 1, 1, 1, 1)",
    "of nobody": f"INSERT INTO {TABLE} VALUES (-2, 0, 'company 0', 1, 1, 1, 1)",
    "an end is missing": f"DELETE FROM {TABLE} WHERE {one(f'number = {AT_THE_END}')}",
    "an end is doubled": f"INSERT INTO {TABLE} SELECT * FROM {TABLE} WHERE {one(f'number = {AT_THE_END}')}",
    "a cent at an end": f"UPDATE {TABLE} SET total = total + 1 WHERE {one(f'number = {AT_THE_END}')}",
    "an end of nobody": f"INSERT INTO {TABLE} VALUES ({AT_THE_END}, 9, 'company 0', 0, 0, 0, 0)",
}


def test_nothing_is_wrong_in_what_is_right(books: Books) -> None:
    assert books.failures
    assert books.judge() == []


@pytest.mark.parametrize("table", ["rows", "server"])
@pytest.mark.parametrize("damage", TABLE_DAMAGES)
def test_a_damaged_row_is_found(books: Books, table: str, damage: str) -> None:
    books.change(table, TABLE_DAMAGES[damage])

    problems = books.judge()

    assert any(table in problem for problem in problems), problems


@pytest.mark.parametrize("table", ["rows", "server"])
def test_a_row_of_an_item_that_failed_there_is_found(books: Books, table: str) -> None:
    failed = next(eval_row(failure) for failure in books.failures if failure.node == table)
    books.change(table, f"INSERT INTO {TABLE} VALUES {tuple(failed)}")

    assert any(f"{table}: 1 too many" in problem for problem in books.judge())


def eval_row(failure: Failure) -> Row:
    found = eval(failure.item, {"Row": Row})
    assert isinstance(found, Row)
    return found


def test_two_tables_that_are_right_by_themselves_must_agree(books: Books) -> None:
    """Two legs of an account have changed places: their totals follow, but only in one of the tables."""
    with closing(sqlite3.connect(books.job.path("server.db"))) as database, database:
        account = database.execute(
            f"SELECT rowid, cents, place, total FROM {TABLE} WHERE leg = 0 AND company = 'company 5' ORDER BY place"
        ).fetchall()
        (one_id, one_cents, one_place, one_total), (two_id, two_cents, two_place, two_total) = account[:2]
        before = one_total - one_cents
        for row_id, place, total in ((one_id, two_place, two_total), (two_id, one_place, before + two_cents)):
            database.execute(f"UPDATE {TABLE} SET place = ?, total = ? WHERE rowid = ?", (place, total, row_id))

    (problem,) = books.judge()

    assert problem.startswith("rows and server: 2 legs at different places")


FILE_DAMAGES: dict[str, Callable[[list[str]], list[str]]] = {
    "a line is missing": lambda lines: lines[:50] + lines[51:],
    "the last line is missing": lambda lines: lines[:-1],
    "a line is doubled": lambda lines: lines[:50] + lines[49:],
    "a line is foreign": lambda lines: [*lines, lines[0].replace("0", "900", 1)],
    "a cent": lambda lines: [*lines[:50], lines[50].replace(lines[50][-1], "x", 1), *lines[51:]],
}


@pytest.mark.parametrize("file", ["book", "tape"])
@pytest.mark.parametrize("damage", FILE_DAMAGES)
def test_a_file_of_one_origin_must_have_the_same_bytes(books: Books, file: str, damage: str) -> None:
    books.edit(file, FILE_DAMAGES[damage])

    assert any(problem.startswith(f"{file}: at ") for problem in books.judge())


def changed_slip(lines: list[str], place: int, **changes: Any) -> list[str]:
    slip = Slip(*json.loads(lines[place]))._replace(**changes)
    return [*lines[:place], json.dumps(slip), *lines[place + 1 :]]


SLIP_DAMAGES: dict[str, Callable[[list[str]], list[str]]] = {
    "missing": lambda lines: lines[:50] + lines[51:],
    "doubled": lambda lines: lines[:51] + lines[50:],
    "foreign": lambda lines: [*lines, json.dumps(Slip(ITEMS, "company 1", 1, 1, 1))],
    "a cent": lambda lines: changed_slip(lines, 50, cents=1),
    "a company": lambda lines: changed_slip(lines, 50, company="company 99"),
    "of another execution": lambda lines: changed_slip(lines, 50, tag=ledger.TAGS.start),
    "the odd cents elsewhere": lambda lines: changed_slip(lines, 50, odd=(json.loads(lines[50])[4] + 1) % len(LEGS)),
    "in an order that is not the same": lambda lines: [*lines[1:], lines[0]],
}


@pytest.mark.parametrize("damage", SLIP_DAMAGES)
def test_a_damaged_slip_is_found(books: Books, damage: str) -> None:
    """The order of the slips is nobody's promise: items that were tried again come later."""
    books.edit("slips", SLIP_DAMAGES[damage])

    assert bool(books.judge()) == ("order" not in damage)


def test_failures_that_are_missing_doubled_or_of_another_execution_are_found(books: Books) -> None:
    whole = books.failures
    for place, failure in enumerate(whole):
        books.failures = whole[:place] + whole[place + 1 :]
        assert books.judge(), f"without {failure}"
        books.failures = [*whole, failure]
        assert books.judge(), f"twice {failure}"
        if "tag=" in failure.item:
            other = failure.item.replace("tag=", "tag=9")
            books.failures = [*whole[:place], Failure(failure.node, other, "", "", ATTEMPTS), *whole[place + 1 :]]
            assert books.judge(), f"another {failure}"


def test_trouble_that_never_came_is_found(books: Books) -> None:
    books.job.path("tokens/tag-5").touch()

    assert books.judge() == ["trouble that never came: tag-5"]


# -- after a crash -------------------------------------------------------------------------------


def test_after_a_crash_what_is_still_open_may_be_missing_and_nothing_else(books: Books) -> None:
    books.edit("book", lambda lines: lines[:-3])
    books.edit("slips", lambda lines: lines[:-3])
    books.change("rows", TABLE_DAMAGES["missing"])

    lost = ledger_verdict.of_crash(books.job, Open([*range(ITEMS)]))

    assert [problem.partition(":")[0] for problem in lost] == ["book", "slips", "rows"]
    assert ledger_verdict.of_crash(books.job, Open([*range(ITEMS)], numbers={100, *range(390, ITEMS)})) == []


@pytest.mark.parametrize("damage", ["doubled", "an end is doubled"])
def test_after_a_crash_nothing_stands_twice(books: Books, damage: str) -> None:
    books.change("server", TABLE_DAMAGES[damage])

    (problem,) = ledger_verdict.of_crash(books.job, Open())

    assert problem.startswith("server: more than once")


def test_all_accounts_are_in_the_books(books: Books) -> None:
    """So that no damage above is missed for want of rows."""
    assert len({(row.leg, row.company) for row in books.rows}) == len(LEGS) * COMPANIES
