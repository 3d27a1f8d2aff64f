"""PostgreSQL through psycopg 3 (the extra ``postgres``), for `SqlSink`.

Rules this file keeps:

1. An error that ends the connection, or that no row is to blame for (a deadlock, a full disk, a server that shuts
   down), is an OutageError. The transaction is gone then, and is repeated as a whole.
2. A commit moves the mark only from the number before. A transaction whose client is dead or cut off may still be on
   its way in the server; whoever comes second finds another number, and commits nothing.
3. Rows without a key go by COPY, four times as fast as INSERT (400 thousand a second against 110 thousand, in frames
   of 1000); rows with one by pipelined INSERT ... ON CONFLICT, and those that COPY would not take or would lead past a
   rule by a plain INSERT. Values are cast to the column's type either way, and before that refused where the cast
   would lose something (`postgres_columns`).
4. Constraints are checked at once, also deferred ones: at the commit nobody could say which row is at fault.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from consecution.errors import MissingExtraError, OutageError, UsageError
from consecution.postgresql import DEFAULTS, OUTAGES, REFUSALS, without_password
from consecution.sinks.database import MARKS, Insert, Target, describe, unfit
from consecution.sinks.postgres_columns import Column, Convert, converter
from consecution.sinks.rows import Row, Shape, insert_statement, quote, quote_all

if TYPE_CHECKING:
    import psycopg

IDLE_LIMIT_S = 20
"""A session that we lost sight of in the middle of a transaction lets go of its locks after this time."""
MAKING_TABLES = 0x636F6E73
"""The advisory lock of whoever makes a table: IF NOT EXISTS is no help where two do it at once."""

LARGEST_BIGINT = 2**63
DOUBLE, NUMERIC, TEXT = "double precision", "numeric", "text"
TYPES: dict[type, str] = {
    bool: "boolean",
    int: "bigint",
    float: DOUBLE,
    decimal.Decimal: NUMERIC,
    str: TEXT,
    bytes: "bytea",
    bytearray: "bytea",
    memoryview: "bytea",
    datetime.date: "date",
    datetime.time: "time",
    datetime.timedelta: "interval",
    uuid.UUID: "uuid",
    dict: "jsonb",
    list: "jsonb",
    tuple: "jsonb",
}

COLUMNS = """
    SELECT attname, format_type(base, -1), modifier, format_type(base, modifier)
    FROM pg_attribute
    JOIN pg_type ON pg_type.oid = atttypid,
    LATERAL (
        SELECT CASE typtype WHEN 'd' THEN typbasetype ELSE atttypid END AS base,
               CASE typtype WHEN 'd' THEN typtypmod ELSE atttypmod END AS modifier
    ) AS made_of
    WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped
"""
"""Each column of a table: its name, its type without a length (not as a cast reads it: ``character`` would be one
character), the modifier, and the type with it."""


TAKES_COPY = """
    SELECT NOT row_security_active(oid)
        AND NOT EXISTS (SELECT FROM pg_rewrite WHERE ev_class = pg_class.oid AND ev_type = '3')
        AND (relkind <> 'v' OR EXISTS (SELECT FROM pg_trigger WHERE tgrelid = pg_class.oid AND tgtype & 68 = 68))
    FROM pg_class WHERE oid = to_regclass(%s)
"""
"""Whether COPY does to a table, or view, what INSERT does. It is refused under row-level security, and by a view
without a trigger INSTEAD OF (64) INSERT (4); rules ON INSERT ('3') it passes by without a word."""


class Postgres:
    """One connection to one database, made again where it is lost."""

    def __init__(self, url: str, sink: str) -> None:
        self.where = without_password(url)
        self._url = url
        self._sink = sink
        self._connection: psycopg.Connection[Any] | None = None

    def open(self, sync: str) -> None:
        self.close()
        self._connection = self._connect()
        try:
            # A commit that the server may forget when it dies would make the mark a lie.
            if self._run("SHOW synchronous_commit").fetchone() == ("off",):
                self._run("SET synchronous_commit TO on")
            self._run(f"SET idle_in_transaction_session_timeout TO '{IDLE_LIMIT_S}s'")
        except BaseException:
            self.close()
            raise

    def _connect(self) -> psycopg.Connection[Any]:
        library = _import_psycopg(self._sink)
        try:
            made: psycopg.Connection[Any] = library.connect(self._url, autocommit=True, **self._defaults(library))
            return made
        except library.OperationalError as error:
            text = " ".join(str(error).split())
            if any(refusal in text for refusal in REFUSALS):
                raise UsageError(
                    f"{self._sink}: {self.where} does not let us in: {text}; mend the url, or make role and database"
                ) from error
            raise OutageError(f"{self.where} cannot be reached: {text}") from error
        except library.Error as error:
            raise UsageError(
                f"{self._sink}: url={self.where!r}: {error}; expected postgresql://user@host/database"
            ) from error

    def _defaults(self, library: Any) -> dict[str, Any]:
        given = library.conninfo.conninfo_to_dict(self._url)
        return {name: value for name, value in DEFAULTS.items() if name not in given}

    @contextlib.contextmanager
    def _explained(self) -> Iterator[psycopg.Connection[Any]]:
        """Tell what the world does from what is wrong with a row."""
        library = _import_psycopg(self._sink)
        connection = self._connection
        if connection is None:
            raise OutageError(f"{self.where}: the connection is lost")
        try:
            yield connection
        except library.Error as error:
            if connection.closed or (error.sqlstate or "").startswith(OUTAGES):
                raise OutageError(f"{self.where}: {' '.join(str(error).split())}") from error
            raise

    def _run(self, statement: str, values: Sequence[Any] = ()) -> psycopg.Cursor[Any]:
        with self._explained() as connection:
            return connection.execute(statement, values or None)  # type: ignore[arg-type, unused-ignore]

    def begin(self) -> None:
        if self._connection is None or self._connection.closed:
            self.open("")
        self._run("BEGIN; SET CONSTRAINTS ALL IMMEDIATE")

    def save(self) -> None:
        self._run("SAVEPOINT write")

    def back(self) -> None:
        self._run("ROLLBACK TO write")

    def keep(self) -> None:
        self._run("RELEASE write")

    def commit(self) -> None:
        self._run("COMMIT")

    def roll_back(self) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            connection.execute("ROLLBACK")
        except Exception:
            self.close()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # -- rows --------------------------------------------------------------------------------------

    def make_insert(self, target: Target, shape: Shape, items: list[Any]) -> Insert:
        if target.create and not self._is_there(target.table):
            self._run("SELECT pg_advisory_xact_lock(%s)", [MAKING_TABLES])
            self._run(_create_statement(target, shape.columns, shape.rows_of(items)))
        columns = self._columns_of(target, shape.columns)
        types = [column.kind for column in columns]
        self._check_key(target, shape.columns, types)
        convert = converter(target, columns)
        if target.key or not self._takes_copy(target.table):
            return self._by_insert(target, shape, types, convert)
        return self._by_copy(target, shape, convert)

    def _takes_copy(self, table: str) -> bool:
        return self._run(TAKES_COPY, [quote(table)]).fetchone() == (True,)

    def _by_copy(self, target: Target, shape: Shape, convert: Convert) -> Insert:
        statement = f"COPY {quote(target.table)} ({quote_all(shape.columns)}) FROM STDIN"

        def insert(items: list[Any]) -> None:
            rows = convert(shape.rows_of(items))
            with self._explained() as connection, connection.cursor().copy(statement) as copy:  # type: ignore[arg-type, unused-ignore]
                for row in rows:
                    copy.write_row(row)

        return insert

    def _by_insert(self, target: Target, shape: Shape, types: list[str], convert: Convert) -> Insert:
        marks = [f"%s::{kind}" for kind in types]
        table, columns, key = (_escape(name) for name in (target.table, shape.columns, target.key))
        statement = insert_statement(table, columns, key, marks)

        def insert(items: list[Any]) -> None:
            rows = convert(shape.rows_of(items))
            with self._explained() as connection, connection.cursor() as cursor:
                cursor.executemany(statement, rows)  # type: ignore[arg-type, unused-ignore]

        return insert

    def _is_there(self, table: str) -> bool:
        found = self._run("SELECT to_regclass(%s)", [quote(table)]).fetchone()
        return found is not None and found[0] is not None

    def _columns_of(self, target: Target, names: Sequence[str]) -> list[Column]:
        """These columns of the table as it is. A domain is the type that it is made of."""
        found = {name: Column(name, *rest) for name, *rest in self._run(COLUMNS, [quote(target.table)])}
        if not found:
            raise UsageError(unfit(target, self.where, f"there is no table {target.table!r}"))
        for name in names:
            if name not in found:
                raise UsageError(
                    unfit(target, self.where, f"it has no column {name!r}, but {', '.join(map(str, found))}")
                )
        return [found[name] for name in names]

    def _check_key(self, target: Target, columns: Sequence[str], types: list[str]) -> None:
        library = _import_psycopg(self._sink)
        nulls = [f"NULL::{kind}" for kind in types]
        try:
            self._run(f"EXPLAIN {insert_statement(target.table, columns, target.key, nulls)}")
        except (
            library.ProgrammingError,
            library.NotSupportedError,
            library.errors.ObjectNotInPrerequisiteState,  # A view that nothing can be inserted into.
        ) as error:
            raise UsageError(unfit(target, self.where, " ".join(str(error).split()))) from error

    # -- marks -------------------------------------------------------------------------------------

    def read_mark(self, owner: str) -> tuple[int, bytes]:
        self.begin()
        try:
            self._make_mark(owner)
            # Whoever is just moving it is waited for: a session whose client has died may be about to commit.
            row = self._run(f"SELECT number, redo FROM {MARKS} WHERE owner = %s FOR UPDATE", [owner]).fetchone()
            self.commit()
        except BaseException:
            self.roll_back()
            raise
        assert row is not None
        return row[0], bytes(row[1])

    def _make_mark(self, owner: str) -> None:
        if not self._is_there(MARKS):
            self._run("SELECT pg_advisory_xact_lock(%s)", [MAKING_TABLES])
            self._run(
                f"CREATE TABLE IF NOT EXISTS {MARKS} "
                "(owner text PRIMARY KEY, number bigint NOT NULL, redo bytea NOT NULL)"
            )
        self._run(f"INSERT INTO {MARKS} VALUES (%s, 0, '') ON CONFLICT DO NOTHING", [owner])

    def move_mark(self, owner: str, number: int, redo: bytes) -> bool:
        statement = f"UPDATE {MARKS} SET number = %s, redo = %s WHERE owner = %s AND number = %s"
        return bool(self._run(statement, [number, redo, owner, number - 1]).rowcount == 1)


def _import_psycopg(sink: str) -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise MissingExtraError(
            f"{sink}: PostgreSQL needs psycopg 3 ({error}): pip install 'consecution[postgres]'", extra="postgres"
        ) from error
    return psycopg


def _escape(name: Any) -> Any:
    """A percent sign in a name would stand for a value."""
    return name.replace("%", "%%") if isinstance(name, str) else tuple(map(_escape, name))


# -- types -----------------------------------------------------------------------------------------


def _create_statement(target: Target, columns: Sequence[str], rows: Iterable[Row]) -> str:
    types = [_type_of(column) for column in zip(*rows, strict=True)]
    ending = f", PRIMARY KEY ({quote_all(target.key)}))" if target.key else ")"
    return f"CREATE TABLE IF NOT EXISTS {quote(target.table)} ({describe(list(map(quote, columns)), types)}{ending}"


def _type_of(values: Sequence[Any]) -> str:
    """A type that holds all these values; text where they have nothing else in common."""
    kinds = {_type_of_value(value) for value in values if value is not None}
    if len(kinds) == 1:
        return kinds.pop()
    if kinds and kinds <= {"bigint", NUMERIC, DOUBLE}:
        return DOUBLE if kinds == {"bigint", DOUBLE} else NUMERIC
    if kinds and kinds <= {"timestamp", "timestamptz", "date"}:
        return "timestamptz" if "timestamptz" in kinds else "timestamp"
    return TEXT


def _type_of_value(value: Any) -> str:
    if isinstance(value, datetime.datetime):
        return "timestamp" if value.tzinfo is None else "timestamptz"
    if isinstance(value, datetime.time) and value.tzinfo is not None:
        return "timetz"
    kind = next((TYPES[base] for base in type(value).__mro__ if base in TYPES), TEXT)
    if kind == "bigint" and not -LARGEST_BIGINT <= value < LARGEST_BIGINT:
        return NUMERIC
    return kind
