"""Kill -9 between a database's commit and ours: every row is there once, without a key."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from consecution.runtime import failpoints
from consecution.runtime.journal_check import check_state_dir
from tests.sinks.sql_victim import COUNT, WRONG

ROOT = Path(__file__).parents[2]
POINTS = ("durable.applied", "outside.before_commit", "outside.committed", "origin.committed", "durable.confirmed")
EXPECTED = Counter(n for n in range(COUNT) if n != WRONG)


class Store(NamedTuple):
    url: str
    query: Any


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "postgres":
        database = request.getfixturevalue("postgres")
        return Store(database.url, database.query)

    def query(statement: str) -> list[Any]:
        connection = sqlite3.connect(tmp_path / "out.db")
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()

    return Store(f"sqlite:///{tmp_path / 'out.db'}", query)


def run(store: Store, folder: Path, replicas: int, *traps: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "tests.sinks.sql_victim"]
    arguments = [*program, store.url, str(folder / "state"), str(replicas), *traps]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=100, start_new_session=True)


def lay_token(folder: Path, text: str = "") -> Path:
    token = folder / "token"
    token.write_text(text)
    return token


def assert_each_row_once(store: Store, folder: Path, done: subprocess.CompletedProcess[str], restarts: int) -> None:
    rows = store.query("SELECT n, salt FROM t")
    assert Counter(n for n, _ in rows) == EXPECTED, done.stderr
    assert done.stdout.splitlines()[-1] == f"[{WRONG}] {restarts}"
    assert done.returncode == 1
    assert check_state_dir(folder / "state").problems == ()


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_killed_around_its_commit_leaves_each_row_once(store: Store, tmp_path: Path, point: str) -> None:
    token = lay_token(tmp_path)

    done = run(store, tmp_path, 1, f"{point}@2:{token}")

    assert not token.exists()
    assert_each_row_once(store, tmp_path, done, restarts=1)


@pytest.mark.parametrize("point", POINTS)
def test_everything_killed_around_the_commit_leaves_each_row_once(store: Store, tmp_path: Path, point: str) -> None:
    token = lay_token(tmp_path, failpoints.GROUP)

    killed = run(store, tmp_path, 1, f"{point}@2:{token}")
    done = run(store, tmp_path, 1)

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert_each_row_once(store, tmp_path, done, restarts=0)


def test_replicas_that_write_to_one_table_leave_each_row_once(store: Store, tmp_path: Path) -> None:
    token = lay_token(tmp_path)

    done = run(store, tmp_path, 3, f"outside.committed@1:{token}")

    assert not token.exists()
    assert_each_row_once(store, tmp_path, done, restarts=1)
