"""``python -m benchmarks``: ask the questions, print the tables. ``--help`` tells the rest."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from pathlib import Path

from benchmarks import contest, latency
from tests.compat import old_release

QUESTIONS = ("identity", "wordcount", "durable", "airports", "cpu")
QUICK = 20
"""``--quick`` asks for one in so many items."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure consecution beside a plain loop and consecution 0.2.0; all in turn, in one run.",
    )
    parser.add_argument(
        "questions", nargs="*", metavar="QUESTION", help=f"{', '.join(QUESTIONS)}, latency; all if none"
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each contestant runs (default 5)")
    parser.add_argument("--quick", action="store_true", help="small sizes and one round: do they work at all?")
    arguments = parser.parse_args()
    asked = arguments.questions or [*QUESTIONS, "latency"]
    unknown = set(asked) - {*QUESTIONS, "latency"}
    if unknown:
        parser.error(f"unknown question {min(unknown)!r}; there are {', '.join(QUESTIONS)}, latency")
    rounds = 1 if arguments.quick else arguments.rounds
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {platform.system()}, {os.cpu_count()} cores\n"
    )
    old_root = _old_root()
    for name in asked:
        print(
            _latency(rounds, arguments.quick) if name == "latency" else _ask(name, rounds, old_root, arguments.quick),
            end="\n\n",
        )
    return 0


def _old_root() -> Path | None:
    try:
        return old_release.provide()
    except old_release.Unavailable as reason:
        print(f"without 0.2.0: {reason}", file=sys.stderr)
        return None


def _latency(rounds: int, quick: bool) -> str:
    return latency.report(rounds, latency.STATES[:1] if quick else latency.STATES)


def _ask(name: str, rounds: int, old_root: Path | None, quick: bool) -> str:
    question: contest.Question = importlib.import_module(f"benchmarks.{name}").QUESTION
    size = question.size // QUICK if quick else question.size
    runs = []
    for run in contest.hold(question, size, rounds, old_root):
        runs.append(run)
        print(f"  {name}: {run.contestant}: {run.items_per_s:,.0f} {question.unit}/s", file=sys.stderr)
    return contest.table(question, contest.sum_up(question, runs), rounds)


if __name__ == "__main__":
    sys.exit(main())
