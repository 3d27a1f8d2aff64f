"""``consecution top``: what each node of a run does, per second, as long as you look."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from consecution.cli.outside import WORK_PENDING, add_state_parser, seconds, tell
from consecution.cli.rates import NodeRates, rates_between, who_holds_back
from consecution.runtime.outside import Outside, Sight
from consecution.telling import is_terminal

DESCRIPTION = """Show what each node of a run does per second, as long as you look: items in and out, how busy its
busiest task is (in its code, and in commits), how many frames wait in front of it, how long one takes, and which node
holds the flow back. A batch's whole way, from being read until it is completely processed, is the latency of the
source. Ctrl-C ends the view, not the run. With the extra `progress` (rich) the view is drawn in place.

exit codes: 0, also when the run ends meanwhile; 3 no run goes on; 2 this is no state directory
"""
EXAMPLES = """examples:
  consecution top state
  consecution top state --once
  consecution top state --json --interval 10 >> load.jsonl
"""
HEADS = ("node", "tasks", "in/s", "out/s", "failed/s", "busy", "commit", "queue", "latency")
CLEAR = "\x1b[H\x1b[2J"


def add_parser(commands: Any) -> None:
    """Add this command's parser."""
    parser = add_state_parser(
        commands, "top", help="what each node does per second, live", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument("--once", action="store_true", help="look once, for --interval seconds, print it, and end")
    parser.add_argument("--interval", metavar="S", type=seconds, default=1.0, help="seconds between looks (default 1)")
    parser.set_defaults(command=top)


def top(arguments: argparse.Namespace) -> int:
    """Look, and look again."""
    outside = Outside(arguments.state_dir)
    before = outside.see()
    if not before.running:
        tell(before, as_json=arguments.json)
        return WORK_PENDING
    try:
        with ExitStack() as stack:
            show = _shower(arguments, stack)
            while before.running:
                time.sleep(max(0.05, arguments.interval))
                now = outside.see()
                if now.running and _is_same_run(before, now):
                    show(now, rates_between(before, now))
                    if arguments.once:
                        return 0
                before = now
    except KeyboardInterrupt:
        return 0
    if not arguments.json:
        print(f"the run has ended: {before.state}")
    return 0


def _is_same_run(before: Sight, now: Sight) -> bool:
    """Whether the two can be compared. A run that just starts, or closes, does not answer yet, or any more."""
    return now.started_s is not None and now.started_s == before.started_s


def _shower(arguments: argparse.Namespace, stack: ExitStack) -> Callable[[Sight, list[NodeRates]], None]:
    """How a look is shown: as JSON, drawn in place, or as text."""
    if arguments.json:
        return _show_json
    if arguments.once or not is_terminal(sys.stdout):
        return lambda sight, rates: print(f"{_text_of(sight, rates)}\n", flush=True)
    try:
        from rich.live import Live
    except ImportError:
        return lambda sight, rates: print(CLEAR + _text_of(sight, rates), flush=True)
    live = stack.enter_context(Live(screen=True, auto_refresh=False))
    return lambda sight, rates: live.update(_drawn(sight, rates), refresh=True)


def _show_json(sight: Sight, rates: list[NodeRates]) -> None:
    """One line for each look."""
    told = {
        "time_s": time.time(),
        "state": sight.state,
        "open": sight.open,
        "completed": sight.counts["completed"],
        "holds_back": who_holds_back(sight, rates),
        "nodes": [{**dataclasses.asdict(found), "load": found.load} for found in rates],
    }
    print(json.dumps(told), flush=True)


def _cells(found: NodeRates) -> tuple[str, ...]:
    latency = "" if found.latency_s is None else _duration(found.latency_s)
    return (
        found.node,
        str(found.replicas),
        f"{found.in_per_s:,.0f}",
        f"{found.out_per_s:,.0f}",
        f"{found.failed_per_s:,.1f}" if found.failed_per_s else "",
        f"{found.busy:.0%}",
        f"{found.commit:.0%}",
        "" if found.is_source else f"{found.queue:,.1f}",
        latency,
    )


def _duration(length_s: float) -> str:
    if length_s < 1:
        return f"{length_s * 1000:.1f} ms"
    return f"{length_s:,.1f} s"


def _head(sight: Sight) -> str:
    counts = sight.counts
    return (
        f"{sight.state_dir}: {sight.state} for {counts['seconds']:,.0f} s, process {sight.pid}; "
        f"{counts['completed']:,} completed, {sight.open:,} pending, {counts['failed']:,} failed, "
        f"{counts['restarts']:,} restarts"
    )


def _text_of(sight: Sight, rates: list[NodeRates]) -> str:
    rows = [HEADS, *(_cells(found) for found in rates)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    lines = [_aligned(row, widths) for row in rows]
    return "\n".join([_head(sight), "", *lines, "", f"holds the flow back: {who_holds_back(sight, rates)}"])


def _aligned(row: tuple[str, ...], widths: list[int]) -> str:
    first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
    return "  ".join([row[0].ljust(len(first)), *others])


def _drawn(sight: Sight, rates: list[NodeRates]) -> Any:
    """The same for a terminal, with `rich`; the busiest node stands out."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column, head in enumerate(HEADS):
        table.add_column(head, justify="right" if column else "left", no_wrap=True)
    busiest = max(rates, key=lambda found: found.load, default=None)
    for found in rates:
        table.add_row(*map(Text, _cells(found)), style="bold" if found is busiest else "")
    held = Text(f"holds the flow back: {who_holds_back(sight, rates)}")
    return Group(Text(_head(sight)), Text(), table, Text(), held)
