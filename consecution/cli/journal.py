"""``consecution journal check``: look at what a state directory holds, and whether it is sound."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from consecution.runtime.journal_check import CheckResult, OriginSummary, check_state_dir

EXAMPLES = """examples:
  consecution journal check state
  consecution journal check state --json
"""


def add_parser(commands: Any) -> None:
    """Add this command's parsers."""
    parser = commands.add_parser("journal", help="look into a state directory")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    check = actions.add_parser(
        "check",
        help="verify every record",
        description="Read a state directory with a reader of its own, and verify every record. Exit code 0 if it is\n"
        "sound, 1 if it is damaged, 2 if it is no state directory.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("state_dir", metavar="STATE_DIR", type=Path)
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    check.set_defaults(command=check_journal)


def check_journal(arguments: argparse.Namespace) -> int:
    """Print what was found."""
    result = check_state_dir(arguments.state_dir)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(result), indent=1, default=repr))
    else:
        print(_describe(result))
    return 1 if result.problems else 0


def _describe(result: CheckResult) -> str:
    lines = [f"state directory: {'finished' if result.finished else 'not finished'}, epoch {result.epoch}"]
    for origin in result.origins:
        lines += [_describe_origin(origin), *([_describe_durable(origin)] if origin.durable else [])]
    lines += [f"DAMAGED: {problem}" for problem in result.problems] or ["every record is sound"]
    return "\n".join(lines)


def _describe_origin(origin: OriginSummary) -> str:
    place = "" if origin.durable else f", at position {origin.position!r}"
    moved = f"; failed items of other stores that are batches now, and void there, {origin.moved:,}"
    return (
        f"  {origin.name}: {origin.emitted:,} items emitted in {origin.next_seq:,} batches{place}; open batches "
        f"{origin.open_batches:,} ({origin.open_items:,} items), decided and not yet applied everywhere "
        f"{origin.decided:,}, waiting for a retry {origin.waiting:,}, given up {origin.given_up:,}"
        f"{moved if origin.moved else ''}"
    )


def _describe_durable(origin: OriginSummary) -> str:
    applied = ", ".join(f"{seq:,} of {name}" for name, seq in origin.ledger) or "none"
    return (
        f"    {origin.keys:,} states in its table and {origin.logged:,} records in its log, {origin.staged:,} frames "
        f"staged; last batches applied: {applied}"
    )
