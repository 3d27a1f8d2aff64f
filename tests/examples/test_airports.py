from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import airportsdata
import pytest

from consecution.report import NodeCounts, Status
from tests.examples import programs

airports = programs.load("airports")

BUSIEST = ("ATL", "DFW", "DEN", "ORD", "LAX", "JFK", "LAS", "MCO", "MIA", "CLT")
GREAT_CIRCLES_KM = {
    "JFK LAX": 3974,
    "ATL ORD": 976,
    "ATL LAX": 3133,
    "DEN ORD": 1429,
    "JFK MIA": 1754,
    "LAS LAX": 380,
    "MCO MIA": 309,
}
"""As tables of routes give them, which reckon with an ellipsoid or with other points of the airport."""

PLACES = airportsdata.load("IATA")
US = programs.script("airports", "--all-us", "--first")
ROWS = "SELECT origin, destination, km FROM distances"


def law_of_cosines_km(a: str, b: str) -> float:
    """The great circle another way than the example's; good to some metres at such distances."""
    lat_a, lat_b = (math.radians(PLACES[code]["lat"]) for code in (a, b))
    along = math.radians(PLACES[a]["lon"] - PLACES[b]["lon"])
    cosine = math.sin(lat_a) * math.sin(lat_b) + math.cos(lat_a) * math.cos(lat_b) * math.cos(along)
    return 6371.0088 * math.acos(max(-1.0, min(1.0, cosine)))


def found_in(folder: Path) -> dict[frozenset[str], float]:
    """Pair → km; a pair that stood there twice would show in the number of rows."""
    rows = programs.query(folder / "out/airports.db", ROWS)
    found = {frozenset(pair): km for *pair, km in rows}
    assert len(found) == len(rows)
    return found


def pairs_of(codes: list[str]) -> set[frozenset[str]]:
    return set(map(frozenset, itertools.combinations(codes, 2)))


def test_the_ten_busiest_make_45_pairs_in_table_and_file(tmp_path: Path) -> None:
    listed = (programs.FOLDER / "airports.txt").read_text()

    done = programs.call(
        programs.command("run", str(programs.FOLDER / "airports.py"), "--quiet"), tmp_path, stdin=listed
    )

    assert done.returncode == 0, done.stderr
    found = found_in(tmp_path)
    assert found.keys() == pairs_of(list(BUSIEST))
    assert len(found) == 45
    for (a, b), km in found.items():
        assert km == pytest.approx(law_of_cosines_km(a, b), abs=0.06)
    lines = (tmp_path / "out/distances.txt").read_text().splitlines()
    assert {frozenset(line.split()[:2]): float(line.split()[2]) for line in lines} == found
    assert len(lines) == 45


def test_distances_are_those_of_the_tables_to_half_a_percent() -> None:
    for pair, km in GREAT_CIRCLES_KM.items():
        a, b = pair.split()

        distance = airports.great_circle(airports.attach_coordinates((a, b)))

        assert distance.km == pytest.approx(km, rel=0.005), pair


def test_an_unknown_code_fails_and_the_others_go_through(tmp_path: Path) -> None:
    done = programs.call(programs.script("airports"), tmp_path, stdin="jfk\nQQQ # nowhere\nLAX ATL\nJFK\n")

    assert done.returncode == 1
    assert "failed 3 " in done.stdout
    assert "LookupError: there is no airport with the IATA code 'QQQ'" in done.stdout
    assert found_in(tmp_path).keys() == pairs_of(["JFK", "LAX", "ATL"])
    assert "3 pairs of airports" in done.stdout


def test_the_program_ends_with_a_table_and_says_where_all_is(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/distances.txt").write_text("left over\n")

    done = programs.call(programs.script("airports"), tmp_path, stdin="JFK LAX ATL")

    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.index("     km") :].splitlines()
    assert [line.split() for line in table[:4]] == [
        ["km", "ATL", "JFK", "LAX"],
        ["ATL", "-", "1,222", "3,126"],
        ["JFK", "1,222", "-", "3,974"],
        ["LAX", "3,126", "3,974", "-"],
    ]
    assert "  farthest  JFK - LAX    3,974.2 km  New York - Los Angeles" in table
    assert table[-1] == "All of them: out/airports.db (SQLite, table distances) and out/distances.txt"
    assert len((tmp_path / "out/distances.txt").read_text().splitlines()) == 3


def test_too_few_airports_make_no_pairs(tmp_path: Path) -> None:
    done = programs.call(programs.script("airports", "--out", "elsewhere"), tmp_path, stdin="# only one\nJFK\n")

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("There are no pairs: give two airports or more.\n")
    assert (tmp_path / "elsewhere").is_dir()


def test_a_slice_of_the_us_makes_every_pair(tmp_path: Path) -> None:
    done = programs.call([*US, "150"], tmp_path)

    assert done.returncode == 0, done.stderr
    assert found_in(tmp_path).keys() == pairs_of(airports.us_airports()[:150])
    assert "11,175 pairs of airports" in done.stdout


def test_all_of_the_us_is_about_two_million_pairs() -> None:
    codes = airports.us_airports()

    assert len(codes) == len(set(codes))
    assert len(codes) * (len(codes) - 1) / 2 == pytest.approx(1.9e6, rel=0.05)


def test_the_codes_of_the_us_can_be_listed_and_given_back(tmp_path: Path) -> None:
    listed = programs.call(programs.script("airports", "--list-us"), tmp_path)

    assert listed.stdout.split() == airports.us_airports()


@pytest.mark.parametrize(
    ("signals", "code"),
    [([signal.SIGTERM], 0), ([signal.SIGTERM, signal.SIGINT], 3)],
    ids=["drained", "at once"],
)
def test_stopped_in_the_middle_it_goes_on_with_its_state_directory(
    tmp_path: Path, signals: list[signal.Signals], code: int
) -> None:
    line = [*US, "300", "--state-dir", "state"]

    with started(line, tmp_path) as program:
        with held(tmp_path / "out/airports.db") as rows_before:
            for number in signals:
                program.send_signal(number)
            if code:
                program.wait(programs.DEADLINE_S)
        program.wait(programs.DEADLINE_S)
    rows_between = len(found_in(tmp_path))
    again = programs.call(line, tmp_path)

    expected = pairs_of(airports.us_airports()[:300])
    assert program.returncode == code
    assert 0 < rows_before <= rows_between < len(expected)
    assert again.returncode == 0, again.stderr
    assert found_in(tmp_path).keys() == expected
    lines = (tmp_path / "out/distances.txt").read_text().splitlines()
    assert {frozenset(line.split()[:2]) for line in lines} == expected
    assert len(lines) == len(expected)


def test_what_an_abort_left_open_is_in_table_and_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(programs.FOLDER)
    codes = airports.us_airports()[:60]
    listed = list(airports.with_those_before(codes))
    out, state_dir = tmp_path / "out", tmp_path / "state"
    file_is_frozen = threading.Event()

    def airport_list() -> Iterator[tuple[str, tuple[str, ...]]]:
        yield from listed[:2]
        file_is_frozen.wait(programs.DEADLINE_S)
        yield from listed[2:]

    with airports.build(out).start(airport_list, mode="process", state_dir=state_dir) as running:
        programs.wait_until(running, lambda: running.status().completed == 2)
        os.kill(running.pids()["file.0"], signal.SIGSTOP)
        file_is_frozen.set()
        programs.wait_until(running, lambda: running.status().emitted > 2)
        running.abort()
    again = airports.build(out).run(airport_list, mode="process", state_dir=state_dir)

    assert running.wait().pending > 0
    assert (again.exit_code, again.pending) == (0, 0)
    assert found_in(tmp_path).keys() == pairs_of(codes)
    assert len((out / "distances.txt").read_text().splitlines()) == len(pairs_of(codes))


def test_a_finished_run_says_so_and_keeps_what_it_found(tmp_path: Path) -> None:
    line = [*US, "20", "--state-dir", "state"]
    programs.call(line, tmp_path)

    again = programs.call(line, tmp_path)

    assert again.returncode == 0
    assert again.stdout.startswith("This run was finished before")
    assert "190 pairs of airports" in again.stdout


@contextlib.contextmanager
def started(line: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(line, cwd=folder, stdout=subprocess.DEVNULL, text=True) as program:
        try:
            yield program
        finally:
            program.kill()


@contextlib.contextmanager
def held(database: Path) -> Iterator[int]:
    """Hold the table once it has rows, so that nobody can write to it; gives their number."""
    give_up_s = time.monotonic() + programs.DEADLINE_S
    while not (database.exists() and programs.query(database, "SELECT 1 FROM sqlite_master WHERE name = 'distances'")):
        assert time.monotonic() < give_up_s, "no table was made"
        time.sleep(0.005)
    with contextlib.closing(sqlite3.connect(database, timeout=programs.DEADLINE_S, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection.execute("SELECT count(*) FROM distances").fetchone()[0]


def test_progress_counts_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    table = NodeCounts("table", 1, 1_500, 0, 0, 1.0)
    status = Status("running", 60, 40, 0, 20, 0, 0, 2.0, (table,))

    assert airports.describe_progress(6_000, status) == "1,500 of 6,000 pairs (25%), 750/s, 2 s"
    assert airports.describe_progress(0, status).startswith("1,500 of 0 pairs, ")
