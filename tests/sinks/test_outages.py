"""A database that goes away in the middle: the pipeline is held back, and each row is there once."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consecution import Map, Pipeline, Producer, SqlSink
from consecution.errors import OutageError
from consecution.protocol.values import BatchId
from consecution.sink import Sink
from consecution.sinks import sql, sqlite
from consecution.sinks.postgres import Postgres
from tests.databases import PostgresDatabase
from tests.engines.misbehaving import Gate, wait_for

COUNT = 200
ROWS = [{"n": n} for n in range(COUNT)]
OPTIONS: dict[str, Any] = {"batch_size": 20, "sync": "process", "retries": 0, "robustness": "robust"}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Outages are logged; what they say is looked at where that matters."""
    with caplog.at_level(logging.CRITICAL, logger="consecution"):
        yield


def numbers_in(postgres: PostgresDatabase) -> Counter[int]:
    return Counter(n for (n,) in postgres.query("SELECT n FROM t"))


class CutOff(SqlSink):
    """Its connection is ended once at a certain moment of its second transaction."""

    def __init__(self, postgres: PostgresDatabase, moment: str) -> None:
        super().__init__("sink", postgres.url, "t")
        self.postgres, self.moment = postgres, moment
        self.transactions = 0
        self.cuts = 0

    def _at(self, moment: str) -> bool:
        return moment == self.moment and self.transactions == 2 and not self.cuts

    def _cut_at(self, moment: str) -> None:
        if self._at(moment):
            self.cuts = self.postgres.end_sessions()

    def begin_transaction(self) -> None:
        self.transactions += 1
        self._cut_at("before begin")
        super().begin_transaction()

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        self._cut_at("before write")
        super().write(batch_id, items)
        self._cut_at("after write")

    def commit(self, owner: str, number: int, redo: bytes) -> None:
        self._cut_at("before commit")
        super().commit(owner, number, redo)
        if self._at("after commit"):
            self._cut_at("after commit")
            raise OutageError("the answer to the commit was lost")


@pytest.mark.parametrize("moment", ["before begin", "before write", "after write", "before commit", "after commit"])
def test_a_connection_that_is_ended_costs_no_row_and_doubles_none(postgres: PostgresDatabase, moment: str) -> None:
    sink = CutOff(postgres, moment)
    rows = [*ROWS[:130], {"unknown": 1}, *ROWS[130:]]

    report = Pipeline(sink).run(rows, mode="inline", max_pending=2, **OPTIONS)  # several transactions

    assert sink.cuts == 1
    assert numbers_in(postgres) == Counter(range(COUNT))
    assert [failure.item for failure in report.failures] == [{"unknown": 1}]


class CutOffAtTheStart(SqlSink):
    """Its connection is ended when it was just made."""

    def __init__(self, postgres: PostgresDatabase) -> None:
        super().__init__("sink", postgres.url, "t")
        self.postgres = postgres
        self.cuts = 0

    def last_mark(self, owner: str) -> tuple[int, bytes]:
        if not self.cuts:
            self.cuts = self.postgres.end_sessions()
        return super().last_mark(owner)


def test_a_connection_that_is_ended_at_the_very_first_start_is_made_anew(postgres: PostgresDatabase) -> None:
    sink = CutOffAtTheStart(postgres)

    report = Pipeline(sink).run(ROWS, mode="inline", **OPTIONS)

    assert sink.cuts == 1
    assert (report.failed, report.completed) == (0, COUNT)
    assert numbers_in(postgres) == Counter(range(COUNT))


@pytest.mark.parametrize("robustness", ["none", "robust"])
def test_a_connection_that_is_ended_before_it_is_set_up_is_made_anew(
    postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch, robustness: str
) -> None:
    connect, cuts = Postgres._connect, []

    def connect_and_cut_once(self: Postgres) -> Any:
        made = connect(self)
        if not cuts:
            cuts.append(postgres.end_sessions())
        return made

    monkeypatch.setattr(Postgres, "_connect", connect_and_cut_once)
    sink = SqlSink("sink", postgres.url, "t")

    report = Pipeline(sink).run(ROWS, mode="inline", **{**OPTIONS, "robustness": robustness})

    assert cuts == [1]
    assert (report.failed, report.completed) == (0, COUNT)
    assert numbers_in(postgres) == Counter(range(COUNT))


@pytest.mark.parametrize("robustness", ["none", "track"])
def test_without_a_journal_a_write_is_repeated_too(postgres: PostgresDatabase, robustness: str) -> None:
    sink = SqlSink("sink", postgres.url, "t")

    def items() -> Iterator[Any]:
        for row in ROWS:
            if row["n"] == COUNT // 2:
                postgres.end_sessions()
            yield row

    report = Pipeline(sink).run(items(), mode="inline", **{**OPTIONS, "robustness": robustness})

    assert (report.failed, report.completed) == (0, COUNT)
    assert numbers_in(postgres) == Counter(range(COUNT))


def test_item_by_item_a_write_is_repeated_too(postgres: PostgresDatabase) -> None:
    pipeline = Pipeline(SqlSink("sink", postgres.url, "t"))

    pipeline.begin()
    for row in ROWS:
        pipeline.push(row)
    postgres.end_sessions()
    pipeline.end()

    assert numbers_in(postgres) == Counter(range(COUNT))


class Patient(SqlSink):
    """Writes a line for each time it waits."""

    waits: Path

    def open(self) -> None:
        sql.START_PATIENCE_S = 0.1  # In this worker: at a start that is not the first it does not count.
        super().open()

    def waiting(self) -> Any:
        with open(self.waits, "a") as file:
            file.write("waits\n")
        return super().waiting()


def test_a_server_that_restarts_is_waited_for_and_the_worker_not_killed(
    postgres: PostgresDatabase, tmp_path: Path
) -> None:
    gate = Gate("gate", {"n": COUNT // 2}, tmp_path)
    sink = Patient("sink", postgres.url, "t")
    sink.waits = tmp_path / "waits"
    timeout_s = 1.0  # Waits double from 0.05 s: seven of them take 3 s and more.

    with Pipeline(Producer(ROWS) | gate | sink).start(mode="process", timeout_s=timeout_s, **OPTIONS) as running:
        wait_for(gate.reached.exists)
        postgres.cluster.stop(signal.SIGQUIT)
        try:
            gate.opened.touch()
            wait_for(lambda: sink.waits.exists() and len(sink.waits.read_text().splitlines()) > 6)
        finally:
            postgres.cluster.start()
        report = running.wait(60)

    assert (report.restarts, report.failed, report.completed) == (0, 0, COUNT)
    assert numbers_in(postgres) == Counter(range(COUNT))


def test_a_worker_that_starts_while_the_server_is_away_waits_for_it(postgres: PostgresDatabase, tmp_path: Path) -> None:
    gate = Gate("gate", {"n": COUNT // 2}, tmp_path)
    sink = Patient("sink", postgres.url, "t")
    sink.waits = tmp_path / "waits"

    with Pipeline(Producer(ROWS) | gate | sink).start(mode="process", **OPTIONS) as running:
        wait_for(gate.reached.exists)
        postgres.cluster.stop(signal.SIGQUIT)
        try:
            os.kill(running.pids()["sink.0"], signal.SIGKILL)  # type: ignore[attr-defined]
            wait_for(lambda: sink.waits.exists() and len(sink.waits.read_text().splitlines()) > 3)
        finally:
            postgres.cluster.start()
        gate.opened.touch()
        report = running.wait(60)

    assert (report.restarts, report.failed, report.completed) == (1, 0, COUNT)
    assert numbers_in(postgres) == Counter(range(COUNT))


# -- a file --------------------------------------------------------------------------------------


def numbers_in_file(path: Path, table: str = "t") -> Counter[int]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return Counter(n for (n,) in connection.execute(f"SELECT n FROM {table}"))


class LosesACommit(SqlSink):
    """Its first commit that holds rows does not happen."""

    lost = False

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        super().write(batch_id, items)
        self.has_rows = True

    def commit(self, owner: str, number: int, redo: bytes) -> None:
        if not self.lost and self.has_rows:
            self.lost = True
            self.roll_back()
            raise OutageError("the commit was lost")
        super().commit(owner, number, redo)


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_a_lost_commit_with_items_that_failed_is_repeated(mode: str, tmp_path: Path) -> None:
    sink = LosesACommit("sink", f"sqlite:///{tmp_path / 'out.db'}", "t")
    rows = [*ROWS[:5], {"unknown": 1}, *ROWS[5:12], {"unknown": 2}, *ROWS[12:16]]

    report = Pipeline(Producer(rows) | sink).run(mode=mode, **OPTIONS)

    assert (report.completed, report.failed) == (18, 2)
    assert numbers_in_file(tmp_path / "out.db") == Counter(range(16))


def test_a_file_that_another_program_has_locked_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.01)
    sink = Patient("sink", f"sqlite:///{tmp_path / 'out.db'}", "t")
    sink.waits = tmp_path / "waits"
    other = sqlite3.connect(tmp_path / "out.db", isolation_level=None, check_same_thread=False)

    def items() -> Iterator[Any]:
        yield from ROWS[:100]
        other.execute("BEGIN IMMEDIATE")
        yield from ROWS[100:]

    with Pipeline(Producer(items) | sink).start(mode="thread", **OPTIONS) as running:
        wait_for(lambda: sink.waits.exists() and len(sink.waits.read_text().splitlines()) > 2)
        other.execute("COMMIT")
        report = running.wait(60)

    other.close()
    assert (report.failed, report.completed) == (0, COUNT)
    assert numbers_in_file(tmp_path / "out.db") == Counter(range(COUNT))


def test_a_file_that_is_locked_when_a_run_goes_on_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.01)
    monkeypatch.setattr(sql, "START_PATIENCE_S", 0.01)
    path = tmp_path / "out.db"
    locks: list[sqlite3.Connection] = []

    class Releasing(SqlSink):
        def waiting(self) -> Any:
            if locks:
                locks.pop().close()
            return super().waiting()

    def run(last: int) -> Any:
        sink = Releasing("sink", f"sqlite:///{path}", "t")
        with Pipeline(Producer("manual", name="rows") | sink).start(
            mode="inline", state_dir=tmp_path / "state", **OPTIONS
        ) as running:
            running.push({"n": last})
            return running.stop()

    run(1)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("CREATE TABLE other (a)")
    locks.append(other)
    report = run(2)

    assert (locks, report.failed, report.completed) == ([], 0, 2)
    assert numbers_in_file(path) == Counter([1, 2])


class Full(SqlSink):
    """Its file may not grow until it has waited twice."""

    def open(self) -> None:
        super().open()
        self.waited = 0
        self._limit(8)

    def _limit(self, pages: int) -> None:
        assert isinstance(self._database, sqlite.Sqlite)
        self._database._run(f"PRAGMA max_page_count={pages}")

    def waiting(self) -> Any:
        self.waited += 1
        if self.waited == 2:
            self._limit(1_000_000)
        return super().waiting()


def test_a_full_disk_is_waited_for_and_costs_no_row(tmp_path: Path) -> None:
    rows = [{"n": n, "text": "x" * 500} for n in range(COUNT)]
    sink = Full("sink", f"sqlite:///{tmp_path / 'out.db'}", "t")

    report = Pipeline(sink).run(rows, mode="inline", **OPTIONS)

    assert sink.waited >= 2
    assert report.failed == 0
    assert numbers_in_file(tmp_path / "out.db") == Counter(range(COUNT))


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_several_sinks_and_replicas_share_a_file(tmp_path: Path, mode: str) -> None:
    url = f"sqlite:///{tmp_path / 'out.db'}"
    sinks = [SqlSink("a", url, "a") * 2, SqlSink("b", url, "b")]

    report = Pipeline(Producer(ROWS) | sinks).run(mode=mode, **OPTIONS)

    assert (report.failed, report.completed) == (0, COUNT)
    assert numbers_in_file(tmp_path / "out.db", "a") == Counter(range(COUNT))
    assert numbers_in_file(tmp_path / "out.db", "b") == Counter(range(COUNT))


# -- sinks of one's own ----------------------------------------------------------------------------


class Away(Sink):
    """A plain sink whose world is away for some calls."""

    def __init__(self) -> None:
        super().__init__("away")
        self.calls = 0
        self.kept: list[Any] = []
        self.refused: list[Any] = []

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        self.calls += 1
        if self.calls in (2, 3):
            self.refused += items
            raise OutageError("the world is away")
        self.kept += items


def test_a_plain_sink_may_say_that_its_world_is_away(caplog: pytest.LogCaptureFixture) -> None:
    sink = Away()

    with caplog.at_level(logging.WARNING, logger="consecution"):
        report = Pipeline(sink).run(ROWS, mode="inline", **OPTIONS)

    assert (report.failed, sink.kept) == (0, ROWS)
    assert [record.getMessage().split(": ")[-1] for record in caplog.records] == [
        "the world is away; trying again in 0.05 s",
        "the world is away; trying again in 0.1 s",
    ]


class AwayFor(Sink):
    """Its world is away for so many seconds from the start."""

    def __init__(self, seconds: float) -> None:
        super().__init__("away")
        self.seconds = seconds

    def open(self) -> None:
        self.back_s = time.monotonic() + self.seconds

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        if time.monotonic() < self.back_s:
            raise OutageError("the world is away")


def test_what_waits_behind_a_sink_whose_world_is_away_is_not_run_again() -> None:
    """Longer than a batch may go unheard of, which is four times the timeout."""
    report = Pipeline(Map(abs, "before") | AwayFor(6.0)).run(range(COUNT), mode="process", timeout_s=1.0, **OPTIONS)

    assert (report.failed, report.completed, report.replayed) == (0, COUNT, 0)


def test_without_a_journal_an_outage_fails_the_items_of_its_call_and_no_others() -> None:
    sink = Away()

    report = Pipeline(sink).run(ROWS, mode="inline", **{**OPTIONS, "robustness": "track"})

    assert [failure.item for failure in report.failures] == sink.refused
    assert len(sink.kept) + len(sink.refused) == COUNT
