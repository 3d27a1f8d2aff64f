from __future__ import annotations

import collections
import contextlib
import io
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pyarrow.parquet
import pytest

from tests.examples import programs

flights = programs.load("flights")

ROWS = 336_776
KILLS = 10
DEADLY = Path(__file__).with_name("deadly_flights.py")
DEADLINE_S = 100


def means_of_pandas() -> Any:
    """The same means, computed another way."""
    data = flights.data_folder()
    found = pandas.read_csv(data / "flights.csv.zip")
    planes = pandas.read_csv(data / "planes.csv")[["tailnum", "seats"]]
    airports = pandas.read_csv(data / "airports.csv").rename(columns={"faa": "dest", "alt": "elevation"})
    weather = pandas.read_csv(data / "weather.csv")[["origin", "time_hour", "wind_speed", "precip"]]
    for table, on in (
        (planes, "tailnum"),
        (airports[["dest", "elevation"]], "dest"),
        (weather, ["origin", "time_hour"]),
    ):
        found = found.merge(table, how="left", on=on, validate="many_to_one")
    return found.groupby(["carrier", "hour"]).agg(
        flights=("flight", "size"),
        departure_delay=("dep_delay", "mean"),
        arrival_delay=("arr_delay", "mean"),
        distance=("distance", "mean"),
        seats=("seats", "mean"),
        elevation=("elevation", "mean"),
        wind=("wind_speed", "mean"),
        rain=("precip", "mean"),
    )


def table_of(out: Path) -> Any:
    with contextlib.closing(sqlite3.connect(out / "flights.db")) as connection:
        return pandas.read_sql("SELECT * FROM delays", connection)


def assert_same_means(found: Any, expected: Any) -> None:
    """To the last digits that the order of additions leaves."""
    found = found.set_index(["carrier", "hour"]).sort_index()
    pandas.testing.assert_frame_equal(found, expected, check_dtype=False, check_exact=False, rtol=1e-12)


@pytest.fixture(scope="module")
def finished() -> Iterator[tuple[Path, int, str]]:
    """What a run has written that was killed ten times, by whom it was killed, and what the last life said."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory() as made:
        out = Path(made)
        line = [sys.executable, str(DEADLY), made, str(seed), str(KILLS)]
        lives = 0
        while lives <= KILLS:
            lives += 1
            done = subprocess.run(line, capture_output=True, text=True, timeout=DEADLINE_S)
            if done.returncode != -signal.SIGKILL:
                break
        assert done.returncode == 0, done.stderr[-3000:]
        yield out, lives, done.stdout


@pytest.mark.timeout(DEADLINE_S * 2)
def test_ten_kills_on_the_way_change_no_mean(finished: tuple[Path, int, str]) -> None:
    out, lives, said = finished
    struck = collections.Counter(path.read_text() for path in out.glob("strike.*"))

    assert struck["a worker"] + struck["everything"] == KILLS
    assert struck["everything"] == lives - 1
    assert f"emitted {ROWS:,} = completed {ROWS:,} + pending 0" in said
    assert_same_means(table_of(out), means_of_pandas())


def test_table_and_file_hold_the_same_rows_each_once(finished: tuple[Path, int, str]) -> None:
    out = finished[0]
    table, file = table_of(out), pyarrow.parquet.read_table(out / "delays.parquet").to_pandas()

    assert sum(table["flights"]) == ROWS
    assert len(table) == len(file) == len(table.groupby(["carrier", "hour"]))
    assert_same_means(file, table.set_index(["carrier", "hour"]).sort_index())


def test_the_summary_names_the_latest_and_the_earliest(finished: tuple[Path, int, str]) -> None:
    lines = io.StringIO(flights.summarize(finished[0])).readlines()

    assert lines[0].startswith(f"{ROWS:,} flights, ")
    late = [float(line.split()[3]) for line in lines[2:12]]
    assert late[:5] == sorted(late[:5], reverse=True)
    assert late[5:] == sorted(late[5:])
    assert late[4] > late[9]


def test_the_flights_are_unpacked_once_and_whole(tmp_path: Path) -> None:
    table = tmp_path / "flights.csv"
    (tmp_path / "flights.csv.begun").write_text("an unpacking that was killed")

    flights.unpack_flights(table)

    with open(table) as lines:
        assert sum(1 for _ in lines) == 1 + ROWS
    before = table.stat()
    flights.unpack_flights(table)
    assert (table.stat().st_ino, table.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(tmp_path.iterdir()) == [table]
