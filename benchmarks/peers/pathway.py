"""Pathway: tables and functions over them; with more workers than one, processes that ``pathway spawn`` starts.

Persistence is on in `durable` and `kill` only, with a snapshot every second. Run as a program this is one process of
the work.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pathway as pw

from benchmarks import airports as geography
from benchmarks import cpu as burning
from benchmarks import identity as passing
from benchmarks.peers import kill as killing
from benchmarks.peers import task as tasks
from benchmarks.peers.task import Latencies, Task, Total, begun, current

PROGRAM = "benchmarks.peers.pathway"
SNAPSHOT_MS = 1000
COMMIT_MS = 100
PACED_COMMIT_MS = 5


class Number(pw.Schema):
    number: int


class Dated(pw.Schema):
    number: int
    due_s: float


class Line(pw.Schema):
    data: str


class Airport(pw.Schema):
    code: str
    before: list[str]


class Subject(pw.io.python.ConnectorSubject):
    """Feeds rows from an iterable of dicts."""

    deletions_enabled = False

    def __init__(self, rows: Callable[[], Iterable[dict[str, Any]]]) -> None:
        super().__init__()
        self._rows = rows

    def run(self) -> None:
        begun()
        for row in self._rows():
            self.next(**row)


class PacedSubject(Subject):
    """Tells how far it came, and goes on from there."""

    def __init__(self) -> None:
        super().__init__(tuple)
        self._paced = current().paced()

    def _seek(self, state: bytes) -> None:
        self._paced.next = int(state)

    def run(self) -> None:
        begun()
        for number, due_s in self._paced:
            self.next(number=number, due_s=due_s)
            self._report_offset(str(number + 1).encode())


def _fed(schema: type[pw.Schema], rows: Callable[[], Iterable[dict[str, Any]]], commit_ms: int = COMMIT_MS) -> pw.Table:
    return pw.io.python.read(Subject(rows), schema=schema, autocommit_duration_ms=commit_ms, name="source")


def _files(lines: list[str], task: Task) -> pw.Table:
    """The lines as files, one for each worker, which the engine reads by itself."""
    folder = task.folder / "given"
    if not folder.exists() or len(list(folder.iterdir())) < task.workers:
        folder.mkdir(exist_ok=True)
        for number in range(task.workers):
            (folder / f"{number}.txt").write_text("\n".join(lines[number :: task.workers]) + "\n")
    return pw.io.plaintext.read(str(folder), mode="static")


@pw.udf
def same(number: int) -> int:
    return passing.identity(number)


@pw.udf
def burn(text: str) -> int:
    return burning.burn(int(text))


@pw.udf
def split(line: str) -> list[str]:
    return line.split()


@pw.udf
def pairs(code: str, before: list[str]) -> list[tuple[str, str]]:
    return list(geography.pairs((code, tuple(before))))


@pw.udf
def attach(pair: tuple[str, str]) -> tuple[tuple[str, float, float], tuple[str, float, float]]:
    return tasks.attach(pair)


@pw.udf
def distance(pair: tuple[tuple[str, float, float], tuple[str, float, float]]) -> tuple[str, str, float]:
    return geography.distance(pair)


@pw.udf
def pass_on(number: int) -> int:
    return killing.pass_on((number, 0.0))[0]


def _identity(task: Task) -> pw.Table:
    given = _fed(Number, lambda: ({"number": number} for number in range(task.size)))
    return given.select(value=same(pw.this.number))


def _cpu(task: Task) -> pw.Table:
    return _files([str(number) for number in range(task.size)], task).select(value=burn(pw.this.data))


def _words(task: Task) -> pw.Table:
    return _count(_files(task.lines(), task))


def _durable(task: Task) -> pw.Table:
    lines = task.lines()
    return _count(_fed(Line, lambda: ({"data": line} for line in lines)))


def _count(lines: pw.Table) -> pw.Table:
    words = lines.select(word=split(pw.this.data)).flatten(pw.this.word)
    counted = words.groupby(pw.this.word).reduce(pw.this.word, count=pw.reducers.count())
    return counted.select(value=weigh(pw.this.word, pw.this.count))


@pw.udf
def weigh(word: str, count: int) -> int:
    """A word's share of `wordcount.digest`."""
    return int(word[1:]) * count


def _airports(task: Task) -> pw.Table:
    given = task.airports()
    fed = _fed(Airport, lambda: ({"code": code, "before": list(before)} for code, before in given))
    paired = fed.select(pair=pairs(pw.this.code, pw.this.before)).flatten(pw.this.pair)
    return paired.select(places=attach(pw.this.pair)).select(row=distance(pw.this.places))


def _paced(task: Task, step: Any) -> pw.Table:
    fed = pw.io.python.read(PacedSubject(), schema=Dated, autocommit_duration_ms=PACED_COMMIT_MS, name="source")
    return fed.select(number=step(pw.this.number), due_s=pw.this.due_s)


def _add_up(table: pw.Table) -> None:
    """A changed count comes as the old one taken away and the new one added."""
    total = Total()

    def on_change(key: Any, row: dict[str, Any], time: int, is_addition: bool) -> None:
        total.add(row["value"] if is_addition else -row["value"])

    pw.io.subscribe(table, on_change, total.close)


def _write(table: pw.Table) -> None:
    writer, total = geography.Writer(current().folder), Total()

    def on_change(key: Any, row: dict[str, Any], time: int, is_addition: bool) -> None:
        writer.add(row["row"])

    def on_end() -> None:
        writer.close()
        total.add(0)
        total.close()

    pw.io.subscribe(table, on_change, on_end)


def _measure(table: pw.Table) -> None:
    late = Latencies()

    def on_change(key: Any, row: dict[str, Any], time: int, is_addition: bool) -> None:
        late.take((row["number"], row["due_s"]))

    pw.io.subscribe(table, on_change, late.close)


def _note(table: pw.Table) -> None:
    def on_change(key: Any, row: dict[str, Any], time: int, is_addition: bool) -> None:
        killing.write([(row["number"], row["due_s"])])

    pw.io.subscribe(table, on_change)


_TABLES: dict[str, tuple[Callable[[Task], pw.Table], Callable[[pw.Table], None]]] = {
    "identity": (_identity, _add_up),
    "words": (_words, _add_up),
    "durable": (_durable, _add_up),
    "cpu": (_cpu, _add_up),
    "airports": (_airports, _write),
    "latency": (lambda task: _paced(task, same), _measure),
    "kill": (lambda task: _paced(task, pass_on), _note),
}


def _process() -> None:
    """What each process runs."""
    task = current()
    make, end = _TABLES[task.work]
    end(make(task))
    persistence = None
    if task.work in ("durable", "kill"):
        backend = pw.persistence.Backend.filesystem(str(task.folder / "persisted"))
        persistence = pw.persistence.Config(backend, snapshot_interval_ms=SNAPSHOT_MS)
    if task.work in ("words", "cpu"):
        begun()  # the engine reads files by itself
    pw.run(monitoring_level=pw.MonitoringLevel.NONE, persistence_config=persistence)


def _run(task: Task) -> None:
    if task.workers == 1:
        _process()
        return
    pathway = str(Path(sys.executable).with_name("pathway"))
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    spawn = [pathway, "spawn", "--processes", str(task.workers), "--first-port", str(port)]
    subprocess.run([*spawn, sys.executable, "-m", PROGRAM], check=True)


identity = words = durable = cpu = airports = latency = _run


def kill(task: Task) -> None:
    """Pathway leaves it to others to start it again, so it is done here, at once; it then resumes."""
    striker = killing.strike()
    while code := subprocess.run([sys.executable, "-m", PROGRAM]).returncode:
        print("pathway ended with", code, "and is started again at", time.time())
    striker.join()


if __name__ == "__main__":
    _process()
