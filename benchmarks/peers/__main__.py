"""``python -m benchmarks.peers``: consecution beside other tools; the page and the chart. ``--help`` tells the rest."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.contest import ROOT
from benchmarks.peers import page, race
from benchmarks.peers.environments import VARIABLE, Missing, cache, interpreter
from benchmarks.peers.field import CONTESTANTS, WORKS, Contestant
from benchmarks.peers.record import Record

QUICK = 20
"""``--quick`` asks for one in so many items."""


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    asked = parser.parse_args(arguments)
    tools = {c.tool.module: c.tool for c in CONTESTANTS}
    works = _chosen(parser, "work", asked.works, {work.name: work for work in WORKS})
    chosen = _chosen(parser, "peer", asked.peers, tools)
    if asked.show:
        record = Record.load(asked.show)
    else:
        contestants, missing = _able([c for c in CONTESTANTS if c.tool in chosen])
        if asked.prepare:
            return 0
        rounds, divisor = (1, QUICK) if asked.quick else (asked.rounds, 1)
        record = Record.begin(rounds, divisor, missing)
        for run in race.hold(
            contestants,
            works,
            rounds,
            race.run_once,
            divisor=divisor,
            repeats=0 if asked.quick else asked.repeats,
            limit_s=asked.minutes * 60,
        ):
            record.runs.append(run)
            print(_line(run), file=sys.stderr, flush=True)
        record.save(cache() / "record.json")
    print(page.tables(record))
    whole = not (asked.works or asked.peers or asked.quick)
    if whole or asked.page:
        page.write(record, asked.page or ROOT / "docs" / "performance.md")
    return 1 if any(run.failure for run in record.runs) else 0


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(dict.fromkeys(c.tool.module for c in CONTESTANTS))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=f"Measure consecution beside other tools, each in an environment of its own under ${VARIABLE} or "
        ".cache/peers. A complete run writes docs/performance.md and its chart.",
    )
    parser.add_argument("--peers", default="", help=f"some of: {names}; separated by commas")
    parser.add_argument("--works", default="", help=f"some of: {', '.join(w.name for w in WORKS)}")
    parser.add_argument("--rounds", type=int, default=3, help="how often each contestant runs (default 3)")
    parser.add_argument("--repeats", type=int, default=2, help="how often a run beside busy others is repeated (2)")
    parser.add_argument("--minutes", type=float, default=20, help="after so long no other run is started (default 20)")
    parser.add_argument("--quick", action="store_true", help="one round of few items: do they work at all?")
    parser.add_argument("--prepare", action="store_true", help="only make the environments")
    parser.add_argument("--page", type=Path, help="write the page there, although the run is not complete")
    parser.add_argument("--show", type=Path, metavar="RECORD", help="run nothing; write the page of an earlier record")
    return parser


def _chosen(parser: argparse.ArgumentParser, what: str, text: str, known: dict[str, object]) -> list:  # type: ignore[type-arg]
    names = [name for name in text.split(",") if name] or list(known)
    for name in names:
        if name not in known:
            parser.error(f"unknown {what} {name!r}; there are {', '.join(known)}")
    return [known[name] for name in names]


def _able(contestants: list[Contestant]) -> tuple[list[Contestant], list[str]]:
    """Those whose tool is here or can be had, and why the others are missing."""
    missing: dict[str, str] = {}
    for tool in dict.fromkeys(c.tool for c in contestants):
        try:
            interpreter(tool)
        except Missing as reason:
            print(f"without {tool.name}: {reason}", file=sys.stderr)
            missing[tool.module] = f"{tool.name}: {reason}."
    return [c for c in contestants if c.tool.module not in missing], list(missing.values())


def _line(run: race.Run) -> str:
    others = "" if run.others is None else f"  others {run.others:.2f}"
    again = f", the quietest of {run.attempts}" if run.attempts > 1 else ""
    what = f"FAILED: {run.failure}" if run.failure else page.figure(run)
    return f"  {run.round + 1} {run.work}: {run.contestant}: {what}{others}{again}"


if __name__ == "__main__":
    sys.exit(main())
