"""``python -m consecution.testing --schedules 1000000 --seed 7``: many seeded crash schedules."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from consecution.testing.simulation import Outcome, Summary, run_schedule, run_schedules

PROGRESS_EVERY_S = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0 if every promise was kept, 1 if not."""
    parser = argparse.ArgumentParser(
        prog="python -m consecution.testing",
        description="Run seeded crash schedules against the protocol core, and check every promise.",
    )
    parser.add_argument("--schedules", type=int, default=10_000, metavar="N", help="how many (default 10000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the first seed (default 0)")
    parser.add_argument("--trace", type=int, metavar="SEED", help="print the events of one schedule instead")
    options = parser.parse_args(arguments)
    if options.trace is not None:
        return _trace(options.trace)
    progress = _Progress(options.schedules)
    summary = run_schedules(options.schedules, options.seed, on_outcome=progress.show)
    print(summary)
    return 1 if summary.failed else 0


def _trace(seed: int) -> int:
    outcome = run_schedule(seed, tracing=True)
    for event in outcome.events:
        print(event)
    print(outcome.problem or "every promise was kept")
    return 1 if outcome.problem else 0


class _Progress:
    """A line on stderr about once a second, and each failing seed on stdout."""

    def __init__(self, schedules: int) -> None:
        self._schedules = schedules
        self._started_s = self._shown_s = time.monotonic()

    def show(self, summary: Summary, outcome: Outcome) -> None:
        if outcome.problem is not None:
            print(f"seed {outcome.seed}: {outcome.problem}")
            print(f"  repeat: python -m consecution.testing --trace {outcome.seed}", flush=True)
        now_s = time.monotonic()
        if now_s - self._shown_s >= PROGRESS_EVERY_S:
            self._shown_s = now_s
            rate = summary.schedules / (now_s - self._started_s)
            print(f"{summary.schedules} of {self._schedules}, {rate:.0f} a second", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
