"""How much of a mortgage payment is interest?

    loans | payments * 2 | schedule

One loan makes 360 payments: a generator function is a flat-map, and its two replicas share the loans.

    python examples/mortgage.py
    consecution run examples/mortgage.py

Every month the bank takes a twelfth of the yearly rate of what is owed, rounded to the cent (a half up),
and the rest of the payment pays off principal. The payment is the one that would end the loan in time
if there were no rounding, to the cent; the last payment settles what is left, so it differs a little, and
the principal adds up to the loan exactly.

A payment depends on the balance that the ones before it left. So one item is a whole loan, not one
payment: the balance lives in a variable of the generator, and the node keeps nothing between items.
"""

from __future__ import annotations

import argparse
import contextlib
import sqlite3
import sys
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from consecution import FlatMap, GlobalState, Pipeline, Producer, SqlSink

OUT = Path("out")


class Loan(NamedTuple):
    name: str
    cents: int
    yearly_rate: Fraction
    months: int = 360

    @property
    def monthly_rate(self) -> Fraction:
        return self.yearly_rate / 12


LOANS = (
    Loan("cottage", 180_000_00, Fraction("0.0575")),
    Loan("duplex", 415_000_00, Fraction("0.06125")),
    Loan("townhouse", 292_500_00, Fraction("0.0399")),
    Loan("from grandmother", 36_000_00, Fraction(0)),
)


class Payment(NamedTuple):
    """The ``number``-th payment of a loan, what it is made of, and the balance after it; all in cents."""

    loan: str
    number: int
    interest: int
    principal: int
    balance: int


def level_payment(loan: Loan) -> int:
    """The payment that ends the loan in time, to the cent."""
    rate = loan.monthly_rate
    if not rate:
        return rounded(Fraction(loan.cents, loan.months))
    return rounded(loan.cents * rate / (1 - (1 + rate) ** -loan.months))


def payments(loan: Loan) -> Iterator[Payment]:
    """Every payment of a loan, first to last."""
    balance, level = loan.cents, level_payment(loan)
    for number in range(1, loan.months + 1):
        interest = rounded(balance * loan.monthly_rate)
        principal = balance if number == loan.months else min(level - interest, balance)
        balance -= principal
        yield Payment(loan.name, number, interest, principal, balance)


def rounded(cents: Fraction) -> int:
    """To the cent; a half is rounded up."""
    return int((2 * cents + 1) // 2)


class Mortgage(Pipeline):
    """Makes the folder it writes into."""

    def begin(self) -> None:
        self.global_state.out.mkdir(parents=True, exist_ok=True)


def build(out: Path) -> Pipeline:
    """The pipeline, writing into the folder ``out``."""
    return Mortgage(
        Producer(LOANS, name="loans")
        | FlatMap(payments) * 2
        | SqlSink("schedule", f"sqlite:///{out / 'mortgage.db'}", table="schedule", key=("loan", "number")),
        GlobalState(out=out),
    )


pipeline = build(OUT)


# -- the program around it -----------------------------------------------------------------------

TOTALS = """
SELECT loan, count(*), max(interest + principal) FILTER (WHERE number = 1),
       max(interest + principal) FILTER (WHERE balance = 0), sum(interest), sum(principal)
FROM schedule GROUP BY loan
"""
SOME = """
SELECT number, interest, principal, balance FROM schedule
WHERE loan = ? AND (number <= 3 OR number % 60 = 0) ORDER BY number
"""


def describe_totals(connection: sqlite3.Connection) -> str:
    lines = [f"  {'loan': <18}{'payments': >8}{'each': >14}{'the last': >14}{'interest': >14}{'principal': >14}"]
    for loan, count, *amounts in connection.execute(TOTALS):
        lines.append(f"  {loan: <18}{count: >8}{in_columns(amounts)}")
    return "\n".join(lines)


def describe_schedule(connection: sqlite3.Connection, loan: str) -> str:
    lines = [f"  {loan: <18}{'interest': >14}{'principal': >14}{'still owed': >14}"]
    for number, *amounts in connection.execute(SOME, [loan]):
        lines.append(f"  payment {number: <10}{in_columns(amounts)}")
    return "\n".join(lines)


def in_columns(amounts: list[int]) -> str:
    return "".join(f"{Decimal(cents) / 100: >14,.2f}" for cents in amounts)


def main() -> int:
    parser = argparse.ArgumentParser(description="Split the payments of some mortgages into interest and principal.")
    parser.add_argument("--loan", choices=[loan.name for loan in LOANS], help="show some payments of this loan")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for mortgage.db (default: out)")
    arguments = parser.parse_args()
    database = arguments.out / "mortgage.db"
    database.unlink(missing_ok=True)
    report = build(arguments.out).run()
    print(report, end="\n\n")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        print(describe_totals(connection))
        if arguments.loan:
            print("\n" + describe_schedule(connection, arguments.loan))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
