"""Where does a company's revenue go?

    invoices | at_the_budget | Route([operating_budget, profit_distribution = [ann, bob]], by=purpose) | ledger

The first 120,000.00 dollars of revenue are the operating budget and stay with the company; what comes
after is profit, and two partners share it. Every invoice is tagged with the total revenue before it, so
that it knows where it falls; the one that crosses the line is cut in two.

    python examples/profit_share.py
    consecution run examples/profit_share.py

Amounts are whole cents. Of the first n cents of profit Ann has 60 %, rounded down, and Bob has the rest.
From a portion each gets what that rule says after it, less what it said before: so no odd cent is ever
lost or made, and after any number of invoices nobody is a whole cent away from the exact share.

The tag makes every node stateless: who gets what of a portion follows from the portion alone. The ledger
holds each entry once, so the totals, which are summed in it, are right whatever died on the way. It has (leg,
invoice) as its key, so that a run from the beginning replaces what is there.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sqlite3
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import NamedTuple

from consecution import Broadcast, GlobalState, Map, Node, Pipeline, Producer, Route, SqlSink

OUT = Path("out")
INVOICES = Path(__file__).with_name("invoices.txt")
OPERATING_BUDGET = 120_000_00
ANNS_PERCENT = 60


class Invoice(NamedTuple):
    number: str
    cents: int
    revenue_before: int


class Portion(NamedTuple):
    """Cents of an invoice that have one purpose; ``before`` counts the cents that had it earlier."""

    invoice: str
    purpose: str
    cents: int
    before: int


class Entry(NamedTuple):
    leg: str
    invoice: str
    cents: int


def read_invoices(path: Path) -> Iterator[tuple[str, int]]:
    """Number and cents of each invoice. ValueError for a line that is none: every later tag would be wrong."""
    numbers = set()
    for line_number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            number, *_, dollars = words
            cents = to_cents(dollars)
        except ValueError as error:
            raise ValueError(f"{path}, line {line_number}: expected number, customer, dollars: {error}") from error
        if number in numbers:
            raise ValueError(f"{path}, line {line_number}: there was an invoice {number} before")
        numbers.add(number)
        yield number, cents


def to_cents(dollars: str) -> int:
    """'12.5' is 1250. ValueError for what is no amount of whole cents."""
    with contextlib.suppress(InvalidOperation, OverflowError):
        cents = Decimal(dollars) * 100
        if cents >= 0 and cents == int(cents):
            return int(cents)
    raise ValueError(f"{dollars!r} is no amount in dollars and cents")


def invoices(path: Path = INVOICES) -> Iterator[Invoice]:
    """Each invoice, tagged with the total revenue before it."""
    revenue = 0
    for number, cents in read_invoices(path):
        yield Invoice(number, cents, revenue)
        revenue += cents


def at_the_budget(invoice: Invoice) -> Iterator[Portion]:
    """The part of an invoice that fills the operating budget, and the part that is profit."""
    below = min(invoice.cents, max(0, OPERATING_BUDGET - invoice.revenue_before))
    above = invoice.cents - below
    if below:
        yield Portion(invoice.number, "operating_budget", below, before=invoice.revenue_before)
    if above:
        profit_before = max(0, invoice.revenue_before - OPERATING_BUDGET)
        yield Portion(invoice.number, "profit_distribution", above, before=profit_before)


def purpose(portion: Portion) -> str:
    return portion.purpose


def keep(portion: Portion) -> Entry:
    return Entry("company", portion.invoice, portion.cents)


class Partner(Node):
    """Takes a partner's share; ``share_of(n)`` is that of the first n cents of profit."""

    share_of: Callable[[int], int]

    def process(self, portion: Portion) -> None:
        after = self.share_of(portion.before + portion.cents)
        self.push(Entry(self.name, portion.invoice, after - self.share_of(portion.before)))


def share_of_ann(profit: int) -> int:
    return profit * ANNS_PERCENT // 100


def share_of_bob(profit: int) -> int:
    return profit - share_of_ann(profit)


class ProfitShare(Pipeline):
    """Makes the folder it writes into."""

    def begin(self) -> None:
        self.global_state.out.mkdir(parents=True, exist_ok=True)


def build(out: Path) -> Pipeline:
    """The pipeline, writing into the folder ``out``."""
    company = Map(keep, "operating_budget")
    partners = [Partner("ann", share_of=share_of_ann), Partner("bob", share_of=share_of_bob)]
    return ProfitShare(
        Producer(invoices, name="invoices")
        | at_the_budget
        | Route([company, Broadcast(partners, name="profit_distribution")], by=purpose)
        | SqlSink("ledger", f"sqlite:///{out / 'profit_share.db'}", table="ledger", key=("leg", "invoice")),
        GlobalState(out=out),
    )


pipeline = build(OUT)


# -- the program around it -----------------------------------------------------------------------


def totals(database: Path) -> dict[str, int]:
    """The cents of each leg."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'ledger'").fetchall():
            return {}  # the first entry makes the table, and there was none
        return dict(connection.execute("SELECT leg, sum(cents) FROM ledger GROUP BY leg"))


def in_dollars(cents: int) -> str:
    return f"{Decimal(cents) / 100:,.2f}"


def describe(legs: dict[str, int], revenue: int) -> str:
    total = sum(legs.values())
    rows = [(leg, in_dollars(legs.get(leg, 0))) for leg in ("company", "ann", "bob")]
    lines = [f"  {leg: <8} {dollars: >14}" for leg, dollars in [*rows, ("total", in_dollars(total))]]
    lines.insert(-1, "  " + "-" * 23)
    verdict = "exactly what was invoiced" if total == revenue else f"NOT what was invoiced: {in_dollars(revenue)}"
    return "\n".join([*lines, "", f"The legs add up to {verdict}."])


def main() -> int:
    parser = argparse.ArgumentParser(description="Share a company's revenue between its budget and two partners.")
    parser.add_argument("--invoices", type=Path, default=INVOICES, help="lines of number, customer, dollars")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for profit_share.db (default: out)")
    arguments = parser.parse_args()
    database = arguments.out / "profit_share.db"
    database.unlink(missing_ok=True)
    report = build(arguments.out).run(functools.partial(invoices, arguments.invoices))
    print(report, end="\n\n")
    print(describe(totals(database), sum(cents for _, cents in read_invoices(arguments.invoices))))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
