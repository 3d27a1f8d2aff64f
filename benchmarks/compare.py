"""``python -m benchmarks.compare REV``: how much faster is this checkout than another revision?

REV is checked out into a temporary worktree. Both revisions run each contestant of a question in turn, the first one
of a pair changing from round to round, in the same Python; what is printed are ratios within rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.__main__ import QUESTIONS, QUICK
from benchmarks.contest import ROOT, Question, Run, run_child


@dataclass(frozen=True, slots=True)
class Pair:
    """The runs of one contestant in one round: the other revision's and this one's."""

    contestant: str
    other: Run
    this: Run

    @property
    def ratio(self) -> float:
        """How many times as fast this one is."""
        return self.this.items_per_s / self.other.items_per_s


Runner = Callable[[Path, str], Run]
"""Root of a checkout, contestant → a run."""


def interleave(contestants: Sequence[str], rounds: int, other: Path, this: Path, run: Runner) -> Iterator[Pair]:
    """All contestants once per round; which revision comes first changes from round to round."""
    for number in range(rounds):
        order = (other, this) if number % 2 == 0 else (this, other)
        for contestant in contestants:
            runs = {root: run(root, contestant) for root in order}
            yield Pair(contestant, runs[other], runs[this])


def table(title: str, unit: str, pairs: Sequence[Pair]) -> str:
    """The result for people: medians of both, the median ratio and its spread."""
    names = list(dict.fromkeys(pair.contestant for pair in pairs))
    width = max(map(len, names))
    head = f"  {'': <{width}}  {'other': >12}  {'this': >12}  {'ratio': >6}  {'least': >6}  {'most': >6}"
    lines = [f"{title} ({unit}/s)", head]
    for name in names:
        own = [pair for pair in pairs if pair.contestant == name]
        ratios = [pair.ratio for pair in own]
        other = statistics.median(pair.other.items_per_s for pair in own)
        this = statistics.median(pair.this.items_per_s for pair in own)
        busy = sum(run.busy for pair in own for run in (pair.other, pair.this))
        note = f"  ({busy} of {2 * len(own)} runs beside busy neighbours)" if busy else ""
        lines.append(
            f"  {name: <{width}}  {other: >12,.0f}  {this: >12,.0f}  {statistics.median(ratios): >6.2f}  "
            f"{min(ratios): >6.2f}  {max(ratios): >6.2f}{note}"
        )
    return "\n".join(lines)


@contextlib.contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A worktree of the revision, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="consecution-compare-") as made:
        folder = Path(made) / "tree"
        _git("worktree", "add", "--quiet", "--detach", str(folder), revision)
        try:
            yield folder
        finally:
            _git("worktree", "remove", "--force", str(folder))


def _git(*words: str) -> None:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"git {words[0]} {words[1]}: {done.stderr.strip()}")


def contestants_of(root: Path, question: str) -> list[str]:
    """Whom a checkout's question knows, 0.2.0 left out; SystemExit if it has no such question."""
    ask = (
        f"import importlib, json; q = importlib.import_module('benchmarks.{question}').QUESTION; "
        "print(json.dumps([c for c in q.contestants if c not in q.old]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(root)}
    asked = subprocess.run(
        [sys.executable, "-c", ask], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    if asked.returncode:
        raise SystemExit(f"{root} cannot answer {question!r}: {asked.stderr.strip().splitlines()[-1]}")
    found: list[str] = json.loads(asked.stdout)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description="Measure this checkout beside another revision, in turn."
    )
    parser.add_argument("revision", help="a commit, branch or tag")
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"{', '.join(QUESTIONS)}; all if none")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contestant runs (default 5)")
    parser.add_argument("--quick", action="store_true", help="small sizes and one round: does it work at all?")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.questions) - set(QUESTIONS):
        parser.error(f"unknown question {min(unknown)!r}; there are {', '.join(QUESTIONS)}")
    with checked_out(asked.revision) as other:
        for name in asked.questions or QUESTIONS:
            print(_compare(name, other, 1 if asked.quick else asked.rounds, asked.quick), end="\n\n")
    return 0


def _compare(name: str, other: Path, rounds: int, quick: bool) -> str:
    question: Question = importlib.import_module(f"benchmarks.{name}").QUESTION
    size = question.size // QUICK if quick else question.size
    expected = question.expected(size)

    def run(root: Path, contestant: str) -> Run:
        found = run_child(name, contestant, size, expected, root=root)
        print(f"  {name}: {contestant} in {root}: {found.items_per_s:,.0f} {question.unit}/s", file=sys.stderr)
        return found

    known = contestants_of(other, name)
    both = [contestant for contestant in contestants_of(ROOT, name) if contestant in known]
    return table(question.title, question.unit, list(interleave(both, rounds, other, ROOT, run)))


if __name__ == "__main__":
    sys.exit(main())
