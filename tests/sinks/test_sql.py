from __future__ import annotations

import collections
import dataclasses
import math
import multiprocessing
import re
import sqlite3
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from consecution import Pipeline, Producer, SqlSink
from consecution.errors import OutageError, UsageError, WorldError
from consecution.sinks import sql, sqlite

Place = collections.namedtuple("Place", "name km")


@dataclasses.dataclass
class Distance:
    name: str
    km: Any


class Other(NamedTuple):
    x: Any
    y: Any


class Database:
    def __init__(self, path: Path) -> None:
        self.path = path

    def sink(self, **options: Any) -> SqlSink:
        return SqlSink("sink", f"sqlite:///{self.path}", **{"table": "t", **options})

    def write(self, *frames: list[Any], **options: Any) -> None:
        sink = self.sink(**options)
        sink.open()
        try:
            for frame in frames:
                sink.write(None, frame)
        finally:
            sink.close()

    def query(self, query: str = 'SELECT * FROM "t"') -> list[Any]:
        connection = sqlite3.connect(self.path, isolation_level=None)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()


@pytest.fixture
def db(tmp_path: Path) -> Database:
    return Database(tmp_path / "out.db")


# -- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "options"),
    [
        ([{"name": "a", "km": 1.5}, {"km": 2.5, "name": "b"}], {}),
        ([Distance("a", 1.5), Distance("b", 2.5)], {}),
        ([Place("a", 1.5), Place("b", 2.5)], {}),
        ([("a", 1.5), ("b", 2.5)], {"columns": ["name", "km"]}),
        ([["a", 1.5], ("b", 2.5)], {"columns": ("name", "km")}),
        ([collections.OrderedDict(name="a", km=1.5), {"name": "b", "km": 2.5}], {}),
        ([Place("a", 1.5), Other("b", 2.5)], {}),
        ([{"km": 1.5, "name": "a"}, {"name": "b", "km": 2.5}], {"columns": ["name", "km"]}),
    ],
)
def test_every_kind_of_row_is_taken(db: Database, items: list[Any], options: dict[str, Any]) -> None:
    db.write(items, **options)

    assert db.query() == [("a", 1.5), ("b", 2.5)]
    assert db.query("SELECT name, type FROM pragma_table_info('t')") == [("name", "TEXT"), ("km", "REAL")]


def test_one_column_is_enough(db: Database) -> None:
    @dataclasses.dataclass
    class One:
        x: int

    db.write([One(1), One(2)], table="dataclass")
    db.write([(1,), (2,)], table="tuple", columns="x")

    assert db.query("SELECT x FROM dataclass") == db.query("SELECT x FROM tuple") == [(1,), (2,)]


def test_a_column_that_a_dict_lacks_is_null(db: Database) -> None:
    db.write([{"a": 1, "b": 2}, {"a": 3}])

    assert db.query() == [(1, 2), (3, None)]


def test_a_first_row_that_is_too_short_says_what_is_needed(db: Database) -> None:
    report = Pipeline(db.sink(columns=["a", "b"])).run([(1,)], mode="inline", robustness="track")

    assert report.failures[0].error == "UsageError: the row has 1 values; the columns are a, b: as many are needed"


@pytest.mark.parametrize(
    ("first", "wrong", "reason"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, "the row has a column 'b'; the columns are a"),
        ({"a": 1}, (1,), "expected a dict as the rows before, found tuple"),
        (Other(1, 2), (1,), "1 supplied|the row has 1 values"),
        (Other(1, 2), {"x": 1}, "expected a tuple as the rows before, found dict"),
        (Distance("a", 1), 7, "expected a Distance as the rows before, found int"),
        (Distance("a", 1), {"name": "b", "km": 2}, "expected a Distance as the rows before, found dict"),
        (Distance("a", 1), Other(1, 2), "expected a Distance as the rows before, found Other"),
        ({"a": 1}, {"a": 2**64}, "too large"),
        ({"a": 1}, {"a": 2**63}, r"column 'a' of the table t: .*2\*\*63 - 1, found one of 64 bits, .*make it text"),
        ({"a": 1}, {"a": 10**5000}, "found one of 16610 bits"),
        ({"a": 1}, {"a": "x\ud800"}, r"column 'a' of the table t: .*half a surrogate pair in 'x\\ud800'"),
        ({"a": 1}, {"a": object()}, r"column 'a' of the table \w+: SQLite takes .*, found object"),
        (
            {"a": 1},
            {"a": Decimal("1.50")},
            r"found Decimal: Decimal\('1.50'\); .*sqlite3.register_adapter\(Decimal, str\)",
        ),
    ],
)
def test_a_wrong_row_fails_alone_and_says_why(db: Database, first: Any, wrong: Any, reason: str) -> None:
    report = Pipeline(db.sink()).run([first, wrong, first], mode="inline", robustness="track")

    assert re.search(reason, report.failures[0].error)
    assert report.failed == 1
    assert len(db.query()) == 2


def test_nan_fails_alone_instead_of_becoming_null(db: Database) -> None:
    items = [{"a": 1.5, "b": "x"}, {"a": math.nan, "b": "y"}, {"a": math.inf, "b": "z"}, {"a": -math.inf, "b": "z"}]

    report = Pipeline(db.sink()).run(items, mode="inline", robustness="track")

    assert [failure.item["b"] for failure in report.failures] == ["y"]
    assert "column 'a' of the table t: SQLite has no NaN, and would store NULL" in report.failures[0].error
    assert db.query() == [(1.5, "x"), (math.inf, "z"), (-math.inf, "z")]


def test_numbers_of_numpy_are_numbers(db: Database) -> None:
    numpy = pytest.importorskip("numpy")
    one, half, yes = numpy.int64(1), numpy.float32(0.5), numpy.bool_(True)

    db.write([(one, half, yes, numpy.str_("a"))], [(2, numpy.int8(3), None, "b")], columns=["i", "f", "b", "s"])

    assert db.query() == [(1, 0.5, 1, "a"), (2, 3.0, None, "b")]
    assert db.query('SELECT typeof(i), typeof(f), typeof(b), typeof(s) FROM "t" LIMIT 1') == [
        ("integer", "real", "integer", "text")
    ]


@pytest.mark.parametrize("make", [lambda np: np.datetime64("2026-01-31", "ns"), lambda np: np.longdouble(1)])
def test_what_sqlite_would_hold_as_bytes_of_numpy_is_refused(db: Database, make: Any) -> None:
    numpy = pytest.importorskip("numpy")

    with pytest.raises(TypeError, match=r"SQLite has no type for .*; give it as a number, text or bytes"):
        db.write([(make(numpy),)], columns=["t"])


@pytest.mark.parametrize("kind", [tuple, list])
def test_rows_of_another_length_fail_alone_and_say_what_is_needed(db: Database, kind: type) -> None:
    items = [kind(values) for values in [(1, 2), (3,), (4, 5, 6), (7, 8)]]

    report = Pipeline(db.sink(columns=["a", "b"])).run(items, mode="inline", robustness="track")

    assert [failure.error for failure in report.failures] == [
        f"UsageError: the row has {count} values; the columns are a, b: as many are needed" for count in (1, 3)
    ]
    assert db.query() == [(1, 2), (7, 8)]


def test_a_wrong_first_row_spoils_no_other(db: Database) -> None:
    report = Pipeline(db.sink()).run(["text", {"a": 1}, {"a": 2}], mode="inline", robustness="track")

    assert [failure.item for failure in report.failures] == ["text"]
    assert "a row must be a dict" in report.failures[0].error
    assert db.query() == [(1,), (2,)]


def test_a_row_that_fails_behind_the_first_leaves_the_columns_as_they_are(db: Database) -> None:
    sink = db.sink()
    sink.open()
    assert sink.last_mark("owner") == (0, b"")

    sink.begin_transaction()
    sink.write(None, [{"a": 1, "b": "first"}])
    with pytest.raises(ValueError, match="NaN"):
        sink.write(None, [{"a": math.nan}])
    sink.write(None, [{"b": "short"}])
    sink.commit("owner", 1, b"")
    sink.begin_transaction()
    sink.write(None, [{"a": 2, "b": "whole"}])
    sink.commit("owner", 2, b"")

    sink.close()
    assert db.query() == [(1, "first"), (None, "short"), (2, "whole")]


def test_a_first_row_after_a_restart_that_lacks_a_column_costs_no_other(db: Database, tmp_path: Path) -> None:
    def run(*rows: dict[str, Any]) -> Any:
        with Pipeline(Producer("manual", name="rows") | db.sink()).start(
            mode="inline", state_dir=tmp_path / "state", retries=0
        ) as running:
            for row in rows:
                running.push(row)
            return running.stop()

    run({"a": 1, "b": 1, "c": 1})
    wrong = [{"a": 5, "c": 5, "d": 5}, {"a": 7, "rowid": 7}, {"A": 8}]
    report = run({"b": 2}, {"a": 3, "b": 3}, {"b": 4}, *wrong, {"c": 6})

    assert [failure.item for failure in report.failures] == wrong
    assert all("the row has a column" in failure.error for failure in report.failures)
    assert db.query() == [(1, 1, 1), (None, 2, None), (3, 3, None), (None, 4, None), (None, None, 6)]


def test_columns_that_were_given_are_not_added_to(db: Database) -> None:
    db.query("CREATE TABLE t (a, b)")

    with pytest.raises(UsageError, match=r"the row has a column 'b'; the columns are a"):
        db.write([{"a": 1}, {"a": 2, "b": 2}], columns=["a"])


def test_an_empty_first_row_fails_alone_and_the_next_one_names_the_columns(db: Database) -> None:
    report = Pipeline(db.sink()).run([{}, {"a": 1}, {}], mode="inline", robustness="track")

    assert [failure.item for failure in report.failures] == [{}]
    assert "the first row is an empty dict, and names no columns" in report.failures[0].error
    assert db.query() == [(1,), (None,)]


def test_a_tuple_without_names_asks_for_columns(db: Database) -> None:
    with pytest.raises(UsageError, match=r"a row is a tuple without names; give columns=\[\.\.\.\]"):
        db.write([(1, 2)])


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None], "INTEGER"),
        ([1, 2.5], "REAL"),
        ([2**53, 2.5, None], "REAL"),
        ([2**53 + 1, 2.5], ""),
        ([2.5, -(2**63)], ""),
        (["1"], "TEXT"),
        ([b"1"], "BLOB"),
        ([1, "1"], ""),
        ([None], ""),
        ([True], "INTEGER"),
    ],
)
def test_types_are_those_of_the_first_frame_and_values_stay_as_they_are(
    db: Database, values: list[Any], kind: str
) -> None:
    db.write([{"x": value} for value in values])

    assert db.query("SELECT type FROM pragma_table_info('t')") == [(kind,)]
    assert [x for (x,) in db.query()] == values


NASTY = ['a"b', "a'b", "select", "x; DROP TABLE t", "é", "a b", "[a]", "`a`"]


@pytest.mark.parametrize("name", NASTY)
def test_any_name_will_do(db: Database, name: str) -> None:
    rows = [{name: 1, "other": 1}, {name: 1, "other": 2}]

    db.write(rows, table=name, key=name)

    quoted = '"' + name.replace('"', '""') + '"'
    assert db.query(f"SELECT {quoted}, other FROM {quoted}") == [(1, 2)]


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 3, 7, sqlite.COLUMNS_AT_ONCE, sqlite.COLUMNS_AT_ONCE + 1, 40])
def test_frames_of_every_size_are_written_row_after_row(db: Database, columns: int) -> None:
    names = [f"c{column}" for column in range(columns)]
    at_once = max(1, sqlite.VALUES_AT_ONCE // columns)
    sizes = [1, at_once - 1, at_once, at_once + 1, 3 * at_once + 5]
    rows = [tuple(range(number, number + columns)) for number in range(sum(sizes))]
    left = iter(rows)

    db.write(*[[next(left) for _ in range(size)] for size in sizes], columns=names)

    assert db.query("SELECT * FROM t ORDER BY rowid") == rows


def test_what_a_table_does_with_a_row_it_does_with_each_of_a_large_frame(db: Database) -> None:
    db.query("CREATE TABLE t (a UNIQUE ON CONFLICT REPLACE, b)")
    db.query("CREATE TABLE seen (a, rows)")
    db.query("CREATE TRIGGER see AFTER INSERT ON t BEGIN INSERT INTO seen SELECT new.a, count(*) FROM t; END")

    db.write([{"a": number % 400, "b": number} for number in range(1000)])

    assert db.query("SELECT a, rows FROM seen ORDER BY rowid") == [(n % 400, min(n + 1, 400)) for n in range(1000)]
    assert sorted(db.query()) == [(a, a + 800 if a < 200 else a + 400) for a in range(400)]


def test_the_row_that_a_table_refuses_fails_alone_in_a_large_frame(db: Database) -> None:
    db.query("CREATE TABLE t (a CHECK (a <> 777), b)")

    report = Pipeline(db.sink(columns=["a", "b"])).run(
        [(number, "x") for number in range(2000)], mode="inline", robustness="track", batch_size=2000
    )

    assert [failure.item for failure in report.failures] == [(777, "x")]
    assert "CHECK constraint failed: a <> 777" in report.failures[0].error
    assert db.query("SELECT a FROM t ORDER BY rowid") == [(a,) for a in range(2000) if a != 777]


def test_a_row_replaces_the_one_with_the_same_key(db: Database) -> None:
    rows = [{"a": 1, "b": 1, "c": "old"}, {"a": 1, "b": 2, "c": "kept"}, {"a": 1, "b": 1, "c": "new"}]

    db.write(rows, [{"a": 1, "b": 2, "c": "later"}], key=["a", "b"])
    db.write(rows[:1], key=["b", "a"])

    assert sorted(db.query()) == [(1, 1, "old"), (1, 2, "later")]


def test_rows_that_are_all_key_stand_there_once(db: Database) -> None:
    db.write([{"a": 1}, {"a": 1}, {"a": 2}], key="a")

    assert db.query() == [(1,), (2,)]


def test_a_key_that_is_null_fails_alone(db: Database) -> None:
    rows = [{"a": 1, "b": 1}, {"a": None, "b": 2}, {"b": 3}, {"a": 4, "b": 4}]

    report = Pipeline(db.sink(key="a")).run(rows, mode="inline", robustness="track")

    assert [failure.item for failure in report.failures] == rows[1:3]
    assert "NOT NULL constraint failed" in report.failures[0].error
    assert db.query() == [(1, 1), (4, 4)]


def test_a_key_that_is_no_column_is_refused(db: Database) -> None:
    with pytest.raises(UsageError, match="key column 'z' is not among the columns a, b"):
        db.write([{"a": 1, "b": 2}], key="z")


@pytest.mark.parametrize("options", [{}, {"create": False}, {"key": "a"}])
def test_names_that_sqlite_takes_for_one_are_refused_and_no_value_is_dropped(
    db: Database, options: dict[str, Any]
) -> None:
    db.query("CREATE TABLE t (a PRIMARY KEY, É, é)")

    with pytest.raises(UsageError, match=r"the columns 'a' and 'A' are one and the same to SQLite; change the table"):
        db.write([{"a": 1, "A": 2}], **options)
    db.write([{"a": 1, "É": 2, "é": 3}], **options)

    assert db.query() == [(1, 2, 3)]


@pytest.mark.parametrize("given", [("a", "a"), (1,), [None]])
@pytest.mark.parametrize("option", ["key", "columns"])
def test_names_that_are_none_are_refused(db: Database, option: str, given: Any) -> None:
    with pytest.raises(UsageError, match=rf"{option}=.*: expected names of columns, each once"):
        db.sink(**{option: given})


# -- tables ----------------------------------------------------------------------------------------


def test_a_table_that_is_there_is_used_as_it_is(db: Database) -> None:
    db.query('CREATE TABLE "t" (b TEXT, a INTEGER PRIMARY KEY, c DEFAULT 5)')

    db.write([{"a": 1, "b": "x"}, {"a": 1, "b": "y"}], key="a", create=False)

    assert db.query() == [("y", 1, 5)]


@pytest.mark.parametrize(
    ("made", "options"),
    [
        ("CREATE TABLE other (a)", {"create": False}),
        ("CREATE TABLE t (z)", {}),
        ("CREATE TABLE t (a)", {"key": "a"}),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_the_remedy(db: Database, made: str, options: dict[str, Any]) -> None:
    db.query(made)

    with pytest.raises(UsageError, match=r"the rows do not fit the table 't' of .*out\.db: .*change the table"):
        db.write([{"a": 1}], **options)


@pytest.mark.parametrize(
    ("made", "mended", "reason"),
    [
        (
            "CREATE TRIGGER q BEFORE INSERT ON t WHEN new.a = 55 BEGIN SELECT raise(ROLLBACK, 'no 55'); END",
            "DROP TRIGGER q",
            "no 55",
        ),
        ("INSERT INTO t VALUES (55, 'there')", "DELETE FROM t WHERE b = 'there'", "UNIQUE constraint failed: t.a"),
    ],
)
def test_a_row_that_takes_back_the_transaction_ends_the_run_and_loses_no_other(
    db: Database, tmp_path: Path, made: str, mended: str, reason: str
) -> None:
    db.query("CREATE TABLE t (a UNIQUE ON CONFLICT ROLLBACK, b)")
    db.query(made)

    def run() -> Any:
        rows = [{"a": number, "b": "x"} for number in range(100)]
        return Pipeline(db.sink()).run(rows, mode="inline", state_dir=tmp_path / "state", batch_size=10)

    for _ in range(2):
        with pytest.raises(WorldError, match=f"{reason}.*whole transaction.*let it say ABORT"):
            run()
    db.query(mended)
    report = run()

    assert report.completed == 100
    assert db.query("SELECT a FROM t ORDER BY a") == [(number,) for number in range(100)]


@pytest.mark.parametrize("url", ["sqlite:///", "mysql://x", "out.db", ""])
def test_another_database_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"expected sqlite:///path or postgresql://user@host/database"):
        SqlSink("sink", url, table="t")


def test_a_table_made_in_a_frame_that_failed_is_made_again(db: Database) -> None:
    sink = db.sink()
    sink.open()
    with pytest.raises(Exception):
        sink.write(None, [{"a": 1}, {"a": object()}])

    sink.write(None, [{"b": 2}])

    sink.close()
    assert db.query() == [(2,)]


def test_a_wrong_row_in_the_first_transaction_leaves_the_columns_as_the_first_row_has_named_them(db: Database) -> None:
    items = [{"a": 1, "b": "x"}, 7, {"a": 2}, {"a": 3, "b": "y"}]

    report = Pipeline(db.sink()).run(items, mode="inline", retries=0)

    assert [failure.item for failure in report.failures] == [7]
    assert db.query() == [(1, "x"), (2, None), (3, "y")]


def test_a_file_that_is_no_database_is_an_error_and_left_open_by_nobody(db: Database) -> None:
    db.path.write_bytes(b"no database at all" * 100)

    with pytest.raises(UsageError, match=r"sink.*out\.db cannot be opened: file is not a database; .*another url"):
        db.sink().open()


def test_a_place_where_no_file_can_be_is_named(db: Database) -> None:
    db.path.mkdir()

    with pytest.raises(UsageError, match=r"sink.*out\.db cannot be opened: unable to open database file; .*url"):
        db.sink().open()


# -- several at once -------------------------------------------------------------------------------


def test_readers_do_not_hold_up_the_writer_nor_see_half_a_frame(db: Database) -> None:
    db.write([{"a": 0}])
    reader = sqlite3.connect(db.path, isolation_level=None)
    reader.execute("BEGIN")
    before = reader.execute("SELECT count(*) FROM t").fetchone()

    db.write([{"a": 1}, {"a": 2}])

    assert reader.execute("SELECT count(*) FROM t").fetchone() == before == (1,)
    reader.close()
    assert len(db.query()) == 3


def write_frames(path: Path, replica: int) -> None:
    rows = [[{"replica": replica, "frame": frame, "row": row} for row in range(20)] for frame in range(30)]
    Database(path).write(*rows, key=["replica", "frame", "row"])


def test_several_processes_write_into_one_file(db: Database) -> None:
    spawn = multiprocessing.get_context("spawn")
    replicas = [spawn.Process(target=write_frames, args=(db.path, replica)) for replica in range(3)]

    for process in replicas:
        process.start()
    for process in replicas:
        process.join(timeout=60)

    assert [process.exitcode for process in replicas] == [0, 0, 0]
    assert db.query("SELECT replica, count(*) FROM t GROUP BY replica") == [(n, 600) for n in range(3)]


def test_a_lock_is_waited_for_and_then_fails_the_frame(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.01)
    monkeypatch.setattr(sql, "PATIENCE_S", 0.01)
    db.write([{"a": 0}])
    holder = sqlite3.connect(db.path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")

    with pytest.raises(OutageError, match=r"out\.db: database is locked"):
        db.write([{"a": 1}])

    monkeypatch.setattr(sql, "PATIENCE_S", 30.0)
    waiting = threading.Thread(target=db.write, args=([{"a": 2}],))
    waiting.start()
    holder.execute("COMMIT")
    waiting.join(timeout=30)
    holder.close()
    assert db.query() == [(0,), (2,)]


@pytest.mark.parametrize(("sync", "level"), [("power", 2), ("process", 1)])
def test_sync_says_what_a_commit_survives(db: Database, sync: str, level: int) -> None:
    sink = db.sink()
    sink.sync = sync
    sink.open()

    assert isinstance(sink._database, sqlite.Sqlite)
    assert sink._database._run("PRAGMA synchronous").fetchone() == (level,)
    assert sink._database._run("PRAGMA journal_mode").fetchone() == ("wal",)
    sink.close()


def test_a_key_may_be_anywhere_in_a_table_larger_than_the_default_cache(db: Database) -> None:
    # Every frame touches every page; 64 bytes of padding make more than the 2 MiB that SQLite keeps.
    frames = [[{"a": a, "b": b, "pad": "x" * 64} for a in range(1500)] for b in range(30)]

    db.write(*frames, *frames[:5], key=["a", "b"])

    assert db.query("SELECT count(*), count(DISTINCT a), max(b) FROM t") == [(45_000, 1500, 29)]
    assert db.query("PRAGMA integrity_check") == [("ok",)]
