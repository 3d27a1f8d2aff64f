"""How many pairs of airports a second get their distance, a row in SQLite and a line in a file?"""

from __future__ import annotations

import functools
import itertools
import math
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.contest import Outcome, Question

EARTH_RADIUS_KM = 6371.0088
ROWS_PER_COMMIT = 1000

Place = tuple[str, float, float]
Distance = tuple[str, str, float]


@functools.cache
def places() -> dict[str, Place]:
    """All US airports with an IATA code."""
    import airportsdata

    found = airportsdata.load("IATA")
    return {code: (code, a["lat"], a["lon"]) for code, a in found.items() if a["country"] == "US"}


def codes(size: int) -> list[str]:
    """As many airports as make at least ``size`` pairs."""
    count = math.ceil((1 + math.sqrt(1 + 8 * size)) / 2)
    return sorted(places())[:count]


def listed(size: int) -> list[tuple[str, tuple[str, ...]]]:
    """Each airport with those before it: what a stateless node can make pairs of."""
    chosen = codes(size)
    return [(code, tuple(chosen[:index])) for index, code in enumerate(chosen)]


def pairs(item: tuple[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    code, before = item
    for other in before:
        yield other, code


def attach(pair: tuple[str, str]) -> tuple[Place, Place]:
    known = places()
    return known[pair[0]], known[pair[1]]


def distance(pair: tuple[Place, Place]) -> Distance:
    (a, lat_a, lon_a), (b, lat_b, lon_b) = pair
    lat_a, lat_b = math.radians(lat_a), math.radians(lat_b)
    across = math.sin((lat_b - lat_a) / 2) ** 2
    along = math.cos(lat_a) * math.cos(lat_b) * math.sin(math.radians(lon_b - lon_a) / 2) ** 2
    return a, b, round(2 * EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(across + along))), 1)


def as_line(item: Distance) -> str:
    return f"{item[0]} {item[1]} {item[2]:.1f}"


def expected(size: int) -> list[int]:
    """The rows, and the sum of all distances in units of 100 m."""
    chosen = [distance(attach(pair)) for pair in itertools.combinations(codes(size), 2)]
    return [len(chosen), sum(round(d[2] * 10) for d in chosen), len(chosen)]


def look(folder: Path) -> list[int]:
    """What was written: rows, their sum, lines."""
    connection = sqlite3.connect(folder / "out.db")
    rows, total = connection.execute("SELECT count(*), sum(round(km * 10)) FROM distances").fetchone()
    connection.close()
    return [rows, round(total), len((folder / "out.txt").read_text().splitlines())]


class Writer:
    """Rows and lines as a careful person writes them by hand: a transaction for every thousand.

    One thread at a time may use it, not always the same one.
    """

    def __init__(self, folder: Path) -> None:
        self._connection = sqlite3.connect(folder / "out.db", isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("CREATE TABLE distances (a TEXT, b TEXT, km REAL)")
        self._file = open(folder / "out.txt", "w")
        self._rows: list[Distance] = []

    def add(self, item: Distance) -> None:
        self._rows.append(item)
        self._file.write(as_line(item) + "\n")
        if len(self._rows) >= ROWS_PER_COMMIT:
            self.flush()

    def flush(self) -> None:
        self._file.flush()
        if not self._rows:
            return
        self._connection.execute("BEGIN")
        self._connection.executemany("INSERT INTO distances VALUES (?, ?, ?)", self._rows)
        self._connection.execute("COMMIT")
        self._rows.clear()

    def close(self) -> None:
        self.flush()
        self._connection.close()
        self._file.close()


def plain_loop(size: int) -> Outcome:
    given = listed(size)
    with tempfile.TemporaryDirectory(prefix="consecution-bench-") as made:
        started_s = time.perf_counter()
        writer = Writer(Path(made))
        for item in given:
            for pair in pairs(item):
                writer.add(distance(attach(pair)))
        writer.close()
        return Outcome(time.perf_counter() - started_s, look(Path(made)))


def item_by_item(size: int) -> Outcome:
    from consecution import Node, Pipeline

    class Pairs(Node):  # type: ignore[misc]
        def process(self, item: Any) -> None:
            for pair in pairs(item):
                self.push(pair)

    class Attach(Node):  # type: ignore[misc]
        def process(self, item: Any) -> None:
            self.push(attach(item))

    class Measure(Node):  # type: ignore[misc]
        def process(self, item: Any) -> None:
            self.push(distance(item))

    class Write(Node):  # type: ignore[misc]
        def process(self, item: Any) -> None:
            self.writer.add(item)

        def end(self) -> None:
            self.writer.close()

    given = listed(size)
    with tempfile.TemporaryDirectory(prefix="consecution-bench-") as made:
        started_s = time.perf_counter()
        write = Write("write", writer=Writer(Path(made)))
        Pipeline(Pairs("pairs") | Attach("attach") | Measure("measure") | write).consume(given)
        return Outcome(time.perf_counter() - started_s, look(Path(made)))


def ours(size: int, **options: Any) -> Outcome:
    from benchmarks.stamps import StampedSource
    from consecution import FlatMap, Map, Pipeline, SqlSink, TextLines

    with tempfile.TemporaryDirectory(prefix="consecution-bench-") as made:
        folder = Path(made)
        table = SqlSink("table", f"sqlite:///{folder}/out.db", table="distances", columns=("a", "b", "km"))
        file = TextLines("file", folder / "out.txt", format=as_line)
        pipeline = Pipeline(
            FlatMap(pairs, "pairs") | Map(attach, "attach") | Map(distance, "measure") | [table, file],
        )
        report = pipeline.run(StampedSource(listed(size), folder), **options)
        assert report.exit_code == 0, str(report)
        last_s = max(
            (folder / name).stat().st_mtime for name in ("out.txt", "out.db", "out.db-wal") if (folder / name).exists()
        )
        return Outcome(last_s - float((folder / "first").read_text()), look(folder))


QUESTION = Question(
    name="airports",
    title="airports: pairs, coordinates, distance, to a SQLite table and a text file",
    unit="pairs",
    size=200_000,
    expected=expected,
    contestants={
        "plain loop": plain_loop,
        "0.2.0 consume": item_by_item,
        "ours inline none": lambda size: ours(size, mode="inline", robustness="none", sync="process"),
        "ours process none": lambda size: ours(size, mode="process", robustness="none", sync="process"),
        "ours process robust, sync=process": lambda size: ours(size, mode="process", sync="process"),
        "ours process robust": lambda size: ours(size, mode="process"),
        "ours process robust, workers=2": lambda size: ours(size, mode="process", workers=2),
    },
    old=("0.2.0 consume",),
)
