"""Rows into a SQLite table."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from consecution.errors import UsageError
from consecution.protocol.values import BatchId
from consecution.sink import Sink

SCHEME = "sqlite:///"
BUSY_TIMEOUT_S = 30.0


class SqlSink(Sink):
    """Inserts each item as a row: a dict, a dataclass, a named tuple, or a tuple with ``columns``.

    ``url`` is ``sqlite:///relative.db`` or ``sqlite:////absolute.db``. The table is made from the first rows
    unless ``create`` is False. With ``key``, the names of the columns that identify a row, a row replaces
    the one with the same key, so that rows written again after a crash stand there once; without it
    they are there again. One frame is one transaction.
    """

    def __init__(
        self,
        name: str,
        url: str,
        table: str,
        *,
        create: bool = True,
        key: Sequence[str] = (),
        columns: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, **kwargs)
        if not url.startswith(SCHEME):
            raise UsageError(
                f"SqlSink {name!r}: url={url!r}: expected sqlite:///path; other databases are not there yet"
            )
        self.path = Path(url.removeprefix(SCHEME))
        self.table = table
        self.create = create
        self.key = tuple(key)
        self.columns = tuple(columns) if columns is not None else None
        self._connection: sqlite3.Connection | None = None
        self._statement = ""
        self._row_of: Callable[[Any], Sequence[Any] | Mapping[str, Any]] = tuple

    def open(self) -> None:
        folder = self.path.absolute().parent
        if not folder.is_dir():
            raise UsageError(f"{self}: the folder {folder} does not exist; make it, or choose another url")
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={'FULL' if self.sync == 'power' else 'NORMAL'}")
        self._connection = connection
        self._statement = ""

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        connection = self._connection
        assert connection is not None, "write before open"
        connection.execute("BEGIN IMMEDIATE")
        try:
            if not self._statement:
                self._prepare(connection, items[0])
            connection.executemany(self._statement, map(self._row_of, items))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._statement = ""
            raise

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _prepare(self, connection: sqlite3.Connection, first: Any) -> None:
        """Learn the columns from the first row, and make the table where it is missing."""
        columns, values, row_of = self._shape(first)
        missing = [column for column in self.key if column not in columns]
        if missing:
            raise UsageError(f"{self}: key column {missing[0]!r} is not among the columns {', '.join(columns)}")
        if self.create:
            connection.execute(self._create_statement(columns, values))
        listed = ", ".join(map(_quote, columns))
        marks = ", ".join("?" * len(columns))
        statement = f"INSERT INTO {_quote(self.table)} ({listed}) VALUES ({marks})"
        if self.key:
            statement += f" ON CONFLICT ({', '.join(map(_quote, self.key))}) DO " + self._on_conflict(columns)
        self._row_of = row_of
        self._statement = statement

    def _on_conflict(self, columns: Sequence[str]) -> str:
        others = [_quote(column) for column in columns if column not in self.key]
        if not others:
            return "NOTHING"
        return "UPDATE SET " + ", ".join(f"{column} = excluded.{column}" for column in others)

    def _create_statement(self, columns: Sequence[str], values: Sequence[Any]) -> str:
        kinds = [f"{_quote(c)} {_column_type(v)}".rstrip() for c, v in zip(columns, values, strict=True)]
        if self.key:
            kinds.append(f"PRIMARY KEY ({', '.join(map(_quote, self.key))})")
        return f"CREATE TABLE IF NOT EXISTS {_quote(self.table)} ({', '.join(kinds)})"

    def _shape(self, row: Any) -> tuple[Sequence[str], Sequence[Any], Callable[[Any], Sequence[Any]]]:
        """Columns and values of a row, and the function that gives the values of the others."""
        if isinstance(row, Mapping):
            columns = self.columns or tuple(row)
            return columns, [row[c] for c in columns], lambda item: _values_of_mapping(item, columns)
        if dataclasses.is_dataclass(row) and not isinstance(row, type):
            columns = self.columns or tuple(field.name for field in dataclasses.fields(row))
            return (
                columns,
                [getattr(row, c) for c in columns],
                lambda item: [getattr(item, c) for c in columns],
            )
        if isinstance(row, (tuple, list)):
            columns = self.columns or getattr(row, "_fields", None) or ()
            if len(columns) == len(row):
                return columns, row, _as_sequence
            raise UsageError(
                f"{self}: a row of {len(row)} values and {len(columns)} column names; give SqlSink(..., columns=[...])"
            )
        raise UsageError(
            f"{self}: a row must be a dict, a dataclass, a named tuple, or a tuple with columns=[...]; found "
            f"{type(row).__name__}"
        )


def _values_of_mapping(row: Any, columns: Sequence[str]) -> list[Any]:
    if len(row) != len(columns):
        unknown = sorted(set(row) - set(columns))
        if unknown:
            raise UsageError(f"the row has a column {unknown[0]!r} that the first one had not: {row!r}")
    return [row.get(column) for column in columns]


def _as_sequence(row: Any) -> Sequence[Any]:
    if not isinstance(row, (tuple, list)):
        raise UsageError(f"expected a tuple as the rows before, found {type(row).__name__}")
    return row


def _column_type(value: Any) -> str:
    if isinstance(value, (bool, int)):
        return "INTEGER"
    if isinstance(value, float):
        return "REAL"
    return "TEXT" if isinstance(value, str) else "BLOB" if isinstance(value, bytes) else ""


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
