"""Rows into a SQLite table."""

from __future__ import annotations

import dataclasses
import operator
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from consecution.errors import UsageError
from consecution.protocol.values import BatchId
from consecution.sink import Sink

SCHEME = "sqlite:///"
BUSY_TIMEOUT_S = 30.0
BUSY_RETRY_S = 0.02

CACHE_KIB = 64 * 1024
"""Rows of a frame may lie all over a table with a key: its pages had better stay in memory, once touched."""
CHECKPOINT_PAGES = 16 * 1024
"""So a page that many frames touch is copied from the log into the table once, not once a frame. About 64 MiB."""

COLUMN_TYPES = (
    ("INTEGER", {bool, int}),
    ("REAL", {float, int}),
    ("TEXT", {str}),
    ("BLOB", {bytes}),
)

Row = Sequence[Any]


class SqlSink(Sink):
    """Inserts each item as a row: a dict, a dataclass, a named tuple, or a tuple with ``columns``.

    ``url`` is ``sqlite:///relative.db`` or ``sqlite:////absolute.db``; the folder must exist, the file
    need not. The columns are those of the first row, or ``columns``; a dict that lacks one gives NULL, one
    with a column too many fails. The table is made from the first frame unless ``create`` is False, with
    the types of its values; later values of another type are converted as SQLite does. Names are quoted,
    so any will do. One frame is one transaction; replicas may share the file.

    At least once: rows are written again after a crash. With ``key``, the names of the columns that
    identify a row, a row replaces the one with the same key, so that it stands there once. A table that
    exists already must have these columns, and a PRIMARY KEY or UNIQUE constraint on the key.

    The table is kept in the order of its key. Name the column first that changes least from row to row: then
    rows that come together lie together, which is several times as fast.
    """

    def __init__(
        self,
        name: str,
        url: str,
        table: str,
        *,
        create: bool = True,
        key: str | Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, **kwargs)
        if not url.startswith(SCHEME) or url == SCHEME:
            raise UsageError(
                f"SqlSink {name!r}: url={url!r}: expected sqlite:///path; other databases are not there yet"
            )
        self.path = Path(url.removeprefix(SCHEME))
        self.table = table
        self.create = create
        self.key = _names("key", key) or ()
        self.columns = _names("columns", columns)
        self._connection: sqlite3.Connection | None = None
        self._statement = ""
        self._shape: _Shape | None = None

    def open(self) -> None:
        folder = self.path.absolute().parent
        if not folder.is_dir():
            raise UsageError(f"{self}: the folder {folder} does not exist; make it, or choose another url")
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            _use_write_ahead_log(connection)
            connection.execute(f"PRAGMA synchronous={'FULL' if self.sync == 'power' else 'NORMAL'}")
            connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
            connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._statement = ""

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        connection = self._connection
        assert connection is not None, "write before open"
        if not items:
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            if not self._statement:
                self._prepare(connection, items)
            assert self._shape is not None
            connection.executemany(self._statement, self._shape.rows_of(items))
            connection.execute("COMMIT")
        except BaseException:
            self._roll_back(connection)
            raise

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        # The table may have been made in this very transaction: look again next time.
        self._statement = ""
        if connection.in_transaction:
            connection.execute("ROLLBACK")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # -- the table and its columns ---------------------------------------------------------------

    def _prepare(self, connection: sqlite3.Connection, items: list[Any]) -> None:
        """Learn the columns from the first rows, and make the table where it is missing."""
        shape = _shape_of(items[0], self.columns, str(self))
        for column in self.key:
            if column not in shape.columns:
                raise UsageError(f"{self}: key column {column!r} is not among the columns {', '.join(shape.columns)}")
        if self.create:
            connection.execute(self._create_statement(shape.columns, shape.rows_of(items)))
        statement = self._insert_statement(shape.columns)
        self._check_fits(connection, statement, len(shape.columns))
        self._shape = shape
        self._statement = statement

    def _check_fits(self, connection: sqlite3.Connection, statement: str, columns: int) -> None:
        try:
            connection.execute(f"EXPLAIN {statement}", [None] * columns)
        except sqlite3.OperationalError as error:
            raise UsageError(
                f"{self}: the rows do not fit the table {self.table!r} of {self.path}: {error}; change the table, "
                "or choose another one, or other columns=[...] and key=[...]"
            ) from error

    def _create_statement(self, columns: Sequence[str], rows: Iterable[Row]) -> str:
        described = [f"{_quote(name)} {kind}".rstrip() for name, kind in zip(columns, _column_types(rows), strict=True)]
        # Without a row id, a key column is never NULL; two NULLs would not be the same key.
        ending = f", PRIMARY KEY ({_quote_all(self.key)})) WITHOUT ROWID" if self.key else ")"
        return f"CREATE TABLE IF NOT EXISTS {_quote(self.table)} ({', '.join(described)}{ending}"

    def _insert_statement(self, columns: Sequence[str]) -> str:
        marks = ", ".join("?" * len(columns))
        statement = f"INSERT INTO {_quote(self.table)} ({_quote_all(columns)}) VALUES ({marks})"
        if not self.key:
            return statement
        others = [_quote(column) for column in columns if column not in self.key]
        update = "UPDATE SET " + ", ".join(f"{column} = excluded.{column}" for column in others)
        return f"{statement} ON CONFLICT ({_quote_all(self.key)}) DO {update if others else 'NOTHING'}"


@dataclasses.dataclass(frozen=True, slots=True)
class _Shape:
    """What the first row was, and so what all must be."""

    kind: type
    columns: tuple[str, ...]
    values_of: Callable[[Any], Row]
    as_they_are: bool

    def rows_of(self, items: list[Any]) -> Iterable[Row]:
        """The values of each item, in the order of the columns."""
        if self.as_they_are and set(map(type, items)) == {self.kind}:
            return items
        return map(self.values_of, items)


def _shape_of(row: Any, columns: tuple[str, ...] | None, sink: str) -> _Shape:
    if isinstance(row, Mapping):
        names = columns or _names("columns", tuple(row)) or ()
        return _Shape(type(row), names, lambda item: _values_of_mapping(item, names), False)
    if dataclasses.is_dataclass(row) and not isinstance(row, type):
        names = columns or tuple(field.name for field in dataclasses.fields(row))
        return _Shape(type(row), names, _values_of_attributes(names), False)
    if isinstance(row, (tuple, list)):
        names = columns or tuple(getattr(row, "_fields", ()))
        if not names:
            raise UsageError(f"{sink}: a row is a {type(row).__name__} without names; give columns=[...]")
        return _Shape(type(row), names, lambda item: _values_of_sequence(item, names), True)
    raise UsageError(
        f"{sink}: a row must be a dict, a dataclass, a named tuple, or a tuple with columns=[...]; found "
        f"{type(row).__name__}"
    )


def _values_of_mapping(row: Any, columns: tuple[str, ...]) -> Row:
    if not isinstance(row, Mapping):
        raise UsageError(f"expected a dict as the rows before, found {type(row).__name__}")
    unknown = row.keys() - set(columns)
    if unknown:
        raise UsageError(f"the row has a column {min(unknown, key=str)!r}; the columns are {', '.join(columns)}")
    return [row.get(column) for column in columns]


def _values_of_attributes(columns: tuple[str, ...]) -> Callable[[Any], Row]:
    get = operator.attrgetter(*columns)
    if len(columns) > 1:
        return get
    return lambda item: (get(item),)


def _values_of_sequence(row: Any, columns: tuple[str, ...]) -> Row:
    if not isinstance(row, (tuple, list)):
        raise UsageError(f"expected a tuple as the rows before, found {type(row).__name__}")
    if len(row) != len(columns):
        raise UsageError(f"the row has {len(row)} values; the columns are {', '.join(columns)}")
    return row


def _names(option: str, given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    names = (given,) if isinstance(given, str) else tuple(given)
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise UsageError(f"{option}={given!r}: expected names of columns, each once")
    return names


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Readers and the writer do not wait for each other. The change itself is not covered by the busy timeout."""
    give_up_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up_s:
                raise
            time.sleep(BUSY_RETRY_S)


def _column_types(rows: Iterable[Row]) -> list[str]:
    """The SQLite type of each column; none where values differ, for SQLite would convert them."""
    kinds = [set(map(type, column)) - {type(None)} for column in zip(*rows, strict=True)]
    return [next((name for name, types in COLUMN_TYPES if found and found <= types), "") for found in kinds]


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _quote_all(names: Sequence[str]) -> str:
    return ", ".join(map(_quote, names))
