"""Sinks of a user's own that hold every item once: a file that is cut back, and a table that keeps marks."""

from __future__ import annotations

import os
import sqlite3
from typing import Any

from consecution import AppendSink, BatchId, TransactionSink
from consecution.errors import WorldError


class OwnFile(AppendSink):
    """One line per item: ``format(item)``."""

    max_replicas = 1
    path: str
    format: Any = str

    def open(self) -> None:
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def cut_to(self, end: Any) -> None:
        os.ftruncate(self._fd, end or 0)

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        os.write(self._fd, "".join(f"{self.format(item)}\n" for item in items).encode())

    def flush(self) -> int:
        if self.sync == "power":
            os.fsync(self._fd)
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        os.close(self._fd)


class OwnTable(TransactionSink):
    """Tuples as rows of a SQLite table; the marks lie in another table of the same database."""

    max_replicas = 1
    path: str
    table: str
    columns: tuple[str, ...]

    def open(self) -> None:
        self._connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute(f"CREATE TABLE IF NOT EXISTS {self.table} ({', '.join(self.columns)})")
        self._connection.execute("CREATE TABLE IF NOT EXISTS marks (owner TEXT PRIMARY KEY, number INTEGER, redo BLOB)")

    def begin_transaction(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        self._connection.execute("SAVEPOINT this_write")
        try:
            self.insert(items)
        except BaseException:
            self._connection.execute("ROLLBACK TO this_write")
            raise
        self._connection.execute("RELEASE this_write")

    def insert(self, items: list[Any]) -> None:
        marks = ", ".join("?" * len(self.columns))
        self._connection.executemany(f"INSERT INTO {self.table} VALUES ({marks})", items)

    def commit(self, owner: str, number: int, redo: bytes) -> None:
        last, _ = self.last_mark(owner)
        if last != number - 1:
            raise WorldError(f"{self}: expected the mark {number - 1} of {owner}, found {last}")
        self._connection.execute("INSERT OR REPLACE INTO marks VALUES (?, ?, ?)", (owner, number, redo))
        self._connection.execute("COMMIT")

    def roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def last_mark(self, owner: str) -> tuple[int, bytes]:
        found = self._connection.execute("SELECT number, redo FROM marks WHERE owner = ?", (owner,)).fetchone()
        return found or (0, b"")

    def close(self) -> None:
        self._connection.close()
