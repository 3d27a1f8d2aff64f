"""Rows into a table: SQLite, or PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from consecution.errors import UsageError, WorldError
from consecution.postgresql import SCHEMES
from consecution.protocol.values import BatchId
from consecution.sink import TransactionSink, refuse_unknown
from consecution.sinks.database import MARKS, Database, Insert, Target
from consecution.sinks.postgres import Postgres
from consecution.sinks.rows import Shape, check_names, shape_of
from consecution.sinks.sqlite import Sqlite
from consecution.sqlite import SQLITE, check_in_file

URLS = "sqlite:///path or postgresql://user@host/database"
PATIENCE_S = 30.0
"""How long a write of its own waits for a database that is away. In ``robust`` it is waited for without end."""
START_PATIENCE_S = 10.0
"""How long a start waits for one that is not there: it may just be starting, or the url be wrong."""

ROW_NUMBERS = {"rowid", "oid", "_rowid_"}
"""To SQLite these are in every table: the number of a row. No row is to say it that only has a column too many."""


class SqlSink(TransactionSink):
    """Inserts each item as a row: a dict, a dataclass, a named tuple, or a tuple with ``columns``.

    ``url`` is ``sqlite:///relative.db`` or ``sqlite:////absolute.db`` (the folder must exist, the file need not), or
    ``postgresql://user:password@host:port/database`` with whatever libpq takes after a ``?``; that needs
    ``consecution[postgres]``. The columns are those of the first row, or ``columns``; a dict that lacks one gives
    NULL. One with another column adds that if the table has it, and fails if not, or if ``columns`` were given. The
    table is made from the first frame unless ``create`` is False, with types after its values. Later values of
    another type are converted as the database does; SQLite keeps what it cannot convert as it is, and in PostgreSQL a
    row fails that has a value of which something would be lost: a fraction in a ``bigint`` column, the time of day in
    a ``date`` (`docs/operations.md` has the rules). SQLite has no NaN: it fails, where PostgreSQL keeps it. Names are
    quoted, so any will do. Replicas, other sinks and other programs may write to the same table.

    **Exactly once** in ``robust``: rows and the mark of what they came from are one transaction, in the table
    ``_consecution_marks``. While the database is away, the pipeline is held back; a commit that broke off is
    looked up in the mark. At the other levels, and in `Pipeline.consume`, each frame is a transaction of its own,
    and rows are written again after a crash.

    ``sync="power"``: SQLite syncs at each commit; with ``"process"`` it does not, and a power cut may take the last
    rows and what is known of them. PostgreSQL commits as the server is set up to, but never asynchronously.

    With ``key``, the names of the columns that identify a row, a row replaces the one with the same key. A table that
    exists already must have these columns, and a PRIMARY KEY or UNIQUE constraint on the key.

    SQLite keeps the table in the order of its key. Name the column first that changes least from row to row:
    then rows that come together lie together, which is several times as fast.
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
        refuse_unknown(self, kwargs)
        self._database = _database(url, str(self))
        self._target = Target(table, check_names("key", key) or (), create, str(self))
        self.columns = check_names("columns", columns)
        self._shape: Shape | None = None
        self._insert: Insert | None = None
        self._insert_is_new = False
        self._in_transaction = False

    def open(self) -> None:
        self._ride_out(lambda: self._database.open(self.sync), START_PATIENCE_S)
        self._shape = self._insert = None
        self._in_transaction = False

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        if not items:
            return
        if self._in_transaction:
            self._write_within(items)
        else:
            self._ride_out(lambda: self._write_alone(items), PATIENCE_S)

    def _write_within(self, items: list[Any]) -> None:
        self._database.save()
        try:
            self._insert_rows(items)
        except BaseException:
            self._forget_new_table()
            self._database.back()
            raise
        self._database.keep()

    def _write_alone(self, items: list[Any]) -> None:
        self._database.begin()
        try:
            self._insert_rows(items)
            self._database.commit()
        except BaseException:
            self.roll_back()
            raise
        self._insert_is_new = False

    def _insert_rows(self, items: list[Any]) -> None:
        shape = self._shape or shape_of(items[0], self.columns, str(self))
        if self._insert is None:
            self._insert = self._make_insert(shape, items)
            self._insert_is_new = True
        try:
            self._insert(items)
        except UsageError as error:
            shape = self._insert_widened(shape, items, error)
        self._shape = shape  # Kept when the table is forgotten: what fails later names no other columns.

    def _make_insert(self, shape: Shape, items: list[Any]) -> Insert:
        for column in self._target.key:
            if column not in shape.columns:
                raise UsageError(f"{self}: key column {column!r} is not among the columns {', '.join(shape.columns)}")
        return self._database.make_insert(self._target, shape, items)

    def _insert_widened(self, shape: Shape, items: list[Any], error: UsageError) -> Shape:
        """The row that came first after a restart may have lacked a column: take in those that the table has."""
        wide = None if self.columns else shape.widened(items)
        if wide is None or ROW_NUMBERS.intersection(map(str.lower, wide.columns[len(shape.columns) :])):
            raise error
        try:
            insert = self._make_insert(wide, items)
        except UsageError:
            raise error from None
        insert(items)
        self._insert = insert
        return wide

    def _forget_new_table(self) -> None:
        """It may have been made by what is being undone: look again next time."""
        if self._insert_is_new:
            self._insert = None

    def close(self) -> None:
        self._database.close()

    # -- transactions ----------------------------------------------------------------------------

    def begin_transaction(self) -> None:
        self._database.begin()
        self._in_transaction = True

    def commit(self, owner: str, number: int, redo: bytes) -> None:
        try:
            if not self._database.move_mark(owner, number, redo):
                raise WorldError(
                    f"{self}: {self._database.where} has taken in something of {owner} that this run knows nothing "
                    f"of: its mark in {MARKS} was expected at {number - 1}. A transaction of a process that died came "
                    "late, which the next start finds; or two runs use copies of one state directory"
                )
            self._database.commit()
        except BaseException:
            self.roll_back()
            raise
        self._insert_is_new = self._in_transaction = False

    def roll_back(self) -> None:
        self._forget_new_table()
        self._in_transaction = False
        self._database.roll_back()

    def last_mark(self, owner: str) -> tuple[int, bytes]:
        # The database was there a moment ago: at the very first start, too, it gets the time that `open` gives it.
        return self._ride_out(lambda: self._database.read_mark(owner), START_PATIENCE_S)


def _database(url: str, sink: str) -> Database:
    if url.startswith(SCHEMES):
        return Postgres(url, sink)
    check_in_file(url, sink, URLS)
    if url.startswith(SQLITE):
        return Sqlite(url, sink)
    raise UsageError(f"{sink}: url={url!r}: expected {URLS}")
