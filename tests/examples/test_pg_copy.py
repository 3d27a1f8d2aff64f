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
WRITES_EVERY_S = 0.05


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


class Writer:
    """Somebody who writes orders, a hundred at a time, until told to stop; 500 are there when it begins."""

    def __init__(self, postgres: PostgresDatabase) -> None:
        self._url = postgres.url
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._write)
        pg_copy.make_orders(self._url, 500)
        self._thread.start()

    def _write(self) -> None:
        while not self._enough.wait(WRITES_EVERY_S):
            pg_copy.make_orders(self._url, 100)

    def is_at_work(self) -> bool:
        return self._thread.is_alive() and not self._enough.is_set()

    def stop(self) -> None:
        self._enough.set()
        self._thread.join(programs.DEADLINE_S)
        assert not self._thread.is_alive()


def test_what_is_written_meanwhile_is_copied_though_the_copy_is_killed(
    postgres: PostgresDatabase, tmp_path: Path
) -> None:
    writer = Writer(postgres)

    def wait_for_more(program: subprocess.Popen[str]) -> None:
        before = len(copied(tmp_path))
        programs.wait_for(lambda: len(copied(tmp_path)) > before, program)
        assert writer.is_at_work()

    try:
        for _ in range(2):
            with following(postgres, tmp_path) as program:
                wait_for_more(program)
                program.send_signal(signal.SIGKILL)
                assert program.wait(programs.DEADLINE_S) == -signal.SIGKILL
                assert writer.is_at_work()
        with following(postgres, tmp_path) as program:
            wait_for_more(program)
            writer.stop()
            pg_copy.make_orders(postgres.url, 100)  # the last life copies something, too, before it is told to stop
            everything = expected(postgres)
            programs.wait_for(lambda: len(copied(tmp_path)) >= len(everything), program)
            program.send_signal(signal.SIGTERM)
            said, errors = program.communicate(timeout=programs.DEADLINE_S)
    finally:
        writer.stop()

    assert program.returncode == 0, errors
    assert copied(tmp_path) == everything == expected(postgres)
    assert f"{len(everything):,} orders, " in said
