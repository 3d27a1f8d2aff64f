"""The judge of mixed: it knows the order of each source, and of each share of one."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import mixed, mixed_verdict
from tests.faults.ledger import COMPANIES, LEGS
from tests.faults.test_ledger_verdict import ITEMS, Books

SHARES = {"files": 2, "told": 1}


@pytest.fixture
def books(tmp_path: Path) -> Books:
    made = Books(tmp_path)
    made.job = dataclasses.replace(made.job, work="mixed", shares=SHARES, server="")
    made.write()
    return made


def judge(books: Books) -> list[str]:
    failures = [failure for failure in books.failures if failure.node != "server"]
    return mixed_verdict.of_end(books.job, failures, torn_at_most=0)


def test_the_numbers_of_all_origins_are_all_numbers(books: Books) -> None:
    origins = mixed.origins(books.job)

    assert origins.keys() == {"files.0", "files.1", "told"}
    assert sorted(number for numbers in origins.values() for number in numbers) == list(range(ITEMS))
    assert list(origins["files.1"])[:3] == [1, 6, 11]


def test_the_sources_may_be_interleaved_as_they_like(books: Books) -> None:
    """The files come one after the other, and not all of them together."""

    def by_origin(lines: list[str]) -> list[str]:
        line_of = {int(line.partition(";")[0]): line for line in lines}
        wanted = (number for numbers in mixed.origins(books.job).values() for number in numbers)
        return [line_of[number] for number in wanted if number in line_of]

    books.edit("book", by_origin)

    assert [problem for problem in judge(books) if problem.startswith("book")] == []


EXCHANGED: dict[str, Callable[[list[str]], list[str]]] = {
    "two lines": lambda lines: [*lines[:-2], lines[-1], lines[-2]],
    "a line is doubled": lambda lines: [*lines, lines[-1]],
    "a line is missing": lambda lines: lines[:-1],
}


@pytest.mark.parametrize("damage", EXCHANGED)
def test_what_is_wrong_with_the_book_is_found(books: Books, damage: str) -> None:
    books.edit("book", EXCHANGED[damage])

    assert any(problem.startswith("book: ") for problem in judge(books))


def test_slips_of_a_source_that_have_changed_places_are_found(books: Books) -> None:
    books.edit("slips", lambda lines: [*lines[:-2], lines[-1], lines[-2]])

    assert any(problem.startswith("slips: told: 1 before one") for problem in judge(books))


def test_legs_of_a_source_that_were_booked_in_another_order_are_found(books: Books) -> None:
    """Of the last two numbers of a company the later one is booked first."""
    number = ITEMS - 1 - COMPANIES
    places = array("i", range(ITEMS * len(LEGS)))
    in_turn = (number for numbers in mixed.origins(books.job).values() for number in numbers)
    for place, found in enumerate(in_turn, 1):
        places[found * len(LEGS) : (found + 1) * len(LEGS)] = array("i", [place] * len(LEGS))
    assert mixed_verdict._of_places(books.job, "rows", places) == []

    places[number * len(LEGS)] = ITEMS * len(LEGS)

    (problem,) = mixed_verdict._of_places(books.job, "rows", places)
    assert problem == f"rows: told: leg 0: 1 before one that they come after: [{number + COMPANIES}]"
