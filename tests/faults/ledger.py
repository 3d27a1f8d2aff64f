"""The ledger: revenue is split into the legs of a profit share, booked, and kept; and what must come out of it.

source → enter * 2 → book                                      a file: one origin, the same bytes always
                   → tag * 2 → slips                           a file: what `tag` has drawn for each item
                             → legs → balance * 3 → rows       SQLite: each leg with its new total
                                                  → server     PostgreSQL: the same, where there is one
                                                  → count → tape   a file: how many were booked, the same bytes always

`tag` answers differently on each execution: a random tag, and a random leg that gets the odd cents. Its answers must
be the same in all stores, in the state of `balance` and in the failed items: those of one single execution.
"""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from consecution import Broadcast, KeyedNode, Node, Pipeline, Producer, Sink, SqlSink, StatefulNode, TextLines
from consecution.protocol.values import BatchId
from tests.faults.job import ATTEMPTS, Job
from tests.faults.stores import OwnFile, OwnTable
from tests.faults.trouble import Marks, Trouble, draw_marks

TASKS = (
    "enter.0",
    "enter.1",
    "book.0",
    "tag.0",
    "tag.1",
    "slips.0",
    "legs.0",
    "balance.0",
    "balance.1",
    "balance.2",
    "rows.0",
    "count.0",
    "tape.0",
)
TASKS_WITH_SERVER = (*TASKS, "server.0")
COMPANIES = 23
SHARES = {"operations": 40, "distribution": 20, "partner a": 20, "partner b": 20}
LEGS = tuple(SHARES)
TABLE = "legs"
COUNTS_PER_LINE = 8
LOOKED_AT = 1_000
TAGS = range(10**9, 10**10)
"""All of one length."""
AT_THE_END = -1
"""Stands for the number in the rows that `Balance.end` makes."""


class Revenue(NamedTuple):
    """What comes in; whole cents."""

    number: int
    company: str
    cents: int


class Slip(NamedTuple):
    """What `Tag` makes of it."""

    number: int
    company: str
    cents: int
    tag: int
    odd: int
    """The leg that gets the cents that remain."""


class Leg(NamedTuple):
    """One leg's part of a slip; ``cents`` are its own."""

    number: int
    leg: int
    company: str
    cents: int
    tag: int


class Row(NamedTuple):
    """A leg that was booked: the ``place``-th of its company, which has ``total`` cents now."""

    number: int
    leg: int
    company: str
    cents: int
    tag: int
    place: int
    total: int


# -- what comes in -------------------------------------------------------------------------------


def revenue_of(number: int) -> Revenue:
    return Revenue(number, f"company {number % COMPANIES}", 1 + number * 7919 % 100_003)


def source(job: Job) -> Any:
    """The source as `Pipeline.run` takes it; None where lines come by standard input."""
    if job.source == "list":
        return [revenue_of(number) for number in range(job.items)]
    return _generate(job.items) if job.source == "generator" else None


def _generate(items: int) -> Iterator[Revenue]:
    return map(revenue_of, range(items))


def lines(job: Job) -> Iterator[str]:
    """What standard input holds."""
    return (f"{line_of(revenue_of(number))}\n" for number in range(job.items))


def origins(job: Job) -> dict[str, Sequence[int]]:
    """The numbers that each of the tasks that read gives, in their order."""
    return {job.source_name: range(job.items)}


def prepare(job: Job) -> None:
    """Write what the source reads."""
    if job.reads_lines:
        job.path("lines").write_text("".join(lines(job)))


def line_of(item: Revenue) -> str:
    return f"{item.number};{item.company};{item.cents}"


def parse(line: str) -> Revenue:
    number, company, cents = line.split(";")
    return Revenue(int(number), company, int(cents))


# -- trouble -------------------------------------------------------------------------------------

TROUBLE = (
    ("enter", "always", 2),
    ("book", "always", 2),
    ("tag", "always", 3),
    ("slips", "always", 2),
    ("legs", "always", 2),
    ("balance", "always", 3),
    ("rows", "always", 3),
    ("server", "always", 2),
    ("count", "always", 2),
    ("tag", "once", 5),
    ("slips", "once", 3),
    ("legs", "once", 4),
    ("balance", "once", 5),
    ("rows", "once", 4),
    ("server", "once", 2),
    ("count", "once", 4),
    ("enter", "kill", 1),
    ("book", "kill", 1),
    ("tag", "kill", 1),
    ("slips", "kill", 1),
    ("legs", "kill", 1),
    ("balance", "kill", 2),
    ("rows", "kill", 2),
    ("server", "kill", 1),
    ("count", "kill", 1),
)
"""Nothing before `book` has to come again, later: its order is to be that of the source. At the nodes that are
given legs, one leg of the number is meant."""


def marks_of(job: Job) -> Marks:
    """Which numbers make trouble where."""
    marks = draw_marks(job, TROUBLE, range(job.items))
    if not job.server:
        del marks["server"]
    return marks


def troubled_leg(number: int) -> int:
    return number // COMPANIES % len(LEGS)


# -- nodes ---------------------------------------------------------------------------------------


class Enter(Node):
    """Reads lines, and rows of a table; what comes otherwise is entered already."""

    trouble: Trouble

    def process(self, item: Any) -> None:
        revenue = _entered(item)
        self.trouble.meet(revenue.number)
        self.push(revenue)


def _entered(item: Any) -> Revenue:
    if isinstance(item, str):
        return parse(item)
    return Revenue(**item) if isinstance(item, dict) else item


class Tag(Node):
    """Answers differently on each execution."""

    trouble: Trouble

    def process(self, item: Revenue) -> None:
        self.trouble.meet(item.number)
        self.push(Slip(*item, TAGS.start + secrets.randbelow(len(TAGS)), random.randrange(len(LEGS))))


class Legs(Node):
    """Splits, to the cent."""

    trouble: Trouble

    def process(self, item: Slip) -> None:
        for leg in legs_of(item):
            self.push(leg)
            if leg.leg == troubled_leg(item.number):
                self.trouble.meet(item.number)


def legs_of(slip: Slip) -> list[Leg]:
    parts = [slip.cents * share // 100 for share in SHARES.values()]
    parts[slip.odd] += slip.cents - sum(parts)
    return [Leg(slip.number, leg, slip.company, cents, slip.tag) for leg, cents in enumerate(parts)]


class Balance(KeyedNode):
    """Keeps the total of each leg of each company, how many made it up, and the sum of their tags."""

    trouble: Trouble

    def key(self, item: Leg) -> tuple[int, str]:
        return item.leg, item.company

    def process(self, item: Leg) -> None:
        state = self.state
        for name, amount in (("total", item.cents), ("place", 1), ("tags", item.tag)):
            state[name] = state.get(name, 0) + amount
        if item.leg == troubled_leg(item.number):
            self.trouble.meet(item.number)
        self.push(Row(*item, state["place"], state["total"]))

    def end(self) -> None:
        for (leg, company), state in self.states():
            self.push(Row(AT_THE_END, leg, company, 0, state["tags"], state["place"], state["total"]))


class Count(StatefulNode):
    """Counts what was booked, and adds it up."""

    trouble: Trouble

    def process(self, item: Row) -> None:
        state = self.state
        state["count"] = state.get("count", 0) + 1
        state["cents"] = state.get("cents", 0) + item.cents
        if item.leg == troubled_leg(item.number):
            self.trouble.meet(item.number)
        if state["count"] % COUNTS_PER_LINE == 0:
            self.push(state["count"])

    def end(self) -> None:
        self.push(f"{self.state['count']} booked, {self.state['cents']} cents")


# -- sinks ---------------------------------------------------------------------------------------


class Wording:
    """What is written of an item; some items make trouble instead."""

    def __init__(self, trouble: Trouble, words_of: Any) -> None:
        self._trouble = trouble
        self._words_of = words_of

    def __call__(self, item: Any) -> Any:
        self._trouble.meet(item.number)
        return self._words_of(item)


class BundledTable(SqlSink):
    """A table in SQLite or PostgreSQL."""

    trouble: Trouble = None  # type: ignore[assignment]  # Options that a sink's class does not know are refused.

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        _meet_all(self.trouble, items)
        super().write(batch_id, items)


class TroubledTable(OwnTable):
    """A table in SQLite. What comes before the item at fault has been inserted already."""

    trouble: Trouble

    def insert(self, items: list[Any]) -> None:
        super().insert(items)
        _meet_all(self.trouble, items)


def _meet_all(trouble: Trouble, items: Iterable[Row]) -> None:
    for item in items:
        if item.leg == troubled_leg(item.number):
            trouble.meet(item.number)


def make_pipeline(job: Job) -> Pipeline:
    chain = make_chain(job, Tag("tag", trouble=Trouble(job, "tag", marks_of(job))) * 2)
    return Pipeline(Producer("pipe") | chain if job.reads_lines else chain)


def make_chain(job: Job, tag: Any) -> Any:
    """All that is behind the source; ``tag`` makes slips of revenue."""
    marks = marks_of(job)

    def trouble(node: str) -> Trouble:
        return Trouble(job, node, marks)

    booked: list[Any] = [
        _table(job, "rows", trouble("rows"), f"sqlite:///{job.path('rows.db')}"),
        Count("count", trouble=trouble("count")) | _file(job, "tape", str),
    ]
    if job.server:
        booked.append(_table(job, "server", trouble("server"), job.server))
    balance = Balance("balance", trouble=trouble("balance")) * 3
    slips = _file(job, "slips", Wording(trouble("slips"), json.dumps))
    tagged = tag | Broadcast([slips, Legs("legs", trouble=trouble("legs")) | balance | Broadcast(booked)])
    book = _file(job, "book", Wording(trouble("book"), line_of))
    return Enter("enter", trouble=trouble("enter")) * 2 | Broadcast([book, tagged])


def _file(job: Job, name: str, words_of: Any) -> Sink:
    path = str(job.path(name))
    if job.stores == "own":
        return OwnFile(name, path=path, format=words_of)
    return TextLines(name, path, format=words_of)


def _table(job: Job, name: str, trouble: Trouble, url: str) -> Sink:
    if job.stores == "own" and url.startswith("sqlite"):
        return TroubledTable(name, path=str(job.path("rows.db")), table=TABLE, columns=Row._fields, trouble=trouble)
    return BundledTable(name, url=url, table=TABLE, trouble=trouble)


# -- what must come out --------------------------------------------------------------------------


def always(job: Job, node: str) -> set[int]:
    """The numbers that always raise at this node."""
    return {number for number, kind in marks_of(job).get(node, {}).items() if kind == "always"}


def raised_at(job: Job, *nodes: str) -> set[int]:
    """The numbers that always raise at one of these nodes; all others pass them."""
    return set[int]().union(*(always(job, node) for node in nodes))


def expected_failures(job: Job) -> set[tuple[str, int, int]]:
    """(node, number, attempts) of every item that always raises."""
    return {(node, number, ATTEMPTS) for node in marks_of(job) for number in always(job, node)}


def expected_book(job: Job) -> Iterator[str]:
    """The lines that an undisturbed run writes."""
    raised = raised_at(job, "enter", "book")
    return (f"{line_of(revenue_of(number))}\n" for number in range(job.items) if number not in raised)


def expected_tape(job: Job, cents: int) -> Iterator[str]:
    """The lines that an undisturbed run writes, if so many cents were counted."""
    legs = len(LEGS) * (job.items - len(raised_at(job, "enter", "tag", "legs")))
    counted = legs + len(LEGS) * COMPANIES - len(always(job, "balance")) - len(always(job, "count"))
    yield from (f"{mark}\n" for mark in range(COUNTS_PER_LINE, counted + 1, COUNTS_PER_LINE))
    yield f"{counted} booked, {cents} cents\n"


def growing(job: Job) -> list[Path]:
    """The files by which one sees how far a run is."""
    return [job.path("book"), job.path("slips"), job.path("tape")]


def expected_bytes(job: Job) -> int:
    """About how large `growing` becomes: the lines of some items stand for all."""
    step = max(1, job.items // LOOKED_AT)
    items = [revenue_of(number) for number in range(0, job.items, step)]
    lines = sum(len(line_of(item)) + len(json.dumps(Slip(*item, TAGS.start, 0))) + 2 for item in items)
    return lines * step + sum(map(len, expected_tape(job, 0)))
