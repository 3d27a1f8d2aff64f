"""How far is it between any two airports?

    airport list | all combinations | attach coordinates | great circle | [SQLite table, text file]

Run it as a Unix user would, or over every US airport with an IATA code (about two million pairs):

    consecution run examples/airports.py < examples/airports.txt
    python examples/airports.py < examples/airports.txt
    python examples/airports.py --all-us

Every node is stateless, so any of them may die at any time: an airport comes with those listed before
it, and makes its pairs from that alone. The table has the pair as its key, so that a pair written again
after a crash stands there once; the text file may hold it twice.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from consecution import Pipeline, Producer, SqlSink, TextLines
from consecution.cli.run import Progress
from consecution.errors import MissingExtraError

OUT = Path(os.environ.get("AIRPORTS_OUT", "out"))
EARTH_RADIUS_KM = 6371.0088
"""The mean radius of the IUGG; a sphere is good to about half a percent."""


class Place(NamedTuple):
    code: str
    latitude: float
    longitude: float


class Distance(NamedTuple):
    origin: str
    destination: str
    km: float


@functools.cache
def all_airports() -> dict[str, dict[str, object]]:
    """Every airport that has an IATA code, by that code."""
    try:
        import airportsdata
    except ImportError as error:
        raise MissingExtraError(
            "this example needs the airportsdata package: pip install 'consecution[examples]'", extra="examples"
        ) from error
    airports: dict[str, dict[str, object]] = airportsdata.load("IATA")
    return airports


def us_airports() -> list[str]:
    """The codes of all airports of the United States, sorted."""
    return sorted(code for code, airport in all_airports().items() if airport["country"] == "US")


def with_those_before(codes: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each code, and the codes listed before it."""
    for index, code in enumerate(codes):
        yield code, tuple(codes[:index])


def airport_list() -> Iterator[tuple[str, tuple[str, ...]]]:
    """The codes on standard input, one a line; ``#`` begins a comment."""
    lines = (line.partition("#")[0].strip().upper() for line in sys.stdin)
    return with_those_before(list(dict.fromkeys(filter(None, lines))))


def all_combinations(listed: tuple[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    """Every pair of an airport with one listed before it."""
    code, before = listed
    for other in before:
        yield other, code


@functools.cache
def find(code: str) -> Place:
    """Where an airport is."""
    airport = all_airports().get(code)
    if airport is None:
        raise LookupError(f"there is no airport with the IATA code {code!r}")
    return Place(code, float(airport["lat"]), float(airport["lon"]))  # type: ignore[arg-type]


def attach_coordinates(pair: tuple[str, str]) -> tuple[Place, Place]:
    return find(pair[0]), find(pair[1])


def great_circle(pair: tuple[Place, Place]) -> Distance:
    """The haversine distance, in km, rounded to 100 m."""
    a, b = pair
    lat_a, lat_b = math.radians(a.latitude), math.radians(b.latitude)
    across = math.sin((lat_b - lat_a) / 2) ** 2
    along = math.cos(lat_a) * math.cos(lat_b) * math.sin(math.radians(b.longitude - a.longitude) / 2) ** 2
    km = 2 * EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(across + along)))
    return Distance(a.code, b.code, round(km, 1))


def as_line(distance: Distance) -> str:
    return f"{distance.origin} {distance.destination} {distance.km:.1f}"


def build(out: Path) -> Pipeline:
    """The pipeline, writing into the folder ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    return Pipeline(
        Producer(airport_list, name="airport_list")
        | all_combinations
        | attach_coordinates
        | great_circle
        | [
            SqlSink("table", f"sqlite:///{out / 'airports.db'}", table="distances", key=("origin", "destination")),
            TextLines("file", out / "distances.txt", format=as_line),
        ]
    )


pipeline = build(OUT)


def summarize(database: Path) -> str:
    """A table of what the pipeline found."""
    with sqlite3.connect(database) as connection:
        pairs, mean = connection.execute("SELECT count(*), avg(km) FROM distances").fetchone()
        nearest = connection.execute("SELECT * FROM distances ORDER BY km, origin LIMIT 3").fetchall()
        farthest = connection.execute("SELECT * FROM distances ORDER BY km DESC, origin LIMIT 3").fetchall()
    connection.close()
    lines = [f"{pairs:,} pairs of airports, {mean or 0:,.1f} km apart on average", ""]
    for title, rows in (("nearest", nearest), ("farthest", farthest)):
        lines += [f"  {title: <9} {a} - {b}  {km:>9,.1f} km" for a, b, km in rows]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Great-circle distances between airports.")
    parser.add_argument("--all-us", action="store_true", help="every US airport with an IATA code, not standard input")
    parser.add_argument("--list-us", action="store_true", help="only print the codes of those airports")
    parser.add_argument("--state-dir", help="go on here after a crash or a stop")
    arguments = parser.parse_args()
    if arguments.list_us:
        print("\n".join(us_airports()))
        return 0
    for leftover in ("airports.db", "distances.txt"):
        if arguments.state_dir is None:
            (OUT / leftover).unlink(missing_ok=True)
    codes = functools.partial(with_those_before, us_airports()) if arguments.all_us else None
    progress = Progress(live=sys.stderr.isatty())
    report = pipeline.run(codes, on_status=progress, state_dir=arguments.state_dir)
    progress.clear()
    print(report, end="\n\n")
    print(summarize(OUT / "airports.db"))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
