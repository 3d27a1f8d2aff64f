"""What `SqlSource` needs of a database, and the DB-API's way to it: SQLite, PostgreSQL, or a function that connects.

Rules this file keeps:

1. No value ever becomes part of a statement: values go beside it, names are quoted.
2. Between two pages no transaction is open: nobody waits for a lock of ours, and new rows are seen.
3. An error that ends the connection, or that the rows are not to blame for, is an OutageError; all others are
   SourceErrors.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote as quote_url

from consecution.errors import MissingExtraError, OutageError, SourceError, UsageError, text_of
from consecution.postgresql import DEFAULTS, OUTAGES, REFUSALS, without_password
from consecution.sources.row_keys import Key
from consecution.sqlite import SQLITE, check_in_file

URLS = "sqlite:///path, postgresql://user@host/database, or a url that SQLAlchemy takes"
BUSY_TIMEOUT_S = 1.0
"""How long SQLite itself waits for a writer; then it is an outage."""
SQLITE_OUTAGES = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_INTERRUPT,
}
BACKTICKS = ("MySQLdb", "pymysql", "mysql", "mariadb")
"""Modules of databases that take text in double quotes for a value, and not for a name."""
CURSOR = "consecution_rows"
NO_LIMIT = 2**62
CANCEL_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Asked:
    """Which rows, in which order. Of several shares, those whose last key column leaves ``share`` as a remainder."""

    table: str | None
    query: Any
    params: Any
    order_by: tuple[str, ...]
    share: int = 0
    shares: int = 1

    def __str__(self) -> str:
        return f"table {self.table!r}" if self.table is not None else "the query"


class Page(NamedTuple):
    """Some rows: sequences of values in the order of ``names``, or dicts."""

    names: tuple[str, ...]
    rows: Sequence[Any]


class RowDatabase(Protocol):
    """One connection, used by the thread that opened it; `interrupt` is for others."""

    where: str
    gives_views: bool
    """Whether values may be views of memory, which are good as long as the connection only."""

    def open(self) -> None:
        """Connect. OutageError, or SourceError where it makes no sense to try again."""

    def page(self, asked: Asked, since: Key | None, until: Key | None, size: int) -> Page:
        """The first ``size`` rows with keys from ``since`` to ``until``, both included, in their order."""

    def stream(self, asked: Asked, since: Key | None, until: Key | None, size: Callable[[], int]) -> Iterator[Page]:
        """All of them, a page of ``size()`` after the other, by a cursor of the server."""

    def last_key(self, asked: Asked) -> Key | None:
        """The largest key there is just now."""

    def listen(self, channel: str) -> None: ...

    def fileno(self) -> int | None:
        """What becomes readable with a notification."""

    def noticed(self) -> bool:
        """Whether a notification has come, beside an answer, since it was last asked."""

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


class DbApi:
    """Any connection of the Python DB-API 2.0, made by ``make``."""

    def __init__(
        self, make: Callable[[], Any], where: str, *, paramstyle: str | None = None, gives_views: bool = True
    ) -> None:
        self.where = where
        self.gives_views = gives_views
        self._make = make
        self._paramstyle = paramstyle
        self._connection: Any = None
        self._module: Any = None
        self._style = ""

    # -- connecting --------------------------------------------------------------------------------

    def open(self) -> None:
        self.close()
        try:
            self._connection = self._make()
        except (SourceError, MissingExtraError, OutageError):
            raise
        except Exception as error:
            raise self._cannot_connect(error) from error
        self._module = _module_of(self._connection)
        style = self._paramstyle or getattr(self._module, "paramstyle", None)
        if style not in _MARKS:
            raise SourceError(
                f"{self.where}: connect() gave a {type(self._connection).__name__}, whose paramstyle is {style!r}: "
                f"give paramstyle=, one of {', '.join(_MARKS)}"
            )
        self._style = str(style)

    def _cannot_connect(self, error: Exception) -> Exception:
        """Whatever is no mistake of ours may be over in a moment."""
        module = _module_of(error)
        text = f"{self.where} cannot be reached: {one_line(error)}"
        if type(error).__name__ == "ProgrammingError" or (module is None and not isinstance(error, OSError)):
            return SourceError(f"{self.where}: connect() raised {text_of(error)}")
        if any(refusal in text for refusal in REFUSALS):
            return SourceError(f"{self.where} does not let us in: {one_line(error)}; mend the url or connect()")
        return OutageError(text)

    @property
    def _name(self) -> str:
        """Of the driver; none where ``paramstyle`` was given because it has no module of its own."""
        return str(getattr(self._module, "__name__", ""))

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()

    def interrupt(self) -> None:
        interrupt(self._connection)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[Any]:
        connection = self._connection
        if connection is None:
            raise OutageError(f"{self.where}: the connection is lost")
        try:
            yield connection
        except (SourceError, OutageError):
            raise
        except Exception as error:
            if is_outage(error, connection.closed if self._name == "psycopg" else False):
                raise OutageError(f"{self.where}: {one_line(error)}") from error
            raise SourceError(f"{self.where}: {type(error).__name__}: {one_line(error)}") from error

    # -- reading -----------------------------------------------------------------------------------

    def page(self, asked: Asked, since: Key | None, until: Key | None, size: int) -> Page:
        statement, values = self._statement(asked, since, until, size)
        with self._explained() as connection, contextlib.closing(connection.cursor()) as cursor:
            cursor.execute(statement, values)
            page = Page(_names_of(cursor), cursor.fetchall())
            connection.commit()
        return page

    def stream(self, asked: Asked, since: Key | None, until: Key | None, size: Callable[[], int]) -> Iterator[Page]:
        statement, values = self._statement(asked, since, until, NO_LIMIT)
        with self._explained() as connection:
            with contextlib.closing(self._streaming_cursor(connection)) as cursor:
                cursor.execute(statement, values)
                while rows := cursor.fetchmany(size()):
                    yield Page(_names_of(cursor), rows)
            connection.commit()

    def _streaming_cursor(self, connection: Any) -> Any:
        """One that leaves the rows with the server until they are asked for."""
        if self._name not in ("psycopg", "psycopg2"):
            return connection.cursor()
        connection.commit()
        connection.autocommit = False
        return connection.cursor(name=CURSOR)

    def last_key(self, asked: Asked) -> Key | None:
        builder = _Builder(asked, self._style, self._quote)
        names = [self._quote(name) for name in asked.order_by]
        descending = ", ".join(f"{name} DESC" for name in names)
        text = f"SELECT {', '.join(names)} FROM {builder.rows} WHERE {builder.known} ORDER BY {descending}"
        statement = f"{text} LIMIT {builder.mark(1)}"
        with self._explained() as connection:
            with contextlib.closing(connection.cursor()) as cursor:
                cursor.execute(statement, builder.values())
                row = cursor.fetchone()
            connection.commit()
        if row is None:
            return None
        return tuple(row.values()) if isinstance(row, dict) else tuple(row)

    def _statement(self, asked: Asked, since: Key | None, until: Key | None, limit: int) -> tuple[str, Any]:
        builder = _Builder(asked, self._style, self._quote)
        conditions = [builder.known]
        if since is not None:
            conditions.append(builder.compared(">=", since))
        if until is not None:
            conditions.append(builder.compared("<=", until))
        ordered = ", ".join(map(self._quote, asked.order_by))
        text = f"SELECT * FROM {builder.rows} WHERE {' AND '.join(conditions)} ORDER BY {ordered}"
        return f"{text} LIMIT {builder.mark(limit)}", builder.values()

    def _quote(self, name: str) -> str:
        mark = "`" if self._name in BACKTICKS else '"'
        quoted = f"{mark}{name.replace(mark, 2 * mark)}{mark}"
        return quoted.replace("%", "%%") if self._style in ("format", "pyformat") else quoted

    # -- notifications -----------------------------------------------------------------------------

    def listen(self, channel: str) -> None:
        with self._explained() as connection:
            self._listener = Listener(connection, self.where)
            with contextlib.closing(connection.cursor()) as cursor:
                cursor.execute(f"LISTEN {quote_name(channel)}")
            connection.commit()

    def fileno(self) -> int | None:
        return None if self._connection is None else int(self._connection.fileno())

    def noticed(self) -> bool:
        return self._listener.noticed()


def is_outage(error: BaseException, closed: Any) -> bool:
    """Whether the world is at fault: asked again later, the database may answer."""
    if closed or isinstance(error, OSError):
        return True
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in SQLITE_OUTAGES
    module = _module_of(error)
    if module is not None and module.__name__ == "psycopg":
        return (getattr(error, "sqlstate", None) or "").startswith(OUTAGES)
    kinds = [getattr(module, name, None) for name in ("OperationalError", "InterfaceError")]
    return isinstance(error, tuple(kind for kind in kinds if kind is not None))


def interrupt(connection: Any) -> None:
    """End the statement that is running, where the driver can: SQLite's and PostgreSQL's."""
    with contextlib.suppress(Exception):
        if hasattr(connection, "cancel_safe"):
            connection.cancel_safe(timeout=CANCEL_WITHIN_S)
        else:
            (getattr(connection, "interrupt", None) or connection.cancel)()


class Listener:
    """The notifications of a connection of psycopg, 3 or 2."""

    def __init__(self, connection: Any, where: str) -> None:
        self._came: list[Any] = []
        if hasattr(connection, "add_notify_handler"):
            connection.add_notify_handler(self._came.append)
        elif hasattr(connection, "notifies") and hasattr(connection, "poll"):
            self._came = connection.notifies
        else:
            raise SourceError(
                f"{where}: listen= needs PostgreSQL through psycopg; found a {type(connection).__name__}: use poll_s="
            )

    def noticed(self) -> bool:
        came = bool(self._came)
        self._came.clear()
        return came


_MARKS: dict[str, Callable[[int], str]] = {
    "qmark": lambda number: "?",
    "format": lambda number: "%s",
    "pyformat": lambda number: "%s",
    "numeric": lambda number: f":{number}",
    "named": lambda number: f":{_name(number)}",
}
"""Paramstyle → what stands for the value of this number, from 1 on."""


def _name(number: int) -> str:
    return f"consecution_{number}"


class _Builder:
    """A statement in the making: its values are beside it, in the driver's way."""

    def __init__(self, asked: Asked, style: str, quote: Callable[[str], str]) -> None:
        self._asked = asked
        self._style = style
        self._quote = quote
        self._by_name = isinstance(asked.params, Mapping) or (style == "named" and asked.params is None)
        self._given: list[Any] = [] if asked.params is None or self._by_name else list(asked.params)
        self._named: dict[str, Any] = dict(asked.params) if isinstance(asked.params, Mapping) else {}

    @property
    def rows(self) -> str:
        """What stands behind FROM."""
        if self._asked.table is not None:
            return self._quote(self._asked.table)
        query = str(self._asked.query).strip().rstrip(";")
        if self._asked.params is None and self._style in ("format", "pyformat"):
            query = query.replace("%", "%%")
        return f"({query}\n) AS consecution_rows"

    @property
    def known(self) -> str:
        asked = self._asked
        conditions = [f"{self._quote(name)} IS NOT NULL" for name in asked.order_by]
        if asked.shares > 1:
            conditions.append(self._in_share(self._quote(asked.order_by[-1]), asked.share, asked.shares))
        return " AND ".join(conditions)

    def _in_share(self, name: str, share: int, shares: int) -> str:
        """A whole number whatever the column holds, and never negative: so each row is in just one share."""
        modulo = "%%" if self._style in ("format", "pyformat") else "%"
        whole = f"CAST({name} AS {'SIGNED' if name.startswith('`') else 'BIGINT'})"
        return f"(({whole} {modulo} {shares}) + {shares}) {modulo} {shares} = {share}"

    def compared(self, how: str, key: Key) -> str:
        names = ", ".join(map(self._quote, self._asked.order_by))
        marks = ", ".join(map(self.mark, key))
        return f"{names} {how} {marks}" if len(key) == 1 else f"({names}) {how} ({marks})"

    def mark(self, value: Any) -> str:
        """What stands for a value. Each statement has one: where there are none, percent signs are not doubled."""
        if self._by_name:
            number = len(self._named) + 1
            self._named[_name(number)] = value
            return f"%({_name(number)})s" if self._style in ("format", "pyformat") else f":{_name(number)}"
        self._given.append(value)
        return _MARKS[self._style](len(self._given))

    def values(self) -> Any:
        return self._named if self._by_name else self._given


def _names_of(cursor: Any) -> tuple[str, ...]:
    return tuple(column[0] for column in cursor.description or ())


def _module_of(thing: Any) -> Any:
    """The DB-API module that a connection, or an error, comes from; of a class of one's own, its base's."""
    for base in type(thing).__mro__:
        module = sys.modules.get(base.__module__.partition(".")[0])
        if hasattr(module, "paramstyle"):
            return module
    return None


def one_line(error: BaseException | None) -> str:
    """What an error says, however many lines it takes for that."""
    return " ".join(str(error).split())


def quote_name(name: str) -> str:
    """A name as standard SQL quotes it."""
    return '"' + name.replace('"', '""') + '"'


# -- urls ------------------------------------------------------------------------------------------


def of_sqlite(url: str) -> DbApi:
    """``sqlite:///relative.db`` or ``sqlite:////absolute.db``; the file must be there, and is only read."""
    path = Path(url.removeprefix(SQLITE))

    def connect() -> Any:
        if not path.is_file():
            raise SourceError(f"there is no file {path.absolute()}: url={url!r}")
        connection = sqlite3.connect(
            f"file:{quote_url(str(path))}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None
        )
        try:
            connection.execute("PRAGMA query_only=1")
        except BaseException:
            connection.close()
            raise
        return connection

    return DbApi(connect, str(path), gives_views=False)


def of_postgres(url: str) -> DbApi:
    """Through psycopg 3, the extra ``postgres``."""

    def connect() -> Any:
        try:
            import psycopg
        except ImportError as error:
            raise MissingExtraError(
                f"the sql source: PostgreSQL needs psycopg 3 ({error}): pip install 'consecution[postgres]'",
                extra="postgres",
            ) from error
        given = psycopg.conninfo.conninfo_to_dict(url)
        more: dict[str, Any] = {name: value for name, value in DEFAULTS.items() if name not in given}
        return psycopg.connect(url, autocommit=True, prepare_threshold=None, **more)

    return DbApi(connect, without_password(url), gives_views=False)


def check_url(url: Any) -> str:
    """UsageError for what is no url, or names a database in memory."""
    if isinstance(url, str):
        check_in_file(url, "the sql source", URLS)
    if not isinstance(url, str) or "://" not in url:
        raise UsageError(f"the sql source: url={url!r}: expected {URLS}")
    return url
