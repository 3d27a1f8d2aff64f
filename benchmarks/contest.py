"""Contestants answer one question in turn, each time in a process of their own; medians, spread and ratios.

The machine's speed drifts and others use it too, so nobody is measured alone: all contestants run once,
then all once more, and so on. A run beside which other processes took more than `BUSY_CORES` is marked.
Every answer is checked against the question's own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.neighbours import BUSY_CORES, watched

ROOT = Path(__file__).parents[1]
RUN_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a contestant says of one run. ``seconds``: from the first item read to the last one written."""

    seconds: float
    answer: Any


Contestant = Callable[[int], Outcome]
"""Does the work for so many items."""


@dataclass(frozen=True, slots=True)
class Question:
    """``unit`` is what ``size`` counts; ``expected`` computes the right answer in the plainest way.

    ``old`` names the contestants that run with consecution 0.2.0, ``beside`` the one that ratios refer to.
    """

    name: str
    title: str
    unit: str
    size: int
    expected: Callable[[int], Any]
    contestants: dict[str, Contestant]
    old: tuple[str, ...] = ()
    beside: str = "plain loop"
    fewer: dict[str, int] | None = None
    """Contestants that get only one in so many items, because they would take too long."""

    def size_for(self, contestant: str, size: int) -> int:
        return max(1, size // (self.fewer or {}).get(contestant, 1))


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run; ``wall_s`` is the whole process, ``others`` how many cores others used meanwhile."""

    contestant: str
    items: int
    seconds: float
    wall_s: float
    others: float

    @property
    def items_per_s(self) -> float:
        return self.items / self.seconds

    @property
    def busy(self) -> bool:
        return self.others > BUSY_CORES


def hold(question: Question, size: int, rounds: int, old_root: Path | None) -> Iterator[Run]:
    """Run every contestant once per round. ValueError for a wrong answer; RuntimeError where one breaks down."""
    expected = {n: question.expected(n) for n in {question.size_for(name, size) for name in question.contestants}}
    for _ in range(rounds):
        for name in question.contestants:
            if name in question.old and old_root is None:
                continue
            items = question.size_for(name, size)
            older = old_root if name in question.old else None
            yield run_child(question.name, name, items, expected[items], old_root=older)


def run_child(
    question: str, name: str, items: int, expected: Any, *, root: Path = ROOT, old_root: Path | None = None
) -> Run:
    """One run, with the benchmarks and the package of the checkout at ``root``."""
    command = [sys.executable, "-m", "benchmarks.child", question, name, str(items), str(old_root or "")]
    with watched() as seen:
        process = subprocess.Popen(
            command,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        stdout, stderr = process.communicate(timeout=RUN_TIMEOUT_S)
    if process.returncode:
        raise RuntimeError(f"{question}: {name} broke down (exit code {process.returncode}):\n{stderr[-2000:]}")
    told = json.loads(stdout.splitlines()[-1])
    if told["answer"] != json.loads(json.dumps(expected)):
        raise ValueError(f"{question}: {name} answered {told['answer']!r}, expected {expected!r}")
    return Run(name, items, told["seconds"], seen.wall_s, seen.others or 0.0)


@dataclass(frozen=True, slots=True)
class Standing:
    """One contestant's runs, summed up. ``ratio``: how many times as fast as the one beside it, round by round."""

    contestant: str
    median: float
    least: float
    most: float
    ratio: float
    wall_s: float
    busy_runs: int


def sum_up(question: Question, runs: list[Run]) -> list[Standing]:
    """Medians per contestant; ratios are medians of the ratios within each round."""
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.contestant, []).append(run)
    beside = by_name[question.beside]
    return [_standing(name, own, beside) for name, own in by_name.items()]


def _standing(name: str, own: list[Run], beside: list[Run]) -> Standing:
    rates = [run.items_per_s for run in own]
    ratios = [a.items_per_s / b.items_per_s for a, b in zip(own, beside, strict=True)]
    busy = sum(run.busy for run in own)
    wall_s = statistics.median(run.wall_s for run in own)
    return Standing(name, statistics.median(rates), min(rates), max(rates), statistics.median(ratios), wall_s, busy)


def table(question: Question, standings: list[Standing], rounds: int) -> str:
    """The result for people."""
    width = max(len(s.contestant) for s in standings)
    rate = f"{question.unit}/s"
    lines = [
        question.title,
        f"  {'': <{width}}  {rate: >12}  {'least': >12}  {'most': >12}  {'ratio': >7}  {'process s': >9}",
    ]
    for s in standings:
        busy = f"  ({s.busy_runs} of {rounds} beside busy neighbours)" if s.busy_runs else ""
        lines.append(
            f"  {s.contestant: <{width}}  {s.median: >12,.0f}  {s.least: >12,.0f}  {s.most: >12,.0f}  "
            f"{s.ratio: >7.2f}  {s.wall_s: >9.2f}{busy}"
        )
    lines.append(f"  ratio: to {question.beside}, median of {rounds} rounds; process s: with start and end")
    return "\n".join(lines)
