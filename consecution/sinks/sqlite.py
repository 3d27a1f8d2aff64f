"""SQLite, for `SqlSink`: a file that several sinks and programs may share."""

from __future__ import annotations

import contextlib
import itertools
import math
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from consecution.errors import OutageError, UsageError, WorldError
from consecution.sinks.database import MARKS, Insert, Target, describe, unfit
from consecution.sinks.rows import Row, Shape, insert_statement, quote, quote_all
from consecution.sqlite import SQLITE

BUSY_TIMEOUT_S = 1.0
"""How long SQLite itself waits for others; then it is an outage, and waited for by whoever called."""
BUSY_RETRY_S = 0.02

CACHE_KIB = 64 * 1024
"""Rows of a frame may lie all over a table with a key: its pages had better stay in memory, once touched."""
CHECKPOINT_PAGES = 16 * 1024
"""So a page that many frames touch is copied from the log into the table once, not once a frame. About 64 MiB."""

VALUES_AT_ONCE = 300
"""A statement for so many values takes half the time that one for each row takes; more are no better."""
COLUMNS_AT_ONCE = 8
"""With more, and with a key, a row has so much to do that it is no quicker among others."""

COLUMN_TYPES = (
    ("INTEGER", {bool, int}),
    ("REAL", {float, int}),
    ("TEXT", {str}),
    ("BLOB", {bytes}),
)

LARGEST_INT = 2**63 - 1
LARGEST_EXACT_INT = 2**53
"""Of larger ones a float is only near."""
STORABLE = (int, float, str, bytes, bytearray, memoryview, type(None))

OUTAGES = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
}


class Sqlite:
    """One connection to one file."""

    def __init__(self, url: str, sink: str) -> None:
        self.path = Path(url.removeprefix(SQLITE))
        self.where = str(self.path)
        self._sink = sink
        self._connection: sqlite3.Connection | None = None
        self._ended_by: sqlite3.Error | None = None

    def open(self, sync: str) -> None:
        folder = self.path.absolute().parent
        if not folder.is_dir():
            raise UsageError(f"{self._sink}: the folder {folder} does not exist; make it, or choose another url")
        try:
            self._connection = self._connect(sync)
        except sqlite3.Error as error:
            if _is_outage(error):
                raise OutageError(f"{self.path}: {error}") from error
            raise UsageError(
                f"{self._sink}: {self.path} cannot be opened: {error}; expected a SQLite database, or a place where "
                "one can be made: choose another url, or mend what is there"
            ) from error

    def _connect(self, sync: str) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            _use_write_ahead_log(connection)
            connection.execute(f"PRAGMA synchronous={'FULL' if sync == 'power' else 'NORMAL'}")
            connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
            connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def _open(self) -> sqlite3.Connection:
        assert self._connection is not None, f"{self._sink}: write before open"
        return self._connection

    @contextlib.contextmanager
    def _explained(self) -> Iterator[sqlite3.Connection]:
        """Tell what the world does from what is wrong with a row."""
        try:
            yield self._open
        except sqlite3.Error as error:
            if _is_outage(error):
                raise OutageError(f"{self.path}: {error}") from error
            self._ended_by = error
            raise

    def _run(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        with self._explained() as connection:
            return connection.execute(statement, values)

    def begin(self) -> None:
        # At once as a writer: who becomes one later may be refused, in the middle of the transaction.
        self._run("BEGIN IMMEDIATE")

    def save(self) -> None:
        self._check_has_not_ended()
        self._run("SAVEPOINT write")

    def back(self) -> None:
        # Some errors (a full disk) end the whole transaction; the outage that was raised says so.
        if self._open.in_transaction:
            self._run("ROLLBACK TO write")
            self.keep()

    def keep(self) -> None:
        self._run("RELEASE write")

    def _check_has_not_ended(self) -> None:
        """WorldError once a row has: a savepoint would begin another transaction, and a mark be one of its own."""
        if not self._open.in_transaction:
            raise WorldError(
                f"{self._sink}: {self.path}: {self._ended_by}: that row has not only failed, but taken back the whole "
                "transaction, other rows included; where its table says ON CONFLICT ROLLBACK, or a trigger "
                "RAISE(ROLLBACK, ...), let it say ABORT; nothing is lost, a new start tries again"
            ) from self._ended_by

    def commit(self) -> None:
        self._run("COMMIT")

    def roll_back(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    # -- rows --------------------------------------------------------------------------------------

    def make_insert(self, target: Target, shape: Shape, items: list[Any]) -> Insert:
        self._check_names_differ(target, shape.columns)
        if target.create:
            self._run(_create_statement(target, shape.columns, _plain(shape, items)))
        marks = "?" * len(shape.columns)
        statement = insert_statement(target.table, shape.columns, target.key, marks)
        self._check_fits(target, statement, len(shape.columns))
        at_once = _rows_at_once(target, len(shape.columns))
        for_many = insert_statement(target.table, shape.columns, target.key, marks, at_once)

        def insert(items: list[Any]) -> None:
            rows = list(_plain(shape, items))
            values = list(itertools.chain.from_iterable(rows))
            _refuse_nan(target, shape.columns, values)
            alone = len(rows) % at_once if at_once > 1 else len(rows)
            together = len(rows) - alone
            try:
                with self._explained() as connection:
                    connection.executemany(for_many, _cut(values, together * len(marks), at_once * len(marks)))
                    connection.executemany(statement, rows[together:])
            except (sqlite3.ProgrammingError, sqlite3.InterfaceError, OverflowError, UnicodeEncodeError) as error:
                _check_values(target, shape.columns, rows, error)
                raise

        return insert

    def _check_names_differ(self, target: Target, columns: Sequence[str]) -> None:
        """To SQLite ``A`` is ``a``: of two columns that are one it would drop the second's values without a word."""
        alike: dict[bytes, str] = {}
        for column in columns:
            first = alike.setdefault(column.encode("utf-8", "surrogatepass").lower(), column)
            if first is not column:
                raise UsageError(
                    unfit(target, self.where, f"the columns {first!r} and {column!r} are one and the same to SQLite")
                )

    def _check_fits(self, target: Target, statement: str, columns: int) -> None:
        try:
            self._run(f"EXPLAIN {statement}", [None] * columns)
        except sqlite3.OperationalError as error:
            raise UsageError(unfit(target, self.where, error)) from error

    # -- marks -------------------------------------------------------------------------------------

    def read_mark(self, owner: str) -> tuple[int, bytes]:
        self.begin()
        try:
            self._run(
                f"CREATE TABLE IF NOT EXISTS {MARKS} "
                "(owner TEXT NOT NULL PRIMARY KEY, number INTEGER NOT NULL, redo BLOB NOT NULL) WITHOUT ROWID"
            )
            self._run(f"INSERT INTO {MARKS} VALUES (?, 0, x'') ON CONFLICT DO NOTHING", [owner])
            number, redo = self._run(f"SELECT number, redo FROM {MARKS} WHERE owner = ?", [owner]).fetchone()
            self.commit()
        except BaseException:
            self.roll_back()
            raise
        return number, redo

    def move_mark(self, owner: str, number: int, redo: bytes) -> bool:
        self._check_has_not_ended()
        statement = f"UPDATE {MARKS} SET number = ?, redo = ? WHERE owner = ? AND number = ?"
        return self._run(statement, [number, redo, owner, number - 1]).rowcount == 1

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _is_outage(error: sqlite3.Error) -> bool:
    """Whether no row is at fault; each of these is an OperationalError, and has a code."""
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF in OUTAGES


def _rows_at_once(target: Target, columns: int) -> int:
    """For how many rows one statement is to be."""
    return VALUES_AT_ONCE // columns if columns <= COLUMNS_AT_ONCE and not target.key else 1


def _cut(values: list[Any], end: int, length: int) -> Iterator[list[Any]]:
    """The values before ``end`` in lists of this length."""
    for start in range(0, end, length):
        yield values[start : start + length]


def _refuse_nan(target: Target, columns: Sequence[str], values: list[Any]) -> None:
    """ValueError that names the column: SQLite would store NULL without a word. ``values``: of row after row."""
    for at, column in enumerate(columns):
        if _holds_nan(values[at :: len(columns)]):
            raise ValueError(
                f"{target.sink}: column {column!r} of the table {target.table}: SQLite has no NaN, and would store "
                "NULL; found nan: make it None before, or text"
            )


def _holds_nan(values: Sequence[Any]) -> bool:
    """A sum tells whether it is worth a closer look: it is NaN for infinities of both signs, too."""
    kinds = set(map(type, values))
    if not any(issubclass(kind, float) for kind in kinds):
        return False
    floats = values if kinds == {float} else [value for value in values if isinstance(value, float)]
    return math.isnan(sum(floats)) and any(map(math.isnan, floats))


def _check_values(target: Target, columns: Sequence[str], rows: Iterable[Row], error: Exception) -> None:
    """TypeError or ValueError that names the column, where SQLite cannot hold a value."""
    for row in rows:
        for column, value in zip(columns, row, strict=True):
            reason = _why_not(value)
            if reason is not None:
                kind = ValueError if isinstance(value, STORABLE) else TypeError
                raise kind(f"{target.sink}: column {column!r} of the table {target.table}: {reason}") from error


def _why_not(value: Any) -> str | None:
    """What is wrong with a value, and what to do; None: nothing."""
    if _is_adapted(value):
        return None
    kind = type(value).__name__
    if not isinstance(value, STORABLE):
        return (
            f"SQLite takes None, int, float, str and bytes, found {kind}: {value!r:.80}; make it one of these before, "
            f"or tell sqlite3 how: sqlite3.register_adapter({kind}, str)"
        )
    if isinstance(value, int) and not -LARGEST_INT - 1 <= value <= LARGEST_INT:
        return (
            f"SQLite takes whole numbers from -2**63 to 2**63 - 1, found one of {value.bit_length()} bits, which is "
            "too large; make it text or a float before"
        )
    if isinstance(value, str) and not _is_encodable(value):
        return f"SQLite takes text as UTF-8, found half a surrogate pair in {value!r:.80}; take it out, or store bytes"
    return None


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_adapted(value: object) -> bool:
    return hasattr(value, "__conform__") or (type(value), sqlite3.PrepareProtocol) in sqlite3.adapters


def _plain(shape: Shape, items: list[Any]) -> Iterable[Row]:
    """The rows, with numbers of numpy as Python's: else their bytes would be stored. TypeError for its other kinds."""
    rows, numpy = shape.rows_of(items), sys.modules.get("numpy")
    if numpy is None:
        return rows
    rows = list(rows)
    if not any(issubclass(kind, numpy.generic) for kind in set(map(type, itertools.chain.from_iterable(rows)))):
        return rows
    return [tuple(map(_plain_value, row)) for row in rows]


def _plain_value(value: Any) -> Any:
    numpy = sys.modules["numpy"]
    if not isinstance(value, numpy.generic) or _is_adapted(value):
        return value
    # A datetime64 would become a bare number of nanoseconds; a longdouble stays what it is.
    plain = value if isinstance(value, numpy.datetime64 | numpy.timedelta64) else value.item()
    if isinstance(plain, numpy.generic):
        raise TypeError(f"SQLite has no type for {value!r}; give it as a number, text or bytes")
    return plain


def _create_statement(target: Target, columns: Sequence[str], rows: Iterable[Row]) -> str:
    described = describe(list(map(quote, columns)), _column_types(rows))
    # Without a row id, a key column is never NULL; two NULLs would not be the same key.
    ending = f", PRIMARY KEY ({quote_all(target.key)})) WITHOUT ROWID" if target.key else ")"
    return f"CREATE TABLE IF NOT EXISTS {quote(target.table)} ({described}{ending}"


def _column_types(rows: Iterable[Row]) -> list[str]:
    """The SQLite type of each column; none where values differ, for SQLite would convert them."""
    return [_column_type(values) for values in zip(*rows, strict=True)]


def _column_type(values: Sequence[Any]) -> str:
    found = set(map(type, values)) - {type(None)}
    fitting = next((name for name, types in COLUMN_TYPES if found and found <= types), "")
    if fitting == "REAL" and any(type(value) is int and abs(value) > LARGEST_EXACT_INT for value in values):
        return ""
    return fitting


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
