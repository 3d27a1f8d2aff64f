"""SQLAlchemy's way to a database (the extra ``sql``), for `SqlSource`: whatever it has a dialect for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from consecution.errors import MissingExtraError, OutageError, SourceError
from consecution.sources.database import Asked, Listener, Page, interrupt, is_outage, one_line, quote_name
from consecution.sources.row_keys import Key

ROW_VALUES = ("postgresql", "sqlite", "mysql", "mariadb")
"""Dialects that compare (a, b) >= (x, y) as a whole, and by an index."""
BUFFERED_ROWS = 16
"""So few that it does not matter how large they are."""


def import_sqlalchemy() -> Any:
    try:
        import sqlalchemy
    except ImportError as error:
        raise MissingExtraError(
            f"the sql source: this url or engine needs SQLAlchemy ({error}): pip install 'consecution[sql]'; "
            "sqlite:///path, postgresql://... and connect= do without",
            extra="sql",
        ) from error
    return sqlalchemy


class Alchemy:
    """A connection of an engine; ``make_engine`` is called once for each, ``owned``: the engine goes with it."""

    gives_views = True

    def __init__(self, make_engine: Callable[[], Any], where: str, *, owned: bool) -> None:
        self.where = where
        self._make_engine = make_engine
        self._owned = owned
        self._engine: Any = None
        self._connection: Any = None

    def open(self) -> None:
        self.close()
        sa = import_sqlalchemy()
        try:
            self._engine = self._make_engine()
            self._connection = self._engine.connect()
        except sa.exc.DBAPIError as error:
            raise OutageError(f"{self.where} cannot be reached: {one_line(error.orig)}") from error
        except (sa.exc.SQLAlchemyError, ImportError) as error:
            raise SourceError(f"{self.where}: {one_line(error)}") from error

    def close(self) -> None:
        connection, self._connection = self._connection, None
        engine, self._engine = self._engine, None
        with contextlib.suppress(Exception):
            if connection is not None:
                connection.close()
        if engine is not None and self._owned:
            engine.dispose()

    def interrupt(self) -> None:
        with contextlib.suppress(Exception):
            interrupt(self._connection.connection.dbapi_connection)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[Any]:
        sa = import_sqlalchemy()
        if self._connection is None:
            raise OutageError(f"{self.where}: the connection is lost")
        try:
            yield self._connection
        except sa.exc.DBAPIError as error:
            kind = OutageError if is_outage(error.orig or error, error.connection_invalidated) else SourceError
            raise kind(f"{self.where}: {one_line(error.orig)}") from error
        except sa.exc.SQLAlchemyError as error:
            raise SourceError(f"{self.where}: {one_line(error)}") from error

    # -- reading -----------------------------------------------------------------------------------

    def page(self, asked: Asked, since: Key | None, until: Key | None, size: int) -> Page:
        with self._explained() as connection:
            result = connection.execute(self._statement(asked, since, until).limit(size), self._params(asked))
            page = Page(tuple(result.keys()), result.fetchall())
            connection.commit()
        return page

    def stream(self, asked: Asked, since: Key | None, until: Key | None, size: Callable[[], int]) -> Iterator[Page]:
        statement = self._statement(asked, since, until)
        with self._explained() as connection:
            options = {"stream_results": True, "max_row_buffer": BUFFERED_ROWS}
            with connection.execute(statement, self._params(asked), execution_options=options) as result:
                names = tuple(result.keys())
                while rows := result.fetchmany(size()):
                    yield Page(names, rows)
            connection.commit()

    def _statement(self, asked: Asked, since: Key | None, until: Key | None) -> Any:
        sa = import_sqlalchemy()
        columns = [sa.column(name) for name in asked.order_by]
        statement = self._select(asked, sa.literal_column("*")).order_by(*columns)
        if since is not None:
            statement = statement.where(self._compared(columns, since, up=True))
        if until is not None:
            statement = statement.where(self._compared(columns, until, up=False))
        return statement

    def last_key(self, asked: Asked) -> Key | None:
        sa = import_sqlalchemy()
        columns = [sa.column(name) for name in asked.order_by]
        statement = self._select(asked, *columns).order_by(*(column.desc() for column in columns)).limit(1)
        with self._explained() as connection:
            row = connection.execute(statement, self._params(asked)).fetchone()
            connection.commit()
        return None if row is None else tuple(row)

    def _select(self, asked: Asked, *what: Any) -> Any:
        sa = import_sqlalchemy()
        if asked.table is not None:
            rows = sa.table(asked.table)
        elif isinstance(asked.query, str):
            rows = sa.text(f"({asked.query.strip().rstrip(';')}\n) AS consecution_rows")
        else:
            rows = asked.query.subquery("consecution_rows")
        known = [sa.column(name).is_not(None) for name in asked.order_by]
        if asked.shares > 1:
            whole = sa.cast(sa.column(asked.order_by[-1]), sa.BigInteger)
            known.append((whole % asked.shares + asked.shares) % asked.shares == asked.share)
        return sa.select(*what).select_from(rows).where(*known)

    def _params(self, asked: Asked) -> dict[str, Any]:
        return dict(asked.params or {})

    def _compared(self, columns: list[Any], key: Key, *, up: bool) -> Any:
        sa = import_sqlalchemy()
        first, value = columns[0], key[0]
        if len(columns) == 1:
            return first >= value if up else first <= value
        if self._connection.dialect.name in ROW_VALUES:
            both = sa.tuple_(*columns), sa.tuple_(*(sa.bindparam(None, part) for part in key))
            return both[0] >= both[1] if up else both[0] <= both[1]
        rest = self._compared(columns[1:], key[1:], up=up)
        if up:
            return sa.and_(first >= value, sa.or_(first > value, rest))
        return sa.and_(first <= value, sa.or_(first < value, rest))

    # -- notifications -----------------------------------------------------------------------------

    def listen(self, channel: str) -> None:
        sa = import_sqlalchemy()
        with self._explained() as connection:
            self._listener = Listener(connection.connection.dbapi_connection, self.where)
            connection.execute(sa.text(f"LISTEN {quote_name(channel)}".replace(":", "\\:")))
            connection.commit()

    def fileno(self) -> int | None:
        return None if self._connection is None else int(self._connection.connection.dbapi_connection.fileno())

    def noticed(self) -> bool:
        return self._listener.noticed()


def of_engine(engine: Any) -> Alchemy:
    """An engine of the user's, which stays open."""
    return Alchemy(lambda: engine, engine.url.render_as_string(hide_password=True), owned=False)


def of_url(url: str) -> Alchemy:
    """SourceError from `open` where SQLAlchemy does not take it."""
    sa = import_sqlalchemy()
    try:
        where = sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError as error:
        raise SourceError(f"url={url!r}: {one_line(error)}") from error
    return Alchemy(lambda: sa.create_engine(url, poolclass=sa.pool.NullPool), where, owned=True)
