from __future__ import annotations

import contextlib
import datetime
import decimal
import math
import re
import select
import sqlite3
import sys
import time
import tracemalloc
import uuid
import zoneinfo
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from consecution import Map, Pipeline, Producer
from consecution.errors import MissingExtraError, SourceError, UsageError
from consecution.sources import alchemy, database, sql
from consecution.sources.row_keys import count_known, key_at, place_of
from consecution.sources.sql import SqlSource
from consecution.testing.sources import LARGE_BYTES, check_source
from tests.databases import PostgresDatabase

DEADLINE_S = 60.0
ROWS = [{"part": n // 7, "id": n, "text": f"row {n}" if n % 3 else None, "share": n / 3} for n in range(25)]
KEY = ("part", "id")


def make_table(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """A table of rows, put in in another order."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (text, id INTEGER, part INTEGER, share REAL)")
        connection.executemany("INSERT INTO t VALUES (:text, :id, :part, :share)", rows[::-1])
    return path


def connect_to(path: Path) -> Callable[[], Any]:
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path)

    return connect


def way_to(path: Path, way: str) -> dict[str, Any]:
    if way == "connect":
        return {"connect": connect_to(path)}
    if way == "engine":
        sqlalchemy = pytest.importorskip("sqlalchemy")
        return {"engine": sqlalchemy.create_engine(f"sqlite:///{path}")}
    if way == "alchemy":
        pytest.importorskip("sqlalchemy")
        return {"url": f"sqlite+pysqlite:///{path}"}
    return {"url": f"sqlite:///{path}"}


@pytest.fixture(params=["url", "connect", "alchemy", "engine"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    return way_to(make_table(tmp_path / "in.db"), request.param)


@contextlib.contextmanager
def opened(source: SqlSource, position: Any = None) -> Iterator[SqlSource]:
    source.open(msgpack.unpackb(msgpack.packb(position)))
    try:
        yield source
    finally:
        source.close()


def read_some(source: SqlSource, most: int = 1000) -> list[Any] | None:
    """Wait, as the contract says one may, until something comes."""
    deadline_s = time.monotonic() + DEADLINE_S
    while (found := source.read(most)) == []:
        assert time.monotonic() < deadline_s, "nothing came"
        fd = source.fileno()
        if fd is not None:
            select.select([fd], [], [], 1.0)
    return found


def read_all(source: SqlSource, most: int = 1000) -> list[Any]:
    found: list[Any] = []
    while (some := read_some(source, most)) is not None:
        found += some
    return found


def read_exactly(source: SqlSource, count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        some = read_some(source, count - len(found))
        assert some is not None
        found += some
    return found


def error_of(**options: Any) -> str:
    with opened(SqlSource(**options)) as source, pytest.raises(SourceError) as raised:
        read_all(source)
    return str(raised.value)


def ordered(row: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(row.items()))


# -- the contract ----------------------------------------------------------------------------------

ENDLESS = "WITH RECURSIVE n(id) AS (SELECT 0 UNION ALL SELECT id + 1 FROM n WHERE id < {count}) SELECT id"


def test_it_keeps_the_contract_of_sources(tmp_path: Path) -> None:
    count = LARGE_BYTES // 30_000
    check_source(
        lambda folder: SqlSource(f"sqlite:///{_in(folder)}", table="t", order_by=KEY, page_rows=4),
        ROWS,
        folder=tmp_path,
        make_bad=lambda folder: SqlSource(f"sqlite:///{_in(folder)}", table="t", order_by="part", page_rows=4),
        make_large=lambda folder: SqlSource(
            f"sqlite:///{_in(folder)}",
            query=ENDLESS.format(count=count) + ", randomblob(30000) AS x FROM n",
            order_by="id",
        ),
    )


def _in(folder: Path) -> Path:
    path = folder / "in.db"
    return path if path.exists() else make_table(path)


def test_it_keeps_the_contract_with_a_cursor_of_postgresql(postgres: PostgresDatabase, tmp_path: Path) -> None:
    fill_postgres(postgres)

    check_source(
        lambda folder: SqlSource(postgres.url, table="t", order_by=KEY, stream=True, page_rows=4),
        ROWS,
        folder=tmp_path,
    )


def fill_postgres(postgres: PostgresDatabase) -> None:
    postgres.query("CREATE TABLE t (text text, id bigint, part int, share float8)")
    for row in ROWS[::-1]:
        postgres.query("INSERT INTO t VALUES (%s, %s, %s, %s)", row["text"], row["id"], row["part"], row["share"])


# -- every way to a database -----------------------------------------------------------------------


@pytest.mark.parametrize("may_block", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_opened_at_any_position_it_gives_the_rest_exactly(way: dict[str, Any], stream: bool, may_block: bool) -> None:
    source = SqlSource(**way, table="t", order_by=KEY, page_rows=5, stream=stream)
    source.may_block = may_block
    positions: list[Any] = [None]
    with opened(source):
        while (some := read_some(source, 1)) is not None:
            assert some == [ROWS[len(positions) - 1]]
            positions.append(source.position())

    for count, position in enumerate(positions):
        with opened(source, position):
            assert source.position() == position
            assert read_all(source) == ROWS[count:]


def test_the_values_of_a_query_go_beside_it(way: dict[str, Any]) -> None:
    alchemic = "engine" in way or "sqlite+" in way.get("url", "")
    query = "SELECT id, text FROM t WHERE text LIKE 'row %' AND id > " + (":least" if alchemic else "? ;")
    params = {"least": 20} if alchemic else [20]

    with opened(SqlSource(**way, query=query, params=params, order_by="id", page_rows=2)) as source:
        found = read_all(source)

    assert found == [{"id": row["id"], "text": row["text"]} for row in ROWS if row["id"] > 20 and row["text"]]


def test_values_may_have_names_in_a_connection_of_ones_own(tmp_path: Path) -> None:
    connect = connect_to(make_table(tmp_path / "in.db"))
    query = "SELECT id FROM t WHERE id > :least"

    for options in ({}, {"paramstyle": "named"}):
        source = SqlSource(connect=connect, query=query, params={"least": 20}, order_by="id", page_rows=2, **options)
        with opened(source):
            assert [row["id"] for row in read_all(source)] == [21, 22, 23, 24]


def test_a_selectable_of_sqlalchemy_is_a_query(tmp_path: Path) -> None:
    sa = pytest.importorskip("sqlalchemy")
    engine = sa.create_engine(f"sqlite:///{make_table(tmp_path / 'in.db')}")
    table = sa.table("t", sa.column("id"), sa.column("part"))

    with opened(SqlSource(engine=engine, query=sa.select(table).where(table.c.part == 1), order_by="id")) as source:
        assert read_all(source) == [{"id": n, "part": 1} for n in range(7, 14)]


def test_dialects_without_row_values_compare_column_by_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sqlalchemy")
    monkeypatch.setattr(alchemy, "ROW_VALUES", ())
    options = {**way_to(make_table(tmp_path / "in.db"), "alchemy"), "table": "t", "order_by": ("part", "share", "id")}

    with opened(SqlSource(**options, page_rows=3)) as source:
        assert read_all(source) == ROWS


# A name or a value that would do harm if it became part of a statement.
NASTY = "x\"'`; DROP TABLE t; -- 100% :a ?"


def test_no_name_and_no_value_becomes_part_of_a_statement(tmp_path: Path) -> None:
    path = make_table(tmp_path / "in.db")
    values = sorted([f"{NASTY} {n}" for n in range(9)])
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        quoted = database.quote_name(NASTY)
        connection.execute(f"CREATE TABLE {quoted} ({quoted} text)")
        connection.executemany(f"INSERT INTO {quoted} VALUES (?)", [(value,) for value in values])

    for way in ("url", "alchemy"):
        with opened(SqlSource(**way_to(path, way), table=NASTY, order_by=NASTY, page_rows=2)) as source:
            assert read_all(source) == [{NASTY: value} for value in values]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (len(ROWS),)


# -- in shares ---------------------------------------------------------------------------------------

WHOLE_KEYS: list[Any] = [-7, -6, -2, -1, 0, 1, 2, 3, 4, 9, 16, 2**40 + 1]


def read_shares(source: SqlSource, shares: int) -> list[list[Any]]:
    found = []
    for share in source.split(shares) or []:
        assert isinstance(share, SqlSource)
        with opened(share):
            found.append([row["id"] for row in read_all(share)])
    return found


@pytest.mark.parametrize("way", ["url", "connect", "alchemy"])
def test_each_row_is_in_one_share_and_each_share_is_in_order(tmp_path: Path, way: str) -> None:
    rows = [{"part": 0, "id": key, "text": None, "share": 0.0} for key in WHOLE_KEYS]
    source = SqlSource(**way_to(make_table(tmp_path / "in.db", rows), way), table="t", order_by="id", page_rows=2)

    assert read_shares(source, 3) == [[key for key in WHOLE_KEYS if key % 3 == share] for share in range(3)]


@pytest.mark.parametrize("kind", ["bigint", "numeric", "float8"])
@pytest.mark.parametrize("scheme", ["postgresql://", "postgresql+psycopg://"])
def test_each_row_of_postgresql_is_in_one_share_whatever_numbers_its_key_has(
    postgres: PostgresDatabase, kind: str, scheme: str
) -> None:
    keys = WHOLE_KEYS if kind == "bigint" else [*WHOLE_KEYS, 0.5, 1.5, -0.25]
    postgres.query(f"CREATE TABLE t (id {kind})")
    for key in keys:
        postgres.query("INSERT INTO t VALUES (%s)", key)
    url = postgres.url.replace("postgresql://", scheme)

    found = read_shares(SqlSource(url, table="t", order_by="id"), 3)

    assert sorted(float(key) for share in found for key in share) == sorted(map(float, keys))
    assert all(share == sorted(share) and share for share in found)


def test_rows_that_are_added_later_have_their_share_and_a_share_goes_on_where_it_was(tmp_path: Path) -> None:
    path = make_table(tmp_path / "in.db", [{"part": 0, "id": 1, "text": "", "share": 0.0}])
    even, odd = SqlSource(f"sqlite:///{path}", table="t", order_by="id").split(2) or []
    assert isinstance(even, SqlSource)
    assert isinstance(odd, SqlSource)
    with opened(odd):
        assert len(read_all(odd)) == 1
        position = odd.position()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany("INSERT INTO t (id) VALUES (?)", [(2,), (3,), (4,)])

    with opened(odd, position):
        assert [row["id"] for row in read_all(odd)] == [3]
    with opened(even):
        assert [row["id"] for row in read_all(even)] == [2, 4]


def test_an_engine_is_read_in_one_place(tmp_path: Path) -> None:
    producer = Producer("sql", table="t", order_by="id", **way_to(make_table(tmp_path / "in.db"), "engine"))

    with pytest.raises(UsageError, match="is read in one place"):
        Pipeline(producer * 2 | Map(str)).run()


def test_names_and_percent_signs_pass_through_a_driver_that_formats(postgres: PostgresDatabase) -> None:
    quoted = database.quote_name("50% %s")
    postgres.query(f"CREATE TABLE t ({quoted.replace('%', '%%')} text)".replace("%%", "%"))
    postgres.query("INSERT INTO t VALUES ('a%'), ('b'), ('c%')")

    source = SqlSource(postgres.url, query="SELECT * FROM t WHERE t::text LIKE '%!%%' ESCAPE '!'", order_by="50% %s")
    with opened(source):
        assert read_all(source) == [{"50% %s": "a%"}, {"50% %s": "c%"}]


# -- keys ------------------------------------------------------------------------------------------

DAY = datetime.datetime(2026, 3, 29, 1, 2, 3, 45)
KEYS: list[Any] = [
    True,
    2**70,
    -(2**63),
    1.1,
    float("inf"),
    "ü \udce9",
    b"\0\xff",
    bytearray(b"x"),
    decimal.Decimal("1.10"),
    DAY,
    DAY.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
    DAY.date(),
    DAY.time(),
    datetime.timedelta(days=-1, microseconds=7),
    uuid.UUID(int=7),
]


@pytest.mark.parametrize("value", KEYS, ids=repr)
def test_a_key_comes_back_from_the_journal_as_it_was(value: Any) -> None:
    packed = msgpack.packb(place_of(["a", "b"], (value, 1)), unicode_errors="surrogatepass")
    back = key_at(["a", "b"], msgpack.unpackb(packed, unicode_errors="surrogatepass"))

    assert back == (value, 1)
    assert type(back[0]) is type(value)
    assert str(back[0]) == str(value)


def test_keys_and_values_of_postgresql_come_back_as_they_were(postgres: PostgresDatabase) -> None:
    postgres.query(
        "CREATE TABLE t (n numeric, moment timestamptz, day date, took interval, u uuid, b bytea, j jsonb, a int[])"
    )
    for n in range(5):
        postgres.query(
            "INSERT INTO t VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            decimal.Decimal(f"{n}.10"),
            DAY.replace(tzinfo=datetime.UTC, microsecond=n),
            DAY.date() + datetime.timedelta(days=n),
            datetime.timedelta(seconds=n),
            uuid.UUID(int=n),
            bytes([n, 0]),
            f'{{"n": {n}}}',
            [n, n],
        )
    with opened(SqlSource(postgres.url, table="t", order_by="n")) as source:
        rows = read_all(source)

    assert [(row["n"], row["u"], row["b"], row["j"], row["a"]) for row in rows] == [
        (decimal.Decimal(f"{n}.10"), uuid.UUID(int=n), bytes([n, 0]), {"n": n}, [n, n]) for n in range(5)
    ]
    for column in ("n", "moment", "day", "took", "u", "b"):
        source = SqlSource(postgres.url, table="t", order_by=column, page_rows=1)
        with opened(source):
            assert read_exactly(source, 2) == rows[:2]
            position = source.position()
        with opened(source, position):
            assert read_all(source) == rows[2:]


@pytest.mark.parametrize("page_rows", [1, 2, 7, 1000])
@pytest.mark.parametrize("stream", [False, True])
def test_a_key_that_does_not_tell_rows_apart_is_refused_wherever_pages_end(
    tmp_path: Path, page_rows: int, stream: bool
) -> None:
    path = make_table(tmp_path / "in.db")

    problem = error_of(url=f"sqlite:///{path}", table="t", order_by="part", page_rows=page_rows, stream=stream)

    assert "order_by=['part'] does not tell the rows apart" in problem
    assert "there are 0 and then 0" in problem


def test_a_row_with_the_key_of_the_last_one_that_was_read_is_no_reason_to_pass_it_over(tmp_path: Path) -> None:
    path = make_table(tmp_path / "in.db")
    source = SqlSource(f"sqlite:///{path}", table="t", order_by="id", poll_s=0.0)
    with opened(source):
        read_exactly(source, len(ROWS))
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("INSERT INTO t (id) VALUES (24)")
        with pytest.raises(SourceError, match="24 and then 24"):
            read_some(source)


NAIVE = datetime.datetime(2026, 1, 1)
AWARE = NAIVE.replace(tzinfo=datetime.UTC)
SUMMER, WINTER = (
    (datetime.datetime(2026, 10, 25, 0, 50, tzinfo=datetime.UTC) + datetime.timedelta(minutes=minutes)).astimezone(
        zoneinfo.ZoneInfo("Europe/Berlin")
    )
    for minutes in (0, 20)
)
"""2:50, and 20 minutes later: 2:10."""


@pytest.mark.parametrize(
    ("values", "before", "expected"),
    [
        ([[1, 2]], None, 0),
        ([[1, 2.5, decimal.Decimal(3)]], (0,), 0),
        ([[1, 2]], (1,), 1),
        ([["b", "a"]], ("c",), 0),  # the database knows in which order texts come
        ([[NAIVE, AWARE]], None, 0),
        ([[1, 1], ["b", "a"]], (1, "b"), 1),
        ([[SUMMER, WINTER]], None, 0),
        ([[SUMMER, WINTER]], (SUMMER,), 1),
        ([[WINTER], [7]], (WINTER.astimezone(datetime.UTC), 7), 1),
        ([[datetime.datetime.max.replace(tzinfo=SUMMER.tzinfo)]], None, 0),
    ],
)
def test_a_row_that_was_asked_for_again_is_known(values: Any, before: Any, expected: int) -> None:
    assert count_known(values, before, "db", ["id", "x"]) == expected


@pytest.mark.parametrize(
    ("values", "before"),
    [
        ([[2, 1]], None),
        ([[1, 1]], None),
        ([[1, 2, 2.0]], None),
        ([[1]], (2,)),
        ([[1, 1]], (1,)),
        ([[math.nan, 2, 1]], None),
        ([["a", "b", "a"]], ("a",)),
        ([["b", "b"]], ("a",)),
        ([[AWARE, NAIVE, NAIVE]], None),
        ([[WINTER, SUMMER]], None),
        ([[SUMMER, WINTER, WINTER.astimezone(datetime.UTC)]], None),
        ([[1, 1], [2, 2]], None),
    ],
)
def test_rows_that_do_not_come_in_order_are_refused(values: Any, before: Any) -> None:
    with pytest.raises(SourceError, match="does not tell the rows apart, or does not order them"):
        count_known(values, before, "db", ["id"])


def test_rows_of_the_hour_in_which_clocks_are_set_back_come_once_and_in_order(postgres: PostgresDatabase) -> None:
    postgres.query("CREATE TABLE t (at timestamptz, id int)")
    for number in range(9):
        at = SUMMER.astimezone(datetime.UTC) + datetime.timedelta(minutes=10 * number)
        postgres.query("INSERT INTO t VALUES (%s, %s)", at, number)
    url = f"{postgres.url}{'&' if '?' in postgres.url else '?'}options=-c%20timezone%3DEurope/Berlin"
    found: list[int] = []
    position = None
    while len(found) < 9:
        with opened(SqlSource(url, table="t", order_by=["at", "id"], poll_s=0.0, settle_s=0.0), position) as source:
            found += ids_of(read_exactly(source, 1))
            position = source.position()

    assert found == list(range(9))


def test_rows_without_a_key_are_left_out_until_they_have_one(tmp_path: Path) -> None:
    path = make_table(tmp_path / "in.db", [*ROWS[:2], {**ROWS[2], "id": None}])
    source = SqlSource(f"sqlite:///{path}", table="t", order_by="id", poll_s=0.0)
    with opened(source):
        assert read_exactly(source, 2) == ROWS[:2]
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE t SET id = 2 WHERE id IS NULL")
        assert read_exactly(source, 1) == [ROWS[2]]


def test_the_row_that_was_read_last_may_be_gone(tmp_path: Path) -> None:
    path = make_table(tmp_path / "in.db")
    source = SqlSource(f"sqlite:///{path}", table="t", order_by="id", page_rows=3)
    with opened(source):
        read_exactly(source, 5)
        position = source.position()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM t WHERE id = 4")

    with opened(source, position):
        assert read_all(source) == ROWS[5:]


# -- what is wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "where to read from: give one of url, connect, engine; found none"),
        ({"url": "sqlite:///x", "connect": print}, "found url, connect"),
        ({"url": "sqlite:///x"}, "what to read: give one of table, query; found none"),
        ({"url": "in.db", "table": "t"}, "url='in.db': expected sqlite:///path, postgresql"),
        ({"url": "sqlite:///x", "table": "t"}, "order_by=None: expected the column"),
        ({"url": "sqlite:///x", "table": "t", "order_by": ["a", "a"]}, "expected the column"),
        ({"url": "sqlite:///x", "table": "t", "order_by": "a", "poll_s": -1}, "poll_s=-1: expected a number of sec"),
        ({"url": "sqlite:///x", "table": "t", "order_by": "a", "page_rows": 0}, "page_rows=0: expected a whole num"),
        ({"url": "sqlite:///x", "table": "t", "order_by": "a", "settle_s": 1}, "settle_s goes with poll_s or listen"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError) as raised:
        SqlSource(**options)

    assert problem in str(raised.value)


def test_what_the_database_says_against_the_statement_ends_the_run(way: dict[str, Any]) -> None:
    assert "no such table: nope" in error_of(**way, table="nope", order_by="id")
    assert "syntax error" in error_of(**way, query="SELECT FROM", order_by="id")


def test_a_column_that_is_not_there_or_twice_is_named(tmp_path: Path) -> None:
    url = f"sqlite:///{make_table(tmp_path / 'in.db')}"

    assert "table 't' has no column 'nope', which order_by names, but text, id" in error_of(
        url=url, table="t", order_by="nope"
    )
    assert "the query has two columns 'x': name one of them otherwise" in error_of(
        connect=lambda: Renamed(connect_to(tmp_path / "in.db")()), query="SELECT * FROM t", order_by="id"
    )


class Renamed:
    """A connection, and its cursors, whose rows have two columns of one name, as a join has."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def cursor(self) -> Any:
        return Renamed(self._inner.cursor())

    @property
    def description(self) -> Any:
        return [("x",), ("id",), ("x",), ("y",)]


Renamed.__module__ = "sqlite3"


def test_a_file_that_is_not_there_is_an_error_at_once_and_is_not_made(tmp_path: Path) -> None:
    assert "there is no file" in error_of(url=f"sqlite:///{tmp_path / 'in.db'}", table="t", order_by="id")
    assert not (tmp_path / "in.db").exists()


def test_a_position_of_another_order_is_refused(tmp_path: Path) -> None:
    source = SqlSource(f"sqlite:///{make_table(tmp_path / 'in.db')}", table="t", order_by="id")
    with pytest.raises(SourceError, match=r"order_by=\['id'\], but the position .* was taken with order_by=\['part'\]"):
        source.open([["part", "", 3]])
    with pytest.raises(SourceError, match="the position 17 is none of a sql source"):
        source.open(17)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'consecution\[sql\]'"):
        SqlSource("oracle://x", table="t", order_by="id").open(None)
    source = SqlSource("postgresql://x", table="t", order_by="id")
    with opened(source), pytest.raises(MissingExtraError, match=r"pip install 'consecution\[postgres\]'"):
        read_all(source)


def test_a_connection_without_a_paramstyle_says_what_to_give() -> None:
    assert "whose paramstyle is None: give paramstyle=, one of qmark" in error_of(
        connect=object, table="t", order_by="id"
    )
    assert "connect() raised ZeroDivisionError" in error_of(connect=lambda: 1 / 0, table="t", order_by="id")


def test_a_password_is_shown_nowhere() -> None:
    pytest.importorskip("sqlalchemy")
    for url in ("postgresql://me:secret@nowhere/db", "postgresql+psycopg://me:secret@nowhere/db"):
        assert "secret" not in repr(SqlSource(url, table="t", order_by="id"))


# -- rows of all kinds -----------------------------------------------------------------------------


def test_views_of_memory_and_rows_that_are_dicts_become_plain(tmp_path: Path) -> None:
    path = make_table(tmp_path / "in.db", ROWS[1:3])

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path)
        connection.text_factory = memoryview
        return connection

    def connect_to_dicts() -> sqlite3.Connection:
        connection = sqlite3.connect(path)
        connection.row_factory = lambda cursor, row: dict(zip((c[0] for c in cursor.description), row, strict=True))
        return connection

    with opened(SqlSource(connect=connect, table="t", order_by="id")) as source:
        assert [row["text"] for row in read_all(source)] == [b"row 1", b"row 2"]
    with opened(SqlSource(connect=connect_to_dicts, table="t", order_by="id")) as source:
        assert read_all(source) == ROWS[1:3]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("count", "text", "most_bytes"), [(30_000, "'row ' || id", 4 << 20), (400, "zeroblob(100000)", 14 << 20)]
)
def test_rows_need_little_memory_many_or_large(
    tmp_path: Path, count: int, text: str, most_bytes: int, stream: bool
) -> None:
    """All rows at once would be 12 MB of small ones, or 40 MB of large ones."""
    url = f"sqlite:///{make_table(tmp_path / 'in.db')}"
    query = f"{ENDLESS.format(count=count - 1)}, {text} AS text FROM n"
    tracemalloc.start()
    try:
        with opened(SqlSource(url, query=query, order_by="id", stream=stream)) as source:
            found = 0
            while (some := read_some(source)) is not None:
                found += len(some)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert found == count
    assert peak < most_bytes, f"{peak} bytes"


FETCHES = "SELECT query FROM pg_stat_activity WHERE datname = %s AND state = 'idle in transaction'"


@pytest.mark.parametrize("scheme", ["postgresql://", "postgresql+psycopg://"])
def test_a_stream_leaves_the_rows_with_postgresql_until_they_are_asked_for(
    postgres: PostgresDatabase, scheme: str
) -> None:
    """What its session did last, while it waits in the midst of the rows: it has fetched so many of them, by name."""
    postgres.query("CREATE TABLE t AS SELECT * FROM generate_series(1, 1000) AS id")
    url = postgres.url.replace("postgresql://", scheme)
    source = SqlSource(url, table="t", order_by="id", stream=True, page_rows=10)
    source.may_block = True
    with opened(source):
        for _ in range(20):
            read_exactly(source, 25)
            (said,) = (query for (query,) in postgres.query(FETCHES, postgres.name))
            portion = re.match(r'FETCH FORWARD (\d+) FROM "', said)
            assert portion, f"it has all of its rows at once: {said}"
            assert int(portion[1]) <= alchemy.BUFFERED_ROWS

        assert ids_of(read_all(source)) == list(range(501, 1001))


def count_selects(statements: list[str]) -> int:
    return sum(statement.startswith("SELECT") for statement in statements)


def test_while_nobody_reads_a_few_pages_wait(tmp_path: Path) -> None:
    fetched: list[str] = []

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(tmp_path / "in.db")
        connection.set_trace_callback(fetched.append)
        return connection

    make_table(tmp_path / "in.db")
    with opened(SqlSource(connect=connect, table="t", order_by="id", page_rows=2)) as source:
        read_exactly(source, 1)
        feeder = source._reader
        assert isinstance(feeder, sql._Feeder)
        deadline_s = time.monotonic() + DEADLINE_S
        while count_selects(fetched) < 4 or not feeder._handover._waiting_for_room:
            assert time.monotonic() < deadline_s, "it has stopped too soon, or goes on reading"
            time.sleep(0.001)

        assert count_selects(fetched) == 4
        assert len(read_exactly(source, len(ROWS) - 1)) == len(ROWS) - 1


# -- rows that come later --------------------------------------------------------------------------


def add(path: Path, *ids: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany("INSERT INTO t (id) VALUES (?)", [(number,) for number in ids])


def ids_of(rows: list[Any]) -> list[int]:
    return [row["id"] for row in rows]


@pytest.mark.parametrize("may_block", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_rows_that_are_added_come_and_the_stream_does_not_end(tmp_path: Path, stream: bool, may_block: bool) -> None:
    path = make_table(tmp_path / "in.db", [])
    source = SqlSource(f"sqlite:///{path}", table="t", order_by="id", poll_s=0.01, stream=stream, page_rows=2)
    source.may_block = may_block
    with opened(source):
        assert source.read(10) == []
        for first in (1, 4, 7):
            add(path, first, first + 1, first + 2)
            assert ids_of(read_exactly(source, 3)) == [first, first + 1, first + 2]
        position = source.position()
    add(path, 20)
    with opened(source, position):
        assert ids_of(read_exactly(source, 1)) == [20]
        assert source.read(1) == []


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_rows_settle_before_they_are_read(tmp_path: Path) -> None:
    """An id that is committed late is seen, if it is not later than that."""
    path = make_table(tmp_path / "in.db", [])
    source = SqlSource(f"sqlite:///{path}", table="t", order_by="id", poll_s=0.0, settle_s=10, page_rows=1)
    source.may_block = True
    source.now = clock = Clock()
    monkey_wait = pytest.MonkeyPatch()
    monkey_wait.setattr(sql, "LONGEST_READ_S", 0.0)
    try:
        with opened(source):
            add(path, 2)
            assert source.read(10) == []
            clock.now_s += 9.0
            add(path, 5)
            assert source.read(10) == []
            add(path, 1)  # Taken before 2, and committed now.
            clock.now_s += 1.0
            assert ids_of(read_exactly(source, 2)) == [1, 2]
            assert source.read(10) == []
            add(path, 4)
            clock.now_s += 9.0
            assert ids_of(read_exactly(source, 2)) == [4, 5]
            clock.now_s += 100.0
            assert source.read(10) == []
    finally:
        monkey_wait.undo()


def test_a_notification_wakes_it(postgres: PostgresDatabase) -> None:
    """Nobody looks for an hour unless PostgreSQL calls."""
    postgres.query("CREATE TABLE t (id bigserial PRIMARY KEY)")
    for url in (postgres.url, postgres.url.replace("postgresql:", "postgresql+psycopg:")):
        postgres.query("TRUNCATE t RESTART IDENTITY")
        source = SqlSource(url, table="t", order_by="id", poll_s=3600, listen='new "rows": %s')
        with opened(source):
            for number in (1, 2, 3):
                assert source.read(10) == []
                _wait_for_listener(postgres)
                postgres.query("INSERT INTO t DEFAULT VALUES")
                postgres.query("SELECT pg_notify(%s, '')", 'new "rows": %s')
                assert read_exactly(source, 1) == [{"id": number}]


def _wait_for_listener(postgres: PostgresDatabase) -> None:
    """Until its session has nothing more to ask."""
    deadline_s = time.monotonic() + DEADLINE_S
    quiet = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND state = 'idle' AND pid <> pg_backend_pid()"
    while not postgres.query(quiet, postgres.name):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_in_postgresql_the_order_of_transactions_leaves_no_gap(postgres: PostgresDatabase) -> None:
    """A query that reads only what was written by transactions before the oldest one that is still open."""
    import psycopg

    postgres.query("CREATE TABLE t (id bigserial PRIMARY KEY, txid xid8 DEFAULT pg_current_xact_id())")
    query = "SELECT id, txid::text::bigint AS txid FROM t WHERE txid < pg_snapshot_xmin(pg_current_snapshot())"
    source = SqlSource(postgres.url, query=query, order_by=("txid", "id"), poll_s=0.01)
    with opened(source), psycopg.connect(postgres.url) as late:
        late.execute("INSERT INTO t DEFAULT VALUES")
        postgres.query("INSERT INTO t DEFAULT VALUES")
        postgres.query("INSERT INTO t DEFAULT VALUES")
        assert source.read(10) == []
        late.commit()

        assert ids_of(read_exactly(source, 3)) == [1, 2, 3]


# -- a database that is away -----------------------------------------------------------------------


def test_a_connection_that_is_cut_off_is_made_again(
    postgres: PostgresDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    postgres.query("CREATE TABLE t (id bigserial PRIMARY KEY)")
    postgres.query("INSERT INTO t SELECT FROM generate_series(1, 10)")
    for stream in (False, True):
        source = SqlSource(postgres.url, table="t", order_by="id", poll_s=0.01, page_rows=1, stream=stream)
        with opened(source):
            assert ids_of(read_exactly(source, 3)) == [1, 2, 3]
            assert postgres.end_sessions()
            assert ids_of(read_exactly(source, 7)) == list(range(4, 11))
            assert postgres.end_sessions()
            postgres.query("INSERT INTO t VALUES (11)")
            assert ids_of(read_exactly(source, 1)) == [11]
        postgres.query("DELETE FROM t WHERE id = 11")
    assert "trying again in 0.05 s" in caplog.text


def test_a_database_that_is_locked_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.0)
    path = make_table(tmp_path / "in.db")
    source = SqlSource(f"sqlite:///{path}", table="t", order_by="id", poll_s=0.01)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with opened(source):
            assert source.read(10) == []
            writer.execute("COMMIT")

            assert read_exactly(source, len(ROWS)) == ROWS


def test_one_that_has_never_answered_is_given_up_and_one_that_has_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "START_PATIENCE_S", 0.0)
    calls: list[int] = []

    def connect() -> Any:
        calls.append(1)
        if len(calls) > 3:
            raise ZeroDivisionError
        raise sqlite3.OperationalError("away")

    assert "the database of connect() cannot be reached: away" in error_of(connect=connect, table="t", order_by="id")
    assert len(calls) == 1
    source = SqlSource(connect=connect, table="t", order_by="id")
    with opened(source, [["id", "", 7]]), pytest.raises(SourceError, match="ZeroDivisionError"):
        read_all(source)
    assert len(calls) == 4


# -- in a pipeline ---------------------------------------------------------------------------------


def test_a_table_goes_through_a_pipeline_of_processes(tmp_path: Path) -> None:
    url = f"sqlite:///{make_table(tmp_path / 'in.db')}"
    pipeline = Pipeline(Producer("sql", url=url, table="t", order_by=["part", "id"]) | Map(ordered, name="ordered"))

    report = pipeline.run(mode="process", robustness="robust", state_dir=tmp_path / "state", sync="process")

    assert (report.emitted, report.completed, report.exit_code) == (len(ROWS), len(ROWS), 0)


def test_a_table_is_consumed_in_the_callers_thread(way: dict[str, Any]) -> None:
    found: list[Any] = []

    Pipeline(Producer("sql", **way, table="t", order_by="id") | Map(found.append, name="collect")).consume()

    assert found == ROWS


def test_an_engine_is_read_where_it_was_made(tmp_path: Path) -> None:
    engine = way_to(make_table(tmp_path / "in.db"), "engine")

    assert SqlSource(**engine, table="t", order_by="id").in_parent
    assert not SqlSource("sqlite:///x", table="t", order_by="id").in_parent
