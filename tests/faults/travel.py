"""Travel: a pipeline of plain nodes, and what must come out of it.

source → parse * 2 → spread → tally.by(key) * 2 → left and right (a broadcast or a route)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from consecution import Broadcast, Node, Pipeline, Producer, Route, TextLines
from consecution.protocol.values import BatchId
from consecution.sink import Sink
from tests.faults.job import ATTEMPTS, Job
from tests.faults.trouble import Marks, Trouble, draw_marks

KEYS = 97

Pair = tuple[int, int]
"""What reaches the sinks: a number and which part of it this is."""


# -- what comes in -------------------------------------------------------------------------------


def source(job: Job) -> Any:
    """The source as `Pipeline.run` takes it; None where lines come by standard input."""
    if job.source == "list":
        return range(job.items) if job.seed % 2 else list(range(job.items))
    return _generate(job.items) if job.source == "generator" else None


def _generate(items: int) -> Iterator[int]:
    yield from range(items)


def lines(job: Job) -> Iterator[str]:
    """What standard input holds."""
    return (f"{number}\n" for number in range(job.items))


def origins(job: Job) -> dict[str, Sequence[int]]:
    """The numbers that each of the tasks that read gives, in their order."""
    return {job.source_name: range(job.items)}


def prepare(job: Job) -> None:
    """Write what the source reads."""
    if job.reads_lines:
        job.path("lines").write_text("".join(lines(job)))


# -- trouble -------------------------------------------------------------------------------------

TASKS = ("parse.0", "parse.1", "spread.0", "tally.0", "tally.1", "left.0", "right.0")

TROUBLE = (
    ("parse", "always", 4),
    ("tally", "always", 3),
    ("left", "always", 2),
    ("parse", "once", 6),
    ("spread", "once", 4),
    ("tally", "once", 4),
    ("left", "once", 2),
    ("parse", "kill", 1),
    ("spread", "kill", 1),
    ("tally", "kill", 1),
    ("left", "kill", 1),
)


def marks_of(job: Job) -> Marks:
    """Which numbers make trouble where."""
    return draw_marks(job, TROUBLE, [n for n in range(job.items) if not _is_dropped(n)])


# -- nodes ---------------------------------------------------------------------------------------


class Parse(Node):
    trouble: Trouble

    def process(self, item: Any) -> None:
        number = int(item)
        self.trouble.meet(number)
        self.push(number)


class Spread(Node):
    """Filters and flattens."""

    trouble: Trouble

    def process(self, item: int) -> None:
        for pair in parts_of(item):
            self.push(pair)
            self.trouble.meet(item)


class Tally(Node):
    """One key, one replica."""

    trouble: Trouble

    def process(self, item: Pair) -> None:
        self.trouble.meet(item[0])
        self.push(item)


class Recorder(Sink):
    """Appends every write, with its batch, to a file. A kill in the middle leaves a line that is no JSON."""

    trouble: Trouble
    path: str

    def open(self) -> None:
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        for number, _ in items:
            self.trouble.meet(number)
        assert batch_id is not None
        record = json.dumps([batch_id.origin, batch_id.seq, batch_id.path, batch_id.generation, items])
        os.write(self._fd, f"\n{record}\n".encode())

    def close(self) -> None:
        os.close(self._fd)


def parts_of(number: int) -> list[Pair]:
    """What `Spread` makes of a number: nothing, one pair or two."""
    if _is_dropped(number):
        return []
    return [(number, 0), (number, 1)] if number % 4 == 0 else [(number, 0)]


def _is_dropped(number: int) -> bool:
    return number % 10 == 3


def key_of(pair: Pair) -> int:
    return pair[0] % KEYS


def side_of(pair: Pair) -> str:
    return "left" if (pair[0] + pair[1]) % 2 else "right"


def line_of(pair: Pair) -> str:
    return f"{pair[0]} {pair[1]};"


def make_pipeline(job: Job) -> Pipeline:
    trouble = {node: Trouble(job, node, marks_of(job)) for node in ("parse", "spread", "tally", "left", "right")}
    parse = Parse("parse", trouble=trouble["parse"]) * 2
    tally = (Tally("tally", trouble=trouble["tally"]) * 2).by(key_of)
    left = Recorder("left", trouble=trouble["left"], path=str(job.path("left")))
    right: Sink
    if job.right == "text":
        right = TextLines("right", job.path("right"), format=line_of)
    else:
        right = Recorder("right", trouble=trouble["right"], path=str(job.path("right")))
    sinks = Broadcast([left, right]) if job.fork == "broadcast" else Route([left, right], by=side_of)
    chain = parse | Spread("spread", trouble=trouble["spread"]) | tally | sinks
    return Pipeline(Producer("pipe") | chain if job.reads_lines else chain)


# -- what must come out --------------------------------------------------------------------------


def expected_failures(job: Job) -> set[tuple[str, str, int]]:
    """(node, item, attempts) of every item that always raises."""
    failed = set()
    for node, marks in marks_of(job).items():
        for number in (n for n, kind in marks.items() if kind == "always"):
            items = [number] if node == "parse" else [p for p in parts_of(number) if goes_to(job, node, p)]
            failed |= {(node, str(item), ATTEMPTS) for item in items}
    return failed


def goes_to(job: Job, node: str, pair: Pair) -> bool:
    return node not in ("left", "right") or job.fork == "broadcast" or side_of(pair) == node


def expected_at(job: Job, sink: str) -> set[Pair]:
    """Every pair that must reach this sink."""
    marks = marks_of(job)
    lost = {n for node in ("parse", "tally", sink) for n, kind in marks.get(node, {}).items() if kind == "always"}
    pairs = (pair for number in range(job.items) if number not in lost for pair in parts_of(number))
    return {pair for pair in pairs if goes_to(job, sink, pair)}


def expected_bytes(job: Job) -> int:
    """About how large `growing` becomes."""
    left = sum(len(str(list(pair))) + 2 for pair in expected_at(job, "left"))
    right = expected_at(job, "right")
    if job.right == "text":
        return left + sum(len(line_of(pair)) + 1 for pair in right)
    return left + sum(len(str(list(pair))) + 2 for pair in right)


def growing(job: Job) -> list[Path]:
    """The files by which one sees how far a run is."""
    return [job.path("left"), job.path("right")]
