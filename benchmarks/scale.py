"""Do time, memory and disk stay flat: with the number of items, with the number of nodes, with large items?

    python -m benchmarks.scale [items|nodes|large ...] [--most N]

``items``: identity, and a durable sum under 1,000 keys, with 10^4 items up to ``--most`` (10^8 by default, for the
durable sum a tenth of it). ``nodes``: a chain of so many identities. ``large``: items of so many bytes. All in process
mode, robust. Each run is a process of its own; its memory, and that of its workers, is what /proc says they have for
themselves alone (Linux), sampled while it runs, and so is the size of the state directory.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.identity import identity
from benchmarks.stamps import StampedSink, StampedSource, outcome
from consecution import KeyedNode, Map, Node, Pipeline

ROOT = Path(__file__).parents[1]
SAMPLE_EVERY_S = 0.1
RUN_TIMEOUT_S = 900
MIB = 1024**2

MOST_ITEMS = 100_000_000
KEYS = 1_000
NODES = (1, 10, 50)
NODES_ITEMS = 200_000
LARGE_BYTES = (1_000, 30_000, 1_000_000)
LARGE_TOTAL_BYTES = 2_000_000_000


class Sum(KeyedNode):
    """Adds up the numbers under each of `KEYS` keys; pushes each as it came."""

    def key(self, item: int) -> int:
        return item % KEYS

    def process(self, item: int) -> None:
        self.state["sum"] = self.state.get("sum", 0) + item
        self.push(item)


def total_bytes(items: list[bytes]) -> int:
    return sum(map(len, items))


class Bodies:
    """So many items of so many bytes, none the same object as another."""

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.size = size

    def __iter__(self) -> Iterator[bytes]:
        for number in range(self.count):
            yield number.to_bytes(8, "big") * (self.size // 8)


@dataclass(frozen=True, slots=True)
class Case:
    """One run: ``kind`` and its number, the items, and the options."""

    kind: str
    number: int
    count: int
    workers: str

    @property
    def expected(self) -> int:
        return self.count * self.number if self.kind == "large" else self.count * (self.count - 1) // 2

    def items(self) -> Any:
        return functools.partial(iter, Bodies(self.count, self.number)) if self.kind == "large" else range(self.count)

    def nodes(self) -> list[Node]:
        if self.kind == "nodes":
            return [Map(identity, f"identity_{number}") for number in range(self.number)]
        return [Sum("sum") if self.kind == "durable" else Map(identity, "identity")]


@dataclass(frozen=True, slots=True)
class Figures:
    """``seconds``: from the first item read to the last one written; the others are the most that was seen."""

    seconds: float
    memory_mib: float
    disk_mib: float


def live(case: Case, folder: Path) -> None:
    """The run itself; prints seconds and answer."""
    sink = StampedSink("sink", folder, total_bytes if case.kind == "large" else sum)
    graph: Any = case.nodes()[0]
    for node in [*case.nodes()[1:], sink]:
        graph = graph | node
    workers: Any = int(case.workers) if case.workers.isdigit() else case.workers
    report = Pipeline(graph).run(StampedSource(case.items(), folder), state_dir=folder / "state", workers=workers)
    if report.exit_code:
        raise RuntimeError(str(report))
    found = outcome(folder)
    print(json.dumps([found.seconds, found.answer]))


def measure(case: Case) -> Figures:
    """Run it in a process of its own. RuntimeError for a wrong answer, and if it breaks down."""
    memory = disk = 0.0
    with tempfile.TemporaryDirectory(prefix="benchmark-scale-") as made:
        command = [sys.executable, "-m", "benchmarks.scale", "--live", *map(str, _values(case)), made]
        deadline_s = time.monotonic() + RUN_TIMEOUT_S
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as child:
            while child.poll() is None:
                if time.monotonic() > deadline_s:
                    child.kill()
                memory = max(memory, sum(map(_own_mib, _tree(child.pid))))
                disk = max(disk, _disk_mib(Path(made, "state")))
                time.sleep(SAMPLE_EVERY_S)
            assert child.stdout is not None
            told = child.stdout.read()
        if child.returncode:
            raise RuntimeError(f"{case}: the run ended with exit code {child.returncode}")
    seconds, answer = json.loads(told)
    if answer != case.expected:
        raise RuntimeError(f"{case}: the answer is {answer}, and should be {case.expected}")
    return Figures(seconds, memory, disk)


def _values(case: Case) -> tuple[Any, ...]:
    return case.kind, case.number, case.count, case.workers


def _tree(pid: int) -> Iterator[int]:
    """A process and everything under it, as far as it is still there."""
    yield pid
    try:
        children = [word for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]
    except OSError:
        return
    for child in children:
        yield from _tree(int(child))


def _own_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")) / 1024


def _disk_mib(folder: Path) -> float:
    found = 0
    for path in folder.rglob("*"):
        try:
            found += path.stat().st_blocks * 512
        except OSError:
            continue
    return found / MIB


# -- questions -----------------------------------------------------------------------------------


def items_cases(most: int) -> Iterator[Case]:
    for kind, upto in (("identity", most), ("durable", most // 10)):
        count = 10_000
        while count <= upto:
            yield Case(kind, 1, count, "per-task")
            count *= 10


def nodes_cases(most: int) -> Iterator[Case]:
    for workers in ("per-task", "2"):
        for nodes in NODES:
            yield Case("nodes", nodes, min(most, NODES_ITEMS), workers)


def large_cases(most: int) -> Iterator[Case]:
    for size in LARGE_BYTES:
        yield Case("large", size, max(1, min(most, LARGE_TOTAL_BYTES // size)), "per-task")


QUESTIONS: dict[str, Callable[[int], Iterator[Case]]] = {
    "items": items_cases,
    "nodes": nodes_cases,
    "large": large_cases,
}


def row(case: Case, found: Figures) -> str:
    what = {"nodes": f"{case.number} nodes, workers={case.workers}", "large": f"{case.number:,} bytes each"}
    per_item_us = found.seconds / case.count * 1e6
    bytes_s = f"{case.count * case.number / found.seconds / MIB:,.0f} MiB/s" if case.kind == "large" else ""
    return (
        f"  {what.get(case.kind, case.kind): <28}{case.count: >13,} {found.seconds: >8.2f} s {per_item_us: >9.3f} µs "
        f"{found.memory_mib: >8.0f} MiB {found.disk_mib: >8.1f} MiB  {bytes_s}"
    ).rstrip()


def main() -> int:
    if sys.argv[1:2] == ["--live"]:
        kind, number, count, workers, folder = sys.argv[2:]
        live(Case(kind, int(number), int(count), workers), Path(folder))
        return 0
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"{', '.join(QUESTIONS)}; all if none")
    parser.add_argument("--most", type=int, default=MOST_ITEMS, help="no run gets more items than this")
    arguments = parser.parse_args()
    unknown = set(arguments.questions) - set(QUESTIONS)
    if unknown:
        parser.error(f"unknown question {min(unknown)!r}; there are {', '.join(QUESTIONS)}")
    print(f"  {'': <28}{'items': >13} {'time': >10} {'per item': >12} {'memory': >12} {'disk': >12}")
    for name in arguments.questions or QUESTIONS:
        for case in QUESTIONS[name](arguments.most):
            print(row(case, measure(case)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
