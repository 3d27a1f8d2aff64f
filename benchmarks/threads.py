"""Do threads share the work where Python has no global interpreter lock?

    python -m benchmarks.threads [--python PROGRAM ...] [--rounds N] [--quick]

Mode thread, `robust`: pure Python of 200 µs an item, and lines that are split into words, which are counted; each with
one replica of what does it, and with two. Every ``--python`` runs each of them once a round; by itself this one does.
A free-threaded build runs without the lock, whatever extension modules ask for, and with it (``PYTHON_GIL``). All
programs need what consecution needs. The answers are checked; figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import cpu, wordcount
from benchmarks.contest import Outcome
from benchmarks.stamps import StampedSink, run
from consecution import Count, FlatMap, Map, Pipeline

ROOT = Path(__file__).parents[1]
RUN_TIMEOUT_S = 300
REPLICAS = (1, 2)


def burn(item: int) -> int:
    """As `cpu.burn`, but with a mask of each thread's own.

    Of a number that stands in an imported module CPython 3.14 counts all references. Threads that do so with the same
    one thousands of times for each item hold each other up more than they help.
    """
    total, mask = item, item | 0xFFFFFFFF
    for step in range(cpu.BURN_LOOPS):
        total = (total * 31 + step) & mask
    return total & 0xFF


def run_cpu(size: int, replicas: int) -> Outcome:
    def build(folder: Path) -> Pipeline:
        return Pipeline(Map(burn, "burn") * replicas | StampedSink("sink", folder, measure=sum))

    return run(build, range(size), mode="thread", robustness="robust")[0]


def run_words(size: int, replicas: int) -> Outcome:
    def build(folder: Path) -> Pipeline:
        sink = StampedSink("sink", folder, measure=wordcount.digest_pairs)
        return Pipeline(FlatMap(str.split, "split") * replicas | Count() * replicas | sink)

    return run(build, wordcount.lines(size), mode="thread", robustness="robust")[0]


@dataclass(frozen=True, slots=True)
class Work:
    """``size`` items go through ``run``, which gets the number of replicas, too."""

    run: Callable[[int, int], Outcome]
    expected: Callable[[int], int]
    unit: str
    size: int


WORKS = {
    "cpu": Work(run_cpu, cpu.expected, "items", 5_000),
    "words": Work(run_words, wordcount.expected, "lines", 100_000),
}


@dataclass(frozen=True, slots=True)
class Interpreter:
    """``gil``: what ``PYTHON_GIL`` is to be; "" where there is no choice."""

    program: str
    version: str
    gil: str = ""

    def __str__(self) -> str:
        return self.version + {"": "", "0": ", without the lock", "1": ", with the lock"}[self.gil]


def interpreters(program: str) -> list[Interpreter]:
    """How this program can be run. ValueError if it cannot."""
    code = "import sys, sysconfig; print(sys.version.split()[0], bool(sysconfig.get_config_var('Py_GIL_DISABLED')))"
    command, environment = [program, "-c", code], _environment()
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    if found.returncode:
        raise ValueError(f"{program} cannot be run: {found.stderr.strip()}")
    version, free = found.stdout.split()
    name = f"CPython {version}"
    return [Interpreter(program, f"{name}t", gil) for gil in "01"] if free == "True" else [Interpreter(program, name)]


def _environment() -> dict[str, str]:
    """What is said of the lock to this interpreter another one may not even take."""
    return {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}


def measure(interpreter: Interpreter, work: str, size: int, replicas: int) -> float:
    """Items a second of one run, in a process of its own. RuntimeError if it fails, or the answer is wrong."""
    command = [interpreter.program, "-m", "benchmarks.threads", "--one", work, "--size", str(size)]
    environment = {**_environment(), "PYTHONPATH": str(ROOT)}
    if interpreter.gil:
        environment["PYTHON_GIL"] = interpreter.gil
    found = subprocess.run(
        [*command, "--replicas", str(replicas)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )
    if found.returncode:
        raise RuntimeError(f"{interpreter}: {work} * {replicas} ended with {found.returncode}: {found.stderr[-2000:]}")
    told = json.loads(found.stdout.splitlines()[-1])
    expected = {"answer": WORKS[work].expected(size), "locked": interpreter.gil != "0"}
    if {name: told[name] for name in expected} != expected:
        raise RuntimeError(f"{interpreter}: {work} * {replicas} answered {told}, expected {expected}")
    return size / float(told["seconds"])


def rates(
    programs: Sequence[Interpreter], rounds: int, divisor: int
) -> Iterator[tuple[Interpreter, str, dict[int, float]]]:
    """Of each interpreter and work, the median of items a second for each number of replicas."""
    found: dict[tuple[Interpreter, str, int], list[float]] = {}
    for _ in range(rounds):
        for work in WORKS:
            for interpreter in programs:
                for replicas in REPLICAS:
                    size = WORKS[work].size // divisor
                    found.setdefault((interpreter, work, replicas), []).append(
                        measure(interpreter, work, size, replicas)
                    )
    for work in WORKS:
        for interpreter in programs:
            medians = {replicas: statistics.median(found[interpreter, work, replicas]) for replicas in REPLICAS}
            yield interpreter, work, medians


def _one(work: str, size: int, replicas: int) -> None:
    outcome = WORKS[work].run(size, replicas)
    locked = not sysconfig.get_config_var("Py_GIL_DISABLED") or sys._is_gil_enabled()  # type: ignore[attr-defined]
    print(json.dumps({"seconds": outcome.seconds, "answer": outcome.answer, "locked": locked}))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.threads", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--python", action="append", metavar="PROGRAM", help="an interpreter (this one); may be repeated"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each runs (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the items: does it work at all?")
    parser.add_argument("--one", choices=WORKS, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--replicas", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        _one(given.one, given.size, given.replicas)
        return
    try:
        programs = [found for program in given.python or [sys.executable] for found in interpreters(program)]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print("| work | Python | one replica | two | |\n| --- | --- | ---: | ---: | ---: |")
    for interpreter, work, medians in rates(programs, given.rounds, 20 if given.quick else 1):
        one, two = (medians[replicas] for replicas in REPLICAS)
        print(f"| {work} | {interpreter} | {one:,.0f} {WORKS[work].unit}/s | {two:,.0f} | {two / one:.2f} × |")


if __name__ == "__main__":
    main()
