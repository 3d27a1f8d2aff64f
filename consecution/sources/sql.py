"""The rows of a table or a query, in the order of a key: once, or on and on."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import operator
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from consecution.errors import ConsecutionError, OutageError, SourceError, UsageError, text_of
from consecution.postgresql import SCHEMES
from consecution.source import Source
from consecution.sources import database
from consecution.sources.database import Asked, DbApi, Page, RowDatabase
from consecution.sources.handover import Handover
from consecution.sources.row_keys import Key, count_known, in_utc, key_at, place_of
from consecution.sqlite import SQLITE
from consecution.telling import warn

PAGE_ROWS = 2000
PAGES_AHEAD = 2
FIRST_ROWS = 16
GROWTH = 8
PAGE_BYTES = 2 << 20
ROW_BYTES = 300
"""What a row takes beside its values."""
SAMPLE = 16
LISTEN_POLL_S = 30.0
"""With ``listen``: how often rows are looked for although nobody called. A net below the notifications."""
START_PATIENCE_S = 10.0
"""How long a database that never answered is waited for: it may just be starting, or the url be wrong."""
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 2.0
LONGEST_READ_S = 0.5
"""With ``may_block``: how long a read waits before it lets the caller look at other things."""
LEAVE_WITHIN_S = 2.0


class SqlSource(Source):
    """Each row of ``table``, or of ``query``, as a dict, in the order of ``order_by``.

    **Where.** ``url``: ``sqlite:///path``, ``postgresql://...`` (the extra ``postgres``), or any other url that
    SQLAlchemy takes (the extra ``sql``). ``engine``: an engine of SQLAlchemy; it is read in the process that started
    the run. ``connect``: a function that returns a DB-API connection; values are marked by its module's paramstyle,
    or by ``paramstyle``. Databases without LIMIT need SQLAlchemy.

    **What.** ``query`` is a SELECT (with SQLAlchemy, text with ``:name`` or a selectable), ``params`` are its
    values. ``order_by`` names the columns, one or several, that tell rows apart and that later rows have larger values
    in: a primary key, or ``["changed_at", "id"]``. Rows with NULL there are left out, until they have a value. Equal
    keys stop the run with an error. An index on them makes pages cheap.

    **How far.** Without ``poll_s`` the stream ends with the last row. With it, rows that are added later are looked
    for every so many seconds; with ``listen``, the name of a channel, also as soon as PostgreSQL notifies it.

    **The position** is the key of the last row that was taken. So a row that is changed without getting a larger key
    is not read again, and a row that gets a smaller key than one that was read is never seen.

    **The gap.** An automatic key is given out before the commit: a transaction may commit id 7 when 8 was read long
    ago. With ``settle_s`` only rows are read whose keys were there ``settle_s`` ago: whatever takes less than that
    from key to commit is seen.

    **Memory.** A page is up to ``page_rows`` rows, less where they are large (2 MiB), and is fetched at once, by a
    statement of its own; no transaction stays open in between. With ``stream`` there is one statement, read by a
    cursor of the server page by page: for a query that is dear to begin, at the price of a transaction that stays
    open as long as the pipeline needs. At most four pages are in memory.

    **In shares.** ``Producer("sql", ...) * n`` reads with n connections at once, each the rows whose last column of
    ``order_by``, a whole number, leaves another remainder when divided by n. ``engine``, which stays in one process,
    has no shares.

    **Errors.** A lost connection is made again, with pauses of up to two seconds, for as long as it takes; a database
    that has never answered is given up after ten seconds. What the database says against the statement ends the run
    with a SourceError.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        connect: Callable[[], Any] | None = None,
        engine: Any = None,
        table: str | None = None,
        query: Any = None,
        params: Mapping[str, Any] | Sequence[Any] | None = None,
        order_by: str | Sequence[str] | None = None,
        poll_s: float | None = None,
        listen: str | None = None,
        settle_s: float | None = None,
        stream: bool = False,
        page_rows: int = PAGE_ROWS,
        paramstyle: str | None = None,
    ) -> None:
        _check_one("where to read from", {"url": url, "connect": connect, "engine": engine})
        _check_one("what to read", {"table": table, "query": query})
        _check_seconds({"poll_s": poll_s, "settle_s": settle_s})
        if url is not None:
            database.check_url(url)
        if type(page_rows) is not int or page_rows < 1:
            raise UsageError(f"the sql source: page_rows={page_rows!r}: expected a whole number above 0")
        if settle_s is not None and poll_s is None and listen is None:
            raise UsageError("the sql source: settle_s goes with poll_s or listen: without them the stream just ends")
        self._asked = Asked(table, query, params, _check_order(order_by))
        self._url = url
        self._connect = connect
        self._engine = engine
        self._paramstyle = paramstyle
        self._poll_s = LISTEN_POLL_S if poll_s is None and listen is not None else poll_s
        self._listen = listen
        self._settle_s = settle_s
        self._stream = stream
        self._page_rows = page_rows
        self.in_parent = engine is not None
        self.now: Callable[[], float] = time.monotonic
        self._key: Key | None = None
        self._reader: _Feeder | _CallersReader | None = None

    def __repr__(self) -> str:
        return f"SqlSource({self._asked} at {self._make_database().where})"

    def _make_database(self) -> RowDatabase:
        if self._connect is not None:
            name = getattr(self._connect, "__name__", type(self._connect).__name__)
            return DbApi(self._connect, f"the database of {name}()", paramstyle=self._paramstyle)
        if self._url is not None and self._url.startswith(SQLITE):
            return database.of_sqlite(self._url)
        if self._url is not None and self._url.startswith(SCHEMES):
            return database.of_postgres(self._url)
        from consecution.sources.alchemy import of_engine, of_url

        return of_engine(self._engine) if self._url is None else of_url(self._url)

    def split(self, shares: int) -> list[Source] | None:
        """By the remainder of the key: rows that are added later have their share, too."""
        return None if self.in_parent else [self._make_share(share, shares) for share in range(shares)]

    def _make_share(self, share: int, shares: int) -> SqlSource:
        made = copy.copy(self)
        made._asked = dataclasses.replace(self._asked, share=share, shares=shares)
        return made

    def open(self, position: Any) -> None:
        self._key = None if position is None else key_at(self._asked.order_by, position)
        reading = _Reading(self, self._make_database(), self._key)
        self._reader = (_CallersReader if self.may_block else _Feeder)(reading)

    def read(self, max_items: int) -> list[Any] | None:
        assert self._reader is not None, "read before open"
        rows = self._reader.read(max_items)
        if rows:
            last = rows[-1]
            self._key = tuple([last[column] for column in self._asked.order_by])
        return rows

    def position(self) -> Any:
        return None if self._key is None else place_of(self._asked.order_by, self._key)

    def fileno(self) -> int | None:
        return None if self._reader is None else self._reader.fileno()

    def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()


def _check_one(what: str, given: dict[str, Any]) -> None:
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise UsageError(f"the sql source: {what}: give one of {', '.join(given)}; found {', '.join(names) or 'none'}")


def _check_seconds(given: dict[str, Any]) -> None:
    for name, value in given.items():
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0):
            raise UsageError(f"the sql source: {name}={value!r}: expected a number of seconds, or None")


def _check_order(order_by: Any) -> tuple[str, ...]:
    names = [order_by] if isinstance(order_by, str) else list(order_by or ())
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise UsageError(
            f"the sql source: order_by={order_by!r}: expected the column that rows are ordered and told apart by, as "
            "in order_by='id', or several columns"
        )
    return tuple(names)


# -- from pages to rows ----------------------------------------------------------------------------


class _Reading:
    """The rows of one run, page by page; `next` may wait for the database, and never for rows."""

    def __init__(self, source: SqlSource, rows_of: RowDatabase, after: Key | None) -> None:
        self._source = source
        self._asked = source._asked
        self._database = rows_of
        self._after = after
        self._has_worked = after is not None
        self._give_up_s = source.now() + START_PATIENCE_S
        self._connected = False
        self._over = False
        self._wait_s = FIRST_WAIT_S
        self._due_s = 0.0
        self._until: Key | None = None
        self._heads: list[tuple[float, Key]] = []
        self._pages: Iterator[Page] | None = None
        self._in_statement = False
        """The next page goes on in a statement that has given one: it begins behind what was taken."""
        self._size = min(FIRST_ROWS, source._page_rows)
        self._stop_r, self._stop_w = os.pipe()
        self._lock = threading.Lock()
        self.stopped = False

    def next(self) -> list[Any] | None:
        """Some rows; [] if there are none just now, None at the end."""
        if self._over:
            return None
        if self._source.now() < self._due_s:
            return []
        try:
            rows = self._take()
        except OutageError as error:
            self._ride_out(error)
            return []
        self._has_worked = True
        self._wait_s = FIRST_WAIT_S
        return rows

    def _ride_out(self, error: OutageError) -> None:
        self._disconnect()
        if self.stopped:
            return
        if not self._has_worked and self._source.now() + self._wait_s > self._give_up_s:
            raise SourceError(str(error)) from error
        warn("sql source: %s; trying again in %g s", error, self._wait_s)
        self._due_s = self._source.now() + self._wait_s
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)

    def _disconnect(self) -> None:
        self._connected = False
        self._pages = None
        self._in_statement = False
        self._database.close()

    def _take(self) -> list[Any] | None:
        if not self._connected:
            self._database.open()
            if self._source._listen is not None:
                self._database.listen(self._source._listen)
            self._connected = True
        if self._source._settle_s is not None and self._until is None and not self._find_until():
            return []
        page, is_last = self._next_page()
        rows = self._rows_of(page)
        if is_last:
            self._until = None
            self._over = self._source._poll_s is None
            if self._over:
                return rows or None
            self._pause(self._source._poll_s or 0.0)
        return rows

    def _next_page(self) -> tuple[Page, bool]:
        """The next rows, and whether they were the last ones just now."""
        if not self._source._stream:
            size = self._size + (self._after is not None)
            page = self._database.page(self._asked, self._after, self._until, size)
            return page, len(page.rows) < size
        if self._pages is None:
            self._pages = self._database.stream(self._asked, self._after, self._until, lambda: self._size)
        page = next(self._pages, Page((), []))
        if not page.rows:
            self._pages = None
            self._in_statement = False
        return page, not page.rows

    def _fit(self, rows: Sequence[Any]) -> None:
        """The size of the next page: so that it has no more bytes than a page may, by what some of these rows have."""
        some = [*rows[:SAMPLE], *rows[-SAMPLE:]]
        if isinstance(rows[0], Mapping):
            some = [row.values() for row in some]
        row_bytes = ROW_BYTES + sum(map(sys.getsizeof, itertools.chain.from_iterable(some))) / len(some)
        self._size = max(1, min(self._source._page_rows, self._size * GROWTH, int(PAGE_BYTES / row_bytes)))

    def _rows_of(self, page: Page) -> list[Any]:
        """The rows as dicts, without the one that was asked for although it is known; the last one's key is noted."""
        if not page.rows:
            return []
        names, rows = page
        self._check_names(names)
        order_by, again = self._asked.order_by, not self._in_statement
        keys = _keys_of(names, rows, order_by)
        known = count_known(keys, self._after, self._database.where, order_by, again=again)
        self._in_statement = self._pages is not None
        last = tuple([values[-1] for values in keys])
        place_of(order_by, last)
        self._fit(rows)
        self._after = last
        return _as_dicts(names, rows[known:] if known else rows, self._database.gives_views)

    def _check_names(self, names: tuple[str, ...]) -> None:
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise SourceError(
                f"{self._database.where}: {self._asked} has two columns {twice[0]!r}: name one of them otherwise (AS)"
            )
        for name in self._asked.order_by:
            if name not in names:
                raise SourceError(
                    f"{self._database.where}: {self._asked} has no column {name!r}, which order_by names, but "
                    f"{', '.join(names)}"
                )

    # -- waiting -----------------------------------------------------------------------------------

    def _find_until(self) -> bool:
        """Settle up to which key rows are old enough; False: there are none new, and the pause is set."""
        head, now_s = self._database.last_key(self._asked), self._source.now()
        settle_s, heads = self._source._settle_s or 0.0, self._heads
        if head is not None and (not heads or in_utc(heads[-1][1]) != in_utc(head)):
            heads.append((now_s, head))
        while len(heads) > 1 and heads[1][0] + settle_s <= now_s:
            del heads[0]
        if heads and heads[0][0] + settle_s <= now_s and not self._is_taken(heads[0][1]):
            self._until = heads[0][1]
            return True
        ripe = [seen_s + settle_s - now_s for seen_s, _ in heads if seen_s + settle_s > now_s]
        self._pause(min([self._source._poll_s or 0.0, *ripe[:1]]))
        return False

    def _is_taken(self, key: Key) -> bool:
        return self._after is not None and in_utc(key) == in_utc(self._after)

    def _pause(self, wait_s: float) -> None:
        """Look again after so long; at once where a notification came while we were asking."""
        if self._source._listen is not None and self._database.noticed():
            return
        self._due_s = self._source.now() + wait_s

    def wait(self, longest_s: float | None = None) -> bool:
        """Wait until `next` may have something. False: this reading was stopped."""
        left_s = max(0.0, self._due_s - self._source.now())
        calls = self._calls()
        ready = select.select([self._stop_r, *calls], [], [], left_s if longest_s is None else min(left_s, longest_s))
        if calls and calls[0] in ready[0]:
            self._due_s = 0.0  # A notification, or the end of the connection: asking for rows tells which.
        return not self.stopped

    def _calls(self) -> list[int]:
        """The descriptor of notifications, where there is one."""
        if self._source._listen is None or not self._connected:
            return []
        try:
            fd = self._database.fileno()
        except Exception:
            return []
        return [] if fd is None or fd < 0 else [fd]

    def stop(self) -> None:
        """End `wait`, and the statement that is just running. Any thread may call it."""
        with self._lock:
            if not self.stopped:
                self.stopped = True
                os.write(self._stop_w, b".")
                self._database.interrupt()

    def close(self) -> None:
        """By the thread that reads."""
        with self._lock:
            self.stopped = True
            self._disconnect()
            if self._stop_r >= 0:
                os.close(self._stop_r)
                os.close(self._stop_w)
                self._stop_r = self._stop_w = -1


def _keys_of(names: tuple[str, ...], rows: Sequence[Any], order_by: tuple[str, ...]) -> list[list[Any]]:
    """The values of each column of the key, row by row."""
    at = order_by if isinstance(rows[0], Mapping) else [names.index(name) for name in order_by]
    return [list(map(operator.itemgetter(place), rows)) for place in at]


def _as_dicts(names: tuple[str, ...], rows: Sequence[Any], may_be_views: bool) -> list[Any]:
    """What cannot leave its connection, a view of memory, becomes bytes."""
    if rows and isinstance(rows[0], Mapping):
        return [dict(row) for row in rows]
    if may_be_views and memoryview in set(map(type, itertools.chain.from_iterable(rows))):
        rows = [[bytes(value) if type(value) is memoryview else value for value in row] for row in rows]
    return _dict_maker(names)(rows)


@functools.lru_cache(maxsize=64)
def _dict_maker(names: tuple[str, ...]) -> Callable[[Sequence[Any]], list[Any]]:
    """Makes dicts of rows, in a quarter of the time of ``dict(zip(names, row))``.

    It is written for so many columns; the names themselves are handed to it, and are no part of the code.
    """
    keys, values = ([f"{kind}_{place}" for place in range(len(names))] for kind in ("key", "value"))
    pairs = ", ".join(f"{key}: {value}" for key, value in zip(keys, values, strict=True))
    code = f"lambda {', '.join(keys)}: lambda rows: [{{{pairs}}} for {', '.join(values)}, in rows]"
    made: Callable[[Sequence[Any]], list[Any]] = eval(code)(*names)
    return made


class _Taking:
    """Takes pages apart. ``_page`` gives the next one: [] if there is none just now, None at the end."""

    def __init__(self) -> None:
        self._rows: list[Any] = []
        self._at = 0

    def read(self, max_items: int) -> list[Any] | None:
        if self._at >= len(self._rows):
            found = self._page()
            if not found:
                return found
            self._rows, self._at = found, 0
        rows = self._rows[self._at : self._at + max_items]
        self._at += len(rows)
        if self._at == len(self._rows):
            self._rows, self._at = [], 0  # Or they would be in memory until the next page is, too.
        return rows

    def _page(self) -> list[Any] | None:
        raise NotImplementedError

    def fileno(self) -> int | None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _Feeder(_Taking):
    """A thread reads, so that a slow database never holds up acknowledgements."""

    def __init__(self, reading: _Reading) -> None:
        super().__init__()
        self._reading = reading
        self._handover = Handover(PAGES_AHEAD)
        self._thread = threading.Thread(target=self._run, name="consecution-sql", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._feed()
        except BaseException as raised:
            error = raised
        finally:
            self._reading.close()
        self._handover.end(None if error is None else _explained(error))

    def _feed(self) -> None:
        while (rows := self._reading.next()) is not None:
            if not (self._handover.put(rows) if rows else self._reading.wait()):
                return

    def _page(self) -> list[Any] | None:
        pages = self._handover.take(1)
        return pages[0] if pages else pages

    def fileno(self) -> int:
        return self._handover.fileno()

    def close(self) -> None:
        self._handover.close()
        self._reading.stop()
        self._thread.join(LEAVE_WITHIN_S)


class _CallersReader(_Taking):
    """Reads in the caller's thread; may wait, but not for long."""

    def __init__(self, reading: _Reading) -> None:
        super().__init__()
        self._reading = reading
        self._error: BaseException | None = None

    def _page(self) -> list[Any] | None:
        if self._error is not None:
            raise self._error
        try:
            found = self._reading.next()
            if found == [] and self._reading.wait(LONGEST_READ_S):
                found = self._reading.next()
        except BaseException as error:
            self._error = _explained(error)
            raise self._error from error
        return found

    def fileno(self) -> None:
        return None

    def close(self) -> None:
        self._reading.close()


def _explained(error: BaseException) -> BaseException:
    if isinstance(error, ConsecutionError) or not isinstance(error, Exception):
        return error
    made = SourceError(f"the sql source raised {text_of(error)}")
    made.__cause__ = error
    return made
