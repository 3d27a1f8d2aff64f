from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import programs

mortgage = programs.load("mortgage")

CENT = Decimal(1)
LOANS = pytest.mark.parametrize("loan", mortgage.LOANS, ids=lambda loan: loan.name)

loans = st.builds(
    mortgage.Loan,
    name=st.just("any"),
    cents=st.integers(1, 10**10),
    yearly_rate=st.integers(0, 200).map(lambda eighths: Fraction(eighths, 800)),
    months=st.integers(1, 480),
)


def by_decimals(loan: mortgage.Loan) -> list[tuple[int, int]]:
    """Interest and principal of every payment, in sixty digits instead of fractions, from what has been paid off."""
    with localcontext(prec=60):
        rate = Decimal(loan.yearly_rate.numerator) / loan.yearly_rate.denominator
        growth = (1 + rate / 12) ** loan.months
        level = loan.cents * (rate / 12) * growth / (growth - 1) if rate else Decimal(loan.cents) / loan.months
        level = level.quantize(CENT, ROUND_HALF_UP)
        paid_off, made = Decimal(0), []
        while len(made) < loan.months:
            owed = loan.cents - paid_off
            interest = (owed * rate / 12).quantize(CENT, ROUND_HALF_UP)
            last = len(made) + 1 == loan.months or level - interest > owed
            principal = owed if last else level - interest
            made.append((int(interest), int(principal)))
            paid_off += principal
        return made


@settings(deadline=None, max_examples=60)
@given(loans)
def test_principal_adds_up_to_the_loan_and_nothing_is_owed_at_the_end(loan: mortgage.Loan) -> None:
    payments = list(mortgage.payments(loan))

    assert len(payments) == loan.months
    assert sum(payment.principal for payment in payments) == loan.cents
    assert payments[-1].balance == 0


@settings(deadline=None, max_examples=60)
@given(loans)
def test_every_payment_is_that_of_an_independent_calculation(loan: mortgage.Loan) -> None:
    payments = [(payment.interest, payment.principal) for payment in mortgage.payments(loan)]

    assert payments == by_decimals(loan)


@LOANS
def test_balances_stay_as_close_to_the_closed_formula_as_rounding_allows(loan: mortgage.Loan) -> None:
    level, rate = mortgage.level_payment(loan), float(loan.yearly_rate) / 12

    for payment in list(mortgage.payments(loan))[:-1]:
        growth = (1 + rate) ** payment.number
        # What payments bring to, and what half a cent a month can grow to.
        series = (growth - 1) / rate if rate else payment.number
        assert abs(payment.balance - (loan.cents * growth - level * series)) <= series / 2 + 0.01


@LOANS
def test_all_payments_but_the_last_are_equal_and_the_last_is_close(loan: mortgage.Loan) -> None:
    *payments, last = [payment.interest + payment.principal for payment in mortgage.payments(loan)]

    assert set(payments) == {mortgage.level_payment(loan)}
    assert abs(last - payments[0]) < 10_00


def test_the_program_prints_totals_and_some_payments(tmp_path: Path) -> None:
    done = programs.call(programs.script("mortgage", "--loan", "townhouse"), tmp_path)

    assert done.returncode == 0, done.stderr
    for loan in mortgage.LOANS:
        payments = by_decimals(loan)
        interest = sum(payment[0] for payment in payments)
        expected = [sum(payments[0]), sum(payments[-1]), interest, loan.cents]
        assert in_cents(done.stdout, f"{loan.name} +360") == expected
    assert in_cents(done.stdout, "payment 1") == [972_56, 422_19, 292_077_81]
    assert in_cents(done.stdout, "payment 360")[-1] == 0


def in_cents(output: str, start: str) -> list[int]:
    """The amounts on the line that starts so."""
    line = re.search(rf"^  {start} (.*)", output, re.MULTILINE)
    assert line is not None, output
    return [int(re.sub("[.,]", "", amount)) for amount in line[1].split()]


def test_the_pipeline_alone_writes_every_payment_once(tmp_path: Path) -> None:
    done = programs.call(programs.command("run", str(programs.FOLDER / "mortgage.py"), "--quiet"), tmp_path)

    assert done.returncode == 0, done.stderr
    rows = programs.query(
        tmp_path / "out/mortgage.db", "SELECT loan, count(*), sum(principal) FROM schedule GROUP BY loan"
    )
    assert rows == sorted((loan.name, 360, loan.cents) for loan in mortgage.LOANS)
