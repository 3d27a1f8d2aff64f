from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import programs

profit_share = programs.load("profit_share")

LEGS = "SELECT leg, sum(cents) FROM ledger GROUP BY leg ORDER BY leg"
BUNDLED = [("ann", 29_756_82), ("bob", 19_837_88), ("company", 120_000_00)]

amounts = st.builds(
    lambda first, rest: [first, *rest],
    st.integers(119_000_00, 121_000_00) | st.integers(0, 300_000_00),
    st.lists(st.integers(0, 99) | st.integers(0, 20_000_00), max_size=12),
)


def tagged(cents: list[int]) -> list[profit_share.Invoice]:
    return [profit_share.Invoice(str(n), c, sum(cents[:n])) for n, c in enumerate(cents)]


@settings(deadline=None, max_examples=40)
@given(amounts)
def test_the_legs_add_up_to_the_revenue_to_the_cent(cents: list[int]) -> None:
    with programs.run_inline(profit_share, tagged(cents)) as (out, report):
        legs = profit_share.totals(out / "profit_share.db")

    profit = max(0, sum(cents) - 120_000_00)
    assert report.exit_code == 0
    assert sum(legs.values()) == sum(cents)
    assert legs.get("company", 0) == sum(cents) - profit
    assert legs.get("ann", 0) == Fraction(3, 5) * profit // 1


@settings(deadline=None, max_examples=20)
@given(amounts)
def test_after_any_invoice_each_partner_is_less_than_a_cent_from_the_exact_share(cents: list[int]) -> None:
    with programs.run_inline(profit_share, tagged(cents)) as (out, _):
        rows = programs.query(out / "profit_share.db", "SELECT leg, invoice, cents FROM ledger") if sum(cents) else []

    for upto in range(len(cents)):
        profit = max(0, sum(cents[: upto + 1]) - 120_000_00)
        for leg, share in (("ann", Fraction(3, 5)), ("bob", Fraction(2, 5))):
            got = sum(entry for name, invoice, entry in rows if name == leg and int(invoice) <= upto)
            assert abs(got - share * profit) < 1


@settings(deadline=None, max_examples=20)
@given(amounts, st.data())
def test_invoices_that_are_processed_again_count_once(cents: list[int], data: st.DataObject) -> None:
    again = data.draw(st.lists(st.sampled_from(tagged(cents))))

    with programs.run_inline(profit_share, tagged(cents) + again) as (out, _):
        legs = profit_share.totals(out / "profit_share.db")

    assert sum(legs.values()) == sum(cents)


def test_the_legs_add_up_when_a_worker_is_killed_and_batches_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(programs.FOLDER)
    revenue = tagged([120_000_00, *(n * 7919 % 10_007 for n in range(3000))])
    anns_worker_is_frozen = threading.Event()
    database = tmp_path / "profit_share.db"

    def invoices() -> Iterator[profit_share.Invoice]:
        yield revenue[0]
        anns_worker_is_frozen.wait(programs.DEADLINE_S)
        yield from revenue[1:]

    with profit_share.build(tmp_path).start(invoices, mode="process", state_dir=tmp_path / "state") as running:
        programs.wait_until(running, lambda: running.status().completed == 1)
        ann = running.pids()["ann.0"]
        os.kill(ann, signal.SIGSTOP)
        anns_worker_is_frozen.set()
        programs.wait_until(running, lambda: running.status().emitted > 1)
        os.kill(ann, signal.SIGKILL)  # what Bob got of these is staged, and will be thrown away
        report = running.wait(programs.DEADLINE_S)

    assert (report.exit_code, report.restarts) == (0, 1)
    assert report.replayed >= 1
    legs = profit_share.totals(database)
    profit = sum(invoice.cents for invoice in revenue[1:])
    assert legs == {"company": 120_000_00, "ann": profit * 3 // 5, "bob": profit - profit * 3 // 5}


def test_the_program_prints_legs_that_add_up(tmp_path: Path) -> None:
    done = programs.call(programs.script("profit_share"), tmp_path)

    lines = (programs.FOLDER / "invoices.txt").read_text().splitlines()
    revenue = sum(Decimal(line.split()[-1]) for line in lines if not line.startswith("#"))
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()[-7:-2]] == [
        ["company", "120,000.00"],
        ["ann", "29,756.82"],
        ["bob", "19,837.88"],
        ["-" * 23],
        ["total", f"{revenue:,}"],
    ]
    assert done.stdout.endswith("The legs add up to exactly what was invoiced.\n")
    assert programs.query(tmp_path / "out/profit_share.db", LEGS) == BUNDLED


def test_the_pipeline_alone_can_be_run_twice_and_counts_once(tmp_path: Path) -> None:
    path = str(programs.FOLDER / "profit_share.py")

    codes = [programs.call(programs.command("run", path, "--quiet"), tmp_path).returncode for _ in range(2)]

    assert codes == [0, 0]
    assert programs.query(tmp_path / "out/profit_share.db", LEGS) == BUNDLED


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("1 Acme 12.345", "line 1: expected number, customer, dollars: '12.345' is no amount"),
        ("# nothing\n1 Acme ten", "line 2: expected number, customer, dollars: 'ten' is no amount"),
        ("1 Acme -5", "'-5' is no amount"),
        ("1 Acme nan", "'nan' is no amount"),
        ("1 Acme inf", "'inf' is no amount"),
        ("1", "line 1: expected number, customer, dollars"),
        ("1 Acme 5\n1 Acme 6", "line 2: there was an invoice 1 before"),
    ],
)
def test_a_line_that_is_no_invoice_is_named(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "invoices.txt"
    path.write_text(text)

    with pytest.raises(ValueError, match=what):
        list(profit_share.read_invoices(path))


def test_no_invoices_make_an_empty_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with programs.run_inline(profit_share, []) as (out, _):
        text = profit_share.describe(profit_share.totals(out / "profit_share.db"), 0)

    assert "total              0.00" in text


def test_legs_that_do_not_add_up_are_said_not_to() -> None:
    assert "NOT what was invoiced: 0.05" in profit_share.describe({"company": 4}, 5)
