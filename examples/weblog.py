"""How much traffic is there, minute by minute?

    access (a log that grows and is rotated) | parse | minutes | table

The log is followed as `tail -F` does. Each line counts for the minute that it names itself, whenever it is read: so the
table is right to the line however late lines come, and whatever is killed or rotated in between.

    python examples/weblog.py --write 20000
    python examples/weblog.py --log access.log
    consecution run examples/weblog.py

`--write` gives you a log to try it with, rotated every 5000 lines; also while the other follows it. The command reads
access.log in the current folder. Ctrl-C stops; the next start goes on at the very line.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from consecution import GlobalState, KeyedNode, Map, Pipeline, Producer, SqlSink

OUT = Path("out")
LOG = Path("access.log")
LINES_PER_FILE = 5000
TIME = "%d/%b/%Y:%H:%M:%S %z"
LINE = re.compile(
    r'(?P<client>\S+) \S+ \S+ \[(?P<time>[^\]]+)\] "(?P<request>[^"]*)" (?P<status>\d{3}) (?P<size>\d+|-)'
)
"""The common log format of Apache and nginx; what follows it does not matter."""


class Hit(NamedTuple):
    minute: str
    status: int
    size_bytes: int


class Minute(NamedTuple):
    """A row of the table; times are UTC."""

    minute: str
    hits: int
    errors: int
    bytes: int


def parse(line: str) -> Hit:
    """One line; ValueError, with which it is kept as failed, if it is none of this format."""
    found = LINE.match(line)
    if found is None:
        raise ValueError("no line of an access log: expected client, time, request, status and size")
    at = datetime.strptime(found["time"], TIME).astimezone(UTC)
    return Hit(f"{at:%Y-%m-%d %H:%M}", int(found["status"]), 0 if found["size"] == "-" else int(found["size"]))


class Minutes(KeyedNode):
    """The state of a minute is what it has had so far; each hit gives a row, which takes the place of the last one."""

    def initial_state(self) -> tuple[int, int, int]:
        return 0, 0, 0

    def key(self, item: Hit) -> str:
        return item.minute

    def process(self, item: Hit) -> None:
        hits, errors, size_bytes = self.state
        self.state = hits + 1, errors + (item.status >= 500), size_bytes + item.size_bytes
        self.push(Minute(item.minute, *self.state))


class Weblog(Pipeline):
    """Makes the folder it writes into."""

    def begin(self) -> None:
        self.global_state.out.mkdir(parents=True, exist_ok=True)


def build(out: Path, log: Path = LOG) -> Pipeline:
    """The pipeline, writing into the folder ``out``."""
    return Weblog(
        Producer("files", log, follow=True, name="access")
        | Map(parse).on_error("park")
        | Minutes("minutes")
        | SqlSink("table", f"sqlite:///{out / 'weblog.db'}", table="minutes", key="minute"),
        GlobalState(out=out),
    )


pipeline = build(OUT)


# -- the program around it -----------------------------------------------------------------------


def make_line(number: int, at_s: float) -> str:
    """A hit of somebody's, drawn by its number."""
    draw = random.Random(number)
    at = datetime.fromtimestamp(at_s, UTC)
    status = draw.choices((200, 304, 404, 500), (90, 5, 4, 1))[0]
    page, size_bytes = draw.choice(("/", "/news", "/shop", "/shop/cart")), draw.randrange(200, 20_000)
    return f'192.0.2.{draw.randrange(255)} - - [{at:{TIME}}] "GET {page} HTTP/1.1" {status} {size_bytes}'


def write_log(log: Path, count: int) -> None:
    """So many hits within five minutes, as fast as they can be written; full files are renamed, as logrotate does."""
    log.parent.mkdir(parents=True, exist_ok=True)
    began_s = time.time()
    for first in range(0, count, LINES_PER_FILE):
        if log.exists():
            log.rename(log.with_name(f"{log.name}-{time.time_ns()}"))
        with log.open("a") as file:
            for number in range(first, min(count, first + LINES_PER_FILE)):
                file.write(make_line(number, began_s + 300.0 * number / count) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Follow an access log, and count its hits by the minute.")
    parser.add_argument("--log", type=Path, default=LOG, help="the log (default: access.log)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for weblog.db and the state (default: out)")
    parser.add_argument("--write", type=int, metavar="N", help="write N lines into the log, and do no more")
    arguments = parser.parse_args()
    if arguments.write is not None:
        write_log(arguments.log, arguments.write)
        return 0
    print(
        f"following {arguments.log}, into {arguments.out / 'weblog.db'} (SQLite, table minutes); Ctrl-C stops",
        flush=True,
    )
    report = build(arguments.out, arguments.log).run(state_dir=arguments.out / "weblog.state")
    print(report)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
