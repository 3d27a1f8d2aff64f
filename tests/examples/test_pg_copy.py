from __future__ import annotations

import signal
import subprocess
import threading
from contextlib import AbstractContextManager
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


def following(postgres: PostgresDatabase, out: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    arguments = ["--follow", "--url", postgres.url, "--out", str(out), "--state-dir", str(out / "state")]
    return programs.following("pg_copy", *arguments)


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

    def write() -> None:
        for _ in range(20):
            pg_copy.make_orders(postgres.url, 100)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for enough in (1, 600):
            with following(postgres, tmp_path) as program:
                programs.wait_for(lambda enough=enough: len(copied(tmp_path)) >= enough, program)
                program.send_signal(signal.SIGKILL)
        with following(postgres, tmp_path) as program:
            writer.join(programs.DEADLINE_S)
            pg_copy.make_orders(postgres.url, 100)  # the last life copies something, too, before it is told to stop
            programs.wait_for(lambda: len(copied(tmp_path)) >= 2600, program)
            program.send_signal(signal.SIGTERM)
            said, errors = program.communicate(timeout=programs.DEADLINE_S)
    finally:
        writer.join(programs.DEADLINE_S)

    assert program.returncode == 0, errors
    assert copied(tmp_path) == expected(postgres)
    assert "2,600 orders, " in said
