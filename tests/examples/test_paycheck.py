from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.examples import programs

paycheck = programs.load("paycheck")

SCHEDULE = [
    ("609350", "183647.25", "0.37"),
    ("243725", "55678.50", "0.35"),
    ("191950", "39110.50", "0.32"),
    ("100525", "17168.50", "0.24"),
    ("47150", "5426", "0.22"),
    ("11600", "1160", "0.12"),
    ("0", "0", "0.10"),
]
"""The tax rate schedule for single persons in 2024, as printed: over, the tax is, plus so much of the rest."""

paychecks = st.builds(
    paycheck.Paycheck,
    employee=st.just("Ada"),
    month=st.integers(1, 12),
    gross=st.integers(0, 90_000_00),
    earned_before=st.integers(0, 400_000_00),
    retirement_percent=st.integers(0, 100),
)


def to_the_cent(dollars: Decimal) -> Decimal:
    return dollars.quantize(Decimal("0.01"), ROUND_HALF_UP)


def by_the_book(check: paycheck.Paycheck) -> dict[str, Decimal]:
    """Every line in dollars, by the printed rules."""
    pay, before = Decimal(check.gross) / 100, Decimal(check.earned_before) / 100
    retirement = to_the_cent(pay * check.retirement_percent / 100)
    taxable = max(Decimal(0), (pay - retirement) * 12 - 14600)
    over, base, rate = next(map(Decimal, row) for row in SCHEDULE if taxable >= Decimal(row[0]))
    covered = min(before + pay, Decimal(168600)) - min(before, Decimal(168600))
    return {
        "gross": pay,
        "federal tax": -to_the_cent((base + (taxable - over) * rate) / 12),
        "social security": -to_the_cent(covered * Decimal("0.062")),
        "medicare": -to_the_cent(pay * Decimal("0.0145")),
        "retirement": -retirement,
    }


@settings(deadline=None, max_examples=300)
@given(paychecks)
@example(paycheck.Paycheck("Ada", 12, 14_600_00 // 12, 168_600_00, 0))
@example(paycheck.Paycheck("Ada", 1, 10_000_00, 160_000_00, 7))
def test_every_line_is_right_to_the_cent(check: paycheck.Paycheck) -> None:
    branches = (
        paycheck.gross,
        paycheck.federal_tax,
        paycheck.social_security,
        paycheck.medicare,
        paycheck.retirement,
    )

    lines = [branch(check) for branch in branches]

    assert {line.line: Decimal(line.cents) / 100 for line in lines} == by_the_book(check)


@settings(deadline=None, max_examples=20)
@given(st.lists(paychecks, max_size=8, unique_by=lambda check: check.month))
def test_net_is_what_the_branches_leave(checks: list[paycheck.Paycheck]) -> None:
    with programs.run_inline(paycheck, checks) as (out, report):
        rows = (
            programs.query(out / "paycheck.db", "SELECT month, sum(cents) FROM ledger GROUP BY month") if checks else []
        )

    assert report.exit_code == 0
    assert {month: Decimal(net) / 100 for month, net in rows} == {
        check.month: sum(by_the_book(check).values()) for check in checks
    }


def test_the_program_prints_a_year_of_everybody(tmp_path: Path) -> None:
    done = programs.call(programs.script("paycheck"), tmp_path)

    assert done.returncode == 0, done.stderr
    assert printed(done.stdout) == by_the_book_of_all(range(1, 13))


def test_a_month_can_be_shown_alone() -> None:
    with programs.run_inline(paycheck) as (out, _):
        text = paycheck.describe(paycheck.sums(out / "paycheck.db", 12))

    assert printed(text) == by_the_book_of_all([12])


def test_the_pipeline_alone_fills_the_ledger(tmp_path: Path) -> None:
    done = programs.call(programs.command("run", str(programs.FOLDER / "paycheck.py"), "--quiet"), tmp_path)

    assert done.returncode == 0, done.stderr
    assert programs.query(tmp_path / "out/paycheck.db", "SELECT count(*) FROM ledger") == [(5 * 12 * 5,)]


def printed(output: str) -> dict[str, list[Decimal]]:
    """The table at the end: name → gross, deductions, net."""
    rows = [line.split() for line in output[output.index(" net\n") + 5 :].splitlines()]
    return {name: [Decimal(re.sub(",", "", cell)) for cell in cells] for name, *cells in rows}


def by_the_book_of_all(months: range | list[int]) -> dict[str, list[Decimal]]:
    expected: dict[str, list[Decimal]] = {}
    for employee in paycheck.EMPLOYEES:
        sums = [Decimal(0)] * 5
        for check in paycheck.paychecks():
            if check.employee == employee.name and check.month in months:
                sums = [total + line for total, line in zip(sums, by_the_book(check).values(), strict=True)]
        expected[employee.name] = [*sums, sum(sums, Decimal(0))]
    return expected


def test_what_was_earned_before_is_the_sum_of_the_months_before() -> None:
    for employee in paycheck.EMPLOYEES:
        earned = 0
        for check in paycheck.paychecks():
            if check.employee == employee.name:
                assert check.earned_before == earned
                earned += check.gross
