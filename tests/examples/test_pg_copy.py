from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.databases import PostgresDatabase
from tests.examples import programs

pg_copy = programs.load("pg_copy")

COPIED = "SELECT id, customer, cents FROM orders ORDER BY id"
ORDERS = "SELECT id, customer, amount FROM orders ORDER BY id"


def expected(postgres: PostgresDatabase) -> list[Any]:
    return [(id, customer.strip().lower(), int(amount * 100)) for id, customer, amount in postgres.query(ORDERS)]


def copied(out: Path) -> list[Any]:
    try:
        return programs.query(out / "orders.db", COPIED)
    except Exception:
        return []


def wait_for(happened: Callable[[], bool], program: subprocess.Popen[str]) -> None:
    give_up_s = time.monotonic() + programs.DEADLINE_S
    while not happened():
        assert program.poll() is None, program.communicate()
        assert time.monotonic() < give_up_s, "it did not happen"
        time.sleep(0.02)


@contextmanager
def following(postgres: PostgresDatabase, out: Path) -> Iterator[subprocess.Popen[str]]:
    """The example as a daemon; killed at the end, if it is still there."""
    arguments = ["--follow", "--url", postgres.url, "--out", str(out), "--state-dir", str(out / "state")]
    program = subprocess.Popen(
        programs.script("pg_copy", *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield program
    finally:
        program.kill()
        program.communicate(timeout=programs.DEADLINE_S)


def test_a_row_is_tidied_up() -> None:
    class Noon:
        def isoformat(self) -> str:
            return "2026-01-01T12:00:00+00:00"

    row = {"id": 7, "customer": "  Customer 7 ", "amount": Decimal("12.30"), "ordered_at": Noon()}

    assert pg_copy.tidy(row) == (7, "customer 7", 1230, "2026-01-01T12:00:00+00:00")


def test_the_whole_table_is_copied_and_told_about(postgres: PostgresDatabase, tmp_path: Path) -> None:
    pg_copy.make_orders(postgres.url, 3000)

    done = programs.call(programs.script("pg_copy", "--url", postgres.url), tmp_path)

    assert done.returncode == 0, done.stderr
    assert copied(tmp_path / "out") == expected(postgres)
    assert len(copied(tmp_path / "out")) == 3000
    assert "3,000 orders, " in done.stdout


def test_what_is_written_meanwhile_is_copied_though_the_copy_is_killed(
    postgres: PostgresDatabase, tmp_path: Path
) -> None:
    pg_copy.make_orders(postgres.url, 500)
    written = threading.Event()

    def write() -> None:
        for _ in range(20):
            pg_copy.make_orders(postgres.url, 100)
        written.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for enough in (1, 600):
            with following(postgres, tmp_path) as program:
                wait_for(lambda enough=enough: len(copied(tmp_path)) >= enough, program)
                program.send_signal(signal.SIGKILL)
        with following(postgres, tmp_path) as program:
            wait_for(lambda: written.is_set() and len(copied(tmp_path)) >= 2500, program)
            program.send_signal(signal.SIGTERM)
            said, errors = program.communicate(timeout=programs.DEADLINE_S)
    finally:
        writer.join(programs.DEADLINE_S)

    assert program.returncode == 0, errors
    assert copied(tmp_path) == expected(postgres)
    assert "2,500 orders, " in said
