"""What does a monthly fee cost in thirty years?

    accounts | Broadcast([without_fee, with_fee]) | grow | balances

Each account goes two ways, once as it is and once without its fee, and both ways join in front of ``grow``,
which makes a balance for the end of every year.

    python examples/investment.py
    consecution run examples/investment.py

On the first of each month the contribution comes in and the fee goes out (never more than there is). At the
end of the year the account earns its yearly return on the average of what it held in the twelve months,
rounded to the cent (a half up). Everything is in whole cents.

A balance depends on the one before it. So one item is a whole account: the balance lives in a variable
of the generator, and the node keeps nothing between items.
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

from consecution import Broadcast, GlobalState, Pipeline, Producer, SqlSink

OUT = Path("out")


class Account(NamedTuple):
    name: str
    monthly_contribution: int
    monthly_fee: int
    yearly_return: Fraction
    years: int = 30


ACCOUNTS = (
    Account("index fund", 250_00, 1_50, Fraction("0.055")),
    Account("savings book", 100_00, 4_95, Fraction("0.0125")),
    Account("retirement plan", 625_00, 18_00, Fraction("0.062")),
)


class Plan(NamedTuple):
    """An account, under one of the two suppositions."""

    supposing: str
    account: Account


class Balance(NamedTuple):
    """What an account has at the end of a year, and what has come and gone in that year."""

    account: str
    supposing: str
    year: int
    contributed: int
    fees: int
    earned: int
    balance: int


def with_fee(account: Account) -> Plan:
    return Plan("with fee", account)


def without_fee(account: Account) -> Plan:
    return Plan("without fee", account._replace(monthly_fee=0))


def grow(plan: Plan) -> Iterator[Balance]:
    """The balance at the end of each year."""
    account, balance = plan.account, 0
    for year in range(1, account.years + 1):
        held = fees = 0
        for _ in range(12):
            balance += account.monthly_contribution
            fee = min(account.monthly_fee, balance)
            balance -= fee
            fees += fee
            held += balance
        earned = rounded(account.yearly_return * held / 12)
        balance += earned
        yield Balance(account.name, plan.supposing, year, 12 * account.monthly_contribution, fees, earned, balance)


def rounded(cents: Fraction) -> int:
    """To the cent; a half is rounded up."""
    return int((2 * cents + 1) // 2)


class Investment(Pipeline):
    """Makes the folder it writes into."""

    def begin(self) -> None:
        self.global_state.out.mkdir(parents=True, exist_ok=True)


def build(out: Path) -> Pipeline:
    """The pipeline, writing into the folder ``out``."""
    url = f"sqlite:///{out / 'investment.db'}"
    return Investment(
        Producer(ACCOUNTS, name="accounts")
        | Broadcast([without_fee, with_fee])
        | grow
        | SqlSink("balances", url, table="balances", key=("account", "supposing", "year")),
        GlobalState(out=out),
    )


pipeline = build(OUT)


# -- the program around it -----------------------------------------------------------------------

TOTALS = """
SELECT account, sum(contributed), sum(fees), sum(earned), sum(contributed) - sum(fees) + sum(earned)
FROM balances WHERE supposing = ? AND year <= ? GROUP BY account
"""


def describe(database: Path, years: int) -> str:
    lines = [f"  {'account': <18}{'contributed': >14}{'fees': >14}{'earned': >14}{'balance': >14}{'without fee': >14}"]
    with contextlib.closing(sqlite3.connect(database)) as connection:
        without = {row[0]: row[-1] for row in connection.execute(TOTALS, ["without fee", years])}
        for account, *amounts in connection.execute(TOTALS, ["with fee", years]):
            amounts.append(without[account])
            lines.append(f"  {account: <18}" + "".join(f"{Decimal(cents) / 100: >14,.2f}" for cents in amounts))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Let some accounts grow, with and without their monthly fee.")
    parser.add_argument(
        "--years", type=int, choices=range(1, 31), default=30, metavar="1..30", help="after so many years"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder for investment.db (default: out)")
    arguments = parser.parse_args()
    database = arguments.out / "investment.db"
    database.unlink(missing_ok=True)
    report = build(arguments.out).run()
    print(report, end="\n\n")
    print(describe(database, arguments.years))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
