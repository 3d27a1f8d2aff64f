"""How does a month's income fill the envelopes?

    months | incomes | Broadcast([rent, food, transport, fun, savings]) | ledger

Money is poured into envelopes in turn: rent is filled first, then food, and so on, each up to its limit for
the month; savings takes the rest.

    python examples/budget.py
    consecution run examples/budget.py

Where an income goes depends on what came before it in the month. If each envelope remembered how full it
is, its memory would be lost with its worker. So one item is a whole month: ``incomes`` tags each
income with what was poured before it, and an envelope is a place on a scale. Rent holds the cents from 0 to
1,200.00 of the month, food those from 1,200.00 to 1,650.00; what an income brings to an envelope is where
the two overlap. No envelope needs to know the others, and all of them work at once.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sqlite3
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from consecution import Broadcast, GlobalState, Node, Pipeline, Producer, SqlSink

OUT = Path("out")
LIMITS = {"rent": 1_200_00, "food": 450_00, "transport": 89_90, "fun": 150_00}
"""What each envelope holds, in the order in which they are filled."""


class Month(NamedTuple):
    name: str
    incomes: tuple[int, ...]


MONTHS = (
    Month("January", (1_150_37, 480_00, 75_25)),
    Month("February", (1_150_37,)),
    Month("March", (1_150_37, 612_50, 1_00, 348_19)),
    Month("April", (0, 2_400_00)),
    Month("May", (1_200_00, 450_00)),
    Month("June", ()),
)


class Income(NamedTuple):
    """The ``number``-th income of a month; ``before`` is what was poured before it."""

    month: str
    number: int
    cents: int
    before: int


class Entry(NamedTuple):
    envelope: str
    month: str
    income: int
    cents: int


def incomes(month: Month) -> Iterator[Income]:
    """Each income of a month, in order, tagged with the sum of those before it."""
    poured = itertools.accumulate(month.incomes, initial=0)
    for number, (cents, before) in enumerate(zip(month.incomes, poured, strict=False), 1):
        yield Income(month.name, number, cents, before)


class Envelope(Node):
    """Takes the cents of the month from ``bottom`` up to ``top``; from ``bottom`` on where that is None."""

    bottom: int
    top: int | None

    def process(self, income: Income) -> None:
        poured = income.before + income.cents
        end = poured if self.top is None else min(poured, self.top)
        cents = end - max(income.before, self.bottom)
        if cents > 0:
            self.push(Entry(self.name, income.month, income.number, cents))


def envelopes() -> list[Envelope]:
    """One on top of the other, savings last and without a top."""
    edges = list(itertools.accumulate(LIMITS.values(), initial=0))
    filled = [
        Envelope(name, bottom=bottom, top=top)
        for name, (bottom, top) in zip(LIMITS, itertools.pairwise(edges), strict=True)
    ]
    return [*filled, Envelope("savings", bottom=edges[-1], top=None)]


class Budget(Pipeline):
    """Makes the folder it writes into."""

    def begin(self) -> None:
        self.global_state.out.mkdir(parents=True, exist_ok=True)


def build(out: Path) -> Pipeline:
    """The pipeline, writing into the folder ``out``."""
    return Budget(
        Producer(MONTHS, name="months")
        | incomes
        | Broadcast(envelopes())
        | SqlSink("ledger", f"sqlite:///{out / 'budget.db'}", table="ledger", key=("envelope", "month", "income")),
        GlobalState(out=out),
    )


pipeline = build(OUT)


# -- the program around it -----------------------------------------------------------------------


def contents(database: Path) -> dict[tuple[str, str], int]:
    """(month, envelope) → cents."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT month, envelope, sum(cents) FROM ledger GROUP BY month, envelope")
        return {(month, envelope): cents for month, envelope, cents in rows}


def describe(found: dict[tuple[str, str], int]) -> str:
    names = [*LIMITS, "savings"]
    lines = [f"  {'month': <12}" + "".join(f"{name: >12}" for name in [*names, "income"])]
    for month in MONTHS:
        cents = [found.get((month.name, envelope), 0) for envelope in names]
        lines.append(f"  {month.name: <12}" + "".join(f"{Decimal(c) / 100: >12,.2f}" for c in [*cents, sum(cents)]))
    limits = "".join(f"{Decimal(limit) / 100: >12,.2f}" for limit in LIMITS.values())
    return "\n".join([*lines, f"  {'limit': <12}{limits}"])


def main() -> int:
    parser = argparse.ArgumentParser(description="Pour the incomes of some months into envelopes, one after the other.")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for budget.db (default: out)")
    arguments = parser.parse_args()
    database = arguments.out / "budget.db"
    database.unlink(missing_ok=True)
    report = build(arguments.out).run()
    print(report, end="\n\n")
    print(describe(contents(database)))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
