from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import programs

investment = programs.load("investment")

accounts = st.builds(
    investment.Account,
    name=st.just("any"),
    monthly_contribution=st.integers(0, 100_000_00),
    monthly_fee=st.integers(0, 200_00),
    yearly_return=st.integers(0, 3000).map(lambda basis_points: Fraction(basis_points, 10_000)),
    years=st.integers(1, 40),
)


def year_by_year(account: investment.Account) -> list[int]:
    """The balances, a year at a time: what comes in evenly over a year earns for six and a half months of it."""
    monthly = max(0, account.monthly_contribution - account.monthly_fee)
    rate = Decimal(account.yearly_return.numerator) / account.yearly_return.denominator
    balance, balances = Decimal(0), []
    for _ in range(account.years):
        earned = rate * (balance + monthly * Decimal("6.5"))
        balance += 12 * monthly + earned.quantize(Decimal(1), ROUND_HALF_UP)
        balances.append(int(balance))
    return balances


@settings(deadline=None, max_examples=100)
@given(accounts)
def test_balances_are_those_of_an_independent_calculation(account: investment.Account) -> None:
    plans = [investment.with_fee(account), investment.without_fee(account)]

    balances = [[year.balance for year in investment.grow(plan)] for plan in plans]

    assert balances == [year_by_year(account), year_by_year(account._replace(monthly_fee=0))]


@settings(deadline=None, max_examples=100)
@given(accounts)
def test_what_is_there_is_what_came_in_less_fees_plus_earnings(account: investment.Account) -> None:
    years = list(investment.grow(investment.with_fee(account)))

    assert years[-1].balance == sum(year.contributed - year.fees + year.earned for year in years)


@pytest.mark.parametrize("account", investment.ACCOUNTS, ids=lambda account: account.name)
def test_the_last_balance_is_as_close_to_the_closed_formula_as_rounding_allows(account: investment.Account) -> None:
    monthly, rate = account.monthly_contribution - account.monthly_fee, float(account.yearly_return)

    *_, last = investment.grow(investment.with_fee(account))

    series = ((1 + rate) ** account.years - 1) / rate
    assert abs(last.balance - monthly * (12 + 6.5 * rate) * series) <= series / 2


def test_a_fee_takes_no_more_than_there_is() -> None:
    account = investment.Account("poor", 3_00, 5_00, Fraction("0.05"), years=2)

    years = list(investment.grow(investment.with_fee(account)))

    assert [(year.fees, year.balance) for year in years] == [(36_00, 0), (36_00, 0)]


def test_the_program_prints_both_ways(tmp_path: Path) -> None:
    years = 7

    done = programs.call(programs.script("investment", "--years", str(years)), tmp_path)

    assert done.returncode == 0, done.stderr
    for account in investment.ACCOUNTS:
        found = re.search(rf"^  {account.name} (.*)", done.stdout, re.MULTILINE)
        assert found is not None
        amounts = [int(re.sub("[.,]", "", amount)) for amount in found[1].split()]
        assert amounts[:2] == [12 * years * account.monthly_contribution, 12 * years * account.monthly_fee]
        free = account._replace(monthly_fee=0)
        assert amounts[3:] == [year_by_year(account)[years - 1], year_by_year(free)[years - 1]]


def test_the_pipeline_alone_writes_every_year_once(tmp_path: Path) -> None:
    done = programs.call(programs.command("run", str(programs.FOLDER / "investment.py"), "--quiet"), tmp_path)

    assert done.returncode == 0, done.stderr
    rows = programs.query(
        tmp_path / "out/investment.db",
        "SELECT account, balance FROM balances WHERE year = 30 AND supposing = 'with fee'",
    )
    assert rows == sorted((account.name, year_by_year(account)[-1]) for account in investment.ACCOUNTS)
