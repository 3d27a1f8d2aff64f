"""How many rows a second does each source give, and each sink take, beside the loop that one would write by hand?

    python -m benchmarks.sources_sinks --rounds 3
    python -m benchmarks.sources_sinks tcp sql --quick

PostgreSQL is a server of this run's own, as in the tests: where none is installed, its works are left out.

Behind each source a number is taken from each row and summed up; before each sink the rows are made. The loop does
just that. Ours does it ``inline`` without guarantees, where only the library's own cost is felt, and ``robust``: in
processes, every row once whatever dies, as it comes out of the box.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import platform
import queue
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contest import ROOT, Outcome, Question, Run, run_child
from benchmarks.stamps import FirstRead, StampedSink, StampedSource, outcome, stamp_first
from consecution import (
    Csv,
    FilesSource,
    HttpSource,
    IterableSource,
    JsonLines,
    Map,
    Parquet,
    Pipeline,
    PipeSource,
    Producer,
    Sink,
    Source,
    SqlSink,
    SqlSource,
    TcpSource,
    TextLines,
    ZmqSource,
)
from tests.sinks.cluster import Cluster, Unavailable

QUICK = 20
AIM = 0.8
COLUMNS = ("n", "customer", "cents")
ROWS_PER_COMMIT = 1000
ROWS_PER_GROUP = 100_000
LONGEST_WAIT_MS = 60_000
POSTGRES = "CONSECUTION_BENCH_POSTGRES"
"""The variable of the environment with the url of a database for those works that need one."""
MODES: dict[str, dict[str, Any]] = {
    "inline none": {"mode": "inline", "robustness": "none"},
    "robust": {"mode": "process", "robustness": "robust"},
}

Row = dict[str, Any]


def make_row(n: int) -> Row:
    return {"n": n, "customer": f"customer {n % 1000}", "cents": n * 7 % 10_000}


def make_line(n: int) -> str:
    return f"{n:08d} customer {n % 1000} has paid {n * 7 % 10_000}"


def number_of(line: str) -> int:
    return int(line[:8])


def sum_lines(lines: Iterable[str]) -> int:
    return sum(map(number_of, lines))


def sum_rows(rows: Iterable[Row]) -> int:
    return sum(int(row["n"]) for row in rows)


def expected(size: int) -> int:
    return size * (size - 1) // 2


# -- what is read ----------------------------------------------------------------------------------


def write_lines(path: Path, size: int) -> None:
    with open(path, "w") as file:
        file.writelines(f"{make_line(n)}\n" for n in range(size))


def write_json(path: Path, size: int) -> None:
    with open(path, "w") as file:
        file.writelines(f"{json.dumps(make_row(n))}\n" for n in range(size))


def write_csv(path: Path, size: int) -> None:
    with gzip.open(path, "wt", 1, newline="") if path.suffix == ".gz" else open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(map(make_row, range(size)))


def write_parquet(path: Path, size: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([make_row(n) for n in range(size)]), path, row_group_size=ROWS_PER_GROUP)


def write_table(path: Path, size: int) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE paid (n INTEGER PRIMARY KEY, customer TEXT, cents INTEGER)")
        database.executemany("INSERT INTO paid VALUES (:n, :customer, :cents)", map(make_row, range(size)))
        database.commit()


def write_postgres(path: Path, size: int) -> None:
    """A table; the file holds its url."""
    import psycopg

    url = os.environ[POSTGRES]
    with psycopg.connect(url) as database:
        database.execute("DROP TABLE IF EXISTS paid")
        database.execute("CREATE TABLE paid (n bigint PRIMARY KEY, customer text, cents bigint)")
        with database.cursor().copy("COPY paid FROM STDIN") as copy:
            for row in map(make_row, range(size)):
                copy.write_row(tuple(row.values()))
    path.write_text(url)


# -- sources ---------------------------------------------------------------------------------------


class StampedFiles(FirstRead, FilesSource):
    pass


class StampedSql(FirstRead, SqlSource):
    pass


class StampedIterable(FirstRead, IterableSource):
    pass


Measure = Callable[[Iterable[Any]], int]


@dataclass(frozen=True, slots=True)
class Reading:
    """Rows of a file, or of what stands for one: ``loop`` gives them in the plainest way, ``source`` is ours."""

    file: str
    write: Callable[[Path, int], None]
    loop: Callable[[Path], Iterator[Any]]
    source: Callable[[Path], Any]
    number: Callable[[Any], int]
    measure: Measure

    def run_loop(self, folder: Path, size: int) -> Outcome:
        path = folder / self.file
        self.write(path, size)
        started_s = time.perf_counter()
        total = 0
        for row in self.loop(path):
            total += self.number(row)
        return Outcome(time.perf_counter() - started_s, total)

    def run_ours(self, folder: Path, size: int, **options: Any) -> Outcome:
        path = folder / self.file
        self.write(path, size)
        source = self.source(path)
        source.stamps = folder
        report = Pipeline(Producer(source) | StampedSink("sink", folder, self.measure)).run(**options)
        assert report.exit_code == 0, str(report)
        return outcome(folder)


def _lines_of(path: Path) -> Iterator[str]:
    with open(path) as file:
        yield from file


def _json_of(path: Path) -> Iterator[Row]:
    with open(path) as file:
        for line in file:
            yield json.loads(line)


def _csv_of(path: Path) -> Iterator[Row]:
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else open(path, newline="") as file:
        yield from csv.DictReader(file)


def _parquet_of(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def _table_of(path: Path) -> Iterator[Any]:
    with closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        yield from database.execute("SELECT * FROM paid ORDER BY n")


def _postgres_table_of(path: Path) -> Iterator[Row]:
    import psycopg

    with psycopg.connect(path.read_text(), row_factory=psycopg.rows.dict_row) as database:
        yield from database.execute("SELECT * FROM paid ORDER BY n")


def _pour(path: Path) -> Any:
    """The file as a pipe."""
    return subprocess.Popen(["cat", path], stdout=subprocess.PIPE)


def _lines_of_a_pipe(path: Path) -> Iterator[str]:
    with _pour(path) as cat, open(cat.stdout.fileno(), closefd=False) as file:
        yield from file


class StampedPipe(FirstRead, PipeSource):
    """Has a pipe of its own."""

    def __init__(self, path: Path) -> None:
        self._cat = _pour(path)
        super().__init__(self._cat.stdout.fileno())

    def close(self) -> None:
        self._cat.stdout.close()
        self._cat.wait()


def _numbers_of(path: Path) -> Iterator[Row]:
    return map(make_row, range(int(path.read_text())))


def _row_number(row: Any) -> int:
    return int(row["n"])


READINGS = {
    "pipe, lines": Reading("in.txt", write_lines, _lines_of_a_pipe, StampedPipe, number_of, sum_lines),
    "files, lines": Reading("in.txt", write_lines, _lines_of, StampedFiles, number_of, sum_lines),
    "files, ndjson": Reading(
        "in.json", write_json, _json_of, lambda path: StampedFiles(path, "ndjson"), _row_number, sum_rows
    ),
    "files, csv": Reading("in.csv", write_csv, _csv_of, lambda path: StampedFiles(path, "csv"), _row_number, sum_rows),
    "files, csv.gz": Reading(
        "in.csv.gz", write_csv, _csv_of, lambda path: StampedFiles(path, "csv"), _row_number, sum_rows
    ),
    "files, parquet": Reading(
        "in.parquet", write_parquet, _parquet_of, lambda path: StampedFiles(path, "parquet"), _row_number, sum_rows
    ),
    "sql, SQLite": Reading(
        "in.db",
        write_table,
        _table_of,
        lambda path: StampedSql(url=f"sqlite:///{path}", table="paid", order_by="n"),
        _row_number,
        sum_rows,
    ),
    "sql, PostgreSQL": Reading(
        "url",
        write_postgres,
        _postgres_table_of,
        lambda path: StampedSql(url=path.read_text(), table="paid", order_by="n"),
        _row_number,
        sum_rows,
    ),
    "a generator": Reading(
        "size",
        lambda path, size: path.write_text(str(size)) and None,
        _numbers_of,
        lambda path: StampedIterable(lambda: _numbers_of(path)),
        _row_number,
        sum_rows,
    ),
}


@dataclass(frozen=True, slots=True)
class Listening:
    """Rows that a sender, in a process of its own, sends as fast as it is let."""

    kind: str
    write: Callable[[Path, int], None]
    address: Callable[[Path], str]
    loop: Callable[[str, int], int]
    source: Callable[[str], Source]
    measure: Measure

    def run_loop(self, folder: Path, size: int) -> Outcome:
        with self._sending(folder, size) as address:
            total = self.loop(address, size)
            last_s = time.time()
        return Outcome(last_s - float((folder / "first").read_text()), total)

    def run_ours(self, folder: Path, size: int, **options: Any) -> Outcome:
        with self._sending(folder, size) as address:
            pipeline = Pipeline(Producer(self.source(address)) | StampedSink("sink", folder, self.measure))
            with pipeline.start(**options) as running:
                while running.status().completed < size:
                    running.join(0.02)
                running.stop()
        return outcome(folder)

    @contextmanager
    def _sending(self, folder: Path, size: int) -> Iterator[str]:
        path, address = folder / "in", self.address(folder)
        self.write(path, size)
        command = [sys.executable, "-m", "benchmarks.senders", self.kind, address, str(path), str(folder)]
        with subprocess.Popen(command, cwd=ROOT) as sender:
            try:
                yield address
                assert sender.wait(60) == 0
            finally:
                sender.kill()


def _receive_lines(address: str, size: int) -> int:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        connection, _ = listener.accept()
        with connection, connection.makefile() as lines:
            return sum_lines(lines)


def _receive_messages(address: str, size: int) -> int:
    import zmq

    with zmq.Context() as context, context.socket(zmq.PULL) as pull:
        pull.setsockopt(zmq.RCVTIMEO, LONGEST_WAIT_MS)
        pull.bind(address)
        total = 0
        for _ in range(size):
            total += number_of(pull.recv_string())
        return total


def _receive_requests(address: str, size: int) -> int:
    """What a small service does: parse, sum up, answer."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    total = count = 0

    async def post(request: Any) -> Response:
        nonlocal total, count
        for line in (await request.body()).splitlines():
            total += _row_number(json.loads(line))
            count += 1
        server.should_exit = count == size
        return Response(status_code=202)

    app = Starlette(routes=[Route("/", post, methods=["POST"])])
    server = uvicorn.Server(
        uvicorn.Config(app, port=int(address.split(":")[1]), log_level="error", access_log=False, lifespan="off")
    )
    server.run()
    return total


def _free_port(folder: Path) -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


LISTENINGS = {
    "tcp, lines": Listening(
        "tcp", write_lines, lambda folder: f"{folder}/s", _receive_lines, lambda path: TcpSource(path=path), sum_lines
    ),
    "zmq, text": Listening(
        "zmq",
        write_lines,
        lambda folder: f"tcp://{_free_port(folder)}",
        _receive_messages,
        lambda address: ZmqSource(address, format="text"),
        sum_lines,
    ),
    "http, ndjson": Listening(
        "http",
        write_json,
        _free_port,
        _receive_requests,
        lambda address: HttpSource(int(address.split(":")[1])),
        sum_rows,
    ),
}


@dataclass(frozen=True, slots=True)
class Pushing:
    """Rows that the program hands over one by one, as they come up; in the loop to a thread, through a queue."""

    def run_loop(self, folder: Path, size: int) -> Outcome:
        rows: queue.Queue[Row | None] = queue.Queue(10_000)
        total = 0

        def take() -> None:
            nonlocal total
            while (row := rows.get()) is not None:
                total += _row_number(row)

        taker = threading.Thread(target=take)
        taker.start()
        started_s = time.perf_counter()
        for row in map(make_row, range(size)):
            rows.put(row)
        rows.put(None)
        taker.join()
        return Outcome(time.perf_counter() - started_s, total)

    def run_ours(self, folder: Path, size: int, **options: Any) -> Outcome:
        pipeline = Pipeline(Producer("manual") | StampedSink("sink", folder, sum_rows))
        with pipeline.start(**options) as running:
            stamp_first(folder)
            for row in map(make_row, range(size)):
                running.push(row)
            running.finish_input()
            running.wait()
        return outcome(folder)


PUSHINGS = {"manual": Pushing()}


# -- sinks -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Writing:
    """Rows that are made and written to a file; ``total`` sums up what is in it."""

    file: str
    make: Callable[[int], Any]
    loop: Callable[[Path, Iterator[Any]], None]
    sink: Callable[[Path], Sink]
    total: Callable[[Path], int]

    def run_loop(self, folder: Path, size: int) -> Outcome:
        path = folder / self.file
        started_s = time.perf_counter()
        self.loop(path, map(self.make, range(size)))
        return Outcome(time.perf_counter() - started_s, self.total(path))

    def run_ours(self, folder: Path, size: int, **options: Any) -> Outcome:
        path = folder / self.file
        pipeline = Pipeline(Producer(StampedSource(range(size), folder)) | Map(self.make, "make") | self.sink(path))
        report = pipeline.run(**options)
        assert report.exit_code == 0, str(report)
        last_s = max(found.stat().st_mtime for found in folder.glob(f"{self.file}*"))
        return Outcome(last_s - float((folder / "first").read_text()), self.total(path))


def _write_text(path: Path, rows: Iterator[str]) -> None:
    with open(path, "w") as file:
        for row in rows:
            file.write(row + "\n")


def _write_json(path: Path, rows: Iterator[Row]) -> None:
    with open(path, "w") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def _write_csv(path: Path, rows: Iterator[Row]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow(row)


def _in_parts(rows: Iterator[Row], most: int) -> Iterator[list[Row]]:
    part: list[Row] = []
    for row in rows:
        part.append(row)
        if len(part) == most:
            yield part
            part = []
    if part:
        yield part


def _write_parquet(path: Path, rows: Iterator[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("n", pa.int64()), ("customer", pa.string()), ("cents", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for part in _in_parts(rows, ROWS_PER_GROUP):
            writer.write_table(pa.Table.from_pylist(part, schema))


def _write_table(path: Path, rows: Iterator[Row]) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE paid (n INTEGER, customer TEXT, cents INTEGER)")
        for part in _in_parts(rows, ROWS_PER_COMMIT):
            database.executemany("INSERT INTO paid VALUES (:n, :customer, :cents)", part)
            database.commit()


def _total_of_table(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute("SELECT sum(n) FROM paid").fetchone()[0])


class StampedSqlSink(SqlSink):
    """Touches a file whenever something was committed, for the database keeps no time."""

    def __init__(self, path: Path) -> None:
        super().__init__("out", os.environ[POSTGRES], "paid")
        self._path = path

    def open(self) -> None:
        super().open()
        self._path.touch()

    def write(self, batch_id: Any, items: list[Any]) -> None:
        super().write(batch_id, items)
        self._path.touch()

    def commit(self, owner: str, number: int, redo: bytes) -> None:
        super().commit(owner, number, redo)
        self._path.touch()


def _postgres_sink(path: Path) -> Sink:
    _drop_table()
    return StampedSqlSink(path)


def _drop_table() -> None:
    import psycopg

    with psycopg.connect(os.environ[POSTGRES]) as database:
        database.execute("DROP TABLE IF EXISTS paid")


def _write_postgres(path: Path, rows: Iterator[Row]) -> None:
    import psycopg

    _drop_table()
    with psycopg.connect(os.environ[POSTGRES]) as database, database.cursor() as cursor:
        cursor.execute("CREATE TABLE paid (n bigint, customer text, cents bigint)")
        for part in _in_parts(rows, ROWS_PER_COMMIT):
            cursor.executemany("INSERT INTO paid VALUES (%(n)s, %(customer)s, %(cents)s)", part)
            database.commit()


def _total_of_postgres(path: Path) -> int:
    import psycopg

    with psycopg.connect(os.environ[POSTGRES]) as database:
        row = database.execute("SELECT sum(n)::bigint FROM paid").fetchone()
    assert row is not None
    return int(row[0])


WRITINGS = {
    "TextLines": Writing(
        "out.txt", make_line, _write_text, lambda path: TextLines("out", path), lambda path: sum_lines(_lines_of(path))
    ),
    "JsonLines": Writing(
        "out.json", make_row, _write_json, lambda path: JsonLines("out", path), lambda path: sum_rows(_json_of(path))
    ),
    "Csv": Writing(
        "out.csv", make_row, _write_csv, lambda path: Csv("out", path), lambda path: sum_rows(_csv_of(path))
    ),
    "Parquet": Writing(
        "out.parquet",
        make_row,
        _write_parquet,
        lambda path: Parquet("out", path),
        lambda path: sum_rows(_parquet_of(path)),
    ),
    "SqlSink, SQLite": Writing(
        "out.db", make_row, _write_table, lambda path: SqlSink("out", f"sqlite:///{path}", "paid"), _total_of_table
    ),
    "SqlSink, PostgreSQL": Writing("out.pg", make_row, _write_postgres, _postgres_sink, _total_of_postgres),
}


# -- the contest -----------------------------------------------------------------------------------

Work = Reading | Listening | Pushing | Writing
WORKS: dict[str, Work] = {**READINGS, **LISTENINGS, **PUSHINGS, **WRITINGS}
FEWER = {
    "zmq, text": 2,
    "http, ndjson": 2,
    "files, parquet": 2,
    "Parquet": 2,
    "sql, PostgreSQL": 2,
    "SqlSink, PostgreSQL": 8,
    "manual": 8,
}
"""One in so many rows, because they take longer."""


@contextmanager
def postgres() -> Iterator[None]:
    """A server of its own, as the tests start it. Raises Unavailable where PostgreSQL is not installed."""
    cluster = Cluster()
    try:
        cluster.make()
        cluster.start()
        os.environ[POSTGRES] = cluster.url("postgres")
        yield
    finally:
        os.environ.pop(POSTGRES, None)
        cluster.remove()


@contextmanager
def _with_what_they_need(names: list[str]) -> Iterator[list[str]]:
    """Those of the works that can be done here; for what the others lack there is a message."""
    if not any("PostgreSQL" in name for name in names):
        yield names
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(postgres())
        except Unavailable as reason:
            print(f"left out what needs PostgreSQL: {reason}", file=sys.stderr)
            names = [name for name in names if "PostgreSQL" not in name]
        yield names


def do(work: Work, mode: str | None, size: int) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="consecution-bench-") as made:
        folder = Path(made)
        if mode is None:
            return work.run_loop(folder, size)
        options = dict(MODES[mode])
        if options["robustness"] == "robust":
            options["state_dir"] = folder / "state"
        return work.run_ours(folder, size, **options)


QUESTION = Question(
    name="sources_sinks",
    title="each source and each sink beside the loop that one would write by hand",
    unit="rows",
    size=400_000,
    expected=expected,
    contestants={
        f"{name}: {mode or 'loop'}": partial(do, work, mode) for name, work in WORKS.items() for mode in (None, *MODES)
    },
    beside="",
)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as fast as the loop a mode is: the median of the rounds, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, ours: list[Run], loops: list[Run]) -> Ratio:
        found = [a.items_per_s / b.items_per_s for a, b in zip(ours, loops, strict=True)]
        return cls(statistics.median(found), min(found), max(found))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


def contest(names: list[str], size: int, rounds: int) -> dict[str, dict[str, list[Run]]]:
    """Work → who → runs. Of each work all run in turn, and who is first changes from round to round."""
    found: dict[str, dict[str, list[Run]]] = {name: {} for name in names}
    for number in range(rounds):
        for name in names:
            rows = size // FEWER.get(name, 1)
            contestants = ["loop", *MODES]
            for who in contestants[number % 3 :] + contestants[: number % 3]:
                run = run_child("sources_sinks", f"{name}: {who}", rows, expected(rows))
                print(f"  {name}: {who}: {run.items_per_s:,.0f} rows/s", file=sys.stderr, flush=True)
                found[name].setdefault(who, []).append(run)
    return found


def page(found: dict[str, dict[str, list[Run]]]) -> str:
    """Two tables, in Markdown: what is slower than we want first."""
    ratios = {name: {mode: Ratio.of(by[mode], by["loop"]) for mode in MODES} for name, by in found.items()}
    below = [name for name in found if min(ratio.median for ratio in ratios[name].values()) < AIM]
    parts = []
    for title, names in (
        (f"Below {AIM:g} of the loop", below),
        (f"At {AIM:g} of the loop, or better", [name for name in found if name not in below]),
    ):
        lines = [
            f"**{title}**",
            "",
            f"| | loop, rows/s | {' | '.join(MODES)} |",
            f"| --- | ---: | {'---: | ' * len(MODES)}".strip(),
        ]
        for name in names:
            loop = statistics.median(run.items_per_s for run in found[name]["loop"])
            lines.append(f"| {name} | {loop:,.0f} | {' | '.join(str(ratios[name][mode]) for mode in MODES)} |")
        parts.append("\n".join(lines) if names else f"**{title}**: none")
    return "\n\n".join(parts)


def disturbed(found: dict[str, dict[str, list[Run]]]) -> str:
    runs = [run for by in found.values() for own in by.values() for run in own]
    return f"{sum(run.busy for run in runs)} of {len(runs)} runs were beside busy neighbours"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sources_sinks", description=QUESTION.title)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"beginnings of {', '.join(WORKS)}; all if none")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contestant runs (default 5)")
    parser.add_argument(
        "--rows", type=int, default=QUESTION.size, help="how many; of slow ones fewer (default %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="few rows and one round: do they work at all?")
    asked = parser.parse_args(arguments)
    names = [name for name in WORKS if not asked.works or name.startswith(tuple(asked.works))]
    if not names:
        parser.error(f"there is no such work; there are {', '.join(WORKS)}")
    size = asked.rows // QUICK if asked.quick else asked.rows
    with _with_what_they_need(names) as able:
        found = contest(able, size, 1 if asked.quick else asked.rounds)
    machine = f"CPython {platform.python_version()}, {platform.system()}, {os.cpu_count()} cores"
    print(f"{page(found)}\n\n{machine}; {disturbed(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
