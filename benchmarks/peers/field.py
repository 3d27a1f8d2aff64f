"""Who takes part: the tools, the works, and who does which of them with how many workers and how many items."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import airports, cpu, identity, wordcount

LINES = {"words", "durable"}


@dataclass(frozen=True, slots=True)
class Work:
    """``unit`` is what ``size`` counts, ``expected`` the oracle: the right answer in plain Python.

    ``same_as``: the work that this one is, in another size.
    """

    name: str
    title: str
    unit: str
    size: int
    expected: Callable[[int], Any] = lambda size: None
    same_as: str = ""

    @property
    def is_rate(self) -> bool:
        return self.name not in ("latency", "kill")


WORKS = (
    Work("identity", "identity: source, identity, sink", "items", 1_000_000, identity.expected),
    Work("long", "ten times as much of that: identity of 10 M", "items", 10_000_000, identity.expected, "identity"),
    Work("words", "word count in memory: lines of 10 Zipf words", "lines", 200_000, wordcount.expected),
    Work("durable", "word count whose counts survive a crash", "lines", 200_000, wordcount.expected),
    Work("cpu", "CPU-bound: 200 µs of Python an item", "items", 8_000, cpu.expected),
    Work("airports", "airports: pairs and distances into SQLite and a file", "pairs", 100_000, airports.expected),
    Work("latency", "latency of 2000 items/s through three stages", "items", 5_000, identity.expected),
    Work("kill", "kill -9 of a worker at 500 items/s", "items", 1_500),
)


@dataclass(frozen=True, slots=True)
class Tool:
    """A peer: its file in this folder, what pip installs for it, and the programs that must be on the machine.

    ``rounds``: the most that it takes part in, where it takes long to start.
    """

    name: str
    module: str
    version: str = ""
    requirements: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    rounds: int = 1000


@dataclass(frozen=True, slots=True)
class Contestant:
    """A tool in one of its ways to run. ``works`` → how many items it gets, 0 for as many as everybody."""

    name: str
    tool: Tool
    works: dict[str, int]
    workers: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def size_of(self, work: Work, divisor: int = 1) -> int:
        return max(1, (self.works[work.name] or work.size) // (divisor if work.is_rate else 1))


def all_of(*names: str, **sizes: int) -> dict[str, int]:
    return {**dict.fromkeys(names, 0), **sizes}


LOOP = Tool("plain loop", "loop")
POOL = Tool("Pool", "pool")
OURS = Tool("consecution", "ours")
OLD = Tool("consecution 0.2.0", "old", "0.2.0")
BYTEWAX = Tool("Bytewax", "bytewax", "0.21.1", ("bytewax==0.21.1",))
PATHWAY = Tool("Pathway", "pathway", "0.33.0", ("pathway==0.33.0",), rounds=2)
STREAMZ = Tool("streamz", "streamz", "0.6.4", ("streamz==0.6.4", "distributed"), rounds=2)
RAY = Tool("Ray", "ray", "2.60.0", ("ray==2.60.0", "pandas", "pyarrow"), rounds=2)
DRAMATIQ = Tool("dramatiq", "dramatiq", "2.2.1", ("dramatiq[redis]==2.2.1",), ("redis-server",), rounds=2)
FLINK = Tool("PyFlink", "pyflink", "2.3.0", ("apache-flink==2.3.0",), ("java",), rounds=1)

ROBUST = {"mode": "process", "robustness": "robust"}
IN_MEMORY = ("identity", "long", "words", "cpu")

CONTESTANTS = (
    Contestant("plain loop", LOOP, all_of(*IN_MEMORY, "airports", "latency")),
    Contestant("plain loop, 2", LOOP, all_of("cpu"), 2),
    Contestant("Pool, 1", POOL, all_of(*IN_MEMORY, "latency", "kill")),
    Contestant("Pool, 2", POOL, all_of(*IN_MEMORY, "airports"), 2),
    Contestant("consecution 0.2.0", OLD, all_of(*IN_MEMORY, "airports", "latency")),
    Contestant(
        "ours inline none", OURS, all_of("identity", "long", "words"), 1, {"mode": "inline", "robustness": "none"}
    ),
    Contestant("ours none", OURS, all_of("identity", "long", "words"), 1, {"mode": "process", "robustness": "none"}),
    Contestant("ours robust", OURS, all_of(*(work.name for work in WORKS)), 1, ROBUST),
    Contestant("ours robust * 2", OURS, all_of(*IN_MEMORY, "durable"), 2, ROBUST),
    Contestant(
        "ours robust workers=2", OURS, all_of(*IN_MEMORY, "durable", "airports", "kill"), 1, {**ROBUST, "workers": 2}
    ),
    Contestant("ours robust sync=process", OURS, all_of("latency"), 1, {**ROBUST, "sync": "process"}),
    Contestant(
        "ours robust workers=2 sync=process",
        OURS,
        all_of(*IN_MEMORY, "durable", "airports"),
        1,
        {**ROBUST, "workers": 2, "sync": "process"},
    ),
    Contestant("Bytewax, 1", BYTEWAX, all_of("identity", "long", "cpu", "airports", "latency", "kill", words=50_000)),
    Contestant("Bytewax, 2", BYTEWAX, all_of("identity", "long", "cpu", words=50_000, durable=50_000), 2),
    Contestant("Bytewax, 2, combined", BYTEWAX, all_of(words=50_000), 2, {"combine": True}),
    Contestant(
        "Pathway, 1", PATHWAY, all_of("latency", "kill", identity=200_000, words=50_000, cpu=5_000, airports=50_000)
    ),
    Contestant("Pathway, 2", PATHWAY, all_of(words=50_000, durable=50_000, cpu=5_000), 2),
    Contestant("Ray, 1", RAY, all_of("identity", "long", "words", "cpu", "latency", "kill")),
    Contestant("Ray, 2", RAY, all_of("identity", "long", "words", "cpu", "airports"), 2),
    Contestant("streamz", STREAMZ, all_of("latency", identity=100_000, words=10_000, airports=50_000)),
    Contestant("streamz + Dask, 1", STREAMZ, all_of(cpu=5_000)),
    Contestant("streamz + Dask, 2", STREAMZ, all_of(cpu=5_000), 2),
    Contestant("dramatiq, 1", DRAMATIQ, all_of("latency", "kill", identity=3_000, words=20_000, airports=50_000)),
    Contestant("dramatiq, 2", DRAMATIQ, all_of(words=20_000, durable=20_000, cpu=5_000), 2),
    Contestant("PyFlink, 1", FLINK, all_of(identity=200_000, words=1_000, cpu=4_000)),
    Contestant("PyFlink, 2", FLINK, all_of(identity=200_000, cpu=4_000), 2),
)
"""In the order in which they run in each round. Ours has a line for each way to run: options are `Pipeline.run`'s."""


def prepare(work: Work, size: int, inputs: Path) -> None:
    """Write what contestants read before their time starts, unless it is there."""
    inputs.mkdir(parents=True, exist_ok=True)
    if work.name in LINES:
        _write(inputs / f"lines-{size}.txt", lambda: "\n".join(wordcount.lines(size)))
    if work.name == "airports":
        _write(inputs / f"codes-{size}.json", lambda: json.dumps(airports.codes(size)))
        _write(inputs / "places.json", lambda: json.dumps({c: p[1:] for c, p in airports.places().items()}))


def _write(path: Path, make: Callable[[], str]) -> None:
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.write_text(make())
        partial.rename(path)
