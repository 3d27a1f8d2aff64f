from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import programs

budget = programs.load("budget")

months = st.lists(
    st.builds(
        budget.Month,
        name=st.text("abcdef", min_size=1, max_size=3),
        incomes=st.lists(st.integers(0, 2_500_00), max_size=5).map(tuple),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda month: month.name,
)

Entries = dict[tuple[str, str, int], int]


def pour(poured: list[budget.Month]) -> Entries:
    """(envelope, month, income) → cents, with envelopes that do remember how full they are."""
    entries: Entries = {}
    for month in poured:
        room = dict(budget.LIMITS)
        for number, cents in enumerate(month.incomes, 1):
            for envelope in room:
                taken = min(cents, room[envelope])
                room[envelope] -= taken
                cents -= taken
                entries[envelope, month.name, number] = taken
            entries["savings", month.name, number] = cents
    return {key: cents for key, cents in entries.items() if cents}


@settings(deadline=None, max_examples=40)
@given(months)
def test_each_income_goes_where_filling_in_turn_would_put_it(poured: list[budget.Month]) -> None:
    with programs.run_inline(budget, poured) as (out, report):
        sql = "SELECT envelope, month, income, cents FROM ledger"
        rows = programs.query(out / "budget.db", sql) if pour(poured) else []

    assert report.exit_code == 0
    assert {tuple(key): cents for *key, cents in rows} == pour(poured)


@settings(deadline=None, max_examples=20)
@given(months)
def test_what_is_in_the_envelopes_is_what_came_in(poured: list[budget.Month]) -> None:
    with programs.run_inline(budget, poured + poured) as (out, _):
        rows = programs.query(out / "budget.db", "SELECT sum(cents) FROM ledger") if pour(poured) else [(0,)]

    assert rows == [(sum(sum(month.incomes) for month in poured),)]


def test_the_program_prints_every_month(tmp_path: Path) -> None:
    done = programs.call(programs.script("budget"), tmp_path)

    assert done.returncode == 0, done.stderr
    contents: Counter[tuple[str, str]] = Counter()
    for (envelope, name, _), cents in pour(list(budget.MONTHS)).items():
        contents[name, envelope] += cents
    for month in budget.MONTHS:
        found = re.search(rf"^  {month.name} (.*)", done.stdout, re.MULTILINE)
        assert found is not None
        amounts = [int(re.sub("[.,]", "", amount)) for amount in found[1].split()]
        envelopes = [contents[month.name, envelope] for envelope in ("rent", "food", "transport", "fun", "savings")]
        assert amounts == [*envelopes, sum(month.incomes)]


def test_the_pipeline_alone_fills_the_envelopes(tmp_path: Path) -> None:
    done = programs.call(programs.command("run", str(programs.FOLDER / "budget.py"), "--quiet"), tmp_path)

    assert done.returncode == 0, done.stderr
    rows = programs.query(tmp_path / "out/budget.db", "SELECT envelope, month, income, cents FROM ledger")
    assert {tuple(key): cents for *key, cents in rows} == pour(list(budget.MONTHS))
