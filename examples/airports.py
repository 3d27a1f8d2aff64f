"""How far is it between any two airports?

    airport_list | all_combinations | attach_coordinates | great_circle | [SQLite table, text file]

Run it as a Unix user would, or over every US airport with an IATA code (about two million pairs):

    consecution run examples/airports.py < examples/airports.txt
    python examples/airports.py < examples/airports.txt
    python examples/airports.py --all-us

Every node is stateless, so any of them may die at any time: an airport comes with those listed before
it, and makes its pairs from that alone. Table and file are sinks that hold each pair once, whatever died. The
table has the pair as its key, so that a run from the beginning replaces rows; it appends to the text file.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import math
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from consecution import GlobalState, Pipeline, Producer, Report, SqlSink, Status, TextLines
from consecution.errors import MissingExtraError
from consecution.runtime.progress import Progress

OUT = Path("out")
EARTH_RADIUS_KM = 6371.0088
"""The mean radius of the IUGG; a sphere is good to about half a percent."""
BATCH_SIZE, MAX_PENDING = 200, 2
"""An airport makes up to two thousand pairs: with few of them open, a stop is quick."""
MATRIX_MOST = 12
"""How many airports fit side by side on a terminal."""


class Place(NamedTuple):
    code: str
    latitude: float
    longitude: float


class Distance(NamedTuple):
    origin: str
    destination: str
    km: float


@functools.cache
def all_airports() -> dict[str, Any]:
    """Every airport that has an IATA code, by that code."""
    try:
        import airportsdata
    except ImportError as error:
        raise MissingExtraError(
            "this example needs the airportsdata package: pip install 'consecution[examples]'", extra="examples"
        ) from error
    return airportsdata.load("IATA")


def us_airports() -> list[str]:
    """The codes of all airports of the United States, sorted."""
    return sorted(code for code, airport in all_airports().items() if airport["country"] == "US")


def with_those_before(codes: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each code, and the codes listed before it."""
    for index, code in enumerate(codes):
        yield code, tuple(codes[:index])


def listed_codes() -> list[str]:
    """The codes on standard input, each once; ``#`` begins a comment."""
    codes = itertools.chain.from_iterable(line.partition("#")[0].upper().split() for line in sys.stdin)
    return list(dict.fromkeys(codes))


def airport_list() -> Iterator[tuple[str, tuple[str, ...]]]:
    return with_those_before(listed_codes())


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
    return Place(code, float(airport["lat"]), float(airport["lon"]))


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


class Distances(Pipeline):
    """Looks before the start whether all it needs is there, and makes the folder it writes into."""

    def begin(self) -> None:
        all_airports()
        self.global_state.out.mkdir(parents=True, exist_ok=True)


def build(out: Path) -> Pipeline:
    """The pipeline, writing into the folder ``out``."""
    return Distances(
        Producer(airport_list, name="airport_list")
        | all_combinations
        | attach_coordinates
        | great_circle
        | [
            SqlSink("table", f"sqlite:///{out / 'airports.db'}", table="distances", key=("destination", "origin")),
            TextLines("file", out / "distances.txt", format=as_line),
        ],
        GlobalState(out=out),
    )


pipeline = build(OUT)


# -- the program around it -----------------------------------------------------------------------


def describe_progress(total: int, status: Status) -> str:
    """One line: pairs in the table, not airports, for the last airport makes as many pairs as the first hundred."""
    done = next(node.items_in for node in status.nodes if node.node == "table")
    share = f" ({min(done / total, 1):.0%})" if total else ""
    return f"{done:,} of {total:,} pairs{share}, {done / max(status.seconds, 0.001):,.0f}/s, {status.seconds:.0f} s"


def summarize(out: Path) -> str:
    """What the pipeline found, for a person."""
    with contextlib.closing(sqlite3.connect(out / "airports.db")) as connection:
        if not connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'distances'").fetchone()[0]:
            return "There are no pairs: give two airports or more."
        pairs, mean = connection.execute("SELECT count(*), avg(km) FROM distances").fetchone()
        nearest = connection.execute("SELECT * FROM distances ORDER BY km, origin LIMIT 3").fetchall()
        farthest = connection.execute("SELECT * FROM distances ORDER BY km DESC, origin LIMIT 3").fetchall()
        known = connection.execute("SELECT * FROM distances LIMIT ?", [MATRIX_MOST**2]).fetchall()
    return "\n".join(
        [
            *matrix(list(itertools.starmap(Distance, known))),
            f"{pairs:,} pair{'s' if pairs != 1 else ''} of airports, {mean:,.1f} km apart on average",
            *(f"  nearest   {describe_pair(*row)}" for row in nearest),
            *(f"  farthest  {describe_pair(*row)}" for row in farthest),
            "",
            f"All of them: {out / 'airports.db'} (SQLite, table distances) and {out / 'distances.txt'}",
        ]
    )


def matrix(distances: list[Distance]) -> list[str]:
    """Every airport by every other, in km, where that fits on a terminal."""
    codes = sorted({code for found in distances for code in (found.origin, found.destination)})
    if len(codes) > MATRIX_MOST:
        return []
    km = {frozenset(found[:2]): f"{found.km:,.0f}" for found in distances}
    rows = [[code, *(km.get(frozenset((code, other)), "-") for other in codes)] for code in codes]
    return ["".join(f"{cell: >7}" for cell in row) for row in [["km", *codes], *rows]] + [""]


def describe_pair(origin: str, destination: str, km: float) -> str:
    cities = " - ".join(all_airports()[code]["city"] for code in (origin, destination))
    return f"{origin} - {destination}  {km:>9,.1f} km  {cities}"


def forget_earlier_results(out: Path) -> None:
    for name in ("airports.db", "distances.txt"):
        (out / name).unlink(missing_ok=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Great-circle distances between the airports whose IATA codes stand on standard input.",
        epilog="example: python examples/airports.py < examples/airports.txt",
    )
    parser.add_argument("--all-us", action="store_true", help="every US airport with an IATA code: 2 million pairs")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N airports")
    parser.add_argument("--list-us", action="store_true", help="print the codes of all those airports, and do no more")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the table and the file (default: out)")
    parser.add_argument("--state-dir", type=Path, help="folder that remembers: run again with it to go on after a stop")
    return parser.parse_args()


def run(codes: list[str], arguments: argparse.Namespace) -> Report:
    total = len(codes) * (len(codes) - 1) // 2
    progress = Progress(live=sys.stderr.isatty(), describe=functools.partial(describe_progress, total))
    try:
        return build(arguments.out).run(
            functools.partial(with_those_before, codes),
            batch_size=BATCH_SIZE,
            max_pending=MAX_PENDING,
            state_dir=arguments.state_dir,
            on_status=progress,
        )
    finally:
        progress.clear()


def main() -> int:
    arguments = parse_arguments()
    if arguments.list_us:
        print("\n".join(us_airports()))
        return 0
    if not arguments.all_us and sys.stdin.isatty():
        print("Type IATA codes, for example JFK LAX ATL; end with Ctrl-D.", file=sys.stderr)
    codes = us_airports() if arguments.all_us else listed_codes()
    if arguments.state_dir is None or not (arguments.state_dir / "manifest.json").exists():
        forget_earlier_results(arguments.out)
    report = run(codes[: arguments.first], arguments)
    print(report, end="\n\n")
    print(summarize(arguments.out))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
