from __future__ import annotations

import dataclasses
import datetime
import decimal
import functools
import math
import re
import sys
import threading
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from consecution import Pipeline, SqlSink
from consecution.errors import MissingExtraError, OutageError, UsageError, WorldError
from consecution.sinks import sql
from consecution.sinks.database import MARKS
from consecution.testing.sinks import check_sink
from tests.databases import PostgresDatabase
from tests.sinks.cluster import LOCKED_ROLE
from tests.sinks.test_sql import NASTY

UTC = datetime.UTC


@dataclasses.dataclass
class Distance:
    name: str
    km: Any


class Place(NamedTuple):
    name: str
    km: Any


def sink(postgres: PostgresDatabase, **options: Any) -> SqlSink:
    return SqlSink("sink", postgres.url, **{"table": "t", **options})


def write(postgres: PostgresDatabase, *frames: list[Any], **options: Any) -> None:
    made = sink(postgres, **options)
    made.open()
    try:
        for frame in frames:
            made.write(None, frame)
    finally:
        made.close()


def types_of(postgres: PostgresDatabase, table: str = "t") -> dict[str, str]:
    return dict(
        postgres.query(
            "SELECT column_name::text, data_type::text FROM information_schema.columns WHERE table_name = %s", table
        )
    )


# -- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "name"])
@pytest.mark.parametrize(
    ("items", "options"),
    [
        ([{"name": "a", "km": 1.5}, {"km": 2.5, "name": "b"}], {}),
        ([Distance("a", 1.5), Distance("b", 2.5)], {}),
        ([Place("a", 1.5), Place("b", 2.5)], {}),
        ([("a", 1.5), ["b", 2.5]], {"columns": ["name", "km"]}),
    ],
)
def test_every_kind_of_row_is_taken(
    postgres: PostgresDatabase, items: list[Any], options: dict[str, Any], key: str | None
) -> None:
    write(postgres, items, key=key, **options)

    assert postgres.query("SELECT * FROM t ORDER BY 1") == [("a", 1.5), ("b", 2.5)]
    assert types_of(postgres) == {"name": "text", "km": "double precision"}


@pytest.mark.parametrize("key", [None, "n"])
@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, -5], "bigint"),
        ([1, 2**70], "numeric"),
        ([1, 2.5], "double precision"),
        ([decimal.Decimal("1.10"), 2], "numeric"),
        ([True, None], "boolean"),
        (["é", "tab\tnewline\n\\N", ""], "text"),
        ([b"\x00\xff", b""], "bytea"),
        ([{"a": [1, None]}, {}], "jsonb"),
        ([[1, "x"], []], "jsonb"),
        ([datetime.datetime(2024, 1, 2, 3, 4, 5, 6, UTC)], "timestamp with time zone"),
        ([datetime.datetime(2024, 1, 2, 3, 4)], "timestamp without time zone"),
        ([datetime.date(2024, 1, 2)], "date"),
        ([datetime.time(3, 4, 5, tzinfo=UTC)], "time with time zone"),
        ([datetime.timedelta(days=1, seconds=2)], "interval"),
        ([uuid.UUID(int=5)], "uuid"),
        ([None], "text"),
    ],
)
def test_types_are_those_of_the_first_frame_and_values_stay_as_they_are(
    postgres: PostgresDatabase, values: list[Any], kind: str, key: str | None
) -> None:
    write(postgres, [{"n": n, "x": value} for n, value in enumerate(values)], key=key)

    assert types_of(postgres)["x"] == kind
    assert [x for (x,) in postgres.query("SELECT x FROM t ORDER BY n")] == values


INSTEAD_OF = """
    CREATE VIEW t AS SELECT DISTINCT n, x FROM base;
    CREATE FUNCTION add() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO base VALUES (NEW.n, NEW.x); RETURN NEW; END $$;
    CREATE TRIGGER add INSTEAD OF INSERT ON t FOR EACH ROW EXECUTE FUNCTION add()
"""


@pytest.mark.parametrize(
    "made",
    [
        "CREATE VIEW t AS SELECT * FROM base",
        INSTEAD_OF,
        "CREATE TABLE t (n int, x text); CREATE RULE go AS ON INSERT TO t DO INSTEAD INSERT INTO base VALUES (NEW.*)",
    ],
    ids=["updatable", "instead of", "rule"],
)
def test_rows_go_to_where_a_view_or_a_rule_leads_them(postgres: PostgresDatabase, made: str) -> None:
    postgres.query(f"CREATE TABLE base (n int CHECK (n <> 3), x text); {made}")
    rows = [{"n": n, "x": "%s"} for n in range(5)]

    report = Pipeline(sink(postgres)).run(rows, mode="inline", retries=0)

    assert [failure.item["n"] for failure in report.failures] == [3]
    assert postgres.query("SELECT * FROM base ORDER BY n") == [(n, "%s") for n in (0, 1, 2, 4)]


def test_a_policy_of_row_level_security_refuses_a_row_alone(postgres: PostgresDatabase) -> None:
    postgres.query(
        "CREATE TABLE t (n int, x text); ALTER TABLE t ENABLE ROW LEVEL SECURITY; GRANT INSERT ON t TO PUBLIC;"
        "CREATE POLICY few ON t FOR INSERT WITH CHECK (n <> 3); GRANT ALL ON SCHEMA public TO PUBLIC"
    )
    if not postgres.query("SELECT FROM pg_roles WHERE rolname = 'guest'"):
        postgres.query("CREATE ROLE guest LOGIN")
    url = postgres.cluster.url(postgres.name, user="guest")
    rows = [{"n": n, "x": "a"} for n in range(5)]

    report = Pipeline(SqlSink("sink", url, table="t")).run(rows, mode="inline", retries=0)

    assert [failure.item["n"] for failure in report.failures] == [3]
    assert postgres.query("SELECT n FROM t ORDER BY n") == [(0,), (1,), (2,), (4,)]


def test_a_view_that_nothing_can_be_inserted_into_is_refused(postgres: PostgresDatabase) -> None:
    postgres.query("CREATE TABLE base (n int); CREATE VIEW t AS SELECT DISTINCT n FROM base")

    with pytest.raises(UsageError, match=r"do not fit the table 't'.*cannot insert into view.*INSTEAD OF.*change the"):
        write(postgres, [{"n": 1}])


@pytest.mark.parametrize("key", [None, "n"])
def test_columns_of_a_table_that_is_there_take_what_can_be_converted(
    postgres: PostgresDatabase, key: str | None
) -> None:
    postgres.query("CREATE TABLE t (n int PRIMARY KEY, a text, b smallint, c json, d varchar(3), e text DEFAULT 'e')")

    write(postgres, [{"n": 1, "a": 5, "b": "7", "c": {"x": 1}, "d": "abc"}], key=key)

    assert postgres.query("SELECT * FROM t") == [(1, "5", 7, {"x": 1}, "abc", "e")]


@pytest.mark.parametrize("key", [None, "n"])
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("bigint", [1.0, decimal.Decimal("2.00")]),
        ("numeric", [0.1 + 0.2, decimal.Decimal("1.10"), 2**70]),
        ("numeric(6, 2)", [1.25, decimal.Decimal("1.250"), 3]),
        ("numeric(6, -2)", [1200, 0]),
        ("double precision", [2**53, decimal.Decimal("0.1"), math.inf]),
        ("real", [0.1, 2**24, 1e-3]),
        ("boolean", [1, 0]),
        ("date", [datetime.datetime(2026, 1, 1)]),
        ("timestamp(3)", [datetime.datetime(2026, 1, 1, 13, 0, 0, 5000), datetime.date(2026, 1, 1)]),
        ("varchar(5)", ["abc  "]),
        ("char(3)", ["abc"]),
        ("integer[]", [[1.0, 2], []]),
        ("whole", [7.0]),
    ],
)
def test_a_value_that_fits_a_column_stays_as_it_is(
    postgres: PostgresDatabase, kind: str, values: list[Any], key: str | None
) -> None:
    postgres.query("CREATE DOMAIN whole AS integer")
    postgres.query(f"CREATE TABLE t (n int PRIMARY KEY, x {kind})")

    write(postgres, [{"n": n, "x": value} for n, value in enumerate(values)], key=key)

    found = [x for (x,) in postgres.query("SELECT x FROM t ORDER BY n")]
    assert [as_text(x) for x in found] == [as_text(value) for value in values]


def as_text(value: Any) -> Any:
    """What is the same number, or the same moment, however it is kept."""
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, datetime.date):
        return f"{value.isoformat()}T00:00:00"
    return decimal.Decimal(str(value + 0)) if isinstance(value, int | float) else value


@pytest.mark.parametrize("key", [None, "n"])
@pytest.mark.parametrize(
    ("kind", "good", "wrong"),
    [
        ("bigint", 1, 1000.4),
        ("bigint", 1, decimal.Decimal("1000.5")),
        ("bigint", 1, math.nan),
        ("numeric(6,2)", 1, decimal.Decimal("1.239")),
        ("numeric(6,2)", 1, 1.239),
        ("double precision", 1.5, 2**53 + 1),
        ("double precision", 1.5, decimal.Decimal("0.12345678901234567890")),
        ("real", 1.5, 16777217),
        ("real", 1.5, 0.1234567891),
        ("boolean", True, 70000),
        ("date", datetime.date(2026, 1, 1), datetime.datetime(2026, 1, 1, 13)),
        ("time without time zone", datetime.time(13), datetime.datetime(2026, 1, 1, 13)),
        ("timestamp without time zone", datetime.datetime(2026, 1, 1), datetime.datetime(2026, 1, 1, tzinfo=UTC)),
        (
            "timestamp(3) with time zone",
            datetime.datetime(2026, 1, 1, tzinfo=UTC),
            datetime.datetime(1, 1, 1, 0, 0, 0, 5),
        ),
        ("character varying(5)", "abcde", "abcde "),
        ("integer[]", [1], [1, 1.5]),
    ],
)
def test_a_value_of_which_something_would_be_lost_fails_alone_and_names_the_column(
    postgres: PostgresDatabase, kind: str, good: Any, wrong: Any, key: str | None
) -> None:
    postgres.query(f"CREATE TABLE t (n int PRIMARY KEY, x {kind})")
    rows = [{"n": n, "x": wrong if n == 3 else good} for n in range(6)]

    report = Pipeline(sink(postgres, key=key)).run(rows, mode="inline", retries=0)

    expected = re.escape(f"column 'x' of the table t: expected a value that {kind} holds as it is, found ")
    assert [failure.item["n"] for failure in report.failures] == [3]
    assert re.search(expected, report.failures[0].error)
    assert [n for (n,) in postgres.query("SELECT n FROM t ORDER BY n")] == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("key", [None, "n"])
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"n": 2, "x": "text"}, "invalid input syntax"),
        ({"n": 2, "x": 2**70}, "out of range"),
        ({"n": 2, "x": object()}, "cannot adapt|invalid input syntax"),
        ({"n": 2, "z": 1}, "the row has a column 'z'; the columns are n, x"),
        ({"n": None, "x": 1}, "null value in column"),
        ({"n": 9, "x": 9}, "duplicate key value"),
        ((1, 2), "expected a dict as the rows before, found tuple"),
    ],
)
@pytest.mark.parametrize("robustness", ["track", "robust"])
def test_a_wrong_row_fails_alone_and_says_why(
    postgres: PostgresDatabase, wrong: Any, reason: str, key: str | None, robustness: str
) -> None:
    if reason == "duplicate key value" and key:
        pytest.skip("with a key it replaces the other")
    postgres.query("CREATE TABLE t (n bigint PRIMARY KEY, x bigint)")
    rows = [*({"n": n, "x": n} for n in (1, 9)), wrong, *({"n": n, "x": n} for n in range(20, 30))]

    report = Pipeline(sink(postgres, key=key)).run(rows, mode="inline", robustness=robustness, retries=0)

    assert re.search(reason, report.failures[0].error)
    assert report.failed == 1
    assert postgres.query("SELECT n FROM t ORDER BY n") == [(n,) for n in (1, 9, *range(20, 30))]


@pytest.mark.parametrize("key", [None, "n"])
def test_a_column_that_the_first_row_lacks_is_added_if_the_table_has_it(
    postgres: PostgresDatabase, key: str | None
) -> None:
    postgres.query("CREATE TABLE t (n bigint PRIMARY KEY, x bigint)")
    rows: list[dict[str, Any]] = [{"n": 1}, {"n": 2, "x": 2}, {"n": 3, "y": 3}, {"n": 4, "ctid": 4}, {"n": 5}]

    report = Pipeline(sink(postgres, key=key)).run(rows, mode="inline", retries=0)

    assert [failure.item for failure in report.failures] == rows[2:4]
    assert postgres.query("SELECT n, x FROM t ORDER BY n") == [(1, None), (2, 2), (5, None)]


def test_a_constraint_that_is_deferred_fails_its_row_too(postgres: PostgresDatabase) -> None:
    postgres.query("CREATE TABLE t (n int, UNIQUE (n) DEFERRABLE INITIALLY DEFERRED)")

    report = Pipeline(sink(postgres)).run([{"n": n} for n in (1, 2, 1, 3)], mode="inline", retries=0)

    assert [failure.item for failure in report.failures] == [{"n": 1}]
    assert postgres.query("SELECT n FROM t ORDER BY n") == [(1,), (2,), (3,)]


@pytest.mark.parametrize("name", [*NASTY, "100%s", "%"])
@pytest.mark.parametrize("keyed", [False, True])
def test_any_name_will_do(postgres: PostgresDatabase, name: str, keyed: bool) -> None:
    rows = [{name: 1, "other": 1}, {name: 2, "other": 2}]

    write(postgres, rows, table=name, key=name if keyed else None)

    quoted = '"' + name.replace('"', '""') + '"'
    assert postgres.query(f"SELECT {quoted}, other FROM {quoted} ORDER BY 1") == [(1, 1), (2, 2)]


# -- keys and tables -------------------------------------------------------------------------------


def test_a_row_replaces_the_one_with_the_same_key(postgres: PostgresDatabase) -> None:
    rows = [{"a": 1, "b": 1, "c": "old"}, {"a": 1, "b": 2, "c": "kept"}, {"a": 1, "b": 1, "c": "new"}]

    write(postgres, rows, [{"a": 1, "b": 2, "c": "later"}], key=["a", "b"])
    write(postgres, rows[:1], key=["b", "a"])

    assert sorted(postgres.query("SELECT * FROM t")) == [(1, 1, "old"), (1, 2, "later")]


@pytest.mark.parametrize(
    ("made", "options", "reason"),
    [
        ("CREATE TABLE other (a int)", {"create": False}, "there is no table 't'"),
        ("CREATE TABLE t (z int)", {}, "it has no column 'a', but z"),
        ("CREATE TABLE t (a int)", {"key": "a"}, "there is no unique or exclusion constraint"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_the_remedy(
    postgres: PostgresDatabase, made: str, options: dict[str, Any], reason: str
) -> None:
    postgres.query(made)

    with pytest.raises(UsageError, match=rf"the rows do not fit the table 't' of postgresql.*{reason}.*change the"):
        write(postgres, [{"a": 1}], **options)


def test_a_table_made_in_a_frame_that_failed_is_made_again(postgres: PostgresDatabase) -> None:
    made = sink(postgres)
    made.open()
    with pytest.raises(Exception):
        made.write(None, [{"a": 1}, {"a": object()}])

    made.write(None, [{"b": 2}])

    made.close()
    assert postgres.query("SELECT * FROM t") == [(2,)]


def test_replicas_make_the_table_once(postgres: PostgresDatabase) -> None:
    together = threading.Barrier(4)
    problems: list[BaseException] = []

    def replica(number: int) -> None:
        try:
            made = sink(postgres)
            made.open()
            together.wait(30)
            made.write(None, [{"a": number}])
            made.close()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=replica, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert problems == []
    assert postgres.query("SELECT a FROM t ORDER BY a") == [(0,), (1,), (2,), (3,)]


# -- the start -------------------------------------------------------------------------------------


def test_an_unknown_database_or_role_is_said_at_the_start(postgres: PostgresDatabase) -> None:
    for url in (postgres.cluster.url("nowhere"), postgres.cluster.url(postgres.name, user="nobody_here")):
        with pytest.raises(UsageError, match=r"sink.*does not let us in.*does not exist; mend the url"):
            Pipeline(SqlSink("sink", url, "t")).run([{"a": 1}], mode="inline", robustness="robust")


def test_a_wrong_password_is_said_at_the_start_and_not_shown(postgres: PostgresDatabase) -> None:
    if not postgres.query("SELECT FROM pg_roles WHERE rolname = %s", LOCKED_ROLE):
        postgres.query(f"CREATE ROLE {LOCKED_ROLE} LOGIN PASSWORD 'right'")
    url = postgres.cluster.url(postgres.name, user=LOCKED_ROLE, password="s3cret")

    with pytest.raises(UsageError, match="password authentication failed") as caught:
        SqlSink("sink", url, "t").open()

    assert "s3cret" not in str(caught.value)


def test_a_server_that_is_not_there_is_waited_for_and_then_an_error(
    postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "START_PATIENCE_S", 0.1)

    with pytest.raises(OutageError, match=r"postgresql://postgres@/db\?host=/nowhere cannot be reached"):
        SqlSink("sink", "postgresql://postgres@/db?host=/nowhere", "t").open()


def test_a_url_that_is_none_is_refused() -> None:
    pytest.importorskip("psycopg")

    with pytest.raises(UsageError, match=r"expected postgresql://user@host/database"):
        SqlSink("sink", "postgresql://host/db?colour=red", "t").open()


def test_without_psycopg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'consecution\[postgres\]'") as caught:
        SqlSink("sink", "postgresql://host/db", "t").open()

    assert caught.value.extra == "postgres"


# -- marks -----------------------------------------------------------------------------------------


def test_rows_and_mark_are_one_transaction(postgres: PostgresDatabase) -> None:
    made = sink(postgres)
    made.open()
    assert made.last_mark("me") == (0, b"")

    made.begin_transaction()
    made.write(None, [{"a": 1}])
    made.commit("me", 1, b"\x00redo")
    made.begin_transaction()
    made.write(None, [{"a": 2}])
    made.roll_back()

    assert made.last_mark("me") == (1, b"\x00redo")
    assert postgres.query("SELECT a FROM t") == [(1,)]
    made.close()


def test_a_late_transaction_of_a_dead_process_keeps_the_next_one_out(postgres: PostgresDatabase) -> None:
    late, new = sink(postgres), sink(postgres)
    for made in (late, new):
        made.open()
        made.last_mark("me")
    late.begin_transaction()
    late.write(None, [{"a": 1}])
    new.begin_transaction()
    late.commit("me", 1, b"late")

    new.write(None, [{"a": 1}])
    with pytest.raises(WorldError, match=rf"mark in {MARKS} was expected at 0"):
        new.commit("me", 1, b"new")

    assert new.last_mark("me") == (1, b"late")
    assert postgres.query("SELECT a FROM t") == [(1,)]
    late.close()
    new.close()


def test_a_deadlock_is_nobodys_fault(postgres: PostgresDatabase) -> None:
    write(postgres, [{"a": 1, "b": 0}, {"a": 2, "b": 0}], key="a")
    first, second = sink(postgres, key="a"), sink(postgres, key="a")
    outcomes: list[str] = []

    def finish(made: SqlSink, row: int) -> None:
        try:
            made.write(None, [{"a": row, "b": 1}])
            outcomes.append("written")
        except OutageError:
            outcomes.append("outage")
        finally:
            made.roll_back()

    for made, row in ((first, 1), (second, 2)):
        made.open()
        made.begin_transaction()
        made.write(None, [{"a": row, "b": 1}])
    threads = [threading.Thread(target=finish, args=(first, 2)), threading.Thread(target=finish, args=(second, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sorted(outcomes) == ["outage", "written"]
    first.close()
    second.close()


# -- the contract ----------------------------------------------------------------------------------


def make_rows(url: str, folder: Path) -> SqlSink:
    return SqlSink("rows", url, folder.name)


def test_rows_in_postgres_keep_the_contract(postgres: PostgresDatabase, tmp_path: Path) -> None:
    def read_back(folder: Path) -> list[Any]:
        there = postgres.query("SELECT to_regclass(%s)", f'"{folder.name}"') != [(None,)]
        # Nobody updates or deletes here: rows lie in the order in which they came.
        return [{"n": n} for (n,) in postgres.query(f'SELECT n FROM "{folder.name}" ORDER BY ctid')] if there else []

    items = [{"n": n} for n in range(40)]

    check_sink(functools.partial(make_rows, postgres.url), read_back, items, bad={"unknown": 1}, folder=tmp_path)
