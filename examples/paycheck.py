"""What is left of a paycheck?

    paychecks | Broadcast([gross, federal_tax, social_security, medicare, retirement]) | ledger

Twelve paychecks a year for each employee. Every branch makes its own line of the paycheck, and all lines
flow together again in the ledger: gross is what comes in, deductions are negative, and net is their sum.

    python examples/paycheck.py
    consecution run examples/paycheck.py

The rules, in whole cents; a half cent is rounded up:

- retirement: the percent the employee has chosen; it is not taxed, but counts for the other two
- federal tax: a twelfth of the year's tax on twelve times this month's taxable pay (gross less retirement),
  less the standard deduction, by brackets
- social security: 6.2 % of the pay up to the wage base, counted from January
- medicare: 1.45 % of all pay

A paycheck carries what was earned before it in the year, so that each branch can tell from the paycheck
alone. Rates and brackets are those of the United States for a single person in 2024.
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

from consecution import Broadcast, GlobalState, Pipeline, Producer, SqlSink

OUT = Path("out")
STANDARD_DEDUCTION = 14_600_00
BRACKETS = (
    (0, 10),
    (11_600_00, 12),
    (47_150_00, 22),
    (100_525_00, 24),
    (191_950_00, 32),
    (243_725_00, 35),
    (609_350_00, 37),
)
"""From so many cents of taxable income in a year on, so many percent."""
WAGE_BASE = 168_600_00
SOCIAL_SECURITY_PER_MILLE = 62
MEDICARE_PER_MYRIAD = 145


class Employee(NamedTuple):
    name: str
    monthly_pay: int
    retirement_percent: int
    bonus: int = 0
    """Paid in December."""


EMPLOYEES = (
    Employee("Amara", 3_250_00, 3),
    Employee("Boris", 4_716_67, 5, bonus=1_000_00),
    Employee("Chen", 7_083_33, 10),
    Employee("Dolores", 1_199_99, 0),
    Employee("Emeka", 16_250_50, 8, bonus=25_000_00),
)


class Paycheck(NamedTuple):
    employee: str
    month: int
    gross: int
    earned_before: int
    retirement_percent: int


class Line(NamedTuple):
    employee: str
    month: int
    line: str
    cents: int


def paychecks() -> Iterator[Paycheck]:
    """Month by month, everybody's paycheck."""
    for month, employee in itertools.product(range(1, 13), EMPLOYEES):
        pay = employee.monthly_pay + (employee.bonus if month == 12 else 0)
        earned_before = employee.monthly_pay * (month - 1)
        yield Paycheck(employee.name, month, pay, earned_before, employee.retirement_percent)


def rounded(numerator: int, denominator: int) -> int:
    """The fraction as a whole number; a half is rounded up."""
    return (2 * numerator + denominator) // (2 * denominator)


# -- the branches --------------------------------------------------------------------------------


def gross(paycheck: Paycheck) -> Line:
    return Line(paycheck.employee, paycheck.month, "gross", paycheck.gross)


def federal_tax(paycheck: Paycheck) -> Line:
    taxable_a_year = 12 * (paycheck.gross - saved(paycheck)) - STANDARD_DEDUCTION
    return deduct(paycheck, "federal tax", rounded(percents_of_tax(taxable_a_year), 12 * 100))


def social_security(paycheck: Paycheck) -> Line:
    counts = min(paycheck.gross, max(0, WAGE_BASE - paycheck.earned_before))
    return deduct(paycheck, "social security", rounded(counts * SOCIAL_SECURITY_PER_MILLE, 1000))


def medicare(paycheck: Paycheck) -> Line:
    return deduct(paycheck, "medicare", rounded(paycheck.gross * MEDICARE_PER_MYRIAD, 10_000))


def retirement(paycheck: Paycheck) -> Line:
    return deduct(paycheck, "retirement", saved(paycheck))


def saved(paycheck: Paycheck) -> int:
    return rounded(paycheck.gross * paycheck.retirement_percent, 100)


def percents_of_tax(taxable: int) -> int:
    """The tax on a year's taxable income, in hundredths of a cent."""
    tax = percent_below = 0
    for floor, percent in BRACKETS:
        tax += max(0, taxable - floor) * (percent - percent_below)
        percent_below = percent
    return tax


def deduct(paycheck: Paycheck, line: str, cents: int) -> Line:
    return Line(paycheck.employee, paycheck.month, line, -cents)


class Payroll(Pipeline):
    """Makes the folder it writes into."""

    def begin(self) -> None:
        self.global_state.out.mkdir(parents=True, exist_ok=True)


def build(out: Path) -> Pipeline:
    """The pipeline, writing into the folder ``out``."""
    return Payroll(
        Producer(paychecks, name="paychecks")
        | Broadcast([gross, federal_tax, social_security, medicare, retirement])
        | SqlSink("ledger", f"sqlite:///{out / 'paycheck.db'}", table="ledger", key=("employee", "month", "line")),
        GlobalState(out=out),
    )


pipeline = build(OUT)


# -- the program around it -----------------------------------------------------------------------

LINES = ("gross", "federal tax", "social security", "medicare", "retirement")


def sums(database: Path, month: int | None) -> dict[str, dict[str, int]]:
    """Employee → line → cents, of one month or of the year."""
    found: dict[str, dict[str, int]] = {}
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(
            "SELECT employee, line, sum(cents) FROM ledger WHERE coalesce(month = ?, TRUE) GROUP BY employee, line",
            [month],
        )
        for employee, line, cents in rows:
            found.setdefault(employee, {})[line] = cents
    return found


def describe(sums_of: dict[str, dict[str, int]]) -> str:
    rows = [["", *LINES, "net"]]
    for employee, lines in sums_of.items():
        rows.append([employee, *(in_dollars(lines[line]) for line in LINES), in_dollars(sum(lines.values()))])
    return "\n".join(f"  {row[0]: <8}" + "".join(f"{cell: >17}" for cell in row[1:]) for row in rows)


def in_dollars(cents: int) -> str:
    return f"{Decimal(cents) / 100:,.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Gross pay, deductions and net pay of a few employees.")
    parser.add_argument("--month", type=int, choices=range(1, 13), metavar="1..12", help="only this month's paychecks")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for paycheck.db (default: out)")
    arguments = parser.parse_args()
    database = arguments.out / "paycheck.db"
    database.unlink(missing_ok=True)
    report = build(arguments.out).run()
    print(report, end="\n\n")
    print(describe(sums(database, arguments.month)))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
